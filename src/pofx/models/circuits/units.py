"""A circuit written unit by unit: to read a formula off a page, to teach, to test.

    input      a law of one variable
    product    of units over different variables        (decomposable)
    sum        weighted, of units over the same          (smooth)

>>> broken = Product((Input("works", {"no": 1.0}), Input("beans", {"full": 0.5, "empty": 0.5}), Input("coffee", {"none": 1.0})))
>>> full = Product((Input("beans", {"full": 1.0}), Input("coffee", {"good": 0.7, "weak": 0.3})))
>>> empty = Product((Input("beans", {"empty": 1.0}), Input("coffee", {"none": 1.0})))
>>> machine = Sum(((0.9, Product((Input("works", {"yes": 1.0}), Sum(((0.8, full), (0.2, empty)))))), (0.1, broken)))
>>> print(drawing(machine))
sum
├ 0.9 product
│     ├ works: yes
│     └ sum
│       ├ 0.8 product
│       │     ├ beans: full
│       │     └ coffee: good 0.7, weak 0.3
│       └ 0.2 product
│             ├ beans: empty
│             └ coffee: none
└ 0.1 product
      ├ works: no
      ├ beans: full 0.5, empty 0.5
      └ coffee: none
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pofx.distributions.discrete import Categorical
from pofx.domain import Domain, Level, VariableKind
from pofx.errors import DataError, OptionError
from pofx.models.circuits.circuit import Circuit
from pofx.models.circuits.graph import Graph, Node


@dataclass(frozen=True)
class Input:
    """The law of one variable: the probability of each level or count that has any.

    Args:
        variable: its name.
        chances: value -> probability; they sum to 1.

    Raises:
        OptionError: they do not.
    """

    variable: str
    chances: Mapping[Level, float]

    def __post_init__(self) -> None:
        _check_shares(tuple(self.chances.values()), f"the chances of {self.variable!r}")


@dataclass(frozen=True)
class Product:
    """The product of units."""

    factors: "tuple[Unit, ...]"


@dataclass(frozen=True)
class Sum:
    """A mixture of units.

    Args:
        terms: (weight, unit) each; the weights sum to 1.

    Raises:
        OptionError: they do not.
    """

    terms: "tuple[tuple[float, Unit], ...]"

    def __post_init__(self) -> None:
        _check_shares([weight for weight, _ in self.terms], "the weights of a sum")


Unit = Input | Product | Sum


def drawing(unit: Unit) -> str:
    """The units below one, as a tree of lines. A unit with several parents is drawn below each."""
    return "\n".join(_lines(unit))


def _lines(unit: Unit) -> list[str]:
    if isinstance(unit, Input):
        sure = len(unit.chances) == 1
        return [f"{unit.variable}: " + ", ".join(str(level) if sure else f"{level} {p:g}" for level, p in unit.chances.items())]
    parts = [("", factor) for factor in unit.factors] if isinstance(unit, Product) else [(f"{w:g} ", term) for w, term in unit.terms]
    lines = ["product" if isinstance(unit, Product) else "sum"]
    for i, (label, part) in enumerate(parts):
        last = i == len(parts) - 1
        head, *rest = _lines(part)
        indent = ("  " if last else "│ ") + " " * len(label)
        lines += [f"{'└' if last else '├'} {label}{head}", *(indent + line for line in rest)]
    return lines


def circuit_of(root: Unit, domain: Domain) -> Circuit:
    """The Model of a circuit written out, on a domain of discrete variables.

    Raises:
        DataError: it is not smooth or not decomposable, so that it has no marginals; or it leaves a variable out.
        OptionError: an input names an unknown variable or value, or a variable is continuous.
    """
    laws = [_law(domain, d) for d in range(len(domain))]
    builder = _Builder(domain)
    places = builder.roots(root)
    graph = Graph.of(builder.nodes, len(domain))
    _check_structure(graph, domain)
    circuit = Circuit(domain, 1, laws=laws)
    circuit.take(graph)
    builder.fill(circuit, places)
    return circuit


class _Builder:
    """Collects nodes of one unit each, a shared unit once."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.nodes: list[Node] = []
        self.inputs: list[list[Input]] = []  # of each node, in order
        self.weights: list[list[list[float]]] = []  # of each node, of each of its sums
        self.known: dict[int, int] = {}

    def roots(self, root: Unit) -> dict[int, float]:
        """The places of the root's terms, and their weights."""
        if isinstance(root, Sum):
            return {self.place(term): weight for weight, term in root.terms}
        return {self.place(root): 1.0}

    def place(self, unit: Unit) -> int:
        """The node that is this unit."""
        if id(unit) not in self.known:
            factors = _flat(unit)
            inputs = [f for f in factors if isinstance(f, Input)]
            sums = [f for f in factors if isinstance(f, Sum)]
            below = tuple(tuple(self.place(term) for _, term in s.terms) for s in sums)
            self.nodes.append(Node(tuple(self._index(i) for i in inputs), below))
            self.inputs.append(inputs)
            self.weights.append([[weight for weight, _ in s.terms] for s in sums])
            self.known[id(unit)] = len(self.nodes) - 1
        return self.known[id(unit)]

    def _index(self, unit: Input) -> int:
        d = self.domain.index(unit.variable)
        for value in unit.chances:
            _code(self.domain, d, value)
        return d

    def fill(self, circuit: Circuit, roots: Mapping[int, float]) -> None:
        """Set the circuit's numbers; its nodes stand in the order that its graph gave them."""
        order = Graph.order(self.nodes)
        with torch.no_grad():
            weights = [w for old in order for of_sum in self.weights[old] for w in of_sum]
            circuit.weight.copy_(torch.tensor(weights).log().reshape(-1, 1, 1))
            circuit.root.copy_(torch.tensor([roots[old] for old in order[: len(roots)]]).log()[:, None])
            for i, unit in enumerate(unit for old in order for unit in self.inputs[old]):
                law, positions = circuit.inputs.columns.select([i])
                d = self.domain.index(unit.variable)
                logits = torch.full((law.width,), -math.inf)
                for value, p in unit.chances.items():
                    logits[_code(self.domain, d, value)] = math.log(p) if p > 0 else -math.inf
                circuit.theta[0, positions] = logits


def _flat(unit: Unit) -> "Sequence[Input | Sum]":
    """The factors of a product, those of its products in their place."""
    if isinstance(unit, Product):
        return [f for factor in unit.factors for f in _flat(factor)]
    return [unit]


def _law(domain: Domain, d: int) -> Categorical:
    v = domain.variables[d]
    if v.cardinality is None:
        raise OptionError(f"a circuit written out takes levels and bounded counts, got {v.name!r}, which is {v.kind}")
    first = int(v.lower) if v.kind is VariableKind.COUNT else 0
    return Categorical(v.cardinality, first=first, numbers=v.kind is VariableKind.COUNT)


def _code(domain: Domain, d: int, value: Level) -> int:
    v = domain.variables[d]
    values: Sequence[Level] = v.levels or [int(v.lower) + k for k in range(v.cardinality or 0)]
    if value not in values:
        raise OptionError(f"column {v.name!r} has no value {value!r}; it has {', '.join(map(str, values))}")
    return list(values).index(value)


def _check_shares(shares: Sequence[float], what: str) -> None:
    if not shares or min(shares) < 0 or abs(math.fsum(shares) - 1) > 1e-9:
        raise OptionError(f"{what} are 0 or more and sum to 1, got {list(shares)}")


def _check_structure(graph: Graph, domain: Domain) -> None:
    if not graph.decomposable:
        raise DataError("the circuit is not decomposable: a product has two factors over one variable, so it has no marginals")
    if not graph.smooth:
        raise DataError("the circuit is not smooth: a sum has terms over different variables, so a missing cell is no factor 1")
    missing = set(range(len(domain))) - graph.scopes[0]
    if missing:
        raise DataError(f"the circuit leaves out {', '.join(repr(domain.names[d]) for d in sorted(missing))}")
