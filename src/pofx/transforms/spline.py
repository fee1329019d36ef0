"""The monotone rational-quadratic spline as one function with its derivatives in closed form.

On each of K bins, with x in [x_k, x_k + W], theta = (x - x_k) / W, s = H / W and knot slopes d_k, d_k+1,

    y     = y_k + H (s theta^2 + d_k theta (1 - theta)) / D,      D = s + (d_k + d_k+1 - 2 s) theta (1 - theta)
    dy/dx = s^2 M / D^2,      M = d_k+1 theta^2 + 2 s theta (1 - theta) + d_k (1 - theta)^2

Shapes are upright: the batch stands last, so that sums and comparisons over the bins run along whole rows of memory.
x is clamped into the bound before any arithmetic and selected afterwards: no edge, infinity or tail can give NaN.

Source: Durkan, Bekasov, Murray and Papamakarios, "Neural spline flows", NeurIPS 2019, arXiv:1906.04032, equations 4 and 5; Gregory
and Delbourgo, "Piecewise rational quadratic interpolation to monotonic data", IMA Journal of Numerical Analysis 2(2), 1982.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad, softplus

from pofx.native import kernels

LEAST = 1e-3  # of a bin: its width and height over the whole range, and of a slope
ONE = math.log(math.expm1(1 - LEAST))  # the raw number of a slope of 1


class Form(NamedTuple):
    """What kind of spline it is.

    Args:
        bins: K.
        bound: B; the spline maps [-B, B] onto itself.
        circular: whether -B and B are the same point; else the slope is 1 at both, and beyond them the map is the identity.
    """

    bins: int
    bound: float
    circular: bool = False

    @property
    def parameters(self) -> int:
        """Of one variable: K widths, K heights, and the slopes of the knots that are free."""
        return 3 * self.bins - (0 if self.circular else 1)

    @property
    def native(self) -> kernels.Form:
        """The same in C."""
        return kernels.Form(self.bound, LEAST, self.bins, self.circular)


def spline(x: Tensor, parameters: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """y and log dy/dx.

    Args:
        x: (d, N).
        parameters: (form.parameters, d, N), any real numbers: K logits of widths, K of heights, then raw slopes.
        form: the kind.
    """
    return _asked(_Spline, x, parameters, form)


def inverse_spline(y: Tensor, parameters: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """x with spline(x) = y, and log dx/dy; arguments as of `spline`."""
    return _asked(_InverseSpline, y, parameters, form)


def _asked(function: type[torch.autograd.Function], v: Tensor, parameters: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """In single precision at least: half of it can not tell the edges of the narrowest bins apart."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    value, numbers = v.to(dtype), parameters.to(dtype)
    if kernels.takes(value, numbers):
        out, log_slope = _Native.apply(value, numbers, form.native, kernels.TO_BASE if function is _Spline else kernels.TO_DATA)
    else:
        out, log_slope = function.apply(value, numbers, form)
    return out.to(v.dtype), log_slope.to(v.dtype)


class _Native(torch.autograd.Function):
    """The functions below in C, which computes the tables again on the way back."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, parameters: Tensor, form: kernels.Form, way: int) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        ctx.form, ctx.way = form, way
        ctx.save_for_backward(v, parameters)
        return kernels.spline(v, parameters, form, way)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        v, parameters = ctx.saved_tensors
        return *kernels.pull_spline(v, parameters, grad_out, grad_log, ctx.form, ctx.way), None, None


class _Tables(NamedTuple):
    """Of widths and heights, which are axes 0 and 1: the bins' shares of the range, (2, K, d, N), and the knots, (2, K + 1, d, N)."""

    shares: Tensor
    knots: Tensor


class _Bin(NamedTuple):
    """The bin that each value stands in.

    Args:
        knots: its first and second, (2, d, N).
        edges: of both axes, where they are, (2, 2, d, N).
        sizes: W and H, (2, d, N).
        raw: slopes at the knots, raw and not, (2, d, N).
        slopes: d_k and d_k+1.
    """

    knots: Tensor
    edges: Tensor
    sizes: Tensor
    raw: Tensor
    slopes: Tensor


def _units(form: Form) -> tuple[float, float]:
    """A share p of the range is scale p + step wide."""
    return 2 * form.bound * (1 - LEAST * form.bins), 2 * form.bound * LEAST


def _tables(parameters: Tensor, form: Form) -> _Tables:
    """Neighbours share their knot to the last bit, and steep bins leave no gap."""
    scale, step = _units(form)
    shares = parameters[: 2 * form.bins].unflatten(0, (2, -1)).softmax(1)
    knots = pad((shares * scale).add_(step), (0, 0, 0, 0, 1, 0), value=-form.bound).cumsum(1)
    knots[:, -1] = form.bound
    return _Tables(shares, knots)


def _bin(v: Tensor, axis: int, knots: Tensor, parameters: Tensor, form: Form) -> _Bin:
    """Of v in [-B, B] on an axis."""
    k = (v >= knots[axis, 1:-1]).sum(0)
    both = torch.stack((k, k + 1))
    edges = knots.gather(1, both.expand(2, -1, -1, -1))
    raw = _with_ends(parameters[2 * form.bins :], form).gather(0, both)
    return _Bin(both, edges, edges[:, 1] - edges[:, 0], raw, softplus(raw) + LEAST)


def _with_ends(raw: Tensor, form: Form) -> Tensor:
    """Slopes of all knots, raw."""
    return torch.cat((raw, raw[:1])) if form.circular else pad(raw, (0, 0, 0, 0, 1, 1), value=ONE)


def _ratio(theta: Tensor, b: _Bin) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """s, D, M, and the share of H that lies below."""
    (W, H), (d0, d1), rest = b.sizes, b.slopes, 1 - theta
    s, q, square = H / W, theta * rest, theta.square()
    D = torch.addcmul(s, torch.sub(d0 + d1, s, alpha=2), q)
    M = torch.addcmul(torch.addcmul(d1 * square, s, q, value=2), d0, rest.square())
    return s, D, M, torch.addcmul(d0 * q, s, square) / D


def _log_slope(s: Tensor, D: Tensor, M: Tensor) -> Tensor:
    return (M * (s / D).square()).log()


def _root(w: Tensor, b: _Bin) -> Tensor:
    """Theta at which the share w of H lies below.

    The quadratic's discriminant is a sum of squares, e^2 + 4 s^2 w (1 - w) with e = d_k (1 - w) - d_k+1 w. Taken so, and the root by
    whichever sign adds, nothing cancels: the root is good to rounding however stiff the bin.
    """
    (W, H), (d0, d1) = b.sizes, b.slopes
    s, e = H / W, d0 * (1 - w) - d1 * w
    g, twice = 4 * s.square() * w * (1 - w), 2 * s * w
    p = e.abs() + (e.square() + g).sqrt()
    above = torch.where(e >= 0, p, g / p)
    return twice / (twice + above)


class _Spline(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, parameters: Tensor, form: Form) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        tables, inside = _tables(parameters, form), x.abs() <= form.bound
        held = x.clamp(-form.bound, form.bound)
        b = _bin(held, 0, tables.knots, parameters, form)
        theta = (held - b.edges[0, 0]) / b.sizes[0]
        s, D, M, share = _ratio(theta, b)
        ctx.form = form
        ctx.save_for_backward(theta, inside, tables.shares, *b)
        return torch.where(inside, torch.addcmul(b.edges[1, 0], b.sizes[1], share), x), _log_slope(s, D, M) * inside

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        theta, inside, shares, *saved = ctx.saved_tensors
        grad_x, grad_parameters = _pull_back(grad_y * inside, grad_log * inside, theta, shares, _Bin(*saved), ctx.form)
        return torch.where(inside, grad_x, grad_y), grad_parameters, None


class _InverseSpline(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, parameters: Tensor, form: Form) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        tables, inside = _tables(parameters, form), y.abs() <= form.bound
        held = y.clamp(-form.bound, form.bound)
        b = _bin(held, 1, tables.knots, parameters, form)
        theta = _root(((held - b.edges[1, 0]) / b.sizes[1]).clamp(0, 1), b)
        s, D, M, _ = _ratio(theta, b)
        ctx.form = form
        ctx.save_for_backward(theta, inside, tables.shares, *b)
        return torch.where(inside, torch.addcmul(b.edges[0, 0], b.sizes[0], theta), y), -_log_slope(s, D, M) * inside

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """With l = log dy/dx at x: dx = (dy - d_parameters y) / y', and the log-slope of the way back is -l."""
        theta, inside, shares, *saved = ctx.saved_tensors
        b = _Bin(*saved)
        slope = _log_slope(*_ratio(theta, b)[:3]).exp()
        pull = (grad_x - grad_log * _curvature(theta, b)) * inside / slope
        _, grad_parameters = _pull_back(-pull, -grad_log * inside, theta, shares, b, ctx.form)
        return torch.where(inside, pull, grad_x), grad_parameters, None


def _curvature(theta: Tensor, b: _Bin) -> Tensor:
    """d log(dy/dx) / dx."""
    s, D, M, _ = _ratio(theta, b)
    (d0, d1), lean = b.slopes, 1 - 2 * theta
    dM = 2 * (d1 * theta + s * lean - d0 * (1 - theta))
    return (dM / M - 2 * torch.sub(d0 + d1, s, alpha=2) * lean / D) / b.sizes[0]


def _pull_back(grad_y: Tensor, grad_log: Tensor, theta: Tensor, shares: Tensor, b: _Bin, form: Form) -> tuple[Tensor, Tensor]:
    """Gradients in x and in the parameters, of values inside the bound."""
    s, D, M, share = _ratio(theta, b)
    (W, H), (d0, d1), rest = b.sizes, b.slopes, 1 - theta
    q, lean = theta * rest, rest - theta
    up, by_M, by_D = grad_y * H / D, grad_log / M, 2 * grad_log / D
    by_theta = up * s * M / D + 2 * by_M * (d1 * theta + s * lean - d0 * rest) - by_D * torch.sub(d0 + d1, s, alpha=2) * lean
    by_s = up * (theta.square() - share * (1 - 2 * q)) + 2 * (grad_log / s + by_M * q) - by_D * (1 - 2 * q)
    by_d0 = up * q * (1 - share) + by_M * rest.square() - by_D * q
    by_d1 = by_M * theta.square() - by_D * q - up * q * share
    by_left = by_theta / W
    by_size = torch.stack((-(by_s * s + by_theta * theta) / W, grad_y * share + by_s / W))
    grad = grad_y.new_empty(form.parameters, *grad_y.shape)
    grad[2 * form.bins :] = _to_slopes(torch.stack((by_d0, by_d1)) * b.raw.sigmoid(), b, form)
    _into_shares(grad[: 2 * form.bins].unflatten(0, (2, -1)), shares, b, torch.stack((-by_left, grad_y)), by_size, form)
    return by_left, grad


def _to_slopes(by_slopes: Tensor, b: _Bin, form: Form) -> Tensor:
    """The gradient in the free ones, from those at both knots of a bin."""
    grad = by_slopes.new_zeros(form.bins + 1, *by_slopes.shape[1:]).scatter_(0, b.knots, by_slopes)
    if not form.circular:
        return grad[1:-1]
    grad[0] += grad[-1]
    return grad[:-1]


def _into_shares(grad: Tensor, shares: Tensor, b: _Bin, by_edge: Tensor, by_size: Tensor, form: Form) -> None:
    """Through the softmax of both axes: an edge moves with every share below it, a size with its own."""
    scale, step = _units(form)
    k, by_size = b.knots[:1], by_size[:, None] * scale
    which = k.expand(2, 1, -1, -1)
    before = b.edges[:, 0] + form.bound - k * step  # scale times the shares up to k
    mean = torch.addcmul((by_edge * before)[:, None], by_size, shares.gather(1, which))
    bins = torch.arange(form.bins, device=k.device).view(-1, 1, 1)
    torch.mul(bins < k, by_edge[:, None] * scale, out=grad)
    grad.scatter_(1, which, by_size).sub_(mean).mul_(shares)
