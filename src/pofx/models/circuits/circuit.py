"""A probabilistic circuit as a Model: every question about marginals, conditionals and draws has an exact answer."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pofx.distributions.base import Law
from pofx.domain import LEVELLED, Domain
from pofx.errors import DataError, FileError, Unavailable
from pofx.events import Condition
from pofx.models.base import Model, labelled
from pofx.models.circuits import modes, passes
from pofx.models.circuits.evaluate import log_prob
from pofx.models.circuits.graph import Graph, Node
from pofx.models.circuits.inputs import Inputs, leaf
from pofx.models.circuits.passes import Mixing
from pofx.models.circuits.polynomial import Polynomial
from pofx.models.circuits.structure import mixture
from pofx.types import Context, Generator, Kind, Nats, Point, X

Structure = Callable[[Domain, Tensor], Sequence[Node]]  # of a domain and rows (N, D)
_PARTS = ("variable", "holder", "owner", "sum_of", "child")
_START_ROWS = 5000  # that the laws' first parameters are fitted to
_ALIGNED = 3.0  # weight that a unit's number below has at the start, over that of all units together
_OWN = 0.5  # weight of a unit's own row at the start, over that of all rows


class Ledger:
    """Tensors of the last log p, whose gradients are expected counts. A copy of a circuit keeps none."""

    def __init__(self) -> None:
        self.mixing: Mixing | None = None
        self.table: Tensor | None = None

    def enter(self, mixing: Mixing, table: Tensor) -> None:
        """Take the tensors that log p is being computed from."""
        self.mixing, self.table = mixing, table
        for t in (*mixing, table):
            if t.requires_grad:
                t.retain_grad()

    def __deepcopy__(self, memo: object) -> None:
        return None


class Circuit(Model):
    """p(x) by sums and products of laws of one variable; see `graph` for the formulas.

    Every sum mixes units over the same variables (smooth) and every product is of units over different ones
    (decomposable): that is why a missing cell is a factor 1, and one pass up and down answers for all variables at once.

    Cost: B K^2 for each edge and batch of B rows; (N + S + I) B K numbers of memory.

    Source: Choi, Vergari and Van den Broeck, "Probabilistic circuits: a unifying framework for tractable probabilistic
    models", UCLA, 2020.

    Args:
        domain: what x is, real variables standardised.
        units: K.
        structure: which nodes there are, for the rows that it learns from.
        laws: of the input units, one for each variable; the usual ones when not given.
    """

    missing = Kind.EXACT
    grows = frozenset({*_PARTS, "weight", "root", "theta"})
    rows_at_once = 1024

    variable: Tensor
    holder: Tensor
    owner: Tensor
    sum_of: Tensor
    child: Tensor
    weight: nn.Parameter
    root: nn.Parameter
    theta: nn.Parameter

    def __init__(self, domain: Domain, units: int, structure: Structure | None = None, laws: Sequence[Law] = ()) -> None:
        super().__init__(domain)
        self.units, self.structure = units, structure
        self.laws = tuple(laws) or tuple(leaf(v) for v in domain.variables)
        self.ledger: Ledger | None = None  # EM asks for one
        for name in _PARTS:
            self.register_buffer(name, torch.zeros(0, dtype=torch.long))
        with torch.device("cpu"):  # who multiplies whom is there even where numbers have no storage
            graph = Graph.of(mixture(len(domain)), len(domain))
        self.take(graph)

    # -- state -------------------------------------------------------------------------------------

    def take(self, graph: Graph) -> None:
        """Become a circuit of this structure, every sum uniform and every parameter of a law 0."""
        like = next(self.parameters(), torch.zeros(0))
        for name in _PARTS:
            setattr(self, name, getattr(graph, name).to(like.device))
        self._index(graph)
        self.weight = nn.Parameter(like.new_zeros(len(graph.child), self.units, self.units))
        self.root = nn.Parameter(like.new_zeros(graph.roots, self.units))
        self.theta = nn.Parameter(like.new_zeros(self.units, self.inputs.width))

    def _index(self, graph: Graph) -> None:
        self.graph = graph
        with torch.device("cpu"):
            self.inputs = Inputs(self.laws, graph.variable.tolist())

    @property
    def mixing(self) -> Mixing:
        """The weights of the sums: for each unit they sum to 1 over all units below it."""
        if all(level.sum_of is None for level in self.graph.levels):
            weight = self.weight.softmax(-1)
        else:
            weight = _softmax_of_sums(self.weight, self.graph.sum_of, len(self.graph.owner))
        return Mixing(weight, self.root.flatten().softmax(0).view_as(self.root))

    @property
    def polynomial(self) -> Polynomial:
        """The circuit with its present numbers, to be asked without gradients."""
        with torch.no_grad():
            return Polynomial(self.graph, self.inputs, self.mixing, self.theta.detach())

    def _settle(self) -> None:
        """Read the structure from its tensors.

        Raises:
            FileError: it is no circuit's, or a parameter has not its shape.
        """
        try:
            graph = self._read_graph()
        except DataError as error:
            raise FileError(f"the file's circuit is damaged: {error}") from None
        if not (graph.smooth and graph.decomposable and graph.scopes[0] == set(range(len(self.domain)))):
            raise FileError("the file's circuit is damaged: it is not smooth and decomposable over all variables")
        self._index(graph)
        self.units = self.root.shape[-1]
        shapes = {"weight": (len(self.child), self.units, self.units), "root": (graph.roots, self.units)}
        for name, shape in (shapes | {"theta": (self.units, self.inputs.width)}).items():
            if getattr(self, name).shape != shape or not self.units:
                raise FileError(f"tensor {name!r}: expected shape {shape}, got {tuple(getattr(self, name).shape)}")

    def _read_graph(self) -> Graph:
        """The graph of the buffers. Nodes are counted by what belongs to them."""
        nodes = torch.cat((self.holder, self.owner, self.child))
        size = int(nodes.max()) + 1 if len(nodes) else 0
        return Graph(self.variable, self.holder, self.owner, self.sum_of, self.child, size, len(self.domain))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Circuit":
        super()._apply(fn, recurse)
        if self.variable.device not in (self.graph.variable.device, torch.device("meta")):
            self._index(self._read_graph())
        return self

    def initialise(self, x: X, c: Context | None = None) -> None:
        """Learn the structure from rows x, and begin from random mixing.

        A unit leans towards its own number below, so that the units of all nodes begin a little like the classes of one
        mixture. Draws come from torch's own generator.
        """
        if self.structure is not None:
            self.take(Graph.of(self.structure(self.domain, x), len(self.domain)))
        with torch.no_grad():
            for logits in (self.weight, self.root):
                logits.copy_((torch.rand_like(logits).square() + 1e-3).log())
            self.weight.add_(torch.eye(self.units).mul(_ALIGNED * self.units).add(1.0).log().to(self.weight))
            self.theta.copy_(self._scattered(x.to(self.theta)))

    def _scattered(self, x: Tensor) -> Tensor:
        """Each unit's laws fitted to all rows, and a row of its own that weighs half as much as all of them."""
        rows = x[torch.randperm(len(x), device=x.device)[:_START_ROWS]]
        weights = rows.new_ones(len(rows), self.units)
        each = torch.arange(self.units, device=x.device)
        weights[each % len(rows), each] += _OWN * len(rows)
        return self.inputs.columns.fit(rows[:, self.variable], weights)

    def extra_repr(self) -> str:
        """The structure in numbers."""
        graph, size = self.graph, sum(p.numel() for p in self.parameters())
        blocks = f"{len(graph.variable)} inputs, {graph.size} products, {len(graph.owner)} sums over {len(graph.child)} nodes"
        return f"{blocks}, {self.units} units each; {len(graph.levels)} levels, {size:,} parameters"

    # -- asking ------------------------------------------------------------------------------------

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        mixing, at = self.mixing, self.inputs.evaluate(self.theta, x.to(self.theta))
        if self.ledger is not None and torch.is_grad_enabled():
            self.ledger.enter(mixing, at.table)
        return log_prob(self.graph, self.inputs, mixing, at)

    def _leave_one_out(self, x: X, generator: Generator) -> Tensor:
        return self.polynomial.leave_one_out(x.to(self.theta))

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        asked = self.polynomial
        sizes = [min(self.rows_at_once, n - i) for i in range(0, n, self.rows_at_once)]
        return torch.cat([self.theta.new_zeros(0, len(self.domain)), *(asked.sample(size, generator=generator) for size in sizes)])

    @torch.no_grad()
    def _complete(self, x: X, generator: Generator) -> X:
        x, asked = x.to(self.theta), self.polynomial
        return torch.where(x.isnan(), asked.draw(asked.ascent(x), generator=generator), x)

    @torch.no_grad()
    def _impute(self, x: X, generator: Generator) -> X:
        x, asked = x.to(self.theta), self.polynomial
        run = asked.run(x)
        filled = asked.means(run)
        for d, v in enumerate(self.domain.variables):
            if v.kind in LEVELLED:
                filled[:, d] = asked.chances(run, d, torch.arange(len(v.levels)).to(x)).argmax(-1).to(filled)
        return torch.where(x.isnan(), filled, x)

    @torch.no_grad()
    def _mean(self) -> Point:
        asked = self.polynomial
        return asked.means(asked.of_nothing)[0]

    @torch.no_grad()
    def covariance(self) -> Float[Tensor, "D D"]:
        """Cov[x_a, x_b] of all pairs of variables (of codes, where they are levels), exactly: one pass of D rows."""
        return self.polynomial.covariance()

    def answers(self, question: str, seen: Sequence[int] = ()) -> Kind:
        """A mode is exact in a deterministic circuit."""
        return Kind.EXACT if question == "mode" and self.polynomial.deterministic else super().answers(question, seen)

    @labelled(Kind.BOUND)
    @torch.no_grad()
    def _mode(self, evidence: Point) -> Point:
        return modes.mode(self.polynomial, evidence.to(self.theta), self.domain)

    # -- circuits again ----------------------------------------------------------------------------

    @torch.no_grad()
    def _marginal(self, keep: tuple[int, ...]) -> "Circuit":
        asked = self.polynomial
        return self._rest(keep, asked.part(keep, asked.mixing))

    @torch.no_grad()
    def _conditional(self, evidence: Point) -> "Circuit":
        asked, row = self.polynomial, evidence.to(self.theta)[None]
        if bool(asked.log_prob(row).isneginf()[0]):
            raise Unavailable("conditional", self.noun, "the evidence has probability 0")
        keep = evidence.isnan().nonzero()[:, 0].tolist()
        return self._rest(keep, asked.part(keep, asked.given(row)))

    @torch.no_grad()
    def _restrict(self, conditions: Mapping[int, Condition]) -> "tuple[Circuit, float]":
        """Every input restricted, and weighed by the probability of its condition."""
        asked = self.polynomial
        mixing, log_p = asked.weighed(asked.inputs.chances(asked.theta, conditions))
        inputs, positions = asked.inputs.restricted(conditions)
        part = Polynomial(asked.graph, inputs, mixing, asked.theta[:, positions.to(asked.theta.device)])
        return self._rest(range(len(self.domain)), part), float(log_p)

    @torch.no_grad()
    def _log_expectation(self, factors: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        """One pass up, of the functions' expectations in place of the inputs."""
        asked = self.polynomial
        return passes.up(asked.graph, asked.mixing, asked.inputs.expectations(asked.theta, factors)).log_p

    def _rest(self, keep: Sequence[int], part: Polynomial) -> "Circuit":
        other = Circuit(self.domain.select(keep), self.units, laws=part.inputs.laws)
        other.to(self.theta)
        other.take(part.graph)
        other.weight.copy_(part.mixing.weight.log())
        other.root.copy_(part.mixing.root.log())
        other.theta.copy_(part.theta)
        return other


def _softmax_of_sums(logits: Tensor, sum_of: Tensor, sums: int) -> Tensor:
    """For unit j of a sum, the softmax over the units k of all its children: (E, K, K)."""
    with torch.no_grad():
        top = passes.greatest(logits.amax(-1), sum_of, sums)
        top = torch.where(top.isneginf(), 0.0, top)
    p = (logits - top[sum_of][..., None]).exp()
    total = p.new_zeros(sums, logits.shape[1]).index_add_(0, sum_of, p.sum(-1))
    return p / total[sum_of][..., None]
