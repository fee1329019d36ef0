"""Draws and moments of a law between two ends, from nothing but the probabilities of its intervals.

With log_between(a, x) = log P(a < X <= x), which a law knows to rounding error wherever a and x are, the quantile is found by
bisection over the floating-point numbers themselves, and a moment is an integral over quantiles: no scale has to be known,
and an interval twenty deviations out is as good as any other.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

LogBetween = Callable[[Tensor, Tensor], Tensor]  # of two ends, log P(a < X <= b)

_BITS = 64  # of a double: so many halvings find any
_REACH, _STEP = 6.0, 0.125  # of the nodes: beyond, a weight is below e^-630


def bisect(below: Callable[[Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """The least double x with a < x <= b that is not below what is sought; b where all are.

    Doubles are met in the order of their bits: ends may be infinite, and the last digit is right.
    """
    low, high = _place(a), _place(b)
    for _ in range(_BITS):
        middle = (low & high) + ((low ^ high) >> 1)
        under = below(_place_of(middle))
        low, high = torch.where(under, middle, low), torch.where(under, high, middle)
    return _place_of(high)


def quantile(log_between: LogBetween, a: Tensor, b: Tensor, log_u: Tensor) -> Tensor:
    """The x in (a, b] with P(a < X <= x) = u P(a < X <= b)."""
    aim = log_u + log_between(a, b)
    return bisect(lambda x: log_between(a, x) < aim, a.expand_as(aim), b.expand_as(aim))


def upper_quantile(log_between: LogBetween, a: Tensor, b: Tensor, log_v: Tensor) -> Tensor:
    """The x in (a, b] with P(x < X <= b) = v P(a < X <= b)."""
    aim = log_v + log_between(a, b)
    return bisect(lambda x: log_between(x, b) > aim, a.expand_as(aim), b.expand_as(aim))


def moments(log_between: LogBetween, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """E[X | a < X <= b] and its variance, X continuous: the double-exponential rule over quantiles.

    E[g] = int_0^1 g(Q(u)) du with u = sigmoid(pi sinh t): what an infinite end adds to Q is crushed by the weights. Good to
    1e-10 of the interval's deviation for laws that are smooth inside; 97 quantiles a law.

    Source: Takahasi and Mori, "Double exponential formulas for numerical integration", Publications of the RIMS 9(3), 1974.
    """
    log_u, log_v, weight = (torch.tensor(v, dtype=torch.float64, device=a.device) for v in _nodes())
    half = len(weight) // 2
    shape = (-1, *(1,) * log_between(a, b).ndim)
    lower = quantile(log_between, a, b, log_u[:half].view(shape))
    upper = upper_quantile(log_between, a, b, log_v[half:].view(shape))
    x, weight = torch.cat((lower, upper)), weight.view(shape)
    mean = (weight * x).sum(0)
    return mean, (weight * (x - mean).square()).sum(0)


@cache
def _nodes() -> tuple[list[float], list[float], list[float]]:
    """log u, log(1 - u) and the weights, which sum to 1."""
    t = torch.arange(-_REACH, _REACH + _STEP / 2, _STEP, dtype=torch.float64)
    log_u = torch.nn.functional.logsigmoid(math.pi * t.sinh())
    log_v = log_u.flip(0)
    weight = _STEP * math.pi * t.cosh() * (log_u + log_v).exp()
    return log_u.tolist(), log_v.tolist(), (weight / weight.sum()).tolist()


def _place(x: Tensor) -> Tensor:
    """Where a double stands among all doubles, as an integer."""
    bits = x.double().contiguous().view(torch.int64)
    return torch.where(bits < 0, ~bits ^ torch.iinfo(torch.int64).min, bits)


def _place_of(place: Tensor) -> Tensor:
    bits = torch.where(place < 0, ~(place ^ torch.iinfo(torch.int64).min), place)
    return bits.view(torch.float64)
