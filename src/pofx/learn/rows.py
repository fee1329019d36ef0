"""Rows in memory: one tensor on the device, taken by index."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.samplers.importance import systematic
from pofx.types import Generator


@dataclass(frozen=True)
class Rows:
    """Rows x (N, D), their conditions c (N, C) and weights w (N,), whose mean is 1."""

    x: Tensor
    c: Tensor | None = None
    w: Tensor | None = None

    @classmethod
    def on(cls, device: torch.device, x: Tensor, c: Tensor | None, w: Tensor | None = None) -> "Rows":
        """The rows on a device; weights in any unit."""
        return cls(x.to(device), None if c is None else c.to(device), None if w is None else (w / w.mean()).to(device))

    def __len__(self) -> int:
        return len(self.x)

    def at(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rows of an index."""
        return self.x.index_select(0, index), None if self.c is None else self.c.index_select(0, index)

    def weighed(self, loss: Tensor, index: Tensor) -> Tensor:
        """The losses of the rows of an index, each times its weight: their mean over all rows is sum w loss / sum w."""
        return loss if self.w is None else loss * self.w.index_select(0, index).to(loss)

    def alike(self, generator: Generator) -> "Rows":
        """As many rows of equal weight, each as often as its weight says: for what rows set before the first step."""
        if self.w is None:
            return self
        order = torch.randperm(len(self), generator=generator, device=self.w.device)  # no pattern of the rows meets the comb's
        return Rows(*self.at(order[systematic(self.w[order].log(), len(self), generator=generator)]))
