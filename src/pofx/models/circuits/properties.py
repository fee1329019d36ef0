"""Whether sums of a circuit choose: what the parameters, not the graph, decide."""

import torch
from torch import Tensor

from pofx.models.circuits.graph import Graph
from pofx.models.circuits.inputs import Inputs
from pofx.models.circuits.passes import Mixing


def is_deterministic(graph: Graph, inputs: Inputs, mixing: Mixing, theta: Tensor) -> bool:
    """Whether at most one unit below every sum, and below the root, is positive, whatever x is.

    Read off the inputs of the units themselves: of a variable that each of a sum's children has an input of, every value
    must have probability in one of the units at most. (A circuit may choose deeper down; this does not see it.)
    """
    reached = (mixing.weight.detach() > 0).any(1)  # (E, K)
    edges = [(graph.sum_of == s).nonzero()[:, 0] for s in range(len(graph.owner))]
    groups = [(graph.child[of_sum].tolist(), reached[of_sum]) for of_sum in edges]
    groups.append((list(range(graph.roots)), mixing.root.detach() > 0))
    possible = _possible(inputs, theta)
    held: list[dict[int, int]] = [{} for _ in range(graph.size)]
    for i, (node, d) in enumerate(zip(graph.holder.tolist(), graph.variable.tolist(), strict=True)):
        held[node][d] = i
    return all(_chooses([held[c] for c in children], alive, possible) for children, alive in groups)


def _chooses(children: list[dict[int, int]], alive: Tensor, possible: dict[int, Tensor]) -> bool:
    """Whether one variable tells the units of some nodes apart; alive: (C, K), which of them have any weight."""
    if int(alive.sum()) <= 1:
        return True
    shared = set(children[0]).intersection(*children[1:])
    for d in shared:
        tables = [possible.get(child[d]) for child in children]
        if all(t is not None for t in tables):
            ways = sum((t & a).sum(1) for t, a in zip(tables, alive, strict=True) if t is not None)  # of each value
            if bool((torch.as_tensor(ways) <= 1).all()):
                return True
    return False


def _possible(inputs: Inputs, theta: Tensor) -> dict[int, Tensor]:
    """Of each tabled input, which values have probability in which unit: (levels, K)."""
    table = inputs.log_table(theta.detach()).exp() > 0
    found = {}
    for group in inputs.tabled:
        for j, block in enumerate(group.blocks.tolist()):
            found[block] = table[group.begin + j * group.levels : group.begin + (j + 1) * group.levels]
    return found
