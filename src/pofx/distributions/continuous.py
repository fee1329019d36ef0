"""Laws of a continuous variable."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.distributions.base import NARROWEST, Law, Parameters, Values, inverse_positive, positive, weighted_sums
from pofx.types import Generator

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_SQRT_2 = math.sqrt(2.0)


@dataclass(frozen=True)
class Normal(Law):
    """p(x) = N(x; m, s^2), parameters (m, raw) with s = floor + softplus(raw).

    Args:
        floor: the least s, in the units of x.
    """

    floor: float = 0.0
    width = 2
    stand_in = 0.0

    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        m, s = self._loc_scale(parameters)
        return -0.5 * ((x - m) / s).square() - s.log() - _LOG_SQRT_2PI

    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:  # noqa: D102
        m, s = self._loc_scale(parameters)
        return m + s * torch.randn(m.shape, generator=generator, dtype=m.dtype, device=m.device)

    def mean(self, parameters: Parameters) -> Values:  # noqa: D102
        return parameters[..., 0]

    def mode(self, parameters: Parameters) -> Values:  # noqa: D102
        return parameters[..., 0]

    def cdf(self, parameters: Parameters, x: Values) -> Values:  # noqa: D102
        m, s = self._loc_scale(parameters)
        return torch.special.ndtr((x - m) / s)

    def log_mass(self, parameters: Parameters, x: Values, cell: float) -> Values:  # noqa: D102
        m, s = self._loc_scale(parameters)
        return normal_log_mass((x - m) / s, cell / s)

    def entropy(self, parameters: Parameters) -> Values:
        """log s + log(2 pi e) / 2."""
        return self._loc_scale(parameters)[1].log() + _LOG_SQRT_2PI + 0.5

    def _fit(self, x: Tensor, seen: Tensor, weights: Tensor, start: Tensor | None) -> Tensor:
        m, s = weighted_moments(x, seen, weights)
        return torch.stack((m, inverse_positive(s, self.floor)), dim=-1)

    def _loc_scale(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return parameters[..., 0], positive(parameters[..., 1], self.floor)


def weighted_moments(x: Tensor, seen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D, K) of each column under each weighting.

    A deviation is never below NARROWEST of the whole column's: a duplicated row must not become a spike of
    infinite density. A weighting that has nothing to say (all zero) gets the whole column's moments.
    """
    count = seen.sum(0).clamp_min(1.0)
    centre = (seen * x).sum(0) / count
    deviation = seen * (x - centre)  # centred first: E[x^2] - E[x]^2 cancels
    spread = (deviation.square().sum(0) / count).sqrt()
    spread = torch.where(spread > 0, spread, centre.abs().clamp_min(1.0) * NARROWEST)
    total = weighted_sums(seen, weights)
    told = total > 0
    mean = weighted_sums(deviation, weights) / torch.where(told, total, 1.0)
    square = weighted_sums(deviation.square(), weights) / torch.where(told, total, 1.0)
    s = (square - mean.square()).clamp_min(0.0).sqrt()
    s = torch.where(told, s, spread[:, None]).maximum(NARROWEST * spread[:, None])
    return mean + centre[:, None], s


def log_erfcx(x: Tensor) -> Tensor:
    """log(e^(x^2) erfc(x)) for x >= 0."""
    return torch.special.erfcx(x).log()


def log1mexp(d: Tensor) -> Tensor:
    """log(1 - e^-d) for d > 0, exact at both ends.

    Source: Mächler, "Accurately computing log(1 - exp(-|a|))", 2012.
    """
    small = d < math.log(2.0)
    return torch.where(small, (-torch.expm1(-torch.where(small, d, 1.0))).log(), torch.log1p(-torch.exp(-torch.where(small, 1.0, d))))


def normal_log_mass(m: Tensor, h: Tensor) -> Tensor:
    """log[Phi(m + h/2) - Phi(m - h/2)], m any number, h > 0, to rounding error everywhere with finite gradients.

    Three forms: the density times a series in h where the cell is narrow; a sum of two error functions where it
    holds 0; else, in the tail, log Phi(b) + log(1 - Phi(a)/Phi(b)), with log Phi(-z) = -z^2/2 + log erfcx(z/sqrt 2) - log 2.
    """
    m = m.abs()  # the law is symmetric: every cell is seen from the right
    near, far = m - h / 2, m + h / 2
    narrow, holds_zero = h * (1 + m) < 0.05, near <= 0
    return torch.where(
        narrow,
        _narrow(torch.where(narrow, m, 0.0), torch.where(narrow, h, 0.01)),
        torch.where(holds_zero, _central(near, far), _tail(m, h)),
    )


def _narrow(m: Tensor, h: Tensor) -> Tensor:
    """phi(m) h times the mean over the cell of e^(-m t - t^2/2), to the order h^4 (the next term is below 1e-13)."""
    m2, h2 = m.square(), h.square()
    series = h2 / 24 * (m2 - 1) + h2.square() / 1920 * (m2.square() - 6 * m2 + 3)
    return -0.5 * m2 - _LOG_SQRT_2PI + h.log() + torch.log1p(series)


def _central(near: Tensor, far: Tensor) -> Tensor:
    return (0.5 * (torch.erf(far / _SQRT_2) + torch.erf(-near.clamp_max(0.0) / _SQRT_2))).log()


def _tail(m: Tensor, h: Tensor) -> Tensor:
    near = (m - h / 2).clamp_min(0.0)
    far = near + h
    d = h * (near + far) / 2 + log_erfcx(near / _SQRT_2) - log_erfcx(far / _SQRT_2)
    return -0.5 * near.square() + log_erfcx(near / _SQRT_2) - math.log(2.0) + log1mexp(d.clamp_min(1e-30))
