"""Which of several: draws by the inverse CDF, on a CPU several times faster than torch.multinomial and without its limit of 2^24."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pofx.types import Generator


def draw_per_row(weights: Float[Tensor, "N K"], *, generator: Generator = None) -> Int[Tensor, " N"]:
    """One position a row, with probability proportional to the row's weights."""
    upto = weights.cumsum(-1)
    u = torch.rand(len(upto), 1, generator=generator, dtype=upto.dtype, device=upto.device) * upto[:, -1:]
    return torch.searchsorted(upto, u, right=True)[:, 0].clamp_max(upto.shape[-1] - 1)


def draw(weights: Float[Tensor, " K"], n: int, *, generator: Generator = None) -> Int[Tensor, " n"]:
    """n positions, with probability proportional to the weights; uniform where every weight is 0."""
    upto = weights.cumsum(0)
    if upto[-1] <= 0:
        upto = torch.ones_like(weights).cumsum(0)
    u = torch.rand(n, generator=generator, dtype=upto.dtype, device=upto.device) * upto[-1]
    return torch.searchsorted(upto, u, right=True).clamp_max(len(weights) - 1)
