"""Moves that leave a density unchanged, one signature for all: SMC and Gibbs take any of them.

A kernel maps (log_p, x, scale) to new rows and the acceptance of each coordinate. `scale` (D,) is how far to
move along each coordinate; whoever drives the kernel learns it from `target`, the acceptance to aim at, and
holds it still while draws are kept. Rows are moved independently of one another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.samplers.densities import LogDensity, RowNats, Rows, check_count, value, value_and_grad
from pofx.samplers.leapfrog import trajectory
from pofx.types import Generator

Scale = Float[Tensor, " D"]


@dataclass(frozen=True)
class Moved:
    """What a kernel did.

    Args:
        x: where the rows stand now.
        acceptance: mean acceptance of the moves along each coordinate; NaN where none can be refused.
    """

    x: Rows
    acceptance: Scale


@runtime_checkable
class Kernel(Protocol):
    """A move that leaves exp(log_p) unchanged."""

    @property
    def target(self) -> float:
        """The acceptance at which it mixes best."""

    def first_step(self, dim: int) -> float:
        """The scale to begin with, in standard deviations of each coordinate."""

    def __call__(self, log_p: LogDensity, x: Rows, scale: Scale, *, generator: Generator) -> Moved:
        """Move every row once."""


@dataclass(frozen=True)
class RandomWalk:
    """x' = x + scale n, n ~ N(0, I), accepted with probability min(1, p(x') / p(x)). Two densities a move, no gradient.

    Mixes in O(D) moves at the target 0.234; blind to correlations.

    Source: Roberts, Gelman and Gilks, "Weak convergence and optimal scaling of random walk Metropolis algorithms",
    Annals of Applied Probability 7(1), 1997.
    """

    target: float = 0.234

    def first_step(self, dim: int) -> float:
        """2.38 / sqrt D."""
        return 2.38 / dim**0.5

    def __call__(self, log_p: LogDensity, x: Rows, scale: Scale, *, generator: Generator) -> Moved:
        """Propose, and accept or stay."""
        proposal = x + scale * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return _metropolis(x, proposal, value(log_p, proposal) - value(log_p, x), generator)


@dataclass(frozen=True)
class Independence:
    """x' ~ q, accepted with probability min(1, p(x') q(x) / (p(x) q(x'))). Two densities a move; the scale is not used.

    Args:
        draw: n and a generator to n rows of q.
        log_q: their log-density; None where log_p is already relative to q, as a likelihood is to draws of its prior.
    """

    draw: Callable[[int, Generator], Tensor]
    log_q: LogDensity | None = None
    target: float = 1.0

    def first_step(self, dim: int) -> float:
        """1; it is not used."""
        return 1.0

    def __call__(self, log_p: LogDensity, x: Rows, scale: Scale, *, generator: Generator) -> Moved:
        """Draw, and accept or stay."""
        proposal = self.draw(len(x), generator)
        log_ratio = value(log_p, proposal) - value(log_p, x)
        if self.log_q is not None:
            log_ratio = log_ratio + value(self.log_q, x) - value(self.log_q, proposal)
        return _metropolis(x, proposal, log_ratio, generator)


@dataclass(frozen=True)
class Hamiltonian:
    """One Hamiltonian trajectory of 1 to `leapfrogs` steps, how many being drawn anew each time. A gradient a step.

    The draw keeps trajectories from coming back to where they began. Source: as `leapfrog`; the target is the optimum
    for many dimensions of Beskos et al., "Optimal tuning of the hybrid Monte Carlo algorithm", Bernoulli 19(5A), 2013.

    Raises:
        OptionError: leapfrogs is under 1.
    """

    leapfrogs: int = 8
    target: float = 0.651

    def __post_init__(self) -> None:
        check_count("leapfrogs", self.leapfrogs, 1)

    def first_step(self, dim: int) -> float:
        """D^(-1/4)."""
        return dim**-0.25

    def __call__(self, log_p: LogDensity, x: Rows, scale: Scale, *, generator: Generator) -> Moved:
        """Flow, and accept or stay."""
        steps = 1 + int(torch.randint(self.leapfrogs, (), generator=generator, device=x.device))
        path = trajectory(log_p, value_and_grad(log_p, x), scale[None], steps, generator=generator)
        return Moved(path.point.x, path.acceptance.mean().expand(x.shape[1]))


def accepted(log_ratio: RowNats, *, generator: Generator) -> tuple[Tensor, Tensor]:
    """Which rows move, and the probability min(1, e^log_ratio) that they did; a ratio that is NaN stays."""
    probability = log_ratio.nan_to_num(nan=-torch.inf).exp().clamp_max(1)
    u = torch.rand(probability.shape, generator=generator, dtype=probability.dtype, device=probability.device)
    return u < probability, probability


def _metropolis(x: Tensor, proposal: Tensor, log_ratio: Tensor, generator: Generator) -> Moved:
    moves, probability = accepted(log_ratio, generator=generator)
    return Moved(torch.where(moves[:, None], proposal, x), probability.mean().expand(x.shape[1]))
