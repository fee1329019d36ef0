"""A histogram over the joint grid of a few variables.

    p(x) = P(k_1, ..., k_D) prod_d f_d(x_d | k_d),
    P(k_1, ..., k_D) = (n_k + kappa prod_d P_d(k_d)) / (N + kappa),

with k_d the cell of x_d, f its law inside the cell (`cells`) and P_d the smoothed histogram of each variable alone:
where the rows leave the grid empty, p falls back on independence. Every question is a sum over grid cells: exact.
"""

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pofx.distributions.axis import Rule
from pofx.distributions.cells import Cells, apart, normalise, refuse_cells, refuse_outside, refuse_shape
from pofx.domain import LEVELLED, Domain, Variable
from pofx.errors import OptionError, Unavailable
from pofx.models.base import FullBatch, Model
from pofx.models.classical.cell_mixture import draw
from pofx.types import Context, Generator, Kind, Nats, Point, X

KAPPAS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)
MOST_CELLS = 10**6
BESIDES = 5  # cells an axis may have beside its bins: two tails, two bounds, an atom


class GridHistogram(Model, FullBatch):
    """p(x) = P(k_1, ..., k_D) prod_d f_d(x_d | k_d): one histogram over the joint grid of a few variables.

    Bins shrink as N^(-1/(2 + D)) an axis; the rule (one for all axes) and kappa are chosen by held-out likelihood.
    Rows with missing cells are counted by EM: each is spread over the grid as P says, until P no longer moves.

    Cost: memory and time in the number of grid cells, at most 10^6.

    Args:
        domain: what x is.
        cells: the cells, when they are known.
        rules: candidate ways to cut the axes, the plainest first.
        alpha: rows added to every bin of the single histograms.
        max_bins: most bins an axis; see `bins_per_axis`.
    """

    missing = Kind.EXACT
    grows: ClassVar[frozenset[str]] = frozenset({"mass"})
    mass: Tensor  # P, one axis a variable, in the order of the allowed codes

    def __init__(
        self,
        domain: Domain,
        cells: Cells | None = None,
        *,
        rules: Sequence[Rule] = (Rule("width", 1.0),),
        alpha: float = 0.5,
        max_bins: int = 32,
    ) -> None:
        super().__init__(domain)
        self.rules, self.alpha, self.max_bins = rules, alpha, max_bins
        self.cells = cells or Cells(width=len(domain))
        self.register_buffer("mass", torch.ones((1,) * len(domain), dtype=self.cells.edges.dtype))

    def steps(self, x: Tensor, *, holdout: Tensor | None = None, generator: Generator = None) -> Iterator[float]:
        """Count rows x (N, D); one step for complete rows, EM's otherwise, without draws."""
        rows, judge = apart(x, holdout)

        def held_out(rule: Rule, kappa: float) -> float:
            for _ in self._em(rows, rule, kappa, iterations=3):
                pass
            return float(self.log_prob(judge).sum())

        rule = max(self.rules, key=lambda rule: held_out(rule, KAPPAS[2]))
        kappa = max(KAPPAS, key=lambda kappa: held_out(rule, kappa))
        for _ in self._em(x, rule, kappa, iterations=50):
            yield float(self.log_prob(x).mean())

    def _em(self, x: Tensor, rule: Rule, kappa: float, iterations: int) -> Iterator[None]:
        """P <- (E[n | observed cells, P] + kappa Q) / (N + kappa), with Q the product of the single histograms."""
        n = len(self.domain)
        self.cells = Cells.cut(self.domain, x, [rule] * n, max_bins=self.max_bins, joint=n)
        alpha = self.cells.edges.new_full((n,), self.alpha)
        single = normalise(self.cells.counts(self.cells.code(x)) + self.cells.pseudo_counts(alpha))
        prior = outer([p[a] for p, a in zip(single, self.cells.allowed(), strict=True)])
        self.mass = prior
        patterns = self._counted(x)
        for _ in range(1 if not x.isnan().any() else iterations):
            before = self.mass
            expected = sum((self.mass * (n_seen / self._over(seen)) for seen, n_seen in patterns), torch.zeros_like(prior))
            self.mass = (expected + kappa * prior) / (len(x) + kappa)
            yield
            if (self.mass - before).abs().sum() < 1e-6:
                return

    def _counted(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each pattern of observed variables its counts over their cells, axes of size 1 for the others."""
        counted = []
        for seen, rows in by_pattern(x):
            shape = self._shape(seen)
            index = self._index(self.cells.code(x[rows]), seen)
            counts = torch.bincount(index, minlength=math.prod(shape)).to(self.mass)
            counted.append((seen, counts.reshape(shape)))
        return counted

    def _shape(self, seen: Tensor) -> list[int]:
        return [int(size) if s else 1 for size, s in zip(self.cells.allowed().sum(1), seen, strict=True)]

    def _over(self, seen: Tensor) -> Tensor:
        """P of the observed variables' cells, axes of size 1 for the others."""
        hidden = (~seen).nonzero()[:, 0].tolist()
        return self.mass.sum(hidden, keepdim=True) if hidden else self.mass

    def _ranks(self, code: Tensor) -> Tensor:
        """Position of each code along its axis of P, (N, D); -1 where the cell can have no mass."""
        allowed = torch.nn.functional.pad(self.cells.allowed(), (0, 1))
        rank = torch.where(allowed, allowed.cumsum(1) - 1, -1)
        return rank.gather(1, code.T).T

    def _index(self, code: Tensor, seen: Tensor) -> Tensor:
        """Flat position of each row among the cells of the observed variables."""
        index = torch.zeros_like(code[:, 0])
        for d in seen.nonzero()[:, 0].tolist():
            index = index * int(self.mass.shape[d]) + self._ranks(code)[:, d].clamp(min=0)
        return index

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        code = self.cells.code(x)
        value = self.cells.log_density(x, code).sum(1)
        for seen, rows in by_pattern(x):
            possible = (self._ranks(code[rows])[:, seen] >= 0).all(1)
            log_mass = self._over(seen).log().flatten()[self._index(code[rows], seen)]
            value[rows] += torch.where(possible, log_mass, -math.inf)
        return value

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        every = torch.full((n, len(self.domain)), torch.nan, dtype=self.mass.dtype, device=self.mass.device)
        return self._complete(every, generator)

    def _posterior(self, x: Tensor, seen: Tensor) -> Tensor:
        """P of the unobserved variables' cells given the observed ones, (N, cells), for rows of one pattern."""
        order = [*seen.nonzero()[:, 0].tolist(), *(~seen).nonzero()[:, 0].tolist()]
        code = self.cells.code(x)
        table = self.mass.permute(order).reshape(math.prod(self._shape(seen)), -1)
        return normalise(table[self._index(code, seen)])

    def _missing_parts(self, x: Tensor) -> Iterator[tuple[Tensor, list[int], Tensor, Tensor]]:
        """Rows with missing cells, which they are, their posteriors (U, cells) and each row's one of these.

        Rows that agree in what is observed share a posterior; as many at a time as fit in memory.
        """
        refuse_outside(self.domain, self.cells, x)
        for seen, rows in by_pattern(x):
            hidden = (~seen).nonzero()[:, 0].tolist()
            if not hidden:
                continue
            index = self._index(self.cells.code(x[rows]), seen).unique(return_inverse=True)[1]
            many = max(1, 2**22 // math.prod(self.mass.shape[d] for d in hidden))
            for start in range(0, int(index.max()) + 1, many):
                part = (index >= start) & (index < start + many)
                which, first = _first(index[part] - start)
                yield rows[part], hidden, self._posterior(x[rows[part]][first], seen), which

    def _complete(self, x: X, generator: Generator) -> X:
        codes = self._allowed_codes()
        drawn = self.cells.code(x)
        for rows, hidden, posterior, which in self._missing_parts(x):
            flat = draw(posterior, which, generator)
            for d in reversed(hidden):
                drawn[rows, d] = codes[d][flat % len(codes[d])]
                flat = flat // len(codes[d])
        filled = self.cells.sample(drawn, generator=generator)
        return torch.where(x.isnan(), filled.to(x), x)

    def _impute(self, x: X, generator: Generator) -> X:
        codes, means = self._allowed_codes(), self.cells.means()
        filled = x.to(means).clone()
        for rows, hidden, posterior, which in self._missing_parts(x):
            joint = posterior.reshape(len(posterior), *(self.mass.shape[d] for d in hidden))
            for axis, d in enumerate(hidden, start=1):
                others = [a for a in range(1, joint.ndim) if a != axis]
                p = joint.sum(others) if others else joint
                levelled = self.domain.variables[d].kind in LEVELLED
                value = (codes[d][p.argmax(1)] - 1).to(means) if levelled else p @ means[d, codes[d]]
                filled[rows, d] = value[which]
        return filled.to(x)

    def _allowed_codes(self) -> list[Tensor]:
        return [a.nonzero()[:, 0] for a in self.cells.allowed()]

    def _mean(self) -> Point:
        every = torch.full((1, len(self.domain)), torch.nan, dtype=self.mass.dtype, device=self.mass.device)
        singles = [self._over(torch.arange(len(self.domain), device=every.device) == d).flatten() for d in range(len(self.domain))]
        parts = [p @ m[codes] for p, m, codes in zip(singles, self.cells.means(), self._allowed_codes(), strict=True)]
        return torch.stack(parts)

    def _mode(self, evidence: Point) -> Point:
        evidence = evidence.to(self.mass)
        refuse_outside(self.domain, self.cells, evidence[None])
        seen = ~evidence.isnan()
        at, log_peak = self.cells.modes()
        codes = self._allowed_codes()
        joint = self._posterior(evidence[None], seen)[0].log() if not seen.all() else self.mass.new_zeros(1)
        hidden = (~seen).nonzero()[:, 0].tolist()
        for axis, d in enumerate(hidden):
            joint = joint.reshape([self.mass.shape[h] for h in hidden])
            joint = joint + log_peak[d, codes[d]].reshape([-1 if a == axis else 1 for a in range(len(hidden))])
        x = evidence.clone()
        for d, i in zip(hidden, torch.unravel_index(joint.argmax(), joint.shape), strict=False):
            x[d] = at[d, codes[d][i]]
        return x

    def _marginal(self, keep: tuple[int, ...]) -> Model:
        gone = [d for d in range(len(self.domain)) if d not in keep]
        order = sorted(keep)
        mass = (self.mass.sum(gone) if gone else self.mass).permute([order.index(d) for d in keep])
        return self._part(keep, mass)

    def _conditional(self, evidence: Point) -> Model:
        evidence = evidence.to(self.mass)
        seen = ~evidence.isnan()
        keep = tuple((~seen).nonzero()[:, 0].tolist())
        if self._log_prob(evidence[None], None, None) == -math.inf:
            raise Unavailable("conditional", type(self).__name__, "the evidence has probability 0")
        posterior = self._posterior(evidence[None], seen)
        return self._part(keep, posterior.reshape([self.mass.shape[d] for d in keep]))

    def _part(self, keep: Sequence[int], mass: Tensor) -> "GridHistogram":
        part = GridHistogram(self.domain.select(keep), self.cells.select(keep))
        part.mass = mass
        return part

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take the state that `state_dict` gave."""
        super().load_tensors(tensors)
        refuse_cells(self.cells, len(self.domain))
        refuse_shape("mass", self.mass, tuple(self.cells.allowed().sum(1).tolist()))


def bins_per_axis(variables: Sequence[Variable], most: int) -> int:
    """How many bins each axis of a joint grid may have.

    Raises:
        OptionError: if even two an axis make more than a million cells.
    """
    fixed = math.prod(len(v.levels) for v in variables if v.levels)
    free = sum(not v.levels for v in variables)
    bins = min(most, math.floor((MOST_CELLS / fixed) ** (1 / free) + 1e-9) - BESIDES) if free else most
    if fixed > MOST_CELLS or bins < 2:
        cells = fixed * (2 + BESIDES) ** free
        raise OptionError(
            f"a joint grid of these {len(variables)} variables has at least {cells:.3g} cells, at most {MOST_CELLS:.0e} are kept: "
            "choose form='product', the family 'density_tree', or fewer variables"
        )
    return bins


def by_pattern(x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each pattern of observed variables, (D,), with the positions of its rows."""
    patterns, which = (~x.isnan()).unique(dim=0, return_inverse=True)
    for i, seen in enumerate(patterns):
        yield seen, (which == i).nonzero()[:, 0]


def _first(index: Tensor) -> tuple[Tensor, Tensor]:
    """The index itself, and for each of its values 0 ... U - 1 the position of one that has it."""
    first = torch.zeros(int(index.max()) + 1, dtype=torch.long, device=index.device)
    return index, first.scatter_(0, index, torch.arange(len(index), device=index.device))


def outer(factors: Sequence[Tensor]) -> Tensor:
    """The outer product of vectors, one axis each."""
    joint = factors[0]
    for factor in factors[1:]:
        joint = joint[..., None] * factor
    return joint
