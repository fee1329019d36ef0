"""Laws of a latent z that a network steers: q(z | x) for a row x, p(z_l | z_>l) for the levels above."""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pofx.errors import OptionError
from pofx.types import Generator, Latent, Nats

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Drawn(NamedTuple):
    """A draw, and what gives its log-density: where z was drawn, that is often cheaper than at any z.

    Args:
        z: (*shape, L).
        log_prob: gives log q(z), (*shape).
    """

    z: Tensor
    log_prob: Callable[[], Tensor]


class Moments(NamedTuple):
    """Mean and variance of each unit of z, (*batch, L) each."""

    mean: Tensor
    variance: Tensor


@runtime_checkable
class Reference(Protocol):
    """What a law of z is compared with: a prior, or another law."""

    def log_prob(self, z: Latent) -> Nats:
        """log p(z)."""

    def cross_entropy(self, moments: Moments) -> Nats | None:
        """-E[log p(z)] over any law of those moments, where they are all that it depends on; else None."""


class Steered(abc.ABC):
    """A law of z on R^L at given numbers; those of a batch (*batch) are as many laws."""

    @abc.abstractmethod
    def draw(self, shape: tuple[int, ...], *, generator: Generator = None) -> Drawn:
        """z of a shape that the batch broadcasts to, differentiable in the numbers."""

    @abc.abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z), z and the batch broadcast."""

    @property
    @abc.abstractmethod
    def mean(self) -> Tensor:
        """E[z], (*batch, L); where it has no closed form, the centre of the law."""

    @property
    def moments(self) -> Moments | None:
        """Where they have a closed form."""
        return None

    @property
    def entropy(self) -> Nats | None:
        """-E[log q(z)] where it has a closed form."""
        return None

    def cross_entropy(self, moments: Moments) -> Nats | None:
        """-E[log of this law at z] over any law of those moments, where they are all that it depends on; else None."""
        return None

    def times(self, other: "Steered") -> "Steered":
        """The law proportional to the product of both densities.

        Raises:
            OptionError: it is of another make.
        """
        raise OptionError(f"a ladder multiplies normal laws with independent units: posterior='diagonal', not {type(self).__name__}")

    def kl(self, p: Reference) -> Nats | None:
        """KL(q || p) = cross-entropy - entropy where both have a closed form; else the bound uses the draws."""
        moments, entropy = self.moments, self.entropy
        if moments is None or entropy is None or (cross := p.cross_entropy(moments)) is None:
            return None
        return cross - entropy


class LatentLaw(nn.Module, abc.ABC):
    """From the numbers that a network gives to a law of z.

    Args:
        latents: L.
        outputs: how many numbers steer it.
        late: how many of the last of them are 0 until learned.
    """

    def __init__(self, latents: int, outputs: int, *, late: int = 0) -> None:
        super().__init__()
        self.latents = latents
        self.outputs = outputs
        self.late = late

    @abc.abstractmethod
    def forward(self, a: Tensor) -> Steered:
        """The law at a (*batch, outputs)."""

    def __call__(self, a: Tensor) -> Steered:
        """The same."""
        law: Steered = super().__call__(a)
        return law


class Diagonal(LatentLaw):
    """N(m, diag s^2), steered by m and log s.

    Args:
        latents: L.
    """

    def __init__(self, latents: int) -> None:
        super().__init__(latents, 2 * latents)

    def forward(self, a: Tensor) -> "DiagonalNormal":
        """a = (m, log s)."""
        m, log_s = a.chunk(2, dim=-1)
        return DiagonalNormal(m, log_s)


@dataclass(frozen=True)
class DiagonalNormal(Steered):
    """N(m, diag s^2).

    Args:
        m: (*batch, L).
        log_s: (*batch, L).
    """

    m: Tensor
    log_s: Tensor

    @cached_property
    def s(self) -> Tensor:
        """The deviations."""
        return self.log_s.exp()

    def draw(self, shape: tuple[int, ...], *, generator: Generator = None) -> Drawn:
        """z = m + s eps with eps ~ N(0, I)."""
        eps = torch.randn(*shape, self.m.shape[-1], generator=generator, dtype=self.m.dtype, device=self.m.device)
        return Drawn(torch.addcmul(self.m, self.s, eps), lambda: self._log_prob(eps))

    def log_prob(self, z: Tensor) -> Tensor:
        """-sum_l ((z_l - m_l) / s_l)^2 / 2 + log s_l + log(2 pi) / 2."""
        return self._log_prob((z - self.m) / self.s)

    def _log_prob(self, eps: Tensor) -> Tensor:
        return -(0.5 * eps.square() + HALF_LOG_2PI).sum(-1) - self.log_s.sum(-1)

    @property
    def mean(self) -> Tensor:
        """m."""
        return self.m

    @property
    def moments(self) -> Moments:
        """m and s^2."""
        return Moments(self.m, self.s.square())

    @property
    def entropy(self) -> Nats:
        """sum_l log s_l + (1 + log 2 pi) / 2."""
        return self.log_s.sum(-1) + self.m.shape[-1] * (0.5 + HALF_LOG_2PI)

    def cross_entropy(self, moments: Moments) -> Nats:
        """sum_l ((mean_l - m_l)^2 + variance_l) / (2 s_l^2) + log s_l + log(2 pi) / 2."""
        away = (moments.mean - self.m).square() + moments.variance
        return (0.5 * away / self.s.square() + self.log_s + HALF_LOG_2PI).sum(-1)

    def times(self, other: Steered) -> Steered:
        """Precisions add, means are weighed by them."""
        if not isinstance(other, DiagonalNormal):
            return super().times(other)
        a, b = (-2 * self.log_s).exp(), (-2 * other.log_s).exp()
        return DiagonalNormal((a * self.m + b * other.m) / (a + b), -0.5 * (a + b).log())
