"""Ordinary differential equations of many rows at once, and what they do to a density.

dy/dt = f(t, y), every row on its own: its own step sizes, its own error control, its own times. So a row's answer is
the same whether it stands alone or among others. A field f maps times (N, 1) and rows (N, E) to slopes (N, E).

A density carried along obeys d log p / dt = -tr df/dy, so log p_0(y_0) = log p_1(y_1) + integral of tr df/dy dt; the
integral is log|det dy_1/dy_0|.

Sources: Dormand and Prince, "A family of embedded Runge-Kutta formulae", J. Comput. Appl. Math. 6(1), 1980; step sizes:
Hairer, Norsett and Wanner, "Solving ordinary differential equations I", Springer, 2nd ed. 1993, section II.4; change of
variables and adjoint: Chen, Rubanova, Bettencourt and Duvenaud, "Neural ordinary differential equations", NeurIPS 2018,
arXiv:1806.07366; probes: Hutchinson, "A stochastic estimator of the trace of the influence matrix for Laplacian
smoothing splines", Commun. Stat. Simul. Comput. 18(3), 1989, and Grathwohl et al., "FFJORD", ICLR 2019, arXiv:1810.01367.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from pofx.errors import DataError, OptionError
from pofx.types import Generator

Rows = Float[Tensor, "N E"]
Column = Float[Tensor, "N 1"]
Field = Callable[[Tensor, Tensor], Tensor]  # t (N, 1), y (N, E) -> dy/dt (N, E)
Time = float | Column
Trace = Literal["exact"] | int  # a number of probes
Along = Callable[[Tensor, Tensor, Tensor], Tensor]  # t (N, 1), y (N, E), dy/dt (N, E) -> what is added up on the way, (N, K)
Watch = Callable[[Tensor, Tensor, Tensor], None]  # t, y and the weight h b_j of each stage of each step taken

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0  # of the step size


@dataclass(frozen=True)
class Solution:
    """Where the rows have come.

    Args:
        y: y(t1).
        evaluations: of f, for each row; the batch has cost as many calls as its largest.
    """

    y: Rows
    evaluations: Int[Tensor, " N"]


@runtime_checkable
class Method(Protocol):
    """A way to solve dy/dt = f(t, y) from t0 to t1; t1 may lie before t0."""

    def __call__(self, f: Field, y: Rows, t0: Time, t1: Time, watch: Watch | None = None) -> Solution:
        """y(t1) of y(t0)."""


# -- steps -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tableau:
    """A Runge-Kutta step: k_j = f(t + c_j h, y + h sum_i a_ji k_i), y' = y + h sum_j b_j k_j.

    Args:
        c: of each stage.
        a: the rows under the first, which is empty.
        b: of the result.
        error: b less those of the embedded result of lower order; empty where there is none.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[float, ...] = ()


EULER = Tableau(c=(0,), a=(), b=(1,))
MIDPOINT = Tableau(c=(0, 1 / 2), a=((1 / 2,),), b=(0, 1))
RK4 = Tableau(c=(0, 1 / 2, 1 / 2, 1), a=((1 / 2,), (0, 1 / 2), (0, 0, 1)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6))
THREE_EIGHTHS = Tableau(c=(0, 1 / 3, 2 / 3, 1), a=((1 / 3,), (-1 / 3, 1), (1, -1, 1)), b=(1 / 8, 3 / 8, 3 / 8, 1 / 8))
_B5 = (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
_B4 = (5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
DORMAND_PRINCE = Tableau(
    c=(0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
    a=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        _B5,
    ),
    b=(*_B5, 0),
    error=tuple(high - low for high, low in zip((*_B5, 0), _B4, strict=True)),
)


@dataclass(frozen=True)
class _Step:
    """One step of all rows."""

    tableau: Tableau
    t: list[Tensor]
    at: list[Tensor]
    slopes: list[Tensor]
    h: Tensor

    @property
    def y(self) -> Tensor:
        return self.at[0] + self.h * _combined(self.tableau.b, self.slopes)

    @property
    def error(self) -> Tensor:
        return self.h * _combined(self.tableau.error, self.slopes)

    def show(self, watch: Watch, taken: Bool[Tensor, "N 1"]) -> None:
        """Each stage of the rows that take the step, the others where they stand with weight 0."""
        for b, t, at in zip(self.tableau.b, self.t, self.at, strict=True):
            if b:
                watch(torch.where(taken, t, self.t[0]), torch.where(taken, at, self.at[0]), torch.where(taken, b * self.h, 0.0))


def _step(f: Field, tableau: Tableau, t: Tensor, y: Tensor, h: Tensor, slope: Tensor | None = None) -> _Step:
    """h may be negative; slope: f(t, y) where it is known."""
    ts, at, slopes = [t], [y], [f(t, y) if slope is None else slope]
    for c, row in zip(tableau.c[1:], tableau.a, strict=True):
        ts.append(t + c * h)
        at.append(y + h * _combined(row, slopes))
        slopes.append(f(ts[-1], at[-1]))
    return _Step(tableau, ts, at, slopes, h)


def _combined(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    return sum((w * k for w, k in zip(weights, slopes, strict=True) if w), start=torch.zeros_like(slopes[0]))


# -- methods -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RungeKutta:
    """Equal steps: as many evaluations a step as the tableau has stages, and an error that nobody checks.

    O(h) with `EULER`, O(h^2) with `MIDPOINT`, O(h^4) with `RK4` and `THREE_EIGHTHS`, both Kutta's, O(h^5) with `DORMAND_PRINCE`.

    Args:
        steps: how many.
        tableau: of a step.

    Raises:
        OptionError: fewer than one step.
    """

    steps: int
    tableau: Tableau = RK4

    def __post_init__(self) -> None:
        _check_count("steps", self.steps, 1)

    def __call__(self, f: Field, y: Rows, t0: Time, t1: Time, watch: Watch | None = None) -> Solution:
        """See `Method`."""
        first, end = _column(t0, y), _column(t1, y)
        h = (end - first) / self.steps
        for i in range(self.steps):
            step = _step(f, self.tableau, first + i * h, y, h)
            if watch is not None:
                step.show(watch, torch.ones_like(h, dtype=torch.bool))
            y = step.y
        return Solution(y, torch.full_like(y[:, 0], self.steps * len(self.tableau.c), dtype=torch.long))


@dataclass(frozen=True)
class DormandPrince:
    """Order 5 with an embedded order 4: a row's step is taken where |error / (atol + rtol max(|y|, |y'|))| <= 1, root mean square.

    6 evaluations a step, taken or refused, and 2 to begin. Rows that are done wait for the last one, and are evaluated where
    they stand. Where gradients are kept, a step is tried without and then taken with them: twice the evaluations, but no
    refused step in the graph; step sizes count as constants. Fails on stiff fields, with thousands of steps.

    Args:
        rtol: allowed error of a step, relative to y.
        atol: the same in units of y, for y near 0.
        most: evaluations of a row, after which it gives up.

    Raises:
        OptionError: a tolerance that is negative, or both 0, or a limit under 8.
        DataError: when called: a row that is not done after so many evaluations, or whose slope is not finite.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    most: int = 10_000

    def __post_init__(self) -> None:
        if not (self.rtol >= 0 and self.atol >= 0 and self.rtol + self.atol > 0):
            raise OptionError(f"tolerances are at least 0 and not both 0, got rtol={self.rtol} and atol={self.atol}")
        _check_count("most", self.most, 8)

    def __call__(self, f: Field, y: Rows, t0: Time, t1: Time, watch: Watch | None = None) -> Solution:
        """See `Method`."""
        t, end = _column(t0, y), _column(t1, y)
        way, left = (end - t).sign(), (end - t).abs()
        slope = f(t, y)
        graph, h = slope.requires_grad, self._first(f, t, y.detach(), slope.detach(), way)
        evaluations = torch.full_like(left[:, 0], 2, dtype=torch.long)
        while bool((left > 0).any()):
            self._check(t, end, h, left, evaluations)
            h = torch.minimum(h, left)
            with torch.no_grad():
                step = _step(f, DORMAND_PRINCE, t, y, way * h, slope)
                error = self._error(step)
            taken = (error <= 1) & (left > 0)
            if watch is not None:
                step.show(watch, taken)
            if graph:  # a step of length 0 is what a refused row takes
                step = _step(f, DORMAND_PRINCE, t, y, torch.where(taken, way * h, 0.0), slope)
            evaluations += torch.where(left[:, 0] > 0, 12 if graph else 6, 0)
            y, slope = torch.where(taken, step.y, y), torch.where(taken, step.slopes[-1], slope)
            t = torch.where(taken, torch.where(h >= left, end, t + way * h), t)
            left = (end - t).abs()
            h = h * (_SAFETY * error ** (-1 / 5)).clamp(_SHRINK, _GROW)
        return Solution(y, evaluations)

    def _error(self, step: _Step) -> Tensor:
        """(N, 1), infinite where the step led to no number."""
        return self._size(step.error, torch.maximum(step.at[0].abs(), step.y.abs())).nan_to_num(nan=math.inf, posinf=math.inf)

    def _size(self, v: Tensor, y: Tensor) -> Tensor:
        """Root mean square over a row, in units of what is allowed."""
        return (v / (self.atol + self.rtol * y).clamp_min(torch.finfo(y.dtype).tiny)).square().mean(-1, keepdim=True).sqrt()

    @torch.no_grad()
    def _first(self, f: Field, t: Tensor, y: Tensor, slope: Tensor, way: Tensor) -> Tensor:
        """A first step size from the sizes of y, of f and of the change of f over a small step."""
        d0, d1 = self._size(y, y.abs()), self._size(slope, y.abs())
        small = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
        d2 = self._size(f(t + way * small, y + way * small * slope) - slope, y.abs()) / small
        steep = torch.maximum(d1, d2)
        h = torch.where(steep <= 1e-15, (1e-3 * small).clamp_min(1e-6), (0.01 / steep) ** (1 / 5))
        return torch.minimum(100 * small, h).nan_to_num(nan=1e-6)

    def _check(self, t: Tensor, end: Tensor, h: Tensor, left: Tensor, evaluations: Tensor) -> None:
        late = (left[:, 0] > 0) & (evaluations + 6 > self.most)
        if bool(late.any()):
            i = int(late.nonzero()[0])
            raise DataError(
                f"row {i} is at t = {float(t[i]):.4g} on its way to {float(end[i]):.4g} after {int(evaluations[i])} evaluations: "
                "allow more, or loosen rtol and atol"
            )
        stuck = (left > 0) & (h < 4 * torch.finfo(t.dtype).eps * torch.maximum(t.abs(), end.abs()))
        if bool(stuck.any()):
            i = int(stuck[:, 0].nonzero()[0])
            raise DataError(f"the slope of row {i} near t = {float(t[i]):.4g} is not finite, or not smooth enough for any step size")


def integrate(
    f: Field,
    y: Rows,
    t0: Time,
    t1: Time,
    *,
    method: Method | None = None,
    adjoint: bool = False,
    parameters: Sequence[Tensor] = (),
) -> Solution:
    """y(t1) where dy/dt = f(t, y) and y(t0) = y, with gradients in y and in whatever f depends on.

    Gradients go back through the steps, and memory grows with their number. With the adjoint they solve another equation, back from
    t1: da/dt = -a df/dy with a(t1) = dL/dy(t1) gives dL/dy(t0) = a(t0) and dL/dw = integral of a df/dw dt. Memory is then that of
    one step, and gradients have the method's error, not rounding's. Parameters' gradients take part in no error control.

    Args:
        f: the field.
        y: (N, E).
        t0: where y is; one time, or (N, 1).
        t1: where it goes to, before or after t0.
        method: None: `DormandPrince`.
        adjoint: gradients by the adjoint equation, in y and the parameters named alone; of first order only.
        parameters: with the adjoint, the tensors that f depends on and whose gradient is wanted.

    Raises:
        OptionError: parameters without the adjoint, which need not be named.
        DataError: see the method.
    """
    method = DormandPrince() if method is None else method
    if adjoint:
        moved, evaluations = _Adjoint.apply(f, t0, t1, method, y, *parameters)
        return Solution(moved, evaluations)
    if parameters:
        raise OptionError("parameters are named for the adjoint alone: gradients through the steps find them by themselves")
    return method(f, y, t0, t1)


class _Adjoint(torch.autograd.Function):
    """y(t1), whose backward pass solves the adjoint equation."""

    @staticmethod
    def forward(ctx: Any, f: Field, t0: Time, t1: Time, method: Method, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        solution = method(f, y, t0, t1)
        ctx.problem, ctx.parameters = (f, t0, t1, method), parameters
        ctx.save_for_backward(solution.y)
        ctx.mark_non_differentiable(solution.evaluations)
        return solution.y, solution.evaluations

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        f, t0, t1, method = ctx.problem
        (y,) = ctx.saved_tensors
        back = _Backward(f, [p for p in ctx.parameters if p.requires_grad])
        solution = method(back, torch.cat((y, grad), 1), t1, t0, watch=back.gather if back.parameters else None)
        found = iter(back.grads)
        return None, None, None, None, solution.y[:, y.shape[1] :], *(next(found) if p.requires_grad else None for p in ctx.parameters)


class _Backward:
    """The adjoint equation as a field on rows (y, a), and the integral of a df/dw over the steps that are taken."""

    def __init__(self, f: Field, parameters: Sequence[Tensor]) -> None:
        self.f, self.parameters = f, parameters
        self.grads = [torch.zeros_like(p) for p in parameters]

    def __call__(self, t: Tensor, state: Tensor) -> Tensor:
        y, a = state.detach().chunk(2, 1)
        with torch.enable_grad():
            y = y.requires_grad_()
            slope = self.f(t, y)
            pulled = _pulled(slope, [y], a)[0]
        return torch.cat((slope.detach(), -pulled), 1)

    def gather(self, t: Tensor, state: Tensor, weight: Tensor) -> None:
        y, a = state.detach().chunk(2, 1)
        with torch.enable_grad():
            slope = self.f(t, y.requires_grad_())
            pulled = _pulled(slope, self.parameters, weight * a)
        # Steps go backwards, so that their weights are minus those of the integral from t0 to t1.
        self.grads = [so_far - grad for so_far, grad in zip(self.grads, pulled, strict=True)]


def _pulled(slope: Tensor, inputs: Sequence[Tensor], cotangent: Tensor) -> Sequence[Tensor]:
    if not slope.requires_grad:
        return [torch.zeros_like(v) for v in inputs]
    return torch.autograd.grad(slope, inputs, cotangent, materialize_grads=True)


def _column(t: Time, y: Tensor) -> Tensor:
    """(N, 1) in the type of the rows."""
    return torch.as_tensor(t, dtype=y.dtype, device=y.device).expand(len(y), 1)


def _check_count(name: str, count: int, least: int) -> None:
    if count < least:
        raise OptionError(f"{name} is at least {least}, got {count}")


# -- densities ---------------------------------------------------------------------------------------


def divergence(f: Field, t: Column, y: Rows) -> tuple[Rows, Float[Tensor, " N"]]:
    """f(t, y) and tr df/dy, exactly: one vector-Jacobian product a dimension.

    All E products go through one batched pass where the operations of f allow it, which takes E times the memory of one, else one
    after the other. Gradients are kept where torch keeps them.
    """
    e = y.shape[1]
    basis = torch.eye(e, dtype=y.dtype, device=y.device)[:, None].expand(e, len(y), e)
    slope, products = _products(f, t, y, basis)
    return slope, products.diagonal(dim1=0, dim2=2).sum(-1)


def hutchinson(f: Field, t: Column, y: Rows, probes: Float[Tensor, "P N E"]) -> tuple[Rows, Float[Tensor, "P N"]]:
    """f(t, y) and v^T df/dy v of each probe v, whose mean over probes with E v v^T = I is tr df/dy.

    Costs one vector-Jacobian product a probe. With `rademacher` probes the variance is that of the symmetric part J of df/dy off its
    diagonal, 2 sum_(i != j) J_ij^2: none for a field that moves every variable by itself.
    """
    slope, products = _products(f, t, y, probes)
    return slope, (products * probes).sum(-1)


def rademacher(y: Rows, probes: int, *, generator: Generator = None) -> Float[Tensor, "P N E"]:
    """Probes of +1 and -1 with equal chances, for each row.

    Drawn row by row: on a CPU, those of a row are the same however many rows follow it. An accelerator's generator does not promise that.

    Raises:
        OptionError: no probe.
    """
    _check_count("probes", probes, 1)
    n, e = y.shape
    coins = torch.randint(2, (n, probes, e), generator=generator, device=y.device)
    return (2 * coins - 1).to(y.dtype).transpose(0, 1)


@dataclass(frozen=True)
class Carried:
    """Rows moved along a field, and how much it has stretched space on their way.

    Args:
        y: y(t1).
        log_det: log|det dy(t1)/dy(t0)|, in nats, the integral of tr df/dy: log p_0(y_0) = log p_1(y_1) + log_det.
        error: its standard error over probes; 0 where the trace is exact, NaN with one probe. The solver's error is not in it.
        evaluations: of f, for each row.
        along: the other integrals on the way; of none, no columns.
    """

    y: Rows
    log_det: Float[Tensor, " N"]
    error: Float[Tensor, " N"]
    evaluations: Int[Tensor, " N"]
    along: Float[Tensor, "N K"]


def carry(
    f: Field,
    y: Rows,
    t0: Time,
    t1: Time,
    *,
    trace: Trace = "exact",
    method: Method | None = None,
    adjoint: bool = False,
    parameters: Sequence[Tensor] = (),
    along: Along | None = None,
    generator: Generator = None,
) -> Carried:
    """y(t1), and log|det dy(t1)/dy(t0)| = integral of tr df/dy from t0 to t1.

    Each evaluation costs one of f and E vector-Jacobian products, or one a probe. The log-determinant is a column beside y and takes
    part in the error control as y does. An exact trace for E up to about 64, probes above.

    Args:
        f: the field.
        y: (N, E).
        t0: where y is.
        t1: where it goes to.
        trace: "exact", or a number of probes, held along the way, so that each gives one unbiased estimate.
        method: as `integrate`.
        adjoint: as `integrate`.
        parameters: as `integrate`.
        along: K functions of time, row and slope, whose integrals over t are wanted beside; they take part in the error control, too.
        generator: of the probes.

    Raises:
        OptionError: no probe, or as `integrate`.
        DataError: see the method.
    """
    n, e = y.shape
    probes = None if trace == "exact" else rademacher(y, trace, generator=generator)
    p = 1 if probes is None else len(probes)

    def stretched(t: Tensor, state: Tensor) -> Tensor:
        at = state[:, :e]
        slope, stretch = divergence(f, t, at) if probes is None else hutchinson(f, t, at, probes)
        beside = [] if along is None else [along(t, at, slope)]
        return torch.cat((slope, stretch.reshape(p, n).mT, *beside), 1)

    more = 0 if along is None else along(y.new_zeros(n, 1), y, y).shape[1]
    start = torch.cat((y, y.new_zeros(n, p + more)), 1)
    solution = integrate(stretched, start, t0, t1, method=method, adjoint=adjoint, parameters=parameters)
    moved, estimates, integrals = solution.y.split((e, p, more), 1)
    return Carried(moved, estimates.mean(1), _standard_error(estimates, trace), solution.evaluations, integrals)


def _standard_error(estimates: Tensor, trace: Trace) -> Tensor:
    k = estimates.shape[1]
    if trace == "exact" or k == 1:
        return torch.full_like(estimates[:, 0], 0.0 if trace == "exact" else math.nan)
    return estimates.detach().std(1) / math.sqrt(k)


def _products(f: Field, t: Tensor, y: Tensor, cotangents: Tensor) -> tuple[Tensor, Tensor]:
    """f(t, y) and v^T df/dy of each cotangent v, (P, N, E)."""
    # Rows that carry no gradient may still meet parameters that do; a graph that leads nowhere is not kept.
    graph = torch.is_grad_enabled() and (y.requires_grad or f(t, y).requires_grad)
    with torch.enable_grad():
        at = y if graph and y.requires_grad else y.detach().requires_grad_()
        slope = f(t, at)
        products = _batched(slope, at, cotangents, graph) if slope.requires_grad else torch.zeros_like(cotangents)
    return (slope if graph else slope.detach()), products


def _batched(slope: Tensor, y: Tensor, cotangents: Tensor, graph: bool) -> Tensor:
    try:
        return _product(slope, y, cotangents, graph, batched=True)
    except RuntimeError:  # an operation of f that can not be batched; any other fault comes again
        return torch.stack([_product(slope, y, v, graph, batched=False) for v in cotangents])


def _product(slope: Tensor, y: Tensor, cotangent: Tensor, graph: bool, *, batched: bool) -> Tensor:
    (product,) = torch.autograd.grad(
        slope, y, cotangent, retain_graph=True, create_graph=graph, is_grads_batched=batched, allow_unused=True
    )
    return torch.zeros_like(cotangent) if product is None else product
