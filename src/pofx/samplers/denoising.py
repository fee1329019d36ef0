"""Solvers of the reverse process: from noise to data, given the mean of the data that could have become a noisy row.

In y = x_t / alpha_t = x0 + s eps, s = sigma_t / alpha_t, every Gaussian path is the same object, and one function is all a solver
needs: D(y, s) = E[x0 | y]. Then grad log p_s(y) = (D - y) / s^2, and with tau = -ln s, rising from noise to data,

    dy = (1 + eta^2) (D - y) dtau + eta s sqrt(2) dW

has the marginals p_s of the noised data for every eta: eta = 0 is the probability-flow ODE, dy / d ln s = y - D, and eta = 1 the
reverse SDE.

A solver walks down a grid of `levels` and yields the rows after each step. All rows are independent; noise is drawn for all rows at once,
so that draws (not their law) depend on how many rows there are. The last step, to level 0, is y = D(y, s); `TurnedAdams` alone walks there
as it walks anywhere.
"""

import abc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.errors import OptionError
from pofx.samplers.densities import check_count
from pofx.samplers.levels import TURN, Levels, check_levels, log_uniform, turned
from pofx.transforms.ode import THREE_EIGHTHS, DormandPrince, Field, RungeKutta
from pofx.types import Generator

Denoise = Callable[[Tensor, Tensor], Tensor]  # y (N, E), s (N, 1) -> E[x0 | y] (N, E)
Rows = Float[Tensor, "N E"]
Column = Float[Tensor, "N 1"]


@dataclass(frozen=True)
class Past:
    """What a step with memory knows of the one before.

    Args:
        length: of it, in what the solver walks along.
        seen: at its start, what the solver continues.
    """

    length: Column
    seen: Rows


class Solver(abc.ABC):
    """A way down the noise levels."""

    def grid(self, steps: int, s_min: float, s_max: float) -> Levels:
        """The levels that suit it best."""
        return log_uniform(steps, s_min, s_max)

    def __call__(self, denoise: Denoise, y: Rows, levels: Levels, *, generator: Generator = None) -> Iterator[Rows]:
        """The rows after each step, the data last.

        Gradients are kept where torch keeps them: walk under `torch.no_grad()` to draw.

        Args:
            denoise: D.
            y: rows at the first level, N(0, s_max^2) where s_max is far above the spread of centred data.
            levels: falling, steps + 1 of them, the last one 0.
            generator: of the noise, where the solver adds any.

        Raises:
            OptionError: levels that do not fall, or do not end at 0.
        """
        check_levels(levels)
        return self._walk(denoise, y, levels.to(y), generator)

    def _walk(self, denoise: Denoise, y: Tensor, levels: Tensor, generator: Generator) -> Iterator[Tensor]:
        past = None
        for s, t in pairwise(level.expand(len(y), 1) for level in levels[:-1]):
            y, past = self.step(denoise, y, s, t, past, generator=generator)
            yield y
        yield self.arrive(denoise, y, levels[-2].expand(len(y), 1), past)

    def arrive(self, denoise: Denoise, y: Rows, s: Column, past: Past | None) -> Rows:
        """From level s to the data."""
        return denoise(y, s)

    @abc.abstractmethod
    def step(self, denoise: Denoise, y: Rows, s: Column, t: Column, past: Past | None, *, generator: Generator) -> tuple[Rows, Past | None]:
        """From level s to level t, 0 < t < s; rows may have levels of their own.

        Args:
            denoise: D.
            y: rows at s.
            s: (N, 1).
            t: (N, 1).
            past: what the step before gave; None for the first.
            generator: of the noise.
        """


def last(steps: Iterable[Tensor]) -> Tensor:
    """The rows after the last step.

    Raises:
        OptionError: there is none.
    """
    y = None
    for y in steps:  # noqa: B007
        pass
    if y is None:
        raise OptionError("a walk has at least one step, got none")
    return y


# -- one evaluation a step ---------------------------------------------------------------------------


@dataclass(frozen=True)
class DDIM(Solver):
    """y' = D + (dn / s) (y - D) + up z, up^2 = eta^2 (t/s)^2 (s^2 - t^2), dn^2 = t^2 - up^2.

    Order 1, one evaluation a step. With eta = 0 it draws nothing and is Euler's step in s: the plain choice, and as good as any at very few
    steps. With eta = 1 it is `Ancestral`.

    Source: Song, Meng and Ermon, "Denoising diffusion implicit models", ICLR 2021, arXiv:2010.02502.

    Args:
        eta: share of the noise of the posterior that is drawn, 0 to 1.

    Raises:
        OptionError: an eta that is not.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise OptionError(f"eta is between 0 and 1, got {self.eta}")

    def step(self, denoise: Denoise, y: Rows, s: Column, t: Column, past: Past | None, *, generator: Generator) -> tuple[Rows, Past | None]:
        """See `Solver`."""
        mean = denoise(y, s)
        up = self.eta * (t / s) * (s**2 - t**2).sqrt()
        kept = (t**2 - up**2).clamp_min(0.0).sqrt() / s
        y = mean + kept * (y - mean)
        return (y + up * _noise(y, generator) if self.eta else y), None


@dataclass(frozen=True)
class Ancestral(Solver):
    """y' ~ p(y_t | y_s, x0 = D) = N((t/s)^2 y + (1 - (t/s)^2) D, (t/s)^2 (s^2 - t^2)): one draw a step.

    Weak order 1, one evaluation a step. Its noise washes out errors of earlier steps, for which it wants hundreds of them; too narrow
    with few.

    Source: Ho, Jain and Abbeel, "Denoising diffusion probabilistic models", NeurIPS 2020, arXiv:2006.11239, with the smaller variance.
    """

    def step(self, denoise: Denoise, y: Rows, s: Column, t: Column, past: Past | None, *, generator: Generator) -> tuple[Rows, Past | None]:
        """See `Solver`."""
        return DDIM(eta=1.0).step(denoise, y, s, t, past, generator=generator)


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """y' = y + 2 (1 - t/s) (D - y) + sqrt(2 s (s - t)) z: the reverse SDE at the slope of the step's start.

    Weak order 1, one evaluation a step. The baseline: too wide with few steps, many times too wide with ten or fewer.

    Source: Song et al., "Score-based generative modeling through stochastic differential equations", ICLR 2021, arXiv:2011.13456.
    """

    def step(self, denoise: Denoise, y: Rows, s: Column, t: Column, past: Past | None, *, generator: Generator) -> tuple[Rows, Past | None]:
        """See `Solver`."""
        drift = 2 * (1 - t / s) * (denoise(y, s) - y)
        return y + drift + (2 * s * (s - t)).sqrt() * _noise(y, generator), None


@dataclass(frozen=True)
class DPM2M(Solver):
    """y' = q y + (1 - q) D' + up z, D' = D + (h / 2g) (D - D_before), q = (t/s)^(1 + eta^2), up^2 = t^2 (1 - (t/s)^(2 eta^2)).

    h = ln(s / t), g that of the step before; the first step takes D' = D. With eta = 0 the default of the library: order 2 at one
    evaluation a step, since the linear part of the flow is solved exactly and D, nearly constant near the data, is continued along
    a line. With eta > 0 it draws noise, which washes out errors of earlier steps: its first step at eta = 1 is that of `Ancestral`, and
    it is of weak order 2 on a Gaussian; elsewhere only order 1 is claimed.

    Source: Lu et al., "DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models", arXiv:2211.01095 (2M and SDE-2M).

    Args:
        eta: how much noise; 1 is as much as the reverse SDE has.

    Raises:
        OptionError: a negative or infinite eta.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise OptionError(f"eta is at least 0, got {self.eta}")

    def step(self, denoise: Denoise, y: Rows, s: Column, t: Column, past: Past | None, *, generator: Generator) -> tuple[Rows, Past | None]:
        """See `Solver`."""
        mean, rise = denoise(y, s), (s / t).log()
        ahead = mean if past is None else mean + rise / (2 * past.length) * (mean - past.seen)
        gap = (1 + self.eta**2) * rise
        y = (-gap).exp() * y - torch.expm1(-gap) * ahead
        if self.eta:
            y = y + t * (-torch.expm1(-2 * self.eta**2 * rise)).sqrt() * _noise(y, generator)
        return y, Past(rise, mean)


@dataclass(frozen=True)
class TurnedAdams(Solver):
    """x' = x + h (f + (h / 2g) (f - f_before)), f = dx / du at x = y cos(a), a = atan(s) = delta sinh(u): see `turning`.

    h is the step in u, g the one before; the first step takes f alone. Order 2, one evaluation a step, and the last one ends at the data:
    the angle 0 is a place as any other. Rows of a normal stand still along the angle, so that few steps go far: on the exact denoiser of a
    mixture 8 evaluations were off by at most 0.03 and 13 by 0.01, where `DPM2M` took 20 and 32. Of 8-bit images, which lie on a lattice at
    the end of the way, `DPM2M` drew the better ones.

    Source: the method of Adams and Bashforth (Hairer, Norsett and Wanner, "Solving ordinary differential equations I", 1993, III.1).
    """

    def grid(self, steps: int, s_min: float, s_max: float) -> Levels:
        """Even in u, the last level 0 for s_min."""
        levels = turned(steps, s_min, s_max, to_data=False)
        levels[-1] = 0.0
        return levels

    def arrive(self, denoise: Denoise, y: Rows, s: Column, past: Past | None) -> Rows:
        """By a step as any other."""
        return self.step(denoise, y, s, torch.zeros_like(s), past, generator=None)[0]

    def step(self, denoise: Denoise, y: Rows, s: Column, t: Column, past: Past | None, *, generator: Generator) -> tuple[Rows, Past | None]:
        """See `Solver`."""
        u, h = turned_time(s.atan()), turned_time(t.atan()) - turned_time(s.atan())
        x = y * s.atan().cos()
        slope = turning(denoise)(u, x)
        ahead = slope if past is None else slope + h / (2 * past.length) * (slope - past.seen)
        return (x + h * ahead) / t.atan().cos(), Past(h, slope)


# -- more evaluations a step -------------------------------------------------------------------------


@dataclass(frozen=True)
class Heun(Solver):
    """y' = y + (t - s) (d + d') / 2 with d = (y - D(y, s)) / s, and d' the same at t after Euler's step.

    Order 2, two evaluations a step. Overtakes `DDIM` from about 40 evaluations; poor at few, where Euler's step goes far astray.

    Source: Karras et al. 2022, arXiv:2206.00364, their deterministic sampler.
    """

    def step(self, denoise: Denoise, y: Rows, s: Column, t: Column, past: Past | None, *, generator: Generator) -> tuple[Rows, Past | None]:
        """See `Solver`."""
        slope = (y - denoise(y, s)) / s
        ahead = y + (t - s) * slope
        return y + (t - s) * 0.5 * (slope + (ahead - denoise(ahead, t)) / t), None


@dataclass(frozen=True)
class TurnedRungeKutta(Solver):
    """Kutta's 3/8 step of dx / du, x = y cos(a), a = atan(s) = delta sinh(u): see `turning`.

    Order 4, four evaluations a step; give it `turned`. On the exact denoiser of a mixture, of deviations of 0.2 in a whole of 1, 21
    evaluations were off by at most 0.003, where `DPM2M` took 56, and Runge's classic step 25. Of a learned D nothing was measured.
    """

    def grid(self, steps: int, s_min: float, s_max: float) -> Levels:
        """Even in the angle."""
        return turned(steps, s_min, s_max)

    def step(self, denoise: Denoise, y: Rows, s: Column, t: Column, past: Past | None, *, generator: Generator) -> tuple[Rows, Past | None]:
        """See `Solver`."""
        first, last = s.atan(), t.atan()
        found = RungeKutta(1, THREE_EIGHTHS)(turning(denoise), y * first.cos(), turned_time(first), turned_time(last))
        return found.y / last.cos(), None


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """A step of the predictor, then Langevin steps at the level t: y <- y + e (D - y) / t^2 + sqrt(2 e) z with e = 2 snr^2 t^2.

    Corrections cost an evaluation each, beyond those of the predictor. They pull draws towards p_t and so mend the predictor;
    being Langevin steps they are themselves too wide, at high noise by the share snr^2 / (1 - snr^2), so that no order is claimed.

    The paper takes the step from the norms of score and noise over the batch; ours puts what those norms are on average, t |score|
    = |z|. So rows stay independent and the step linear in D. With an exact D a step more of the predictor is worth more than a
    correction: they are for a D that errs.

    Source: Song et al. 2021, arXiv:2011.13456.

    Args:
        corrections: Langevin steps a level.
        snr: their size.
        predictor: any other solver.

    Raises:
        OptionError: no correction, or an snr outside (0, 1).
    """

    corrections: int = 1
    snr: float = 0.16
    predictor: Solver = field(default_factory=Ancestral)

    def __post_init__(self) -> None:
        check_count("corrections", self.corrections, 1)
        if not 0 < self.snr < 1:
            raise OptionError(f"snr is between 0 and 1, got {self.snr}")

    def step(self, denoise: Denoise, y: Rows, s: Column, t: Column, past: Past | None, *, generator: Generator) -> tuple[Rows, Past | None]:
        """See `Solver`."""
        y, past = self.predictor.step(denoise, y, s, t, past, generator=generator)
        for _ in range(self.corrections):
            y = y + 2 * self.snr**2 * (denoise(y, t) - y) + 2 * self.snr * t * _noise(y, generator)
        return y, past


@dataclass(frozen=True)
class Adaptive(Solver):
    """y' = y + integral of (y - D) d ln s from s to t, by `DormandPrince`: each row takes the steps its error asks for.

    Order 5 with the tolerance for an option, not the steps: the grid says only where to stop and look, and each level of it costs
    at least 8 evaluations. Give it `log_uniform(2, s_min, s_max)`. For references, and where the accuracy is to be known; dear
    otherwise.

    Args:
        rtol: allowed error of a step, relative.
        atol: the same in units of the data.
        most: evaluations of a row between two levels.

    Raises:
        OptionError: as `DormandPrince`.
        DataError: when called, as `DormandPrince`.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    most: int = 10_000

    def __post_init__(self) -> None:
        self._method()

    def step(self, denoise: Denoise, y: Rows, s: Column, t: Column, past: Past | None, *, generator: Generator) -> tuple[Rows, Past | None]:
        """See `Solver`."""
        return self._method()(probability_flow(denoise), y, s.log(), t.log()).y, None

    def _method(self) -> DormandPrince:
        return DormandPrince(self.rtol, self.atol, self.most)


def probability_flow(denoise: Denoise) -> Field:
    """dy / du = y - D(y, e^u) with u = ln s: the flow that carries p_s to p_s' without noise.

    In ln s it is smooth at both ends, in s it is not at the data.
    """
    return lambda u, y: y - denoise(y, u.exp())


def turning(denoise: Denoise) -> Field:
    """dx / du = (x cos a - D(x / cos a, tan a)) delta cosh(u) / sin a of x = y cos a, with a = atan(s) = delta sinh(u) and delta = 0.1.

    The same flow. Rows of a normal of unit variance stand still, and the way to s = infinity is finite. Even steps in u are even in a, and
    finer where a is below delta, for thin densities. Of centred rows with about unit variance.
    """

    def field(u: Tensor, x: Tensor) -> Tensor:
        a = TURN * u.sinh()
        return (x * a.cos() - denoise(x / a.cos(), a.tan())) * TURN * u.cosh() / a.sin()

    return field


def turned_time(angle: Tensor) -> Tensor:
    """u of an angle."""
    return (angle / TURN).asinh()


def _noise(y: Tensor, generator: Generator) -> Tensor:
    return torch.randn(y.shape, generator=generator, dtype=y.dtype, device=y.device)


SOLVERS: Mapping[str, Solver] = {
    "dpm2m": DPM2M(),  # the default: order 2 at one evaluation a step
    "dpm2m-sde": DPM2M(eta=1.0),  # the same with noise: washes out the faults of a network
    "ddim": DDIM(),  # order 1, draws nothing: the plain choice
    "ancestral": Ancestral(),  # one draw of the posterior a step: for hundreds of steps
    "euler-maruyama": EulerMaruyama(),  # the reverse SDE: the baseline
    "heun": Heun(),  # order 2 at two evaluations a step
    "adams": TurnedAdams(),  # order 2 at one evaluation a step, along the angle: for few steps
    "rk4": TurnedRungeKutta(),  # order 4 at four evaluations a step, along the angle
    "predictor-corrector": PredictorCorrector(),  # ancestral, with a Langevin step at every level
    "adaptive": Adaptive(),  # to a tolerance, each row by steps of its own: for references
}
