"""Memorising: do samples lie nearer to the training rows than fresh rows of the data do?"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pofx.measure.two_samples import check_pair
from pofx.types import Answer, Kind

BLOCK = 4_000_000  # entries of the distance matrix held at once


@dataclass(frozen=True)
class Memorising:
    """How near samples are to the training rows, measured by how near held-out rows are.

    Args:
        ratio: mean distance to the nearest training row, samples over held-out rows: 1 = as fresh data,
            well below 1 = memorised, above 1 = off the data. NaN where every held-out row has a twin.
        copies: share of samples that equal a training row.
        copies_held_out: the same share of held-out rows, what chance gives in discrete data.
    """

    ratio: Answer
    copies: float
    copies_held_out: float


def memorising(samples: Tensor, held_out: Tensor, training: Tensor) -> Memorising:
    """Compare nearest-training-row distances of samples and of held-out rows, in features.

    The ratio's error is the delta method's. Cost: (samples + held-out) x training distances.

    Args:
        samples: features (N, W).
        held_out: features (M, W) of rows that learning did not see.
        training: features (T, W).
    """
    check_pair(samples, held_out)
    check_pair(samples, training, least=1)
    own, fresh = nearest(samples, training), nearest(held_out, training)
    (a, a_error), (b, b_error) = _mean(own), _mean(fresh)
    ratio = a / b if b > 0 else math.nan
    error = math.sqrt(a_error**2 + (ratio * b_error) ** 2) / b if b > 0 else math.nan
    answer = Answer(np.asarray(ratio), Kind.ESTIMATE, np.asarray(error), "mean distance to the nearest training row, against held-out rows")
    return Memorising(answer, float((own == 0).double().mean()), float((fresh == 0).double().mean()))


def nearest(x: Tensor, training: Tensor) -> Tensor:
    """Distance of each row of x (N, W) to its nearest row of training (T, W), exactly 0 for a copy."""
    rows = max(1, BLOCK // len(training))
    parts = [part - training[torch.cdist(part, training).argmin(1)] for part in x.split(rows)]
    return torch.cat(parts).norm(dim=1)  # again from the difference: a matrix product would leave 1e-8 of a copy


def _mean(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))
