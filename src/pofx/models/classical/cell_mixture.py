"""Mixtures of products of histograms on the same cells: what a histogram and a density tree both are."""

import abc
import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from pofx.distributions.cells import Cells, normalise, refuse_cells, refuse_outside, refuse_shape
from pofx.domain import LEVELLED, Domain
from pofx.errors import Unavailable
from pofx.models.base import Model
from pofx.types import Context, Generator, Kind, Nats, Point, X


class CellMixture(Model, abc.ABC):
    """p(x) = sum_l w_l prod_d P_ld(k_d) f_d(x_d | k_d): products of histograms on the same cells.

    State: `log_weight` (L,) = log w and `log_mass` (L, D, C) = log P, -inf where a cell has no mass.
    Every question is answered with an unobserved variable's factor put to 1.

    Args:
        domain: what x is.
        cells: the cells; None: room for a file's tensors.
    """

    missing = Kind.EXACT
    grows: ClassVar[frozenset[str]] = frozenset({"log_weight", "log_mass"})
    log_weight: Tensor
    log_mass: Tensor

    def __init__(self, domain: Domain, cells: Cells | None = None) -> None:
        super().__init__(domain)
        self.cells = cells or Cells(width=len(domain))
        uniform = self.cells.pseudo_counts(self.cells.edges.new_ones(len(domain)))
        self.register_buffer("log_weight", uniform.new_zeros(1))
        self.register_buffer("log_mass", normalise(uniform).log()[None])

    def set_masses(self, log_weight: Tensor, log_mass: Tensor) -> None:
        """Take log w (L,) and log P (L, D, C)."""
        self.log_weight, self.log_mass = log_weight, log_mass

    def log_components(self, code: Tensor) -> Tensor:
        """log w_l + sum_d log P_ld(k_d), (N, L), for codes (N, D)."""
        table = torch.nn.functional.pad(self.log_mass, (0, 1))  # the unobserved code has factor 1
        total = self.log_weight.expand(len(code), -1)
        for d in range(code.shape[1]):
            total = total + table[:, d, code[:, d]].T
        return total

    def _log_cells(self, code: Tensor) -> Tensor:
        """log P(k_1, ..., k_D) of codes (N, D)."""
        return self.log_components(code).logsumexp(1)

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        code = self.cells.code(x)
        return self._log_cells(code) + self.cells.log_density(x, code).sum(1)

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        first = torch.zeros(n, dtype=torch.long, device=self.log_weight.device)
        return self._draw(draw(self.log_weight.exp()[None], first, generator), generator)

    def _draw(self, component: Tensor, generator: Generator) -> Tensor:
        """One row from each of the components (N,), by inverse CDF: one uniform picks the cell, one the place in it."""
        mass = self.log_mass.exp()
        code = torch.stack([draw(mass[:, d], component, generator) for d in range(mass.shape[1])], 1)
        return self.cells.sample(code, generator=generator)

    def _responsibilities(self, x: Tensor) -> Tensor:
        """p(l | observed cells of x), (N, L)."""
        refuse_outside(self.domain, self.cells, x)
        return self.log_components(self.cells.code(x)).softmax(1)

    def _complete(self, x: X, generator: Generator) -> X:
        share = self._responsibilities(x)
        drawn = self._draw(draw(share, torch.arange(len(x), device=share.device), generator), generator)
        return torch.where(x.isnan(), drawn.to(x), x)

    def _impute(self, x: X, generator: Generator) -> X:
        share = self._responsibilities(x)
        filled = share @ self._component_means()
        for d, variable in enumerate(self.domain.variables):
            if variable.kind in LEVELLED:
                filled[:, d] = (share @ self.log_mass[:, d].exp()).argmax(1) - 1  # code 1 is level 0
        return torch.where(x.isnan(), filled.to(x), x)

    def _mean(self) -> Point:
        return self.log_weight.exp() @ self._component_means()

    def _component_means(self) -> Tensor:
        return (self.log_mass.exp() * self.cells.means()).sum(-1)  # (L, D)

    def _mode(self, evidence: Point) -> Point:
        peaks, x = self._component_modes(evidence)
        return x[peaks.argmax()]

    def _restricted(self, other: "CellMixture") -> float:
        """Give another, on restricted cells, the masses of this one given the restriction; log P of it.

        A component that the restriction rules out keeps its masses under a weight of 0.
        """
        share = other.cells.log_share() - self.cells.log_share().nan_to_num(0.0, 0.0, 0.0)
        log_mass = self.log_mass + share
        log_p = log_mass.logsumexp(-1)  # (L, D)
        possible = (log_p > -math.inf)[..., None]
        log_mass = torch.where(possible, log_mass - torch.where(possible, log_p[..., None], 0.0), self.log_mass)
        joint = self.log_weight + log_p.sum(-1)
        total = float(joint.logsumexp(0))
        other.set_masses(self.log_weight if total == -math.inf else joint.log_softmax(0), log_mass)
        return total

    def _log_expectation(self, factors: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        each = (self.log_mass + self.cells.log_expectation(factors)[:, None]).logsumexp(-1)  # (R, L, D)
        return (self.log_weight + each.sum(-1)).logsumexp(-1)

    def _component_modes(self, evidence: Tensor) -> tuple[Tensor, Tensor]:
        """Each component's greatest log w_l p_l(x) with the observed entries fixed, and where: (L,) and (L, D)."""
        evidence = evidence.to(self.cells.edges)
        at, log_peak = self.cells.modes()
        refuse_outside(self.domain, self.cells, evidence[None])
        best = torch.where(self.log_mass.isinf(), -math.inf, self.log_mass + log_peak).max(-1)
        seen = ~evidence.isnan()
        peaks = self.log_components(self.cells.code(evidence[None]))[0] + torch.where(seen, 0.0, best.values).sum(1)
        x = at.expand(self.log_mass.shape).gather(-1, best.indices[..., None])[..., 0]
        return peaks, torch.where(seen, evidence, x)

    def _posterior_log_weight(self, evidence: Tensor) -> Tensor:
        """log p(l | evidence), (L,).

        Raises:
            Unavailable: if the evidence has probability 0.
        """
        code = self.cells.code(evidence[None])
        log_joint = self.log_components(code)[0]
        if log_joint.max() == -math.inf or bool(self.cells.log_density(evidence[None], code).isneginf().any()):
            raise Unavailable("conditional", type(self).__name__, "the evidence has probability 0")
        return log_joint.log_softmax(0)

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take the state that `state_dict` gave."""
        super().load_tensors(tensors)
        refuse_cells(self.cells, len(self.domain))
        refuse_shape("log_mass", self.log_mass, (len(self.log_weight), len(self.domain), self.cells.size))


def draw(probabilities: Tensor, which: Tensor, generator: Generator) -> Tensor:
    """An index k ~ probabilities[w, :] for each w of `which` (N,), by inverse CDF.

    The rows' CDFs are laid one behind the other, F_w + w, and one binary search serves all draws.
    """
    cdf = probabilities.cumsum(-1)
    steps = cdf / cdf[:, -1:] + torch.arange(len(cdf), device=cdf.device)[:, None]
    u = torch.rand(len(which), dtype=cdf.dtype, device=cdf.device, generator=generator)
    place = torch.searchsorted(steps.flatten(), which + u.clamp(max=1 - 1e-11), right=True)
    return place - which * probabilities.shape[1]
