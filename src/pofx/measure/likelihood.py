"""Held-out likelihood: nats a row with their standard error, and the only place where nats become bits."""

import math

import numpy as np
import torch
from torch import Tensor

from pofx.errors import DataError
from pofx.types import Answer, Kind


def held_out(nats: Tensor, kind: Kind = Kind.EXACT) -> Answer:
    """The mean of log p over held-out rows, in nats a row: (1/N) sum_n log p(x_n), error sd / sqrt(N).

    The error is that of the mean over the population of rows; a bound's own draws are part of the spread.

    Args:
        nats: log p of each row, shape (N,).
        kind: what those numbers are.

    Raises:
        DataError: there is no row.
    """
    if nats.numel() == 0:
        raise DataError("a held-out score needs at least one row, got none")
    return _mean(nats, kind, f"the mean over {nats.numel()} rows")


def paired_difference(nats: Tensor, others: Tensor) -> Answer:
    """The mean of log p(x_n) - log q(x_n) over the same rows, with its standard error.

    Far sharper than two scores with an error each: a row that is hard for p is hard for q.

    Args:
        nats: log p of each row, shape (N,).
        others: log q of the same rows, shape (N,).
    """
    if nats.shape != others.shape:
        raise DataError(f"a paired difference needs the same rows twice, got {tuple(nats.shape)} and {tuple(others.shape)}")
    return _mean(nats - others, Kind.ESTIMATE, f"the mean of {nats.numel()} paired differences")


def bits_per_dim(nats: float, dims: int) -> float:
    """-log2 p / D of a log p in nats over D variables.

    >>> bits_per_dim(-64 * math.log(2), 64)
    1.0
    """
    return -nats / (dims * math.log(2))


def _mean(values: Tensor, kind: Kind, how: str) -> Answer:
    values = values.to(torch.float64)
    error = float(values.std()) / math.sqrt(values.numel()) if values.numel() > 1 else math.nan
    return Answer(np.asarray(float(values.mean())), kind, np.asarray(error), how)
