"""Surjections that make a variable continuous: levels and counts, rounded values, spikes.

Each gives a code or a rounded value a cell of the real line, and draws y inside the cell (`lift`);
the way forward names the cell that y is in. The cells tile the line, so any real y is a valid x.
With q(y | x) on the cell of x alone,

    log p(x) = log int_cell p(y) dy >= E_q [log p(y) - log q(y | x)],

where p(x) is the probability of a code or of an atom, and P(cell) / resolution of a rounded value.

Source: Theis, van den Oord and Bethge, "A note on the evaluation of generative models", ICLR 2016,
arXiv:1511.01844, for the bound with uniform q; the normal scores and the gaps are ours.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine
from torch.special import ndtr, ndtri

from pofx.domain import CONTINUOUS, LEVELLED, Variable, VariableKind
from pofx.transforms.base import PerVariable, Surjection
from pofx.types import Generator, Nats, X

INSIDE = 1e-7  # how near the end of a cell a draw may come, as a share of its mass: nearer ones would round out of it


class NormalScores(PerVariable, Surjection):
    """Codes k = 0 ... K-1 as cells of equal mass under a standard normal: y in [ndtri(F(k-1)), ndtri(F(k))).

    F is the cumulative distribution of the codes and q(y | k) the normal restricted to the cell, so y is
    standard normal when the codes follow F, and a standard normal base has the bound log(F(k) - F(k-1)),
    with equality and without noise. The first and the last cell are open to infinity.

    Args:
        variables: counts with a last value, or levels.
    """

    cumulative: Tensor
    first: Tensor
    last: Tensor

    def __init__(self, variables: Sequence[Variable]) -> None:
        super().__init__()
        self.variables = tuple(variables)
        sizes = [v.cardinality or 1 for v in self.variables]
        first = [_first(v) for v in self.variables]
        self.register_buffer("cumulative", torch.zeros(len(sizes), max(sizes, default=1) + 1, dtype=torch.float64))
        self.register_buffer("first", torch.tensor(first, dtype=torch.float64), persistent=False)
        self.register_buffer("last", torch.tensor(sizes, dtype=torch.float64) - 1, persistent=False)

    def fit(self, x: Tensor) -> "NormalScores":
        """Take F from rows (N, D): smoothed frequencies, so that no level has probability 0."""
        counts = self._counts(x)
        valid = torch.arange(counts.shape[1], device=x.device) <= self.last[:, None]
        below_last = torch.arange(counts.shape[1], device=x.device) < self.last[:, None]
        self.cumulative[:, 1:] = torch.where(below_last, smoothed(counts, valid).cumsum(1), 1.0)
        return self

    def forward(self, y: X) -> X:
        """The code whose cell y is in."""
        p = ndtr(torch.where(y.isnan(), 0.0, y).double()).reshape(-1, y.shape[-1])
        inner = self.cumulative[:, 1:-1].contiguous()
        code = torch.searchsorted(inner, p.T.contiguous(), right=True).T.reshape(y.shape)
        return torch.where(y.isnan(), torch.nan, torch.minimum(code.double(), self.last) + self.first)

    def lift(self, x: X, *, generator: Generator = None) -> tuple[X, Nats]:
        """y ~ N(0, 1) restricted to the cell of x, and -log q(y | x)."""
        return self.place(x, uniform_shares(x, generator))

    def select(self, keep: Sequence[int]) -> "NormalScores":
        """The map of some of the variables, in the order given."""
        part = NormalScores([self.variables[d] for d in keep]).to(self.first.device)
        part.cumulative.copy_(self.cumulative[list(keep), : part.cumulative.shape[1]])
        return part

    def place(self, x: X, share: X) -> tuple[X, Nats]:
        """The y that has the given share of its cell's mass below it, and -log q(y | x)."""
        k = x - self.first
        valid = (k >= 0) & (k <= self.last)
        index = torch.where(valid, k, 0.0).long()
        below = self.cumulative.gather(1, index.reshape(-1, x.shape[-1]).T).T.reshape(x.shape)
        mass = self.cumulative.gather(1, index.reshape(-1, x.shape[-1]).T + 1).T.reshape(x.shape) - below
        y = ndtri(below + mass * share)
        log_q = -0.5 * (y.square() + math.log(2 * math.pi)) - mass.log()
        # An x that is no code goes to infinity, where every base has density 0; NaN stays NaN.
        return torch.where(valid, y, k * math.inf), torch.where(valid, -log_q, 0.0).sum(-1)

    def _counts(self, x: Tensor) -> Tensor:
        dim, levels = self.cumulative.shape[0], self.cumulative.shape[1] - 1
        k = x - self.first
        seen = (k >= 0) & (k <= self.last)
        cell = torch.where(seen, k, 0.0).long() + levels * torch.arange(dim, device=x.device)
        counts = torch.zeros(dim * levels, dtype=torch.float64, device=x.device)
        return counts.index_add(0, cell.reshape(-1), seen.double().reshape(-1)).reshape(dim, levels)


class Cells(PerVariable, Surjection):
    """A rounded value as a cell of its width, an atom as a slab in a gap opened for it; monotone in x.

    With r the resolution (0: not rounded), s the atom, g the gap opened above it and u uniform on (0, 1):

        x != s:  y = x + r (u - 1/2) + g [x > s],    -log q counted 0: p(x) is P(cell) / r by the domain's convention,
        x  = s:  y = s - r/2 + (r + g) u,            -log q = log(r + g): p(s) is a probability.

    Draws beyond the first or last valid value are taken to it: the edge cells are open. Codes are a grid of
    resolution 1.

    Args:
        variables: continuous ones (with or without a resolution or an atom), counts or levels.
    """

    gap: Tensor
    resolution: Tensor
    atom: Tensor
    first: Tensor
    last: Tensor
    coded: Tensor

    def __init__(self, variables: Sequence[Variable]) -> None:
        super().__init__()
        self.variables = tuple(variables)
        self.register_buffer("gap", torch.zeros(len(self.variables), dtype=torch.float64))
        for name, values in (
            ("resolution", [resolution(v) for v in self.variables]),
            ("atom", [math.nan if v.spike is None else v.spike for v in self.variables]),
            ("first", [_first(v) for v in self.variables]),
            ("last", [_last(v) for v in self.variables]),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64), persistent=False)
        self.register_buffer("coded", torch.tensor([not v.continuous for v in self.variables]), persistent=False)

    def fit(self, x: Tensor) -> "Cells":
        """Choose the gaps from rows (N, D): as wide as gives the slab about the density of its surroundings."""
        for d, variable in enumerate(self.variables):
            if variable.spike is not None:
                self.gap[d] = _gap(x[:, d], variable)
        return self

    def forward(self, y: X) -> X:
        """The value whose cell y is in."""
        start = self.atom - self.resolution / 2
        stop = start + self.resolution + self.gap
        x = on_grid(torch.where(y > stop, y - self.gap, y).double(), self.resolution)
        x = torch.maximum(torch.minimum(x, self.last), self.first)
        return torch.where((y >= start) & (y <= stop), self.atom, x)

    def lift(self, x: X, *, generator: Generator = None) -> tuple[X, Nats]:
        """y uniform on the cell or slab of x, and -log q(y | x) in the domain's base measure."""
        return self.place(x, uniform_shares(x, generator))

    def select(self, keep: Sequence[int]) -> "Cells":
        """The map of some of the variables, in the order given."""
        part = Cells([self.variables[d] for d in keep]).to(self.gap.device)
        part.gap.copy_(self.gap[list(keep)])
        return part

    def place(self, x: X, share: X) -> tuple[X, Nats]:
        """The y that has the given share of its cell below it, and -log q(y | x)."""
        width = self.resolution + self.gap
        is_atom = x == self.atom
        beside = x + self.resolution * (share - 0.5) + torch.where(x > self.atom, self.gap, 0.0)
        y = torch.where(is_atom, self.atom - self.resolution / 2 + width * share, beside)
        # A code below the first or above the last goes to infinity, where every base has density 0; NaN stays NaN.
        y = torch.where(self.coded & (x < self.first), -math.inf, torch.where(self.coded & (x > self.last), math.inf, y))
        return y, torch.where(is_atom, width.log(), 0.0).sum(-1)


class Lift(PerVariable, Surjection):
    """Each variable by its own surjection, or none: normal scores for codes, cells for rounded values and spikes.

    Args:
        dim: number D of variables.
        scores: the codes' map.
        coded: which variables it is for.
        cells: the map of rounded and spiked values.
        celled: which variables it is for.
    """

    def __init__(self, dim: int, scores: NormalScores, coded: Sequence[int], cells: Cells, celled: Sequence[int]) -> None:
        super().__init__()
        self.dim, self.coded, self.celled = dim, tuple(coded), tuple(celled)
        self.scores, self.cells = scores, cells

    @property
    def lifted(self) -> tuple[int, ...]:
        """Which variables are moved."""
        return tuple(sorted((*self.coded, *self.celled)))

    def fit(self, x: Tensor) -> "Lift":
        """Take what the maps need from rows (N, D)."""
        for part, columns in self._parts():
            part.fit(x[:, columns])
        return self

    def forward(self, y: X) -> X:
        """The x whose cell y is in."""
        x = y.double().clone()
        for part, columns in self._parts():
            x[..., columns] = part(x[..., columns])
        return x

    def lift(self, x: X, *, generator: Generator = None) -> tuple[X, Nats]:
        """y ~ q(y | x) and -log q(y | x)."""
        return self.place(x, uniform_shares(x, generator))

    def place(self, x: X, share: X) -> tuple[X, Nats]:
        """The y that has the given share of its cell below it, and -log q(y | x)."""
        y, log_weight = x.double().clone(), torch.zeros(x.shape[:-1], dtype=torch.float64, device=x.device)
        for part, columns in self._parts():
            y[..., columns], own = part.place(y[..., columns], share[..., columns])
            log_weight = log_weight + own
        return y, log_weight

    def centre(self, x: X) -> X:
        """The middle of each cell: what `encode` encodes."""
        return self.place(x, torch.full_like(x, 0.5, dtype=torch.float64))[0]

    def spread(self, x: X) -> tuple[X, Nats]:
        """Like `lift`, but at quasi-random points: the same for the same x, and even over the cells of many rows."""
        return self.place(x, even_shares(x.reshape(-1, x.shape[-1])).reshape(x.shape))

    def select(self, keep: Sequence[int]) -> "Lift":
        """The map of some of the variables, in the order given."""
        coded, celled = ([(i, d) for i, d in enumerate(keep) if d in own] for own in (self.coded, self.celled))
        scores = self.scores.select([self.coded.index(d) for _, d in coded])
        cells = self.cells.select([self.celled.index(d) for _, d in celled])
        return Lift(len(keep), scores, [i for i, _ in coded], cells, [i for i, _ in celled])

    def _parts(self) -> list[tuple[NormalScores | Cells, slice | list[int]]]:
        both: list[tuple[NormalScores | Cells, tuple[int, ...]]] = [(self.scores, self.coded), (self.cells, self.celled)]
        return [(part, slice(None) if len(own) == self.dim else list(own)) for part, own in both if own]


def even_shares(x: Tensor) -> Tensor:
    """Scrambled Sobol points in (0, 1)^D, one for each row of x (N, D)."""
    known = SobolEngine.MAXDIM
    engine = SobolEngine(min(x.shape[1], known), scramble=True, seed=0)
    first = engine.quasi.double() / 2**engine.MAXBIT  # torch rounds this one to its default type
    points = engine.draw(len(x), dtype=torch.float64)
    points[:1] = first
    columns = torch.arange(x.shape[1]) % known
    return points[:, columns].to(x.device).clamp(INSIDE, 1 - INSIDE)


def resolution(variable: Variable) -> float:
    """Width of the grid a variable lives on; 0 when it lives on none."""
    return (variable.resolution or 0.0) if variable.kind in CONTINUOUS else 1.0


def on_grid(x: Tensor, resolution: Tensor) -> Tensor:
    """The nearest multiple of the resolution, as a decimal reads: 51 / 10, not 51 * 0.1; x itself where it is 0."""
    r = torch.where(resolution > 0, resolution, 1.0)
    per_unit = (1 / r).round()
    whole = (per_unit >= 1) & ((1 / r - per_unit).abs() < 1e-9 * per_unit)
    steps = (x / r).round()
    return torch.where(resolution > 0, torch.where(whole, steps / per_unit.clamp(min=1), steps * r), x)


def smoothed(counts: Tensor, valid: Tensor) -> Tensor:
    """Frequencies (D, K) of counts (D, K), with pseudo-counts that leave-one-out likelihood chooses.

    (n_k + alpha m_k) / (N + alpha): m is half uniform, half the normal of the same mean and deviation cut
    into cells, so that a fine scale with few rows borrows from its neighbours.
    """
    n = counts.sum(1, keepdim=True)
    among = valid.to(counts)  # a truth times 0.5 would have the default type
    prior = 0.5 * among / among.sum(1, keepdim=True) + 0.5 * _normal_masses(counts, valid)
    strengths = [2.0**j for j in range(-4, 11)]
    scores = []
    for alpha in strengths:
        left_out = ((counts - 1).clamp(min=0) + alpha * prior) / (n - 1 + alpha).clamp(min=alpha)
        scores.append(torch.where(valid & (counts > 0), counts * left_out.log(), 0.0).sum(1))
    best = torch.tensor(strengths, dtype=counts.dtype, device=counts.device)[torch.stack(scores).argmax(0)][:, None]
    return torch.where(valid, (counts + best * prior) / (n + best), 0.0)


def _normal_masses(counts: Tensor, valid: Tensor) -> Tensor:
    k = torch.arange(counts.shape[1], dtype=counts.dtype, device=counts.device)
    n = counts.sum(1, keepdim=True).clamp(min=1)
    mean = (counts * k).sum(1, keepdim=True) / n
    deviation = ((counts * (k - mean).square()).sum(1, keepdim=True) / n).sqrt().clamp(min=0.5)
    mass = torch.where(valid, ndtr((k + 0.5 - mean) / deviation) - ndtr((k - 0.5 - mean) / deviation), 0.0)
    return mass / mass.sum(1, keepdim=True).clamp(min=1e-300)


def _gap(x: Tensor, variable: Variable) -> float:
    """A slab of about the density of the rest, within a factor: share / (1 - share) times the width of the rest."""
    seen = x[x.isfinite()]
    others = seen[seen != variable.spike]
    if len(others) < 2:
        return 1.0
    if variable.kind is VariableKind.POSITIVE:  # standardised on the log scale, where the median is the unit
        return float(others.median())
    odds = (len(seen) - len(others)) / len(others)
    return math.sqrt(12) * max(float(others.std()), 1e-6 * (1 + abs(float(others.mean())))) * min(max(odds, 0.25), 2.0)


def ends(variable: Variable) -> tuple[float, float]:
    """The least and the greatest value, as numbers."""
    return (0.0, len(variable.levels) - 1.0) if variable.kind in LEVELLED else (variable.lower, variable.upper)


def _first(variable: Variable) -> float:
    """The least valid value: rounded to the bound itself, unless an atom stands there."""
    if not variable.continuous:
        return ends(variable)[0]
    if variable.resolution is None or variable.kind is VariableKind.REAL:
        return -math.inf
    least = 0.0 if variable.kind is VariableKind.POSITIVE else variable.lower
    return _step_inside(least, variable.resolution, 1) if variable.spike == least else least


def _last(variable: Variable) -> float:
    """The greatest valid value."""
    if variable.kind is VariableKind.INTERVAL and variable.resolution is not None:
        return _step_inside(variable.upper, variable.resolution, -1) if variable.spike == variable.upper else variable.upper
    return math.inf if variable.continuous else ends(variable)[1]


def _step_inside(bound: float, resolution: float, sign: int) -> float:
    """The grid's point next to an excluded bound, inside of it."""
    steps = sign * (math.floor(sign * bound / resolution + 1e-9) + 1)
    per_unit = round(1 / resolution)
    return steps / per_unit if per_unit and abs(1 / resolution - per_unit) < 1e-9 * per_unit else steps * resolution


def uniform_shares(x: Tensor, generator: Generator) -> Tensor:
    """A share for each cell of x, in (0, 1), away from both ends by what rounding could cost."""
    return torch.rand(x.shape, generator=generator, dtype=torch.float64, device=x.device).clamp(INSIDE, 1 - INSIDE)
