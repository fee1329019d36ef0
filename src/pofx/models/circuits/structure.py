"""Which variables depend on which: mutual information, and the tree that keeps the most of it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pofx.errors import OptionError
from pofx.models.circuits.graph import Node

BINS = 12  # of a variable with many values
_ROWS = 50_000  # that mutual information is measured on


def cells(x: Tensor, bins: int = BINS) -> list[Tensor]:
    """Each column of x (N, D) as codes 0, 1, ...: its values where there are few, else bins of equal mass.

    A missing cell has a code of its own, so that what is missing together counts as dependence, too.
    """
    return [_codes(column, bins) for column in x.unbind(1)]


def _codes(column: Tensor, bins: int) -> Tensor:
    seen = ~column.isnan()
    values = column[seen].unique()
    if len(values) > bins:
        cuts = torch.arange(1, bins, dtype=torch.float64, device=column.device) / bins
        values = torch.quantile(column[seen].double(), cuts).unique()
    code = torch.searchsorted(values.double(), column.double().contiguous(), right=True)
    return torch.where(seen, code, len(values) + 1)


def dependence(x: Tensor) -> Tensor:
    """The mutual information of every two columns of x (N, D), binned where they have many values: (D, D)."""
    rows = x if len(x) <= _ROWS else x[torch.linspace(0, len(x) - 1, _ROWS, device=x.device).long()]
    compact = [c.unique(return_inverse=True) for c in cells(rows)]
    return mutual_information([code for _, code in compact], [len(values) for values, _ in compact])


def mutual_information(codes: Sequence[Tensor], levels: Sequence[int], alpha: float = 1.0) -> Tensor:
    """I(x_a; x_b) in nats for every pair of variables, (D, D), with alpha added to every joint count; 0 on the diagonal.

    Cost: one matrix product of the one-hot rows, N (sum of levels)^2.
    """
    n, device = len(codes[0]), codes[0].device
    begin = torch.tensor([0, *levels], device=device).cumsum(0)
    width = int(begin[-1])
    joint = torch.zeros(width, width, dtype=torch.float64, device=device)
    for rows in torch.arange(n, device=device).split(2**14):
        hot = torch.zeros(len(rows), width, device=device)
        hot.scatter_(1, torch.stack([c[rows] + b for c, b in zip(codes, begin[:-1], strict=True)], dim=1), 1.0)
        joint += (hot.T @ hot).double()
    group = torch.repeat_interleave(torch.arange(len(levels), device=device), torch.tensor(levels, device=device))
    size = torch.tensor(levels, dtype=torch.float64, device=device)
    p = (joint + alpha) / (n + alpha * size[group][:, None] * size[group])
    # The marginals of the smoothed joint itself, which differ from pair to pair: that makes each a mutual information.
    onto = torch.zeros(width, len(levels), dtype=torch.float64, device=device)
    onto[torch.arange(width, device=device), group] = 1.0
    left, right = p @ onto, onto.T @ p
    terms = p * (p.log() - left[:, group].log() - right[group].log())
    information = onto.T @ terms @ onto
    return information.fill_diagonal_(0.0)


def spanning_tree(weight: Tensor) -> list[int]:
    """The maximum spanning tree of (D, D) weights, rooted at its centre: each variable's parent, -1 at the root.

    The centre is the middle of a longest path, which halves the depth. Among equal weights the first pair wins.

    Source: Prim, "Shortest connection networks and some generalizations", Bell System Technical Journal 36(6), 1957.
    """
    return _rooted(_prim(weight.cpu()), len(weight))


def _prim(weight: Tensor) -> list[list[int]]:
    """Neighbours in the tree."""
    n = len(weight)
    neighbours: list[list[int]] = [[] for _ in range(n)]
    best, via = weight[0].clone(), torch.zeros(n, dtype=torch.long)
    outside = torch.ones(n, dtype=torch.bool)
    outside[0] = False
    for _ in range(n - 1):
        new = int(torch.where(outside, best, -torch.inf).argmax())
        neighbours[new].append(int(via[new]))
        neighbours[int(via[new])].append(new)
        outside[new] = False
        closer = weight[new] > best
        best, via = torch.where(closer, weight[new], best), torch.where(closer, new, via)
    return neighbours


def _rooted(neighbours: list[list[int]], n: int) -> list[int]:
    end = _parents(neighbours, 0)[1]
    parents, other = _parents(neighbours, end)
    path = [other]
    while path[-1] != end:
        path.append(parents[path[-1]])
    return _parents(neighbours, path[len(path) // 2])[0][:n]


def _parents(neighbours: list[list[int]], root: int) -> tuple[list[int], int]:
    """Each one's neighbour on the way to the root, and one that is farthest from it."""
    parents, order = [-1] * len(neighbours), [root]
    for v in order:
        for w in neighbours[v]:
            if w != parents[v]:
                parents[w] = v
                order.append(w)
    return parents, order[-1]


def tree(parents: Sequence[int]) -> list[Node]:
    """A node with one input for each variable, below the node of its parent."""
    children: list[list[int]] = [[] for _ in parents]
    for v, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(v)
    return [Node((v,), tuple((c,) for c in below)) for v, below in enumerate(children)]


def mixture(width: int) -> list[Node]:
    """One node with every variable: a mixture of products, a latent class model."""
    return [Node(tuple(range(width)))]


def random_trees(width: int, replicas: int, depth: int) -> list[Node]:
    """A mixture of trees, each of which halves the variables at random again and again, and ends in products of the rest.

    Source: Peharz et al., "Random sum-product networks: a simple and effective approach to probabilistic deep learning",
    UAI 2019; with one matrix for each half instead of one for their outer product. Draws come from torch's own generator.
    """
    nodes: list[Node] = []
    for _ in range(replicas):
        _halved(torch.randperm(width).tolist(), depth, nodes)
    return nodes


def _halved(variables: list[int], depth: int, nodes: list[Node]) -> int:
    """Add the node over some variables; its place."""
    if depth == 0 or len(variables) == 1:
        nodes.append(Node(tuple(variables)))
    else:
        middle = len(variables) // 2
        halves = [_halved(part, depth - 1, nodes) for part in (variables[:middle], variables[middle:])]
        nodes.append(Node((), tuple((half,) for half in halves)))
    return len(nodes) - 1


def quad_tree(shape: Sequence[int]) -> list[Node]:
    """A tree over the pixels of an image: a region is the product of its quarters; a pixel, of its channels.

    Source: Mari, Vessio and Vergari, "Unifying and understanding overparameterized circuit representations via low-rank
    tensor decompositions", TPM workshop at UAI 2023.

    Args:
        shape: (H, W) or (C, H, W).

    Raises:
        OptionError: it is no image's.
    """
    if len(shape) not in (2, 3):
        raise OptionError(f"a quad tree is over images (H, W) or (C, H, W), got shape {tuple(shape)}")
    *channels, height, width = shape
    nodes: list[Node] = []
    _quartered((0, height), (0, width), (channels[0] if channels else 1, height, width), nodes)
    return nodes


def _quartered(rows: tuple[int, int], columns: tuple[int, int], image: tuple[int, int, int], nodes: list[Node]) -> int:
    channels, height, width = image
    if rows[1] - rows[0] == columns[1] - columns[0] == 1:
        nodes.append(Node(tuple((c * height + rows[0]) * width + columns[0] for c in range(channels))))
    else:
        parts = [_quartered(r, c, image, nodes) for r in _halves(rows) for c in _halves(columns)]
        nodes.append(Node((), tuple((part,) for part in parts)))
    return len(nodes) - 1


def _halves(side: tuple[int, int]) -> list[tuple[int, int]]:
    start, end = side
    middle = (start + end) // 2
    return [side] if end - start == 1 else [(start, middle), (middle, end)]
