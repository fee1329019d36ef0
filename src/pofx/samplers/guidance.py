"""Guidance: cheap ways to bend a diffusion model towards an observation. All are heuristics, and each says in `how` what it gets wrong.

Coordinates are y = x0 + s n, and D(y, s) = E[x0 | y]. The exact way is D + s^2 grad log p(observation | y), whose last term has no closed
form: each method here puts something in its place. What they share: where the observation leaves several modes, the draws' weights of the
modes stay near the prior's, and no number of steps mends it. `twisted` corrects what they get wrong, at the cost of many particles.
Rows are independent: a row alone and in a batch take the same step for the same noise.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pofx.errors import DataError, OptionError
from pofx.samplers.denoising import Denoise
from pofx.samplers.densities import Rows, check_count
from pofx.samplers.levels import Levels, check_levels
from pofx.samplers.twisted import Level, LinearObservation, ancestral, observed_covariance
from pofx.types import Generator, Point

Residual = Callable[[Tensor], Tensor]  # rows x0 (N, E) to what they miss the observation by (N, M)
LevelColumn = Float[Tensor, "R 1"]
Misses = Float[Tensor, "R M"]


@dataclass(frozen=True)
class ClassifierFree:
    """D_c + w (D_c - D_0): a heuristic that pushes the condition c harder than the model believes it. A `Denoise`.

    At w = 0 it is the conditional model. Above, it stands for the density p(x | c)^(1 + w) p(x)^(-w) but does not draw from it: that
    density with noise is not the product of the densities with noise. Costs two evaluations.

    Source: Ho and Salimans, "Classifier-free diffusion guidance", 2022, arXiv:2207.12598.

    Args:
        conditional: D_c.
        unconditional: D_0.
        weight: w.
    """

    how: ClassVar[str] = "classifier-free guidance, a heuristic: it overstates the condition, and draws from no density that can be named"
    conditional: Denoise
    unconditional: Denoise
    weight: float

    def __call__(self, y: Rows, s: LevelColumn) -> Rows:
        """The guided E[x0 | y]."""
        x_hat = self.conditional(y, s)
        return x_hat + self.weight * (x_hat - self.unconditional(y, s))


@dataclass(frozen=True)
class MomentMatching:
    """D + C A^T (R + A C A^T)^-1 (y_obs - A D), C = s^2 dD/dy: a heuristic that takes x0 | y for normal. A `Denoise`.

    Exact where the data are one normal; of several modes it keeps the prior's weights, nearly. Costs an evaluation and M + 1 backward
    passes for M observed numbers, or iterations + 1. The answer has no gradient in y.

    Source: Rozet, Andry, Lanusse and Louppe, "Learning diffusion priors from observations by expectation maximization", NeurIPS 2024.

    Args:
        denoise: D, with a gradient in y.
        observation: from `observe` or `observe_row`.
        iterations: of conjugate gradients; M of them solve exactly. None: the M x M matrix is built and solved.

    Raises:
        OptionError: iterations under 1.
    """

    how: ClassVar[str] = "moment-matching guidance, a heuristic: exact for one normal only; mode weights stay near the prior's"
    denoise: Denoise
    observation: LinearObservation
    iterations: int | None = None

    def __post_init__(self) -> None:
        if self.iterations is not None:
            check_count("iterations", self.iterations, 1)

    def __call__(self, y: Rows, s: LevelColumn) -> Rows:
        """The guided E[x0 | y]."""
        seen = self.observation
        seen.check(y)
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            x_hat = self.denoise(y, s)

            def spread(v: Tensor) -> Tensor:  # C A^T v
                return s.square() * torch.autograd.grad(x_hat, y, v @ seen.rows, retain_graph=True)[0]

            missed = seen.residual(x_hat.detach())
            if self.iterations is None:
                pull = _solved(observed_covariance(seen.rows, y, x_hat, s) + seen.noise.diag(), missed)
            else:
                pull = conjugate_gradients(lambda v: seen.noise * v + spread(v) @ seen.rows.T, missed, self.iterations)
            return x_hat.detach() + spread(pull)


@dataclass(frozen=True)
class DPS:
    """Diffusion posterior sampling: the ancestral step less zeta grad_x |y_obs - A D|, a heuristic. A solver.

    The norm is a row's own, and the gradient that of x = y / sqrt(1 + s^2), the variance-preserving path's coordinate, as published.
    The step knows neither the noise of the observation nor the level: draws come too wide or too narrow, with zeta to tune, and mode
    weights stay near the prior's. Not exact for one normal either. A step costs an evaluation and a backward pass.

    Source: Chung, Kim, Mccann, Klasky and Ye, "Diffusion posterior sampling for general noisy inverse problems", ICLR 2023.

    Args:
        residual: what rows x0 miss the observation by; `LinearObservation.residual`, or of any differentiable observation.
        zeta: how far to go.

    Raises:
        OptionError: a zeta that is negative.
    """

    how: ClassVar[str] = "DPS guidance, a heuristic: its spread depends on a step that was tuned; mode weights stay near the prior's"
    residual: Residual
    zeta: float = 0.3

    def __post_init__(self) -> None:
        if not self.zeta >= 0:
            raise OptionError(f"zeta is 0 or more, got {self.zeta}")

    def __call__(self, denoise: Denoise, y: Rows, levels: Levels, *, generator: Generator) -> Iterator[Tensor]:
        """The rows after each step, the last of them x0."""
        check_levels(levels)
        return _steps(self.step, denoise, y, levels.to(y), generator)

    def step(self, denoise: Denoise, y: Rows, s: Level, t: Level, noise: Rows) -> Rows:
        """From level s to t with the noise given."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            x_hat = denoise(y, s.expand(len(y), 1))
            (slope,) = torch.autograd.grad(torch.linalg.vector_norm(self.residual(x_hat), dim=-1).sum(), y)
        mean, sd = ancestral(y.detach(), x_hat.detach(), s, t)
        # grad_x is sqrt(1 + s^2) grad_y, and a step in x is sqrt(1 + t^2) as long in y
        return mean + sd * noise - self.zeta * ((1 + s.square()) * (1 + t.square())).sqrt() * slope


@dataclass(frozen=True)
class RePaint:
    """Replacement: at each level the observed coordinates are overwritten by their values with that level's noise, a heuristic. A solver.

    With repeats above 1 (RePaint) each step goes up again by fresh noise and is redone, so that the other coordinates can follow. They
    see the observation only through the denoiser at their own level, where much noise hides it: mode weights are decided before, and
    stay near the prior's. The observation is taken as exact. A step costs `repeats` evaluations.

    Source: Lugmayr et al., "RePaint: Inpainting using denoising diffusion probabilistic models", CVPR 2022; with one repeat Song et al.,
    "Score-based generative modeling through stochastic differential equations", ICLR 2021.

    Args:
        row: the observation, NaN where unobserved.
        repeats: how often each step is made; 1 is plain replacement.

    Raises:
        OptionError: repeats under 1.
        DataError: an infinity, or nothing observed.
    """

    how: ClassVar[str] = "replacement guidance, a heuristic: exact values that come in too late; mode weights stay near the prior's"
    row: Point
    repeats: int = 1

    def __post_init__(self) -> None:
        check_count("repeats", self.repeats, 1)
        if bool(self.row.isinf().any()) or not bool(self.seen.any()):
            raise DataError("an observed row holds at least one finite number and NaN where it is not observed")

    @property
    def seen(self) -> Bool[Tensor, " D"]:
        """Which coordinates are observed."""
        return ~self.row.isnan()

    def __call__(self, denoise: Denoise, y: Rows, levels: Levels, *, generator: Generator) -> Iterator[Tensor]:
        """The rows after each step, the last of them x0, where the observed coordinates have their values."""
        check_levels(levels)
        if y.shape[1:] != self.row.shape:
            raise DataError(f"the observation is of rows of {len(self.row)} numbers, got rows of {y.shape[1]}")
        return _steps(self.step, denoise, y, self.path(levels.to(y)), generator)

    def path(self, levels: Levels) -> Float[Tensor, " visited"]:
        """The levels as they are visited: each step down but the last is made `repeats` times, with a rise between."""
        down, last = levels[:-2], levels[-2:]
        pairs = torch.stack((down, levels[1:-1]), 1)
        return torch.cat((pairs.repeat_interleave(self.repeats, 0).flatten(), last)).unique_consecutive()

    def step(self, denoise: Denoise, y: Rows, s: Level, t: Level, noise: Rows) -> Rows:
        """From level s to t with the noise given; a rise adds it."""
        if t > s:
            return y + (t.square() - s.square()).sqrt() * noise
        mean, sd = ancestral(y, denoise(y, s.expand(len(y), 1)), s, t)
        return torch.where(self.seen, self.row.nan_to_num() + t * noise, mean + sd * noise)


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Misses, iterations: int) -> Misses:
    """S^-1 b row by row, each row with a symmetric positive S of its own, by conjugate gradients; M iterations are exact but for rounding.

    A row that has its answer stands still.

    Args:
        product: S v, of rows v.
        b: right-hand sides.
        iterations: how many products.
    """
    x, left, way = torch.zeros_like(b), b, b
    size = left.square().sum(-1, keepdim=True)
    for _ in range(iterations):
        image = product(way)
        curvature = (way * image).sum(-1, keepdim=True)
        step = torch.where(curvature > 0, size / curvature, 0.0)
        x, left = x + step * way, left - step * image
        before, size = size, left.square().sum(-1, keepdim=True)
        way = left + torch.where(before > 0, size / before, 0.0) * way
    return x


def _solved(s: Tensor, b: Tensor) -> Tensor:
    """S^-1 b, without the directions in which S is no covariance."""
    variance, axes = torch.linalg.eigh(s)
    along = (b[:, None] @ axes)[:, 0]
    least = torch.finfo(s.dtype).eps * variance[:, -1:].abs()
    return (axes @ torch.where(variance > least, along / variance, 0.0)[..., None])[..., 0]


def _steps(step: Callable[..., Tensor], denoise: Denoise, y: Tensor, levels: Tensor, generator: Generator) -> Iterator[Tensor]:
    for s, t in pairwise(levels):
        y = step(denoise, y, s, t, torch.randn(y.shape, generator=generator, dtype=y.dtype, device=y.device))
        yield y
