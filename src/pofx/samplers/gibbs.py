"""Gibbs sampling of rows whose coordinates are discrete, continuous, or held.

One sweep visits the coordinates in turn (or at random). A discrete one is drawn exactly: its conditional is the
density of its values, each put in the row, over their sum. A continuous one takes a random-walk Metropolis step, or
all of them together a step of another kernel (Hamiltonian, say) given the discrete ones.

Source: Geman and Geman, "Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of images", IEEE
PAMI 6, 1984; Metropolis within Gibbs: Roberts and Rosenthal, "Examples of adaptive MCMC", Journal of Computational
and Graphical Statistics 18(2), 2009.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pofx.distributions.drawing import draw_per_row
from pofx.errors import DataError, OptionError
from pofx.samplers.chains import Chains
from pofx.samplers.densities import LogDensity, RowNats, Rows, check_chains, check_count, check_start, restricted, spread_across, value
from pofx.samplers.kernels import Kernel, Moved, Scale, accepted
from pofx.types import Generator

Lists = tuple[Tensor | None, ...]
Marks = Bool[Tensor, " M"]  # of coordinates; their number is checked in a sentence


@dataclass(frozen=True)
class Sweep:
    """One pass over the free coordinates; a kernel, so `smc` takes it too.

    A discrete coordinate costs a density of every row for each of its values, in one call; a continuous one a density.
    Fails where coordinates are so tied that none can move alone: of two that are always equal neither ever does.

    Args:
        values: for each coordinate its values, (V,), or None where it is continuous.
        fixed: coordinates never moved; they may hold NaN, if the log-density makes sense of it.
        random: visit D coordinates drawn at random with repetition, in place of each in turn.
        block: moves all continuous coordinates together, once a sweep; None: each alone, by a random walk.
    """

    values: Lists
    fixed: Marks | None = None
    random: bool = False
    block: Kernel | None = None

    @property
    def target(self) -> float:
        """0.44 for one coordinate's random walk (Roberts, Gelman and Gilks 1997); the block's own if there is one."""
        return 0.44 if self.block is None else self.block.target

    def first_step(self, dim: int) -> float:
        """2.38, for one coordinate; the block's own if there is one."""
        return 2.38 if self.block is None else self.block.first_step(max(1, len(self.continuous)))

    @property
    def free(self) -> list[int]:
        """Which coordinates move."""
        return _free(self.values, self.fixed)

    @property
    def continuous(self) -> list[int]:
        """Which of them are continuous."""
        return [d for d in self.free if self.values[d] is None]

    def __call__(self, log_p: LogDensity, x: Rows, scale: Scale, *, generator: Generator) -> Moved:
        """Visit the coordinates; the acceptance of discrete and held ones is NaN."""
        log, total, visits = value(log_p, x), torch.zeros_like(scale), torch.zeros_like(scale)
        for d in self._order(x, generator):
            values = self.values[d]
            if values is not None:
                x, log = _exact(log_p, x, d, values.to(x), generator)
                continue
            x, log, acceptance = _walk(log_p, x, log, d, scale[d], generator)
            total[d] += acceptance
            visits[d] += 1
        if self.block is None or not self.continuous:
            return Moved(x, total / visits)
        return self._move_block(self.block, log_p, x, scale, generator)

    def _order(self, x: Tensor, generator: Generator) -> list[int]:
        visited = self.free if self.block is None else [d for d in self.free if self.values[d] is not None]
        if not self.random or not visited:
            return visited
        return [visited[i] for i in torch.randint(len(visited), (len(visited),), generator=generator, device=x.device).tolist()]

    def _move_block(self, block: Kernel, log_p: LogDensity, x: Tensor, scale: Tensor, generator: Generator) -> Moved:
        columns = torch.tensor(self.continuous, device=x.device)
        moved = block(restricted(log_p, x, columns), x[:, columns], scale[columns], generator=generator)
        acceptance = torch.full_like(scale, torch.nan).index_copy(0, columns, moved.acceptance.to(scale))
        return Moved(x.index_copy(1, columns, moved.x), acceptance)


@dataclass(frozen=True)
class GibbsChains(Chains):
    """Draws of Gibbs sampling and what warm-up learned.

    Args:
        draws: (steps, problems * chains, D).
        problems: how many problems the chains belong to.
        acceptance: mean acceptance of each continuous coordinate, NaN for the others.
        scale: how far each continuous coordinate is moved.
    """

    acceptance: Float[Tensor, " D"]
    scale: Float[Tensor, " D"]


def gibbs(
    log_p: LogDensity,
    start: Rows,
    values: Sequence[Tensor | None],
    *,
    fixed: Marks | None = None,
    steps: int = 1000,
    warmup: int = 1000,
    thin: int = 1,
    problems: int = 1,
    random: bool = False,
    block: Kernel | None = None,
    generator: Generator,
) -> GibbsChains:
    """Draws of p(free | fixed) by Gibbs sweeps; the scale of each continuous coordinate is learned in the warm-up, then held.

    Args:
        log_p: log-density of full rows in nats, without its constant if need be; see `densities` for the order of rows.
        start: (problems * chains, D); held coordinates keep their value in each chain.
        values: for each coordinate its values, or None where it is continuous.
        fixed: coordinates held; none when not given.
        steps: draws kept of each chain.
        warmup: sweeps before.
        thin: sweeps a kept draw.
        problems: scales are learned over all of them, R-hat within each.
        random: visit coordinates at random instead of in turn.
        block: moves all continuous coordinates together; None: one at a time.
        generator: of all that is drawn.

    Raises:
        DataError: starts that are no (problems * chains, D), off the list of a discrete coordinate, or where the
            density is not positive.
        OptionError: no list of values a coordinate, an empty list, nothing free, or a count under its least.
    """
    _check_counts(steps, warmup, thin)
    check_chains(start, problems)
    sweep = Sweep(tuple(values), fixed, random, block)
    check_values(start, sweep.values, fixed)
    check_start(value(log_p, start))
    x, scale = _warm(sweep, log_p, start, warmup, problems, generator)
    draws, total, counted = [], torch.zeros_like(scale), torch.zeros_like(scale)
    for t in range(1, steps * thin + 1):
        moved = sweep(log_p, x, scale, generator=generator)
        x, seen = moved.x, ~moved.acceptance.isnan()
        total, counted = total + torch.where(seen, moved.acceptance, 0.0), counted + seen
        if t % thin == 0:
            draws.append(x)
    return GibbsChains(torch.stack(draws), problems, total / counted, scale)


def check_values(start: Rows, values: Lists, fixed: Marks | None) -> list[int]:
    """Which coordinates move; each has a list of values or None, and every start is on its lists.

    Raises:
        OptionError: the lists do not fit, or nothing moves.
        DataError: a start is off a list.
    """
    dim, marks = start.shape[1], len(values) if fixed is None else len(fixed)
    if not len(values) == marks == dim:
        raise OptionError(f"rows have {dim} coordinates, got {len(values)} lists and {marks} marks")
    free = _free(values, fixed)
    if not free:
        raise OptionError("every coordinate is held: nothing is left to move")
    for d in free:
        _check_list(start, d, values[d])
    return free


def _free(values: Lists, fixed: Tensor | None) -> list[int]:
    return [d for d in range(len(values)) if fixed is None or not bool(fixed[d])]


def _check_list(start: Tensor, d: int, allowed: Tensor | None) -> None:
    if allowed is None:
        return
    if not len(allowed):
        raise OptionError(f"coordinate {d} has an empty list of values")
    off = (~torch.isin(start[:, d], allowed.to(start))).nonzero()
    if len(off):
        raise DataError(f"chain {int(off[0])} starts at coordinate {d} = {float(start[off[0], d])}, which is not on its list of values")


def table(log_p: LogDensity, x: Rows, d: int, values: Float[Tensor, " V"]) -> Float[Tensor, "R V"]:
    """log p of every row with each value put at coordinate d, in one call of V R rows."""
    tiled = x.repeat(len(values), 1)
    tiled[:, d] = values.repeat_interleave(len(x))
    return value(log_p, tiled).reshape(len(values), len(x)).T


def _exact(log_p: LogDensity, x: Tensor, d: int, values: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Coordinate d from its conditional. Where no value has a density the row stays: its first value would be made up."""
    log = table(log_p, x, d, values)
    dead = (log == -torch.inf).all(-1)
    which = draw_per_row(torch.where(dead[:, None], 0.0, log).softmax(-1), generator=generator)
    moved = x.clone()
    moved[:, d] = torch.where(dead, x[:, d], values[which])
    return moved, log.gather(1, which[:, None])[:, 0]


def _walk(log_p: LogDensity, x: Tensor, log: RowNats, d: int, scale: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    proposal = x.clone()
    proposal[:, d] += scale * torch.randn(len(x), generator=generator, dtype=x.dtype, device=x.device)
    after = value(log_p, proposal)
    moves, probability = accepted(after - log, generator=generator)
    return torch.where(moves[:, None], proposal, x), torch.where(moves, after, log), probability.mean()


def _warm(sweep: Sweep, log_p: LogDensity, x: Tensor, warmup: int, problems: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """log scale += (acceptance - target) / t^0.6 (Robbins and Monro), from the spread of the starts; the second half's mean is kept."""
    log_scale = (sweep.first_step(x.shape[1]) * spread_across(x, problems)).log()
    total, counted = torch.zeros_like(log_scale), 0
    for t in range(1, warmup + 1):
        moved = sweep(log_p, x, log_scale.exp(), generator=generator)
        x, surplus = moved.x, (moved.acceptance - sweep.target).nan_to_num(nan=0.0)
        # the first hundred moves do not fade: a start a thousand times too wide is left behind
        log_scale = log_scale + surplus * min(1.0, (t / 100) ** -0.6)
        if 2 * t > warmup:
            total, counted = total + log_scale, counted + 1
    return x, (total / counted if counted else log_scale).exp()


def _check_counts(steps: int, warmup: int, thin: int) -> None:
    check_count("steps", steps, 1)
    check_count("warmup", warmup, 0)
    check_count("thin", thin, 1)
