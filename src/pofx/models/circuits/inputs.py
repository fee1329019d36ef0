"""Input units: K laws of one variable for each input block, as functions of one tensor of parameters.

A law with few values is read from a table of its probabilities, one row a value: no exponential for a row of data. Every
other law gives log-densities, from which the greatest of the K is taken out before the exponential.
An unobserved cell has factor 1.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from pofx.distributions.base import Law
from pofx.distributions.choose import default_law
from pofx.distributions.columns import Columns
from pofx.distributions.discrete import Bernoulli, Categorical, FiniteLaw
from pofx.distributions.restricted import restricted
from pofx.domain import Variable, VariableKind
from pofx.events import Condition
from pofx.models.circuits.graph import Index, quickest
from pofx.models.circuits.passes import Leaves
from pofx.types import Generator

Of = TypeVar("Of")
TABLE_AT_MOST = 1024  # values of a law that is read from a table
_FREE_AT_MOST = 256  # values of a count whose probabilities are free; a curve has to do for more
_ELEMENTS_AT_ONCE = 2**22  # of the largest temporary of a draw


def leaf(variable: Variable) -> Law:
    """The law of a variable in an input unit."""
    if variable.kind is VariableKind.COUNT and 1 < (variable.cardinality or math.inf) <= _FREE_AT_MOST:
        lower, size = int(variable.lower), variable.cardinality or 0
        return Bernoulli(numbers=True) if (lower, variable.upper) == (0, 1) else Categorical(size, first=lower, numbers=True)
    return default_law(variable)


class _Tabled(NamedTuple):
    """Input blocks whose laws are equal and have few values."""

    law: FiniteLaw
    blocks: Tensor  # which inputs they are, (n,)
    first: float  # the least value
    levels: int
    begin: int  # of their rows in the table
    at: Index  # their parameters
    variables: Index  # and what they are laws of


class Evaluated(NamedTuple):
    """The inputs at some rows, before the exponential."""

    table: Tensor  # log-probabilities of every value, (T + 2, K); the last rows: unobserved (0), impossible (-inf)
    rows: Tensor  # of the table, for each tabled input and row, (I_t, B)
    log_f: Tensor  # of the other inputs, (I_o, B, K)


class Inputs:
    """The laws of the input blocks.

    Args:
        laws: one for each variable.
        variable: of each input block.
    """

    def __init__(self, laws: Sequence[Law], variable: Sequence[int]) -> None:
        self.laws, self.variable = tuple(laws), tuple(variable)
        self.columns = Columns([laws[d] for d in variable])
        members: dict[Law, list[int]] = {}
        for i, d in enumerate(variable):
            members.setdefault(laws[d], []).append(i)
        self.tabled: list[_Tabled] = []
        self.size = 0  # rows of the table
        for law, blocks in members.items():
            if isinstance(law, FiniteLaw) and law.levels <= TABLE_AT_MOST:
                places = quickest(self.columns.select(blocks)[1]), quickest(torch.tensor([variable[i] for i in blocks]))
                self.tabled.append(_Tabled(law, torch.tensor(blocks), float(law.first), law.levels, self.size, *places))
                self.size += len(blocks) * law.levels
        listed = [i for group in self.tabled for i in group.blocks.tolist()]
        others = sorted(set(range(len(self.variable))) - set(listed))
        self.others = torch.tensor(others, dtype=torch.long)
        self._other_variables = torch.tensor([self.variable[i] for i in others], dtype=torch.long)
        self._other_columns, self._other_parameters = self.columns.select(others)
        order = [*listed, *others]
        self._restore = None if order == sorted(order) else torch.tensor(order).argsort()
        self._order = torch.tensor(order, dtype=torch.long)
        # Of each parameter of the others, which of them it belongs to.
        self._owner_of = torch.tensor(_owners(self._other_columns, len(others)), dtype=torch.long)

    @property
    def width(self) -> int:
        """How many parameters a unit of every block has, together."""
        return self.columns.width

    def evaluate(self, theta: Tensor, x: Tensor) -> Evaluated:
        """Log f_i(x | k) at rows x (B, D), for parameters (K, width)."""
        rows = [self._rows(group, x) for group in self.tabled]
        nothing = torch.empty(0, len(x), dtype=torch.long, device=x.device)
        return Evaluated(self.log_table(theta), torch.cat([nothing, *rows]), self._log_others(theta, x))

    def log_table(self, theta: Tensor) -> Tensor:
        """Of every tabled block and value the log-probability, then what stands for a missing and an impossible cell."""
        parts = [g.law.log_masses(self._own(theta, g)).permute(1, 2, 0).flatten(0, 1) for g in self.tabled]
        ends = theta.new_tensor([0.0, -torch.inf])[:, None].expand(2, len(theta))
        return torch.cat([*parts, ends])

    def _own(self, theta: Tensor, group: _Tabled) -> Tensor:
        return theta[:, group.at].unflatten(1, (len(group.blocks), group.law.width))

    def _rows(self, group: _Tabled, x: Tensor) -> Tensor:
        """Where in the table each cell of the group's variables stands: (n, B)."""
        code = x[:, group.variables].T - group.first
        inside = (code >= 0) & (code < group.levels) & (code == code.floor())
        offset = group.begin + group.levels * torch.arange(len(group.blocks), device=x.device)[:, None]
        row = torch.where(inside, code, 0.0).long() + offset
        return torch.where(inside, row, torch.where(code.isnan(), self.size, self.size + 1))

    def _log_others(self, theta: Tensor, x: Tensor) -> Tensor:
        if not len(self.others):
            return theta.new_empty(0, len(x), len(theta))
        own = theta[:, self._other_parameters.to(theta.device)]
        cells = x[:, self._other_variables.to(x.device)]
        return self._other_columns.log_prob(own, cells[:, None]).permute(2, 0, 1)

    def leaves(self, at: Evaluated) -> Leaves:
        """The inputs in linear space."""
        value = at.table.exp()[at.rows.flatten()].unflatten(0, at.rows.shape)
        if not len(self.others):
            return Leaves(self._in_order(value))
        top = at.log_f.amax(-1)
        safe = torch.where(top.isneginf(), 0.0, top)
        scale = torch.cat((safe.new_zeros(at.rows.shape), safe))
        value = torch.cat((value, (at.log_f - safe[..., None]).exp()))
        return Leaves(self._in_order(value), self._in_order(scale))

    def restricted(self, conditions: Mapping[int, Condition]) -> "tuple[Inputs, Tensor]":
        """The inputs given that variables meet conditions, and where their parameters stand in this one's."""
        laws = [restricted(law, conditions[d]) if d in conditions else law for d, law in enumerate(self.laws)]
        other = Inputs(laws, self.variable)
        return other, self.columns.restricted(self._by_input(conditions))[1]

    def chances(self, theta: Tensor, conditions: Mapping[int, Condition]) -> Leaves:
        """P_i(condition | k), 1 of a variable without one: what takes the place of the inputs, for one row."""
        return linear(self.columns.log_chance(theta, self._by_input(conditions))[None])

    def expectations(self, theta: Tensor, factors: Mapping[int, tuple[Tensor, Tensor]]) -> Leaves:
        """E[w_d(x_d) | k] of each input, 1 of a variable without w, for R rows of functions."""
        return linear(self.columns.log_expectation(theta, self._by_input(factors)))

    def _by_input(self, of_variables: Mapping[int, Of]) -> dict[int, Of]:
        return {i: of_variables[d] for i, d in enumerate(self.variable) if d in of_variables}

    def counts(self, at: Evaluated, gamma: Tensor) -> tuple[Tensor, Tensor]:
        """Flows (I, B, K) as the gradients of the table and of the other log-densities."""
        if self._restore is not None:
            gamma = gamma[self._order.to(gamma.device)]
        tabled = len(at.rows)
        table = torch.zeros_like(at.table).index_add_(0, at.rows.flatten(), gamma[:tabled].flatten(0, 1))
        table[self.size :] = 0.0
        return table, gamma[tabled:]

    def sample(self, theta: Tensor, state: Tensor, *, generator: Generator = None) -> Tensor:
        """A draw of each input under the unit that takes part, (I, B), for units (I, B)."""
        drawn = [self._draw(theta, group, state[group.blocks.to(state.device)], generator) for group in self.tabled]
        if len(self.others):
            own = theta[:, self._other_parameters.to(theta.device)]
            chosen = state[self.others.to(state.device)][self._owner_of.to(state.device)].T  # (B, width)
            drawn.append(self._other_columns.sample(own.gather(0, chosen), generator=generator).T)
        return self._in_order(torch.cat(drawn))

    def _draw(self, theta: Tensor, group: _Tabled, state: Tensor, generator: Generator) -> Tensor:
        """By the inverse CDF, a few blocks at a time."""
        upto = group.law.log_masses(self._own(theta, group)).exp().cumsum(-1).transpose(0, 1)  # (n, K, levels)
        u = torch.rand(state.shape, generator=generator, dtype=upto.dtype, device=upto.device)
        size = max(1, _ELEMENTS_AT_ONCE // (state.shape[1] * group.levels))
        parts = zip(upto.split(size), state.split(size), u.split(size), strict=True)
        codes = [(p.gather(1, k[..., None].expand(-1, -1, group.levels)) <= v[..., None]).sum(-1) for p, k, v in parts]
        return torch.cat(codes).clamp_max(group.levels - 1).to(theta) + group.first

    def _in_order(self, stacked: Tensor) -> Tensor:
        return stacked if self._restore is None else stacked[self._restore.to(stacked.device)]


def linear(log_f: Tensor) -> Leaves:
    """Inputs (R, K, I) in logs, in linear space."""
    top = log_f.amax(1)
    safe = torch.where(top.isneginf(), 0.0, top)
    return Leaves((log_f - safe[:, None]).exp().permute(2, 0, 1), safe.T)


def _owners(columns: Columns, size: int) -> list[int]:
    """Of each parameter of a product of laws, whose it is."""
    owner = [0] * columns.width
    for i in range(size):
        for position in columns.select([i])[1].tolist():
            owner[position] = i
    return owner
