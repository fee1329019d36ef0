"""Rows in memory: one tensor on the device, taken by index."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows x (N, D) and their conditions c (N, C)."""

    x: Tensor
    c: Tensor | None = None

    @classmethod
    def on(cls, device: torch.device, x: Tensor, c: Tensor | None) -> "Rows":
        """The rows on a device."""
        return cls(x.to(device), None if c is None else c.to(device))

    def __len__(self) -> int:
        return len(self.x)

    def at(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rows of an index."""
        return self.x.index_select(0, index), None if self.c is None else self.c.index_select(0, index)
