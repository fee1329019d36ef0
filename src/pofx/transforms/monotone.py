"""Monotone maps of the line, as functions of raw parameters: what a coupling or an autoregressive net steers.

The cheap way is data to base, the way of learning: u = f(x; raw). Shapes are upright: x and u (d, N), raw (size, d, N).
"""

import abc
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pofx.errors import OptionError
from pofx.native.kernels import Map
from pofx.transforms.spline import LEAST, ONE, Form, inverse_spline, spline


class Monotone(abc.ABC):
    """u = f(x; raw), increasing in x whatever the raw numbers are."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """How many raw numbers a variable takes."""

    @abc.abstractmethod
    def to_base(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """u and log du/dx, (d, N) each."""

    @abc.abstractmethod
    def to_data(self, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """x and log dx/du, (d, N) each."""

    @property
    def identity(self) -> tuple[float, ...]:
        """Raw numbers whose map is the identity."""
        return (0.0,) * self.size

    @property
    def native(self) -> Map | None:
        """The way to the data in C, for nets that unroll; None where there is none."""
        return None


@dataclass(frozen=True)
class Shift(Monotone):
    """u = x + t.

    Source: Dinh, Krueger and Bengio, "NICE: non-linear independent components estimation", arXiv:1410.8516.
    """

    size = 1

    def to_base(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return x + raw[0], torch.zeros_like(x)

    def to_data(self, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return u - raw[0], torch.zeros_like(u)

    @property
    def native(self) -> Map:  # noqa: D102
        return Map.of("shift")


@dataclass(frozen=True)
class Affine(Monotone):
    """u = x exp(s) + t with |s| < most: s = a / (1 + |a| / most).

    Args:
        most: bound on |s|, in nats a variable.
    """

    most: float = -math.log(1e-3)
    size = 2

    def to_base(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        u, s = _Affine.apply(x, raw, self.most) if torch.is_grad_enabled() else _bent(x, raw, self.most)[:2]
        return u, s

    def to_data(self, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        t, s = raw[0], self._s(raw[1])
        return (u - t) * (-s).exp(), -s

    @property
    def native(self) -> Map:  # noqa: D102
        return Map.of("affine", self.most)

    def _s(self, a: Tensor) -> Tensor:
        return a / (1 + a.abs() / self.most)


class _Affine(torch.autograd.Function):
    """Its derivatives in closed form: ds/da = 1 / (1 + |a| / most)^2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, raw: Tensor, most: float) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        u, s, bend, scale = _bent(x, raw, most)
        ctx.save_for_backward(x, bend, scale)
        return u, s

    @staticmethod
    def backward(ctx: Any, grad_u: Tensor, grad_s: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, bend, scale = ctx.saved_tensors
        down = grad_u * scale
        return down, torch.stack((grad_u, torch.addcmul(grad_s, down, x) / bend.square())), None


def _bent(x: Tensor, raw: Tensor, most: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u and s; 1 + |a| / most and exp(s)."""
    t, a = raw.unbind()
    bend = torch.rsub(a.abs(), 1, alpha=-1 / most)
    s = a / bend
    scale = s.exp()
    return torch.addcmul(t, x, scale), s, bend, scale


@dataclass(frozen=True)
class RationalQuadratic(Monotone):
    """A monotone rational-quadratic spline on [-bound, bound] (`transforms.spline`); the identity beyond.

    Args:
        bins: K.
        bound: B.
        circular: whether x is an angle: -B and B are the same point.

    Raises:
        OptionError: fewer than two bins, or so many that none could be wider than the least; a bound that is not positive.
    """

    bins: int = 8
    bound: float = 5.0
    circular: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bins < 0.5 / LEAST:
            raise OptionError(f"a spline has 2 to {round(0.5 / LEAST) - 1} bins, got {self.bins}")
        if not 0 < self.bound < math.inf:
            raise OptionError(f"the bound of a spline is a positive number, got {self.bound}")

    @property
    def form(self) -> Form:
        """What the spline's function is told."""
        return Form(self.bins, self.bound, self.circular)

    @property
    def size(self) -> int:
        """Widths, heights and free slopes."""
        return self.form.parameters

    @property
    def identity(self) -> tuple[float, ...]:
        """Equal bins, slopes 1."""
        return (0.0,) * (2 * self.bins) + (ONE,) * (self.size - 2 * self.bins)

    def to_base(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return spline(x, raw, self.form)

    def to_data(self, u: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return inverse_spline(u, raw, self.form)

    @property
    def native(self) -> Map:  # noqa: D102
        return Map.of("spline", form=self.form.native)
