"""Nets that are told the time, or the level of noise, beside their input."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, silu

from pofx.nets.waves import Waves

_FREQUENCIES = 16
_FASTEST = 4.0  # radians a unit of time: a net of ln s needs no detail finer than about a unit


class TimeEmbedding(nn.Module):
    """e(u) = W (u, sin w_k u, cos w_k u) + b, w_k rising geometrically from 1/4 to 4 radians a unit.

    Args:
        outputs: width of e.
    """

    frequencies: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        octaves = torch.linspace(-math.log(_FASTEST), math.log(_FASTEST), _FREQUENCIES)
        self.register_buffer("frequencies", octaves.exp(), persistent=False)
        self.linear = nn.Linear(1 + 2 * _FREQUENCIES, outputs)

    def forward(self, u: Tensor) -> Tensor:
        """(N, 1) -> (N, outputs)."""
        angle = u * self.frequencies
        e: Tensor = self.linear(torch.cat((u, angle.sin(), angle.cos()), -1))
        return e


class TimedMLP(nn.Module):
    """h_0 = W_0 w(v), h_k = h_k-1 + B_k silu(A_k norm(h_k-1) + E_k silu(e(u) + C c)), out = W norm(h_K) + b; the last layer starts at zero.

    Args:
        inputs: width of v.
        outputs: width of the result.
        context: width of c; 0 for none.
        width: of h.
        blocks: K.
        dropout: share of a block's inner units dropped while training.
        waves: w; none when not given.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        context: int = 0,
        *,
        width: int = 256,
        blocks: int = 4,
        dropout: float = 0.0,
        waves: Waves | None = None,
    ) -> None:
        super().__init__()
        self.waves, self.dropout = waves or Waves(), dropout
        self.time = TimeEmbedding(width)
        self.embed = nn.Linear(context, width, bias=False) if context else None
        self.first, self.last = nn.Linear(inputs * self.waves.width, width), nn.Linear(width, outputs)
        self.blocks: list[TimedBlock] = nn.ModuleList(TimedBlock(width, dropout) for _ in range(blocks))  # type: ignore[assignment]
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, v: Tensor, u: Tensor, c: Tensor | None = None) -> Tensor:
        """v (N, inputs), u (N, 1), c (N, context) -> (N, outputs)."""
        e = self.time(u)
        e = silu(e if self.embed is None or c is None else e + self.embed(c))
        h = self.first(self.waves(v.T).T if self.waves.count else v)
        for block in self.blocks:
            h = block(h, e)
        out: Tensor = self.last(self.norm(h))
        return out


class TimedBlock(nn.Module):
    """h + B silu(A norm(h) + E e)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = nn.LayerNorm(width)
        self.inner, self.outer, self.time = (nn.Linear(width, width) for _ in range(3))

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """(N, width), (N, width) -> (N, width)."""
        within = silu(self.inner(self.norm(h)) + self.time(e))
        after: Tensor = h + self.outer(dropout(within, self.dropout, self.training))
        return after
