"""Fully connected nets."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn


class MLP(nn.Sequential):
    """h(v) = W_K a(... a(W_1 v + b_1) ...) + b_K, from R^inputs to R^outputs.

    Args:
        inputs: width of v.
        outputs: width of h(v).
        widths: hidden widths; () is an affine map.
        activation: makes the a between the layers.
        zero_last: start W_K and b_K at zero, so that h = 0: a flow starts as the identity, a head at its biases.
        dropout: share of hidden units dropped while training.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        widths: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = nn.SiLU,
        zero_last: bool = True,
        dropout: float = 0.0,
    ) -> None:
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise((inputs, *widths)):
            layers += [nn.Linear(n_in, n_out), activation()]
            layers += [nn.Dropout(dropout)] if dropout else []
        last = nn.Linear((inputs, *widths)[-1], outputs)
        if zero_last:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        super().__init__(*layers, last)

    @property
    def last(self) -> nn.Linear:
        """The layer of W_K and b_K."""
        return cast("nn.Linear", self[-1])

    def upright(self, v: Tensor) -> Tensor:
        """The same net on columns: (inputs, N) -> (outputs, N)."""
        for layer in self:
            v = torch.addmm(layer.bias[:, None], layer.weight, v) if isinstance(layer, nn.Linear) else layer(v)
        return v
