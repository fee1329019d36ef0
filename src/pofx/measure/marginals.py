"""Per variable: how far the marginal of the samples is from that of the data.

Numbers: the Wasserstein-1 distance W(P, Q) = integral |F - G|, in units of the data's standard deviation.
Levels: the total variation TV(P, Q) = 1/2 sum |p - q|. Both are max over a class of functions phi of
E_P phi - E_Q phi (slopes at most 1; values within 1/2 of each other's middle), so the distance is a
difference of means of the best phi, and its standard error that of the two means.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pofx.domain import LEVELLED, Domain
from pofx.errors import DataError
from pofx.types import Answer, Kind


def marginal_distances(samples: Tensor, data: Tensor, domain: Domain) -> Answer:
    """One distance a variable, shape (D,): Wasserstein-1 in sd of the data for numbers, total variation for levels.

    Missing cells are left out of their column; a column with none left has distance NaN. Between finite
    samples of one distribution the distance is about the size of its error, not 0.

    Args:
        samples: rows (N, D) in the domain's encoding.
        data: rows (M, D).
        domain: their variables.
    """
    if samples.ndim != 2 or data.ndim != 2 or not samples.shape[1] == data.shape[1] == len(domain):
        raise DataError(f"marginals need rows of {len(domain)} variables, got {tuple(samples.shape)} and {tuple(data.shape)}")
    pairs = [
        _distance(*columns)
        for columns in zip(samples.double().T, data.double().T, (v.kind in LEVELLED for v in domain.variables), strict=True)
    ]
    value, error = (np.array(part) for part in zip(*pairs, strict=True))
    return Answer(value, Kind.ESTIMATE, error, "Wasserstein-1 in standard deviations (numbers), total variation (levels)")


def _distance(x: Tensor, y: Tensor, levelled: bool) -> tuple[float, float]:
    x, y = x[~x.isnan()], y[~y.isnan()]
    if not (len(x) and len(y)):
        return math.nan, math.nan
    if levelled:
        phi_x, phi_y = _best_of_levels(x, y)
    else:
        scale = y.std(correction=0).clamp_min(1e-12 * y.abs().max().clamp_min(1.0))
        phi_x, phi_y = _best_of_numbers(x / scale, y / scale)
    error = sum(float(phi.var(correction=0)) / len(phi) for phi in (phi_x, phi_y)) ** 0.5
    return float(phi_x.mean() - phi_y.mean()), error


def _best_of_numbers(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """phi with slope sign(G - F) at the points of x and of y: integral phi d(P - Q) = integral |F - G|."""
    values, where = torch.cat((x, y)).sort()
    from_x = (where < len(x)).to(values.dtype)
    excess = (1 - from_x).cumsum(0) / len(y) - from_x.cumsum(0) / len(x)  # G - F, right of each value
    steps = excess.sign()[:-1] * values.diff()
    phi = torch.empty_like(values)
    phi[where] = torch.cat((steps.new_zeros(1), steps.cumsum(0)))
    return phi[: len(x)], phi[len(x) :]


def _best_of_levels(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """phi = 1/2 sign(p - q) of each level, at the points of x and of y."""
    levels = int(max(x.max(), y.max())) + 1
    p, q = (torch.bincount(part.long(), minlength=levels) / len(part) for part in (x, y))
    phi = 0.5 * (p - q).sign().to(x.dtype)
    return phi[x.long()], phi[y.long()]
