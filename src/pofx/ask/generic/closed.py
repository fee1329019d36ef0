"""Conditioning in closed form, where the family knows it: sets and intervals by `restrict`, values by `conditional`."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.ask.generic.draws import Draws, Independent
from pofx.ask.generic.resampling import impossible
from pofx.ask.generic.space import at_spike
from pofx.domain import Variable
from pofx.errors import Unavailable
from pofx.events import Event
from pofx.models.base import Model
from pofx.types import Generator, Kind


def exact(model: Model, event: Event, draws: int, *, generator: Generator) -> Draws:
    """x ~ p(x | event), the sets and intervals first, then the values.

    Cost: a draw of `Model.complete` a row.

    Raises:
        Unavailable: the family draws no exact conditionals of these variables, or does not know the event's probability;
            or it is 0.
    """
    if model.answers("complete", sorted(event.conditions)) is not Kind.EXACT or not is_closed(model, event):
        why = f"it knows no closed form of {event.sentence}"
        raise Unavailable("conditional in closed form", model.noun, why, families=model.conditional_families, instead="method='sir'")
    whole, log_p = _restricted(model, event)
    point = _point(model, event)
    with torch.no_grad():
        value = log_p + (float(whole.log_prob(point)) if event.seen else 0.0)
    if value == -torch.inf:
        raise impossible(model, event, "p is 0 there")
    rows = whole.complete(point.expand(draws, -1), generator=generator).double()
    rows = torch.where(point.isnan(), rows, point)
    how = f"{draws} independent draws of the closed form"
    return Draws(rows, Kind.EXACT, "exact", float(draws), how, Independent(rows), log_evidence=value, log_evidence_error=0.0)


def is_closed(model: Model, event: Event) -> bool:
    """Whether the family knows log P(event), or log p where the event fixes continuous variables."""
    open_ = not event.open or model.answers("restrict", sorted(event.open)) is Kind.EXACT
    return open_ and model.density is Kind.EXACT and model.missing is Kind.EXACT


def closed(model: Model, event: Event) -> Model:
    """p(x | event) of the variables that the event does not fix to a value.

    Raises:
        Unavailable: the family has no closed form for it, or the event has probability 0.
    """
    whole = model if not event.open else model.restrict(Event(event.domain, event.open))[0]
    return whole.conditional(_point(model, event)) if event.seen else whole


def sums_out(model: Model, event: Event) -> bool:
    """Whether the family knows P(event), though p(x | event) may be no model of its own."""
    closed_form = model.density is Kind.EXACT and model.missing is Kind.EXACT
    point = not event.seen or model.answers("conditional", event.seen) is Kind.EXACT
    return closed_form and (not event.open or (point and model.answers("log_chance", sorted(event.open)) is Kind.EXACT))


def log_probability(model: Model, event: Event) -> float:
    """log P(event) where `sums_out`; a fixed value counts with its measure: the width of a grid's cell, 1 at a spike, level or count."""
    if not event.seen:
        return model.log_chance(event)
    point = _point(model, event)
    with torch.no_grad():
        value = float(model.log_prob(point)) + float(log_measure(event, point[None], event.seen))
    if value == -torch.inf or not event.open:
        return value
    rest = model.conditional(point)
    return value + rest.log_chance(Event.of(rest.domain, {event.domain.names[d]: condition for d, condition in event.open.items()}))


def log_measure(event: Event, x: Float[Tensor, "P D"], variables: Iterable[int]) -> Float[Tensor, " P"]:
    """Sum over variables of log of the measure of their value: the width of a grid's cell, 1 at a spike, level or count."""
    return sum((log_per(event.domain.variables[d], x[:, d]) for d in variables), x.new_zeros(len(x)))


def _restricted(model: Model, event: Event) -> tuple[Model, float]:
    """The model given the sets and intervals, and log P of these; the model itself where that is -inf."""
    if not event.open:
        return model, 0.0
    open_ = Event(event.domain, event.open)
    log_p = model.log_chance(open_)
    return (model, log_p) if log_p == -torch.inf else model.restrict(open_)


def log_per(variable: Variable, x: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """Of one variable."""
    log_r = torch.full_like(x, variable.resolution or 1.0).log()
    return log_r if variable.spike is None else torch.where(at_spike(x, variable.spike), 0.0, log_r)


def _point(model: Model, event: Event) -> Tensor:
    """The event's values, where the model's numbers are."""
    tensors = (*model.parameters(), *model.buffers())
    return event.values.to(tensors[0].device if tensors else "cpu")
