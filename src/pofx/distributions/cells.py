"""Cells: the axes of D variables cut into bins, tails and atoms, and the law inside each.

A histogram, a joint grid and a density tree share one factorisation. With k_d the cell that x_d falls in,

    p(x) = P(k_1, ..., k_D) prod_d f_d(x_d | k_d),

only P differs between them; f is fixed by the cells alone:

    bin      [a, b)   f = 1 / (b - a)
    tail     beyond the last edge e of a side without a bound:   f = exp(-|x - e| / s) / s
    atom     the variable's spike:   f = 1 with respect to counting

On a variable that lives on a grid of width r (a resolution; r = 1 for counts and levels) every edge is a
boundary between grid cells, so that a bin's f is P(grid cell) / r exactly, and the tail is geometric:
f = (1 - q) q^j / r in the j-th grid cell beyond e, q = exp(-r / s), the exponential tail summed over that cell.

A restriction keeps of each axis some windows: f becomes the law inside the cell given that x falls in one. On a grid f is the
sum over a grid cell of a flat or exponential law of the value before rounding, so windows there are whole grid cells of it.

Codes: 0 lower tail, 1 ... B bins, B + 1 upper tail, C - 1 atom; C itself = unobserved.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from pofx.distributions.axis import Axis, Rule, axis
from pofx.distributions.wrapped import cells_of
from pofx.domain import Domain
from pofx.errors import DataError, FileError
from pofx.events import Between, Condition
from pofx.types import Generator


class Cells(nn.Module):
    """The cells of D variables, and f(x | cell).

    Args:
        axes: one per variable; none: room for a file's tensors.
        width: D, when there are no axes yet.
    """

    grows: ClassVar[frozenset[str]] = frozenset({"edges"})
    edges: Tensor  # (D, E), padded with inf
    bins: Tensor  # (D,), how many bins
    step: Tensor  # (D,)
    whole: Tensor  # (D,)
    tails: Tensor  # (D, 2)
    atom: Tensor  # (D,)
    windows: Tensor  # (D, W, 2), intervals [a, b] that x may lie in; not part of a file: only a question makes others than (-inf, inf)
    held: Tensor  # (D,), whether the atom is in them

    def __init__(self, axes: Sequence[Axis] = (), *, width: int = 0) -> None:
        super().__init__()
        axes = axes or [Axis(torch.tensor([-0.5, 0.5], dtype=torch.float64))] * width
        edges = nn.utils.rnn.pad_sequence([a.edges for a in axes], batch_first=True, padding_value=math.inf)
        self.register_buffer("edges", edges)
        self.register_buffer("bins", torch.tensor([len(a.edges) - 1 for a in axes]))
        self.register_buffer("step", torch.tensor([a.step for a in axes], dtype=edges.dtype))
        self.register_buffer("whole", torch.tensor([a.whole for a in axes]))
        self.register_buffer("tails", torch.tensor([a.tails for a in axes], dtype=edges.dtype))
        self.register_buffer("atom", torch.tensor([a.atom for a in axes], dtype=edges.dtype))
        whole = edges.new_tensor([-math.inf, math.inf]).expand(len(axes), 1, 2).clone()
        self.register_buffer("windows", whole, persistent=False)
        self.register_buffer("held", torch.ones(len(axes), dtype=torch.bool), persistent=False)

    @classmethod
    def cut(cls, domain: Domain, x: Tensor, rules: Sequence[Rule], *, max_bins: int, joint: int = 1) -> "Cells":
        """Cut every variable by its own rule."""
        columns = zip(domain.variables, x.cpu().unbind(1), rules, strict=True)
        return cls([axis(v, column, rule, max_bins=max_bins, joint=joint) for v, column, rule in columns]).to(x.device)

    @property
    def size(self) -> int:
        """C, how many codes a variable has room for; C itself is the code of an unobserved cell."""
        return self.edges.shape[1] + 2

    def select(self, keep: Sequence[int]) -> "Cells":
        """The cells of some of the variables, in the order given; the codes stay as they are."""
        chosen = Cells(width=len(keep))
        for name, buffer in self.named_buffers():
            setattr(chosen, name, buffer[list(keep)])
        return chosen

    def code(self, x: Tensor) -> Tensor:
        """The cell of each entry of x (N, D)."""
        x = x.to(self.edges)
        i = torch.searchsorted(self.edges, x.T.contiguous(), right=True).T
        i = torch.minimum(i, self.bins + 1)
        i = torch.where(x == self._last_edge, self.bins, i)  # the last bin is closed
        i = torch.where(self.whole & (x != x.round()), 0, i)  # counts and levels are closed below: an impossible cell
        i = torch.where((x - self.atom).abs() <= self.step / 4, self.size - 1, i)
        return torch.where(x.isnan(), self.size, i)

    def log_density(self, x: Tensor, code: Tensor) -> Tensor:
        """log f(x_d | k_d), (N, D): 0 where unobserved."""
        x = x.to(self.edges)
        flat = self._log_flat.gather(1, code.T).T
        distance, s = self._beyond(x, code)
        on_grid = (-torch.expm1(-self.step / s)).log() - (distance / self.step).floor() * self.step / s - self.step.log()
        tail = torch.where(self.step > 0, on_grid, -distance / s - s.log())
        log_f = torch.where(self._is_tail(code), tail, flat)
        if not self.cut_down:
            return log_f
        inside = ((x[..., None] >= self.windows[..., 0]) & (x[..., None] <= self.windows[..., 1])).any(-1)
        inside = torch.where(code == self.size - 1, self.held, inside)
        log_share = torch.nn.functional.pad(self.log_share(), (0, 1)).gather(1, code.T).T
        log_f = torch.where(inside, log_f - torch.where(inside, log_share, 0.0), -math.inf)
        return torch.where(x.isnan(), 0.0, log_f)

    def log_expectation(self, factors: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        """log sum_v f_d(v | k_d) w_d(v) of every code, (R, D, C); factors as `Model.log_expectation` has them, 0 of other variables."""
        rows = max(len(log_w) for _, log_w in factors.values())
        out = self.edges.new_zeros(rows, len(self.edges), self.size)
        for d, (values, log_w) in factors.items():
            x = self.edges.new_full((len(values), len(self.edges)), math.nan)
            x[:, d] = values.to(x)
            code = self.code(x)
            log_f = self.log_density(x, code)[:, d] + log_w.to(x)  # (R, V)
            own = code[:, d, None] == torch.arange(self.size, device=x.device)  # (V, C)
            out[:, d] = torch.where(own, log_f[..., None], -math.inf).logsumexp(1)
        return out

    # -- windows -----------------------------------------------------------------------------------

    @property
    def cut_down(self) -> bool:
        """Whether anything is outside the windows."""
        return not bool(self.windows.isinf().all())

    def restricted(self, conditions: Mapping[int, Condition]) -> "Cells":
        """The same cells, of which windows keep what meets the conditions and lay in the windows before.

        log P(the conditions | cell) is what `log_share` of the result adds to that of this one.
        """
        other = self.select(range(len(self.edges)))
        new = [self._windows(d, conditions.get(d, Between())) for d in range(len(self.edges))]
        most = max(1, *map(len, new))
        padded = [w + [(math.inf, math.inf)] * (most - len(w)) for w in new]
        other.windows = self.edges.new_tensor(padded)
        met = [d not in conditions or self._atom_meets(d, conditions[d]) for d in range(len(self.edges))]
        other.held = self.held & torch.tensor(met, device=self.held.device)
        return other

    def _windows(self, d: int, condition: Condition) -> list[tuple[float, float]]:
        """The intervals of an axis that meet a condition and lie in its windows."""
        step = float(self.step[d])
        if step:
            new = cells_of(condition, step, float(self.edges[d, 0]) + step / 2)
        else:
            new = (_closed(condition),) if isinstance(condition, Between) else ()
        pairs = [(max(a, c), min(b, e)) for a, b in new for c, e in self.windows[d].tolist()]
        return [(a, b) for a, b in pairs if a < b]

    def _atom_meets(self, d: int, condition: Condition) -> bool:
        atom = self.atom[d].cpu()
        return bool(condition.contains(atom, 1e-6 * float(self.step[d]) or 1e-12 * abs(float(atom))))

    def log_share(self) -> Tensor:
        """log P(x_d in the windows | k_d) of every code, (D, C), before they were cut."""
        code = self._codes()
        log_p = self._log_shares(code).logsumexp(-1).nan_to_num(-math.inf, neginf=-math.inf)  # NaN: there is no such cell
        return torch.where(code == self.size - 1, torch.where(self.held, 0.0, -math.inf), log_p).T

    def _log_shares(self, code: Tensor) -> Tensor:
        """log P(x_d in each window | k_d), (N, D, W)."""
        start, end = (e[..., None] for e in self._ends(code))
        low, high = self._span(code)
        length = (high - low).clamp_min(0.0)
        s = self._scale(code)[..., None]
        tail = -low / s + (-torch.expm1(-length / s)).log()
        return torch.where(self._is_tail(code)[..., None], tail, (length / (end - start)).log())

    def _span(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Where each window begins and ends in a cell, (N, D, W): distances from a bin's start, or from a tail's edge outwards."""
        start, end = (e[..., None] for e in self._ends(code))
        a, b = self.windows[..., 0], self.windows[..., 1]
        first, last = self.edges[:, :1], self._last_edge[:, None]
        lower_tail, tail = (code == 0)[..., None], self._is_tail(code)[..., None]
        low = torch.where(lower_tail, first - b, torch.where(tail, a - last, a - start)).clamp_min(0.0)
        high = torch.where(lower_tail, first - a, torch.where(tail, b - last, torch.minimum(b - start, end - start)))
        return low, high

    def sample(self, code: Tensor, *, generator: Generator = None) -> Tensor:
        """x_d ~ f(. | k_d) for codes (N, D) without the unobserved one."""
        u = torch.rand(code.shape, dtype=self.edges.dtype, device=self.edges.device, generator=generator)
        low, length = self._window_of(code, generator)
        s = self._scale(code)
        inside = low + u * length
        distance = low - s * torch.log1p(u * torch.expm1(-length / s))
        return self._placed(code, torch.where(self._is_tail(code), distance, inside))

    def _window_of(self, code: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Begin and length within the cell of a window, drawn by its share of it, (N, D) each."""
        low, high = self._span(code)
        if low.shape[-1] == 1:
            return low[..., 0], (high - low)[..., 0].clamp_min(0.0)
        upto = self._log_shares(code).nan_to_num(-math.inf).softmax(-1).nan_to_num(1.0).cumsum(-1)
        u = torch.rand(code.shape, dtype=self.edges.dtype, device=self.edges.device, generator=generator)
        which = (upto <= u[..., None] * upto[..., -1:]).sum(-1, keepdim=True).clamp_max(low.shape[-1] - 1)
        low, high = low.gather(-1, which)[..., 0], high.gather(-1, which)[..., 0]
        return low, (high - low).clamp_min(0.0)

    def _placed(self, code: Tensor, distance: Tensor) -> Tensor:
        """The x at a distance from a bin's start or a tail's edge, on the grid where there is one."""
        distance = torch.where(self.step > 0, self._on_grid(distance), distance)
        beyond = torch.where(code == 0, self.edges[:, 0] - distance, self._last_edge + distance)
        x = torch.where(self._is_tail(code), beyond, self._ends(code)[0] + distance)
        return torch.where(code == self.size - 1, self.atom, x)

    def entropies(self) -> Tensor:
        """-E[log f(x_d | k_d)] of every code, (D, C); 0 where there is no such cell."""
        code = self._codes()
        s, on_grid = self._scale(code), self.step > 0
        rate = torch.where(on_grid, self.step / s, 1.0)
        distance = self._mean_distance(code)
        geometric = self.step.log() - (-torch.expm1(-rate)).log() + (distance - self.step / 2) / s
        tail = torch.where(on_grid, geometric, distance / s + s.log())
        before = torch.where(self._is_tail(code), tail, -self._log_flat[:, :-1].T)
        return (before.T + self.log_share()).nan_to_num(0.0, 0.0, 0.0)

    def means(self) -> Tensor:
        """E[x_d | k_d] of every code, (D, C); 0 where there is no such cell."""
        code = self._codes()
        distance = self._mean_distance(code)
        beyond = torch.where(code == 0, self.edges[:, 0] - distance, self._last_edge + distance)
        mean = torch.where(self._is_tail(code), beyond, self._ends(code)[0] + distance)
        return torch.where(code == self.size - 1, self.atom, mean).T.nan_to_num(0.0, 0.0, 0.0)

    def _mean_distance(self, code: Tensor) -> Tensor:
        """E of the distance from a bin's start or a tail's edge, (N, D)."""
        low, high = self._span(code)
        s, step = self._scale(code)[..., None], self.step[:, None]
        length = (high - low).clamp_min(0.0)
        share = self._log_shares(code).softmax(-1).nan_to_num(0.0)
        middle = torch.where(self._is_tail(code)[..., None], _excess(length, s, step), length / 2)
        return torch.where(share > 0, share * (low + middle), 0.0).sum(-1)

    def modes(self) -> tuple[Tensor, Tensor]:
        """A most probable x of every code and log f there, (D, C) each: the middle of a bin's window, the near end of a tail's."""
        code = self._codes()
        low, high = self._span(code)
        near = torch.where(self.step[:, None] > 0, low + self.step[:, None] / 2, _next(low))
        distance = torch.where(self._is_tail(code)[..., None], near, low + (high - low).clamp_min(0.0) / 2)
        tried = torch.stack([self._nudged(code, self._placed(code, each)) for each in distance.unbind(-1)])
        log_f = torch.stack([self.log_density(x, code) for x in tried])
        best = log_f.nan_to_num(-math.inf).argmax(0, keepdim=True)
        return tried.gather(0, best)[0].T, log_f.gather(0, best)[0].T

    def _nudged(self, code: Tensor, x: Tensor) -> Tensor:
        """An x of a tail that rounding put on the edge, moved off it."""
        first, last = self.edges[:, 0], self._last_edge
        x = torch.where((code == 0) & (x >= first), torch.nextafter(first, first - 1), x)
        return torch.where((code == self.bins + 1) & (x <= last), torch.nextafter(last, last + 1), x)

    def allowed(self) -> Tensor:
        """Which codes may have mass, (D, C): the bins, the tails of open sides, the atom; not the spike's own grid cell."""
        code = self._codes()
        bin_ = (code >= 1) & (code <= self.bins)
        start, end = self._ends(code)
        spiked = ((start + end - 2 * self.atom).abs() < self.step / 2) & (end - start < 1.5 * self.step)
        tail = ((code == 0) & (self.tails[:, 0] > 0)) | ((code == self.bins + 1) & (self.tails[:, 1] > 0))
        atom = (code == self.size - 1) & ~self.atom.isnan()
        return ((bin_ & ~spiked) | tail | atom).T

    def pseudo_counts(self, alpha: Tensor) -> Tensor:
        """What smoothing adds before any row is counted, (..., D, C): alpha (..., D) to each bin, one row to each tail.

        One more row lies beyond the greatest of N exchangeable rows with probability 1 / (N + 1), whatever their law:
        a tail is counted as one more row.
        """
        outer = self._is_tail(self._codes()).T
        return torch.where(outer, 1.0, alpha[..., None]) * self.allowed()

    def counts(self, code: Tensor, weight: Tensor | None = None) -> Tensor:
        """How many rows (or how much weight) fell into each cell, (D, C)."""
        weight = self.edges.new_ones(len(code)) if weight is None else weight
        total = self.edges.new_zeros(len(self.edges), self.size + 1)
        return total.scatter_add_(1, code.T, weight.expand(code.T.shape))[:, :-1]

    def _codes(self) -> Tensor:
        return torch.arange(self.size, device=self.edges.device)[:, None].expand(-1, len(self.edges))

    @property
    def _last_edge(self) -> Tensor:
        return self.edges.gather(1, self.bins[:, None])[:, 0]

    @property
    def _log_flat(self) -> Tensor:
        """-log(bin width) by code, 0 for the other cells and the unobserved one, (D, C + 1)."""
        width = self.edges.diff(dim=1).nan_to_num(math.inf)
        padded = nn.functional.pad(width, (1, 3), value=1.0)
        return torch.where(padded.isinf(), 0.0, -padded.log())

    def _is_tail(self, code: Tensor) -> Tensor:
        return (code == 0) | (code == self.bins + 1)

    def _scale(self, code: Tensor) -> Tensor:
        s = torch.where(code == 0, self.tails[:, 0], self.tails[:, 1])
        return torch.where(s > 0, s, 1.0)  # a closed side: a stand-in that its zero mass hides

    def _beyond(self, x: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """Distance beyond the outer edge and the tail's scale, for the entries in a tail."""
        distance = torch.where(code == 0, self.edges[:, 0] - x, x - self._last_edge)
        return torch.where(self._is_tail(code), distance, 0.0), self._scale(code)

    def _ends(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Both edges of each bin (N, D); of the outermost bin for the other cells."""
        at = torch.minimum(code.clamp(min=1), self.bins).T
        return self.edges.gather(1, at - 1).T, self.edges.gather(1, at).T

    def _on_grid(self, distance: Tensor) -> Tensor:
        """From a distance to the centre of the grid cell it falls in."""
        return (torch.floor(distance / self.step) + 0.5) * self.step


def _excess(length: Tensor, s: Tensor, step: Tensor) -> Tensor:
    """E[y | y < length] of an exponential y of scale s; with a step that of the centre of the grid cell it falls in."""
    q = (-step / s).exp()
    cells = (length / torch.where(step > 0, step, 1.0)).round()
    endless = length.isinf()
    cut = torch.where(endless, 0.0, torch.where(endless, 1.0, length) / torch.expm1(torch.where(endless, 1.0, length) / s))
    n = torch.where(endless, 1.0, cells)
    cut_cells = torch.where(endless, 0.0, n * q**n / (1 - q**n))
    return torch.where(step > 0, step / 2 + step * (q / (1 - q) - cut_cells), s - cut)


def _closed(interval: Between) -> tuple[float, float]:
    """Its ends, an open one moved inwards by the last digit."""
    low, high = interval.lower, interval.upper
    return (low if interval.closed[0] else math.nextafter(low, high)), (high if interval.closed[1] else math.nextafter(high, low))


def _next(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, math.inf))


def choose_cells(
    domain: Domain, x: Tensor, holdout: Tensor | None, rules: Sequence[Rule], alphas: Sequence[float], max_bins: int
) -> tuple[Cells, Tensor]:
    """For each variable the rule and alpha with the greatest held-out likelihood: cells of x and pseudo-counts (D, C)."""
    rows, judge = apart(x, holdout)
    alpha = torch.tensor(alphas, dtype=torch.float64, device=x.device)[:, None].expand(-1, len(domain))
    scores = torch.stack([_held_out(Cells.cut(domain, rows, [r] * len(domain), max_bins=max_bins), rows, judge, alpha) for r in rules])
    best = scores.flatten(0, 1).argmax(0)  # (D,); among equals the plainest
    cells = Cells.cut(domain, x, [rules[i] for i in (best // len(alphas)).tolist()], max_bins=max_bins)
    return cells, cells.pseudo_counts(alpha[best % len(alphas), torch.arange(len(domain), device=x.device)])


def _held_out(cells: Cells, rows: Tensor, judge: Tensor, alpha: Tensor) -> Tensor:
    """log-likelihood of each variable's held-out cells under each alpha, (A, D)."""
    log_mass = normalise(cells.counts(cells.code(rows)) + cells.pseudo_counts(alpha)).log()
    code = cells.code(judge)
    inner = cells.log_density(judge, code).sum(0)
    counts = cells.counts(code)
    return (torch.where(counts > 0, log_mass, 0.0) * counts).sum(-1) + inner


def apart(x: Tensor, holdout: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows to learn a candidate from and rows to judge it by: the held-out ones, or every fifth of x."""
    if holdout is not None and len(holdout):
        return x, holdout
    fifth = torch.arange(len(x), device=x.device) % 5 == 4
    return x[~fifth], x[fifth]


def normalise(weights: Tensor) -> Tensor:
    """Divide by the sum over the last axis."""
    return weights / weights.sum(-1, keepdim=True)


def refuse_outside(domain: Domain, cells: Cells, x: Tensor) -> None:
    """Raise when an observed cell lies outside the domain, so that nothing can be said given it."""
    allowed = torch.nn.functional.pad(cells.allowed(), (0, 1), value=True)
    outside = (~allowed.gather(1, cells.code(x).T).T).nonzero()
    if len(outside):
        n, d = outside[0].tolist()
        raise DataError(f"column {domain.names[d]!r}: {float(x[n, d]):g} lies outside the domain, so nothing can be said given it")


def refuse_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Raise when a file's tensor does not fit the others."""
    if tuple(tensor.shape) != expected:
        raise FileError(f"tensor {name!r} does not fit the others: expected shape {expected}, got {tuple(tensor.shape)}")


def refuse_cells(cells: Cells, width: int) -> None:
    """Raise when a file's edges are not those of so many variables."""
    refuse_shape("cells.edges", cells.edges, (width, max(cells.edges.shape[1], 2)))
    if not bool(((cells.bins >= 1) & (cells.bins < cells.edges.shape[1])).all()):
        raise FileError("tensor 'cells.bins' does not fit the others: it counts bins that have no edges")
