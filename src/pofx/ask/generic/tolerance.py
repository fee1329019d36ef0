"""Conditioning by tolerance: the draws of the joint that come nearest to the event."""

import torch

from pofx.ask.generic.draws import Draws, Independent
from pofx.ask.generic.nearness import distance
from pofx.ask.generic.resampling import impossible
from pofx.ask.generic.space import draws_of
from pofx.events import Event
from pofx.models.base import Model
from pofx.types import Generator, Kind

_TIMES = 50  # draws of the joint for each that is kept


def abc(model: Model, event: Event, draws: int, *, generator: Generator) -> Draws:
    """p(x | distance(x, event) <= t), t the distance within which one draw of the joint in fifty falls: no density is needed.

    The distance is Euclidean over the event's variables, each in units of its standard deviation (`nearness`). The fixed
    variables are then put at their values; one known to an interval or a set may lie outside it, by t at most. The answer
    is off by about t times the slope of the conditional in the evidence, and its standard errors do not say so: where the
    variables fixed are many, t is wide, and it tends to the joint.

    Cost: 50 draws of the joint a row. Source: Pritchard, Seielstad, Perez-Lezaun and Feldman, "Population growth of human
    Y chromosomes: a study of Y chromosome microsatellites", Molecular Biology and Evolution 16(12), 1999.

    Raises:
        Unavailable: the event is outside the domain.
    """
    if not event.possible:
        raise impossible(model, event, "it is outside the domain")
    x = draws_of(model, _TIMES * draws, generator=generator)
    away = distance(event, x)
    kept = away.argsort(stable=True)[:draws]
    rows = event.fill(x[kept[torch.randperm(draws, generator=generator, device=x.device)]])
    how = f"the {draws} of {len(x)} draws of the joint nearest to the evidence, within {float(away[kept].max()):.3g} standard deviations"
    return Draws(rows, Kind.ESTIMATE, "abc", float(draws), how, Independent(rows))
