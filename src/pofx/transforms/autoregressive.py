"""Autoregressive transforms: each variable is moved by a monotone map that the variables before it steer."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pofx.native import kernels
from pofx.nets.made import FAR, MADE, Unrolled
from pofx.transforms.base import Upright, Variables
from pofx.transforms.monotone import Affine, Monotone


class Autoregressive(Upright):
    """u_i = f(x_i; raw_i(x_1 ... x_i-1, c)): masked autoregressive flow, J_T triangular.

    Data to base is one pass of the net. Base to data solves one variable after the other; `MADE.unroll` computes each hidden unit
    once, so that this costs about one pass, too, and not D, gradients included. Starts as the identity.

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

    def behind(self, keep: Variables) -> Variables | None:
        """The same variables, where they are those that come first: u_1 ... u_k is a bijection of x_1 ... x_k."""
        return keep if list(range(self.net.form.dim)[self.net.before(len(keep))]) == list(keep) else None

    def select(self, keep: Sequence[int]) -> "Autoregressive":
        """The transform of the variables that come first."""
        if self.behind(keep) is None:
            return cast("Autoregressive", super().select(keep))
        part = Autoregressive.__new__(Autoregressive)
        torch.nn.Module.__init__(part)
        part.monotone, part.net = self.monotone, self.net.first(len(keep))
        return part

    def to_base(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """One pass."""
        if law := self._native(x):
            return _natively(x, self.net.by_context(c), self.net, law)
        u, log_slope = self.monotone.to_base(x, self.net(x, c))
        return u, log_slope.sum(0)

    def to_data(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """One variable after the other."""
        if not torch.is_grad_enabled():
            state, log_det = self.unrolled(u, c, keep=False)
            return state.x, log_det
        x, log_det = _ToData.apply(u, c, self, *self.net.weights)
        return x, log_det

    def _native(self, v: Tensor) -> kernels.Map | None:
        """The map in C, where the kernels take it and the net."""
        return self.monotone.native if kernels.takes(v, self.net.theta) else None

    @torch.no_grad()
    def unrolled(self, u: Tensor, c: Tensor | None, *, keep: bool) -> tuple[Unrolled, Tensor]:
        """What the net is at x = T(u), and log|det J_T|, (N,).

        Args:
            u: (D, N).
            c: conditions (C, N).
            keep: whether a gradient will be asked for; if not, the state may hold x alone.
        """
        if law := self._native(u):
            net = self.net
            x, log_det, outputs, *units = kernels.unroll(net.form, net.theta, law, kernels.TO_DATA, u, net.by_context(c), keep=keep)
            return Unrolled(x, x.clamp(-FAR, FAR), outputs, *(list(t.split(net.form.widths)) for t in units)), log_det
        log_slope = torch.empty_like(u)

        def solve(d: int, raw: Tensor) -> Tensor:
            x, log_slope[d : d + 1] = self.monotone.to_data(u[d : d + 1], raw[:, None])
            return x[0]

        return self.net.unroll(solve, u, c), log_slope.sum(0)


def _natively(x: Tensor, context: Tensor | None, net: MADE, law: kernels.Map) -> tuple[Tensor, Tensor]:
    """The way to the base in C; `context` is what the condition adds to the first layer."""
    if torch.is_grad_enabled():
        u, log_det = _Native.apply(x, context, net.form, law, net.theta)
        return u, log_det
    seen = kernels.unroll(net.form, net.theta, law, kernels.TO_BASE, x, context, keep=False)
    return seen.out, seen.log_det


class _Native(torch.autograd.Function):
    """Net and map as one function of x and of what the condition adds."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        context: Tensor | None,
        form: kernels.Net,
        law: kernels.Map,
        theta: Tensor,
    ) -> tuple[Tensor, Tensor]:
        seen = kernels.unroll(form, theta, law, kernels.TO_BASE, x, context, keep=True)
        ctx.form, ctx.law, ctx.kept = form, law, seen[2:]
        ctx.save_for_backward(x, context, theta)
        return seen.out, seen.log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_u: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, context, theta = ctx.saved_tensors
        to_x, to_context, to_theta = kernels.pull_unrolled(ctx.form, theta, ctx.law, x, context, ctx.kept, grad_u, grad_log)
        return to_x, to_context, None, None, to_theta


class _ToData(torch.autograd.Function):
    """x_i = f^-1(u_i; raw_i(x_1 ... x_i-1, c)). Its gradient unrolls too, the last variable first: no more work than the way there."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        u: Tensor,
        c: Tensor | None,
        transform: Autoregressive,
        *weights: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        state, log_det = transform.unrolled(u, c, keep=True)
        ctx.transform, ctx.state = transform, state
        ctx.save_for_backward(u, *([] if c is None else [c]))
        return state.x.clone(), log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        u, *given = ctx.saved_tensors
        c, net = (given[0] if given else None), ctx.transform.net
        with torch.enable_grad():
            parts = u.detach().requires_grad_(), ctx.state.outputs.detach().requires_grad_()
            x, log_slope = ctx.transform.monotone.to_data(*parts)
            by_u, by_raw = torch.autograd.grad(x, parts, torch.ones_like(x), retain_graph=True)
            own_u, own_raw = _gradient(log_slope, parts, grad_log.expand_as(u))
        grad, to_c, *weights = net.pull_back(ctx.state, grad_x, by_raw, own_raw, c)
        return grad * by_u + own_u, to_c, None, *weights


def _gradient(value: Tensor, of: tuple[Tensor, Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """Zeros where the value does not depend on them."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(t) for t in of)
    return torch.autograd.grad(value, of, grad, allow_unused=True, materialize_grads=True)
