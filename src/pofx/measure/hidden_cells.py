"""Held-out questions: cells of rows are hidden at random, and what a model says of them is compared with what stood there.

Every number is made of ratios over the rows asked, R = sum_n a_n / sum_n m_n: a sum over hidden cells over their count. Its error is the
delta method's, from what each row adds, g_n = (a_n - R m_n) / sum m: sqrt(N / (N - 1) sum_n g_n^2). The cells of one row
go together, and so do several askings of it. A share of none or all has the error of one cell.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pofx.domain import LEVELLED, Domain
from pofx.errors import DataError
from pofx.types import Answer, Generator, Kind

SHARE = 0.2  # of the observed cells is hidden
ASKED = 500  # rows
INTERVAL = 0.9  # probability of a central interval
ROUNDING = 1e-6  # relative; a model's 391 * 0.1, or 39.1 in single precision, is the 39.1 that stood there
DRAWS = 39  # the 2nd and the 38th bound the central 90 %; more sharpen the interval's ends, but not its coverage


@dataclass(frozen=True)
class HiddenCells:
    """Rows with cells to ask for.

    Args:
        x: rows (M, D) as they stood, NaN where nothing is known.
        mask: the hidden cells (M, D), at least one a row.
        row: which row of the data each is, (M,): a row of few data is asked several times.
    """

    x: Tensor
    mask: Tensor
    row: Tensor

    @property
    def holes(self) -> Tensor:
        """The rows without their hidden cells."""
        return self.x.masked_fill(self.mask, torch.nan)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, part: slice) -> "HiddenCells":
        return HiddenCells(self.x[part], self.mask[part], self.row[part])


def hide(x: Tensor, *, asked: int = ASKED, share: float = SHARE, generator: Generator) -> HiddenCells:
    """Rows in random order, each once before any comes again, and each observed cell hidden with probability `share`.

    One cell of a row always stays, so a row with a single one is not asked, nor is one that chance leaves whole.

    Args:
        x: rows (N, D) that learning did not see.
        asked: how many rows to draw.
        share: of the observed cells.
        generator: of the order and the cells.
    """
    passes = [torch.randperm(len(x), generator=generator) for _ in range(-(-asked // max(len(x), 1)))]
    row = torch.cat([torch.empty(0, dtype=torch.long), *passes])[:asked]
    u = torch.rand(len(row), x.shape[1], generator=generator).masked_fill(x[row].isnan(), -1.0)
    mask = (u >= 0) & (u < share) & (u < u.amax(1, keepdim=True))
    some = mask.any(1)
    return HiddenCells(x[row[some]], mask[some], row[some])


# -- how probable --------------------------------------------------------------------------------------


def log_score(hidden: HiddenCells, nats: Tensor, kind: Kind = Kind.EXACT) -> Answer:
    """log p(hidden cells of a row | its other cells) in nats a hidden cell: sum over rows over the number of cells. Higher is better.

    A proper score: nothing beats the true conditional on average. A density in the columns' own units, so it
    compares models of one table.

    Args:
        hidden: the rows asked.
        nats: log p(row) - log p(row without its hidden cells), (M,).
        kind: what those are; the difference of two bounds is an estimate.
    """
    _check(hidden, nats, hidden.row.shape)
    return _answer(*_ratios(nats[:, None], hidden.mask.sum(1, keepdim=True)), hidden, kind, "log p")


# -- how far off ---------------------------------------------------------------------------------------


def scales(x: Tensor, domain: Domain) -> Tensor:
    """The unit (D,) of each number's error: its standard deviation over training rows x (N, D). The entries of an image share one.

    NaN where there is none: at levels, and at numbers that do not vary.
    """
    unit = (x - x.nanmean(0)).square().nanmean(0).sqrt()
    if not domain.is_table:
        unit = unit.square().nanmean().sqrt().expand(len(domain))
    numbers = torch.tensor([v.kind not in LEVELLED for v in domain.variables])
    return torch.where(numbers & (unit > 0), unit, torch.nan)


def error_of_numbers(hidden: HiddenCells, filled: Tensor, unit: Tensor) -> Answer | None:
    """sqrt(mean (fill - truth)^2) / unit of each column of numbers, their mean; None where no number was hidden.

    Args:
        hidden: the rows asked.
        filled: the same rows, with the hidden cells filled in.
        unit: of each column, NaN to leave it out, as `scales` gives.
    """
    _check(hidden, filled, hidden.x.shape)
    asked = hidden.mask & ~unit.isnan()
    squares = torch.where(asked, (filled.to(hidden.x) - hidden.x) / unit, 0.0).square()
    value, share = _ratios(squares, asked)
    if not len(value):
        return None
    root = value.sqrt()
    return _answer(root, share / (2 * root).clamp_min(1e-300), hidden, Kind.ESTIMATE, "root mean squared error in standard deviations")


def error_of_levels(hidden: HiddenCells, filled: Tensor, domain: Domain) -> Answer | None:
    """The share of hidden levels filled wrongly in each column, their mean; None where no level was hidden.

    Args:
        hidden: the rows asked.
        filled: the same rows, with the hidden cells filled in.
        domain: their variables.
    """
    _check(hidden, filled, hidden.x.shape)
    asked = hidden.mask & torch.tensor([v.kind in LEVELLED for v in domain.variables])
    value, share = _ratios(asked & (filled.to(hidden.x) != hidden.x), asked)
    return _answer(value, share, hidden, Kind.ESTIMATE, "share wrong", least=1 / int(asked.sum())) if len(value) else None


# -- how sure ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """Where hidden numbers stand among draws of them.

    Args:
        hidden: the rows asked.
        rank: of each hidden number among the draws, in (0, 1), (M, D), NaN elsewhere: uniform where the model is right.
        width: of its central 90 % interval in units of its column, (M, D).
    """

    hidden: HiddenCells
    rank: Tensor
    width: Tensor

    @property
    def cells(self) -> int:
        """How many numbers were hidden."""
        return int((~self.rank.isnan()).sum())

    def coverage(self, share: float = INTERVAL) -> Answer:
        """The share of hidden numbers within their central interval of a probability: below it, the model is too sure of itself."""
        inside = (self.rank - 0.5).abs() < share / 2
        return self._mean(inside, f"share within central {share:.0%} intervals", least=1 / self.cells)

    @property
    def off(self) -> float:
        """Standard errors that the coverage is from 90 %, negative where the model is too sure; at least a right model's error is taken."""
        found, right = self.coverage(), math.sqrt(INTERVAL * (1 - INTERVAL) / self.cells)
        return (float(found) - INTERVAL) / max(right, 0.0 if found.error is None else float(found.error))

    @property
    def sharpness(self) -> Answer:
        """The mean width of the central 90 % intervals: among those that cover, narrower says more."""
        return self._mean(self.width.nan_to_num(), f"width of central {INTERVAL:.0%} intervals")

    def _mean(self, values: Tensor, how: str, least: float = 0.0) -> Answer:
        asked = ~self.rank.isnan()
        ratio, shares = _ratios(values.sum(1, keepdim=True), asked.sum(1, keepdim=True))
        return _answer(ratio, shares, self.hidden, Kind.ESTIMATE, how, least=least)


def calibration(hidden: HiddenCells, draws: Sequence[Tensor], unit: Tensor, *, generator: Generator) -> Calibration | None:
    """The rank of the truth among S draws: (number below + U (number equal + 1)) / (S + 1), U uniform; None where no number was hidden.

    Truth and draws of one law are exchangeable, and ties are broken at random, so the rank is uniform for any S and any
    law, atoms included.

    Args:
        hidden: the rows asked.
        draws: S >= 19 completions of the same rows, each (M, D).
        unit: of each column, NaN to leave it out, as `scales` gives.
        generator: of the ties.

    Raises:
        DataError: there are fewer than 19 draws: a 90 % interval has no ends among them.
    """
    if len(draws) < 19:
        raise DataError(f"central 90 % intervals need at least 19 draws, got {len(draws)}")
    asked = hidden.mask & ~unit.isnan()
    if not bool(asked.any()):
        return None
    for x in draws:
        _check(hidden, x, hidden.x.shape)
    cells, truth, unit = torch.stack([x[asked] for x in draws]).double(), hidden.x[asked], unit.expand(asked.shape)[asked]
    rank, width = (torch.full(asked.shape, torch.nan, dtype=torch.float64) for _ in range(2))
    rank[asked] = _rank(truth, cells, ROUNDING * (truth.abs() + unit), generator)
    width[asked] = _width(cells) / unit
    return Calibration(hidden, rank, width)


def _rank(truth: Tensor, draws: Tensor, rounding: Tensor, generator: Generator) -> Tensor:
    equal = ((draws - truth).abs() <= rounding).sum(0)
    below = (draws < truth - rounding).sum(0)
    u = torch.rand(len(truth), generator=generator, dtype=torch.float64)
    return (below + u * (equal + 1)) / (len(draws) + 1)


def _width(draws: Tensor) -> Tensor:
    """Between the order statistics that bound the central 90 %."""
    first = round((1 - INTERVAL) / 2 * (len(draws) + 1))
    low, high = (draws.kthvalue(k, dim=0).values for k in (first, len(draws) + 1 - first))
    return high - low


# -- ratios and their errors ---------------------------------------------------------------------------


def _ratios(total: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """R (K,) of each column that has a count, and what each row asked adds to it, g (M, K)."""
    total, count = total.double(), count.double()
    asked = count.sum(0) > 0
    total, count = total[:, asked], count[:, asked]
    ratio = total.sum(0) / count.sum(0)
    return ratio, (total - ratio * count) / count.sum(0)


def _answer(values: Tensor, shares: Tensor, hidden: HiddenCells, kind: Kind, how: str, *, least: float = 0.0) -> Answer:
    """The mean of values (K,) whose rows add shares (M, K); askings of one row are summed before they are squared."""
    rows, which = hidden.row.unique(return_inverse=True)
    by_row = shares.new_zeros(len(rows)).index_add(0, which, shares.mean(1))
    error = math.sqrt(len(rows) / (len(rows) - 1) * float(by_row.square().sum())) if len(rows) > 1 else math.nan
    how = f"{how} of {int(hidden.mask.sum())} cells hidden in {len(rows)} rows"
    return Answer(np.asarray(float(values.mean())), kind, np.asarray(max(error, least)), how)


def _check(hidden: HiddenCells, answers: Tensor, shape: torch.Size) -> None:
    if not len(hidden):
        raise DataError("no cell is hidden: nothing was asked")
    if answers.shape != shape:
        raise DataError(f"answers about hidden cells need shape {tuple(shape)}, got {tuple(answers.shape)}")
