"""A bound on log p(x) from K draws of what was added to x: the mean of log w_k, or the log of the mean of w_k.

With w = p(y) / q(y | x) and y ~ q(y | x), E[w] = p(x), so both lie below log p(x) on average, the second nearer to it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def bound_and_error(draw: Callable[[], tuple[Tensor, Tensor]], draws: int, *, tight: bool = False) -> tuple[Tensor, Tensor]:
    """The bound over K draws and its standard error, (N,) each.

    Args:
        draw: gives log w and its own error, (N,) each, at a fresh y.
        draws: K.
        tight: whether it is the log of the mean weight, not the mean of the logs.
    """
    log_weights, errors = (torch.stack(column) for column in zip(*(draw() for _ in range(draws)), strict=True))
    return (log_mean_and_error if tight else mean_and_error)(log_weights, errors)


def mean_and_error(log_weights: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """(1/K) sum_k log w_k of K draws (K, N) and its standard error, from the spread and from each value's own error."""
    mean = log_weights.mean(0)
    spread = _variance(torch.where(mean.isfinite(), log_weights, 0.0))
    return mean, ((spread + errors.square().mean(0)) / len(log_weights)).sqrt()


def log_mean_and_error(log_weights: Tensor, errors: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """log (1/K) sum_k w_k of K draws (K, N) and, by the delta method, its standard error: sd(w) / (mean(w) sqrt(K)), with each value's own.

    Source: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", ICLR 2016, arXiv:1509.00519, equation 8.
    """
    draws = len(log_weights)
    value = torch.logsumexp(log_weights, 0) - math.log(draws)
    relative = torch.where(value.isfinite(), (log_weights - value).exp(), 1.0)
    return value, ((_variance(relative) + (relative * errors).square().mean(0)) / draws).sqrt()


def _variance(values: Tensor) -> Tensor:
    return values.var(0) if len(values) > 1 else torch.zeros_like(values[0])
