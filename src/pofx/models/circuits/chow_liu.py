"""`chow_liu`: a Bayesian network that is a tree, the best of all trees, over cells of each variable."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from pofx.distributions.axis import Rule
from pofx.distributions.cells import Cells, apart, normalise, refuse_cells, refuse_outside
from pofx.distributions.discrete import Categorical
from pofx.domain import LEVELLED, Domain, Variable, VariableKind
from pofx.errors import FileError, OptionError, Unavailable
from pofx.events import Condition
from pofx.models.base import FamilyConfig, FullBatch, Model, Takes
from pofx.models.circuits import passes
from pofx.models.circuits.circuit import Circuit
from pofx.models.circuits.graph import Graph
from pofx.models.circuits.inputs import linear
from pofx.models.circuits.passes import Leaves, Mixing
from pofx.models.circuits.structure import mutual_information, spanning_tree, tree
from pofx.types import Context, Generator, Kind, Nats, Point, X

_RULES = tuple(Rule("mass", scale) for scale in (0.5, 1.0, 2.0, 4.0))
_ALPHAS = (1.0, 0.03, 0.1, 0.3, 3.0)
_LARGEST = 2**28  # numbers in all tables together
_ROWS = 4096  # of one pass while learning


class ChowLiuTree(Model, FullBatch):
    """p(x) = P(k_root) prod_d P(k_d | k_parent(d)) prod_d f_d(x_d | k_d), k_d the cell that x_d falls in.

    A level or a small count is a cell; other variables are cut into cells of equal mass, with a flat law inside
    (`distributions.cells`). Of all trees the one chosen has the greatest likelihood: the maximum spanning tree of the mutual
    information. Every table is the joint counts with `alpha` added to each. Missing cells are summed out by EM.
    It is a deterministic circuit, the states of a node being told apart by its own cell, so that every answer is exact, the
    mode included.

    Cost: N (sum of cells)^2 for the tree, and N D C^2 for the tables of C cells.

    Source: Chow and Liu, "Approximating discrete probability distributions with dependence trees", IEEE Transactions on
    Information Theory 14(3), 1968.

    Args:
        domain: what x is.
        config: the options.
        cells: of each variable; none: room for a file's tensors.
        codes: p of the cells, with `cells`.
    """

    missing = Kind.EXACT
    rows_at_once = 1024

    def __init__(self, domain: Domain, config: "ChowLiuConfig", cells: Cells | None = None, codes: Circuit | None = None) -> None:
        super().__init__(domain)
        self.config = config
        self.cells = cells or Cells(width=len(domain))
        self.codes = codes or _circuit(domain, self.cells)

    # -- learning ----------------------------------------------------------------------------------

    def steps(self, x: Tensor, *, holdout: Tensor | None = None, generator: Generator = None) -> Iterator[float]:
        """The tree, then EM on its tables, one step of which is enough where no cell is missing.

        The cells and alpha, where not given, are those of the best score on held-out rows, or on a fifth of x.
        """
        rows, judge = apart(x, holdout)
        rules = _RULES if any(v.cardinality is None for v in self.domain.variables) else _RULES[:1]
        alphas = _ALPHAS if self.config.alpha is None else (self.config.alpha,)
        best = Try(rules[0], alphas[0])
        if len(rules) * len(alphas) > 1 and len(judge):
            best = max((Try(rule, alpha) for rule in rules for alpha in alphas), key=lambda one: self._score(one, rows, judge))
        self._begin(best, x)
        yield from self._maximise(x, best.alpha, self.config.steps)

    def _score(self, one: "Try", rows: Tensor, judge: Tensor) -> float:
        other = ChowLiuTree(self.domain, self.config)
        other._begin(one, rows)
        for _ in other._maximise(rows, one.alpha, 2):
            pass
        return float(other.log_prob(judge).mean())

    def _begin(self, one: "Try", x: Tensor) -> None:
        """Cut the variables and grow the tree."""
        self.cells = Cells.cut(self.domain, x, [one.rule] * len(self.domain), max_bins=self.config.bins)
        _check_size(self.domain, self.cells)
        code = self.cells.code(x)
        compact = [c.unique(return_inverse=True) for c in code.unbind(1)]
        information = mutual_information([c for _, c in compact], [len(v) for v, _ in compact], one.alpha)
        self.codes = _circuit(self.domain, self.cells, spanning_tree(information)).to(x.device)

    def _maximise(self, x: Tensor, alpha: float, steps: int) -> Iterator[float]:
        """EM; the mean log-likelihood of the rows after each step."""
        code = self.cells.code(x)
        inner = float(self.cells.log_density(x, code).sum(1).mean())
        rows = _as_rows(code, self.cells.size)
        pseudo, last = self._pseudo_counts(alpha), -torch.inf
        self._set(pseudo)
        for _ in range(steps if bool(rows.isnan().any()) else 1):
            counts = self._counts(rows)
            self._set(Mixing(*(c + p for c, p in zip(counts, pseudo, strict=True))))
            now = float(self.codes.log_prob(rows).mean()) + inner
            yield now
            if now - last < self.config.tolerance:
                return
            last = now

    def _pseudo_counts(self, alpha: float) -> Mixing:
        """Alpha for every pair of cells that may have mass."""
        graph, allowed = self.codes.graph, self.cells.allowed()[self.codes.variable].to(self.cells.edges)  # (N, C)
        return Mixing(alpha * allowed[graph.owner][:, :, None] * allowed[graph.child][:, None], alpha * allowed[:1])

    def _counts(self, rows: Tensor) -> Mixing:
        """How often each pair of cells is expected, given the observed ones."""
        asked = self.codes.polynomial
        total = Mixing(torch.zeros_like(asked.mixing.weight), torch.zeros_like(asked.mixing.root))
        for part in rows.split(_ROWS):
            flows = passes.down(asked.graph, asked.mixing, asked.ascent(part))
            if flows.edges is not None and flows.root is not None:
                total = Mixing(total.weight + asked.mixing.weight * flows.edges, total.root + asked.mixing.root * flows.root)
        return total

    @torch.no_grad()
    def _set(self, counts: Mixing) -> None:
        """The weights that are the shares of counts; of a cell that never occurs, any."""
        weight = torch.where(counts.weight.sum(-1, keepdim=True) > 0, counts.weight, 1.0)
        self.codes.weight.copy_(normalise(weight).log())
        self.codes.root.copy_(normalise(counts.root).log())

    # -- asking ------------------------------------------------------------------------------------

    def _codes(self, x: Tensor) -> Tensor:
        return _as_rows(self.cells.code(x), self.cells.size)

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        code = self.cells.code(x)
        return self.codes.log_prob(_as_rows(code, self.cells.size)) + self.cells.log_density(x, code).sum(1)

    def _leave_one_out(self, x: X, generator: Generator) -> Tensor:
        return self.codes.leave_one_out(self._codes(x)) + self.cells.log_density(x, self.cells.code(x))

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return self.cells.sample(self.codes.sample(n, generator=generator).long(), generator=generator)

    def _complete(self, x: X, generator: Generator) -> X:
        refuse_outside(self.domain, self.cells, x)
        code = self.codes.complete(self._codes(x), generator=generator).long()
        return torch.where(x.isnan(), self.cells.sample(code, generator=generator).to(x), x)

    def _chances(self, x: Tensor) -> Tensor:
        """P(k_d | the observed cells), (N, D, C)."""
        asked = self.codes.polynomial
        return asked.gathered(asked.at_inputs(asked.run(self._codes(x)))).transpose(0, 1)

    def _impute(self, x: X, generator: Generator) -> X:
        refuse_outside(self.domain, self.cells, x)
        chances = self._chances(x)
        filled = (chances * self.cells.means()).sum(-1)
        for d, variable in enumerate(self.domain.variables):
            if variable.kind in LEVELLED:
                filled[:, d] = chances[:, d].argmax(-1) - 1  # code 1 is level 0
        return torch.where(x.isnan(), filled.to(x), x)

    def _mean(self) -> Point:
        nothing = self.cells.edges.new_full((1, len(self.domain)), torch.nan)
        return (self._chances(nothing) * self.cells.means()).sum(-1)[0]

    def _mode(self, evidence: Point) -> Point:
        evidence = evidence.to(self.cells.edges)
        refuse_outside(self.domain, self.cells, evidence[None])
        at, log_peak = self.cells.modes()  # (D, C)
        asked, code = self.codes.polynomial, self.cells.code(evidence[None])[0]
        cell = torch.arange(self.cells.size, device=code.device)
        log_f = torch.where(evidence.isnan()[:, None], log_peak, torch.where(cell == code[:, None], 0.0, -torch.inf))
        state = passes.best(asked.graph, asked.mixing, log_f[asked.graph.variable][:, None]).state[asked.graph.holder]
        chosen = asked.gathered(state)[:, 0]
        return torch.where(evidence.isnan(), at.gather(1, chosen[:, None])[:, 0], evidence)

    @torch.no_grad()
    def _restrict(self, conditions: Mapping[int, Condition]) -> tuple[Model, float]:
        """Every cell weighed by the share of it that the conditions keep; inside it the law is flat as before."""
        cells, asked = self.cells.restricted(conditions), self.codes.polynomial
        share = cells.log_share() - self.cells.log_share().nan_to_num(0.0, 0.0, 0.0)
        mixing, log_p = asked.weighed(Leaves(share.exp()[asked.graph.variable][:, None]))
        codes = self.codes._rest(range(len(self.domain)), replace(asked, mixing=mixing))
        return ChowLiuTree(self.domain, self.config, cells, codes.requires_grad_(False)), float(log_p)

    @torch.no_grad()
    def _log_expectation(self, factors: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        asked = self.codes.polynomial
        log_w = self.cells.log_expectation(factors)[:, asked.graph.variable]  # (R, I, C)
        return passes.up(asked.graph, asked.mixing, linear(log_w.mT)).log_p

    @torch.no_grad()
    def _entropy(self) -> Tensor:
        """H of the cells, which add up as the tree's sums choose, and -E[log f] inside."""
        asked = self.codes.polynomial
        p = passes.prior(asked.graph, asked.mixing)  # (N, C)
        choice = torch.special.entr(asked.mixing.weight).sum(-1)  # of each edge and state above, (E, C)
        below = (p[asked.graph.owner][asked.graph.sum_of] * choice).sum()
        inner = asked.gathered(p[asked.graph.holder][:, None])[:, 0] * self.cells.entropies()
        return torch.special.entr(asked.mixing.root).sum() + below + inner.sum()

    def _marginal(self, keep: tuple[int, ...]) -> Model:
        return ChowLiuTree(self.domain.select(keep), self.config, self.cells.select(keep), _circuit_of(self.codes.marginal(keep)))

    def _conditional(self, evidence: Point) -> Model:
        keep = evidence.isnan().nonzero()[:, 0].tolist()
        if bool(self._log_prob(evidence[None], None, None).isneginf()):
            raise Unavailable("conditional", self.noun, "the evidence has probability 0")
        codes = _circuit_of(self.codes.conditional(self._codes(evidence[None])[0]))
        return ChowLiuTree(self.domain.select(keep), self.config, self.cells.select(keep), codes)

    # -- state -------------------------------------------------------------------------------------

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take the state that `state_dict` gave; how many cells there are is read from their edges.

        Raises:
            FileError: a name, type or shape does not fit.
        """
        edges = tensors.get("cells.edges")
        if edges is None or edges.ndim != 2:
            raise FileError("the file lacks the cells of a Chow-Liu tree")
        self.cells.edges = self.cells.edges.new_zeros(edges.shape)
        self.codes = _circuit(self.domain, self.cells)
        super().load_tensors(tensors)

    def _settle(self) -> None:
        refuse_cells(self.cells, len(self.domain))


class Try(NamedTuple):
    """What held-out rows decide."""

    rule: Rule
    alpha: float


class ChowLiuConfig(FamilyConfig):
    """Options of `chow_liu`."""

    takes: ClassVar[Takes] = Takes.EVERYTHING
    cites: ClassVar[tuple[str, ...]] = (
        "@article{chow1968approximating, title={Approximating discrete probability distributions with dependence trees}, "
        "author={Chow, C. K. and Liu, C. N.}, journal={IEEE Transactions on Information Theory}, volume={14}, number={3}, "
        "pages={462--467}, year={1968}}",
    )
    space: ClassVar[dict[str, tuple[Any, ...]]] = {"alpha": (None, 0.01, 0.1, 1.0, 10.0), "bins": (8, 16, 32, 64)}

    alpha: float | None = Field(None, gt=0, description="rows added to each pair of cells; None: chosen by held-out score")
    bins: int = Field(32, ge=2, le=1024, description="cells of a variable with many values, at most")
    steps: int = Field(50, ge=1, description="EM steps, where cells are missing, at most")
    tolerance: float = Field(1e-4, ge=0, description="EM stops when a step gains less, in nats a row")

    def _build(self, domain: Domain, context: Domain | None) -> ChowLiuTree:
        return ChowLiuTree(domain, self)


def _circuit(domain: Domain, cells: Cells, parents: Sequence[int] = ()) -> Circuit:
    """A tree over the codes of cells, each state of a node sure of its own code; a star where there are no parents."""
    size, width = cells.size, len(domain)
    named = Domain(tuple(Variable(v.name, VariableKind.COUNT, lower=0.0, upper=size - 1.0) for v in domain.variables))
    circuit = Circuit(named, size, laws=[Categorical(size, numbers=True)] * width).double()
    with torch.device("cpu"):
        graph = Graph.of(tree(parents or [-1] + [0] * (width - 1)), width)
    circuit.take(graph)
    with torch.no_grad():
        circuit.theta.copy_(torch.eye(size, dtype=torch.float64).log().repeat(1, width))
    return circuit.requires_grad_(False)


def _circuit_of(model: Model) -> Circuit:
    """A part of the circuit over codes, which is one again."""
    if not isinstance(model, Circuit):
        raise TypeError(f"expected a Circuit, got {type(model).__name__}")
    return model.requires_grad_(False)


def _as_rows(code: Tensor, size: int) -> Tensor:
    """Codes as numbers, NaN where unobserved."""
    return torch.where(code == size, torch.nan, code.double())


def _check_size(domain: Domain, cells: Cells) -> None:
    if len(domain) * cells.size**2 > _LARGEST:
        widest = max(domain.variables, key=lambda v: v.cardinality or 0)
        raise OptionError(
            f"the tables of a Chow-Liu tree would hold {len(domain) * cells.size**2:,} numbers: column {widest.name!r} has "
            f"{widest.cardinality} values; leave it out, or learn hclt, which needs no table of pairs"
        )
