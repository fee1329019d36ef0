"""The dots of the table: every likelihood on one axis."""

import math
from dataclasses import dataclass

import numpy as np

from pofx.comparison import Comparison, Result
from pofx.comparison.ranking import error_of
from pofx.types import Kind

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
        low: the value at its left end.
        high: the value at its right end.
        dots: family -> where it stands.
        truth: where the density stands that the rows were drawn from, or None.
    """

    low: float
    high: float
    dots: dict[str, Dot]
    truth: float | None


def axis_of(comparison: Comparison) -> Axis | None:
    """The axis of a comparison, which far outliers do not stretch; None for fewer than two numbers."""
    scored = [r for r in comparison.ranked if math.isfinite(r.nats)]
    if len(scored) < 2:
        return None
    truth = None if comparison.task.truth is None else -float(comparison.task.truth)
    low, high = _ends(scored, truth)
    found = {r.family: _dot(r, low, high) for r in scored}
    return Axis(low, high, found, None if truth is None else _place(truth, low, high))


def _ends(scored: list[Result], truth: float | None) -> tuple[float, float]:
    """From two errors below the best, or from the truth, to the last value that is no outlier."""
    values = np.array([r.nats for r in scored])
    error = _two_errors(scored[0])
    known = [] if truth is None else [truth]
    low = min([values[0] - error, *known])
    reach = max(STRETCH * float(np.median(values - low)), 2 * error)
    high = max([values[0] + error, *values[values - low <= reach], *known])
    room = 0.04 * (high - low) or 1.0
    return float(low - room), float(high + room)


def _dot(result: Result, low: float, high: float) -> Dot:
    error = _two_errors(result)
    at, left, right = (_place(result.nats + shift, low, high) for shift in (0.0, -error, error))
    return Dot(at, left, right, result.nats > high, result.kind is Kind.BOUND)


def _two_errors(result: Result) -> float:
    return 0.0 if result.likelihood is None else 2 * error_of(result.likelihood.score)


def _place(value: float, low: float, high: float) -> float:
    return 100 * min(max((value - low) / (high - low), 0.0), 1.0)
