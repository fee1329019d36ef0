"""Conditioning by rejection: draws of the joint, kept where the event holds."""

import math

import torch

from pofx.ask.generic.closed import log_measure
from pofx.ask.generic.draws import Draws, Independent
from pofx.ask.generic.resampling import FEWEST, impossible, too_few
from pofx.ask.generic.space import draws_of
from pofx.errors import Unavailable
from pofx.events import Event
from pofx.models.base import Model
from pofx.types import Generator, Kind

MOST = 100  # draws of the joint for each that is asked for


def rejection(model: Model, event: Event, draws: int, *, most: int = MOST, generator: Generator) -> Draws:
    """x ~ p kept where the event holds: independent draws of p(x | event) itself, as exact as the model's own draws.

    Needs no density. Draws until enough are kept, at most `most` times as many as are asked for; with fewer kept,
    rows repeat, and the answer is an estimate worth as many draws as were kept. P(event) is the share kept.

    Cost: draws / P(event) draws of the joint. Fails where P(event) is small.

    Raises:
        Unavailable: the event fixes a continuous variable to a value, or under 10 draws were kept.
    """
    if not event.has_mass:
        why = "a continuous variable never takes a value given in advance"
        raise Unavailable("conditional by rejection", model.noun, why, instead="method='sir' or 'abc'")
    parts, tried, kept = [], 0, 0
    while kept < draws and tried < most * draws:
        rate = (kept + 1) / (tried + 1) if tried else 1.0
        x = draws_of(model, min(most * draws - tried, max(draws, math.ceil(1.1 * (draws - kept) / rate))), generator=generator)
        parts.append(x[event.holds(x)])
        tried, kept = tried + len(x), kept + len(parts[-1])
    if not kept:
        raise impossible(model, event, f"none of {tried} draws of the joint falls in it")
    if kept < FEWEST:
        raise too_few("rejection", model, kept, tried)
    x, share = torch.cat(parts), kept / tried
    enough = kept >= draws
    rows = x[:draws] if enough else x[torch.randint(kept, (draws,), generator=generator, device=x.device)]
    return Draws(
        rows=rows,
        kind=model.sampling if enough else Kind.ESTIMATE,
        method="rejection",
        ess=float(min(kept, draws)),
        how=f"{kept} of {tried} draws of the joint kept, where the evidence holds{'' if enough else ', and repeated'}",
        source=Independent(x),
        log_evidence=math.log(share) - float(log_measure(event, event.values[None], event.seen)),
        log_evidence_error=math.sqrt((1 - share) / (share * tried)),
    )
