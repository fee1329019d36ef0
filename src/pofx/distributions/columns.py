"""A row of variables: the product of one law for each."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.distributions.base import Law, Weights
from pofx.distributions.restricted import restricted
from pofx.events import Condition
from pofx.types import Generator

Rows = Float[Tensor, "*#batch D"]
RowParameters = Float[Tensor, "*#batch P"]


class _Group(NamedTuple):
    """The variables that share a law. Their parameters lie side by side, so that finding them is a view."""

    law: Law
    at: list[int]  # the variables
    where: slice | Tensor  # the same, as the quickest index
    begin: int  # of their parameters
    end: int


class Columns:
    """p(x) = prod_d p_d(x_d), one law a variable, as functions of one vector of parameters.

    Equal laws are one vectorised call: 784 equal pixels cost no more Python than one. The parameters of equal
    laws stand together, in the order in which the laws first appear.

    Args:
        laws: one for each variable.
    """

    def __init__(self, laws: Sequence[Law]) -> None:
        self.laws = tuple(laws)
        members: dict[Law, list[int]] = {}
        for d, law in enumerate(self.laws):
            members.setdefault(law, []).append(d)
        self._groups: list[_Group] = []
        self.width = 0
        for law, at in members.items():
            self._groups.append(_Group(law, at, _quickest(at), self.width, self.width + len(at) * law.width))
            self.width = self._groups[-1].end
        order = [d for group in self._groups for d in group.at]
        # None: the groups follow each other as the variables do, and nothing needs to be put back in order.
        self._restore = None if order == list(range(len(order))) else torch.tensor(order).argsort()

    def log_prob(self, parameters: RowParameters, x: Rows, *, inside: bool = False) -> Rows:
        """log p_d(x_d), one number a variable, 0 at NaN; batch dimensions broadcast.

        Args:
            parameters: (*batch, width).
            x: rows.
            inside: whether every value is known to lie inside its law's support, and none is missing: nothing is asked then.
        """
        if len(self._groups) == 1:
            return _log_prob(self._groups[0].law, self._own(self._groups[0], parameters), x, inside)
        return self._joined([_log_prob(g.law, self._own(g, parameters), x[..., g.where], inside) for g in self._groups])

    def sample(self, parameters: RowParameters, *, generator: Generator = None) -> Rows:
        """One draw per parameter vector."""
        return self._each(parameters, lambda law, own: law.sample(own, generator=generator))

    def mean(self, parameters: RowParameters) -> Rows:
        """E[x_d] (of the codes, where x_d is a level)."""
        return self._each(parameters, lambda law, own: law.mean(own))

    def variance(self, parameters: RowParameters) -> Rows:
        """Var[x_d] (of the codes, where x_d is a level)."""
        return self._each(parameters, lambda law, own: law.variance(own))

    def mode(self, parameters: RowParameters) -> Rows:
        """A most probable x."""
        return self._each(parameters, lambda law, own: law.mode(own))

    def centre(self, parameters: RowParameters) -> Rows:
        """The mean of numbers, the mode of levels: what imputation fills in."""
        return self._each(parameters, lambda law, own: law.centre(own))

    def log_prior(self, parameters: RowParameters) -> Rows:
        """What `fit` adds to the log-likelihood, one number a variable."""
        return self._each(parameters, lambda law, own: law.log_prior(own))

    def fit(self, x: Float[Tensor, "N D"], weights: Weights, start: Float[Tensor, "K P"] | None = None) -> Float[Tensor, "K P"]:
        """Weighted maximum likelihood of every variable for K weightings at once: (K, width). See `Law.fit`."""
        parts = []
        for g in self._groups:
            own = None if start is None else self._own(g, start).transpose(0, 1)
            parts.append(g.law.fit_columns(x[:, g.where], weights, own).transpose(0, 1).flatten(1))
        return torch.cat(parts, dim=-1)

    def select(self, keep: Sequence[int]) -> "tuple[Columns, Tensor]":
        """The product over some variables, in the order given, and where its parameters stand in this one's."""
        chosen = Columns([self.laws[d] for d in keep])
        begins = self._begins
        positions = [begins[keep[i]] + j for g in chosen._groups for i in g.at for j in range(g.law.width)]
        return chosen, torch.tensor(positions, dtype=torch.long)

    def restricted(self, conditions: Mapping[int, Condition]) -> "tuple[Columns, Tensor]":
        """The product with some laws restricted to conditions, and where its parameters stand in this one's."""
        laws = [restricted(law, conditions[d]) if d in conditions else law for d, law in enumerate(self.laws)]
        other, begins = Columns(laws), self._begins
        positions = [begins[d] + j for g in other._groups for d in g.at for j in range(g.law.width)]
        return other, torch.tensor(positions, dtype=torch.long)

    def log_chance(self, parameters: RowParameters, conditions: Mapping[int, Condition]) -> Rows:
        """log P(x_d meets its condition), 0 where there is none: (*batch, D)."""
        out = parameters.new_zeros(*parameters.shape[:-1], len(self.laws))
        for d, condition in conditions.items():
            own = parameters[..., self._begins[d] : self._begins[d] + self.laws[d].width]
            out[..., d] = self.laws[d].log_chance(own, condition)
        return out

    def log_expectation(self, parameters: Float[Tensor, "K P"], factors: Mapping[int, tuple[Tensor, Tensor]]) -> Float[Tensor, "R K D"]:
        """log sum_v p_d(v) w_d(v) of functions w on listed values, 0 where there is none; factors as `Model.log_expectation` has them."""
        rows = max(len(log_w) for _, log_w in factors.values())
        out = parameters.new_zeros(rows, len(parameters), len(self.laws))
        for d, (values, log_w) in factors.items():
            own = parameters[:, self._begins[d] : self._begins[d] + self.laws[d].width]
            log_p = self.laws[d].log_prob(own[:, None], values.to(own))  # (K, V)
            out[..., d] = (log_p + log_w.to(own)[:, None]).logsumexp(-1)
        return out

    def entropy(self, parameters: RowParameters) -> Rows:
        """-E[log p_d(x_d)], one number a variable.

        Raises:
            Unavailable: a law has no closed form.
        """
        return self._each(parameters, lambda law, own: law.entropy(own))

    @property
    def _begins(self) -> dict[int, int]:
        """Where each variable's parameters begin."""
        return {d: g.begin + i * g.law.width for g in self._groups for i, d in enumerate(g.at)}

    def _own(self, group: _Group, parameters: Tensor) -> Tensor:
        """The parameters of a group (*batch, its variables, width of its law): a view."""
        # A slice of everything is a view, too, but its gradient would be copied.
        own = parameters if len(self._groups) == 1 else parameters[..., group.begin : group.end]
        return own.unflatten(-1, (len(group.at), group.law.width))

    def _each(self, parameters: Tensor, ask: Callable[[Law, Tensor], Tensor]) -> Tensor:
        return self._joined([ask(g.law, self._own(g, parameters)) for g in self._groups])

    def _joined(self, parts: list[Tensor]) -> Tensor:
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return joined if self._restore is None else joined[..., self._restore]


def _quickest(at: list[int]) -> slice | Tensor:
    """A slice (a view) where the variables stand side by side."""
    neighbours = at == list(range(at[0], at[0] + len(at)))
    return slice(at[0], at[0] + len(at)) if neighbours else torch.tensor(at)


def _log_prob(law: Law, parameters: Tensor, x: Tensor, inside: bool) -> Tensor:
    return law.log_prob_inside(parameters, x) if inside else law.log_prob(parameters, x)
