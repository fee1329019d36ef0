"""An axis cut into cells: where the edges of one variable's histogram stand.

Edges respect what the domain knows: a bounded side ends at its bound, an open side in a tail; on a grid every edge
is a boundary between grid cells; the grid cell of a spike is a bin of its own, which stays empty.

Sources: Freedman and Diaconis, "On the histogram as a density estimator: L2 theory", 1981; Scott, "On optimal and
data-based histograms", Biometrika, 1979. Bins of equal mass, tails and the treatment of grids are ours.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.domain import Variable, VariableKind


@dataclass(frozen=True)
class Rule:
    """How an axis is cut.

    Args:
        by: "width": bins of equal width h = scale * 2 IQR n^(-1/(2 + d)) (Freedman and Diaconis 1981 at scale 1 and
            d = 1); where the interquartile range is 0, of Scott's (1979) 3.49 sd n^(-1/(2 + d)).
            "mass": 2 n^(1/(2 + d)) / scale bins that hold equally many rows.
            "grid": every grid cell is its own bin; by width where there is no grid.
        scale: above 1 coarser, below 1 finer.
    """

    by: str
    scale: float


@dataclass(frozen=True)
class Axis:
    """The cells of one variable.

    Args:
        edges: (B + 1,), increasing.
        step: width r of its grid; 0: none.
        whole: whether a value off the grid is impossible (counts, levels) or belongs to its grid cell.
        tails: scale s below and above; 0: the side is closed.
        atom: the spike, or NaN.
    """

    edges: Tensor
    step: float = 0.0
    whole: bool = False
    tails: tuple[float, float] = (0.0, 0.0)
    atom: float = math.nan


def axis(variable: Variable, x: Tensor, rule: Rule, *, max_bins: int, joint: int = 1) -> Axis:
    """Cut one variable's axis by its rows x (N,).

    Args:
        variable: whose axis; its bounds, grid and spike decide where edges may stand.
        x: its column, NaN = unobserved.
        rule: width or mass, and how fine.
        max_bins: how many bins, up to five more for the bounds and the spike's own cell.
        joint: d, how many variables the bins are joint over (a grid has fewer bins an axis).
    """
    if variable.levels:
        return Axis(torch.arange(len(variable.levels) + 1, dtype=torch.float64) - 0.5, 1.0, True)
    step = 0.0 if variable.continuous else 1.0
    step = variable.resolution or step
    x = _slab(variable, x)
    origin = _origin(x, step) if variable.continuous else 0.0
    lower, upper = _support(variable, step, origin)
    h = _width(x, joint)
    cut = (
        _cut_grid((x - origin) / step, rule, h / step, max_bins, joint) * step + origin if step else _cut_line(x, rule, h, max_bins, joint)
    )
    edges = _isolate(_to_bounds(cut, lower, upper, merge=not step), variable.spike, step, lower, upper)
    below, above = _tail_scales(x, max(h / 4, step))
    tails = (below if lower == -math.inf else 0.0, above if upper == math.inf else 0.0)
    return Axis(edges, step, not variable.continuous, tails, math.nan if variable.spike is None else variable.spike)


def _slab(variable: Variable, x: Tensor) -> Tensor:
    """The observed values off the spike, sorted; one stand-in inside the support when there are none."""
    seen = x[~x.isnan()].double()
    if variable.spike is not None:
        seen = seen[(seen - variable.spike).abs() > (variable.resolution or 0.0) / 4]
    if len(seen):
        return seen.sort().values
    if variable.kind is VariableKind.INTERVAL:
        return seen.new_tensor([(variable.lower + variable.upper) / 2])
    if variable.kind is VariableKind.COUNT:
        return seen.new_tensor([variable.lower])
    return seen.new_tensor([1.0 if variable.kind is VariableKind.POSITIVE else 0.0])


def _origin(x: Tensor, step: float) -> float:
    """Where the grid stands: a value's distance to the nearest multiple of its width, usually 0."""
    if not step:
        return 0.0
    ratio = float(x[len(x) // 2]) / step
    rest = ratio - round(ratio)
    return rest * step if abs(rest) > 1e-6 else 0.0


def _support(variable: Variable, step: float, origin: float) -> tuple[float, float]:
    """The edges no cell may cross: the bounds, or the far edges of the grid cells whose centres lie within them."""
    if variable.kind is VariableKind.COUNT:
        return variable.lower - 0.5, variable.upper + 0.5
    lower = 0.0 if variable.kind is VariableKind.POSITIVE else -math.inf
    lower = variable.lower if variable.kind is VariableKind.INTERVAL else lower
    upper = variable.upper if variable.kind is VariableKind.INTERVAL else math.inf
    if step and lower > -math.inf:  # a rounded value may stand on its bound
        lower = origin + step * (math.ceil((lower - origin) / step - 1e-6) - 0.5)
    if step and upper < math.inf:
        upper = origin + step * (math.floor((upper - origin) / step + 1e-6) + 0.5)
    return lower, upper


def _width(x: Tensor, joint: int) -> float:
    """Freedman and Diaconis's width, or Scott's where half the rows are equal, or a sliver where all are."""
    shrink = len(x) ** (-1 / (2 + joint))
    quarter = len(x) // 4
    h = 2.0 * float(x[-1 - quarter] - x[quarter]) * shrink or 3.49 * float(x.std(correction=0)) * shrink
    sliver = 1e-3 * max(1.0, float(x.abs().max()))
    return h if x[-1] - x[0] > 1e-9 * sliver else sliver


def _n_bins(n: int, rule: Rule, max_bins: int, joint: int) -> int:
    return max(1, min(math.ceil(2 * n ** (1 / (2 + joint)) / rule.scale), max_bins, n))


def _cut_line(x: Tensor, rule: Rule, h: float, max_bins: int, joint: int) -> Tensor:
    """Edges from the least to the greatest of the sorted values x."""
    low, high = float(x[0]), float(x[-1])
    if high - low <= 1e-6 * h:
        return x.new_tensor([low - h / 2, low + h / 2])
    if rule.by != "mass":
        bins = math.ceil(min((high - low) / (rule.scale * h), max_bins))
        return torch.linspace(low, high, bins + 1, dtype=x.dtype)
    at = torch.linspace(0, len(x) - 1, _n_bins(len(x), rule, max_bins, joint) + 1, dtype=x.dtype)
    edges = (x[at.floor().long()] + x[at.ceil().long()]) / 2
    inner = edges[1:-1]
    floor = min(h / 16, (high - low) / 2)  # repeated values must not make a bin of no width
    inner = inner[(inner.diff(prepend=edges[:1]) > floor) & (high - inner > floor)]
    return torch.cat((edges[:1], inner, edges[-1:]))


def _cut_grid(k: Tensor, rule: Rule, h: float, max_bins: int, joint: int) -> Tensor:
    """Edges, in grid cells, at halves between the sorted whole numbers k."""
    k = k.round()
    low, high = float(k[0]), float(k[-1])
    if rule.by != "mass":
        wanted = 1 if rule.by == "grid" else round(rule.scale * h)
        cells = max(1, wanted, math.ceil((high - low + 1) / max_bins))
        starts = torch.arange(low, high + 1, cells, dtype=k.dtype)
    else:
        at = torch.linspace(0, len(k) - 1, max(2, _n_bins(len(k), rule, max_bins, joint) // 2 + 1), dtype=k.dtype)
        values, times = k[at.round().long()].unique(return_counts=True)
        starts = torch.cat((values, values[times > 1] + 1, k[:1])).unique()  # a frequent value is alone in its bin
    return torch.cat((starts[starts <= high], k[-1:] + 1)) - 0.5


def _to_bounds(edges: Tensor, lower: float, upper: float, *, merge: bool) -> Tensor:
    """Stretch the edges to finite bounds: by the outer bin when that at most doubles it, else by one more bin."""
    edges = edges.clamp(lower, upper).unique()
    gap, last_gap = float(edges[1] - edges[0]) * merge, float(edges[-1] - edges[-2]) * merge
    if lower > -math.inf:
        edges = torch.cat((edges.new_tensor([lower]), edges[1:] if 0 < edges[0] - lower <= gap else edges)).unique()
    if upper < math.inf:
        edges = torch.cat((edges[:-1] if 0 < upper - edges[-1] <= last_gap else edges, edges.new_tensor([upper]))).unique()
    return edges


def _isolate(edges: Tensor, spike: float | None, step: float, lower: float, upper: float) -> Tensor:
    """Give the grid cell of the spike a bin of its own, which stays empty: its mass is the atom's."""
    if spike is None or not step or not lower < spike < upper:
        return edges
    if abs((spike - float(edges[0])) / step % 1 - 0.5) > 1e-6:
        return edges  # a spike between two grid points shares no cell with them
    both = torch.cat((edges, edges.new_tensor([spike - step / 2, spike + step / 2]))).sort().values
    return both[torch.cat((both.new_ones(1, dtype=torch.bool), both.diff() > step / 4))]


def _tail_scales(x: Tensor, floor: float) -> tuple[float, float]:
    """Mean excess of the outer tenth of the rows on each side: what an exponential tail would have."""
    n = len(x)
    tenth = max(1, n // 10)
    below = float((x[min(tenth, n - 1)] - x[:tenth]).mean())
    above = float((x[-tenth:] - x[max(n - 1 - tenth, 0)]).mean())
    return max(below, floor), max(above, floor)
