"""Toys: densities of two variables that are known exactly, to hold learned ones against.

The shapes are those that the field draws; the definitions are ours, chosen so that log p has a closed form (moons: an
integral over an angle, by quadrature to rounding error) and draws are exact.
"""

import abc
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pofx.types import Generator

Points = Float[Tensor, "N 2"]
Logs = Float[Tensor, " N"]
ROWS_AT_ONCE = 8192


class Toy(abc.ABC):
    """p(x) of x in R^2."""

    def log_prob(self, rows: Any) -> NDArray[np.float64]:  # noqa: ANN401
        """log p of each row of an array or tensor (N, 2), in nats; -inf where the density is 0."""
        x = torch.as_tensor(rows, dtype=torch.float64).detach().cpu()
        parts = [self._log_prob(part) for part in x.split(ROWS_AT_ONCE)]
        return torch.cat(parts).numpy() if parts else np.zeros(0)

    @abc.abstractmethod
    def sample(self, n: int, *, generator: Generator = None) -> Points:
        """n exact draws."""

    @abc.abstractmethod
    def _log_prob(self, x: Points) -> Logs:
        """log p of some rows."""


def _normals(n: int, generator: Generator) -> Tensor:
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


def _uniforms(n: int, generator: Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64)


def _choices(n: int, among: int, generator: Generator) -> Tensor:
    return torch.randint(among, (n,), generator=generator)


def _circle(angle: Tensor) -> Tensor:
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


@dataclass(frozen=True)
class EightGaussians(Toy):
    """p(x) = 1/8 sum_k N(x; R e(2 pi k / 8), sigma^2 I), with e(a) the unit vector at angle a."""

    radius: float = 2.0
    sigma: float = 0.2

    def sample(self, n: int, *, generator: Generator = None) -> Points:  # noqa: D102
        return self._centres[_choices(n, 8, generator)] + self.sigma * _normals(n, generator)

    def _log_prob(self, x: Points) -> Logs:
        squared = (x[:, None] - self._centres).square().sum(-1)
        return (-0.5 * squared / self.sigma**2).logsumexp(-1) - math.log(8 * 2 * math.pi * self.sigma**2)

    @property
    def _centres(self) -> Tensor:
        return self.radius * _circle(torch.arange(8, dtype=torch.float64) * math.pi / 4)


@dataclass(frozen=True)
class Rings(Toy):
    """x = R e(a) + sigma n, the angle a uniform, n standard normal, R one of the radii with equal chance.

    With rho = |x|, integrating the angle out: p(x | R) = exp(-(rho^2 + R^2) / 2 sigma^2) I_0(rho R / sigma^2) / (2 pi sigma^2),
    I_0 the modified Bessel function. It is written with exp(-z) I_0(z), which does not overflow.
    """

    radii: tuple[float, ...] = (1.0, 2.0, 3.0)
    sigma: float = 0.1

    def sample(self, n: int, *, generator: Generator = None) -> Points:  # noqa: D102
        radius = self._radii[_choices(n, len(self.radii), generator)]
        return radius[:, None] * _circle(2 * math.pi * _uniforms(n, generator)) + self.sigma * _normals(n, generator)

    def _log_prob(self, x: Points) -> Logs:
        rho, variance = x.norm(dim=-1, keepdim=True), self.sigma**2
        each = -0.5 * (rho - self._radii).square() / variance + torch.special.i0e(rho * self._radii / variance).log()
        return each.logsumexp(-1) - math.log(len(self.radii) * 2 * math.pi * variance)

    @property
    def _radii(self) -> Tensor:
        return torch.tensor(self.radii, dtype=torch.float64)


@dataclass(frozen=True)
class Moons(Toy):
    """x = c_m(t) + sigma n, t uniform on (0, pi), n standard normal, m = 0 or 1 with equal chance.

    c_0(t) = (cos t, sin t) and c_1(t) = (1 - cos t, 1/2 - sin t). The density

        p(x) = 1/2 sum_m 1/pi int_0^pi N(x; c_m(t), sigma^2 I) dt

    is a smooth integral, done by Gauss-Legendre quadrature: at sigma = 0.1 and |x| <= 10, 192 nodes give log p to a
    relative error of 1e-12.
    """

    sigma: float = 0.1
    nodes: int = 192

    def sample(self, n: int, *, generator: Generator = None) -> Points:  # noqa: D102
        upper, lower = _half_circles(math.pi * _uniforms(n, generator))
        moon = _choices(n, 2, generator)[:, None]
        return torch.where(moon == 0, upper, lower) + self.sigma * _normals(n, generator)

    def _log_prob(self, x: Points) -> Logs:
        centres, log_weights = self._quadrature
        squared = (x[:, None, 0] - centres[:, 0]).square() + (x[:, None, 1] - centres[:, 1]).square()
        return (log_weights - 0.5 * squared / self.sigma**2).logsumexp(-1) - math.log(2 * math.pi * self.sigma**2)

    @cached_property
    def _quadrature(self) -> tuple[Tensor, Tensor]:
        """Points on both moons and the logs of their weights, which sum to 1."""
        nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(self.nodes))
        centres = torch.cat(_half_circles(math.pi / 2 * (nodes + 1)))
        return centres, (weights / 4).log().repeat(2)


def _half_circles(t: Tensor) -> tuple[Tensor, Tensor]:
    upper = _circle(t)
    return upper, torch.tensor([1.0, 0.5], dtype=torch.float64) - upper


@dataclass(frozen=True)
class Checkerboard(Toy):
    """p(x) = 1/32 on the squares of [-4, 4)^2, of side 2, whose column and row are both even or both odd; 0 elsewhere."""

    def sample(self, n: int, *, generator: Generator = None) -> Points:  # noqa: D102
        column = _choices(n, 4, generator)
        row = 2 * _choices(n, 2, generator) + column % 2
        corner = torch.stack((column, row), dim=-1) * 2.0 - 4.0
        return corner + 2 * torch.rand(n, 2, generator=generator, dtype=torch.float64)

    def _log_prob(self, x: Points) -> Logs:
        square = (x / 2).floor()
        black = (square.abs() <= 2).all(-1) & (square < 2).all(-1) & (square.sum(-1) % 2 == 0)
        return torch.where(black, -math.log(32.0), -torch.inf)


@dataclass(frozen=True)
class Pinwheel(Toy):
    """x = f turned by 2 pi k / 5 + b |f|, f ~ N((R, 0), diag(s_1^2, s_2^2)), k one of 5 arms with equal chance.

    A turn by an angle that depends on the distance from the centre alone keeps distances from the centre and areas, so
    its Jacobian is 1 and p(x) = 1/5 sum_k N(x turned back by 2 pi k / 5 + b |x|; (R, 0), diag(s_1^2, s_2^2)).
    """

    radius: float = 2.0
    along: float = 0.6
    across: float = 0.2
    bend: float = 0.6

    def sample(self, n: int, *, generator: Generator = None) -> Points:  # noqa: D102
        f = _normals(n, generator) * self._spread + self._centre
        arm = _choices(n, 5, generator) * (2 * math.pi / 5)
        return _turned(f, arm + self.bend * f.norm(dim=-1))

    def _log_prob(self, x: Points) -> Logs:
        arms = torch.arange(5, dtype=torch.float64) * (2 * math.pi / 5)
        f = _turned(x[:, None], -(arms + self.bend * x.norm(dim=-1, keepdim=True)))
        squared = ((f - self._centre) / self._spread).square().sum(-1)
        return (-0.5 * squared).logsumexp(-1) - math.log(5 * 2 * math.pi * self.along * self.across)

    @property
    def _centre(self) -> Tensor:
        return torch.tensor([self.radius, 0.0], dtype=torch.float64)

    @property
    def _spread(self) -> Tensor:
        return torch.tensor([self.along, self.across], dtype=torch.float64)


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]), dim=-1)


TOYS: dict[str, Toy] = {
    "moons": Moons(),
    "rings": Rings(),
    "checkerboard": Checkerboard(),
    "pinwheel": Pinwheel(),
    "eight_gaussians": EightGaussians(),
}
