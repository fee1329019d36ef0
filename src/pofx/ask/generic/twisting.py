"""Conditioning by a model's own way from noise, led to the evidence and weighed."""

from pofx.ask.generic.draws import Draws, Islands
from pofx.errors import DataError, Unavailable
from pofx.events import Event
from pofx.models.base import Model
from pofx.types import Generator, Kind

ISLANDS = 20  # independent runs: the errors come from their spread


def twisting(model: Model, event: Event, draws: int, *, generator: Generator) -> Draws:
    """Twisted sequential Monte Carlo down the noise levels of a diffusion model (`samplers.twisted`).

    Asymptotically exact for the law that its ancestral sampler has, and Z is unbiased for p of the evidence under that law: a probability
    of values times a density of reals. Fails where evidence is so surprising that particles of few ancestors are left: `ess` says so.

    Cost: 200 passes of the network and 100 back for each of max(2000, draws) particles.

    Args:
        model: p.
        event: values of some variables.
        draws: how many.
        generator: of all draws.

    Raises:
        Unavailable: the model does not draw step by step from noise, the event has sets or intervals, or no particle reaches it.
    """
    evidence = event.as_point()
    if evidence is None:
        why = "it is led to values, not to sets and intervals"
        raise Unavailable("conditional by twisted particles", model.noun, why, instead="method='rejection'")
    each = max(100, -(-draws // ISLANDS))
    try:
        found = model.particles(evidence, each, ISLANDS, generator=generator)
    except DataError as sentence:
        raise Unavailable("conditional by twisted particles", model.noun, str(sentence)) from None
    islands = Islands(found.x.double(), found.log_z.double())
    (log_z, error), ess = islands.evidence(), islands.worth((evidence.isnan()).nonzero()[:, 0].tolist())
    how = f"{ISLANDS} runs of {each} particles led down the noise levels: effective size about {ess:.0f}"
    rows = islands.sample(draws, generator=generator)
    return Draws(rows, Kind.ESTIMATE, "twisted", ess, how, islands, None, float(log_z), float(error))
