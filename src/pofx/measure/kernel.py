"""The kernel of the two-sample measures: k(a, b) = mean over f of exp(-|a - b|^2 / (2 (f l)^2)).

One length l from the data and a few factors f about it, so that coarse and fine differences both count.
"""

import torch
from torch import Tensor

from pofx.measure.two_samples import thinned
from pofx.types import Generator

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # ours


def gaussians(a: Tensor, b: Tensor, length: float) -> Tensor:
    """k of every row of a (N, W) with every row of b (M, W), shape (N, M); k(a, a) = 1."""
    scaled = torch.cdist(a, b).square() / (-2 * length**2)
    kernel = torch.zeros_like(scaled)
    for f in FACTORS:
        kernel += torch.exp(scaled / f**2)
    return kernel / len(FACTORS)


def median_distance(z: Tensor, *, generator: Generator = None) -> float:
    """The median of |z_i - z_j| over pairs of distinct rows, 1 when all rows are equal; of at most 1000 rows."""
    distances = torch.pdist(thinned(z, generator))
    apart = distances[distances > 0]
    return float(apart.median()) if len(apart) else 1.0
