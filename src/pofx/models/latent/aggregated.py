"""The aggregated posterior: what the codes of all rows are distributed as, and how far from the prior that is."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.distributions.gaussian import DiagonalGaussians
from pofx.models.latent.inference import Encoder
from pofx.models.latent.priors import NormalMixture, Prior, posterior_normals
from pofx.types import Context, Generator, X

_VALUES_AT_ONCE = 2**24  # of a block of densities: 128 MB


class Aggregated(NormalMixture):
    """q(z) = 1/N sum_n q(z | x_n): the prior under which the ELBO of those rows would be largest.

    Cost: O(N L) for each z.

    Source: Hoffman and Johnson, "ELBO surgery", NIPS Workshop on Advances in Approximate Bayesian Inference, 2016.

    Args:
        normals: q(z | x_n).
    """

    def __init__(self, normals: DiagonalGaussians) -> None:
        super().__init__(normals.mean.shape[1])
        self._normals = normals

    @property
    def log_pi(self) -> Float[Tensor, " N"]:
        """-log N."""
        return torch.full_like(self._normals.mean[:, 0], -math.log(len(self._normals.mean)))

    @property
    def components(self) -> DiagonalGaussians:
        """q(z | x_n)."""
        return self._normals


class Gap(NamedTuple):
    """An estimate of KL(q(z) || p(z)) in nats, and its standard error."""

    value: float
    error: float


@torch.no_grad()
def aggregated_posterior(q: Encoder, x: X, c: Context | None = None) -> Aggregated:
    """The aggregated posterior of rows (N, D) and their conditions, of the top level."""
    return Aggregated(posterior_normals(q.top(x, c)))


@torch.no_grad()
def gap(aggregated: Aggregated, prior: Prior, *, draws: int = 2000, like: Tensor, generator: Generator = None) -> Gap:
    """KL(q(z) || p(z)) = E_q[log q(z) - log p(z)] by draws from q(z): by how much the prior misses the codes.

    It is a part of the mean KL(q(z | x) || p(z)) that the ELBO pays, mean KL = gap + I_q(x; z); a better prior can win it and no more.

    Args:
        aggregated: q(z).
        prior: p(z).
        draws: how many, 2 or more.
        like: a tensor of the prior's dtype and device.
        generator: of the draws.
    """
    z = aggregated.sample((draws,), like=like, generator=generator)
    pieces = z.split(max(1, _VALUES_AT_ONCE // len(aggregated.log_pi)))
    difference = torch.cat([aggregated.log_prob(part) - prior.log_prob(part) for part in pieces]).double()
    return Gap(float(difference.mean()), float(difference.std() / math.sqrt(draws)))
