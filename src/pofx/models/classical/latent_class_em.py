"""EM for mixtures of products of per-variable laws, on tensors; NaN = unobserved = factor 1."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pofx.distributions.columns import Columns
from pofx.types import Generator

_ELEMENTS_AT_ONCE = 2**21  # rows x classes x variables of one pass
_SEED_ROWS = 3.0  # weight of the row that a class starts from


class Mixture(NamedTuple):
    """pi and theta of p(x) = sum_k pi_k prod_d p_d(x_d | theta_kd)."""

    log_pi: Tensor  # (K)
    theta: Tensor  # (K, width of the columns)


def log_joint(columns: Columns, mixture: Mixture, x: Tensor) -> Tensor:
    """log p(x, k) for rows (N, D): (N, K). A few rows at a time, so that memory stays bounded."""
    size = max(1, _ELEMENTS_AT_ONCE // (len(mixture.log_pi) * x.shape[1]))
    parts = [columns.log_prob(mixture.theta, rows[:, None]).sum(-1) for rows in x.split(size)]
    return torch.cat(parts) + mixture.log_pi


def seeded(columns: Columns, x: Tensor, classes: int, smoothing: float, generator: Generator) -> Mixture:
    """Where EM begins: every class around a row of its own, chosen at random, and the rest of the data."""
    each = torch.arange(classes, device=x.device)
    rows = torch.randperm(len(x), generator=generator, device=x.device)[each % len(x)]
    weights = x.new_full((len(x), classes), max(smoothing, 1.0) / len(x))
    weights[rows, each] += _SEED_ROWS
    return Mixture(x.new_full((classes,), -math.log(classes)), columns.fit(x, weights))


class Step(NamedTuple):
    """Where EM stands, and what that is worth."""

    mixture: Mixture
    log_likelihood: float  # mean over rows
    penalised: float  # what EM never lowers, over the number of rows


def expectation_maximisation(
    columns: Columns, x: Tensor, start: Mixture, smoothing: float, *, steps: int, tolerance: float
) -> Iterator[Step]:
    """Points of a path that never goes down, until a step gains less than the tolerance (in nats a row).

    What rises is the penalised log-likelihood

        sum_n log p(x_n) + (a / N) sum_k sum_n log p(x_n | k) + sum_k log pi_k + sum_kd log_prior(theta_kd),

    whose second term adds a / N to every responsibility in the M-step, and the third 1 to every class's rows.

    Args:
        columns: the laws.
        x: rows (N, D).
        start: where to begin.
        smoothing: a.
        steps: at most; one point at least.
        tolerance: least gain.
    """
    mixture, last = start, -math.inf
    for _ in range(max(steps, 1)):
        joint = log_joint(columns, mixture, x)
        log_p = joint.logsumexp(-1, keepdim=True)
        point = Step(mixture, float(log_p.mean()), _penalised(columns, mixture, joint, log_p, smoothing))
        yield point
        if point.penalised - last < tolerance:
            return
        last, r = point.penalised, (joint - log_p).exp()
        log_pi = (r.sum(0) + 1).log().log_softmax(0)
        mixture = Mixture(log_pi, columns.fit(x, r + smoothing / len(x), mixture.theta))


def _penalised(columns: Columns, mixture: Mixture, joint: Tensor, log_p: Tensor, smoothing: float) -> float:
    log_given_class = (joint - mixture.log_pi).mean(0).sum()  # (1 / N) sum_kn
    prior = columns.log_prior(mixture.theta).sum() + mixture.log_pi.sum()
    return float(log_p.mean() + (smoothing * log_given_class + prior) / len(joint))
