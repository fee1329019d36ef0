"""Autoregressive transforms: each variable is moved by a monotone map that the variables before it steer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pofx.nets.made import MADE
from pofx.transforms.base import Upright
from pofx.transforms.monotone import Affine, Monotone


class Autoregressive(Upright):
    """u_i = f(x_i; raw_i(x_1 ... x_i-1, c)): masked autoregressive flow, J_T triangular.

    Data to base is one pass of the net. Base to data solves one variable after the other; `MADE.unroll` computes each hidden
    unit once, so that it costs about one pass, too, and not D. Where gradients are wanted through it, it is D passes; its `Inverse`
    (inverse autoregressive flow) has the cheap gradients that way round. Starts as the identity.

    Source: Papamakarios, Pavlakou and Murray, "Masked autoregressive flow for density estimation", NeurIPS 2017, arXiv:1705.07057.

    Args:
        dim: D.
        monotone: f.
        widths: hidden widths of the net.
        context: width C of the condition c; 0 for none.
        backwards: whether the last variable comes first.
        residual: see `MADE`.
    """

    def __init__(
        self,
        dim: int,
        monotone: Monotone | None = None,
        *,
        widths: Sequence[int] = (128, 128),
        context: int = 0,
        backwards: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.monotone = monotone or Affine()
        start = self.monotone.identity
        self.net = MADE(dim, self.monotone.size, widths, backwards=backwards, context=context, residual=residual, start=start)

    def to_base(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """One pass."""
        u, log_slope = self.monotone.to_base(x, self.net(x, c))
        return u, log_slope.sum(0)

    def to_data(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """One variable after the other."""
        return self._dense(u, c) if torch.is_grad_enabled() else self._unrolled(u, c)

    def _unrolled(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        total = u.new_zeros(u.shape[1])

        def solve(d: int, raw: Tensor) -> Tensor:
            x, log_slope = self.monotone.to_data(u[d : d + 1], raw[:, None])
            total.add_(log_slope[0])
            return x[0]

        return self.net.unroll(solve, u, c), total

    def _dense(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """After i passes, i variables are right."""
        x, log_slope = self.monotone.to_data(u, self.net(torch.zeros_like(u), c))
        for _ in range(len(u) - 1):
            x, log_slope = self.monotone.to_data(u, self.net(x, c))
        return x, log_slope.sum(0)
