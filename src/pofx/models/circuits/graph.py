"""What a circuit is: input, product and sum units, in blocks of K and in levels.

A **node** is a block of K product units. Its k-th unit multiplies the k-th unit of each of its factors:

    v_n[k] = prod_(i in inputs(n)) f_i(x | k)  prod_(s in sums(n)) m_s[k]

An **input** block i is K laws f_i(. | k) of one variable. A **sum** block s is K sum units over the units of its children,

    m_s[j] = sum_(c in children(s)) sum_k W_sc[j, k] v_c[k],    sum_ck W_sc[j, k] = 1,

and the root is one more sum unit, over all units of the nodes that are nobody's child: p(x) = sum_rk pi_rk v_r[k].
A sum block belongs to one node; a node may be the child of many sums. A tree of nodes, each with an input, is a hidden
tree model; one node with all inputs is a mixture of products; K = 1 is a circuit drawn unit by unit.

The order of the nodes is that of their levels: level 0 holds the roots, and a child is deeper than all its parents.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pofx.errors import DataError

Index = slice | Tensor


class Node(NamedTuple):
    """One node as its builder writes it.

    Args:
        variables: of its input blocks, one each.
        sums: of each of its sum blocks the children, as places in the builder's list.
    """

    variables: tuple[int, ...] = ()
    sums: tuple[tuple[int, ...], ...] = ()


class Slot(NamedTuple):
    """One factor of each of some nodes of a level."""

    nodes: Index  # within the level
    factors: Index  # inputs or sums


@dataclass(frozen=True)
class Level:
    """The nodes between which no sum stands, and the sums that belong to them.

    Args:
        nodes: where they stand.
        inputs: their input blocks, the first of each node, then the second, ...
        sums: the same of their sum blocks.
        owned: which sum blocks those are.
        owner: the node of each of them, within the level.
        edges: which pairs of a sum and a child are theirs.
        child: of each edge.
        sum_of: of each edge, counted from the level's first sum; None: each sum has one child, in order.
        tree: whether no child of this level has another parent.
    """

    nodes: slice
    inputs: tuple[Slot, ...]
    sums: tuple[Slot, ...]
    owned: slice
    owner: Index
    edges: slice
    child: Index
    sum_of: Tensor | None
    tree: bool


@dataclass(frozen=True)
class Graph:
    """Who multiplies and who mixes whom, as tensors; parameters are kept elsewhere.

    Args:
        variable: of each input block, (I,).
        holder: the node of each input block, ascending.
        owner: the node of each sum block, (S,), ascending.
        sum_of: the sum block of each edge, (E,), ascending.
        child: the node of each edge, deeper than the owner of its sum.
        size: how many nodes.
        width: how many variables there are.
    """

    variable: Tensor
    holder: Tensor
    owner: Tensor
    sum_of: Tensor
    child: Tensor
    size: int
    width: int

    @classmethod
    def of(cls, nodes: Sequence[Node], width: int) -> "Graph":
        """The graph of a list of nodes in any order.

        Raises:
            DataError: a node is its own descendant.
        """
        order = cls.order(nodes)
        place = {old: new for new, old in enumerate(order)}
        held = [(new, v) for new, old in enumerate(order) for v in nodes[old].variables]
        sums = [(new, children) for new, old in enumerate(order) for children in nodes[old].sums]
        edges = [(s, place[c]) for s, (_, children) in enumerate(sums) for c in children]
        holder, variable = torch.tensor(held, dtype=torch.long).reshape(-1, 2).T
        sum_of, child = torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T
        owner = torch.tensor([new for new, _ in sums], dtype=torch.long)
        return cls(variable.contiguous(), holder.contiguous(), owner, sum_of.contiguous(), child.contiguous(), len(nodes), width)

    @staticmethod
    def order(nodes: Sequence[Node]) -> list[int]:
        """The builder's places in the order of the graph: level by level, and within a level in that of the parents' edges.

        So children follow each other where their parents do, and are slices of the nodes.

        Raises:
            DataError: a node is its own descendant.
        """
        return _breadth_first(nodes, _depths(nodes))

    def __post_init__(self) -> None:
        self._check()

    def _check(self) -> None:
        """Refuse what no circuit is, so that a file cannot send an index astray.

        Raises:
            DataError: saying what is wrong.
        """
        for name, index, end in (
            ("variable", self.variable, self.width),
            ("holder", self.holder, self.size),
            ("owner", self.owner, self.size),
            ("sum", self.sum_of, len(self.owner)),
            ("child", self.child, self.size),
        ):
            if len(index) and not bool(((index >= 0) & (index < end)).all()):
                raise DataError(f"a circuit has a {name} outside 0 ... {end - 1}")
        if len(self.variable) != len(self.holder) or len(self.sum_of) != len(self.child):
            raise DataError("a circuit needs a holder for every input and a child for every edge")
        if any(bool((index.diff() < 0).any()) for index in (self.holder, self.owner, self.sum_of)):
            raise DataError("a circuit's inputs, sums and edges stand in the order of what they belong to")
        if bool((self.child <= self.owner[self.sum_of]).any()) or bool((self.level.diff() < 0).any()):
            raise DataError("a circuit's nodes stand in the order of their levels, children after their parents")
        if len(self.sum_of.unique()) < len(self.owner):
            raise DataError("a circuit has a sum without children")

    @cached_property
    def level(self) -> Tensor:
        """Of each node, the longest way from a root: (N,)."""
        level = [0] * self.size
        for parent, child in zip(self.owner[self.sum_of].tolist(), self.child.tolist(), strict=True):
            level[child] = max(level[child], level[parent] + 1)
        return torch.tensor(level, dtype=torch.long, device=self.holder.device)

    @cached_property
    def roots(self) -> int:
        """How many nodes are nobody's child; they come first."""
        return int((self.level == 0).sum())

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """From the roots down."""
        ends = [0, *self.level.unique_consecutive(return_counts=True)[1].cumsum(0).tolist()]
        return tuple(self._level(a, b) for a, b in pairwise(ends))

    def _level(self, a: int, b: int) -> Level:
        inputs, sums = _within(self.holder, a, b), _within(self.owner, a, b)
        edges = _within(self.sum_of, sums.start, sums.stop)
        sum_of, child = self.sum_of[edges] - sums.start, self.child[edges]
        single = torch.equal(sum_of, torch.arange(sums.stop - sums.start, device=sum_of.device))
        shared = bool((self.child.bincount(minlength=self.size)[child] > 1).any())
        return Level(
            nodes=slice(a, b),
            inputs=_slots(self.holder[inputs] - a, inputs.start),
            sums=_slots(self.owner[sums] - a, sums.start),
            owned=sums,
            owner=quickest(self.owner[sums] - a),
            edges=edges,
            child=quickest(child),
            sum_of=None if single else sum_of,
            tree=not shared,
        )

    @cached_property
    def scopes(self) -> tuple[frozenset[int], ...]:
        """The variables below each node."""
        scope: list[set[int]] = [set() for _ in range(self.size)]
        for node, variable in zip(self.holder.tolist(), self.variable.tolist(), strict=True):
            scope[node].add(variable)
        edges = list(zip(self.owner[self.sum_of].tolist(), self.child.tolist(), strict=True))
        for parent, child in reversed(edges):  # children come after their parents, so theirs are whole
            scope[parent] |= scope[child]
        return tuple(map(frozenset, scope))

    def select(self, keep: Sequence[int]) -> "tuple[Graph, Tensor, Tensor, Tensor]":
        """The circuit over some variables, in the order given: the graph, and which inputs, edges and roots are left.

        A node without any of the variables below it is a factor 1 and goes.
        """
        place = torch.full((self.width,), -1, device=self.variable.device)
        place[list(keep)] = torch.arange(len(keep), device=place.device)
        stays = torch.tensor([bool(scope & set(keep)) for scope in self.scopes], device=place.device)
        inputs, edges = place[self.variable] >= 0, stays[self.child]
        sums = torch.zeros(len(self.owner), dtype=torch.bool, device=place.device).index_fill_(0, self.sum_of[edges], True)
        node, number = stays.cumsum(0) - 1, sums.cumsum(0) - 1
        part = Graph(
            variable=place[self.variable[inputs]],
            holder=node[self.holder[inputs]],
            owner=node[self.owner[sums]],
            sum_of=number[self.sum_of[edges]],
            child=node[self.child[edges]],
            size=int(stays.sum()),
            width=len(keep),
        )
        return part, inputs.nonzero()[:, 0], edges.nonzero()[:, 0], stays[: self.roots].nonzero()[:, 0]

    @cached_property
    def smooth(self) -> bool:
        """Whether every sum mixes units over the same variables, and the root over all of them."""
        below: dict[int, frozenset[int]] = {}
        same = all(
            below.setdefault(s, self.scopes[c]) == self.scopes[c] for s, c in zip(self.sum_of.tolist(), self.child.tolist(), strict=True)
        )
        return same and all(scope == self.scopes[0] for scope in self.scopes[: self.roots])

    @cached_property
    def decomposable(self) -> bool:
        """Whether the factors of every product are over different variables."""
        heads = {s: self.scopes[c] for s, c in zip(self.sum_of.tolist(), self.child.tolist(), strict=True)}
        seen: list[set[int]] = [set() for _ in range(self.size)]
        factors: Iterable[tuple[int, frozenset[int]]] = [
            *((n, frozenset({v})) for n, v in zip(self.holder.tolist(), self.variable.tolist(), strict=True)),
            *((n, heads[s]) for s, n in enumerate(self.owner.tolist())),
        ]
        for node, scope in factors:
            if seen[node] & scope:
                return False
            seen[node] |= scope
        return True


def quickest(at: Tensor) -> Index:
    """A slice (a view) where the places follow each other."""
    if len(at) and bool((at.diff() == 1).all()):
        return slice(int(at[0]), int(at[-1]) + 1)
    return at


def _within(ascending: Tensor, a: int, b: int) -> slice:
    """Where the values a ... b - 1 stand."""
    ends = torch.searchsorted(ascending, torch.tensor([a, b], device=ascending.device))
    return slice(int(ends[0]), int(ends[1]))


def _slots(nodes: Tensor, first: int) -> tuple[Slot, ...]:
    """The first factor of each node, the second, ...: nodes (F,) ascending, of factors first, first + 1, ..."""
    if not len(nodes):
        return ()
    starts = torch.searchsorted(nodes, nodes)
    rank = torch.arange(len(nodes), device=nodes.device) - starts
    chosen = ((rank == r).nonzero()[:, 0] for r in range(int(rank.max()) + 1))
    return tuple(Slot(quickest(nodes[at]), quickest(at + first)) for at in chosen)


def _depths(nodes: Sequence[Node]) -> list[int]:
    """The longest way to each node from one that is nobody's child."""
    children = [[c for s in node.sums for c in s] for node in nodes]
    waits = [0] * len(nodes)
    for below in children:
        for c in below:
            waits[c] += 1
    depth, ready = [0] * len(nodes), [n for n, w in enumerate(waits) if w == 0]
    for n in ready:
        for c in children[n]:
            depth[c] = max(depth[c], depth[n] + 1)
            waits[c] -= 1
            if waits[c] == 0:
                ready.append(c)
    if len(ready) < len(nodes):
        raise DataError("a circuit has no cycles: a node is its own descendant")
    return depth


def _breadth_first(nodes: Sequence[Node], depth: Sequence[int]) -> list[int]:
    """The nodes by depth, those of a depth in the order in which parents name them."""
    order = [n for n, d in enumerate(depth) if d == 0]
    placed = set(order)
    for d in range(1, max(depth, default=0) + 1):
        level = [c for p in order for s in nodes[p].sums for c in s if depth[c] == d]
        order += [c for c in dict.fromkeys(level) if c not in placed]
        placed.update(level)
    return order
