"""Growing and pruning a density tree, on the codes of cells; the mathematics stands in `density_tree`."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pofx.distributions.cells import normalise

LIGHT = 1 / 32  # of a row: no lighter part is split off, so that missing cells can not multiply the work
PRIOR = 8.0  # rows of the parent's law in the odds of the two sides
SEARCHED = 8192  # rows of a node the split is looked for on


@dataclass(frozen=True)
class Groups:
    """The codes of each variable put together for the search of splits.

    Args:
        of: group of each code, (D, C + 1); the unobserved code has group T.
        ordered: whether a variable splits at a threshold or into one group against the rest, (D,).
        size: T, groups a variable.
    """

    of: Tensor
    ordered: Tensor
    size: int

    @classmethod
    def by_mass(cls, mass: Tensor, ordered: Tensor, most: int) -> "Groups":
        """At most `most` groups of about equal mass; of unordered codes the frequent ones alone and the rest together."""
        allowed = mass > 0
        each = allowed.cumsum(1) - 1
        equal = ((normalise(mass).cumsum(1) - normalise(mass) / 2) * most).floor().long()
        frequent = mass.argsort(1, descending=True).argsort(1)
        group = torch.where(ordered[:, None], equal, frequent)
        group = torch.where(allowed.sum(1, keepdim=True) <= most, each, group).clamp(0, most - 1)
        return cls(torch.nn.functional.pad(group, (0, 1), value=most), ordered, most)

    def side(self, variable: int, group: int) -> Tensor:
        """Which codes of the variable go left when it is split at the group, (C,)."""
        of = self.of[variable, :-1]
        return of <= group if self.ordered[variable] else of == group


@dataclass
class Node:
    """A box: the rows in it, with the share of each, and their counts by cell (D, C); children once it is split."""

    rows: Tensor
    share: Tensor
    counts: Tensor
    held: "Node | None" = None  # the held-out rows in the same box
    parent: int = -1
    is_left: bool = False
    variable: int = -1
    left: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    children: tuple[int, int] | None = None


def count(code: Tensor, share: Tensor, size: int) -> Tensor:
    """Weight of the rows by variable and code, (D, C)."""
    total = share.new_zeros(code.shape[1], size + 1)
    return total.scatter_add_(1, code.T, share.expand(code.T.shape))[:, :-1]


def root(code: Tensor, held: Tensor, size: int) -> Node:
    """The whole space, with all rows and all held-out rows."""

    def whole(code: Tensor) -> Node:
        share = torch.ones(len(code), dtype=torch.float64, device=code.device)
        return Node(torch.arange(len(code), device=code.device), share, count(code, share, size))

    node = whole(code)
    node.held = whole(held)
    return node


def grow(code: Tensor, held: Tensor, groups: Groups, *, min_leaf: int, max_leaves: int) -> Iterator[list[Node]]:
    """Split every box with enough rows, level by level; yield all boxes, parents first, after each level."""
    size = groups.of.shape[1] - 1
    nodes = [root(code, held, size)]
    frontier: tuple[int, ...] = (0,)
    while frontier:
        yield nodes
        children = [_split(nodes, i, code, held, groups, min_leaf, max_leaves) for i in frontier]
        frontier = tuple(child for pair in children for child in pair)


def _split(nodes: list[Node], i: int, code: Tensor, held: Tensor, groups: Groups, min_leaf: int, max_leaves: int) -> tuple[int, ...]:
    """Split box i where it gains most, if it may be split; the positions of its children."""
    node = nodes[i]
    if len(nodes) >= 2 * max_leaves - 1 or float(node.share.sum()) < 2 * min_leaf:
        return ()
    found = best_split(groups.of, code[node.rows], node.share, groups, min_leaf)
    if found is None:
        return ()
    node.variable, group = found
    node.left = groups.side(node.variable, group)
    node.children = len(nodes), len(nodes) + 1
    odds = _log_odds(node, code)
    halves, held_halves = (_divide(n, c, node, odds) for n, c in ((node, code), (node.held, held)) if n is not None)
    for half, held_half in zip(halves, held_halves, strict=True):
        half.held, half.parent, half.is_left = held_half, i, half is halves[0]
        nodes.append(half)
    return node.children


def _log_odds(node: Node, code: Tensor) -> Tensor:
    """log P(k_j | left) - log P(k_j | right) by variable and code, (D, C + 1), from the rows that show their side.

    The odds of the sides themselves stand where the split variable is unobserved; elsewhere unobserved is 0.
    """
    size = len(node.left)
    k = code[node.rows, node.variable]
    to_left = torch.cat((node.left, node.left.new_zeros(1)))[k]
    left, right = (count(code[node.rows], node.share * side, size) for side in (to_left, ~to_left & (k < size)))
    both = PRIOR * normalise(node.counts + 1 / size)
    odds = torch.nn.functional.pad(normalise(left + both).log() - normalise(right + both).log(), (0, 1))
    odds[node.variable] = 0.0
    odds[node.variable, -1] = (left[node.variable].sum() / right[node.variable].sum()).log()
    return odds


def _divide(of: Node, code: Tensor, by: Node, odds: Tensor) -> tuple[Node, Node]:
    """The rows left and right of a split; a row that does not show its side goes both ways, as its other cells suggest."""
    own = code[of.rows]
    k = own[:, by.variable]
    size = len(by.left)
    likely = odds.gather(1, own.T).sum(0).sigmoid()
    likely = torch.where(torch.minimum(likely, 1 - likely) * of.share > LIGHT, likely, (likely > 0.5).to(likely))
    left = torch.cat((by.left, by.left.new_zeros(1)))[k].to(likely)
    to_left = of.share * torch.where(k == size, likely, left)

    def half(share: Tensor) -> Node:
        inside = share > 0
        return Node(of.rows[inside], share[inside], count(own[inside], share[inside], size))

    return half(to_left), half(of.share - to_left)


def best_split(of: Tensor, code: Tensor, share: Tensor, groups: Groups, min_leaf: int) -> tuple[int, int] | None:
    """The variable and group whose split gains most log-likelihood, None if no split leaves enough rows on both sides.

    With n rows and s the side of the split, the gain is n sum_j I(s; group of x_j) over the other variables j.
    """
    stride = -(-len(code) // SEARCHED)
    together = _together(of, code[::stride], share[::stride] * stride, groups.size)  # (D, T, D, T)
    left = torch.where(groups.ordered[:, None, None, None], together.cumsum(1), together)
    total = together.sum(1, keepdim=True)
    right = (total - left).clamp(min=0)
    n_left, n_right, n = left.sum(3), right.sum(3), total.sum(3)
    gain = (_x_log_x(left) + _x_log_x(right) - _x_log_x(total)).sum(3) - (_x_log_x(n_left) + _x_log_x(n_right) - _x_log_x(n))
    own = torch.eye(len(of), dtype=torch.bool, device=code.device)[:, None]
    smaller = torch.minimum(n_left, n_right)[own.expand_as(gain)].reshape(gain.shape[:2])
    gains = torch.where(smaller >= min_leaf, gain.masked_fill(own, 0.0).sum(2), -torch.inf)
    best = int(gains.argmax())
    return divmod(best, groups.size) if gains.flatten()[best] > 0 else None


def _together(of: Tensor, code: Tensor, share: Tensor, size: int) -> Tensor:
    """How much weight has group s of variable i and group t of variable j, (D, T, D, T): one matrix product."""
    width = len(of)
    total = torch.zeros(width * size, width * size, dtype=torch.float32, device=code.device)
    for rows, weight in zip(code.split(1024), share.to(total).split(1024), strict=True):
        group = of.gather(1, rows.T).T[..., None]
        hot = total.new_zeros(len(rows), width, size + 1).scatter_(2, group, 1.0)[..., :size].flatten(1)
        total.addmm_((hot * weight[:, None]).T, hot)
    return total.reshape(width, size, width, size)


def _x_log_x(x: Tensor) -> Tensor:
    return torch.xlogy(x, x)


def tables(nodes: list[Node], pseudo: Tensor, kappa: float) -> tuple[Tensor, Tensor]:
    """log w (M,) and P (M, D, C) of every box, each shrunk towards its parent's restricted to it."""
    log_weight = pseudo.new_zeros(len(nodes))
    mass = pseudo.new_zeros(len(nodes), *pseudo.shape)
    mass[0] = normalise(nodes[0].counts + pseudo)
    for i, node in enumerate(nodes[1:], start=1):
        split = nodes[node.parent]
        prior = mass[node.parent].clone()
        prior[split.variable] *= split.left if node.is_left else ~split.left
        share = prior[split.variable].sum()
        prior[split.variable] /= share
        log_weight[i] = log_weight[node.parent] + share.log()
        mass[i] = normalise(node.counts + kappa * prior)
    return log_weight, mass


def prune(nodes: list[Node], log_weight: Tensor, mass: Tensor, penalties: Tensor) -> tuple[Tensor, Tensor]:
    """For each penalty a leaf, lambda (S,): the held-out log-likelihood of the best subtree (S,), and which boxes it splits (M, S).

    The best subtree has the greatest log-likelihood of its own rows minus lambda times its leaves; it is found from
    the leaves up.
    """
    value = torch.stack([_log_likelihood(n, w, m) for n, w, m in zip(nodes, log_weight, mass, strict=True)])[:, None] - penalties
    held = torch.stack([_log_likelihood(n.held or n, w, m) for n, w, m in zip(nodes, log_weight, mass, strict=True)])
    held = held[:, None].repeat(1, len(penalties))
    splits = torch.zeros_like(value, dtype=torch.bool)
    for i in reversed(range(len(nodes))):
        children = nodes[i].children
        if children is not None:
            both = list(children)
            splits[i] = value[both].sum(0) > value[i] + 1e-9
            value[i] = torch.where(splits[i], value[both].sum(0), value[i])
            held[i] = torch.where(splits[i], held[both].sum(0), held[i])
    return held[0], splits


def _log_likelihood(rows: Node, log_weight: Tensor, mass: Tensor) -> Tensor:
    """log-likelihood of the cells of the rows in a box, as a leaf.

    A row in several boxes with shares r counts sum r (log p(box, row) - log r), a bound that is tight at the posterior.
    """
    return rows.share.sum() * log_weight + torch.xlogy(rows.counts, mass).sum() - _x_log_x(rows.share).sum()
