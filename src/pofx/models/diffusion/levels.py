"""Which levels of noise a network learns at, and how much each counts.

With eps_hat = (y - D) / s the loss at one level is w(s) |eps - eps_hat|^2 = w(s) |x_0 - D|^2 / s^2, and levels are drawn with density
q(ln s). The bound on log p is the integral of |x_0 - D|^2 / s^2 over ln s, so w = 1 / q climbs it, whatever q is: q then decides the noise
of the gradient alone.
"""

import abc
import math
from enum import StrEnum

import torch
from torch import Tensor, nn

from pofx.models.diffusion.path import Path

_BINS = 32
_MEMORY = 0.98  # of a bin's mean, at each look
_EVEN = 0.1  # of the levels are drawn evenly, whatever was learned


class LevelLaw(abc.ABC):
    """q(ln s) between two ends."""

    @abc.abstractmethod
    def place(self, u: Tensor, ends: Tensor) -> Tensor:
        """The ln s below which there is the share u, for ends (2,) of ln s."""

    @abc.abstractmethod
    def density(self, log_s: Tensor, ends: Tensor) -> Tensor:
        """q(ln s)."""


class Even(LevelLaw):
    """q = 1 / (ln s_max - ln s_min)."""

    def place(self, u: Tensor, ends: Tensor) -> Tensor:  # noqa: D102
        return ends[0] + u * (ends[1] - ends[0])

    def density(self, log_s: Tensor, ends: Tensor) -> Tensor:  # noqa: D102
        return torch.ones_like(log_s) / (ends[1] - ends[0])


class LogNormal(LevelLaw):
    """ln s ~ N(m, v^2), cut off at the ends.

    Source: Karras et al., "Elucidating the design space of diffusion-based generative models", NeurIPS 2022, arXiv:2206.00364: m = -1.2,
    v = 1.2 for a deviation of the data of 0.5, so m = -0.5 for one of 1.

    Args:
        mean: m.
        deviation: v.
    """

    def __init__(self, mean: float = -0.5, deviation: float = 1.2) -> None:
        self.mean, self.deviation = mean, deviation

    def place(self, u: Tensor, ends: Tensor) -> Tensor:  # noqa: D102
        low, high = self._cut(ends)
        return (self.mean + self.deviation * torch.special.ndtri(low + u * (high - low))).clamp(ends[0], ends[1])

    def density(self, log_s: Tensor, ends: Tensor) -> Tensor:  # noqa: D102
        low, high = self._cut(ends)
        z = (log_s - self.mean) / self.deviation
        return (-0.5 * z.square()).exp() / (math.sqrt(2 * math.pi) * self.deviation * (high - low))

    def _cut(self, ends: Tensor) -> tuple[Tensor, Tensor]:
        low, high = torch.special.ndtr((ends - self.mean) / self.deviation)
        return low, high


class AlongPath(LevelLaw):
    """t uniform along a path.

    Args:
        path: from data to noise.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def place(self, u: Tensor, ends: Tensor) -> Tensor:  # noqa: D102
        first, last = self.path.time(ends.exp())
        return self.path.level(first + u * (last - first)).log().clamp(ends[0], ends[1])

    def density(self, log_s: Tensor, ends: Tensor) -> Tensor:
        """dt / d ln s over the length in t."""
        first, last = self.path.time(ends.exp())
        with torch.enable_grad():
            at = log_s.detach().requires_grad_()
            slope = torch.autograd.grad(self.path.time(at.exp()).sum(), at)[0]
        return slope / (last - first)


class Adaptive(nn.Module, LevelLaw):
    """q proportional to the mean integrand at each level, as learning has met it: every draw then says about as much of the bound.

    A histogram over ln s; a tenth of the levels are drawn evenly. It also knows how much of the integrand follows |eps|^2, whose mean is
    known: near the data x_0 - D is hardly more than s eps, and what |eps|^2 is off by chance can be taken off again.
    """

    integrand: Tensor
    chance: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("integrand", torch.ones(_BINS))
        self.register_buffer("chance", torch.zeros(_BINS))  # covariance of the integrand and |eps|^2
        self.register_buffer("spread", torch.ones(_BINS))  # variance of |eps|^2

    @property
    def shares(self) -> Tensor:
        """Of each bin."""
        return (1 - _EVEN) * self.integrand / self.integrand.sum() + _EVEN / _BINS

    def place(self, u: Tensor, ends: Tensor) -> Tensor:  # noqa: D102
        upto = self.shares.cumsum(0)
        bin_of = torch.searchsorted(upto, u.contiguous() * upto[-1]).clamp_max(_BINS - 1)
        within = (u * upto[-1] - (upto[bin_of] - self.shares[bin_of])) / self.shares[bin_of]
        return ends[0] + (bin_of + within.clamp(0, 1)) * (ends[1] - ends[0]) / _BINS

    def density(self, log_s: Tensor, ends: Tensor) -> Tensor:  # noqa: D102
        return self.shares[self._bin(log_s, ends)] * _BINS / (ends[1] - ends[0])

    @torch.no_grad()
    def see(self, log_s: Tensor, integrand: Tensor, excess: Tensor, ends: Tensor) -> None:
        """Hear what |x_0 - D|^2 / s^2 was, and |eps|^2 less its mean, (N,) each."""
        bin_of = self._bin(log_s, ends)
        count = torch.zeros_like(self.integrand).index_add(0, bin_of, torch.ones_like(self.integrand[bin_of]))
        about = integrand - self.integrand[bin_of]
        for kept, now in ((self.integrand, integrand), (self.chance, about * excess), (self.spread, excess.square())):
            mean = torch.zeros_like(kept).index_add(0, bin_of, now.to(kept)) / count.clamp_min(1)
            kept.lerp_(torch.where(count > 0, mean, kept), 1 - _MEMORY)
        self.integrand.clamp_min_(1e-6)

    def slope(self, log_s: Tensor, ends: Tensor) -> Tensor:
        """How much the integrand rises with |eps|^2, (N,): the control variate's coefficient."""
        return (self.chance / self.spread.clamp_min(1e-6))[self._bin(log_s, ends)]

    def _bin(self, log_s: Tensor, ends: Tensor) -> Tensor:
        return ((log_s - ends[0]) / (ends[1] - ends[0]) * _BINS).long().clamp(0, _BINS - 1)


class Weight(StrEnum):
    """w(s) on |eps - eps_hat|^2.

    elbo is 1 / q(ln s): the bound itself. simple is 1, as DDPM learns. min-snr is min(1, 5 s^2): min(SNR, 5) on |x_0 - D|^2. edm is
    1 + s^2, a unit of loss at each level for a network that predicts EDM's target.

    Source: Ho, Jain and Abbeel, "Denoising diffusion probabilistic models", NeurIPS 2020, arXiv:2006.11239; Hang et al., "Efficient
    diffusion training via min-SNR weighting strategy", ICCV 2023, arXiv:2303.09556; Karras et al., NeurIPS 2022, arXiv:2206.00364.
    """

    ELBO = "elbo"
    SIMPLE = "simple"
    MIN_SNR = "min-snr"
    EDM = "edm"

    def at(self, log_s: Tensor, density: Tensor) -> Tensor:
        """w, (N,), where levels have the density q."""
        match self:
            case Weight.ELBO:
                return 1 / density
            case Weight.SIMPLE:
                return torch.ones_like(log_s)
            case Weight.MIN_SNR:
                return (5 * (2 * log_s).exp()).clamp_max(1.0)
            case Weight.EDM:
                return 1 + (2 * log_s).exp()


class Steps:
    """The levels of an ancestral sampler of T steps, evenly apart in ln s, and what each counts in its bound.

    A step from s down to t costs (1 / t^2 - 1 / s^2) |x_0 - D(y, s)|^2 / 2 in the mean, s^2 (1 / t^2 - 1 / s^2) / 2 times what it is in
    noise; as T grows, that is d ln s.

    Args:
        count: T.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def at(self, u: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """ln s of the step in which the share u of all steps lies, and T times what it counts."""
        length = (ends[1] - ends[0]) / self.count
        step = (u * self.count).floor().clamp_max(self.count - 1)
        return ends[0] + (step + 1) * length, self.count * 0.5 * torch.expm1(2 * length).expand_as(step)
