"""A circuit with its numbers, asked: densities, flows, draws, and what a pass up and down says about every cell at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pofx.models.circuits import passes
from pofx.models.circuits.graph import Graph
from pofx.models.circuits.inputs import Inputs
from pofx.models.circuits.passes import Ascent, Flows, Leaves, Mixing
from pofx.models.circuits.properties import is_deterministic
from pofx.types import Generator


class Pass(NamedTuple):
    """Rows seen from below and from above."""

    leaves: Leaves
    ascent: Ascent
    flows: Flows


@dataclass(frozen=True)
class Polynomial:
    """p(x) as a polynomial in the weights and the inputs; without gradients.

    Source of the name: Darwiche, "A differential approach to inference in Bayesian networks", Journal of the ACM 50(3), 2003.

    Args:
        graph: who multiplies and mixes whom.
        inputs: the laws.
        mixing: the weights.
        theta: the parameters of the laws, (K, width).
    """

    graph: Graph
    inputs: Inputs
    mixing: Mixing
    theta: Tensor

    # -- passes ------------------------------------------------------------------------------------

    def leaves(self, x: Tensor) -> Leaves:
        """The inputs at rows (B, D)."""
        return self.inputs.leaves(self.inputs.evaluate(self.theta, x))

    def ascent(self, x: Tensor) -> Ascent:
        """The up pass."""
        return passes.up(self.graph, self.mixing, self.leaves(x))

    def run(self, x: Tensor) -> Pass:
        """One pass up and one down."""
        leaves = self.leaves(x)
        ascent = passes.up(self.graph, self.mixing, leaves)
        return Pass(leaves, ascent, passes.down(self.graph, self.mixing, ascent, edges=False))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p of each row."""
        return self.ascent(x).log_p

    @cached_property
    def of_nothing(self) -> Pass:
        """The passes of one row without any cell: gamma is each unit's probability before anything is seen."""
        return self.run(self.theta.new_full((1, self.graph.width), torch.nan))

    def at_inputs(self, run: Pass) -> Tensor:
        """Gamma of each input's node, (I, B, K)."""
        return run.flows.units[self.graph.holder]

    def gathered(self, at_inputs: Tensor) -> Tensor:
        """Of each variable the sum over its inputs, (I, B, ...) -> (D, B, ...)."""
        empty = at_inputs.new_zeros(self.graph.width, *at_inputs.shape[1:])
        return empty.index_add_(0, self.graph.variable, at_inputs)

    @cached_property
    def deterministic(self) -> bool:
        """Whether at most one term of every sum is positive, whatever x is."""
        return is_deterministic(self.graph, self.inputs, self.mixing, self.theta)

    # -- every cell at once ------------------------------------------------------------------------

    def leave_one_out(self, x: Tensor) -> Tensor:
        """log p(x_d | the other cells of the row), (B, D), 0 at a missing cell.

        With r_ik = gamma_ik / f_i(x_d | k) it is -log sum_ik r_ik over all inputs i of the variable: one pass up and down
        for all cells. Where a unit gives a cell probability 0, cells are left out one after the other instead.
        """
        run = self.run(x)
        if bool((run.leaves.value == 0).any()):
            return self._left_out_in_turn(x, run.ascent.log_p)
        ratio = (self.at_inputs(run) / run.leaves.value).sum(-1)  # (I, B)
        if run.leaves.scale is not None:
            ratio = ratio * (-run.leaves.scale).exp()
        return torch.where(x.isnan(), 0.0, -self.gathered(ratio).log().T)

    def _left_out_in_turn(self, x: Tensor, log_p: Tensor) -> Tensor:
        out = []
        for d in range(x.shape[1]):
            rest = x.clone()
            rest[:, d] = torch.nan
            out.append(torch.where(x[:, d].isnan(), 0.0, log_p - self.log_prob(rest)))
        return torch.stack(out, dim=1)

    def means(self, run: Pass) -> Tensor:
        """E[x_d | row] where x_d is missing, (B, D)."""
        mean = self.inputs.columns.mean(self.theta).T  # (I, K)
        return self.gathered(torch.einsum("ibk,ik->ib", self.at_inputs(run), mean)).T

    def chances(self, run: Pass, d: int, values: Tensor) -> Tensor:
        """P(x_d = value | row) where x_d is missing and discrete, (B, values)."""
        total = self.theta.new_zeros(run.flows.units.shape[1], len(values))
        for i in (self.graph.variable == d).nonzero()[:, 0].tolist():
            law, positions = self.inputs.columns.select([i])
            p = law.log_prob(self.theta[:, None, positions.to(self.theta.device)], values[:, None])[..., 0].exp()  # (K, values)
            total += run.flows.units[self.graph.holder[i]] @ p
        return total

    def covariance(self) -> Tensor:
        """Cov[x_a, x_b] of all pairs of variables, (D, D), where every law has a variance.

        Putting E[x_a | k] + c_a in place of the inputs of x_a makes p the number E[x_a + c_a], and gamma of another input,
        times that number and the unit's mean, E[(x_a + c_a) x_b]: one pass up and down of D rows for all pairs. c_a keeps
        the inputs positive.
        """
        mean, variance = self.inputs.columns.mean(self.theta).T, self.inputs.columns.variance(self.theta).T  # (I, K)
        width, variable = self.graph.width, self.graph.variable
        rise = mean - mean.amin() + 1.0  # E[x_a | k] + c, with one c for all
        value = torch.where(variable[:, None, None] == torch.arange(width, device=variable.device)[:, None], rise[:, None], 1.0)
        ascent = passes.up(self.graph, self.mixing, Leaves(value))
        gamma = passes.down(self.graph, self.mixing, ascent, edges=False).units[self.graph.holder]  # (I, a, K)
        weighted = ascent.log_p.exp() * torch.einsum("iak,ik->ia", gamma, mean)  # E[(x_a + c) x_b], by input of b
        centre = self.means(self.of_nothing)[0]
        product = self.gathered(weighted).T - (1.0 - mean.amin()) * centre  # E[x_a x_b], (a, b)
        own = torch.einsum("ibk,ik->ib", self.at_inputs(self.of_nothing), variance + mean.square())
        return (product - centre[:, None] * centre).diagonal_scatter(self.gathered(own)[:, 0] - centre.square())

    # -- draws -------------------------------------------------------------------------------------

    def draw(self, ascent: Ascent, *, generator: Generator = None) -> Tensor:
        """One draw of all variables given each row that the ascent is of, (B, D)."""
        state = passes.draw(self.graph, self.mixing, ascent, generator=generator)[self.graph.holder]  # (I, B)
        drawn = self.inputs.sample(self.theta, state.clamp_min(0), generator=generator)
        return self.gathered(torch.where(state < 0, 0.0, drawn)).T  # all inputs but one of a variable take no part

    def sample(self, n: int, *, generator: Generator = None) -> Tensor:
        """Draws given nothing, (n, D)."""
        return self.draw(passes.repeated(self.of_nothing.ascent, n), generator=generator)

    # -- circuits again ----------------------------------------------------------------------------

    def given(self, row: Tensor) -> Mixing:
        """The weights of p(. | row), of one row (1, D) of positive probability."""
        return passes.posterior_weights(self.graph, self.mixing, self.ascent(row))

    def weighed(self, leaves: Leaves) -> tuple[Mixing, Tensor]:
        """E[prod_d w_d(x_d)] in logs, from E[w_d | unit] in place of the inputs, and the weights of p times the product over that."""
        ascent = passes.up(self.graph, self.mixing, leaves)
        log_p = ascent.log_p[0]
        return (self.mixing if bool(log_p.isneginf()) else passes.posterior_weights(self.graph, self.mixing, ascent)), log_p

    def part(self, keep: Sequence[int], mixing: Mixing) -> "Polynomial":
        """Over some of the variables, in the order given, under some weights."""
        graph, kept, edges, roots = self.graph.select(keep)
        inputs = Inputs([self.inputs.laws[d] for d in keep], graph.variable.tolist())
        positions = self.inputs.columns.select(kept.tolist())[1].to(self.theta.device)
        return Polynomial(graph, inputs, Mixing(mixing.weight[edges], mixing.root[roots]), self.theta[:, positions])
