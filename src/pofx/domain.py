"""What x is: one variable after another, their kinds, names and base measure.

A log-density is comparable only within a domain, because the domain fixes the base measure:
Lebesgue for real, positive and interval variables, counting for the others. Two refinements keep
real tables honest. A variable that lives on a grid (``resolution``) has, as its density at x,
P(cell of x) / resolution. A variable with one value repeated in many rows (``spike``) has an atom
there: its density at the spike is a probability, elsewhere a density.

In tensors every variable is one float column: real values as they are, counts as numbers,
ordinal, categorical and binary levels as codes 0, 1, ...; NaN = unobserved.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from pofx.errors import DataError, OptionError


class VariableKind(StrEnum):
    """The kinds a variable can be of."""

    REAL = "real"
    POSITIVE = "positive"  # (0, inf)
    INTERVAL = "interval"  # (lower, upper)
    COUNT = "count"  # integers lower ... upper (upper may be inf); a pixel is a count 0 ... 255
    ORDINAL = "ordinal"  # ordered levels
    CATEGORICAL = "categorical"  # unordered levels
    BINARY = "binary"  # two levels


CONTINUOUS = frozenset({VariableKind.REAL, VariableKind.POSITIVE, VariableKind.INTERVAL})
LEVELLED = frozenset({VariableKind.ORDINAL, VariableKind.CATEGORICAL, VariableKind.BINARY})
Level = str | int | float | bool


@dataclass(frozen=True)
class Variable:
    """One variable of x.

    Args:
        name: the column's name.
        kind: what values it takes.
        lower: the least value (interval: excluded; count: the first integer).
        upper: the greatest value (interval: excluded; count: the last integer, or inf).
        levels: what codes 0, 1, ... stand for (ordinal, categorical, binary).
        resolution: width of the grid a rounded continuous variable lives on, or None.
        spike: the value of a continuous variable that has an atom, or None.
        dtype: the column's type in the user's table, restored on the way out.
        reason: why the kind was chosen, in words.

    Raises:
        OptionError: if the parts contradict each other.
    """

    name: str
    kind: VariableKind | str  # a VariableKind once made
    lower: float = -math.inf
    upper: float = math.inf
    levels: tuple[Level, ...] = ()
    resolution: float | None = None
    spike: float | None = None
    dtype: str = "float64"
    reason: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", VariableKind(self.kind))
        for complaint in self._complaints():
            raise OptionError(f"variable {self.name!r} ({self.kind}): {complaint}")

    def _complaints(self) -> Iterable[str]:
        if self.kind in LEVELLED and not self.levels:
            yield "needs its levels, got none"
        if self.kind not in LEVELLED and self.levels:
            yield "takes no levels"
        if self.kind is VariableKind.BINARY and len(self.levels) != 2:
            yield f"needs two levels, got {len(self.levels)}"
        if len(set(self.levels)) < len(self.levels):
            yield "has a level twice"
        if self.kind is VariableKind.INTERVAL and not (-math.inf < self.lower < self.upper < math.inf):
            yield f"needs finite bounds lower < upper, got {self.lower} and {self.upper}"
        if self.kind is VariableKind.COUNT and not (-math.inf < self.lower <= self.upper):
            yield f"needs a finite first integer below its last, got {self.lower} and {self.upper}"
        if self.resolution is not None and not (self.kind in CONTINUOUS and 0 < self.resolution < math.inf):
            yield "only a continuous variable has a resolution, and it is positive"
        if self.spike is not None and self.kind not in CONTINUOUS:
            yield "only a continuous variable has a spike"

    @property
    def continuous(self) -> bool:
        """Whether its base measure is Lebesgue's (an atom at a spike aside)."""
        return self.kind in CONTINUOUS

    @property
    def cardinality(self) -> int | None:
        """How many values it can take, or None when they are not finitely many."""
        if self.levels:
            return len(self.levels)
        if self.kind is VariableKind.COUNT and self.upper < math.inf:
            return int(self.upper - self.lower) + 1
        return None


@dataclass(frozen=True)
class Domain:
    """The space x lives in: variables in order, and the shape an array of them has.

    >>> d = Domain((Variable("age", VariableKind.POSITIVE), Variable("sex", VariableKind.BINARY, levels=("f", "m"))))
    >>> d.names, d.shape
    (('age', 'sex'), (2,))
    >>> d.replace(age="real")["age"].kind
    <VariableKind.REAL: 'real'>

    Args:
        variables: one per entry, in order.
        shape: the event shape; () is understood as (D,), a table row. An image is (H, W) or (C, H, W).
    """

    variables: tuple[Variable, ...]
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "variables", tuple(self.variables))
        if not self.variables:
            raise DataError("the data have no columns: a domain needs at least one variable")
        object.__setattr__(self, "shape", tuple(self.shape) or (len(self.variables),))
        if math.prod(self.shape) != len(self.variables):
            raise OptionError(f"shape {self.shape} holds {math.prod(self.shape)} entries, got {len(self.variables)} variables")
        if len(self._index) < len(self.variables):
            twice = next(n for i, n in enumerate(self.names) if n in self.names[:i])
            raise DataError(f"column {twice!r} stands twice: rename one of them")

    @classmethod
    def real(cls, dim: int) -> "Domain":
        """R^D, variables named x0, x1, ..."""
        return cls(tuple(Variable(f"x{d}", VariableKind.REAL) for d in range(dim)))

    @classmethod
    def counts(cls, shape: Sequence[int], levels: int) -> "Domain":
        """An array of integers 0 ... levels - 1: binary images, pixels, symbols."""
        named = (Variable(f"x{d}", VariableKind.COUNT, lower=0, upper=levels - 1, dtype="int64") for d in range(math.prod(shape)))
        return cls(tuple(named), tuple(shape))

    def __len__(self) -> int:
        return len(self.variables)

    def __getitem__(self, name: str) -> Variable:
        return self.variables[self.index(name)]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The variables' names, in order."""
        return tuple(v.name for v in self.variables)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: d for d, name in enumerate(self.names)}

    @property
    def is_table(self) -> bool:
        """Whether an entry is a row of named columns (and no image or longer array)."""
        return self.shape == (len(self.variables),)

    def index(self, name: str) -> int:
        """Where the variable stands.

        Raises:
            OptionError: if there is none of that name; the nearest names are listed.
        """
        if name not in self._index:
            raise OptionError(f"there is no column {name!r}{did_you_mean(name, self.names)}")
        return self._index[name]

    def select(self, keep: Sequence[int]) -> "Domain":
        """The domain of some of the variables, in the order given."""
        return Domain(tuple(self.variables[d] for d in keep))

    def replace(self, **kinds: "str | Mapping[str, Any] | Variable") -> "Domain":
        """The same domain with some variables corrected: a kind, some fields, or a whole Variable."""
        variables = list(self.variables)
        for name, change in kinds.items():
            variables[self.index(name)] = _corrected(self[name], change)
        return Domain(tuple(variables), self.shape)

    def to_json(self) -> dict[str, Any]:
        """Plain data: what `from_json` reads back. An image's equal variables are written once."""
        first = self.variables[0]
        if not self.is_table and self == Domain._array(first, self.shape):
            return {"array": _plain(first), "shape": list(self.shape)}
        return {"variables": [_plain(v) for v in self.variables], "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Domain":
        """The domain that `to_json` wrote.

        Raises:
            OptionError: if the data do not describe one.
        """
        try:
            shape = tuple(int(n) for n in data["shape"])
            if "array" in data:
                return cls._array(_variable(data["array"]), shape)
            return cls(tuple(_variable(v) for v in data["variables"]), shape)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise OptionError(f"this does not describe a domain: {error!r}") from error

    @classmethod
    def _array(cls, like: Variable, shape: tuple[int, ...]) -> "Domain":
        size = math.prod(shape)
        if not 0 < size <= 2**24:
            raise OptionError(f"an array of shape {shape} has {size} entries, expected 1 ... {2**24}")
        return cls(tuple(replace(like, name=f"x{d}") for d in range(size)), shape)

    def __str__(self) -> str:
        rows = [("column", "kind", "values", "because"), *((v.name, str(v.kind), _values(v), v.reason) for v in self._shown())]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join("  ".join((*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3])).rstrip() for row in rows)

    def _shown(self) -> tuple[Variable, ...]:
        if self.is_table:
            return self.variables
        return (replace(self.variables[0], name=f"{self.names[0]} ... {self.names[-1]}", reason=f"array of shape {self.shape}"),)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A clause that names the nearest known words, or lists the known ones."""
    from difflib import get_close_matches

    names = [str(name) for name in known]
    close = get_close_matches(word, names, n=3)
    return (
        f"; did you mean {' or '.join(map(repr, close))}?"
        if close
        else f"; known: {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}"
    )


def _corrected(old: Variable, change: "str | Mapping[str, Any] | Variable") -> Variable:
    if isinstance(change, Variable):
        return replace(change, name=old.name)
    fields = {"kind": change} if isinstance(change, str) else dict(change)
    for name in fields.keys() - asdict(old).keys():
        raise OptionError(f"column {old.name!r}: {name!r} is no field of a variable{did_you_mean(str(name), asdict(old))}")
    kind = fields.pop("kind", old.kind)
    if kind not in set(VariableKind):
        raise OptionError(f"column {old.name!r}: {kind!r} is no kind{did_you_mean(str(kind), VariableKind)}")
    return replace(_as_kind(old, VariableKind(kind), fields), reason="as you said")


def _as_kind(old: Variable, kind: VariableKind, fields: Mapping[str, Any]) -> Variable:
    """The variable with new fields, and those that its new kind can not carry put back to their defaults."""
    continuous, same = kind in CONTINUOUS, kind is old.kind
    kept = {
        "levels": old.levels if kind in LEVELLED else (),
        "resolution": old.resolution if continuous else None,
        "spike": old.spike if continuous else None,
        "lower": old.lower if same else 0 if kind is VariableKind.COUNT else -math.inf,
        "upper": old.upper if same else math.inf,
    }
    return replace(old, kind=kind, **(kept | {name: _field(name, value) for name, value in fields.items()}))


def _field(name: str, value: Any) -> Any:  # noqa: ANN401
    return tuple(value) if name == "levels" else value


def _plain(v: Variable) -> dict[str, Any]:
    """The fields that differ from their defaults; infinities never reach the JSON."""
    default = Variable(v.name, VariableKind.REAL)
    fields = {k: value for k, value in asdict(v).items() if value != getattr(default, k)}
    return {"name": v.name, **fields, "kind": str(v.kind)}


def _variable(data: Mapping[str, Any]) -> Variable:
    known = {k: data[k] for k in Variable.__dataclass_fields__ if k in data}
    if set(data) - set(known) or not isinstance(known["name"], str) or known["kind"] not in set(VariableKind):
        raise OptionError(f"this does not describe a variable: {dict(data)!r:.200}")
    return Variable(**{k: _field(k, v) for k, v in known.items()})


def _values(v: Variable) -> str:
    if v.levels:
        shown = ", ".join(str(level) for level in v.levels[:4])
        return f"{shown}, ... ({len(v.levels)})" if len(v.levels) > 4 else shown
    if v.kind is VariableKind.COUNT:
        return f"{v.lower:g} ... {v.upper:g}" if v.upper < math.inf else f"{v.lower:g}, {v.lower + 1:g}, ..."
    parts = [f"({v.lower:g}, {v.upper:g})"] if v.kind is VariableKind.INTERVAL else []
    parts += [f"grid of {v.resolution:g}"] if v.resolution is not None else []
    parts += [f"spike at {v.spike:g}"] if v.spike is not None else []
    return ", ".join(parts)
