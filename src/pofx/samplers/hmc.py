"""Hamiltonian Monte Carlo of many chains at once, with nothing to tune by hand.

Warm-up learns, from all chains together, the step size eps (dual averaging to a target acceptance), the spread of each
coordinate (the diagonal mass, from the variance across chains), and the length T of trajectories (`chees`). Then all
three are held, and draws are kept. Lengths are u T with u the van der Corput sequence, so that no trajectory
length is resonant.

Source: Hoffman, Radul and Sountsov, "An adaptive-MCMC scheme for setting trajectory lengths in Hamiltonian Monte
Carlo", AISTATS 2021; `dual_averaging` and `leapfrog` name theirs.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pofx.errors import OptionError
from pofx.samplers.chains import Chains
from pofx.samplers.densities import LogDensity, Point, Rows, check_chains, check_count, check_start, spread_across, value_and_grad
from pofx.samplers.dual_averaging import DualAveraging
from pofx.samplers.leapfrog import Trajectory, trajectory
from pofx.types import Generator

_WINDOWS = (0.1, 0.25, 0.5, 0.8)  # shares of the warm-up after which the spread is learned anew
_RATE = 0.025  # of log T, by Adam: the paper's
_FORGET = 0.95  # of the squared gradient of log T: the paper's
_DOUBLINGS = 60  # of the first step size: 2^60 either way
_BORROWED = 5  # draws' worth of the smallest scale of concern in every variance, as in Stan
_SMALLEST = 1e-3


@dataclass(frozen=True)
class HMCChains(Chains):
    """Draws of Hamiltonian Monte Carlo and what warm-up learned.

    Args:
        draws: (steps, problems * chains, D).
        problems: how many problems the chains belong to.
        acceptance: mean acceptance of each chain; near 0, the chain is stuck.
        divergences: how many trajectories of each chain diverged; any says that there is a place too steep for
            the step size, which the draws miss: raise the target, or smooth the density.
        step_size: eps, in units of spread.
        spread: standard deviation of each coordinate, 1 / sqrt(mass).
        leapfrogs: the most leapfrog steps of a trajectory; the mean is about half.
    """

    acceptance: Float[Tensor, " chains"]
    divergences: Int[Tensor, " chains"]
    step_size: float
    spread: Float[Tensor, " D"]
    leapfrogs: int


def hmc(
    log_p: LogDensity,
    start: Rows,
    *,
    steps: int = 1000,
    warmup: int = 1000,
    thin: int = 1,
    problems: int = 1,
    target: float = 0.8,
    most_leapfrogs: int = 256,
    generator: Generator,
) -> HMCChains:
    """Draws of p on R^D by Hamiltonian Monte Carlo.

    A step costs a gradient of all chains for each leapfrog step, a few to `most_leapfrogs`. Keeps all draws. Where it
    fails: modes apart are visited by the chains that start there, and R-hat says so; necks of funnels diverge; discrete
    coordinates have no gradient (`gibbs`); scales that differ between problems share one step size.

    Args:
        log_p: log-density of rows in nats with a gradient, without its constant if need be; see `densities`.
        start: (problems * chains, D), spread about as widely as p for R-hat to mean something.
        steps: draws kept of each chain.
        warmup: transitions before, from which everything is learned; with 0 the step size found at the start is kept.
        thin: transitions a kept draw.
        problems: step size, spread and length are learned over all of them, variance and R-hat within each.
        target: the acceptance to aim at.
        most_leapfrogs: bound on the cost of a transition.
        generator: of all that is drawn.

    Raises:
        DataError: starts that are no (problems * chains, D), or where the density is not positive.
        OptionError: under 2 chains a problem, a count under its least, a target outside (0, 1), or a log-density
            without gradient.
    """
    _check(start, problems, steps, warmup, thin, target, most_leapfrogs)
    point = value_and_grad(log_p, start)
    check_start(point.log_p)
    tuning = _Tuning(log_p, point, problems, target, most_leapfrogs, generator)
    point = tuning.warm(log_p, point, warmup)
    return _run(log_p, point, tuning, steps, thin)


def chees(start: Rows, path: Trajectory, spread: Float[Tensor, " D"], problems: int, time: float) -> float:
    """d/dlog t of C / sqrt t, with C = E[d^2] / 4 and d = |x' - E x'|^2 - |x - E x|^2, in units of spread.

    = (t E[d (x' - E x') . v'] - C / 2) / sqrt t. Each chain is weighted by its acceptance; expectations are within a
    problem. Above 0, longer trajectories bring draws further apart in their distance from the mean. The paper climbs C
    itself, whose slope vanishes once trajectories are long enough: their length then wanders, upwards. Dividing by the
    root of the cost is ours: it pulls lengths back, and does not cut them short as dividing by the cost itself does.

    Args:
        start: x, (problems * chains, D).
        path: x' and its velocity v'.
        spread: of each coordinate.
        problems: how many.
        time: t, what the trajectory took, in units of spread.
    """
    alpha = path.acceptance.unflatten(0, (problems, -1))
    before, after, v = (rows.unflatten(0, (problems, -1)) for rows in (start / spread, path.proposal / spread, path.v))
    before = before - before.mean(1, keepdim=True)
    weight = alpha / alpha.sum(1, keepdim=True).clamp_min(torch.finfo(alpha.dtype).tiny)
    after = after - (weight[..., None] * after).sum(1, keepdim=True)
    d = after.square().sum(-1) - before.square().sum(-1)
    terms = math.sqrt(time) * d * (after * v).sum(-1) - d.square() / (8 * math.sqrt(time))
    return float((weight * torch.where(alpha > 0, terms, 0.0)).sum(1).mean())


def van_der_corput(n: int) -> float:
    """The n-th number, n >= 1, of the sequence 1/2, 1/4, 3/4, 1/8, 5/8 ...: the binary digits of n behind the point, turned round."""
    return sum(int(bit) / 2 ** (place + 1) for place, bit in enumerate(reversed(f"{n:b}")))


def first_step(log_p: LogDensity, point: Point, spread: Float[Tensor, " D"], *, generator: Generator) -> float:
    """A power of 2 at which one leapfrog step is accepted about half of the time, in the mean over chains.

    Source: Hoffman and Gelman 2014 (as `DualAveraging`), Algorithm 4.

    Raises:
        OptionError: no step size is accepted, or every one.
    """
    step, up = 1.0, None
    for _ in range(_DOUBLINGS):
        high = float(trajectory(log_p, point, step * spread[None], 1, generator=generator).acceptance.mean()) > 0.5
        if up is None:
            up = high
        elif high is not up:
            return step
        step *= 2.0 if up else 0.5
    raise OptionError(f"no step size suits this density: a step of {step:.0e} is still {'accepted' if up else 'refused'}")


class _Tuning:
    """What warm-up learns."""

    def __init__(self, log_p: LogDensity, point: Point, problems: int, target: float, most: int, generator: Generator) -> None:
        self.problems, self.target, self.most, self.generator = problems, target, most, generator
        self.spread = spread_across(point.x, problems)
        self.seen: list[Tensor] = []  # rows since the spread was last learned
        self.n = 0  # transitions so far, in the van der Corput sequence
        self.step = DualAveraging(first_step(log_p, point, self.spread, generator=generator), target)
        self.log_length = self.average_length = math.log(4 * self.step.now)
        self.curvature = 0.0

    def warm(self, log_p: LogDensity, point: Point, warmup: int) -> Point:
        """Run the warm-up; leaves what is held in `step.now`, `spread` and `log_length`."""
        ends = {math.ceil(share * warmup) for share in _WINDOWS} - {0}
        for t in range(1, warmup + 1):
            path, time = self.transition(log_p, point)
            self._learn(point, path, time, t)
            point = path.point
            self.seen.append(point.x)
            if t in ends:
                self._respread(log_p, point)
        self.step.now, self.log_length = self.step.average, self.average_length
        return point

    def transition(self, log_p: LogDensity, point: Point) -> tuple[Trajectory, float]:
        """One transition of length u T, and the time it took."""
        self.n += 1
        leapfrogs = self.leapfrogs(van_der_corput(self.n))
        scale = self.step.now * self.spread[None]
        return trajectory(log_p, point, scale, leapfrogs, generator=self.generator), leapfrogs * self.step.now

    def leapfrogs(self, u: float) -> int:
        """How many steps make the time u T."""
        return max(1, min(self.most, math.ceil(u * math.exp(self.log_length) / self.step.now)))

    def _learn(self, before: Point, path: Trajectory, time: float, t: int) -> None:
        slope = chees(before.x, path, self.spread, self.problems, time)
        self.step.update(float(path.acceptance.mean()))
        if not math.isfinite(slope) or slope == 0:
            return
        # Adam without momentum. Its running square begins at the first slope, which takes the place of the bias correction.
        self.curvature = slope**2 if self.curvature == 0 else _FORGET * self.curvature + (1 - _FORGET) * slope**2
        self.log_length += _RATE * slope / math.sqrt(self.curvature)
        least = math.log(self.step.average)
        self.log_length = min(max(self.log_length, least), least + math.log(self.most))
        forget = t**-0.5
        self.average_length = forget * self.log_length + (1 - forget) * self.average_length

    def _respread(self, log_p: LogDensity, point: Point) -> None:
        """Spread from the window's draws; the length keeps its time along the coordinate that has grown most."""
        rows = torch.stack(self.seen).unflatten(1, (self.problems, -1)).movedim(2, 1).flatten(0, 1)  # (draws, problems, D)
        n, variance = len(rows), rows.var(0).mean(0)
        spread = ((n * variance + _BORROWED * _SMALLEST**2 * variance.mean()) / (n + _BORROWED)).sqrt()
        spread = torch.where(spread > 0, spread, self.spread)
        change = -math.log(float((spread / self.spread).max()))
        self.log_length, self.average_length = self.log_length + change, self.average_length + change
        self.spread, self.seen, self.curvature = spread, [], 0.0
        self.step = DualAveraging(first_step(log_p, point, spread, generator=self.generator), self.target)


def _run(log_p: LogDensity, point: Point, tuning: _Tuning, steps: int, thin: int) -> HMCChains:
    draws, acceptance, divergences = [], torch.zeros_like(point.log_p), torch.zeros_like(point.log_p, dtype=torch.long)
    for t in range(1, steps * thin + 1):
        path, _ = tuning.transition(log_p, point)
        point = path.point
        acceptance += path.acceptance
        divergences += path.divergent
        if t % thin == 0:
            draws.append(point.x)
    return HMCChains(
        torch.stack(draws), tuning.problems, acceptance / (steps * thin), divergences, tuning.step.now, tuning.spread, tuning.leapfrogs(1.0)
    )


def _check(start: Tensor, problems: int, steps: int, warmup: int, thin: int, target: float, most: int) -> None:
    check_chains(start, problems)
    if len(start) < 2 * problems:
        raise OptionError(f"chains learn from one another: start at least 2 a problem, got {len(start)} for problems={problems}")
    check_count("steps", steps, 1)
    check_count("warmup", warmup, 0)
    check_count("thin", thin, 1)
    check_count("most_leapfrogs", most, 1)
    if not 0 < target < 1:
        raise OptionError(f"target is an acceptance between 0 and 1, got {target}")
