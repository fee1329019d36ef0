"""What a network is told of a row: each variable is noised, given as it is, or absent. And the networks that are told so."""

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pofx.models.diffusion.heads import Coordinates
from pofx.types import Context, Generator

Flags = Float[Tensor, "*batch D"]  # 0 or 1
Both = Float[Tensor, "N E 2"]  # of each coordinate what is noised, and what is given: 0 where it is not


class View(NamedTuple):
    """The cells of rows.

    Args:
        x_0: their coordinates, (N, E).
        given: which variables the network sees as they are.
        absent: which it is to do without.
    """

    x_0: Coordinates
    given: Flags
    absent: Flags

    @property
    def noised(self) -> Flags:
        """The others."""
        return 1 - self.given - self.absent


def some_hidden(view: View, share: float, generator: Generator, picture: tuple[int, int, int] | None = None) -> View:
    """The same rows, of which a share show some of their noised cells as they are (half of them), hide some (a quarter), or both.

    How many is drawn for each row, evenly from none to all; of pictures every second one shows or hides what is outside of a rectangle. A
    network that learns from such views answers p(any cells | any others).

    Args:
        view: rows.
        share: of the rows.
        generator: of the choice.
        picture: (C, H, W), where the variables are pixels.
    """
    if not share:
        return view
    sort = torch.rand(len(view.given), 1, generator=generator, dtype=view.given.dtype, device=view.given.device)
    given = view.noised * (sort < share * 3 / 4) * _chosen(view, generator, picture)
    absent = (view.noised - given) * (sort > share / 2) * (sort < share) * _chosen(view, generator, picture)
    return View(view.x_0, view.given + given, view.absent + absent)


def _chosen(view: View, generator: Generator, picture: tuple[int, int, int] | None) -> Flags:
    """Some cells of each row."""
    n, d = view.given.shape
    draws = torch.rand(n, d + 1, generator=generator, dtype=view.given.dtype, device=view.given.device)
    cells = (draws[:, 1:] < draws[:, :1]).to(draws)
    if picture is None:
        return cells
    channels, *sides = picture
    u = torch.rand(n, 5, generator=generator, dtype=draws.dtype, device=draws.device)
    rows, columns = (_span(u[:, 2 * k : 2 * k + 2], side) for k, side in enumerate(sides))
    outside = 1 - (rows[:, :, None] * columns[:, None, :]).flatten(1).repeat(1, channels)
    return torch.where(u[:, 4:] < 0.5, cells, outside)


def _span(u: Tensor, side: int) -> Flags:
    """A stretch of places for each row, (N, side): it begins before the first in a third of the rows, and often ends at the last."""
    begin = 1.5 * u[:, :1] - 0.5
    place = (torch.arange(side, device=u.device) + 0.5) / side
    return ((place > begin) & (place < begin + 1.5 * u[:, 1:])).to(u)


class Seeing(Protocol):
    """A network of views: (v, view, u, c) to the heads' outputs; v are the coordinates that are noised, and those given, and u = ln s."""

    def __call__(self, v: Both, view: View, u: Tensor, c: Context | None) -> Tensor:
        """(N, E, 2), (N, 1), (N, C) -> (N, outputs)."""


class TableNet(nn.Module):
    """Coordinates side by side; which variables are given or absent is told like a condition.

    Args:
        net: from 2 E numbers, the time and a condition with 2 D flags to the outputs.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, v: Both, view: View, u: Tensor, c: Context | None) -> Tensor:
        """See `Seeing`."""
        told = (view.given, view.absent) if c is None else (view.given, view.absent, c)
        out: Tensor = self.net(v.flatten(1), u, torch.cat(told, -1))
        return out


class VariableNet(nn.Module):
    """Each variable is a token, and absent ones are none.

    Args:
        net: from both sorts of coordinates and flags, variable by variable as the heads have them.
        order: of the heads' variables.
    """

    order: Tensor

    def __init__(self, net: nn.Module, order: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("order", order, persistent=False)

    def forward(self, v: Both, view: View, u: Tensor, c: Context | None) -> Tensor:
        """See `Seeing`."""
        out: Tensor = self.net(v.flatten(1), view.given[:, self.order], view.absent[:, self.order], u, c)
        return out


class PictureNet(nn.Module):
    """Coordinates are pixels, and which are given or absent are channels beside them.

    Args:
        net: from 4 C channels, the time and a condition to C K channels, K outputs a pixel.
        shape: (C, H, W).
    """

    def __init__(self, net: nn.Module, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.net, self.shape = net, shape

    def forward(self, v: Both, view: View, u: Tensor, c: Context | None) -> Tensor:
        """See `Seeing`."""
        channels = torch.cat([part.reshape(-1, *self.shape) for part in (v[..., 0], v[..., 1], view.given, view.absent)], 1)
        out: Tensor = self.net(channels, u, c)
        return out.unflatten(1, (self.shape[0], -1)).movedim(2, -1).flatten(1)
