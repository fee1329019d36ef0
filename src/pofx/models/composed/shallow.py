"""Mixtures of products as what they are: circuits of one sum over K products of input units."""

from functools import singledispatch
from typing import NamedTuple

import torch
from torch import Tensor

from pofx.distributions.base import Law, inverse_positive
from pofx.distributions.continuous import Normal
from pofx.errors import Unavailable
from pofx.models.base import Model
from pofx.models.circuits.circuit import Circuit
from pofx.models.circuits.graph import Graph
from pofx.models.circuits.structure import mixture
from pofx.models.classical.gmm import GaussianMixture
from pofx.models.classical.independent import Independent
from pofx.models.classical.latent_class import LatentClass
from pofx.models.composed.prepared import Prepared


class Products(NamedTuple):
    """sum_k pi_k prod_d p_d(x_d; theta_kd).

    Args:
        log_pi: (K,).
        laws: p_d.
        theta: parameters (K, P), as `Columns` of the laws has them.
    """

    log_pi: Tensor
    laws: tuple[Law, ...]
    theta: Tensor


@singledispatch
def products(model: Model) -> Products:
    """The numbers of a family that is a mixture of products; register a function for another family.

    Raises:
        Unavailable: the family, or this model of it, is none.
    """
    raise Unavailable("a shallow circuit", model.noun, "it is no mixture of products", families=("latent_class", "independent", "gmm"))


@products.register
def _(model: LatentClass) -> Products:
    return Products(model.log_pi, model.columns.laws, model.theta)


@products.register
def _(model: Independent) -> Products:
    return Products(model.theta.new_zeros(1), model.columns.laws, model.theta[None])


@products.register
def _(model: GaussianMixture) -> Products:
    width = len(model.domain)
    if not model.components.sums_over(range(width)):
        raise Unavailable(
            "a shallow circuit", model.noun, "the variables of a component depend on each other", instead="covariance=diagonal"
        )
    scale = model.spread[..., 0].sqrt().expand(model.mu.shape)
    theta = torch.stack((model.mu, inverse_positive(scale)), dim=-1).flatten(1)
    return Products(model.log_weight, (Normal(),) * width, theta)


@torch.no_grad()
def as_circuit(model: Model) -> Model:
    """The same p as a `Circuit`, which answers what circuits do (covariances, all leave-one-outs in one pass, ...).

    Behind maps of preparation, the circuit stands in the family's place.

    Raises:
        Unavailable: it is no mixture of products.
    """
    if isinstance(model, Prepared):
        return model._over(as_circuit(model.base), range(len(model.domain)))
    log_pi, laws, theta = products(model)
    circuit = Circuit(model.domain, len(log_pi), laws=laws).to(theta)
    circuit.take(Graph.of(mixture(len(laws)), len(laws)))
    circuit.root.copy_(log_pi[None])
    circuit.theta.copy_(theta)
    return circuit
