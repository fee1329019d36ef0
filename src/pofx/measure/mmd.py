"""Maximum mean discrepancy: the distance between the means of two distributions in a space of functions.

MMD^2(p, q) = E k(x, x') + E k(y, y') - 2 E k(x, y), zero only when p = q.

Source: Gretton et al., "A kernel two-sample test", JMLR 13, 2012.
"""

import numpy as np
import torch
from torch import Tensor

from pofx.measure.kernel import gaussians, median_distance
from pofx.measure.two_samples import TwoSamples, check_pair, thinned
from pofx.types import Answer, Generator, Kind


def mmd(x: Tensor, y: Tensor, *, length: float | None = None, permutations: int = 300, generator: Generator) -> TwoSamples:
    """The unbiased estimate of MMD^2 (it may fall below 0), its standard error, and a permutation p-value.

    The error is the jackknife's; where the distributions agree it is up to sqrt(2) too large. Cost: one
    kernel matrix of at most 2000 x 2000 and one matrix product with all relabelings at once.

    Args:
        x: features (N, W) of one sample.
        y: features (M, W) of the other.
        length: l of the kernel; the median distance of the pooled rows when none is given. To compare
            several samples with the same y, give one length for all, from rows that are in no sample.
        permutations: how many relabelings the p-value is from; it is at least 1 / (permutations + 1).
        generator: of the subsample and the relabelings.

    Raises:
        DataError: a sample has under 3 rows, a missing cell, or another width.
    """
    check_pair(x, y, least=3)
    x, y = thinned(x, generator), thinned(y, generator)
    z = torch.cat((x, y))
    kernel = gaussians(z, z, median_distance(z, generator=generator) if length is None else length)
    kernel.fill_diagonal_(0)  # unbiased: no row is paired with itself
    first = torch.cat((kernel.new_ones(len(x)), kernel.new_zeros(len(y))))
    observed = float(_statistic(kernel, first[:, None]))
    relabelled = torch.stack([first[torch.randperm(len(z), generator=generator)] for _ in range(permutations)], dim=1)
    as_large = _statistic(kernel, relabelled) >= observed - 1e-12  # rounding must not decide between relabelings that tie
    how = f"unbiased, from {len(x)} and {len(y)} rows"
    distance = Answer(np.asarray(observed), Kind.ESTIMATE, np.asarray(_jackknife(kernel, len(x))), how)
    return TwoSamples(distance, (1 + int(as_large.sum())) / (1 + permutations))


def _statistic(kernel: Tensor, first: Tensor) -> Tensor:
    """MMD^2 of each labelling: column b of `first` (N + M, B) is 1 for rows of the first sample, 0 for the others."""
    n = first.sum(0)
    m = len(first) - n
    to_first = kernel @ first
    within_x, touching_x = (first * to_first).sum(0), to_first.sum(0)
    within_y, across = kernel.sum() - 2 * touching_x + within_x, touching_x - within_x
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / (n * m)


def _jackknife(kernel: Tensor, n: int) -> float:
    """sqrt((n-1)/n sum_i (t_-i - mean)^2 + the same over the other sample), t_-i the estimate without row i."""
    m = len(kernel) - n
    x_x, y_y, x_y = kernel[:n, :n], kernel[n:, n:], kernel[:n, n:]
    without_x = (x_x.sum() - 2 * x_x.sum(1)) / ((n - 1) * (n - 2)) - 2 * (x_y.sum() - x_y.sum(1)) / ((n - 1) * m)
    without_y = (y_y.sum() - 2 * y_y.sum(1)) / ((m - 1) * (m - 2)) - 2 * (x_y.sum() - x_y.sum(0)) / ((m - 1) * n)
    variance = (n - 1) * without_x.var(correction=0) + (m - 1) * without_y.var(correction=0)
    return float(variance.sqrt())
