"""Coupling: one half of the variables passes unchanged and steers how the other half moves."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pofx.errors import OptionError
from pofx.nets.mlp import MLP
from pofx.transforms.base import Upright
from pofx.transforms.monotone import Monotone

Bend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # from values and raw numbers
FAR = 1e3  # steering values are clipped to it: a half that is out there (or infinite) must not make NaN of the other


@runtime_checkable
class Conditioner(Protocol):
    """A net on columns whose last layer starts at zero."""

    @property
    def last(self) -> nn.Linear:
        """That layer."""

    def upright(self, v: Tensor) -> Tensor:
        """(inputs, N) -> (outputs, N)."""


class Couplings(Upright):
    """K couplings in a row: one half of the variables steers how a monotone map moves the other, then the other way round.

    u_b = f(x_b; net_1(x_a, c)), u_a = f(x_a; net_2(u_b, c)), ...: every J_T is block-triangular, and both ways cost the same. The halves
    stay apart from the first coupling to the last. Starts as the identity.

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP", ICLR 2017, arXiv:1605.08803; Durkan et al., "Neural
    spline flows", NeurIPS 2019, arXiv:1906.04032, with splines for f.

    Args:
        dim: number D of variables.
        layers: K.
        monotone: f.
        first: the half that steers first on the way to the base; the even positions when not given.
        context: width C of the condition c; 0 for none.
        net: makes a conditioner from its numbers of inputs and outputs; its last layer starts at zero.

    Raises:
        OptionError: a half is empty and there is no condition.
    """

    order: Tensor
    back: Tensor

    def __init__(
        self,
        dim: int,
        layers: int,
        monotone: Monotone,
        *,
        first: Sequence[int] | None = None,
        context: int = 0,
        net: Callable[[int, int], Conditioner] = MLP,
    ) -> None:
        super().__init__()
        a = list(range(0, dim, 2)) if first is None else sorted(set(first))
        b = [d for d in range(dim) if d not in a]
        if not context and not (a and b):
            raise OptionError(f"a coupling needs variables in both halves, or a condition; got {len(a)} and {len(b)} and none")
        self.monotone, self.sizes = monotone, (len(a), len(b))
        order = torch.tensor([*a, *b], dtype=torch.long)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        self.moving = [1 - k % 2 if a and b else int(bool(b)) for k in range(layers)]
        self.nets: Sequence[Conditioner] = nn.ModuleList(self._net(net, context, half) for half in self.moving)  # type: ignore[assignment, misc]

    def _net(self, make: Callable[[int, int], Conditioner], context: int, moving: int) -> Conditioner:
        size = self.sizes[moving]
        net = make(self.sizes[1 - moving] + context, self.monotone.size * size)
        with torch.no_grad():
            net.last.bias.copy_(torch.tensor(self.monotone.identity).repeat_interleave(size))
        return net

    def to_base(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """The first coupling first."""
        return self._passed(x, c, self.monotone.to_base, list(zip(self.moving, self.nets, strict=True)))

    def to_data(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """The last coupling first."""
        return self._passed(u, c, self.monotone.to_data, list(zip(self.moving, self.nets, strict=True))[::-1])

    def _passed(self, v: Tensor, c: Tensor | None, bend: Bend, layers: list[tuple[int, Conditioner]]) -> tuple[Tensor, Tensor]:
        halves, log_det = list(v.index_select(0, self.order).split(self.sizes)), v.new_zeros(v.shape[1])
        for moving, net in layers:
            steering = halves[1 - moving].clamp(-FAR, FAR)
            raw = net.upright(steering if c is None else torch.cat((steering, c)))
            halves[moving], log_slope = bend(halves[moving], raw.unflatten(0, (self.monotone.size, -1)))
            log_det = log_det + log_slope.sum(0)
        return torch.cat(halves).index_select(0, self.back), log_det
