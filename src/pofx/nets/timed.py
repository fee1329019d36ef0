"""Nets that are told the time, or the level of noise, beside their input."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, silu

from pofx.nets.waves import Waves

_FREQUENCIES = 16
_TOLD = 64  # what blocks of an mlp are told, whatever their width: half of their cost otherwise
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


class Told(nn.Module):
    """silu(e(u) + C c), what every block of a net is told.

    Args:
        outputs: width of it.
        context: width of c; 0 for none.
    """

    def __init__(self, outputs: int, context: int) -> None:
        super().__init__()
        self.time = TimeEmbedding(outputs)
        self.condition = nn.Linear(context, outputs, bias=False) if context else None

    def forward(self, u: Tensor, c: Tensor | None = None) -> Tensor:
        """u (N, 1), c (N, context) -> (N, outputs); no condition is one of zeros."""
        e: Tensor = self.time(u)
        return silu(e if self.condition is None or c is None else e + self.condition(c))


class TimedMLP(nn.Module):
    """h_0 = W_0 w(v), h_k = h_k-1 + B_k silu((1 + G_k e) A_k silu(h_k-1) + E_k e), e = silu(e(u) + C c), out = W silu(h_K) + b.

    The last layer starts at zero.

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
        self.told = Told(_TOLD, context)
        self.first, self.last = nn.Linear(inputs * self.waves.width, width), nn.Linear(width, outputs)
        self.blocks: list[TimedBlock] = nn.ModuleList(TimedBlock(width, _TOLD, dropout) for _ in range(blocks))  # type: ignore[assignment]
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, v: Tensor, u: Tensor, c: Tensor | None = None) -> Tensor:
        """v (N, inputs), u (N, 1), c (N, context) -> (N, outputs)."""
        e, h = self.told(u, c), self.first(self.waves(v.T).T)
        for block in self.blocks:
            h = block(h, e)
        out: Tensor = self.last(silu(h))
        return out


class TimedBlock(nn.Module):
    """h + B silu((1 + G e) A silu(h) + E e): what is told of a row scales what the block sees of it, and not only shifts it."""

    def __init__(self, width: int, told: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.inner, self.outer, self.told = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(told, 2 * width)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """(N, width), (N, width) -> (N, width)."""
        gain, shift = self.told(e).chunk(2, -1)
        within = silu((1 + gain) * self.inner(silu(h)) + shift)
        after: Tensor = h + self.outer(dropout(within, self.dropout, self.training))
        return after
