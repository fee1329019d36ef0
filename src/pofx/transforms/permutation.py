"""Permutations: which variables stand next to each other, and so who steers whom."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pofx.errors import OptionError
from pofx.transforms.base import Upright, Variables


class Permutation(Upright):
    """x_d = u_(order[d]); |det J| = 1.

    Args:
        order: a permutation of 0 ... D-1.

    Raises:
        OptionError: it is none.
    """

    order: Tensor
    back: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        if sorted(order) != list(range(len(order))):
            raise OptionError(f"a permutation holds each of 0 ... {len(order) - 1} once, got {list(order)}")
        back = sorted(range(len(order)), key=order.__getitem__)
        self.register_buffer("order", torch.tensor(list(order)), persistent=False)
        self.register_buffer("back", torch.tensor(back), persistent=False)

    @classmethod
    def riffle(cls, dim: int) -> "Permutation":
        """The odd positions, then the even ones: after log2 D of them any two variables have been in different halves."""
        return cls([*range(1, dim, 2), *range(0, dim, 2)])

    def behind(self, keep: Variables) -> Variables:
        """Where they stand at the base."""
        return sorted(self.order[list(keep)].tolist())

    def select(self, keep: Sequence[int]) -> "Permutation":
        """The order that some variables have among themselves."""
        return Permutation(self.order[list(keep)].argsort().argsort().tolist())

    def to_data(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """x_d = u_(order[d])."""
        return u.index_select(0, self.order), u.new_zeros(u.shape[1])

    def to_base(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Each back to where it was."""
        return x.index_select(0, self.back), x.new_zeros(x.shape[1])
