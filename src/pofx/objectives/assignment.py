"""The cheapest way to pair rows: exact assignment by shortest augmenting paths."""

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from pofx.errors import DataError


def assign(cost: Tensor) -> Int[Tensor, " N"]:
    """The permutation pi with the least sum_i cost[i, pi(i)], on the CPU in float64.

    Rows join one by one; each takes the shortest path of re-assignments to a column that is free, by reduced costs cost[i, j] - a_i - b_j
    that are never negative and 0 on pairs. Cost: at most N^3 numbers looked at, N at a time: 7 ms for 64 rows, 130 ms for 256.

    Source: Jonker and Volgenant, "A shortest augmenting path algorithm for dense and sparse linear assignment problems", Computing 38,
    1987.

    Args:
        cost: of each pair, (N, N).

    Raises:
        DataError: the costs are not square, or not finite.
    """
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1] or not bool(cost.isfinite().all()):
        raise DataError(f"an assignment needs finite costs (N, N), got shape {tuple(cost.shape)} or numbers that are not finite")
    table = cost.detach().double().cpu().numpy()
    b = table.min(axis=0, initial=np.inf) if len(table) else np.zeros(0)
    row_of = np.full(len(table), -1)
    waiting = _greedy(table, b, row_of)
    for i in waiting:
        _augment(table, b, row_of, i)
    return torch.from_numpy(np.argsort(row_of)).to(cost.device)


def _greedy(table: NDArray[np.float64], b: NDArray[np.float64], row_of: NDArray[np.int64]) -> list[int]:
    """Give each row its cheapest column where that is free; the rows that get none."""
    waiting = []
    for i, j in enumerate((table - b).argmin(axis=1) if len(table) else ()):
        if row_of[j] < 0:
            row_of[j] = i
        else:
            waiting.append(i)
    return waiting


def _augment(table: NDArray[np.float64], b: NDArray[np.float64], row_of: NDArray[np.int64], i: int) -> None:
    """Assign row i along the shortest path, and lower the prices b of the columns it has passed."""
    n = len(table)
    length, before = np.full(n, np.inf), np.full(n, -1)
    done, passed = np.zeros(n, dtype=bool), []
    j, reached, least = -1, i, 0.0
    while True:
        slack = table[reached] - b
        # What row `reached` pays for its own column is the least that it pays anywhere.
        along = least + slack - (slack[j] if j >= 0 else 0.0)
        better = ~done & (along < length)
        length[better], before[better] = along[better], j
        j = int(np.where(done, np.inf, length).argmin())
        least = length[j]
        if row_of[j] < 0:
            break
        done[j] = True
        passed.append(j)
        reached = int(row_of[j])
    b[passed] += length[passed] - least
    while before[j] >= 0:
        row_of[j] = row_of[before[j]]
        j = int(before[j])
    row_of[j] = i
