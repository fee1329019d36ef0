"""The monotone rational-quadratic spline as one function with its derivatives in closed form.

On each of K bins, with x in [x_k, x_k + W], theta = (x - x_k) / W, s = H / W and knot slopes d_k, d_k+1,

    y     = y_k + H (s theta^2 + d_k theta (1 - theta)) / D,      D = s + (d_k + d_k+1 - 2 s) theta (1 - theta)
    dy/dx = s^2 M / D^2,      M = d_k+1 theta^2 + 2 s theta (1 - theta) + d_k (1 - theta)^2

Shapes are upright: the batch stands last, so that sums and comparisons over the bins run along whole rows of memory.
x is clamped into the bound before any arithmetic and selected afterwards: no edge, infinity or tail can give NaN.

Source: Durkan, Bekasov, Murray and Papamakarios, "Neural spline flows", NeurIPS 2019, arXiv:1906.04032, equations 4 and 5; Gregory
and Delbourgo, "Piecewise rational quadratic interpolation to monotonic data", IMA Journal of Numerical Analysis 2(2), 1982.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from pofx.native import kernels

LEAST = 1e-3  # of a bin: its width and height over the whole range, and of a slope


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


class _Bin(NamedTuple):
    """The bin that each value stands in, (d, N) each."""

    k: Tensor
    left: Tensor
    below: Tensor
    W: Tensor
    H: Tensor
    raw0: Tensor
    raw1: Tensor
    d0: Tensor
    d1: Tensor


class _Tables(NamedTuple):
    """Shares of the K bins, (K, d, N) each, and their running sums."""

    widths: Tensor
    heights: Tensor
    upto_x: Tensor
    upto_y: Tensor


def _tables(parameters: Tensor, form: Form) -> _Tables:
    K = form.bins
    widths, heights = torch.softmax(parameters[:K], 0), torch.softmax(parameters[K : 2 * K], 0)
    return _Tables(widths, heights, widths.cumsum(0), heights.cumsum(0))


def _units(form: Form) -> tuple[float, float]:
    """A share p of the range is scale p + step wide."""
    return 2 * form.bound * (1 - LEAST * form.bins), 2 * form.bound * LEAST


def _find(v: Tensor, upto: Tensor, form: Form) -> Tensor:
    """The bin of each v in [-B, B], (1, d, N)."""
    scale, step = _units(form)
    inner = torch.arange(1, form.bins, device=v.device, dtype=v.dtype).view(-1, 1, 1) * step - form.bound
    return (v >= torch.add(inner, upto[:-1], alpha=scale)).sum(0, keepdim=True)


def _bin(k: Tensor, tables: _Tables, parameters: Tensor, form: Form) -> _Bin:
    (left, right), (below, above) = (_edges(k, upto, form) for upto in (tables.upto_x, tables.upto_y))
    i0, i1 = _slopes(k, form)
    raw0, raw1 = (parameters[2 * form.bins :].gather(0, i)[0] for i in (i0, i1))
    d0, d1 = softplus(raw0) + LEAST, softplus(raw1) + LEAST
    k = k[0]
    if not form.circular:
        d0, d1 = d0.masked_fill(k == 0, 1.0), d1.masked_fill(k == form.bins - 1, 1.0)
    return _Bin(k, left, below, right - left, above - below, raw0, raw1, d0, d1)


def _edges(k: Tensor, upto: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Both ends of a bin, rounded as `_find` rounds them: neighbours share their edge to the last bit, and steep bins leave no gap."""
    scale, step = _units(form)
    lower, upper = k.to(upto.dtype) * step - form.bound, (k + 1).to(upto.dtype) * step - form.bound
    left = torch.add(lower, upto.gather(0, (k - 1).clamp_min(0)), alpha=scale).masked_fill(k == 0, -form.bound)
    right = torch.add(upper, upto.gather(0, k), alpha=scale).masked_fill(k == form.bins - 1, form.bound)
    return left[0], right[0]


def _slopes(k: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Where the slopes of both ends of a bin stand among the free ones; at an end without a free one, anywhere."""
    if form.circular:
        return k, (k + 1) % form.bins
    return (k - 1).clamp_min(0), k.clamp_max(form.bins - 2)


def _ratio(theta: Tensor, b: _Bin) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """s, D, M, and the share of H that lies below."""
    s, rest = b.H / b.W, 1 - theta
    q = theta * rest
    D = torch.addcmul(s, b.d0 + b.d1 - 2 * s, q)
    M = b.d1 * theta.square() + 2 * s * q + b.d0 * rest.square()
    return s, D, M, (s * theta.square() + b.d0 * q) / D


def _log_slope(s: Tensor, D: Tensor, M: Tensor) -> Tensor:
    return (M * (s / D).square()).log()


def _root(w: Tensor, b: _Bin) -> Tensor:
    """Theta at which the share w of H lies below.

    The quadratic's discriminant is a sum of squares, e^2 + 4 s^2 w (1 - w) with e = d_k (1 - w) - d_k+1 w. Taken so, and the root by
    whichever sign adds, nothing cancels: the root is good to rounding however stiff the bin.
    """
    s, e = b.H / b.W, b.d0 * (1 - w) - b.d1 * w
    g, twice = 4 * s.square() * w * (1 - w), 2 * s * w
    p = e.abs() + (e.square() + g).sqrt()
    above = torch.where(e >= 0, p, g / p)
    return twice / (twice + above)


class _Spline(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, parameters: Tensor, form: Form) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        tables, inside = _tables(parameters, form), x.abs() <= form.bound
        held = x.clamp(-form.bound, form.bound)
        b = _bin(_find(held, tables.upto_x, form), tables, parameters, form)
        theta = (held - b.left) / b.W
        s, D, M, share = _ratio(theta, b)
        ctx.form, ctx.shape = form, parameters.shape
        ctx.save_for_backward(theta, inside, *tables, *b)
        return torch.where(inside, torch.addcmul(b.below, b.H, share), x), _log_slope(s, D, M) * inside

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        theta, inside, *saved = ctx.saved_tensors
        tables, b = _Tables(*saved[:4]), _Bin(*saved[4:])
        grad_x, grad_parameters = _pull_back(grad_y * inside, grad_log * inside, theta, tables, b, ctx.form, ctx.shape)
        return torch.where(inside, grad_x, grad_y), grad_parameters, None


class _InverseSpline(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, parameters: Tensor, form: Form) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        tables, inside = _tables(parameters, form), y.abs() <= form.bound
        held = y.clamp(-form.bound, form.bound)
        b = _bin(_find(held, tables.upto_y, form), tables, parameters, form)
        theta = _root(((held - b.below) / b.H).clamp(0, 1), b)
        s, D, M, _ = _ratio(theta, b)
        ctx.form, ctx.shape = form, parameters.shape
        ctx.save_for_backward(theta, inside, *tables, *b)
        return torch.where(inside, torch.addcmul(b.left, b.W, theta), y), -_log_slope(s, D, M) * inside

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """With l = log dy/dx at x: dx = (dy - d_parameters y) / y', and the log-slope of the way back is -l."""
        theta, inside, *saved = ctx.saved_tensors
        tables, b = _Tables(*saved[:4]), _Bin(*saved[4:])
        slope = _log_slope(*_ratio(theta, b)[:3]).exp()
        pull = (grad_x - grad_log * _curvature(theta, b)) * inside / slope
        _, grad_parameters = _pull_back(-pull, -grad_log * inside, theta, tables, b, ctx.form, ctx.shape)
        return torch.where(inside, pull, grad_x), grad_parameters, None


def _curvature(theta: Tensor, b: _Bin) -> Tensor:
    """d log(dy/dx) / dx."""
    s, D, M, _ = _ratio(theta, b)
    lean = 1 - 2 * theta
    dM = 2 * (b.d1 * theta + s * lean - b.d0 * (1 - theta))
    return (dM / M - 2 * (b.d0 + b.d1 - 2 * s) * lean / D) / b.W


def _pull_back(
    grad_y: Tensor, grad_log: Tensor, theta: Tensor, tables: _Tables, b: _Bin, form: Form, shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """Gradients in x and in the parameters, of values inside the bound."""
    s, D, M, share = _ratio(theta, b)
    rest = 1 - theta
    q, lean = theta * rest, rest - theta
    up, by_M, by_D = grad_y * b.H / D, grad_log / M, 2 * grad_log / D
    by_theta = up * s * M / D + 2 * by_M * (b.d1 * theta + s * lean - b.d0 * rest) - by_D * (b.d0 + b.d1 - 2 * s) * lean
    by_s = up * (theta.square() - share * (1 - 2 * q)) + 2 * (grad_log / s + by_M * q) - by_D * (1 - 2 * q)
    by_d0 = (up * q * (1 - share) + by_M * rest.square() - by_D * q) * b.raw0.sigmoid()
    by_d1 = (by_M * theta.square() - by_D * q - up * q * share) * b.raw1.sigmoid()
    by_left = by_theta / b.W
    by_W, by_H = -(by_s * s + by_theta * theta) / b.W, grad_y * share + by_s / b.W
    grad = grad_y.new_zeros(shape)
    K, k = form.bins, b.k[None]
    _into_slopes(grad[2 * K :], k, by_d0, by_d1, form)
    _into_shares(grad[:K], k, tables.widths, tables.upto_x, -by_left, by_W, form)
    _into_shares(grad[K : 2 * K], k, tables.heights, tables.upto_y, grad_y, by_H, form)
    return by_left, grad


def _into_slopes(grad: Tensor, k: Tensor, by_d0: Tensor, by_d1: Tensor, form: Form) -> None:
    i0, i1 = _slopes(k, form)
    if not form.circular:
        by_d0, by_d1 = by_d0.masked_fill(k[0] == 0, 0.0), by_d1.masked_fill(k[0] == form.bins - 1, 0.0)
    grad.scatter_(0, i0, by_d0[None])
    grad.scatter_add_(0, i1, by_d1[None])


def _into_shares(grad: Tensor, k: Tensor, share: Tensor, upto: Tensor, by_edge: Tensor, by_size: Tensor, form: Form) -> None:
    """Through the softmax: an edge moves with every share below it, a size with its own."""
    scale, _ = _units(form)
    by_edge, by_size = by_edge * scale, by_size * scale
    own = share.gather(0, k)[0]
    mean = by_edge * (upto.gather(0, k)[0] - own) + by_size * own
    bins = torch.arange(form.bins, device=k.device).view(-1, 1, 1)
    torch.mul(bins < k, by_edge, out=grad)
    grad.scatter_(0, k, by_size[None])
    grad.sub_(mean).mul_(share)
