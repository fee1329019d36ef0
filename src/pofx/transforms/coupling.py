"""Coupling: one half of the variables passes unchanged and steers how the other half moves."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pofx.errors import OptionError
from pofx.nets.mlp import MLP
from pofx.transforms.base import Transform
from pofx.types import Context, Nats, X

FAR = 1e3  # steering values are clipped to it: a half that is out there (or infinite) must not make NaN of the other


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
