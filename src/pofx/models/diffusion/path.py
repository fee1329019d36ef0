"""Gaussian paths from data to noise, and what a network may predict along them.

A path is x_t = alpha_t x_0 + sigma_t eps. In y = x_t / alpha_t and s = sigma_t / alpha_t, all paths are one: y = x_0 + s eps. So a path
decides little: which levels s a uniform time t meets, and what the targets v and flow are.
"""

import abc
import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from pofx.errors import OptionError


class Path(abc.ABC):
    """alpha_t and sigma_t of t in [0, 1], from data to noise; s = sigma_t / alpha_t rises."""

    @abc.abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """alpha_t."""

    @abc.abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """sigma_t."""

    @abc.abstractmethod
    def time(self, s: Tensor) -> Tensor:
        """The t at which sigma_t / alpha_t is s."""

    def level(self, t: Tensor) -> Tensor:
        """s = sigma_t / alpha_t."""
        return self.sigma(t) / self.alpha(t)

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """d alpha / dt and d sigma / dt."""
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            alpha, sigma = self.alpha(t) + 0 * t, self.sigma(t) + 0 * t  # a constant has a slope, too
            return torch.autograd.grad(alpha.sum(), t)[0], torch.autograd.grad(sigma.sum(), t)[0]


@dataclass(frozen=True)
class VariancePreserving(Path):
    """alpha_t = exp(-b_0 t / 2 - (b_1 - b_0) t^2 / 4), sigma_t^2 = 1 - alpha_t^2: the linear schedule of DDPM in continuous time.

    Source: Song et al., "Score-based generative modeling through stochastic differential equations", ICLR 2021, arXiv:2011.13456.
    """

    b_0: float = 0.1
    b_1: float = 20.0

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.exp(-self._rate(t) / 2)

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return (-torch.expm1(-self._rate(t))).sqrt()

    def time(self, s: Tensor) -> Tensor:  # noqa: D102
        rate, slope = torch.log1p(s.square()), self.b_1 - self.b_0
        return 2 * rate / (self.b_0 + (self.b_0**2 + 2 * slope * rate).sqrt())

    def _rate(self, t: Tensor) -> Tensor:
        return self.b_0 * t + (self.b_1 - self.b_0) * t.square() / 2


@dataclass(frozen=True)
class Cosine(Path):
    """alpha_t = cos(pi t / 2), sigma_t = sin(pi t / 2); s = tan(pi t / 2).

    Source: Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", ICML 2021, arXiv:2102.09672, without their offset.
    """

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return (math.pi / 2 * t).cos()

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return (math.pi / 2 * t).sin()

    def time(self, s: Tensor) -> Tensor:  # noqa: D102
        return s.atan() * (2 / math.pi)


@dataclass(frozen=True)
class Linear(Path):
    """alpha_t = 1 - t, sigma_t = t: the straight path of flow matching and rectified flow; s = t / (1 - t).

    Source: Lipman et al., "Flow matching for generative modeling", ICLR 2023, arXiv:2210.02747; Liu, Gong and Liu, "Flow straight and
    fast", ICLR 2023, arXiv:2209.03003.
    """

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return t

    def time(self, s: Tensor) -> Tensor:  # noqa: D102
        return s / (1 + s)


@dataclass(frozen=True)
class VarianceExploding(Path):
    """alpha_t = 1, sigma_t = s_min (s_max / s_min)^t: uniform in ln s.

    Source: Song et al., ICLR 2021, arXiv:2011.13456.
    """

    s_min: float = 0.01
    s_max: float = 50.0

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return self.s_min * (self.s_max / self.s_min) ** t

    def time(self, s: Tensor) -> Tensor:  # noqa: D102
        return (s / self.s_min).log() / math.log(self.s_max / self.s_min)


@dataclass(frozen=True)
class Straight(Path):
    """alpha_t = 1, sigma_t = s_max t.

    Source: Karras, Aittala, Aila and Laine, "Elucidating the design space of diffusion-based generative models", NeurIPS 2022,
    arXiv:2206.00364.
    """

    s_max: float = 80.0

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return self.s_max * t

    def time(self, s: Tensor) -> Tensor:  # noqa: D102
        return s / self.s_max


PATHS: dict[str, Path] = {
    "vp": VariancePreserving(),
    "cosine": Cosine(),
    "linear": Linear(),
    "ve": VarianceExploding(),
    "edm": Straight(),
}


class Target(StrEnum):
    """What a network predicts of x_0 and eps: F = p x_0 + q eps."""

    X0 = "x0"
    EPS = "eps"
    SCORE = "score"
    V = "v"
    FLOW = "flow"
    EDM = "edm"


_OF_NO_PATH = {Target.X0, Target.EPS, Target.EDM}  # their p and q stay where alpha and sigma are scaled together


@dataclass(frozen=True)
class Prediction:
    """x_0 = (sigma F - q x_t) / (sigma p - q alpha), for x_t = alpha x_0 + sigma eps and a prediction F = p x_0 + q eps.

    | target | p | q |
    |---|---|---|
    | x0 | 1 | 0 |
    | eps | 0 | 1 |
    | score | 0 | -1 / sigma |
    | v | -sigma | alpha |
    | flow | d alpha / dt | d sigma / dt |
    | edm | sigma / (s_d r) | -alpha s_d / r, r^2 = alpha^2 s_d^2 + sigma^2 |

    With the last one F has unit variance, and the x_0 that F = 0 implies is the posterior mean of a normal of deviation s_d.

    Args:
        target: what F is.
        path: of v and flow.
        deviation: s_d.
    """

    target: Target = Target.EDM
    path: Path = PATHS["vp"]
    deviation: float = 1.0

    def row(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma, p and q at a level; up to a common scale of alpha and sigma for targets that know no path."""
        if self.target in _OF_NO_PATH:
            alpha = torch.ones_like(s)
            return alpha, s, *self._target(s, alpha, s)
        t = self.path.time(s)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        return alpha, sigma, *self._target(t, alpha, sigma)

    def _target(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
        match self.target:
            case Target.X0:
                return one, zero
            case Target.EPS:
                return zero, one
            case Target.SCORE:
                return zero, -1 / sigma
            case Target.V:
                return -sigma, alpha
            case Target.FLOW:
                return self.path.slopes(t)
            case Target.EDM:
                r = (alpha.square() * self.deviation**2 + sigma.square()).sqrt()
                return sigma / (self.deviation * r), -alpha * self.deviation / r

    def of(self, x_0: Tensor, eps: Tensor, s: Tensor) -> Tensor:
        """F."""
        _, _, p, q = self.row(s)
        return p * x_0 + q * eps

    def denoised(self, f: Tensor, y: Tensor, s: Tensor) -> Tensor:
        """x_0 of F at y = x_t / alpha."""
        alpha, sigma, p, q = self.row(s)
        return (sigma * f - q * alpha * y) / (sigma * p - q * alpha)


def path_of(name: str) -> Path:
    """The path of that name.

    Raises:
        OptionError: there is none.
    """
    if name not in PATHS:
        raise OptionError(f"a path is one of {', '.join(PATHS)}, got {name!r}")
    return PATHS[name]
