"""Discrete latents: V variables of C categories each, z their one-hot vectors side by side, (*batch, V C)."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from pofx.models.latent.laws import Drawn, LatentLaw, Moments, Steered
from pofx.models.latent.priors import Prior
from pofx.types import Generator, Latent, Nats


class Categorical(LatentLaw):
    """Independent categorical variables, steered by their logits.

    Args:
        variables: V.
        categories: C.
        temperature: tau of the slope of a draw; see `OneHots`.
    """

    def __init__(self, variables: int, categories: int, *, temperature: float = 1.0) -> None:
        super().__init__(variables * categories, variables * categories)
        self.categories = categories
        self.temperature = temperature

    def forward(self, a: Tensor) -> "OneHots":
        """a = the logits, variable by variable."""
        return OneHots(a.unflatten(-1, (-1, self.categories)), self.temperature)


@dataclass(frozen=True)
class OneHots(Steered):
    """One-hot vectors, one for each of V independent variables.

    A draw is exact, argmax(log p + g) with g of Gumbel's law, so the value of every bound has its mean. Its slope is that of
    softmax((log p + g) / tau), as if f had been asked there ("straight through"): of f(z) that estimates, for each variable by itself,

        f linear     the slope of E f(softmax((log p + g) / tau)): biased, and right as tau -> 0
        tau -> 0     sum over pairs of categories of the flow of probability between them, times the trapezoid rule for f along
                     the edge: right for f quadratic, off for steeper ones; its variance grows as 1 / tau

    The score function (`score_terms`) has no bias, and noise instead.

    Source: Jang, Gu and Poole, "Categorical reparameterization with Gumbel-softmax", ICLR 2017, arXiv:1611.01144;
    Maddison, Mnih and Teh, "The concrete distribution", ICLR 2017, arXiv:1611.00712. The limits are ours.

    Args:
        logits: (*batch, V, C).
        temperature: tau.
    """

    logits: Tensor
    temperature: float = 1.0

    @cached_property
    def log_p(self) -> Tensor:
        """The log-probabilities, (*batch, V, C)."""
        return self.logits.log_softmax(-1)

    def draw(self, shape: tuple[int, ...], *, generator: Generator = None) -> Drawn:
        """Exact draws, with the slope of relaxed ones."""
        noise = self.log_p.new_empty(*shape, *self.log_p.shape[-2:]).exponential_(generator=generator)
        ahead = self.log_p - noise.log()
        soft = (ahead / self.temperature).softmax(-1)
        hard = functional.one_hot(ahead.argmax(-1), ahead.shape[-1]).to(soft)
        z = (hard + (soft - soft.detach())).flatten(-2)
        return Drawn(z, lambda: self.log_prob(z))

    def log_prob(self, z: Tensor) -> Tensor:
        """sum_v log p of the category of v."""
        return (z * self.log_p.flatten(-2)).sum(-1)

    @property
    def mean(self) -> Tensor:
        """The probabilities."""
        return self.log_p.exp().flatten(-2)

    @property
    def moments(self) -> Moments:
        """p and p (1 - p)."""
        return Moments(self.mean, self.mean * (1 - self.mean))

    @property
    def entropy(self) -> Nats:
        """-sum p log p."""
        return self.cross_entropy(self.moments)

    def cross_entropy(self, moments: Moments) -> Nats:
        """-sum_j mean_j log p_j: log p is linear in a one-hot z."""
        return -self.log_prob(moments.mean)


class CategoricalPrior(Prior):
    """p(z) of independent categorical variables with learned probabilities, which begin equal.

    Args:
        variables: V.
        categories: C.
    """

    def __init__(self, variables: int, categories: int) -> None:
        super().__init__(variables * categories)
        self.logits = nn.Parameter(torch.zeros(variables, categories))

    @property
    def law(self) -> OneHots:
        """The law of z."""
        return OneHots(self.logits)

    def log_prob(self, z: Latent) -> Nats:
        """sum_v log p of the category of v."""
        return self.law.log_prob(z)

    def sample(self, shape: tuple[int, ...], *, like: Tensor, generator: Generator = None) -> Tensor:
        """Draws (*shape, V C)."""
        return self.law.draw(shape, generator=generator).z.to(like)

    def cross_entropy(self, moments: Moments) -> Nats:
        """-sum_j mean_j log p_j."""
        return self.law.cross_entropy(moments)
