"""Classifier two-sample test: can a classifier tell the samples from the data?

Source: Lopez-Paz and Oquab, "Revisiting classifier two-sample tests", ICLR 2017, arXiv:1610.06545.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pofx.measure.kernel import gaussians, median_distance
from pofx.measure.two_samples import CAP, TwoSamples, check_pair, thinned
from pofx.types import Answer, Generator, Kind


def c2st(x: Tensor, y: Tensor, *, folds: int = 5, ridge: float = 1.0, generator: Generator) -> TwoSamples:
    """The accuracy with which held-out rows are told apart: 0.5 = indistinguishable, 1 = always.

    The classifier is the sign of a kernel ridge regression on the labels 1 and -1: no training that could
    fail, and near the Bayes rule where that is smooth. Another classifier may see what this one does not.
    Both classes are of equal size in every fold: with unequal ones the accuracy would fall below 1/2 where
    the distributions agree. Cost: one solve of at most 1600 x 1600 a fold.

    The error is the binomial one, sqrt(a (1 - a) / N), and the p-value the normal tail beyond 1/2; folds
    share training rows, so both are slightly optimistic.

    Args:
        x: features (N, W) of one sample.
        y: features (M, W) of the other; the longer is thinned to the shorter.
        folds: each row is classified by the rows of the other folds.
        ridge: weight of the penalty.
        generator: of the subsample, the folds and the rows that give the length of the kernel.

    Raises:
        DataError: a sample has fewer rows than there are folds, a missing cell, or another width.
    """
    check_pair(x, y, least=2 * folds)
    size = min(len(x), len(y), CAP) // folds * folds
    z = torch.cat((thinned(x, generator, size), thinned(y, generator, size)))
    label = torch.cat((z.new_ones(size), -z.new_ones(size)))
    kernel = gaussians(z, z, median_distance(z, generator=generator))
    shuffled = torch.stack((torch.randperm(size, generator=generator), torch.randperm(size, generator=generator) + size), 1)
    right = [_right(kernel, label, test.flatten(), ridge) for test in shuffled.chunk(folds)]
    return _verdict(float(torch.cat(right).mean()), 2 * size)


def _right(kernel: Tensor, label: Tensor, test: Tensor, ridge: float) -> Tensor:
    """1 for each test row that the rows of the other folds classify rightly, 0 for a wrong one, 1/2 for a tie."""
    learn = torch.ones(len(label), dtype=torch.bool, device=label.device)
    learn[test] = False
    within = kernel[learn][:, learn]
    within.diagonal().add_(ridge)
    weights = torch.cholesky_solve(label[learn, None], torch.linalg.cholesky(within))
    score = (kernel[test][:, learn] @ weights).squeeze(1)
    return (1 + (score * label[test]).sign()) / 2


def _verdict(accuracy: float, rows: int) -> TwoSamples:
    error = math.sqrt(accuracy * (1 - accuracy) / rows)
    p_value = 0.5 * math.erfc((accuracy - 0.5) * math.sqrt(2 * rows))  # z = (a - 1/2) / (1/2 / sqrt(N))
    how = f"cross-validated accuracy of a kernel classifier on {rows} rows; 0.5 = indistinguishable"
    return TwoSamples(Answer(np.asarray(accuracy), Kind.ESTIMATE, np.asarray(error), how), p_value)
