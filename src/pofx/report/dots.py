"""The dots of a table: every likelihood on one axis."""

import math
from dataclasses import dataclass

import numpy as np

from pofx.comparison import Comparison, Result
from pofx.comparison.ranking import error_of
from pofx.types import Answer, Kind

STRETCH = 4.0  # medians above the best; what is further lies beyond the axis


@dataclass(frozen=True)
class Dot:
    """Where a family stands on the axis of -log p, in percent of its width.

    Args:
        at: the value.
        left: the value less two standard errors.
        right: the value plus two.
        beyond: whether it is off the axis, to the right.
        bound: whether the true value may be further left.
    """

    at: float
    left: float
    right: float
    beyond: bool
    bound: bool


@dataclass(frozen=True)
class Axis:
    """The axis that all dots share.

    Args:
        name: what the values are.
        low: the value at its left end.
        high: the value at its right end.
        dots: family -> where it stands.
        truth: where the density stands that the rows were drawn from, or None.
    """

    name: str
    low: float
    high: float
    dots: dict[str, Dot]
    truth: float | None


@dataclass(frozen=True)
class Entry:
    """A value to place.

    Args:
        family: whose.
        value: of -log p.
        error: two standard errors.
        kind: of the value.
    """

    family: str
    value: float
    error: float
    kind: Kind


def axis_of(comparison: Comparison) -> Axis | None:
    """The axis of -log p of the test rows, which far outliers do not stretch; None for fewer than two numbers."""
    found = [(r, r.nats, r.likelihood.score) for r in comparison.ranked if r.likelihood is not None]
    truth = None if comparison.task.truth is None else -float(comparison.task.truth)
    return _axis("−log p, nats a row", [_entry(*scored) for scored in found], truth)


def axis_of_answers(comparison: Comparison) -> Axis | None:
    """The same of -log p of hidden cells, given the others."""
    found = [(r, r.answering.nats, r.answering.score) for r in comparison.answering if r.answering.score is not None]
    return _axis("−log p, nats a cell", [_entry(*scored) for scored in found], None)


def _entry(result: Result, nats: float, score: Answer) -> Entry:
    return Entry(result.family, nats, 2 * error_of(score), score.kind)


def _axis(name: str, entries: list[Entry], truth: float | None) -> Axis | None:
    scored = sorted((entry for entry in entries if math.isfinite(entry.value)), key=lambda entry: entry.value)
    if len(scored) < 2:
        return None
    low, high = _ends(scored, truth)
    found = {entry.family: _dot(entry, low, high) for entry in scored}
    return Axis(name, low, high, found, None if truth is None else _place(truth, low, high))


def _ends(scored: list[Entry], truth: float | None) -> tuple[float, float]:
    """From two errors below the best, or from the truth, to the last value that is no outlier."""
    values = np.array([entry.value for entry in scored])
    error = scored[0].error
    known = [] if truth is None else [truth]
    low = min([values[0] - error, *known])
    reach = max(STRETCH * float(np.median(values - low)), 2 * error)
    high = max([values[0] + error, *values[values - low <= reach], *known])
    room = 0.04 * (high - low) or 1.0
    return float(low - room), float(high + room)


def _dot(entry: Entry, low: float, high: float) -> Dot:
    at, left, right = (_place(entry.value + shift, low, high) for shift in (0.0, -entry.error, entry.error))
    return Dot(at, left, right, entry.value > high, entry.kind is Kind.BOUND)


def _place(value: float, low: float, high: float) -> float:
    return 100 * min(max((value - low) / (high - low), 0.0), 1.0)
