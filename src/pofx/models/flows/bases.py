"""Base densities of flows: what a flow bends."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pofx.distributions.base import Law
from pofx.distributions.columns import Columns
from pofx.distributions.continuous import Normal, StudentT
from pofx.distributions.drawing import draw
from pofx.distributions.special import LOG_SQRT_2PI
from pofx.domain import Domain
from pofx.models.base import Model
from pofx.types import Context, Generator, Nats, Point, X

_START_NU = 8.0


class StandardNormal(Model):
    """p(u) = N(u; 0, I).

    Args:
        dim: number of variables.
    """

    origin: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(Domain.real(dim))
        self.register_buffer("origin", torch.zeros(dim), persistent=False)

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return -0.5 * x.square().sum(-1) - x.shape[-1] * LOG_SQRT_2PI

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return torch.randn(n, len(self.origin), generator=generator, dtype=self.origin.dtype, device=self.origin.device)

    def _marginal(self, keep: tuple[int, ...]) -> "StandardNormal":
        return StandardNormal(len(keep)).to(self.origin)

    def _conditional(self, evidence: Point) -> "StandardNormal":
        return self._marginal(tuple(evidence.isnan().nonzero()[:, 0].tolist()))


class LawBase(Model):
    """p(u) = sum_k pi_k prod_d p_d(u_d; theta_kd): a product of laws, or a mixture of such products, its numbers learned or kept.

    Args:
        dim: number of variables.
        law: of every variable: normal, or Student's t, whose tails a flow that is linear far out keeps.
        components: K; with several, their centres start apart.
        learned: whether theta and pi are.
    """

    def __init__(self, dim: int, law: Law | None = None, *, components: int = 1, learned: bool = False) -> None:
        super().__init__(Domain.real(dim))
        self.law = law or Normal()
        self.columns = Columns([self.law] * dim)
        theta = torch.tensor(_standard(self.law)).repeat(components, dim)
        if components > 1:
            theta[:, :: self.law.width] = torch.randn(components, dim)
        self.theta = nn.Parameter(theta, requires_grad=learned)
        self.logits = nn.Parameter(torch.zeros(components), requires_grad=learned)

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        each = self.columns.log_prob(self.theta, x[:, None], inside=True).sum(-1)  # (N, K)
        return (each + self.logits.log_softmax(0)).logsumexp(-1)

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        k = draw(self.logits.softmax(0), n, generator=generator)
        return self.columns.sample(self.theta[k], generator=generator)

    def _marginal(self, keep: tuple[int, ...]) -> "LawBase":
        return self._part(keep, self.logits)

    def _conditional(self, evidence: Point) -> "LawBase":
        each = self.columns.log_prob(self.theta, evidence.to(self.theta)).sum(-1)  # of the components; 0 at NaN
        return self._part(evidence.isnan().nonzero()[:, 0].tolist(), self.logits + each)

    def _part(self, keep: Sequence[int], logits: Tensor) -> "LawBase":
        part = LawBase.__new__(LawBase)
        Model.__init__(part, self.domain.select(keep))
        part.law, part.columns = self.law, Columns([self.law] * len(keep))
        theta = self.theta.unflatten(1, (-1, self.law.width))[:, list(keep)].flatten(1)
        part.theta, part.logits = (nn.Parameter(t.detach(), requires_grad=self.theta.requires_grad) for t in (theta, logits))
        return part


def _standard(law: Law) -> list[float]:
    """Parameters of location 0 and scale 1."""
    scale, nu = (math.log(math.expm1(value)) for value in (1.0, _START_NU - 1))  # what softplus maps to them
    return [0.0, scale, nu] if isinstance(law, StudentT) else [0.0, scale]
