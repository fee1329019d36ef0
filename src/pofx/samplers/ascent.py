"""Where a log-density is highest: many climbs at once, each never below its start.

Continuous coordinates climb together (`climb`), in units of their spread across starts; discrete ones try each of their
values. Both are repeated until no discrete coordinate changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pofx.samplers.climb import climb
from pofx.samplers.densities import LogDensity, RowNats, Rows, check_chains, check_count, check_start, restricted, spread_across, value
from pofx.samplers.gibbs import Marks, check_values, table

_ROUNDS = 50  # of climbing and trying values in turn
_SAME_HEIGHT = 1e-6  # nats, absolute and relative to log p, within which two starts have found the same height
_SAME_PLACE = 1e-3  # distance along each coordinate, absolute and relative to the place


@dataclass(frozen=True)
class Ascent:
    """What each start reached.

    Args:
        x: the points, (problems * starts, D).
        log_p: log-density there, in nats.
        converged: whether the climb ended by itself: a step along the gradient gains no more than `tolerance`. If not,
            the steps ran out, as they do where the density has no bound.
        best: of each problem, the row that is highest.
        agrees: whether a start came to the place of its problem's best. Few that agree are a sign of many modes.
    """

    x: Rows
    log_p: RowNats
    converged: Bool[Tensor, " R"]
    best: Int[Tensor, " problems"]
    agrees: Bool[Tensor, " R"]


def ascend(
    log_p: LogDensity,
    start: Rows,
    *,
    values: Sequence[Tensor | None] | None = None,
    fixed: Marks | None = None,
    problems: int = 1,
    steps: int = 500,
    tolerance: float = 1e-9,
) -> Ascent:
    """argmax_x log p(x) from many starts; log p never falls on the way.

    A climbing step costs a gradient of all starts, now and then a few; a round over discrete coordinates a density of
    all starts for each value of each. Finds local maxima: of the starts' basins, and over discrete coordinates of
    one change at a time. Stops short where scales are over 10^5 apart, unless the spread of the starts shows them.
    No draw is made: equal starts give equal answers.

    Args:
        log_p: log-density of full rows in nats, without its constant if need be; see `densities` for the order of rows.
            With continuous coordinates it needs a gradient.
        start: (problems * starts, D); held coordinates keep their value.
        values: for each coordinate its values, or None where it is continuous; all continuous when not given.
        fixed: coordinates held; none when not given.
        problems: best and agreement are of each.
        steps: the most climbing steps of a round.
        tolerance: gain in nats that is not worth a step.

    Raises:
        DataError: starts that are no (problems * starts, D), off the list of a discrete coordinate, or where the density
            is not positive.
        OptionError: no list of values a coordinate, nothing free, no step, or a log-density without gradient.
    """
    check_chains(start, problems)
    check_count("steps", steps, 1)
    lists = (None,) * start.shape[1] if values is None else tuple(values)
    free = check_values(start, lists, fixed)
    check_start(value(log_p, start))
    columns = torch.tensor([d for d in free if lists[d] is None], dtype=torch.long, device=start.device)
    discrete = {d: allowed.to(start) for d in free if (allowed := lists[d]) is not None}
    space = _Space(log_p, discrete, columns, spread_across(start, problems)[columns])
    x, log, converged = space.alternate(start, steps, tolerance)
    best = log.unflatten(0, (problems, -1)).argmax(1)
    best = best + torch.arange(problems, device=best.device) * (len(x) // problems)
    return Ascent(x, log, converged, best, _agree(x, log, best))


@dataclass(frozen=True)
class _Space:
    """What may move, and how: `columns` climb in units of `scale`, coordinates with a list take its values."""

    log_p: LogDensity
    lists: dict[int, Tensor]
    columns: Tensor
    scale: Tensor

    def alternate(self, x: Tensor, steps: int, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
        """Climb, try values, and again until no value changes."""
        log, converged = value(self.log_p, x), torch.ones(len(x), dtype=torch.bool, device=x.device)
        for _ in range(_ROUNDS):
            if len(self.columns):
                x, log, converged = self.climb(x, steps, tolerance)
            x, log, changed = self.try_values(x, log)
            if not bool(changed.any()):
                break
        return x, log, converged & ~changed

    def climb(self, x: Tensor, steps: int, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
        """The continuous coordinates given the others; from z = 0, so that a row which can not climb keeps its x to the bit."""
        from_here, given = x[:, self.columns], restricted(self.log_p, x, self.columns)

        def in_units(z: Tensor) -> Tensor:
            return given(from_here + self.scale * z)

        z, log, converged = climb(in_units, torch.zeros_like(from_here), steps=steps, tolerance=tolerance)
        return x.index_copy(1, self.columns, from_here + self.scale * z), log, converged

    def try_values(self, x: Tensor, log: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each discrete coordinate to its best value given the others, until a round changes none; and which rows changed."""
        ever = torch.zeros_like(log, dtype=torch.bool)
        for _ in range(_ROUNDS):
            changed = torch.zeros_like(ever)
            for d, values in self.lists.items():
                x, log, better = _best_value(self.log_p, x, log, d, values)
                changed = changed | better
            ever = ever | changed
            if not bool(changed.any()):
                break
        return x, log, ever


def _best_value(log_p: LogDensity, x: Tensor, log: Tensor, d: int, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    top, which = table(log_p, x, d, values).max(-1)
    better = top > log
    moved = x.clone()
    moved[:, d] = torch.where(better, values[which], x[:, d])
    return moved, torch.where(better, top, log), better


def _agree(x: Tensor, log: Tensor, best: Tensor) -> Tensor:
    """Same height and same place as the best of the problem; held cells without a value do not count."""
    top = best.repeat_interleave(len(x) // len(best))
    height = (log - log[top]).abs() <= _SAME_HEIGHT * (1 + log[top].abs())
    return height & ((x - x[top]).nan_to_num(nan=0.0).abs() <= _SAME_PLACE * (1 + x[top].nan_to_num(nan=0.0).abs())).all(-1)
