"""Laws of one variable, as functions of unconstrained parameters.

A `Law` is a parametric family p(x | parameters) of one variable. Its parameters come in the last
axis of a tensor of any real numbers, so one law serves as decoder head (the parameters come from a
network), mixture component and circuit leaf (they come from weighted maximum likelihood) and baseline.
NaN = unobserved = factor 1: log_prob is 0 there, and `fit` gives it no weight.

A law is a frozen dataclass: what it holds (bounds, levels, resolution, floors) is data, not learned.
Shapes: x (*batch), parameters (*batch, width); they broadcast against each other.
"""

import abc
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.errors import Unavailable
from pofx.types import Generator

Parameters = Float[Tensor, "*batch P"]
Values = Float[Tensor, "*batch"]
Column = Float[Tensor, " N"]
Weights = Float[Tensor, "N K"]


class Law(abc.ABC):
    """p(x | parameters) of one variable; see the module's docstring for the conventions."""

    width: int | Any  # how many parameters; a field or a property of the subclass
    continuous: ClassVar[bool] = True

    def log_prob(self, parameters: Parameters, x: Values) -> Values:
        """log p(x), 0 where x is NaN, -inf outside the support."""
        seen = ~x.isnan()
        # An in-support stand-in first, then select: NaN or inf in the branch not taken would poison gradients.
        return torch.where(seen, self._log_prob(parameters, torch.where(seen, x, self.stand_in)), 0.0)

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
    def mode(self, parameters: Parameters) -> Values:
        """A most probable value."""

    @abc.abstractmethod
    def fit(self, x: Column, weights: Weights) -> Parameters:
        """Weighted maximum likelihood for K weightings at once: (K, width). NaN rows count nothing."""

    def cdf(self, parameters: Parameters, x: Values) -> Values:
        """P(X <= x).

        Raises:
            Unavailable: where there is no closed form.
        """
        raise Unavailable("cdf", type(self).__name__, "no closed form")

    def entropy(self, parameters: Parameters) -> Values:
        """-E[log p(x)] in nats.

        Raises:
            Unavailable: where there is no closed form.
        """
        raise Unavailable("entropy", type(self).__name__, "no closed form", instead="the mean of -log_prob over samples")
