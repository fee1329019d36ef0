"""Planar and radial maps: the first flows, one bend each."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pofx.transforms.base import Transform
from pofx.types import Context, Nats, X

HALVINGS = 60  # of an interval, to rounding


class Planar(Transform):
    """x = u + v tanh(w^T u + b), v moved so that w^T v > -1: a bijection that bends space along one direction. Starts near the identity.

    The way back is one equation of one number, a + (w^T v) tanh(a + b) = w^T x, solved to rounding.

    Source: Rezende and Mohamed, "Variational inference with normalizing flows", ICML 2015, arXiv:1505.05770, equations 10 to 12 and
    appendix A.1.

    Args:
        dim: number D of variables.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(dim) / math.sqrt(dim)), nn.Parameter(torch.randn(dim) * 0.01)
        self.b = nn.Parameter(torch.zeros(()))

    def forward(self, u: X, c: Context | None = None) -> tuple[X, Nats]:
        """Base to data."""
        v, gain = self._bounded()
        t = torch.tanh(u @ self.w + self.b)
        return u + t[..., None] * v, torch.log1p(gain * (1 - t.square()))

    def inverse(self, x: X, c: Context | None = None) -> tuple[X, Nats]:
        """Data to base."""
        v, gain = self._bounded()
        t = torch.tanh(self._before(x @ self.w, gain) + self.b)
        return x - t[..., None] * v, -torch.log1p(gain * (1 - t.square()))

    def _before(self, after: Tensor, gain: Tensor) -> Tensor:
        """a = w^T u, from a + gain tanh(a + b) = w^T x: halved to rounding, then a step of Newton's method, which has the gradient."""
        with torch.no_grad():
            low, high = after - gain.abs(), after + gain.abs()
            for _ in range(HALVINGS):
                a = (low + high) / 2
                below = a + gain * torch.tanh(a + self.b) < after
                low, high = torch.where(below, a, low), torch.where(below, high, a)
        t = torch.tanh(a + self.b)
        return a - (a + gain * t - after) / (1 + gain * (1 - t.square()))

    def _bounded(self) -> tuple[Tensor, Tensor]:
        """v, moved along w, and w^T v = -1 + log(1 + e^(r + w^T v)) with r such that 0 stays 0."""
        before = self.w @ self.v
        gain = softplus(before + math.log(math.e - 1)) - 1
        return self.v + (gain - before) * self.w / self.w.square().sum().clamp_min(1e-12), gain


class Radial(Transform):
    """x = u + g h (u - centre), h = 1 / (a + r), r = |u - centre|, g > -a: a bijection that swells or shrinks space about a point.

    The way back is a quadratic in r.

    Source: Rezende and Mohamed, "Variational inference with normalizing flows", ICML 2015, arXiv:1505.05770, equations 14 and 26.

    Args:
        dim: number D of variables.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.randn(dim) * 0.1)
        self.log_a, self.raw = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, u: X, c: Context | None = None) -> tuple[X, Nats]:
        """Base to data."""
        a, g = self._a_and_g()
        away = u - self.centre
        r = away.norm(dim=-1, keepdim=True)
        return u + g / (a + r) * away, self._log_det(r[..., 0], a, g)

    def inverse(self, x: X, c: Context | None = None) -> tuple[X, Nats]:
        """Data to base: r^2 + (a + g - R) r - R a = 0 for R = |x - centre|."""
        a, g = self._a_and_g()
        away = x - self.centre
        R = away.norm(dim=-1, keepdim=True)
        half = (R - a - g) / 2
        root = (half.square() + R * a).sqrt()
        r = torch.where(half > 0, half + root, R * a / (root - half).clamp_min(torch.finfo(x.dtype).tiny))
        return self.centre + away / (1 + g / (a + r)), -self._log_det(r[..., 0], a, g)

    def _a_and_g(self) -> tuple[Tensor, Tensor]:
        a = self.log_a.exp()
        return a, a * torch.expm1(self.raw)

    def _log_det(self, r: Tensor, a: Tensor, g: Tensor) -> Tensor:
        swell, dim = g / (a + r), len(self.centre)
        return (dim - 1) * torch.log1p(swell) + torch.log1p(swell - g * r / (a + r).square())
