"""What learning minimises: an objective names its players and whose turn it is.

Most objectives have one player, the model. An adversarial one has two who differ about the sign:
each turn yields a player and the loss that this player alone descends before the next turn begins.
"""

from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from pofx.types import Generator, Nats


@runtime_checkable
class Objective(Protocol):
    """Turns of (player, loss per datum) on a batch.

    The turns are lazy: the player named has stepped before the objective is asked for the next turn,
    so a later loss sees the earlier player's new parameters. The first turn's loss is also what
    held-out rows are judged by.
    """

    @property
    def players(self) -> Mapping[str, nn.Module]:
        """Who learns: each player has an optimiser of its own."""

    def __call__(self, x: Tensor, c: Tensor | None, generator: Generator) -> Iterator[tuple[str, Nats]]:
        """The turns on rows x (N, D), conditions c (N, C); each loss is (N,), in nats where it has a unit."""
