"""Tempered sequential Monte Carlo: from draws of a prior to the posterior, and the evidence on the way.

Particles pass through pi_b(x) proportional to prior(x) L(x)^b, b from 0 to 1: each rise of b is an importance weight
L^(rise), a resampling, and a few moves that leave pi_b unchanged. The product of the mean weights estimates the
evidence Z = E_prior[L] without bias, provided that temperatures and moves do not depend on the particles they
weigh. So a pilot run learns both, and islands, runs independent of it and of one another, follow its schedule.

Source: Del Moral, Doucet and Jasra, "Sequential Monte Carlo samplers", JRSS B 68(3), 2006; adaptive temperatures: Zhou,
Johansen and Aston, "Toward automatic model comparison: an adaptive sequential Monte Carlo approach", JCGS 25(3), 2016.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.errors import DataError, OptionError
from pofx.samplers.densities import LogDensity, Rows, check_count, differentiable
from pofx.samplers.diagnostics import weight_ess
from pofx.samplers.importance import from_islands, log_mean, systematic
from pofx.samplers.kernels import Hamiltonian, Kernel, RandomWalk, Scale
from pofx.types import Generator

Draw = Callable[[int, Generator], Tensor]

_BISECTIONS = 60
_LEARN = 0.5  # rate of the log scale in each move of the pilot


@dataclass(frozen=True)
class Stage:
    """One temperature.

    Args:
        rise: what was added to b.
        b: the exponent of the likelihood.
        scale: how far its moves go along each coordinate.
    """

    rise: float
    b: float
    scale: Scale


@dataclass(frozen=True)
class SMC:
    """Draws of the posterior and the evidence.

    Args:
        x: particles of each island; all of an island weigh the same.
        log_z: log of each island's estimate of the evidence, in nats; -inf where no particle was left.
        b: the temperatures, the last one 1.
        ess: the effective size of the weights at each temperature, out of the particles of an island.
        acceptance: mean acceptance of the moves at each temperature; NaN where none can be refused.
    """

    x: Float[Tensor, "islands particles D"]
    log_z: Float[Tensor, " islands"]
    b: Float[Tensor, " stages"]
    ess: Float[Tensor, "stages islands"]
    acceptance: Float[Tensor, " stages"]

    @property
    def log_evidence(self) -> tuple[Tensor, Tensor]:
        """log of the mean of the islands' Z, and its standard error from their spread; Z itself is unbiased.

        The error of few islands is itself unsure: to a factor of about 1.5 with 4.
        """
        return log_mean(self.log_z)

    def sample(self, n: int, *, generator: Generator) -> Rows:
        """n particles in no order, each island as often as its Z says.

        Raises:
            DataError: no island has a particle left.
        """
        if bool((self.log_z == -torch.inf).all()):
            raise DataError("no particle has a likelihood above 0: draw more particles")
        return from_islands(self.x, self.log_z, n, generator=generator)


def smc(
    log_prior: LogDensity,
    log_likelihood: LogDensity,
    draw_prior: Draw,
    *,
    particles: int = 1000,
    islands: int = 4,
    kernel: Kernel | None = None,
    moves: int = 4,
    target: float = 0.5,
    most_stages: int = 1000,
    generator: Generator,
) -> SMC:
    """The posterior prior(x) L(x) / Z, and log Z.

    A stage costs (1 + islands) * particles * moves moves of the kernel. About as many stages as the prior's nats of
    surprise, KL(posterior || prior). Fails where the posterior has a mode that no prior particle is near: islands then
    disagree, or all miss it alike.

    Args:
        log_prior: log-density of the draws, in nats. It may lack its constant: Z is an average over draws.
        log_likelihood: of rows, in nats; -inf is a likelihood of 0.
        draw_prior: n and a generator to n rows (n, D) of the prior.
        particles: of each island and of the pilot.
        islands: independent estimates, at least 4.
        kernel: leaves a density unchanged. None: `Hamiltonian` where prior and likelihood have a gradient, else
            `RandomWalk`. Discrete coordinates need a `gibbs.Sweep`. A prior without density: log_prior zero,
            and `Independence` with draw_prior.
        moves: of each particle at each temperature.
        target: the effective size a rise of b leaves, as a share of the particles with a likelihood above 0.
        most_stages: the pilot gives up after so many.
        generator: of all that is drawn but what draw_prior draws otherwise.

    Raises:
        OptionError: a count under its least, or a target outside (0, 1).
        DataError: a likelihood that is NaN or inf at a draw of the prior, one that is 0 at all of them, or a schedule of
            more than most_stages.
    """
    _check(particles, islands, moves, target, most_stages)
    x = draw_prior(particles, generator)
    _check_likelihood(log_likelihood(x))
    if kernel is None:
        smooth = differentiable(log_prior, x[:2]) and differentiable(log_likelihood, x[:2])
        kernel = Hamiltonian() if smooth else RandomWalk()
    run = _Run(log_prior, log_likelihood, kernel, moves, generator)
    schedule = run.pilot(x, target, most_stages)
    return run.follow(draw_prior(islands * particles, generator), islands, schedule)


def rise(log_likelihood: Float[Tensor, " N"], target: float, left: float) -> float:
    """The rise d <= left of b at which the weights L^d have the effective size target * N, by bisection.

    N counts the particles with a likelihood above 0. With particles of equal weight this is the conditional effective
    size of Zhou, Johansen and Aston (2016).
    """
    log_l = log_likelihood[log_likelihood > -torch.inf]
    enough = target * len(log_l)
    if float(weight_ess(left * log_l)) >= enough:
        return left
    low, high = 0.0, left
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if float(weight_ess(middle * log_l)) >= enough else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class _Run:
    """The problem and how particles move."""

    log_prior: LogDensity
    log_likelihood: LogDensity
    kernel: Kernel
    moves: int
    generator: Generator

    def tempered(self, b: float) -> LogDensity:
        return lambda x: self.log_prior(x) + b * self.log_likelihood(x)

    def likelihood(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            log_l = self.log_likelihood(x)
        _check_numbers(log_l)
        return log_l

    def pilot(self, x: Tensor, target: float, most: int) -> list[Stage]:
        """Temperatures that keep the effective size at the target, scales that keep the acceptance at the kernel's."""
        n, b, stages = len(x), 0.0, list[Stage]()
        log_step = torch.full_like(x[0], math.log(self.kernel.first_step(x.shape[1])))
        while b < 1:
            if len(stages) == most:
                raise DataError(f"the posterior is {most} temperatures away and more (b = {b:.3g}): allow more stages, or a narrower prior")
            log_l = self.likelihood(x)
            _check_alive(log_l)
            d = rise(log_l, target, 1 - b)
            b = 1.0 if d == 1 - b else b + d
            x = x[systematic(d * log_l, n, generator=self.generator)]
            spread = x.std(0)
            for _ in range(self.moves):
                moved = self.kernel(self.tempered(b), x, spread * log_step.exp(), generator=self.generator)
                x = moved.x
                log_step = log_step + _LEARN * (moved.acceptance - self.kernel.target).nan_to_num(nan=0.0)
            stages.append(Stage(d, b, spread * log_step.exp()))
        return stages

    def follow(self, x: Tensor, islands: int, schedule: list[Stage]) -> SMC:
        """The schedule as it stands, all islands in one tensor whose row i belongs to island i mod islands."""
        n = len(x) // islands
        log_z, ess, acceptance = x.new_zeros(islands), [], []
        for stage in schedule:
            log_w = stage.rise * self.likelihood(x).reshape(n, islands)
            log_z = log_z + log_mean(log_w)[0]
            ess.append(weight_ess(log_w))
            which = systematic(log_w, n, generator=self.generator)
            x = x.reshape(n, islands, -1).gather(0, which[..., None].expand(-1, -1, x.shape[1])).flatten(0, 1)
            x, accepted = self.move(x, stage)
            acceptance.append(accepted)
        b = x.new_tensor([stage.b for stage in schedule])
        return SMC(x.reshape(n, islands, -1).transpose(0, 1), log_z, b, torch.stack(ess), torch.stack(acceptance))

    def move(self, x: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        """Move every particle, and the mean acceptance."""
        total = x.new_zeros(())
        for _ in range(self.moves):
            moved = self.kernel(self.tempered(stage.b), x, stage.scale, generator=self.generator)
            x, total = moved.x, total + moved.acceptance.nanmean()
        return x, total / self.moves


def _check(particles: int, islands: int, moves: int, target: float, most_stages: int) -> None:
    check_count("particles", particles, 2)
    check_count("islands", islands, 4)
    check_count("moves", moves, 1)
    check_count("most_stages", most_stages, 1)
    if not 0 < target < 1:
        raise OptionError(f"target is a share of the particles between 0 and 1, got {target}")


def _check_likelihood(log_l: Tensor) -> None:
    _check_numbers(log_l)
    if bool((log_l == -torch.inf).all()):
        raise DataError(f"the likelihood is 0 at all {len(log_l)} draws of the prior: draw more particles, or widen the prior")


def _check_alive(log_l: Tensor) -> None:
    if bool((log_l == -torch.inf).all()):
        raise DataError("the kernel has moved every particle to where the likelihood is 0: it does not leave the density unchanged")


def _check_numbers(log_l: Tensor) -> None:
    bad = (log_l.isnan() | (log_l == torch.inf)).nonzero()
    if len(bad):
        raise DataError(f"the log-likelihood of particle {int(bad[0])} is {float(log_l[bad[0]])}, not a number or -inf")
