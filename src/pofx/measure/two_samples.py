"""What a two-sample test says: how far two samples are apart, and how surprising that would be if they were not."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.errors import DataError
from pofx.types import Answer, Generator

CAP = 1000  # rows of each sample that a test looks at: its cost grows as the square


@dataclass(frozen=True)
class TwoSamples:
    """A distance between two samples, estimated, and its p-value.

    Args:
        distance: the statistic with its standard error.
        p_value: probability of a distance as large, were both samples of one distribution.
    """

    distance: Answer
    p_value: float

    def __float__(self) -> float:
        return float(self.distance)


def thinned(x: Tensor, generator: Generator, cap: int = CAP) -> Tensor:
    """At most `cap` rows, drawn without replacement."""
    if len(x) <= cap:
        return x
    return x[torch.randperm(len(x), generator=generator)[:cap]]


def check_pair(x: Tensor, y: Tensor, least: int = 2) -> None:
    """Two samples of one width, without missing cells, each of at least so many rows.

    Raises:
        DataError: they are not.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise DataError(f"two samples need shapes (N, D) and (M, D), got {tuple(x.shape)} and {tuple(y.shape)}")
    if min(len(x), len(y)) < least:
        raise DataError(f"a two-sample measure needs {least} rows of each sample, got {len(x)} and {len(y)}")
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise DataError("a two-sample measure takes finite numbers: pass what `features` makes of rows with missing cells")
