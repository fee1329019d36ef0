"""How far rows are from an event, and rows put into it."""

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.ask.generic.space import Coordinate
from pofx.domain import Variable, VariableKind
from pofx.events import Among, Between, Condition, Event, Value
from pofx.types import Generator

_UNORDERED = (VariableKind.CATEGORICAL, VariableKind.BINARY)

Rows = Float[Tensor, "N D"]


def distance(event: Event, x: Rows) -> Float[Tensor, " N"]:
    """sqrt(sum_d (gap_d / sd_d)^2) over the event's variables, 0 inside it; another level of an unordered variable is 1 away.

    Args:
        event: from where.
        x: draws of the joint, whose spread is the unit.
    """
    total = x.new_zeros(len(x))
    for d, condition in event.conditions.items():
        total = total + _gap(condition, x[:, d], event.domain.variables[d]).square()
    return total.sqrt()


def _gap(condition: Condition, column: Tensor, variable: Variable) -> Tensor:
    if variable.kind in _UNORDERED:
        return (~condition.holds(column, variable)).to(column)
    spread = column.std(correction=0)
    return _reach(condition, column) / torch.where(spread > 0, spread, 1.0)


def _reach(condition: Condition, column: Tensor) -> Tensor:
    match condition:
        case Value(value):
            return (column - value).abs()
        case Among(values):
            return torch.stack([(column - value).abs() for value in values]).amin(0)
        case Between(lower, upper):
            return (lower - column).clamp_min(0) + (column - upper).clamp_min(0)


def placed(event: Event, moving: list[Coordinate], x: Rows, *, generator: Generator) -> Rows:
    """The rows with the fixed variables at their values and the others within their intervals.

    An entry outside takes that of a row inside; where there is none, one drawn in the interval.
    """
    rows = event.fill(x).clone()
    for m in moving:
        column = rows[:, m.index]
        inside = (column >= m.lower) & (column <= m.upper)
        if m.values is None and not bool(inside.all()):
            pick = torch.randint(max(1, int(inside.sum())), (len(rows),), generator=generator, device=x.device)
            pool = column[inside] if bool(inside.any()) else _drawn(m, column, generator)
            rows[:, m.index] = torch.where(inside, column, pool[pick % len(pool)] if bool(inside.any()) else pool)
    return rows


def _drawn(m: Coordinate, column: Tensor, generator: Generator) -> Tensor:
    """Uniform between two ends, exponential beyond one; on the grid where there is one."""
    u = torch.rand(len(column), generator=generator, dtype=column.dtype, device=column.device)
    if m.upper - m.lower < torch.inf:
        value = m.lower + (m.upper - m.lower) * u
    else:
        away = -column.std(correction=0).clamp_min(1e-6) * torch.log1p(-u)
        value = m.lower + away if m.lower > -torch.inf else m.upper - away
    return (value / m.step).round() * m.step if m.step else value
