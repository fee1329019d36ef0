"""Laws of a variable with countably many values: levels as codes 0, 1, ..., counts as numbers."""

import abc
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pofx.distributions.base import (
    NARROWEST,
    Law,
    Parameters,
    Pieces,
    Values,
    free_to_ask,
    inverse_positive,
    nearest,
    positive,
    weighted_sums,
)
from pofx.distributions.continuous import centre_and_spread, weighted_moments
from pofx.distributions.newton import NewtonFit
from pofx.distributions.special import log1mexp, log_beta_tails, log_gamma_tails, log_rising
from pofx.errors import OptionError, Unavailable
from pofx.events import Among, Between, Condition
from pofx.types import Generator

_ELEMENTS_AT_ONCE = 2**22  # of the largest temporary of a fit
_LAST = 1e15  # a count beyond which there is no other in the type of numbers


class FiniteLaw(Law):
    """A law on first, first + 1, ..., first + levels - 1, whose log-probabilities fit in one tensor."""

    first: int
    levels: int
    continuous = False

    @abc.abstractmethod
    def log_masses(self, parameters: Parameters) -> Tensor:
        """log P of every value: (*batch, levels)."""

    @property
    def stand_in(self) -> float:
        """The least value."""
        return float(self.first)

    @property
    def support(self) -> tuple[float, float]:  # type: ignore[override]
        """The least and the greatest value."""
        return float(self.first), float(self.first + self.levels - 1)

    def values(self, like: Tensor) -> Tensor:
        """Every value, in order, in the type of a tensor."""
        return torch.arange(self.first, self.first + self.levels, dtype=like.dtype, device=like.device)

    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        code = x - self.first
        inside = (code >= 0) & (code < self.levels) & (code == code.floor())
        index = torch.where(inside, code, 0.0).long()
        # NumPy's, for torch's own would import its symbolic engine, seconds long.
        shape = np.broadcast_shapes(index.shape, parameters.shape[:-1])
        masses = self.log_masses(parameters).expand(*shape, self.levels)
        log_p = masses.gather(-1, index.expand(shape)[..., None])[..., 0]
        if free_to_ask(inside) and inside.all():
            return log_p
        return torch.where(inside, log_p, -torch.inf)

    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:  # noqa: D102
        p = self.log_masses(parameters).exp()
        drawn = torch.multinomial(p.reshape(-1, self.levels), 1, replacement=True, generator=generator)
        return drawn.reshape(p.shape[:-1]).to(p) + self.first

    def mean(self, parameters: Parameters) -> Values:  # noqa: D102
        return self.log_masses(parameters).exp() @ self.values(parameters)

    def variance(self, parameters: Parameters) -> Values:  # noqa: D102
        off = self.values(parameters) - self.mean(parameters)[..., None]
        return (self.log_masses(parameters).exp() * off.square()).sum(-1)

    def mode(self, parameters: Parameters) -> Values:  # noqa: D102
        return self.log_masses(parameters).argmax(-1).to(parameters) + self.first

    def cdf(self, parameters: Parameters, x: Values) -> Values:  # noqa: D102
        below = self.values(parameters) <= x[..., None]
        return torch.where(below, self.log_masses(parameters).exp(), 0.0).sum(-1)

    def entropy(self, parameters: Parameters) -> Values:
        """-sum_l p_l log p_l."""
        return torch.special.entr(self.log_masses(parameters).exp()).sum(-1)

    def log_chance(self, parameters: Parameters, condition: Condition) -> Values:  # noqa: D102
        return torch.where(self._met(parameters, condition), self.log_masses(parameters), -math.inf).logsumexp(-1)

    def sample_within(self, parameters: Parameters, condition: Condition, *, generator: Generator = None) -> Values:  # noqa: D102
        return RestrictedFinite(self, condition).sample(parameters, generator=generator)

    def mean_within(self, parameters: Parameters, condition: Condition) -> Values:  # noqa: D102
        return RestrictedFinite(self, condition).mean(parameters)

    def variance_within(self, parameters: Parameters, condition: Condition) -> Values:  # noqa: D102
        return RestrictedFinite(self, condition).variance(parameters)

    def mode_within(self, parameters: Parameters, condition: Condition) -> Values:  # noqa: D102
        return RestrictedFinite(self, condition).mode(parameters)

    def _met(self, parameters: Tensor, condition: Condition) -> Tensor:
        """Which values meet the condition, (levels,)."""
        return condition.contains(self.values(parameters))

    def counts(self, x: Tensor, seen: Tensor, weights: Tensor) -> Tensor:
        """The weight of every value in every column: (D, K, levels)."""
        columns, k = x.shape[1], weights.shape[-1]
        cell = (x - self.first).long() + self.levels * torch.arange(columns, device=x.device)
        total = weights.new_zeros(columns * self.levels, k)
        size = max(1, _ELEMENTS_AT_ONCE // (columns * k))
        for at, own, w in zip(cell.split(size), seen.split(size), weights.split(size), strict=True):
            each = own[..., None] * (w[:, None] if w.ndim == 2 else w)
            total.index_add_(0, at.flatten(), each.flatten(0, 1))
        return total.unflatten(0, (columns, self.levels)).mT


@dataclass(frozen=True)
class RestrictedFinite(FiniteLaw):
    """P(x | x in S) = P(x) / P(S) on S, with the law's own parameters; the law itself where P(S) is 0.

    Args:
        law: before the restriction.
        condition: S.
    """

    law: FiniteLaw
    condition: Condition

    @property
    def first(self) -> int:  # type: ignore[override]
        """That of the law."""
        return self.law.first

    @property
    def levels(self) -> int:  # type: ignore[override]
        """That of the law."""
        return self.law.levels

    @property
    def width(self) -> int:
        """That of the law."""
        return self.law.width

    @property
    def numbers(self) -> bool:  # type: ignore[override]
        """That of the law."""
        return self.law.numbers

    def log_masses(self, parameters: Parameters) -> Tensor:  # noqa: D102
        log_p, met = self.law.log_masses(parameters), self._met(parameters, self.condition)
        kept = torch.where(met, log_p, -math.inf)
        possible = (kept > -math.inf).any(-1, keepdim=True)
        return torch.where(possible, torch.where(possible, kept, log_p).log_softmax(-1), log_p)

    def _fit(self, x: Tensor, seen: Tensor, weights: Tensor, start: Tensor | None) -> Tensor:
        raise Unavailable("fit", "a restricted law", "it comes from a question", instead="fit the law before the restriction")


@dataclass(frozen=True)
class Bernoulli(FiniteLaw):
    """P(x = 1) = sigmoid(a), P(x = 0) = sigmoid(-a).

    Args:
        pseudo: rows of each value that `fit` adds.
        numbers: whether 0 and 1 are counts (a pixel; the centre is the mean) or codes of two levels (the mode).
    """

    pseudo: float = 0.5
    numbers: bool = False
    width = 1
    first, levels = 0, 2

    def log_prob_inside(self, parameters: Parameters, x: Values) -> Values:  # noqa: D102
        a = parameters.squeeze(-1)  # unlike an index, its gradient is a view
        return (x * a).sub_(functional.softplus(a))

    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        log_p = self.log_prob_inside(parameters, x)
        off = torch.addcmul(x, x, x, value=-1).flatten()  # x - x^2: 0 at 0 and 1
        if free_to_ask(off) and torch.dot(off, off).item() == 0:
            return log_p
        return torch.where((x == 0) | (x == 1), log_p, -torch.inf)

    def log_masses(self, parameters: Parameters) -> Tensor:  # noqa: D102
        a = parameters[..., 0]
        return functional.logsigmoid(torch.stack((-a, a), dim=-1))

    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:  # noqa: D102
        return torch.bernoulli(parameters[..., 0].sigmoid(), generator=generator)

    def mean(self, parameters: Parameters) -> Values:  # noqa: D102
        return parameters[..., 0].sigmoid()

    def variance(self, parameters: Parameters) -> Values:  # noqa: D102
        p = parameters[..., 0].sigmoid()
        return p * (1 - p)

    def mode(self, parameters: Parameters) -> Values:  # noqa: D102
        return (parameters[..., 0] > 0).to(parameters)

    def cdf(self, parameters: Parameters, x: Values) -> Values:  # noqa: D102
        return torch.where(x >= 1, 1.0, torch.where(x >= 0, (-parameters[..., 0]).sigmoid(), 0.0))

    def entropy(self, parameters: Parameters) -> Values:
        """Softplus(a) - a sigmoid(a)."""
        a = parameters[..., 0]
        return functional.softplus(a) - a * a.sigmoid()

    def log_prior(self, parameters: Parameters) -> Values:  # noqa: D102
        a = parameters[..., 0]
        return -self.pseudo * (functional.softplus(a) + functional.softplus(-a))

    def _fit(self, x: Tensor, seen: Tensor, weights: Tensor, start: Tensor | None) -> Tensor:
        ones, zeros = weighted_sums(seen * x, weights), weighted_sums(seen * (1 - x), weights)
        least = torch.finfo(x.dtype).tiny
        return ((ones + self.pseudo).clamp_min(least).log() - (zeros + self.pseudo).clamp_min(least).log())[..., None]


@dataclass(frozen=True)
class Categorical(FiniteLaw):
    """P(x = first + l) = softmax(a)_l, l = 0 ... levels - 1.

    Args:
        levels: how many values.
        pseudo: rows of each value that `fit` adds.
        first: the least value.
        numbers: whether the values are counts (the centre is the mean) or codes of levels (the mode).
    """

    levels: int
    pseudo: float = 0.5
    first: int = 0
    numbers: bool = False

    @property
    def width(self) -> int:
        """One logit a value."""
        return self.levels

    def log_masses(self, parameters: Parameters) -> Tensor:  # noqa: D102
        return parameters.log_softmax(-1)

    def log_prior(self, parameters: Parameters) -> Values:  # noqa: D102
        return self.pseudo * parameters.log_softmax(-1).sum(-1)

    def _fit(self, x: Tensor, seen: Tensor, weights: Tensor, start: Tensor | None) -> Tensor:
        counts = self.counts(x, seen, weights) + self.pseudo
        return counts.clamp_min(torch.finfo(x.dtype).tiny).log().log_softmax(-1)


@dataclass(frozen=True)
class Ordinal(FiniteLaw):
    """P(x <= l) = sigmoid(c_l) with cutpoints c_0 < c_1 < ...: a cumulative logit.

    Parameters (levels - 1): c_0, then one raw number a gap, c_l = c_(l-1) + softplus(raw_l). Every law of the
    levels can be had; what the form adds is that moving c_0 moves x along its order.

    Source: McCullagh, "Regression models for ordinal data", JRSS B 42(2), 1980.

    Args:
        levels: how many, at least 2.
        pseudo: rows of each value that `fit` adds; positive, so that the cutpoints are finite.

    Raises:
        OptionError: fewer than 2 levels, or pseudo not positive.
    """

    levels: int
    pseudo: float = 0.5
    numbers = False
    first = 0

    def __post_init__(self) -> None:
        if self.levels < 2 or not self.pseudo > 0:
            raise OptionError(f"an ordinal law needs 2 or more levels and pseudo > 0, got {self.levels} and {self.pseudo}")

    @property
    def width(self) -> int:
        """One cutpoint fewer than levels."""
        return self.levels - 1

    def log_masses(self, parameters: Parameters) -> Tensor:
        """log[sigmoid(c_l) - sigmoid(c_(l-1))] = log sigmoid(c_l) + log sigmoid(-c_(l-1)) + log(1 - e^-(gap))."""
        gaps = positive(parameters[..., 1:], torch.finfo(parameters.dtype).eps)
        c = torch.cat((parameters[..., :1], gaps), dim=-1).cumsum(-1)
        below, above = functional.logsigmoid(c), functional.logsigmoid(-c)
        inner = below[..., 1:] + above[..., :-1] + log1mexp(gaps)
        return torch.cat((below[..., :1], inner, above[..., -1:]), dim=-1)

    def log_prior(self, parameters: Parameters) -> Values:  # noqa: D102
        return self.pseudo * self.log_masses(parameters).sum(-1)

    def _fit(self, x: Tensor, seen: Tensor, weights: Tensor, start: Tensor | None) -> Tensor:
        counts = self.counts(x, seen, weights) + self.pseudo
        up, down = counts.cumsum(-1), counts.flip(-1).cumsum(-1).flip(-1)
        c = up[..., :-1].log() - down[..., 1:].log()
        return torch.cat((c[..., :1], inverse_positive(c.diff(dim=-1), torch.finfo(c.dtype).eps)), dim=-1)


@dataclass(frozen=True)
class DiscretisedLogistic(NewtonFit, FiniteLaw):
    """A logistic of mean m and scale s, rounded to the integers lower ... upper; the two outer cells reach to infinity.

    P(x) = sigmoid((x + 1/2 - m) / s) - sigmoid((x - 1/2 - m) / s), all of it in log space, so no mass is lost to
    rounding and they sum to 1. Parameters (a, raw) in half ranges: m = middle + half * a, s = floor + half * softplus(raw),
    so that a network's outputs of order 1 cover the range.

    Source: Salimans, Karpathy, Chen and Kingma, "PixelCNN++", ICLR 2017, arXiv:1701.05517.

    Args:
        lower: the first integer.
        upper: the last.
        floor: the least s, in steps.
    """

    lower: int
    upper: int
    floor: float = 0.05
    width = 2

    @property
    def first(self) -> int:  # type: ignore[override]
        """The first integer."""
        return self.lower

    @property
    def levels(self) -> int:  # type: ignore[override]
        """How many integers."""
        return self.upper - self.lower + 1

    @property
    def _half(self) -> float:
        return max(self.upper - self.lower, 1) / 2

    def _loc_scale(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        a, raw = parameters.unbind(-1)
        return (self.lower + self.upper) / 2 + self._half * a, self.floor + self._half * positive(raw)

    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        m, s = self._loc_scale(parameters)
        inside = (x >= self.lower) & (x <= self.upper) & (x == x.floor())
        first, last = x == self.lower, x == self.upper
        above = torch.where(first, 0.0, functional.logsigmoid((m - x + 0.5) / s))  # log P(X > x - 1/2)
        below = torch.where(last, 0.0, functional.logsigmoid((x + 0.5 - m) / s))
        cell = torch.where(first | last, 0.0, log1mexp(1 / s))
        return torch.where(inside, above + below + cell, -torch.inf)

    def log_masses(self, parameters: Parameters) -> Tensor:  # noqa: D102
        return self._log_prob(parameters[..., None, :], self.values(parameters))

    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:  # noqa: D102
        m, s = self._loc_scale(parameters)
        u = torch.rand(m.shape, generator=generator, dtype=m.dtype, device=m.device)
        z = torch.logit(u, eps=torch.finfo(u.dtype).eps)
        return (m + s * z).round().clamp(self.lower, self.upper)

    def mode(self, parameters: Parameters) -> Values:
        """The cell of m, or an end, whichever is heaviest."""
        m, _ = self._loc_scale(parameters)
        inner = m.round().clamp(self.lower, self.upper)
        tried = torch.stack((inner, torch.full_like(m, self.lower), torch.full_like(m, self.upper)), dim=-1)
        return tried.gather(-1, self._log_prob(parameters[..., None, :], tried).argmax(-1, keepdim=True))[..., 0]

    def cdf(self, parameters: Parameters, x: Values) -> Values:  # noqa: D102
        m, s = self._loc_scale(parameters)
        inner = ((x.floor() + 0.5 - m) / s).sigmoid()
        return torch.where(x < self.lower, 0.0, torch.where(x >= self.upper, 1.0, inner))

    def _start(self, x: Tensor, seen: Tensor, weights: Tensor) -> Tensor:
        m, s = weighted_moments(x, seen, weights)
        a = (m - (self.lower + self.upper) / 2) / self._half
        scale = s * math.sqrt(3) / math.pi  # a logistic's deviation is pi / sqrt(3) of its scale
        return torch.stack((a, inverse_positive((scale - self.floor) / self._half).clamp_min(-8.0)), dim=-1)

    def _bounds(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The mean may lie outside the range, but not so far that nothing tells where; the scale is within the same bounds."""
        least, greatest = super()._bounds(x, seen)
        least[..., 0], greatest[..., 0], least[..., 1], greatest[..., 1] = -20.0, 20.0, -12.0, 20.0
        return least, greatest


class EndlessCount(Law):
    """A law of the counts lower, lower + 1, ... without end."""

    lower: int
    continuous = False

    @property
    def stand_in(self) -> float:
        """The first integer."""
        return float(self.lower)

    @property
    def support(self) -> tuple[float, float]:  # type: ignore[override]
        """The first integer and infinity."""
        return float(self.lower), math.inf

    def pieces(self, condition: Condition) -> Pieces:
        """Each run of integers as (first - 1/2, last + 1/2]."""
        if not isinstance(condition, Between):
            values = condition.values if isinstance(condition, Among) else (condition.value,)
            return tuple((v - 0.5, v + 0.5) for v in values if v >= self.lower and v == round(v))
        a, b = condition.lower, condition.upper
        first = a if math.isinf(a) else math.floor(a) + 1 if not condition.closed[0] else math.ceil(a)
        last = b if math.isinf(b) else math.ceil(b) - 1 if not condition.closed[1] else math.floor(b)
        first = max(first, self.lower)
        return ((first - 0.5, last + 0.5),) if first <= last else ()

    def log_tails(self, parameters: Parameters, x: Values) -> tuple[Values, Values]:
        """At the integer below x."""
        k = (x - self.lower).floor()
        below, above = self._log_tails(parameters, k.clamp_min(0.0))
        end = k.isposinf()
        below, above = torch.where(end, 0.0, below), torch.where(end, -math.inf, above)
        return torch.where(k < 0, -math.inf, below), torch.where(k < 0, 0.0, above)

    def mode_within(self, parameters: Parameters, condition: Condition) -> Values:  # noqa: D102
        a, b = self._ends(parameters, condition)
        return self._best(parameters, nearest(self.mode(parameters)[..., None].double(), a, b, 0.5), condition)

    @abc.abstractmethod
    def _log_tails(self, parameters: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """log P(X - lower <= k) and log P(X - lower > k), k = 0, 1, ..."""

    @abc.abstractmethod
    def _raised(self, parameters: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """E[k (k - 1) ... ] of that order, and the parameters of the law with weights k (k - 1) ... P(k), moved down by it."""

    def _moments_within(self, parameters: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """From E[k 1(a < k <= b)] = E[k] P_1(a - 1 < k <= b - 1), and so for k (k - 1): weighed by k, the law is one of its kind."""
        a, b = self._ends(parameters, condition)
        log_p = self.log_between(parameters.double()[..., None, :], a, b).logsumexp(-1)
        possible, factorial = log_p > -math.inf, []
        for order in (1, 2):
            moment, raised = self._raised(parameters.double(), order)
            log_q = self.log_between(raised[..., None, :], a - order, b - order).logsumexp(-1)
            factorial.append(moment * (log_q - torch.where(possible, log_p, 0.0)).exp())
        k, pairs = factorial
        mean, variance = self.lower + k, (pairs + k - k.square()).clamp_min(0.0)
        return torch.where(possible, mean, self.mean(parameters)), torch.where(possible, variance, self.variance(parameters))


@dataclass(frozen=True)
class Poisson(EndlessCount):
    """P(x) = e^-r r^k / k! with k = x - lower; parameter raw, r = softplus(raw).

    Args:
        lower: the first integer.
    """

    lower: int = 0
    width = 1

    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        k, inside = _count(x, self.lower)
        rate = self._rate(parameters)
        return torch.where(inside, k * rate.log() - rate - torch.lgamma(k + 1), -torch.inf)

    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:  # noqa: D102
        return self.lower + torch.poisson(self._rate(parameters), generator=generator)

    def mean(self, parameters: Parameters) -> Values:  # noqa: D102
        return self.lower + self._rate(parameters)

    def variance(self, parameters: Parameters) -> Values:  # noqa: D102
        return self._rate(parameters)

    def mode(self, parameters: Parameters) -> Values:  # noqa: D102
        return self.lower + self._rate(parameters).floor()

    def cdf(self, parameters: Parameters, x: Values) -> Values:
        """The regularised upper incomplete gamma function Q(k + 1, r)."""
        k = (x - self.lower).floor()
        q = torch.special.gammaincc(k.clamp_min(0.0) + 1, self._rate(parameters))
        return torch.where(k >= 0, q, 0.0)

    def _fit(self, x: Tensor, seen: Tensor, weights: Tensor, start: Tensor | None) -> Tensor:
        m, _ = weighted_moments(x - self.lower, seen, weights)
        return inverse_positive(m.clamp_min(NARROWEST / seen.sum(0).clamp_min(1.0)[:, None]))[..., None]

    def _log_tails(self, parameters: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """The regularised incomplete gamma functions."""
        above, below = log_gamma_tails(k.clamp_max(_LAST) + 1, self._rate(parameters))
        return below, above

    def _raised(self, parameters: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """r^order, and the same Poisson."""
        return self._rate(parameters) ** order, parameters

    def _rate(self, parameters: Tensor) -> Tensor:
        return positive(parameters[..., 0], torch.finfo(parameters.dtype).tiny)


@dataclass(frozen=True)
class NegativeBinomial(EndlessCount, NewtonFit):
    """A Poisson whose rate is Gamma-distributed: mean mu, variance mu + mu^2 / r.

    P(x) = Gamma(k + r) / (k! Gamma(r)) (r / (r + mu))^r (mu / (r + mu))^k with k = x - lower;
    parameters (raw, raw), mu and r their softplus.

    Args:
        lower: the first integer.
    """

    lower: int = 0
    width = 2

    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        k, inside = _count(x, self.lower)
        mu, r = self._mean_size(parameters)
        never = -r * torch.log1p(mu / r)  # log P(k = 0)
        log_p = log_rising(r, k) - torch.lgamma(k + 1) + never + k * (mu.log() - (r + mu).log())
        return torch.where(inside, log_p, -torch.inf)

    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:  # noqa: D102
        mu, r = self._mean_size(parameters)
        rate = torch._standard_gamma(r, generator=generator) * (mu / r)
        return self.lower + torch.poisson(rate, generator=generator)

    def mean(self, parameters: Parameters) -> Values:  # noqa: D102
        return self.lower + self._mean_size(parameters)[0]

    def variance(self, parameters: Parameters) -> Values:
        """Mu + mu^2 / r."""
        mu, r = self._mean_size(parameters)
        return mu + mu.square() / r

    def mode(self, parameters: Parameters) -> Values:
        """floor(mu (r - 1) / r) for r > 1, else the first integer."""
        mu, r = self._mean_size(parameters)
        return self.lower + (mu * (r - 1) / r).floor().clamp_min(0.0)

    def _log_tails(self, parameters: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """I_q(r, k + 1) with q = r / (r + mu), the regularised incomplete beta function."""
        mu, r = self._mean_size(parameters)
        return log_beta_tails(r, k.clamp_max(_LAST) + 1, r / (r + mu), mu / (r + mu))

    def _raised(self, parameters: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """r (r + 1) ... (mu / r)^order, and the law of the same mu / r with r + order."""
        mu, r = self._mean_size(parameters)
        moment, size = (mu / r) ** order * torch.stack([r + i for i in range(order)]).prod(0), r + order
        return moment, inverse_positive(torch.stack((mu / r * size, size), dim=-1), torch.finfo(parameters.dtype).eps)

    def _mean_size(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        mu, r = positive(parameters, torch.finfo(parameters.dtype).eps).unbind(-1)
        return mu, r

    def _start(self, x: Tensor, seen: Tensor, weights: Tensor) -> Tensor:
        m, s = weighted_moments(x - self.lower, seen, weights)
        m = m.clamp_min(1e-3)
        r = m.square() / (s.square() - m).maximum(m / 100)
        return inverse_positive(torch.stack((m, r), dim=-1))

    def _bounds(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """R up to 10^4 means, where the variance is the Poisson's but for one part in 10^4."""
        least, greatest = super()._bounds(x, seen)
        m, _ = centre_and_spread(x - self.lower, seen)
        least[:] = -12.0
        greatest[:, 0, 1] = 1e4 * m.clamp_min(1e-2)
        return least, greatest


def _count(x: Tensor, lower: int) -> tuple[Tensor, Tensor]:
    """How far above the first integer (0 where x is no count), and whether x is a count."""
    inside = (x >= lower) & (x == x.floor())
    return torch.where(inside, x - lower, 0.0), inside
