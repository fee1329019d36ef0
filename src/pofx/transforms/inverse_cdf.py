"""Sampling by the inverse CDF: the simplest flow, from a uniform number to one variable.

    u ~ Uniform(0, 1),   x = F^-1(u),   F^-1(u) = inf {x : F(x) >= u},   log p(x) = -log |d F^-1 / du|.

Where p is a density, F^-1 is a bijection (`InverseCDF`). Where F jumps, by P(X = x), a whole interval of u
lands on one x (`GeneralisedInverseCDF`); the way back draws u uniformly from that interval, (F(x-), F(x)], and

    log p(x) = -log q(u | x) = log P(X = x):

the bound that a surjection gives is tight here, because the base density is constant on the interval.

The laws below are the worked examples; a law is anything with `cdf`, `quantile` and `log_prob` elementwise.
"""

import abc
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.errors import OptionError
from pofx.transforms.base import Surjection, Transform
from pofx.types import Context, Generator, Nats, X


class InvertibleLaw(abc.ABC):
    """A law of one variable, by its distribution function; every method is elementwise."""

    atoms: bool = False  # whether F jumps anywhere

    @abc.abstractmethod
    def cdf(self, x: Tensor) -> Tensor:
        """F(x) = P(X <= x)."""

    @abc.abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """F^-1(u), the least x with F(x) >= u."""

    @abc.abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x): of a density, at an atom of a probability."""

    def atom(self, x: Tensor) -> Tensor:
        """P(X = x)."""
        return torch.zeros_like(x)


@dataclass(frozen=True)
class Exponential(InvertibleLaw):
    """F(x) = 1 - exp(-rate x), so F^-1(u) = -log(1 - u) / rate.

    >>> law = Exponential(rate=2.0)
    >>> law.quantile(torch.tensor([0.5])) * 2  # the median, in units of 1 / rate: log 2
    tensor([0.6931])
    >>> u, log_det = InverseCDF(law).inverse(torch.tensor([0.0]))  # at x = 0 the density is the rate
    >>> u, log_det.exp()
    (tensor([0.]), tensor(2.))
    """

    rate: float

    def __post_init__(self) -> None:
        _positive("rate", self.rate)

    def cdf(self, x: Tensor) -> Tensor:
        """1 - exp(-rate x), 0 below 0."""
        return -torch.expm1(-self.rate * x.clamp(min=0))

    def quantile(self, u: Tensor) -> Tensor:
        """-log(1 - u) / rate."""
        return -torch.log1p(-u) / self.rate

    def log_prob(self, x: Tensor) -> Tensor:
        """log rate - rate x."""
        return torch.where(x >= 0, math.log(self.rate) - self.rate * x, -math.inf)


@dataclass(frozen=True)
class Gaussian(InvertibleLaw):
    """F(x) = Phi((x - mean) / sd).

    >>> law = Gaussian(mean=10.0, sd=2.0)
    >>> law.quantile(torch.tensor([0.5, 0.8413447]))  # the mean, and one sd above it
    tensor([10., 12.])
    >>> x, log_det = InverseCDF(law)(torch.tensor([0.5]))
    >>> log_det + law.log_prob(x).sum()  # log|det J_T| = -log p(x)
    tensor(0.)
    """

    mean: float
    sd: float

    def __post_init__(self) -> None:
        _positive("sd", self.sd)

    def cdf(self, x: Tensor) -> Tensor:
        """Phi((x - mean) / sd)."""
        phi: Tensor = torch.special.ndtr((x - self.mean) / self.sd)
        return phi

    def quantile(self, u: Tensor) -> Tensor:
        """Mean + sd Phi^-1(u)."""
        x: Tensor = self.mean + self.sd * torch.special.ndtri(u)
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x | mean, sd^2)."""
        return -0.5 * ((x - self.mean) / self.sd).square() - math.log(self.sd) - 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Bernoulli(InvertibleLaw):
    """P(X = 1) = p: F^-1(u) = 0 for u <= 1 - p, else 1.

    >>> T = GeneralisedInverseCDF(Bernoulli(p=0.25))
    >>> T(torch.tensor([[0.2], [0.75], [0.76]]))[:, 0]
    tensor([0., 0., 1.])
    >>> u, log_p = T.lift(torch.tensor([[0.0], [1.0]]), generator=torch.Generator().manual_seed(0))
    >>> log_p.exp()
    tensor([0.7500, 0.2500])
    >>> (u[0] <= 0.75).item(), (u[1] > 0.75).item()
    (True, True)
    """

    p: float
    atoms = True

    def __post_init__(self) -> None:
        _share("p", self.p)

    def cdf(self, x: Tensor) -> Tensor:
        """0, 1 - p, 1 below 0, below 1, and from 1 on."""
        return torch.where(x < 0, 0.0, torch.where(x < 1, 1 - self.p, 1.0)).to(x)

    def quantile(self, u: Tensor) -> Tensor:
        """1 where u > 1 - p."""
        return (u > 1 - self.p).to(u)

    def log_prob(self, x: Tensor) -> Tensor:
        """log P(X = x)."""
        return self.atom(x).log()

    def atom(self, x: Tensor) -> Tensor:
        """1 - p at 0, p at 1, 0 elsewhere."""
        return (1 - self.p) * (x == 0).to(x) + self.p * (x == 1).to(x)


@dataclass(frozen=True)
class SpikeAndSlab(InvertibleLaw):
    """F(x) = weight 1[x >= at] + (1 - weight) G(x): x = at with probability `weight`, else x ~ G.

    F^-1 is G^-1(u / (1 - weight)) before the jump at F(at-) = (1 - weight) G(at), `at` on it,
    and G^-1((u - weight) / (1 - weight)) after it.

    >>> law = SpikeAndSlab(weight=0.5, at=0.0, slab=Gaussian(mean=0.0, sd=1.0))  # the jump is from 1/4 to 3/4
    >>> T = GeneralisedInverseCDF(law)
    >>> T(torch.tensor([[0.125], [0.3], [0.7], [0.875]]))[:, 0]
    tensor([-0.6745,  0.0000,  0.0000,  0.6745])
    >>> u, log_p = T.lift(torch.tensor([[0.0], [0.6745]]), generator=torch.Generator().manual_seed(0))
    >>> log_p[0].exp()  # at the spike: a probability
    tensor(0.5000)
    >>> log_p[1].exp() / (0.5 * law.slab.log_prob(torch.tensor(0.6745)).exp())  # elsewhere: half the slab's density
    tensor(1.)
    >>> 0.25 <= u[0].item() <= 0.75, round(u[1].item(), 4)
    (True, 0.875)

    Args:
        weight: of the spike.
        at: where it stands.
        slab: G, a law without atoms.
    """

    weight: float
    at: float
    slab: InvertibleLaw
    atoms = True

    def __post_init__(self) -> None:
        _share("weight", self.weight)
        if self.slab.atoms:
            raise OptionError(f"the slab needs a law without atoms, got {self.slab}")

    def cdf(self, x: Tensor) -> Tensor:
        """Weight 1[x >= at] + (1 - weight) G(x)."""
        return self.weight * (x >= self.at).to(x) + (1 - self.weight) * self.slab.cdf(x)

    def quantile(self, u: Tensor) -> Tensor:
        """The slab's quantile beside the jump, `at` on it."""
        jump = (1 - self.weight) * self.slab.cdf(torch.full_like(u, self.at))
        beside = torch.where(u <= jump, u, u - self.weight) / (1 - self.weight)
        on_it = (u > jump) & (u <= jump + self.weight)
        return torch.where(on_it, self.at, self.slab.quantile(torch.where(on_it, 0.5, beside)))

    def log_prob(self, x: Tensor) -> Tensor:
        """log weight at the spike, log((1 - weight) g(x)) elsewhere."""
        return torch.where(x == self.at, math.log(self.weight), math.log1p(-self.weight) + self.slab.log_prob(x))

    def atom(self, x: Tensor) -> Tensor:
        """Weight at the spike."""
        return self.weight * (x == self.at).to(x)


class InverseCDF(Transform):
    """x = F^-1(u), entry by entry: from independent uniform numbers to independent draws of one law.

    log|det J_T(u)| = -sum log p(x) and log|det J_T^-1(x)| = sum log p(x).

    Args:
        law: F, without atoms.

    Raises:
        OptionError: the law has atoms, so F^-1 is no bijection.
    """

    def __init__(self, law: InvertibleLaw) -> None:
        super().__init__()
        if law.atoms:
            raise OptionError(f"{law} has atoms, so its inverse CDF is no bijection: use GeneralisedInverseCDF")
        self.law = law

    def forward(self, u: X, c: Context | None = None) -> tuple[X, Nats]:
        """Base to data: x = F^-1(u) for u in (0, 1)."""
        x = self.law.quantile(u)
        return x, -self.law.log_prob(x).sum(-1)

    def inverse(self, x: X, c: Context | None = None) -> tuple[X, Nats]:
        """Data to base: u = F(x)."""
        return self.law.cdf(x), self.law.log_prob(x).sum(-1)


class GeneralisedInverseCDF(Surjection):
    """x = F^-1(u), entry by entry, of a law that may have atoms; the base is Uniform(0, 1), of log-density 0.

    The bound log p(x) >= E_q[-log q(u | x)] is tight: `lift` returns log p(x) itself, whatever u it draws.

    Args:
        law: F.
    """

    def __init__(self, law: InvertibleLaw) -> None:
        super().__init__()
        self.law = law

    def forward(self, y: X) -> X:
        """Base to data: x = F^-1(u) for u in (0, 1)."""
        return self.law.quantile(y)

    def lift(self, x: X, *, generator: Generator = None) -> tuple[X, Nats]:
        """Data to base: u uniform on (F(x-), F(x)], which is F(x) itself where there is no atom."""
        fraction = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        return self.law.cdf(x) - fraction * self.law.atom(x), self.law.log_prob(x).sum(-1)


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise OptionError(f"{name} must be a positive number, got {value}")


def _share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise OptionError(f"{name} must be a probability between 0 and 1, got {value}")
