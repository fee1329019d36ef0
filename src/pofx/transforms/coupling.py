"""Coupling: one half of the variables passes unchanged and steers how the other half moves."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pofx.errors import OptionError
from pofx.nets.mlp import MLP
from pofx.transforms.base import Transform, Upright
from pofx.transforms.monotone import Monotone
from pofx.types import Context, Nats, X

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


class AffineCoupling(Transform):
    """x_a = u_a,  x_b = u_b exp(s(u_a, c)) + t(u_a, c), for the two halves a and b of the variables.

    J_T is triangular, so log|det J_T| = sum of s, and T^-1 costs the same as T. Starts as the identity.
    The halves are split and joined as slices; a permutation between couplings changes who steers whom.

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP", ICLR 2017, arXiv:1605.08803.
    The bound on s by tanh and the clipping of what steers are ours.

    Args:
        dim: number D of variables.
        swap: whether the last half steers the first, not the first the last.
        context: width C of the condition c in p(x | c); 0 for p(x).
        widths: hidden widths of the one net that gives s and t.
        dropout: of that net.
        s_max: bound on |s| in nats a variable.

    Raises:
        OptionError: nothing would steer: one variable and no condition.
    """

    def __init__(
        self, dim: int, *, swap: bool = False, context: int = 0, widths: Sequence[int] = (64, 64), dropout: float = 0.0, s_max: float = 2.0
    ) -> None:
        super().__init__()
        if dim < 1 or dim + context < 2:
            raise OptionError(f"a coupling needs 2 variables, or 1 and a condition, got {dim} and no condition")
        self.swap, self.s_max = swap, s_max
        self.sizes = (dim // 2, dim - dim // 2)
        steering, moved = reversed(self.sizes) if swap and dim > 1 else self.sizes
        self.net = MLP(steering + context, 2 * moved, widths, nn.GELU, dropout=dropout)

    def forward(self, u: X, c: Context | None = None) -> tuple[X, Nats]:
        """Base to data: x = T(u) and log|det J_T(u)|."""
        steering, moved = self._halves(u)
        s, t = self._s_and_t(steering, c)
        return self._joined(steering, moved * s.exp() + t), s.sum(-1)

    def inverse(self, x: X, c: Context | None = None) -> tuple[X, Nats]:
        """Data to base: u = T^-1(x) and log|det J_T^-1(x)|."""
        steering, moved = self._halves(x)
        s, t = self._s_and_t(steering, c)  # the steering half is the same on both sides, so are s and t
        return self._joined(steering, (moved - t) * (-s).exp()), -s.sum(-1)

    def _halves(self, v: Tensor) -> tuple[Tensor, Tensor]:
        first, last = v.split(self.sizes, dim=-1)
        return (last, first) if self._last_steers else (first, last)

    def _joined(self, steering: Tensor, moved: Tensor) -> Tensor:
        return torch.cat((moved, steering) if self._last_steers else (steering, moved), dim=-1)

    @property
    def _last_steers(self) -> bool:
        return self.swap and self.sizes[0] > 0  # a single variable is always the one that moves

    def _s_and_t(self, steering: Tensor, c: Context | None) -> tuple[Tensor, Tensor]:
        steering = steering.clamp(-FAR, FAR)
        s, t = self.net(steering if c is None else torch.cat((steering, c), dim=-1)).chunk(2, dim=-1)
        return self.s_max * torch.tanh(s / self.s_max), t


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
