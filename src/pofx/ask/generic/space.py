"""How the variables that an event leaves open may move: continuous ones without bounds, discrete ones over their values.

u is x in unconstrained coordinates. A continuous variable with support (l, b), the event's interval included, is

    x = u,    l + e^u,    b - e^-u    or    l + (b - l) / (1 + e^-u)

as both, the upper, the lower or no end is infinite. The others stay as they are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pofx.domain import Variable
from pofx.events import Between, Event, lower_end, upper_end
from pofx.models.base import Model
from pofx.types import Generator, Kind

_LISTED = 24  # values up to which a count is a list, not a line
_EDGE = 1e-12  # how near to an end a value may stand, as a share of the width

Rows = Float[Tensor, "N D"]
LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Coordinate:
    """One variable that may move.

    Args:
        index: where it stands in x.
        values: the few values it may take, or None.
        step: the width of its grid (1 for counts), 0 where it is continuous.
        lower: the lower end of where it may go.
        upper: the upper end.
        spike: the value of its atom, or None.
        per: the measure of one value off the spike: the width of a grid's cell, else 1.
    """

    index: int
    values: Float[Tensor, " V"] | None
    step: float
    lower: float
    upper: float
    spike: float | None
    per: float = 1.0

    def log_per(self, x: Tensor) -> Tensor:
        """log of the measure of each value: a density times it is a probability."""
        if self.spike is None or self.per == 1.0:
            return torch.full_like(x, math.log(self.per))
        return torch.where(at_spike(x, self.spike), 0.0, math.log(self.per))

    @property
    def smooth(self) -> bool:
        """Whether it has a density and nothing else: no list, no grid, no atom."""
        return self.values is None and self.step == 0 and self.spike is None


def at_spike(x: Tensor, spike: float) -> Tensor:
    """Which entries are the atom, to rounding."""
    return (x - spike).abs() <= 1e-9 * (1 + abs(spike))


def coordinates(event: Event) -> list[Coordinate]:
    """The variables that the event does not fix to a value, in order."""
    seen = set(event.seen)
    return [_coordinate(event, d, v) for d, v in enumerate(event.domain.variables) if d not in seen]


def _coordinate(event: Event, d: int, variable: Variable) -> Coordinate:
    lower, upper, condition = lower_end(variable), upper_end(variable), event.conditions.get(d)
    if isinstance(condition, Between):
        lower, upper = max(lower, condition.lower), min(upper, condition.upper)
    values = event.allowed(d)
    few = values is not None and (bool(variable.levels) or len(values) <= _LISTED or variable.continuous)
    step = (variable.resolution or 0.0) if variable.continuous else 1.0
    spike = variable.spike
    if spike is not None and condition is not None:
        spike = spike if bool(condition.holds(torch.tensor([spike], dtype=torch.float64), variable).any()) else None
    per = (variable.resolution or 1.0) if variable.continuous else 1.0
    return Coordinate(d, values if few else None, step, lower, upper, spike, per)


# -- the target ------------------------------------------------------------------------------------


def target(model: Model, event: Event, *, generator: Generator = None) -> LogDensity:
    """log p(x) where the event holds, -inf elsewhere, in float64."""

    def log_p(x: Tensor) -> Tensor:
        value = model.log_prob(x, generator=generator)
        return torch.where(event.holds(x), value.double(), -torch.inf)

    return log_p


def draws_of(model: Model, n: int, *, generator: Generator) -> Rows:
    """n rows of the joint, in float64, a bounded number at a time."""
    size = max(1, (1 << 24) // len(model.domain))
    parts = [model.sample(min(size, n - at), generator=generator).double() for at in range(0, n, size)]
    return torch.cat(parts) if parts else model.sample(0, generator=generator).double()


def repeatable(model: Model) -> bool:
    """Whether log_prob is a function of x: chains can not walk on a number that is drawn anew each time."""
    return model.density in (Kind.EXACT, Kind.UNNORMALISED)


# -- unconstrained coordinates ---------------------------------------------------------------------


class Unconstrained:
    """x = T(u) for full rows: smooth coordinates mapped to the line, the others left as they are.

    Args:
        moving: the coordinates that may move.
    """

    def __init__(self, moving: Sequence[Coordinate]) -> None:
        self.parts: dict[str, tuple[list[int], Tensor, Tensor]] = {}
        for shape in ("above", "below", "within"):
            these = [m for m in moving if m.smooth and _shape(m) == shape]
            ends = [torch.tensor([getattr(m, end) for m in these], dtype=torch.float64) for end in ("lower", "upper")]
            if these:
                self.parts[shape] = ([m.index for m in these], ends[0], ends[1])

    def __call__(self, u: Rows) -> tuple[Rows, Float[Tensor, " N"]]:
        """x and log|det dx/du|."""
        x, log_det = u, u.new_zeros(len(u))
        for shape, (columns, lower, upper) in self.parts.items():
            index = torch.tensor(columns, device=u.device)
            y, slope = _OUT[shape](u[:, index], lower.to(u), upper.to(u))
            x, log_det = x.index_copy(1, index, y), log_det + slope.sum(-1)
        return x, log_det

    def inverse(self, x: Rows) -> Rows:
        """u; a value at or beyond an end is taken just inside it."""
        u = x
        for shape, (columns, lower, upper) in self.parts.items():
            index = torch.tensor(columns, device=x.device)
            u = u.index_copy(1, index, _IN[shape](x[:, index], lower.to(x), upper.to(x)))
        return u

    def log_density(self, log_p: LogDensity) -> LogDensity:
        """log p of u: log p(T(u)) + log|det dx/du|."""

        def of_u(u: Tensor) -> Tensor:
            x, log_det = self(u)
            return log_p(x) + log_det

        return of_u


def _shape(m: Coordinate) -> str:
    return {(True, False): "above", (False, True): "below", (True, True): "within"}.get(
        (math.isfinite(m.lower), math.isfinite(m.upper)), "line"
    )


def _above(u: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    return lower + u.exp(), u


def _below(u: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    return upper - (-u).exp(), -u


def _within(u: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    slope = (upper - lower).log() + functional.logsigmoid(u) + functional.logsigmoid(-u)
    return lower + (upper - lower) * u.sigmoid(), slope


def _share(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return ((x - lower) / (upper - lower)).clamp(_EDGE, 1 - _EDGE).logit()


_OUT = {"above": _above, "below": _below, "within": _within}
_IN = {
    "above": lambda x, lower, upper: (x - lower).clamp_min(_EDGE).log(),
    "below": lambda x, lower, upper: -(upper - x).clamp_min(_EDGE).log(),
    "within": _share,
}
