"""A most probable x, by climbing from many draws."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.ask.generic.conditional import conditional
from pofx.ask.generic.space import Coordinate, Unconstrained, coordinates, repeatable, target
from pofx.errors import Unavailable
from pofx.events import Event
from pofx.models.base import Model
from pofx.samplers import ascend
from pofx.samplers.densities import differentiable
from pofx.types import Generator, Kind, Point

_MOST = 512  # values of a grid or count that are tried


@dataclass(frozen=True)
class Mode:
    """Where p is high.

    Args:
        x: the point, (D,).
        log_p: log-density there, in nats.
        kind: EXACT where it is known to be the maximum; BOUND: log_p is at most the maximum.
        how: the method in one sentence.
    """

    x: Point
    log_p: float
    kind: Kind
    how: str


def mode(model: Model, event: Event | None = None, *, starts: int = 50, generator: Generator) -> Mode:
    """argmax p(x) where the event holds: in closed form where the family has it, else the best end of many climbs.

    Climbs start from draws of the conditional; continuous variables climb together by `samplers.ascend` in
    unconstrained coordinates (of the density of x, without Jacobian), variables with values try each. The family's own
    approximate mode, if it has one, is one more start. A variable with a spike, or on a grid or count of over 512 values about
    the draws, keeps the value of its start.

    Args:
        model: p(x), whose log_prob is a function.
        event: what is known; None: nothing.
        starts: how many climbs.
        generator: of the starts.

    Raises:
        Unavailable: the model has no density that is a function of x, or the event has probability 0.
    """
    event = Event(model.domain, {}) if event is None else event
    point = event.as_point()
    if point is not None and model.answers("mode", event.seen) is Kind.EXACT:
        x = model.mode(point).double()
        return Mode(x, _height(model, x), Kind.EXACT, "the family's closed form")
    if not repeatable(model):
        why = f"its log_prob is of kind {model.density}"
        raise Unavailable("mode by climbing", model.noun, why, instead="the draw with the largest log_prob")
    x = conditional(model, event, draws=starts, generator=generator).rows
    own = _own(model, event, point)
    x = x if own is None else torch.cat((x, own))
    return _climbed(model, event, x)


def _climbed(model: Model, event: Event, x: Tensor) -> Mode:
    moving, log_p = coordinates(event), target(model, event)
    unconstrained = Unconstrained(moving)
    with torch.no_grad():
        x = x[log_p(x).isfinite()]
    if not len(x):
        raise Unavailable("mode", model.noun, "no start has a positive density")
    u = unconstrained.inverse(x)

    def height(u: Tensor) -> Tensor:
        return log_p(unconstrained(u)[0])

    values, fixed = _values(moving, u, event, differentiable(height, u[:2]))
    if bool(fixed.all()):
        return _best(model, x, "the best of the draws")
    climbs = ascend(height, u, values=values, fixed=fixed)
    found = _best(model, torch.cat((x, unconstrained(climbs.x)[0].detach())), "")
    how = f"{int(climbs.agrees.sum())} of {len(u)} climbs reach the best place"
    return Mode(found.x, found.log_p, Kind.BOUND, how)


def _best(model: Model, x: Tensor, how: str) -> Mode:
    with torch.no_grad():
        log_p = model.log_prob(x).double()
    top = int(torch.where(log_p.isnan(), -torch.inf, log_p).argmax())
    return Mode(x[top], float(log_p[top]), Kind.BOUND, how)


def _own(model: Model, event: Event, point: Tensor | None) -> Tensor | None:
    """The family's own approximate mode."""
    if point is None or model.answers("mode", event.seen) in (Kind.NONE, Kind.ESTIMATE):
        return None
    return model.mode(point).double()[None]


def _height(model: Model, x: Tensor) -> float:
    with torch.no_grad():
        return float(model.log_prob(x[None]))


def _values(moving: list[Coordinate], u: Tensor, event: Event, smooth: bool) -> tuple[list[Tensor | None], Tensor]:
    """Lists of the variables with values, and which ones are held."""
    values: list[Tensor | None] = [None] * u.shape[1]
    fixed = event.fixed.to(u.device)
    for m in moving:
        column = u[:, m.index]
        if not m.smooth:
            tried = column.unique() if m.values is None else m.values.to(u)
            values[m.index], fixed[m.index] = tried, (m.values is None and m.step == 0) or len(tried) > _MOST
        elif not smooth:
            fixed[m.index] = True
    return values, fixed
