"""Laws of a variable with countably many values: levels as codes 0, 1, ..., counts as numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pofx.distributions.base import Law, Parameters, Values, free_to_ask, weighted_sums
from pofx.types import Generator


@dataclass(frozen=True)
class Bernoulli(Law):
    """P(x = 1) = sigmoid(a), P(x = 0) = sigmoid(-a).

    Args:
        pseudo: rows of each value that `fit` adds.
        numbers: whether 0 and 1 are counts (a pixel; the centre is the mean) or codes of two levels.
    """

    pseudo: float = 0.5
    numbers: bool = False
    width = 1
    stand_in = 0.0
    continuous = False

    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        a = parameters[..., 0]
        log_p = x * a - functional.softplus(a)
        gap = (x * x - x).abs()  # 0 at 0 and 1
        if free_to_ask(gap) and gap.sum() == 0:
            return log_p
        return torch.where(gap == 0, log_p, -torch.inf)

    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:  # noqa: D102
        return torch.bernoulli(parameters[..., 0].sigmoid(), generator=generator)

    def mean(self, parameters: Parameters) -> Values:  # noqa: D102
        return parameters[..., 0].sigmoid()

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
        ones, total = weighted_sums(seen * x, weights), weighted_sums(seen, weights)
        least = torch.finfo(x.dtype).tiny
        zeros = (total - ones).clamp_min(0.0)
        return ((ones + self.pseudo).clamp_min(least).log() - (zeros + self.pseudo).clamp_min(least).log())[..., None]


@dataclass(frozen=True)
class Categorical(Law):
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
    continuous = False

    @property
    def width(self) -> int:
        """One logit a value."""
        return self.levels

    @property
    def stand_in(self) -> float:
        """The least value."""
        return float(self.first)

    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        code = x - self.first
        inside = (code >= 0) & (code < self.levels) & (code == code.floor())
        index = torch.where(inside, code, 0.0).long()
        shape = torch.broadcast_shapes(index.shape, parameters.shape[:-1])
        log_p = parameters.log_softmax(-1).expand(*shape, self.levels)
        chosen = log_p.gather(-1, index.expand(shape)[..., None])[..., 0]
        return torch.where(inside, chosen, -torch.inf)

    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:  # noqa: D102
        p = parameters.softmax(-1)
        drawn = torch.multinomial(p.reshape(-1, self.levels), 1, replacement=True, generator=generator)
        return drawn.reshape(p.shape[:-1]).to(p) + self.first

    def mean(self, parameters: Parameters) -> Values:  # noqa: D102
        return parameters.softmax(-1) @ self._values(parameters)

    def mode(self, parameters: Parameters) -> Values:  # noqa: D102
        return parameters.argmax(-1).to(parameters) + self.first

    def cdf(self, parameters: Parameters, x: Values) -> Values:  # noqa: D102
        below = self._values(parameters) <= x[..., None]
        return torch.where(below, parameters.softmax(-1), 0.0).sum(-1)

    def entropy(self, parameters: Parameters) -> Values:
        """-sum_l p_l log p_l."""
        return torch.special.entr(parameters.softmax(-1)).sum(-1)

    def log_prior(self, parameters: Parameters) -> Values:  # noqa: D102
        return self.pseudo * parameters.log_softmax(-1).sum(-1)

    def _fit(self, x: Tensor, seen: Tensor, weights: Tensor, start: Tensor | None) -> Tensor:
        values = self._values(x)
        counts = torch.stack([weighted_sums(seen * (x == v), weights) for v in values], dim=-1) + self.pseudo
        return counts.clamp_min(torch.finfo(x.dtype).tiny).log().log_softmax(-1)

    def _values(self, like: Tensor) -> Tensor:
        return torch.arange(self.first, self.first + self.levels, dtype=like.dtype, device=like.device)
