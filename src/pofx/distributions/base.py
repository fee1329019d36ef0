"""Laws of one variable, as functions of unconstrained parameters.

A `Law` is a parametric family p(x | parameters) of one variable. Its parameters come in the last
axis of a tensor of any real numbers, so one law serves as decoder head (the parameters come from a
network), mixture component and circuit leaf (they come from weighted maximum likelihood) and baseline.
NaN = unobserved = factor 1: log_prob is 0 there, and `fit` gives it no weight.

A law is a frozen dataclass: what it holds (bounds, levels, resolution, floors) is data, not learned.
Shapes: x (*batch), parameters (*batch, width); they broadcast against each other.

Two things keep a likelihood from running away. `fit` never returns a scale below a small share of the
column's own (`NARROWEST`), so that duplicated rows cannot send it to infinity; and a law has a `floor`
where a network, which sees no column, sets its scale.
"""

import abc
import math
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from pofx.distributions.quantiles import moments, quantile
from pofx.distributions.special import log1mexp
from pofx.errors import Unavailable
from pofx.events import Between, Condition
from pofx.types import Generator

Parameters = Float[Tensor, "*#batch P"]
Values = Float[Tensor, "*#batch"]
Column = Float[Tensor, " N"]
Rows = Float[Tensor, "N D"]
Weights = Float[Tensor, "N K"]
Fitted = Float[Tensor, "K P"]
FittedColumns = Float[Tensor, "D K P"]
Truths = Bool[Tensor, "*#batch"]
Pieces = tuple[tuple[float, float], ...]  # ends of intervals (a, b]

NARROWEST = 1e-3  # the least fitted scale, as a share of the column's standard deviation


class Law(abc.ABC):
    """p(x | parameters) of one variable; see the module's docstring for the conventions."""

    continuous: ClassVar[bool] = True
    numbers: bool = True  # whether a mean of values means something (of levels it does not)
    support: tuple[float, float] = (-math.inf, math.inf)

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """How many parameters."""

    def log_prob(self, parameters: Parameters, x: Values) -> Values:
        """log p(x), 0 where x is NaN, -inf outside the support."""
        if free_to_ask(x) and math.isfinite(x.sum().item()):  # a NaN would reach the sum
            return self._log_prob(parameters, x)
        seen = ~x.isnan()
        # An in-support stand-in first, then select: NaN or inf in the branch not taken would poison gradients.
        return torch.where(seen, self._log_prob(parameters, torch.where(seen, x, self.stand_in)), 0.0)

    def log_prob_inside(self, parameters: Parameters, x: Values) -> Values:
        """log p(x) of values known to lie inside the support, none missing: nothing is asked."""
        return self._log_prob(parameters, x)

    @property
    @abc.abstractmethod
    def stand_in(self) -> float:
        """A value inside the support, put in place of NaN before any arithmetic."""

    @abc.abstractmethod
    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        """log p(x) of values without NaN."""

    @abc.abstractmethod
    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:
        """One draw per parameter vector."""

    @abc.abstractmethod
    def mean(self, parameters: Parameters) -> Values:
        """E[x] (of the codes, where x is a level); inf or NaN where it does not exist."""

    @abc.abstractmethod
    def variance(self, parameters: Parameters) -> Values:
        """E[(x - E x)^2]; inf or NaN where it does not exist."""

    @abc.abstractmethod
    def mode(self, parameters: Parameters) -> Values:
        """A most probable value."""

    def centre(self, parameters: Parameters) -> Values:
        """What stands for the law in one value: the mean of numbers, the mode of levels."""
        return self.mean(parameters) if self.numbers else self.mode(parameters)

    def fit(self, x: Column, weights: Weights, start: Fitted | None = None) -> Fitted:
        """Weighted maximum likelihood for K weightings at once: (K, width). NaN rows count nothing.

        What is maximised is sum_n weights[n, k] log p(x_n) + log_prior.

        Args:
            x: one column.
            weights: not negative.
            start: parameters to begin from. A law without a closed form climbs from there and never ends lower.
        """
        return self.fit_columns(x[:, None], weights, None if start is None else start[None])[0]

    def fit_columns(self, x: Rows, weights: Weights, start: FittedColumns | None = None) -> FittedColumns:
        """`fit` of D columns under the same weights: (D, K, width)."""
        seen = ~x.isnan()
        return self._fit(torch.where(seen, x, self.stand_in), seen.to(weights), weights, start)

    @abc.abstractmethod
    def _fit(self, x: Tensor, seen: Tensor, weights: Tensor, start: Tensor | None) -> Tensor:
        """`fit_columns` of values without NaN.

        Args:
            x: (N, D).
            seen: (N, D), 0 where a stand-in stands and 1 elsewhere.
            weights: (N, K), or (N, D, K) where a law inside another sees each column through other weights.
            start: (D, K, width) or None.
        """

    def log_prior(self, parameters: Parameters) -> Values:
        """What `fit` adds to the log-likelihood (pseudo-counts); 0 for maximum likelihood, and never normalised."""
        return parameters.new_zeros(parameters.shape[:-1])

    def log_mass(self, parameters: Parameters, x: Values, cell: float) -> Values:
        """log P(x - cell/2 < X <= x + cell/2), finite far out in the tails.

        Unless the law knows better: Gauss-Legendre with 15 points, good to 1e-10 while the scale is at least half
        a cell and the density is smooth.
        """
        nodes, log_weights = (torch.tensor(v, dtype=x.dtype, device=x.device) for v in _legendre())
        log_p = self._log_prob(parameters[..., None, :], x[..., None] + cell / 2 * nodes)
        return (log_p + log_weights).logsumexp(-1) + math.log(cell / 2)

    def cdf(self, parameters: Parameters, x: Values) -> Values:
        """P(X <= x).

        Raises:
            Unavailable: where there is no closed form.
        """
        raise Unavailable("cdf", type(self).__name__, "no closed form")

    # -- between ends ------------------------------------------------------------------------------
    #
    # What `restricted` is made of: p(x | x in S), S a condition. Where P(S) is 0 the numbers are the law's own: they are
    # finite, and weights of 0 hide them. All of it in float64, whatever the parameters are in.

    def log_tails(self, parameters: Parameters, x: Values) -> tuple[Values, Values]:
        """log P(X <= x) and log P(X > x), the smaller one to rounding error, however small.

        Raises:
            Unavailable: where there is no closed form.
        """
        raise Unavailable("probability of an interval", type(self).__name__, "no closed form")

    def log_between(self, parameters: Parameters, a: Values, b: Values) -> Values:
        """log P(a < X <= b), ends infinite or not."""
        (below_a, above_a), (below_b, above_b) = self.log_tails(parameters, a), self.log_tails(parameters, b)
        left, right = log_difference(below_b, below_a), log_difference(above_a, above_b)
        outside = torch.logaddexp(below_a, above_b)
        middle = (outside < math.log(0.5)) & (below_a < 0) & (above_b < 0)
        across = log1mexp(-torch.where(middle, outside, -1.0))
        return torch.where(middle, across, torch.where(below_b < above_a, left, right))

    def pieces(self, condition: Condition) -> Pieces:
        """The intervals (a, b] that a condition leaves; of a continuous x a set of values leaves none."""
        if not isinstance(condition, Between):
            return ()
        a, b = max(condition.lower, self.support[0]), min(condition.upper, self.support[1])
        return ((a, b),) if a < b else ()

    def holds(self, condition: Condition, x: Values) -> Truths:
        """Which values meet a condition; one within rounding error of an end lies on it."""
        ends = (condition.lower, condition.upper) if isinstance(condition, Between) else ()
        largest = max((abs(end) for end in ends if math.isfinite(end)), default=0.0)
        return condition.contains(x, 8 * torch.finfo(x.dtype).eps * largest)

    def log_chance(self, parameters: Parameters, condition: Condition) -> Values:
        """log P(x meets the condition)."""
        return self._log_pieces(parameters, condition).logsumexp(-1).to(parameters)

    def sample_within(self, parameters: Parameters, condition: Condition, *, generator: Generator = None) -> Values:
        """One draw of p(x | condition) per parameter vector, by inverse CDF."""
        log_p, (a, b) = self._log_pieces(parameters, condition), self._ends(parameters, condition)
        if not len(a):
            return self.sample(parameters, generator=generator)
        which = torch.multinomial(_shares(log_p).flatten(0, -2), 1, replacement=True, generator=generator).view(log_p.shape[:-1])
        log_u = torch.rand(which.shape, dtype=a.dtype, device=a.device, generator=generator).neg().log1p()
        x = quantile(lambda s, t: self.log_between(parameters.double(), s, t), a[which], b[which], log_u)
        return torch.where(log_p.logsumexp(-1) > -math.inf, x, self.stand_in).to(parameters)

    def mean_within(self, parameters: Parameters, condition: Condition) -> Values:
        """E[x | condition]."""
        return self._moments_within(parameters, condition)[0].to(parameters)

    def variance_within(self, parameters: Parameters, condition: Condition) -> Values:
        """Var[x | condition]."""
        return self._moments_within(parameters, condition)[1].to(parameters)

    def mode_within(self, parameters: Parameters, condition: Condition) -> Values:
        """A most probable value of p(x | condition): of a law with one peak, the nearest to it in one of the intervals."""
        a, b = self._ends(parameters, condition)
        return self._best(parameters, nearest(self.mode(parameters)[..., None].double(), a, b), condition)

    def _best(self, parameters: Tensor, tried: Tensor, condition: Condition) -> Tensor:
        """The one of some values (*batch, n) with the greatest density."""
        if not tried.shape[-1]:
            return self.mode(parameters)
        log_p = self._log_prob(parameters.double()[..., None, :], tried)
        return tried.gather(-1, log_p.argmax(-1, keepdim=True))[..., 0].to(parameters)

    def _ends(self, parameters: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        ends = torch.tensor(self.pieces(condition), dtype=torch.float64, device=parameters.device).view(-1, 2)
        return ends[:, 0], ends[:, 1]

    def _log_pieces(self, parameters: Tensor, condition: Condition) -> Tensor:
        """log P of each of the condition's intervals, (*batch, pieces)."""
        return self.log_between(parameters.double()[..., None, :], *self._ends(parameters, condition))

    def _moments_within(self, parameters: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Mean and variance over all intervals from those of each."""
        a, b = self._ends(parameters, condition)
        log_p, own = self._log_pieces(parameters, condition), parameters.double()[..., None, :]
        possible = log_p.logsumexp(-1) > -math.inf
        each = moments(lambda s, t: self.log_between(own, s, t), a, b) if len(a) else (log_p, log_p)
        mean, variance = total(_shares(log_p), *each)
        return torch.where(possible, mean, self.mean(parameters)), torch.where(possible, variance, self.variance(parameters))

    @property
    def has_entropy(self) -> bool:
        """Whether `entropy` has a closed form."""
        return type(self).entropy is not Law.entropy

    def entropy(self, parameters: Parameters) -> Values:
        """-E[log p(x)] in nats.

        Raises:
            Unavailable: where there is no closed form.
        """
        raise Unavailable("entropy", type(self).__name__, "no closed form", instead="the mean of -log_prob over samples")


class OfLaw(Law, abc.ABC):
    """A law made of one other, whose values it takes."""

    law: Law

    @property
    def stand_in(self) -> float:
        """Its."""
        return self.law.stand_in

    @property
    def continuous(self) -> bool:  # type: ignore[override]
        """Its."""
        return self.law.continuous

    @property
    def numbers(self) -> bool:  # type: ignore[override]
        """Its."""
        return self.law.numbers

    @property
    def support(self) -> tuple[float, float]:  # type: ignore[override]
        """Its."""
        return self.law.support


def free_to_ask(x: Tensor) -> bool:
    """Whether a value of x may steer the program at no cost: on the CPU, and not under a compiler."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def log_difference(log_p: Tensor, log_q: Tensor) -> Tensor:
    """log(p - q) for p >= q; -inf where they are equal."""
    apart = log_p > log_q
    gap = torch.where(apart, log_p - torch.where(apart, log_q, 0.0), 1.0)
    return torch.where(apart, log_p + log1mexp(gap), -math.inf)


def total(share: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a mixture from those of its parts (*batch, n): the law of total variance."""
    centre = (share * mean).sum(-1)
    return centre, (share * (variance + (mean - centre[..., None]).square())).sum(-1)


def nearest(x: Tensor, a: Tensor, b: Tensor, half: float = 0.0) -> Tensor:
    """The value nearest to x in each interval (a, b), strictly inside; `half` of a cell away from its ends, where x is on a grid."""
    low, high = (a + half, b - half) if half else (torch.nextafter(a, b), torch.nextafter(b, a))
    return torch.minimum(torch.maximum(x, low), high)


def _shares(log_p: Tensor) -> Tensor:
    """P of each interval given that x is in one of them; even where that has probability 0."""
    possible = (log_p > -math.inf).any(-1, keepdim=True)
    return torch.where(possible, log_p, 0.0).softmax(-1)


def positive(raw: Tensor, floor: float = 0.0) -> Tensor:
    """floor + log(1 + e^raw): a positive number from any real one; linear where raw is large, so gradients stay tame."""
    return functional.softplus(raw) + floor


def inverse_positive(value: Tensor, floor: float = 0.0) -> Tensor:
    """The raw number that `positive` maps to the value (to just above the floor, where the value is not above it)."""
    above = (value - floor).clamp_min(torch.finfo(value.dtype).tiny)
    return above + (-torch.expm1(-above)).log()


def weighted_sums(terms: Tensor, weights: Tensor) -> Tensor:
    """sum_n weights[n, k] terms[n, d], a matrix product; weights (N, D, K) differ by column: (D, K)."""
    return terms.mT @ weights if weights.ndim == 2 else torch.einsum("nd,ndk->dk", terms, weights)


@cache
def _legendre() -> tuple[list[float], list[float]]:
    nodes, weights = np.polynomial.legendre.leggauss(15)
    return nodes.tolist(), np.log(weights).tolist()
