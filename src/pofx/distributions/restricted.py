"""A law given that its value meets a condition."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.distributions.base import Law, OfLaw, Parameters, Values
from pofx.distributions.discrete import FiniteLaw, RestrictedFinite
from pofx.errors import Unavailable
from pofx.events import Condition, both
from pofx.types import Generator


@dataclass(frozen=True)
class Restricted(OfLaw):
    """p(x | x in S) = p(x) 1[x in S] / P(S), with the law's own parameters.

    Where P(S) is 0 no value has a density, and the other numbers are the law's own: weights of 0 hide them.

    Args:
        law: p, before the restriction.
        condition: S.
    """

    law: Law
    condition: Condition

    @property
    def width(self) -> int:
        """That of the law."""
        return self.law.width

    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        log_p, log_s = self.law._log_prob(parameters, x), self.law.log_chance(parameters, self.condition)
        possible = self.law.holds(self.condition, x) & (log_s > -math.inf)
        return torch.where(possible, log_p - torch.where(log_s > -math.inf, log_s, 0.0), -math.inf)

    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:  # noqa: D102
        return self.law.sample_within(parameters, self.condition, generator=generator)

    def mean(self, parameters: Parameters) -> Values:  # noqa: D102
        return self.law.mean_within(parameters, self.condition)

    def variance(self, parameters: Parameters) -> Values:  # noqa: D102
        return self.law.variance_within(parameters, self.condition)

    def mode(self, parameters: Parameters) -> Values:  # noqa: D102
        return self.law.mode_within(parameters, self.condition)

    def log_chance(self, parameters: Parameters, condition: Condition) -> Values:
        """log P(both) - log P(S)."""
        log_s = self.law.log_chance(parameters, self.condition)
        log_both = self.law.log_chance(parameters, both(self.condition, condition))
        return log_both - torch.where(log_s > -math.inf, log_s, 0.0)

    def _fit(self, x: Tensor, seen: Tensor, weights: Tensor, start: Tensor | None) -> Tensor:
        raise Unavailable("fit", "a restricted law", "it comes from a question", instead="fit the law before the restriction")


def restricted(law: Law, condition: Condition) -> Law:
    """The law given that its value meets a condition; a restriction of a restriction is one of the law, to what meets both.

    >>> from pofx.distributions.continuous import Normal
    >>> from pofx.events import Between
    >>> tail = restricted(Normal(), Between(20.0))
    >>> f"{tail.mean(torch.tensor([0.0, 0.5413248546129181], dtype=torch.float64)):.6f}"
    '20.049753'
    """
    if isinstance(law, Restricted | RestrictedFinite):
        return restricted(law.law, both(law.condition, condition))
    return RestrictedFinite(law, condition) if isinstance(law, FiniteLaw) else Restricted(law, condition)
