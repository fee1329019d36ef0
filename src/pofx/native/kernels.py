"""The kernels of `kernels.c` as functions of tensors: upright ones, the batch last. They know nothing of gradients."""

import ctypes
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from pofx.native.library import library

TO_BASE, TO_DATA = 0, 1
_KINDS = ("none", "shift", "affine", "spline")
_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_SHARED = 64  # columns that a thread takes at a time: lines of the cache belong to one
_ALONE = 2**17  # multiplications or so that are not worth a second thread


class Form(ctypes.Structure):
    """Of a spline: its bound, the least share and slope, its number of bins, whether -B and B are one point."""

    _fields_ = [("bound", ctypes.c_double), ("least", ctypes.c_double), ("bins", ctypes.c_int64), ("circular", ctypes.c_int64)]

    @property
    def parameters(self) -> int:
        """Numbers of a variable."""
        return int(3 * self.bins - (not self.circular))


class Map(ctypes.Structure):
    """A monotone map of the line, which `unroll` can solve."""

    _fields_ = [("kind", ctypes.c_int64), ("most", ctypes.c_double), ("form", Form)]

    @classmethod
    def of(cls, kind: str, most: float = 0.0, form: Form | None = None) -> "Map":
        """By its name.

        Args:
            kind: shift, affine, spline; none, for the pass that asks for outputs only.
            most: of `Affine`.
            form: of a spline.
        """
        return cls(_KINDS.index(kind), most, form or Form())


class _Net(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("dim", "size", "layers", "backwards", "residual")),
        ("far", ctypes.c_double),
        *((name, ctypes.POINTER(ctypes.c_int64)) for name in ("widths", "skips", "ends")),
        *((name, ctypes.POINTER(ctypes.c_void_p)) for name in ("weights", "biases")),
    ]


class Net(NamedTuple):
    """A masked net, as `MADE` has it.

    Args:
        dim: D.
        size: outputs of a variable.
        backwards: whether the last variable comes first.
        far: values that steer are clipped to it.
        skips: of each layer, the layer that is added to it, or None.
        ends: of each layer, how many units see i variables at most.
        weights: of the layers, then of the last, (outputs, inputs).
        biases: of the same.
    """

    dim: int
    size: int
    backwards: bool
    far: float
    skips: Sequence[int | None]
    ends: Sequence[Sequence[int]]
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]

    @property
    def widths(self) -> list[int]:
        """Of the layers."""
        return [len(bias) for bias in self.biases[:-1]]

    @property
    def residual(self) -> bool:
        """Whether any layer adds another."""
        return any(skip is not None for skip in self.skips)

    def structure(self) -> _Net:
        """In C."""
        skips, ends = [-1 if skip is None else skip for skip in self.skips], [n for layer in self.ends for n in layer]
        numbers = (_integers(n) for n in (self.widths, skips, ends))
        tensors = (_addresses(t) for t in (self.weights, self.biases))
        return _Net(self.dim, self.size, len(self.skips), self.backwards, self.residual, self.far, *numbers, *tensors)


class Seen(NamedTuple):
    """What a net gave.

    Args:
        x: the variables, (D, N).
        log_det: of the map, (N,); empty without one.
        outputs: (size, D, N); empty where not kept, as are the next two.
        z: all units before the ReLU, (their number, N).
        lit: after it; the same tensor where nothing is added.
    """

    x: Tensor
    log_det: Tensor
    outputs: Tensor
    z: Tensor
    lit: Tensor


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels can: plain tensors on the CPU, all in single or all in double precision, nothing being compiled."""
    dtype = tensors[0].dtype
    plain = all(type(t) in (Tensor, Parameter) and t.dtype == dtype and t.device.type == "cpu" for t in tensors)
    return plain and dtype in _DTYPES and not torch.compiler.is_compiling() and library() is not None


def spline(v: Tensor, raw: Tensor, form: Form, way: int) -> tuple[Tensor, Tensor]:
    """What a spline makes of v (d, N), and the log-slope; numbers (parameters, d, N)."""
    v, raw = v.contiguous(), raw.contiguous()
    out, log_slope = torch.empty_like(v), torch.empty_like(v)
    kernel = _kernel("spline", v.dtype)
    fixed = [ctypes.byref(form), way, v.numel(), *map(_address, (v, raw, out, log_slope))]
    _shared(lambda start, stop: kernel(start, stop, *fixed), v.numel(), 8 * form.parameters)
    return out, log_slope


def spline_gradient(v: Tensor, raw: Tensor, grad: Tensor, grad_log: Tensor, form: Form, way: int) -> tuple[Tensor, Tensor]:
    """Gradients in v and in the numbers, of those in what `spline` gives."""
    v, raw, grad, grad_log = (t.contiguous() for t in (v, raw, grad, grad_log))
    by_v, by_raw = torch.empty_like(v), torch.empty_like(raw)
    kernel = _kernel("spline_gradient", v.dtype)
    fixed = [ctypes.byref(form), way, v.numel(), *map(_address, (v, raw, grad, grad_log, by_v, by_raw))]
    _shared(lambda start, stop: kernel(start, stop, *fixed), v.numel(), 16 * form.parameters)
    return by_v, by_raw


def unroll(net: Net, law: Map, v: Tensor, context: Tensor | None, keep: bool) -> Seen:
    """Variable by variable: x_d = law(v_d; numbers of d), or v = x where there is no law; each unit is computed once.

    Args:
        net: the net.
        law: the map from base to data.
        v: (D, N).
        context: what the condition adds to the first layer, (its width, N).
        keep: whether outputs and units are wanted.
    """
    v, n, solved = v.contiguous(), v.shape[1], law.kind != 0
    units = sum(net.widths)
    x, log_det = (torch.empty_like(v), v.new_empty(n)) if solved else (v, v.new_empty(0))
    outputs = v.new_empty(net.size, net.dim, n) if keep or not solved else v.new_empty(0)
    lit = v.new_empty(units, n) if keep else v.new_empty(0)
    z = torch.empty_like(lit) if net.residual else lit
    context = None if context is None else context.contiguous()
    kernel, structure = _kernel("unroll", v.dtype), net.structure()
    to = [_address(x) if solved else None, _address(log_det), _address(outputs), _address(z) if z is not lit else None, _address(lit)]
    fixed = [ctypes.byref(structure), ctypes.byref(law), n, _address(v), None if context is None else _address(context), *to]
    work = sum(w.numel() for w in net.weights) // 2
    _shared(lambda start, stop: kernel(start, stop, *fixed), n, work)
    return Seen(x, log_det, outputs, z, lit)


def _shared(call: Callable[[int, int], None], columns: int, work: int) -> None:
    """The columns among torch's number of threads; a call lets others run."""
    threads = min(torch.get_num_threads(), columns // _SHARED, columns * work // _ALONE)
    if threads < 2:
        return call(0, columns)
    each = math.ceil(columns / threads / _SHARED) * _SHARED
    starts = range(0, columns, each)
    list(_pool(threads, os.getpid()).map(call, starts, (min(start + each, columns) for start in starts)))
    return None


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:  # a forked process has none of its parent's threads
    return ThreadPoolExecutor(threads, f"pofx-native-{process}")


@cache
def _kernel(name: str, dtype: torch.dtype) -> Callable[..., None]:
    function = getattr(library(), f"{name}_{_DTYPES[dtype]}")
    counts = {"spline": 4, "spline_gradient": 6, "unroll": 7}
    sizes = [ctypes.c_int64] * 2
    given = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64] if name != "unroll" else [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function.argtypes, function.restype = [*sizes, *given, *[ctypes.c_void_p] * counts[name]], None
    return function


def _address(t: Tensor) -> int | None:
    """None for an empty tensor."""
    return t.data_ptr() or None


def _integers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*map(_address, tensors))
