"""A partition of the rows to start a mixture from: greedy k-means++ with restarts, then a few Lloyd steps."""

import math

import torch
from torch import Tensor

from pofx.distributions.drawing import draw
from pofx.types import Codes, Generator, X

ROWS_FOR_CENTRES = 20_000  # centres are sought among this many rows, or 100 a part: more do not find better ones
LLOYD_STEPS = 5


def partition(y: X, parts: int, *, restarts: int = 1, generator: Generator = None) -> Codes:
    """Which of `parts` parts each row is in: the restart with the smallest within-part sum of squares.

    That sum after seeding ranks restarts nearly as the likelihood after EM does, at a fraction of the cost.

    Source: Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007; the greedy choice
    among 2 + ⌊log K⌋ candidates is the variant they mention.

    Args:
        y: rows (N, D), on comparable scales, complete.
        parts: K, at most N.
        restarts: how many seedings are compared.
        generator: of the draws.
    """
    size = max(ROWS_FOR_CENTRES, 100 * parts)
    few = y if len(y) <= size else y[torch.randperm(len(y), generator=generator, device=y.device)[:size]]
    seedings = [_seed(few, parts, generator) for _ in range(restarts)]
    centres = min(seedings, key=lambda seeding: seeding[1])[0]
    for _ in range(LLOYD_STEPS):
        centres = _centroids(few, nearest(few, centres), centres)
    return nearest(y, centres)


def nearest(y: X, centres: Tensor) -> Codes:
    """The nearest centre of each row."""
    half = 0.5 * centres.square().sum(1)
    return torch.cat([(rows @ centres.T - half).argmax(1) for rows in y.split(4096)])


def _seed(y: Tensor, parts: int, generator: Generator) -> tuple[Tensor, float]:
    """Greedy k-means++: centres, and the sum over rows of the squared distance to the nearest."""
    squares = y.square().sum(1)
    chosen = draw(torch.ones_like(squares), 1, generator=generator)
    distance = _squared_distance(y, squares, chosen)[:, 0]
    for _ in range(parts - 1):
        candidates = draw(distance, 2 + int(math.log(parts)), generator=generator)
        shrunk = torch.minimum(distance[:, None], _squared_distance(y, squares, candidates))
        best = shrunk.sum(0).argmin()
        chosen, distance = torch.cat((chosen, candidates[best, None])), shrunk[:, best]
    return y[chosen], float(distance.sum())


def _squared_distance(y: Tensor, squares: Tensor, to: Tensor) -> Tensor:
    return (squares[:, None] - 2 * y @ y[to].T + squares[to]).clamp_min(0)


def _centroids(y: Tensor, part: Tensor, before: Tensor) -> Tensor:
    count = torch.bincount(part, minlength=len(before))
    total = torch.zeros_like(before).index_add_(0, part, y)
    return torch.where(count[:, None] > 0, total / count.clamp_min(1)[:, None], before)
