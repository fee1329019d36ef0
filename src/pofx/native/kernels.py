"""The kernels of `kernels.c` as functions of tensors: upright ones, the batch last. They know nothing of gradients."""

import ctypes
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from pofx.native.library import library

TO_BASE, TO_DATA = 0, 1
_KINDS = ("shift", "affine", "spline")
_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_SHARED = 64  # columns that a thread takes at a time: lines of the cache belong to one
_APART = 16  # columns of room behind those of what is kept: rows a power of two apart push each other out of the cache
_ALONE = 2**17  # multiplications or so that are not worth a second thread


class Form(ctypes.Structure):
    """Of a spline: its bound, the least share and slope, its number of bins, whether -B and B are one point."""

    _fields_ = [("bound", ctypes.c_double), ("least", ctypes.c_double), ("bins", ctypes.c_int64), ("circular", ctypes.c_int64)]

    @property
    def parameters(self) -> int:
        """Numbers of a variable."""
        return int(3 * self.bins - (not self.circular))


class Map(ctypes.Structure):
    """A monotone map of the line that a net can steer."""

    _fields_ = [("kind", ctypes.c_int64), ("most", ctypes.c_double), ("form", Form)]

    @classmethod
    def of(cls, kind: str, most: float = 0.0, form: Form | None = None) -> "Map":
        """By its name.

        Args:
            kind: shift, affine, spline.
            most: of `Affine`.
            form: of a spline.
        """
        return cls(_KINDS.index(kind), most, form or Form())


class _Net(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("dim", "size", "layers", "backwards", "residual")),
        ("far", ctypes.c_double),
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in ("widths", "skips", "ends", "starts")),
    ]


class Net(NamedTuple):
    """The form of a masked net, as `MADE` has it; its numbers theta are W and b of each layer, one after the other.

    Args:
        dim: D.
        size: outputs of a variable.
        backwards: whether the last variable comes first.
        far: values that steer are clipped to it.
        widths: of the hidden layers.
        skips: of each of them, the layer that is added to it, or None.
        ends: of each of them, how many units see i variables at most.
    """

    dim: int
    size: int
    backwards: bool
    far: float
    widths: tuple[int, ...]
    skips: tuple[int | None, ...]
    ends: tuple[tuple[int, ...], ...]

    @property
    def residual(self) -> bool:
        """Whether any layer adds another."""
        return any(skip is not None for skip in self.skips)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Outputs and inputs of the hidden layers, then of the last."""
        return list(zip((*self.widths, self.size * self.dim), (self.dim, *self.widths), strict=True))

    @property
    def sizes(self) -> list[int]:
        """How many numbers are W and b of each."""
        return [n for outputs, inputs in self.shapes for n in (outputs * inputs, outputs)]


class Seen(NamedTuple):
    """What a net and its map gave.

    Args:
        out: x or u, (D, N).
        log_det: of the map, (N,).
        outputs: (size, D, N); this and the next two are empty where not kept.
        z: all units before the ReLU, (their number, N).
        lit: after it; the same tensor where nothing is added.
    """

    out: Tensor
    log_det: Tensor
    outputs: Tensor
    z: Tensor
    lit: Tensor


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels can: plain tensors on the CPU, all in single or all in double precision, nothing being compiled."""
    if torch.compiler.is_compiling():
        return False
    dtype = tensors[0].dtype
    plain = all(type(t) in (Tensor, Parameter) and t.dtype == dtype and t.device.type == "cpu" for t in tensors)
    return plain and dtype in _DTYPES and library() is not None


def spline(v: Tensor, raw: Tensor, form: Form, way: int) -> tuple[Tensor, Tensor]:
    """What a spline makes of v (d, N), and the log-slope; numbers (parameters, d, N)."""
    v, raw = v.contiguous(), raw.contiguous()
    out, log_slope = torch.empty_like(v), torch.empty_like(v)
    _run("spline", v, _pieces(v.numel(), 8 * form.parameters), form, way, v.numel(), v, raw, out, log_slope)
    return out, log_slope


def pull_spline(v: Tensor, raw: Tensor, grad: Tensor, grad_log: Tensor, form: Form, way: int) -> tuple[Tensor, Tensor]:
    """Gradients in v and in the numbers, of those in what `spline` gives."""
    v, raw, grad, grad_log = (t.contiguous() for t in (v, raw, grad, grad_log))
    by_v, by_raw = torch.empty_like(v), torch.empty_like(raw)
    pieces = _pieces(v.numel(), 16 * form.parameters)
    _run("pull_spline", v, pieces, form, way, v.numel(), v, raw, grad, grad_log, by_v, by_raw)
    return by_v, by_raw


def unroll(net: Net, theta: Tensor, law: Map, way: int, v: Tensor, context: Tensor | None, *, keep: bool) -> Seen:
    """Variable by variable, by the numbers that the net gives it; each unit is computed once.

    Args:
        net: its form.
        theta: its numbers.
        law: the map.
        way: `TO_BASE`, and v is x; or `TO_DATA`, and v is u.
        v: (D, N).
        context: what the condition adds to the first layer, (its width, N).
        keep: whether outputs and units are wanted.
    """
    v, n = v.contiguous(), v.shape[1]
    ld, form = n + _APART if keep else 0, _form(net)
    outputs, lit = v.new_empty(net.size, net.dim, ld), v.new_empty(sum(net.widths), ld)
    z = torch.empty_like(lit) if form.residual else lit
    seen = Seen(torch.empty_like(v), v.new_empty(n), outputs, z, lit)
    given = form, theta.contiguous(), law, way, n, ld, v, None if context is None else context.contiguous()
    _run("unroll", v, _pieces(n, len(theta) // 2), *given, *seen[:3], z if form.residual else None, lit)
    return Seen(*seen[:2], *(t[..., :n] for t in seen[2:]))


def pull_unrolled(
    net: Net, theta: Tensor, law: Map, x: Tensor, context: Tensor | None, kept: Sequence[Tensor], grad: Tensor, grad_log: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The gradient in x, in what the context added, and in the net's numbers, of that in what the way to the base gave.

    Args:
        net: its form.
        theta: its numbers.
        law: the map.
        x: what it was given.
        context: as well.
        kept: what `unroll` kept: outputs, z, lit.
        grad: in u, (D, N).
        grad_log: in log|det|, (N,).
    """
    x, grad, grad_log, theta, n = x.contiguous(), grad.contiguous(), grad_log.contiguous(), theta.contiguous(), x.shape[1]
    pieces = _pieces(n, 3 * len(theta) // 2)
    to_theta = theta.new_zeros(len(pieces), len(theta))
    to_x, to_context = torch.empty_like(x), None if context is None else torch.empty_like(context)
    given = _form(net), theta, law, n, n + _APART, x, kept[0], kept[2], grad, grad_log
    _run("pull_unrolled", x, pieces, *given, to_x, to_context, own=to_theta)
    return to_x, to_context, to_theta[0] if len(pieces) == 1 else to_theta.sum(0)


Piece = tuple[int, int]


def _pieces(columns: int, work: int) -> list[Piece]:
    """The columns, from and to, of each of torch's threads; `work` is that of a column, in multiplications or so."""
    threads = max(1, min(torch.get_num_threads(), columns // _SHARED, columns * work // _ALONE))
    each = math.ceil(columns / threads / _SHARED) * _SHARED or 1
    return [(start, min(start + each, columns)) for start in range(0, columns, each)]


Argument = Tensor | ctypes.Structure | int | None


def _run(name: str, like: Tensor, pieces: Sequence[Piece], *given: Argument, own: Tensor | None = None) -> None:
    """A function of the library on all pieces; `own` has a row for each of them."""
    kernel = getattr(library(), f"{name}_{_DTYPES[like.dtype]}")
    shared = [_argument(value) for value in given]

    def call(k: int) -> None:
        kernel(*map(ctypes.c_int64, pieces[k]), *shared, *([] if own is None else [_argument(own[k])]))

    if len(pieces) < 2:
        for k in range(len(pieces)):
            call(k)
    else:
        list(_pool(len(pieces), os.getpid()).map(call, range(len(pieces))))


def _argument(value: Argument) -> object:
    """An address or a number."""
    if isinstance(value, ctypes.Structure):
        return ctypes.byref(value)
    if isinstance(value, int):
        return ctypes.c_int64(value)
    return ctypes.c_void_p(None if value is None else value.data_ptr() or None)


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:  # a forked process has none of its parent's threads
    return ThreadPoolExecutor(threads, f"pofx-native-{process}")


@lru_cache(1024)
def _form(net: Net) -> _Net:
    """In C."""
    starts = [0, *accumulate(net.sizes)][:-1:2]
    skips = [-1 if skip is None else skip for skip in net.skips]
    rows = net.widths, skips, [n for layer in net.ends for n in layer], starts
    arrays = [(ctypes.c_int64 * len(row))(*row) for row in rows]
    return _Net(net.dim, net.size, len(net.widths), net.backwards, net.residual, net.far, *arrays)
