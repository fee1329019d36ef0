"""Draws of a diffusion model led to what is seen of a row: the twist that its heads know."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.models.diffusion.heads import Coordinates, Heads
from pofx.types import Generator, Nats, Point


@dataclass(frozen=True)
class Seen:
    """psi_s(y) = prod_d p(x_d | y) over the cells that are seen, as the heads have it; a `samplers.twisted.Twist`.

    Of finitely many values that is their law given y; of reals N(x_0; D, s^2 / (1 + s^2)). The last step draws every cell from the same
    law on its own, so that what is seen is drawn exactly, and p(seen) is a probability of values times a density of reals.

    Args:
        heads: of the model.
        out: the network's outputs at y and s, all cells noised.
        row: what is seen, NaN elsewhere.
    """

    heads: Heads
    out: Callable[[Tensor, Tensor], Tensor]
    row: Point

    def check(self, y: Coordinates) -> None:
        """Any rows will do."""

    def log_twist(self, y: Coordinates, x_hat: Coordinates, s: Tensor) -> Nats:
        """log psi_s(y). Cost: a second pass of the network, for outputs that D does not show."""
        rows, levels = self.row.expand(len(y), -1), s.expand(len(y), 1)
        each = self.heads.log_seen(self.out(y, levels), y, levels, rows.nan_to_num())
        return torch.where(rows.isnan(), 0.0, each).sum(1)

    def log_last(self, y: Coordinates, x_hat: Coordinates, s: Tensor) -> Nats:
        """The same."""
        with torch.no_grad():
            return self.log_twist(y, x_hat, s)

    def draw_last(self, x_hat: Coordinates, s: Tensor, *, generator: Generator) -> Coordinates:
        """x_hat, what is seen in its place."""
        seen = ~self.heads.of_coordinates(self.row.isnan())
        return torch.where(seen, self.heads.embed(self.row[None]), x_hat)
