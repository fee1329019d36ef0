"""Priors p(z): what the latent is before anything was observed."""

import abc
import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pofx.distributions.drawing import draw
from pofx.distributions.gaussian import DiagonalGaussians
from pofx.errors import OptionError
from pofx.models.base import Model
from pofx.models.latent.laws import DiagonalNormal, Moments, Steered
from pofx.types import Context, Generator, Kind, Latent, Nats, X

_APART = math.sqrt(32)  # deviations of a component between two centres

Responsibilities = Float[Tensor, "*batch K"]


class Prior(nn.Module, abc.ABC):
    """p(z) on R^L.

    Args:
        latents: L.
    """

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.latents = latents

    @abc.abstractmethod
    def log_prob(self, z: Latent) -> Nats:
        """log p(z)."""

    @abc.abstractmethod
    def sample(self, shape: tuple[int, ...], *, like: Tensor, generator: Generator = None) -> Tensor:
        """Draws (*shape, L), of the dtype and on the device of `like`."""

    def cross_entropy(self, moments: Moments) -> Nats | None:
        """-E[log p(z)] over any law of those moments, where they are all that it depends on; else None: the bound then uses the draws."""
        return None

    def initialise(self, x: X, c: Context | None = None) -> None:
        """Set what depends on the rows x (N, D) and their conditions, once q has seen them."""


class StandardNormal(Prior):
    """p(z) = N(0, I)."""

    def log_prob(self, z: Latent) -> Nats:
        """-(|z|^2 + L log 2 pi) / 2."""
        return -0.5 * (z.square().sum(-1) + self.latents * math.log(2 * math.pi))

    def sample(self, shape: tuple[int, ...], *, like: Tensor, generator: Generator = None) -> Tensor:
        """Draws (*shape, L)."""
        return torch.randn(*shape, self.latents, generator=generator, dtype=like.dtype, device=like.device)

    def cross_entropy(self, moments: Moments) -> Nats:
        """sum_l (mean_l^2 + variance_l + log 2 pi) / 2."""
        squares = torch.addcmul(moments.variance, moments.mean, moments.mean)
        return torch.add(0.5 * self.latents * math.log(2 * math.pi), squares.sum(-1), alpha=0.5)


class NormalMixture(Prior):
    """p(z) = sum_k pi_k N(z; m_k, diag s_k^2): each component a normal of the whole z.

    Cost: O(K L) for each z, one matrix product for all of them.
    """

    @property
    @abc.abstractmethod
    def log_pi(self) -> Float[Tensor, " K"]:
        """The log-weights, normalised."""

    @property
    @abc.abstractmethod
    def components(self) -> DiagonalGaussians:
        """The normals, in double precision: their quadratic forms are expanded, and narrow ones far out would cancel."""

    def log_prob(self, z: Latent) -> Nats:
        """log sum_k pi_k N(z; m_k, s_k^2)."""
        return self._log_joint(z).logsumexp(-1).to(z.dtype)

    def responsibilities(self, z: Latent) -> Responsibilities:
        """p(k | z)."""
        return self._log_joint(z).softmax(-1).to(z.dtype)

    def sample(self, shape: tuple[int, ...], *, like: Tensor, generator: Generator = None) -> Tensor:
        """A component by its weight, then a draw from it."""
        k = draw(self.log_pi.exp(), math.prod(shape), generator=generator)
        return self.components.sample(k, generator=generator).to(like).view(*shape, self.latents)

    def _log_joint(self, z: Tensor) -> Tensor:
        """log pi_k + log N(z; m_k, s_k^2), (*batch, K)."""
        each = self.components.log_prob(z.reshape(-1, self.latents).double())
        return (each + self.log_pi).view(*z.shape[:-1], -1)


class Mixture(NormalMixture):
    """p(z) = sum_k pi_k N(z; m_k, diag s_k^2), every number learned.

    Its components are clusters that the decoder learns with: p(k | x) is a question to the model. It starts about the moments of
    N(0, I), with centres some 5.7 deviations apart whatever L is: nearer ones merge, and farther ones leave each row to the one
    it happens to begin with.

    Args:
        latents: L.
        components: K.
    """

    def __init__(self, latents: int, components: int) -> None:
        super().__init__(latents)
        within = latents / (latents + _APART**2 / 2)  # of the variance of z: centres are sqrt(2 L (1 - within)) apart
        self.logits = nn.Parameter(torch.zeros(components))
        self.mean = nn.Parameter(math.sqrt(1 - within) * torch.randn(components, latents))
        self.log_scale = nn.Parameter(torch.full((components, latents), math.log(within) / 2))

    @property
    def log_pi(self) -> Float[Tensor, " K"]:
        """log softmax of the logits."""
        return self.logits.log_softmax(0)

    @property
    def components(self) -> DiagonalGaussians:
        """N(m_k, diag s_k^2)."""
        return DiagonalGaussians(self.mean.double(), (2 * self.log_scale.double()).exp())


@runtime_checkable
class Posterior(Protocol):
    """A q(z | x, c) that is a function of what it sees of a row."""

    @property
    def inputs(self) -> int:
        """Width F of what it sees."""

    def see(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """What it sees of rows and conditions, (N, F), and which cells lack, (N, D), or (N, 0) where none is expected to."""

    def of_seen(self, f: Tensor, lacking: Tensor) -> Steered:
        """Its law of the top level, batched (N,)."""


class Vamp(NormalMixture):
    """p(z) = 1/K sum_k q(z | u_k): the aggregated posterior of K pseudo-inputs, which start as training rows.

    A pseudo-input is what q sees of a row (standardised numbers, levels one-hot, its condition), not the row: so a level
    can be learned, too, and passes between others. Cells that the row lacked stay lacking. q is not a part of the
    prior: the prior asks it.

    Cost: beside that of a mixture, a pass of K pseudo-inputs through the encoder each time it is asked.

    Source: Tomczak and Welling, "VAE with a VampPrior", AISTATS 2018, arXiv:1705.07120.

    Args:
        latents: L.
        components: K; with as many as rows it begins as the aggregated posterior itself.
        q: the encoder.
        learned: whether pseudo-inputs move; else they stay rows.
    """

    grows = frozenset({"lacking"})

    lacking: Tensor

    def __init__(self, latents: int, components: int, q: Posterior, *, learned: bool = True) -> None:
        super().__init__(latents)
        self._q = (q,)  # in a tuple, or a module would become a part
        self.u = nn.Parameter(torch.zeros(components, q.inputs), requires_grad=learned)
        self.register_buffer("lacking", torch.zeros(components, 0))

    def initialise(self, x: X, c: Context | None = None) -> None:
        """Take K rows, evenly apart."""
        rows = torch.arange(len(self.u), device=x.device) * len(x) // len(self.u)
        f, lacking = self._q[0].see(x[rows], None if c is None else c[rows])
        self.lacking = lacking.to(self.u)
        with torch.no_grad():
            self.u.copy_(f)

    @property
    def log_pi(self) -> Float[Tensor, " K"]:
        """-log K."""
        return torch.full((len(self.u),), -math.log(len(self.u)), dtype=torch.float64, device=self.u.device)

    @property
    def components(self) -> DiagonalGaussians:
        """q(z | u_k)."""
        return posterior_normals(self._q[0].of_seen(self.u, self.lacking))


class ModelPrior(Prior):
    """p(z) of any model of L real variables: a flow, or whatever else has a density and draws; learned with the rest.

    Args:
        model: p.

    Raises:
        OptionError: its variables are not all real, it has a condition, or its density or its draws are not exact.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(len(model.domain))
        if model.context is not None or any(v.kind != "real" for v in model.domain.variables):
            raise OptionError(f"a prior is over real variables without conditions: {model.noun} is not")
        if model.density is not Kind.EXACT or model.sampling is not Kind.EXACT:
            raise OptionError(f"a prior needs exact densities and draws, got {model.density} and {model.sampling} of {model.noun}")
        self.model = model

    def log_prob(self, z: Latent) -> Nats:
        """The model's."""
        return self.model._log_prob(z.reshape(-1, self.latents), None, None).view(z.shape[:-1]).to(z.dtype)

    def sample(self, shape: tuple[int, ...], *, like: Tensor, generator: Generator = None) -> Tensor:
        """The model's."""
        return self.model.sample(math.prod(shape), generator=generator).to(like).view(*shape, self.latents)


def posterior_normals(q: Steered) -> DiagonalGaussians:
    """The laws of a batch (N,), each a component, in double precision.

    Raises:
        OptionError: they are not normal with independent units.
    """
    if not isinstance(q, DiagonalNormal):
        raise OptionError(f"a mixture of posteriors needs normal ones with independent units: posterior='diagonal', not {type(q).__name__}")
    return DiagonalGaussians(q.m.double(), (2 * q.log_s.double()).exp())
