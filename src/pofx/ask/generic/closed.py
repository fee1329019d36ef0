"""Conditioning in closed form, where the family knows it: of a point, or of a union of few points."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.ask.generic.draws import Draws, Independent
from pofx.ask.generic.resampling import impossible
from pofx.ask.generic.space import at_spike
from pofx.distributions.drawing import draw
from pofx.domain import Variable
from pofx.errors import Unavailable
from pofx.events import Event
from pofx.models.base import Model
from pofx.types import Generator, Kind

POINTS = 4096  # whose union an event may be


def exact(model: Model, event: Event, draws: int, *, generator: Generator) -> Draws:
    """x ~ p(x | event), an event that is the union of points e_i: i with probability p(e_i) / P(event), then x ~ p(x | e_i).

    Cost: a draw of `Model.complete` a row, and a log-density a point.

    Raises:
        Unavailable: the family draws no exact conditionals of these variables, the event is no union of at most 4096
            points, or it has probability 0.
    """
    points = _points(model, event)
    with torch.no_grad():
        log_p = log_masses(model, event, points)
    if not bool((log_p > -torch.inf).any()):
        raise impossible(model, event, "p is 0 there")
    which = draw(log_p.softmax(0), draws, generator=generator)
    rows = model.complete(points[which], generator=generator).double()
    of = "" if len(points) == 1 else f", of the {len(points)} points of the evidence in turn, by their probabilities"
    rows = torch.where(points[which].isnan(), rows, points[which])
    how = f"{draws} independent draws of the closed form{of}"
    value = float(log_p.logsumexp(0))
    return Draws(rows, Kind.EXACT, "exact", float(draws), how, Independent(rows), log_evidence=value, log_evidence_error=0.0)


def log_masses(model: Model, event: Event, points: Float[Tensor, "P D"]) -> Float[Tensor, " P"]:
    """log p of each point times the measure of the values that stand in sets and intervals."""
    open_ = event.conditions.keys() - set(event.seen)
    return model.log_prob(points).double() + log_measure(event, points, open_)


def log_measure(event: Event, x: Float[Tensor, "P D"], variables: Iterable[int]) -> Float[Tensor, " P"]:
    """Sum over variables of log of the measure of their value: the width of a grid's cell, 1 at a spike, level or count."""
    return sum((_log_per(event.domain.variables[d], x[:, d]) for d in variables), x.new_zeros(len(x)))


def closed_points(model: Model, event: Event) -> Float[Tensor, "P D"] | None:
    """The points of the event, if the probability of each is exact; else None."""
    return event.points(POINTS) if model.density is Kind.EXACT and model.missing is Kind.EXACT else None


def _log_per(variable: Variable, x: Tensor) -> Tensor:
    log_r = torch.full_like(x, variable.resolution or 1.0).log()
    return log_r if variable.spike is None else torch.where(at_spike(x, variable.spike), 0.0, log_r)


def _points(model: Model, event: Event) -> Tensor:
    if model.answers("complete", sorted(event.conditions)) is not Kind.EXACT:
        raise Unavailable("conditional in closed form", model.noun, families=model.conditional_families, instead="method='sir'")
    points = closed_points(model, event)
    if points is None:
        why = f"the evidence {event.sentence} is no union of few points whose probability it knows"
        raise Unavailable("conditional in closed form", model.noun, why, instead="method='rejection' or 'sir'")
    return points.to(next((t.device for t in (*model.parameters(), *model.buffers())), points.device))
