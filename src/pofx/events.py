"""Events: what is known of x, one condition a variable, the others free.

A condition is a value, a set of values, or an interval. In tensors: levels are codes, NaN is nowhere.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pofx.domain import Domain, Variable, VariableKind
from pofx.errors import DataError, OptionError
from pofx.types import Mask, Point

_MANY = 1 << 16  # values of a count that are listed at most
_CLOSE = 1e-9  # of a spike, relative
_END = 1e-6  # of a grid's cell: a value this near the end of an interval lies on it, whatever rounding did to its last digit


@dataclass(frozen=True)
class Value:
    """x_d = value.

    Args:
        value: a number, or the code of a level.
    """

    value: float

    def holds(self, column: Float[Tensor, " N"], variable: Variable) -> Bool[Tensor, " N"]:
        """Which entries are that value; on a grid, in its cell."""
        return self.contains(column, _slack(variable, self.value))

    def contains(self, x: Float[Tensor, "*batch"], slack: float = 0.0) -> Bool[Tensor, "*batch"]:
        """Which numbers are that value, or nearer to it than the slack."""
        return (x - self.value).abs() <= slack

    def sentence(self, variable: Variable) -> str:
        """In words."""
        return f"{variable.name} = {_word(variable, self.value)}"


@dataclass(frozen=True)
class Among:
    """x_d is one of the values.

    Args:
        values: numbers, or codes of levels.
    """

    values: tuple[float, ...]

    def holds(self, column: Float[Tensor, " N"], variable: Variable) -> Bool[Tensor, " N"]:
        """Which entries are one of them."""
        return torch.stack([Value(value).holds(column, variable) for value in self.values]).any(0)

    def contains(self, x: Float[Tensor, "*batch"], slack: float = 0.0) -> Bool[Tensor, "*batch"]:
        """Which numbers are one of them, or nearer to one than the slack."""
        return ((x[..., None] - torch.tensor(self.values, dtype=x.dtype, device=x.device)).abs() <= slack).any(-1)

    def sentence(self, variable: Variable) -> str:
        """In words."""
        return f"{variable.name} in {{{', '.join(_word(variable, value) for value in self.values)}}}"


@dataclass(frozen=True)
class Between:
    """lower <= x_d <= upper, each end closed or open.

    Args:
        lower: the lower end, or -inf.
        upper: the upper end, or inf.
        closed: whether the lower and the upper end belong to it.
    """

    lower: float = -math.inf
    upper: float = math.inf
    closed: tuple[bool, bool] = (True, True)

    def holds(self, column: Float[Tensor, " N"], variable: Variable) -> Bool[Tensor, " N"]:
        """Which entries lie in the interval."""
        return self.contains(column, _END * (variable.resolution or 0.0))

    def contains(self, x: Float[Tensor, "*batch"], slack: float = 0.0) -> Bool[Tensor, "*batch"]:
        """Which numbers lie in the interval; a number nearer to an end than the slack lies on it."""
        above = x >= self.lower - slack if self.closed[0] else x > self.lower + slack
        below = x <= self.upper + slack if self.closed[1] else x < self.upper - slack
        return above & below

    def sentence(self, variable: Variable) -> str:
        """In words."""
        left, right = "[" if self.closed[0] and self.lower > -math.inf else "(", "]" if self.closed[1] and self.upper < math.inf else ")"
        return f"{variable.name} in {left}{self.lower:g}, {self.upper:g}{right}"


Condition = Value | Among | Between
NEVER = Among(())  # what no number meets


def both(a: Condition, b: Condition) -> Condition:
    """What meets both.

    >>> both(Between(0.0, 5.0), Between(upper=2.0, closed=(True, False)))
    Between(lower=0.0, upper=2.0, closed=(True, False))
    """
    if isinstance(a, Between) and isinstance(b, Between):
        return _overlap(a, b)
    listed, other = (b, a) if isinstance(a, Between) else (a, b)
    values = torch.tensor([] if isinstance(listed, Between) else _all(listed), dtype=torch.float64)
    kept = [float(v) for v in values if bool(other.contains(v, _CLOSE * (1 + abs(float(v)))))]
    return Among(tuple(kept))


def _overlap(a: Between, b: Between) -> Condition:
    lower, open_below = max((a.lower, not a.closed[0]), (b.lower, not b.closed[0]))
    upper, closed_above = min((a.upper, a.closed[1]), (b.upper, b.closed[1]))
    whole = Between(lower, upper, (not open_below, closed_above))
    return whole if lower < upper or (lower == upper and whole.closed == (True, True)) else NEVER


@dataclass(frozen=True)
class Event:
    """{x: x_d meets its condition for every d that has one}.

    >>> Event.of(Domain.real(3), {"x0": 1.5, "x2": Between(0.0, closed=(False, True))}).sentence
    'x0 = 1.5, x2 in (0, inf)'

    Args:
        domain: what x is.
        conditions: variable to condition; variables without one are free.

    Raises:
        OptionError: an empty set or interval, a number that is NaN, a set of values that has probability 0, or an
            interval of unordered levels.
    """

    domain: Domain
    conditions: Mapping[int, Condition]

    def __post_init__(self) -> None:
        for d, condition in self.conditions.items():
            if not 0 <= d < len(self.domain):
                raise OptionError(f"variables are 0 ... {len(self.domain) - 1}, got {d}")
            _check(self.domain.variables[d], condition)

    @classmethod
    def of(cls, domain: Domain, known: Mapping[str, float | Iterable[float] | Condition]) -> "Event":
        """From names: a number is a value, several are a set.

        Raises:
            OptionError: an unknown name, or as the class.
        """
        return cls(domain, {domain.index(name): _condition(spec) for name, spec in known.items()})

    @classmethod
    def at(cls, domain: Domain, point: Point) -> "Event":
        """The event that the entries that are not NaN have their values.

        Raises:
            DataError: the point has another width than the domain.
        """
        if point.shape != (len(domain),):
            raise DataError(f"evidence needs shape ({len(domain)},), got {tuple(point.shape)}")
        return cls(domain, {d: Value(value) for d, value in enumerate(point.tolist()) if not math.isnan(value)})

    # -- what holds --------------------------------------------------------------------------------

    def holds(self, x: Float[Tensor, "N D"]) -> Bool[Tensor, " N"]:
        """Which rows satisfy it; NaN satisfies no condition."""
        kept = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for d, condition in self.conditions.items():
            kept = kept & condition.holds(x[:, d], self.domain.variables[d])
        return kept

    @property
    def seen(self) -> list[int]:
        """Variables fixed to one value, in order."""
        return sorted(d for d, condition in self.conditions.items() if _single(condition) is not None)

    @property
    def open(self) -> dict[int, Condition]:
        """The conditions that leave a variable more than one value: sets and intervals."""
        return {d: condition for d, condition in self.conditions.items() if _single(condition) is None}

    @property
    def fixed(self) -> Mask:
        """Which variables are fixed to one value."""
        fixed = torch.zeros(len(self.domain), dtype=torch.bool)
        fixed[self.seen] = True
        return fixed

    @property
    def values(self) -> Point:
        """The values of the fixed variables, NaN elsewhere."""
        point = torch.full((len(self.domain),), torch.nan, dtype=torch.float64)
        for d in self.seen:
            point[d] = _single(self.conditions[d]) or 0.0
        return point

    def as_point(self) -> Point | None:
        """Those values where no variable has another condition, else None."""
        return self.values if len(self.seen) == len(self.conditions) else None

    @property
    def has_mass(self) -> bool:
        """Whether draws of the joint can fall in it: every fixed variable is discrete, on a grid, or at its spike."""
        return all(_has_mass(self.domain.variables[d], _single(self.conditions[d]) or 0.0) for d in self.seen)

    @property
    def possible(self) -> bool:
        """Whether some value of the domain meets each condition."""
        return all(_possible(self.domain.variables[d], condition) for d, condition in self.conditions.items())

    def allowed(self, d: int) -> Float[Tensor, " V"] | None:
        """The values variable d may take, or None where they are not a finite list."""
        values, condition = listed(self.domain.variables[d]), self.conditions.get(d)
        if isinstance(condition, Value | Among):
            given = torch.tensor(_all(condition), dtype=torch.float64)
            return given if values is None else given[torch.isin(given, values)]
        if values is None or condition is None:
            return values
        return values[condition.holds(values, self.domain.variables[d])]

    def fill(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """The rows with the fixed variables at their values."""
        return torch.where(self.fixed.to(x.device), self.values.to(x), x)

    @property
    def sentence(self) -> str:
        """In words."""
        return ", ".join(self.conditions[d].sentence(self.domain.variables[d]) for d in sorted(self.conditions)) or "anything"


def _condition(spec: float | Iterable[float] | Condition) -> Condition:
    if isinstance(spec, Value | Among | Between):
        return spec
    return Among(tuple(sorted(float(v) for v in spec))) if isinstance(spec, Iterable) else Value(float(spec))


def _all(condition: Value | Among) -> tuple[float, ...]:
    return (condition.value,) if isinstance(condition, Value) else condition.values


def _single(condition: Condition) -> float | None:
    """The one value it leaves, or None."""
    if isinstance(condition, Between):
        return condition.lower if condition.lower == condition.upper else None
    values = set(_all(condition))
    return values.pop() if len(values) == 1 else None


def _has_mass(variable: Variable, value: float) -> bool:
    at_spike = variable.spike is not None and abs(value - variable.spike) <= _CLOSE * (1 + abs(value))
    return not variable.continuous or variable.resolution is not None or at_spike


def _slack(variable: Variable, value: float) -> float:
    if variable.resolution is not None:
        return variable.resolution / 4
    return _CLOSE * (1 + abs(value)) if variable.spike is not None else 0.0


def listed(variable: Variable) -> Float[Tensor, " V"] | None:
    """Every value of a finite variable, in order: codes, counts, a grid between two ends; None of others, and of very many."""
    size = variable.cardinality
    if size is not None:
        first = variable.lower if variable.kind is VariableKind.COUNT else 0.0
        return None if size > _MANY else torch.arange(size, dtype=torch.float64) + first
    r = variable.resolution
    if r is None or variable.kind is not VariableKind.INTERVAL or (variable.upper - variable.lower) / r > _MANY:
        return None
    steps = torch.arange(math.ceil(variable.lower / r - _END), math.floor(variable.upper / r + _END) + 1, dtype=torch.float64)
    return steps * r


def _possible(variable: Variable, condition: Condition) -> bool:
    if isinstance(condition, Between):
        values = listed(variable)
        if values is not None:
            return bool(condition.holds(values, variable).any())
        inside = condition.upper >= lower_end(variable) and condition.lower <= upper_end(variable)
        return inside if variable.resolution or not variable.continuous else inside and _overlaps(variable, condition)
    return any(_is_value(variable, value) for value in _all(condition))


def _overlaps(variable: Variable, condition: Between) -> bool:
    """Whether an interval of a continuous variable has a length within the support, or holds its spike."""
    spike = variable.spike
    if spike is not None and bool(condition.holds(torch.tensor([spike], dtype=torch.float64), variable).any()):
        return True
    low, high = max(condition.lower, lower_end(variable)), min(condition.upper, upper_end(variable))
    return low < high or (condition.lower == condition.upper and _is_value(variable, low))


def _is_value(variable: Variable, value: float) -> bool:
    values = listed(variable)
    if values is not None:
        return bool((values == value).any())
    if not variable.continuous:
        return value == round(value) and variable.lower <= value <= variable.upper
    if variable.spike is not None and _has_mass(variable, value):
        return True
    low, high = lower_end(variable), upper_end(variable)
    return low <= value <= high if variable.resolution is not None else low < value < high


def lower_end(variable: Variable) -> float:
    """The least value of the support, or -inf."""
    return 0.0 if variable.kind is VariableKind.POSITIVE else variable.lower


def upper_end(variable: Variable) -> float:
    """The greatest value of the support, or inf."""
    return variable.upper


def _check(variable: Variable, condition: Condition) -> None:
    ends = (condition.lower, condition.upper) if isinstance(condition, Between) else _all(condition)
    if not ends or any(math.isnan(end) for end in ends):
        raise OptionError(f"evidence on {variable.name!r} needs numbers, got {ends}")
    if isinstance(condition, Between):
        _check_interval(variable, condition)
    elif len(set(ends)) > 1 and not all(_has_mass(variable, end) for end in ends):
        raise OptionError(f"{variable.name!r} is continuous: a set of its values has probability 0; give one value or an interval")
    if not isinstance(condition, Between) and any(math.isinf(end) for end in ends):
        raise OptionError(f"evidence on {variable.name!r} is a finite number, got {ends}")


def _check_interval(variable: Variable, condition: Between) -> None:
    if condition.lower > condition.upper or (condition.lower == condition.upper and condition.closed != (True, True)):
        raise OptionError(f"the interval of {variable.name!r} is empty: {condition.sentence(variable)}")
    if variable.kind is VariableKind.CATEGORICAL:
        raise OptionError(f"the levels of {variable.name!r} have no order: give a set of them, not an interval")


def _word(variable: Variable, value: float) -> str:
    whole = variable.levels and value == int(value) and 0 <= value < len(variable.levels)
    return str(variable.levels[int(value)]) if whole else f"{value:g}"
