"""Functions of one real number that lose no digits in the tails and keep their gradients finite."""

import math
from typing import Any

import torch
from torch import Tensor

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_SQRT_2 = math.sqrt(2.0)


def log1mexp(d: Tensor) -> Tensor:
    """log(1 - e^-d) for d > 0, exact at both ends.

    Source: Mächler, "Accurately computing log(1 - exp(-|a|))", 2012.
    """
    small = d < math.log(2.0)
    near = (-torch.expm1(-torch.where(small, d, 1.0))).log()
    return torch.where(small, near, torch.log1p(-torch.exp(-torch.where(small, 1.0, d))))


def log_rising(r: Tensor, x: Tensor) -> Tensor:
    """log[Gamma(r + x) / Gamma(r)] for r > 0, x >= 0; by Stirling's series where both are large and would cancel."""
    large = r > 30
    s = torch.where(large, r, 31.0)
    series = (s - 0.5) * torch.log1p(x / s) + x * (s + x).log() - x + _stirling(s + x) - _stirling(s)
    q = torch.where(large, 31.0, r)
    return torch.where(large, series, torch.lgamma(q + x) - torch.lgamma(q))


def _stirling(z: Tensor) -> Tensor:
    """The correction log Gamma(z) - [(z - 1/2) log z - z + log(2 pi) / 2]; for z > 30 to 1e-13."""
    return 1 / (12 * z) - 1 / (360 * z**3) + 1 / (1260 * z**5)


def normal_log_mass(m: Tensor, h: Tensor) -> Tensor:
    """log[Phi(m + h/2) - Phi(m - h/2)], m any number, h > 0, to rounding error everywhere; derivatives of any order in closed form.

    Three forms: the density times a series in h where the cell is narrow; a sum of two error functions where it
    holds 0; else, in the tail, with Phi(-z) = e^(-z^2/2) erfcx(z/sqrt 2) / 2.
    """
    value: Tensor = _NormalLogMass.apply(*torch.broadcast_tensors(m, h))
    return value


class _NormalLogMass(torch.autograd.Function):
    """With a = phi(|m| - h/2) / mass and t = e^(-|m| h) - 1, the derivatives are sign(m) a t and a (2 + t) / 2: nothing cancels."""

    generate_vmap_rule = True

    @staticmethod
    def forward(m: Tensor, h: Tensor) -> Tensor:
        m = m.abs()  # the law is symmetric: every cell is seen from the right
        narrow, holds_zero = h * (1 + m) < 0.05, m <= h / 2
        return torch.where(narrow, _narrow(m, h), torch.where(holds_zero, _central(m, h), _tail(m, h)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ANN401
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        m, h, log_mass = ctx.saved_tensors
        left = m < 0
        m = torch.where(left, -m, m)  # differentiating abs twice would import torch._dynamo
        a = grad * (-0.5 * (m - h / 2).square() - LOG_SQRT_2PI - log_mass).exp()
        t = torch.expm1(-m * h)
        slope = a * t
        return torch.where(left, -slope, slope), a + 0.5 * slope


def _narrow(m: Tensor, h: Tensor) -> Tensor:
    """phi(m) h times the mean over the cell of e^(-m t - t^2/2), to the order h^4 (the next term is below 1e-13)."""
    m2, h2 = m.square(), h.square()
    series = h2 / 24 * (m2 - 1) + h2.square() / 1920 * (m2.square() - 6 * m2 + 3)
    return -0.5 * m2 - LOG_SQRT_2PI + h.log() + torch.log1p(series)


def _central(m: Tensor, h: Tensor) -> Tensor:
    return (0.5 * (torch.erf((h / 2 + m) / _SQRT_2) + torch.erf((h / 2 - m) / _SQRT_2))).log()


def _tail(m: Tensor, h: Tensor) -> Tensor:
    near, far = m - h / 2, m + h / 2
    scaled = torch.special.erfcx(near / _SQRT_2) - torch.exp(-m * h) * torch.special.erfcx(far / _SQRT_2)  # (far^2 - near^2) / 2 = m h
    return -0.5 * near.square() + (0.5 * scaled).log()
