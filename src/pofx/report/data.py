"""What the data are: one line for each column, as inferred and as observed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pofx.comparison import Task
from pofx.domain import LEVELLED, Variable

SHOWN = 60  # columns


@dataclass(frozen=True)
class ColumnLine:
    """A column in words.

    Args:
        name: of the column.
        kind: inferred or declared.
        observed: what the training rows hold.
        missing: the share of its cells that are missing.
        reason: why it has that kind.
    """

    name: str
    kind: str
    observed: str
    missing: float
    reason: str


def columns(task: Task) -> list[ColumnLine]:
    """The columns of a table; for images one line for all entries."""
    x = task.train.numpy()
    if not task.domain.is_table:
        v, size = task.domain.variables[0], " × ".join(map(str, task.domain.shape))
        whole = x.reshape(-1)
        why = v.reason or f"an array of shape {task.domain.shape}"
        return [ColumnLine(f"{size} entries", v.kind, _observed(whole, v), float(np.isnan(whole).mean()), why)]
    pairs = zip(task.domain.variables[:SHOWN], x.T, strict=False)
    return [ColumnLine(v.name, v.kind, _observed(column, v), float(np.isnan(column).mean()), v.reason) for v, column in pairs]


def _observed(x: NDArray[np.float64], v: Variable) -> str:
    x = x[~np.isnan(x)]
    if v.kind in LEVELLED:
        return _levels(x.astype(int), v)
    low, middle, high = np.quantile(x, (0, 0.5, 1))
    extra = "" if v.spike is None else f"; {v.spike:g} in {(x == v.spike).mean():.0%}"
    return f"{low:.4g} … {high:.4g}, median {middle:.4g}{extra}"


def _levels(codes: NDArray[np.int64], v: Variable) -> str:
    share = np.bincount(codes, minlength=len(v.levels)) / len(codes)
    shown = ", ".join(f"{v.levels[k]} {share[k]:.0%}" for k in np.argsort(-share, kind="stable")[:4])
    return f"{shown}, …" if len(v.levels) > 4 else shown
