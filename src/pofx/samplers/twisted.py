"""Conditioning a diffusion model exactly, given particles enough: draws of p(x0) L(x0) / Z by twisted sequential Monte Carlo.

Coordinates are y = x0 + s n, n ~ N(0, I), s the noise level. Here p is the law of the ancestral sampler with the levels given: from s
down to t it steps by N(D + (t/s)^2 (y - D), t^2 (1 - (t/s)^2) I), D = E[x0 | y]; its last step is the observation's own (`Twist`).
At every level a twist psi_s(y) guesses E[L(x0) | y]. Particles take the ancestral step shifted by (s^2 - t^2) grad log psi_s, and weights

    w = N(y_t; ancestral) psi_t(y_t) / (N(y_t; shifted) psi_s(y_s))

undo both shift and guess, so that the mean of their product estimates Z without bias, whatever the twist is. A bad twist costs particles.

Source: Wu, Trippe, Naesseth, Blei and Cunningham, "Practical and asymptotically exact conditional sampling in diffusion models",
NeurIPS 2023. The last step of linear observations, which makes exact ones possible, is ours.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pofx.errors import DataError, OptionError
from pofx.samplers.denoising import Denoise
from pofx.samplers.densities import LogDensity, RowNats, Rows, check_count, differentiable
from pofx.samplers.diagnostics import weight_ess
from pofx.samplers.importance import from_islands, log_mean, systematic
from pofx.samplers.levels import Levels, check_levels
from pofx.types import Generator, Point

Level = Float[Tensor, ""]
UNIT = 1.0  # variance of data whose coordinates were standardised


@runtime_checkable
class Twist(Protocol):
    """A likelihood L, the guess psi_s at E[L(x0) | y] from D(y, s), and the sampler's last step."""

    def check(self, y: Rows) -> None:
        """Refuse what can not twist such rows."""

    def log_twist(self, y: Rows, x_hat: Rows, s: Level) -> RowNats:
        """log psi_s(y) where the denoiser says x_hat, in nats, with a gradient in y."""

    def log_last(self, y: Rows, x_hat: Rows, s: Level) -> RowNats:
        """log E[L(x0)] over the last step, from the lowest level s."""

    def draw_last(self, x_hat: Rows, s: Level, *, generator: Generator) -> Rows:
        """x0 of the last step given L, from the lowest level s."""


@dataclass(frozen=True)
class PlugIn:
    """Any likelihood: psi_s(y) = L(D(y, s))^b, b = h^2 / (h^2 + c), c = v s^2 / (v + s^2). The last step is x0 = D(y, s).

    c is the variance that x0 still has at level s, and h the width over which log L changes by about a nat: b keeps a narrow L from pulling
    before D can be trusted. For a normal L of standard deviation h it takes the exponent of `LinearObservation`'s twist.
    The draws lack the variance the last step would have, about the lowest level squared.

    Args:
        log_likelihood: log L of rows, in nats: finite, and with a gradient through torch.
        width: h, in the units of x0; infinite leaves L as it is, b = 1.
        variance: v, the data's in each coordinate.

    Raises:
        OptionError: a width or a variance that is not positive.
    """

    log_likelihood: LogDensity
    width: float = math.inf
    variance: float = UNIT

    def __post_init__(self) -> None:
        _check_positive("width", self.width)
        _check_positive("variance", self.variance)

    def check(self, y: Rows) -> None:
        """Raises OptionError where torch finds no gradient of log L."""
        if not differentiable(self.log_likelihood, y[:2]):
            raise OptionError("twisted SMC needs the gradient of the log-likelihood, and torch finds none: write it in torch's operations")

    def log_twist(self, y: Rows, x_hat: Rows, s: Level) -> RowNats:
        """b log L."""
        return self.log_likelihood(x_hat) / (1 + spread_left(s, self.variance) / self.width**2)

    def log_last(self, y: Rows, x_hat: Rows, s: Level) -> RowNats:
        """log L."""
        return self.log_likelihood(x_hat)

    def draw_last(self, x_hat: Rows, s: Level, *, generator: Generator) -> Rows:
        """x_hat itself."""
        return x_hat


def width_of(log_likelihood: LogDensity, x: Rows) -> float:
    """A `PlugIn`'s h: the median of sqrt(2 (max log L - log L)) / |grad log L| over draws of p; of a normal L it is its deviation.

    Args:
        log_likelihood: log L of rows, in nats.
        x: draws.
    """
    if not differentiable(log_likelihood, x[:2]):
        return math.inf  # `PlugIn.check` says so
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        value = log_likelihood(at)
        slope = torch.autograd.grad(value.sum(), at)[0].square().sum(1)
    below = value.detach().max() - value.detach()
    told = (slope > 0) & below.isfinite() & (below > 0)
    return float((2 * below / slope)[told].median().sqrt()) if bool(told.any()) else math.inf


@dataclass(frozen=True)
class LinearObservation:
    """y_obs = A x0 + n, n ~ N(0, R), R = 0 included; `observe` and `observe_row` make it.

    Twist and last step are those of x0 | y ~ N(D(y, s), c I), c = v s^2 / (v + s^2): psi_s(y) = N(y_obs; A D, R + c A A^T). So the
    last step draws x0 from N(D, c I) given y_obs, and the evidence of an exact observation is the density of A x0 under that law: at the
    lowest level c is nearly s^2, the noise that y has there. A v too small makes weights with heavy tails, hence evidences that are
    too low with an error that is too small; too large a v only costs particles.

    Args:
        rows: A in the coordinates in which A A^T is the identity and R diagonal.
        values: y_obs in those.
        noise: the variances of n in those; 0 is an exact observation.
        log_det: log-determinant of the change to those coordinates, in nats.
        variance: v, the data's in each coordinate.

    Raises:
        OptionError: a variance that is not positive.
    """

    rows: Float[Tensor, "M E"]
    values: Float[Tensor, " M"]
    noise: Float[Tensor, " M"]
    log_det: float = 0.0
    variance: float = UNIT

    def __post_init__(self) -> None:
        _check_positive("variance", self.variance)

    def check(self, y: Rows) -> None:
        """Raises DataError for rows of another width."""
        if y.shape[1] != self.rows.shape[1]:
            raise DataError(f"the observation is of rows of {self.rows.shape[1]} numbers, got rows of {y.shape[1]}")

    def residual(self, x: Rows) -> Float[Tensor, "R M"]:
        """y_obs - A x, in its own coordinates."""
        return self.values - x @ self.rows.T

    def log_twist(self, y: Rows, x_hat: Rows, s: Level) -> RowNats:
        """log N(y_obs; A x_hat, R + c A A^T)."""
        return self.log_last(y, x_hat, s)

    def log_last(self, y: Rows, x_hat: Rows, s: Level) -> RowNats:
        """The same, which is exact for the last step."""
        variance = self.noise + spread_left(s, self.variance)
        terms = self.residual(x_hat).square() / variance + variance.log() + math.log(2 * math.pi)
        return self.log_det - 0.5 * terms.sum(-1)

    def draw_last(self, x_hat: Rows, s: Level, *, generator: Generator) -> Rows:
        """x0 ~ N(x_hat, c I) given y_obs: a draw of x0 and n, moved by the gain times what it misses."""
        c = spread_left(s, self.variance)
        x = x_hat + c.sqrt() * _normal(x_hat, generator)
        missed = self.residual(x)
        missed = missed - self.noise.sqrt() * _normal(missed, generator)
        return x + (missed * (c / (c + self.noise))) @ self.rows


@dataclass(frozen=True)
class Matched:
    """The twist of a linear observation with the spread that each particle's own denoiser says: Cov[x0 | y] = s^2 dD/dy.

    psi_s(y) = N(y_obs; A D, R + s^2 A (dD/dy) A^T), whose covariance the gradient takes as given. Each observed number costs one more
    backward pass of every particle: for few of them. With one number of a four-component mixture seen it was worth two to four
    times the particles of the observation's own twist.

    Args:
        observation: what was seen; the last step is its own.
        floor: the covariance is held above floor v s^2 / (floor v + s^2), as a learned dD/dy is neither symmetric nor positive.

    Raises:
        OptionError: a floor that is not positive.
    """

    observation: LinearObservation
    floor: float = 0.01

    def __post_init__(self) -> None:
        _check_positive("floor", self.floor)

    def check(self, y: Rows) -> None:
        """Raises DataError for rows of another width."""
        self.observation.check(y)

    def log_twist(self, y: Rows, x_hat: Rows, s: Level) -> RowNats:
        """log N(y_obs; A x_hat, R + s^2 A (dD/dy) A^T)."""
        seen = self.observation
        least = spread_left(s, self.floor * seen.variance)
        variance, axes = torch.linalg.eigh(observed_covariance(seen.rows, y, x_hat, s) + seen.noise.diag())
        variance = variance.clamp_min(least)
        along = (seen.residual(x_hat)[:, None] @ axes)[:, 0]
        return seen.log_det - 0.5 * (along.square() / variance + variance.log() + math.log(2 * math.pi)).sum(-1)

    def log_last(self, y: Rows, x_hat: Rows, s: Level) -> RowNats:
        """The observation's."""
        return self.observation.log_last(y, x_hat, s)

    def draw_last(self, x_hat: Rows, s: Level, *, generator: Generator) -> Rows:
        """The observation's."""
        return self.observation.draw_last(x_hat, s, generator=generator)


def observed_covariance(rows: Float[Tensor, "M E"], y: Rows, x_hat: Rows, s: Float[Tensor, "*R"]) -> Float[Tensor, "R M M"]:
    """Cov[A x0 | y] = s^2 A (dD/dy) A^T, made symmetric, without a gradient: a backward pass a row of A.

    Args:
        rows: A.
        y: with a gradient.
        x_hat: D(y, s), by way of it.
        s: the level, or a column of them.
    """
    pulled = [torch.autograd.grad((x_hat @ row).sum(), y, retain_graph=True)[0] @ rows.T for row in rows]
    covariance = s.square()[..., None] * torch.stack(pulled, 1)
    return 0.5 * (covariance + covariance.mT)


def observe(
    a: Float[Tensor, "M E"], y_obs: Float[Tensor, " K"], noise: Float[Tensor, "P Q"], *, variance: float = UNIT
) -> LinearObservation:
    """y_obs = A x0 + n, n ~ N(0, R).

    With A A^T = G G^T and G^-1 R G^-T = U diag(r) U^T, the observation U^T G^-1 y_obs has rows at right angles and noise r.
    Costs M^3, once.

    Args:
        a: A; its rows are linearly independent.
        y_obs: what was seen, M numbers.
        noise: R, (M, M), symmetric and not negative; zeros observe exactly.
        variance: v, the data's in each coordinate.

    Raises:
        DataError: shapes that do not fit, numbers that are not finite, dependent rows, or an R that is no covariance.
    """
    m = len(y_obs)
    if a.shape[:1] != (m,) or noise.shape != (m, m):
        raise DataError(f"{m} observed numbers need {m} rows of A and R of shape ({m}, {m}), got {tuple(a.shape)} and {tuple(noise.shape)}")
    if not all(bool(part.isfinite().all()) for part in (a, y_obs, noise)):
        raise DataError("an observation y = A x + n takes finite numbers, got NaN or an infinity in A, y or R")
    g, failed = torch.linalg.cholesky_ex(a @ a.T)
    if int(failed) or float(g.diagonal().min()) < m * _tiny(a) * float(g.diagonal().max()):
        raise DataError("the rows of A depend on one another: leave out those that the others give")
    inverse = torch.linalg.inv(g)
    r, u = torch.linalg.eigh(inverse @ noise @ inverse.T)
    if float(r.min()) < -m * _tiny(r) * max(1.0, float(r.max())) or not torch.allclose(noise, noise.T):
        raise DataError("the noise of an observation needs a covariance, symmetric and without negative variances")
    change = u.T @ inverse
    return LinearObservation(change @ a, change @ y_obs, r.clamp_min(0), -float(g.diagonal().log().sum()), variance)


def observe_row(x: Point, *, sd: float = 0.0, variance: float = UNIT) -> LinearObservation:
    """Some coordinates of x0 seen, exactly or with noise: A selects them.

    Args:
        x: a row with NaN where unobserved.
        sd: standard deviation of the noise; 0 fixes the coordinates.
        variance: v, the data's in each coordinate.

    Raises:
        DataError: nothing observed, an infinity, or an sd that is negative.
    """
    seen = ~x.isnan()
    if not bool(seen.any()) or bool(x.isinf().any()):
        raise DataError("an observed row holds at least one finite number and NaN where it is not observed")
    if not 0 <= sd < math.inf:
        raise DataError(f"the noise of an observation is a standard deviation, 0 or more, got {sd}")
    rows = torch.eye(len(x), dtype=x.dtype, device=x.device)[seen]
    return LinearObservation(rows, x[seen], torch.full_like(x[seen], sd**2), 0.0, variance)


@dataclass(frozen=True)
class Twisted:
    """Draws of p(x0) L(x0) / Z and the evidence Z.

    Args:
        x: particles of each island; all of an island weigh the same.
        log_z: log of each island's estimate of the evidence, in nats.
        levels: the noise levels, the last one 0.
        ess: the effective size of the weights at each level, out of the particles of an island.
    """

    x: Float[Tensor, "islands particles E"]
    log_z: Float[Tensor, " islands"]
    levels: Levels
    ess: Float[Tensor, "levels islands"]

    @property
    def log_evidence(self) -> tuple[Tensor, Tensor]:
        """log of the mean of the islands' Z, and its standard error from their spread; Z itself is unbiased.

        The error of few islands is itself unsure: to a factor of about 1.5 with 4.
        """
        return log_mean(self.log_z)

    def sample(self, n: int, *, generator: Generator) -> Rows:
        """n particles in no order, each island as often as its Z says."""
        return from_islands(self.x, self.log_z, n, generator=generator)


def twisted(
    denoise: Denoise,
    y: Rows,
    levels: Levels,
    twist: Twist,
    *,
    islands: int = 4,
    share: float = 0.5,
    batch: int = 4096,
    generator: Generator,
) -> Twisted:
    """Draws of p(x0) L(x0) / Z, and log Z, with p the law of the ancestral sampler from y.

    A level costs a forward and a backward pass of the denoiser for every particle. Particles of an island share ancestors: they are worth
    fewer independent draws than they are. Fails where no particle of the highest levels leads to where L is: islands then disagree, or
    all miss it alike. Coarse levels change p itself, and nothing here says by how much.

    Args:
        denoise: D, of rows and their levels (N, 1), with a gradient in the rows; a row depends on no other.
        y: draws of p at the highest level, (islands * particles, E); row i belongs to island i mod islands.
        levels: falling, the last one 0.
        twist: `PlugIn`, or from `observe` or `observe_row`.
        islands: independent estimates, at least 4.
        share: an island is resampled when the effective size of its weights falls below this share of its particles.
        batch: rows a pass of the denoiser, for memory.
        generator: of all that is drawn.

    Raises:
        OptionError: a count under its least, a share outside [0, 1], fewer than two levels, levels that do not fall or do not end
            at 0, a likelihood or a denoiser without gradient.
        DataError: rows that do not fill the islands, or a log-likelihood that is not finite where a particle came by.
    """
    check_levels(levels)
    _check(y, islands, share, batch)
    twist.check(y)
    levels = levels.to(y)
    swarm = _Swarm(y, islands, share, generator)
    now = _look(denoise, twist, y, levels[0], batch)
    swarm.weigh(now.log_psi)
    for s, t in pairwise(levels[:-1]):
        y, now = swarm.resample(y, now)
        y, log_ratio = _step(y, now, s, t, generator)
        before, now = now, _look(denoise, twist, y, t, batch)
        swarm.weigh(log_ratio + now.log_psi - before.log_psi)
    swarm.weigh(twist.log_last(y, now.x_hat, levels[-2]) - now.log_psi)
    _, now = swarm.resample(y, now, always=True)
    x = twist.draw_last(now.x_hat, levels[-2], generator=generator)
    return Twisted(x.unflatten(0, (-1, islands)).transpose(0, 1), swarm.log_z, levels, torch.stack(swarm.ess))


def ancestral(y: Rows, x_hat: Rows, s: Level, t: Level) -> tuple[Rows, Level]:
    """Mean and standard deviation of y_t | y_s, x0 = x_hat: D + (t/s)^2 (y - D) and t sqrt(1 - (t/s)^2).

    Source: Ho, Jain and Abbeel, "Denoising diffusion probabilistic models", NeurIPS 2020, in the coordinates y.
    """
    kept = (t / s).square()
    return x_hat + kept * (y - x_hat), t * (1 - kept).sqrt()


def spread_left(s: Level, variance: float) -> Level:
    """v s^2 / (v + s^2): the variance of x0 given y where x0 has the variance v and is normal."""
    return variance * s.square() / (variance + s.square())


@dataclass(frozen=True)
class _View:
    """What a level shows of each particle: D, log psi and its gradient."""

    x_hat: Tensor
    log_psi: Tensor
    slope: Tensor


class _Swarm:
    """Weights of all islands in one tensor, (particles, islands), and what they have come to."""

    def __init__(self, y: Tensor, islands: int, share: float, generator: Generator) -> None:
        self.islands, self.particles, self.share, self.generator = islands, len(y) // islands, share, generator
        self.log_w, self.log_z = y.new_zeros(self.particles, islands), y.new_zeros(islands)
        self.ess: list[Tensor] = []

    def weigh(self, log_w: Tensor) -> None:
        self.log_w = self.log_w + log_w.reshape(self.particles, self.islands)
        self.ess.append(weight_ess(self.log_w))

    def resample(self, y: Tensor, now: _View, *, always: bool = False) -> tuple[Tensor, _View]:
        """Islands whose effective size is low start anew from equal weights; the others stay as they are."""
        low = (self.ess[-1] < self.share * self.particles) | always
        if not bool(low.any()):
            return y, now
        which = systematic(self.log_w, self.particles, generator=self.generator)
        self.log_z = self.log_z + torch.where(low, log_mean(self.log_w)[0], 0.0)
        self.log_w = torch.where(low, 0.0, self.log_w)
        rows = self._rows(which, low)
        return y[rows], _View(now.x_hat[rows], now.log_psi[rows], now.slope[rows])

    def _rows(self, which: Int[Tensor, "particles islands"], low: Tensor) -> Tensor:
        stay = torch.arange(self.particles, device=which.device)[:, None]
        island = torch.arange(self.islands, device=which.device)
        return (torch.where(low, which, stay) * self.islands + island).flatten()


def _look(denoise: Denoise, twist: Twist, y: Tensor, s: Tensor, batch: int) -> _View:
    parts = [_look_at(denoise, twist, rows, s) for rows in y.split(batch)]
    log_psi = torch.cat([part.log_psi for part in parts])
    bad = (~log_psi.isfinite()).nonzero()
    if len(bad):
        at = f"particle {int(bad[0])} is {float(log_psi[bad[0]])} at noise level {float(s):.3g}"
        raise DataError(f"the log-likelihood of {at}: it has to be finite wherever draws go")
    return _View(torch.cat([part.x_hat for part in parts]), log_psi, torch.cat([part.slope for part in parts]))


def _look_at(denoise: Denoise, twist: Twist, y: Tensor, s: Tensor) -> _View:
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        x_hat = denoise(y, s.expand(len(y), 1))
        if not x_hat.requires_grad:
            raise OptionError("a denoiser with a gradient is needed, but it does not depend on y through torch's autograd")
        log_psi = twist.log_twist(y, x_hat, s)
        (slope,) = torch.autograd.grad(log_psi.sum(), y)
    # where the slope is not finite the particle takes the ancestral step: the weights know of it
    return _View(x_hat.detach(), log_psi.detach(), slope.nan_to_num(0.0, 0.0, 0.0))


def _step(y: Tensor, now: _View, s: Tensor, t: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """The shifted step and log N(y_t; ancestral) - log N(y_t; shifted)."""
    mean, sd = ancestral(y, now.x_hat, s, t)
    noise, shift = _normal(y, generator), (s.square() - t.square()) / sd * now.slope
    return mean + sd * (shift + noise), -(shift * (noise + 0.5 * shift)).sum(-1)


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).eps


def _check(y: Tensor, islands: int, share: float, batch: int) -> None:
    check_count("islands", islands, 4)
    check_count("batch", batch, 1)
    if not 0 <= share <= 1:
        raise OptionError(f"share is a share of the particles from 0 to 1, got {share}")
    if len(y) < 2 * islands or len(y) % islands:
        raise DataError(f"{islands} islands need 2 particles or more each and equally many, got {len(y)} rows")


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise OptionError(f"{name} is positive, got {value}")
