"""Residual nets: blocks that add to what passes through them."""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, relu

from pofx.nets.waves import Waves


class ResidualMLP(nn.Module):
    """h_0 = W_0 w(v) + b_0, h_k = h_k-1 + B_k(relu(A_k relu(h_k-1) + a_k)) + b_k, out = W h_K + b; the last layer starts at zero.

    Args:
        inputs: width of v.
        outputs: width of the result.
        width: of h.
        blocks: K.
        dropout: share of a block's inner units dropped while training.
        waves: w; none when not given.
    """

    def __init__(
        self, inputs: int, outputs: int, width: int = 64, blocks: int = 2, dropout: float = 0.0, waves: Waves | None = None
    ) -> None:
        super().__init__()
        self.waves = waves or Waves()
        self.first, self.last = nn.Linear(inputs * self.waves.width, width), nn.Linear(width, outputs)
        self.blocks: list[tuple[nn.Linear, nn.Linear]] = nn.ModuleList(  # type: ignore[assignment]
            nn.ModuleList((nn.Linear(width, width), nn.Linear(width, width))) for _ in range(blocks)
        )
        self.dropout = dropout
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, v: Tensor) -> Tensor:
        """(*batch, inputs) -> (*batch, outputs)."""
        return self.upright(v.reshape(-1, v.shape[-1]).T).T.reshape(*v.shape[:-1], -1)

    def upright(self, v: Tensor) -> Tensor:
        """The same net on columns: (inputs, N) -> (outputs, N)."""
        h = _affine(self.first, self.waves(v))
        for inner, outer in self.blocks:
            within = relu(_affine(inner, relu(h)))
            h = h + _affine(outer, dropout(within, self.dropout, self.training))
        return _affine(self.last, relu(h))


def _affine(layer: nn.Linear, v: Tensor) -> Tensor:
    return torch.addmm(layer.bias[:, None], layer.weight, v)
