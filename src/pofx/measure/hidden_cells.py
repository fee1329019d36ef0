"""Held-out questions: cells of rows are hidden at random, and what a model says of them is compared with what stood there.

Every number is a mean over hidden cells, R = sum_n a_n / sum_n m_n with sums over the rows asked and m_n hidden cells in each. Its error
is the delta method's, from what each row adds, g_n = (a_n - R m_n) / sum m: sqrt(N / (N - 1) sum_n g_n^2). The cells of one
row go together, and so do several askings of it.
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


@dataclass(frozen=True)
class PerCell:
    """A mean over hidden cells that knows its rows, so that two are compared on the same ones.

    Args:
        row: which row of the data each asked row is, (M,).
        total: a_n, the sum over its hidden cells, (M,).
        count: m_n, how many those are, (M,).
        kind: what the numbers are.
        how: what they are, in words.
        step: the least change that one cell makes: 1 of a share, whose error is that of a cell even where all or none is in it.
    """

    row: Tensor
    total: Tensor
    count: Tensor
    kind: Kind = Kind.ESTIMATE
    how: str = ""
    step: float = 0.0

    def __float__(self) -> float:
        return float(self.total.sum() / self.count.sum())

    @property
    def answer(self) -> Answer:
        """R with its error."""
        return self._answer(float(self), self._error)

    @property
    def root(self) -> Answer:
        """sqrt(R) with its error, error(R) / (2 sqrt(R))."""
        root = math.sqrt(float(self))
        return self._answer(root, self._error / (2 * root) if root > 0 else 0.0)

    def __sub__(self, other: "PerCell") -> Answer:
        """The difference of two means over the first rows, those that both were asked, with the error of paired rows.

        Raises:
            DataError: they are not of the same cells.
        """
        both = min(len(self.row), len(other.row))
        row, count = self.row[:both], self.count[:both]
        if not (torch.equal(row, other.row[:both]) and torch.equal(count, other.count[:both])):
            raise DataError("answers are compared about the same hidden cells, got others")
        return PerCell(row, self.total[:both] - other.total[:both], count, how=f"difference in {self.how}").answer

    @property
    def _error(self) -> float:
        rows, which = self.row.unique(return_inverse=True)
        adds = (self.total - float(self) * self.count) / self.count.sum()
        by_row = adds.new_zeros(len(rows)).index_add(0, which, adds)
        error = math.sqrt(len(rows) / (len(rows) - 1) * float(by_row.square().sum())) if len(rows) > 1 else math.nan
        return max(error, self.step / float(self.count.sum()))

    def _answer(self, value: float, error: float) -> Answer:
        how = f"{self.how} of {int(self.count.sum())} cells hidden in {len(self.row.unique())} rows"
        return Answer(np.asarray(value), self.kind, np.asarray(error), how)


def _per_cell(row: Tensor, values: Tensor, asked: Tensor, how: str, *, step: float = 0.0) -> PerCell:
    """The mean of values (M, D) over the cells asked."""
    return PerCell(row, torch.where(asked, values.double(), 0.0).sum(1), asked.sum(1).double(), how=how, step=step)


# -- how probable --------------------------------------------------------------------------------------


def surprise(hidden: HiddenCells, whole: Tensor, rest: Tensor, kind: Kind = Kind.EXACT) -> PerCell:
    """-log p(hidden cells of a row | its other cells) in nats a hidden cell: the negative log-score, lower is better.

    By log p(row) - log p(row without its hidden cells), which of two bounds is an estimate. Where what was seen has
    probability 0, so has what was hidden. A proper score: nothing beats the true conditional on average. Of a density in the
    columns' own units, so it compares models of one table.

    Args:
        hidden: the rows asked.
        whole: log p of the rows as they stood, (M,).
        rest: log p of the rows without their hidden cells, (M,).
        kind: what those are, the worse of the two.
    """
    for nats in (whole, rest):
        _check(hidden, nats, hidden.row.shape)
    nats = torch.where(rest.isneginf(), rest, whole - rest).double()
    label = Kind.EXACT if kind is Kind.EXACT else Kind.ESTIMATE
    return PerCell(hidden.row, -nats, hidden.mask.sum(1).double(), label, "-log p")


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


def squared_error(hidden: HiddenCells, filled: Tensor, unit: Tensor) -> PerCell | None:
    """((fill - truth) / unit)^2 of hidden numbers, whose `root` is the error in standard deviations; None where none was hidden.

    Args:
        hidden: the rows asked.
        filled: the same rows, with the hidden cells filled in.
        unit: of each column, NaN to leave it out, as `scales` gives.
    """
    _check(hidden, filled, hidden.x.shape)
    off, asked = (filled.to(hidden.x) - hidden.x) / unit, hidden.mask & ~unit.isnan()
    return _per_cell(hidden.row, off.square(), asked, "squared error in standard deviations") if bool(asked.any()) else None


def wrong(hidden: HiddenCells, filled: Tensor, domain: Domain) -> PerCell | None:
    """The share of hidden levels that are filled in wrongly; None where none was hidden.

    Args:
        hidden: the rows asked.
        filled: the same rows, with the hidden cells filled in.
        domain: their variables.
    """
    _check(hidden, filled, hidden.x.shape)
    asked = hidden.mask & torch.tensor([v.kind in LEVELLED for v in domain.variables])
    return _per_cell(hidden.row, filled.to(hidden.x) != hidden.x, asked, "share wrong", step=1.0) if bool(asked.any()) else None


# -- how sure ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """Where hidden numbers stand among draws of them.

    Args:
        row: which row of the data each asked row is, (M,).
        rank: of each hidden number among the draws, in (0, 1), (M, D), NaN elsewhere: uniform where the model is right.
        width: of its central 90 % interval in units of its column, (M, D).
    """

    row: Tensor
    rank: Tensor
    width: Tensor

    @property
    def cells(self) -> int:
        """How many numbers were hidden."""
        return int((~self.rank.isnan()).sum())

    def coverage(self, share: float = INTERVAL) -> Answer:
        """The share of hidden numbers within their central interval of a probability: below it, the model is too sure of itself."""
        return self._mean((self.rank - 0.5).abs() < share / 2, f"share within central {share:.0%} intervals", step=1.0)

    @property
    def off(self) -> float:
        """Standard errors that the coverage is from 90 %, negative where the model is too sure; at least a right model's error is taken."""
        found, right = self.coverage(), math.sqrt(INTERVAL * (1 - INTERVAL) / self.cells)
        return (float(found) - INTERVAL) / max(right, 0.0 if found.error is None else float(found.error))

    @property
    def sharpness(self) -> Answer:
        """The mean width of the central 90 % intervals: among those that cover, narrower says more."""
        return self._mean(self.width, f"width of central {INTERVAL:.0%} intervals")

    def _mean(self, values: Tensor, how: str, step: float = 0.0) -> Answer:
        return _per_cell(self.row, values, ~self.rank.isnan(), how, step=step).answer


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
    return Calibration(hidden.row, rank, width)


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


def _check(hidden: HiddenCells, answers: Tensor, shape: torch.Size) -> None:
    if not len(hidden):
        raise DataError("no cell is hidden: nothing was asked")
    if answers.shape != shape:
        raise DataError(f"answers about hidden cells need shape {tuple(shape)}, got {tuple(answers.shape)}")
