"""Which levels of noise a network learns at, and how much each counts.

With eps_hat = (y - D) / s the loss at one level is w(s) |eps - eps_hat|^2 = w(s) |x_0 - D|^2 / s^2, and levels are drawn with density
q(ln s). The bound on log p is the integral of |x_0 - D|^2 / s^2 over ln s, so w = 1 / q climbs it, whatever q is: q then decides the noise
of the gradient alone.
"""

import abc
import math
from dataclasses import dataclass
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

    def draw(self, u: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Both: ln s at the share u, and q there."""
        log_s = self.place(u, ends)
        return log_s, self.density(log_s, ends)


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


@dataclass(frozen=True)
class Histogram(LevelLaw):
    """q that is even within each bin of ln s.

    Args:
        shares: of each bin, from the least level up.
    """

    shares: Tensor

    def place(self, u: Tensor, ends: Tensor) -> Tensor:  # noqa: D102
        return self.draw(u, ends)[0]

    def density(self, log_s: Tensor, ends: Tensor) -> Tensor:  # noqa: D102
        return self.shares[bin_at(log_s, ends, len(self.shares))] * len(self.shares) / (ends[1] - ends[0])

    def draw(self, u: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """See `LevelLaw`: with the bin found once."""
        upto, wide = self.shares.cumsum(0), (ends[1] - ends[0]) / len(self.shares)
        u = u * upto[-1]
        bin_of = torch.searchsorted(upto, u.contiguous()).clamp_max(len(upto) - 1)
        share = self.shares[bin_of]
        within = 1 - (upto[bin_of] - u) / share
        return ends[0] + (bin_of + within.clamp(0, 1)) * wide, share / wide


class Met(nn.Module):
    """What learning has met, in bins of ln s: the mean of |x_0 - D|^2 / s^2, the bound's integrand, and how it follows the noise.

    Of |eps|^2 and of x_0 . eps the means are known, and the integrand follows them: near the data x_0 - D is hardly more than s eps, and of
    a normal it is (s x_0 - eps) s / (1 + s^2). So what they are off by chance is taken off the integrand again, times a slope that was met
    here.
    """

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        # of the integrand the mean, its covariances with these two, and their variances
        self.register_buffer("seen", torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0])[:, None].repeat(1, _BINS))

    @property
    def integrand(self) -> Tensor:
        """Its mean in each bin."""
        return self.seen[0]

    def law(self, ends: Tensor, weight: "Weight | None" = None) -> Histogram:
        """q proportional to the weighted integrand, so that each draw says about as much of it; a tenth of the levels are drawn evenly.

        Args:
            ends: of ln s.
            weight: None: the bound's.
        """
        middles = ends[0] + (torch.arange(_BINS, device=ends.device) + 0.5) * (ends[1] - ends[0]) / _BINS
        parts = self.integrand if weight is None else self.integrand * weight.over(middles)
        return Histogram((1 - _EVEN) * parts / parts.sum() + _EVEN / _BINS)

    @torch.no_grad()
    def see(self, log_s: Tensor, integrand: Tensor, chance: Tensor, ends: Tensor) -> None:
        """Hear what |x_0 - D|^2 / s^2 was, (N,), and |eps|^2 and x_0 . eps less their means, (2, N)."""
        bin_of = bin_at(log_s, ends, _BINS)
        about = integrand - self.integrand[bin_of]
        met = torch.cat((torch.ones_like(integrand)[None], integrand[None], about * chance, chance.square())).to(self.seen)
        sums = met.new_zeros(len(met), _BINS).index_add_(1, bin_of, met)
        self.seen.lerp_(torch.where(sums[0] > 0, sums[1:] / sums[0].clamp_min(1), self.seen), 1 - _MEMORY)
        self.integrand.clamp_min_(1e-6)

    def luck(self, log_s: Tensor, chance: Tensor, ends: Tensor) -> Tensor:
        """What of an integrand is by chance, (N,): its mean is 0."""
        slopes = (self.seen[1:3] / self.seen[3:].clamp_min(1e-6))[:, bin_at(log_s, ends, _BINS)]
        return (slopes * chance).sum(0)


def bin_at(log_s: Tensor, ends: Tensor, bins: int) -> Tensor:
    """The bin of each ln s."""
    return ((log_s - ends[0]) / (ends[1] - ends[0]) * bins).long().clamp(0, bins - 1)


class Weight(StrEnum):
    """w on |eps - eps_hat|^2 at a level that was drawn with density q.

    elbo: 1 / q, the bound itself. balanced: (1 + s^2) / q, the bound and |x_0 - D|^2 together: a level whose noise hides the row tells
    the bound hardly anything, but there draws begin. The others learn what their levels are drawn by: simple, 1, as DDPM; min-snr,
    min(1, 5 s^2), that is min(SNR, 5) on |x_0 - D|^2; edm, 1 + s^2, a unit of loss at each level for a network that predicts EDM's target.

    Source: Ho, Jain and Abbeel, "Denoising diffusion probabilistic models", NeurIPS 2020, arXiv:2006.11239; Hang et al., "Efficient
    diffusion training via min-SNR weighting strategy", ICCV 2023, arXiv:2303.09556; Karras et al., NeurIPS 2022, arXiv:2206.00364. The
    balance is ours.
    """

    ELBO = "elbo"
    BALANCED = "balanced"
    SIMPLE = "simple"
    MIN_SNR = "min-snr"
    EDM = "edm"

    def over(self, log_s: Tensor) -> Tensor:
        """Before any division by q."""
        match self:
            case Weight.ELBO | Weight.SIMPLE:
                return torch.ones_like(log_s)
            case Weight.BALANCED | Weight.EDM:
                return 1 + (2 * log_s).exp()
            case Weight.MIN_SNR:
                return (5 * (2 * log_s).exp()).clamp_max(1.0)

    def at(self, log_s: Tensor, density: Tensor) -> Tensor:
        """w, (N,), where levels have the density q."""
        return self.over(log_s) / density if self in (Weight.ELBO, Weight.BALANCED) else self.over(log_s)


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
