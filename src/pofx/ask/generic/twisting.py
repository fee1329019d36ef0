"""Conditioning by a model's own way from noise, led to evidence or up a likelihood, and weighed."""

from collections.abc import Callable

from torch import Tensor

from pofx.ask.generic.draws import Draws, Islands
from pofx.errors import DataError, Unavailable
from pofx.events import Event
from pofx.models.base import Model, Particles
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
    found = _found(lambda each: model.particles(evidence, each, ISLANDS, generator=generator), draws, "conditional", model)
    return _drawn(found, evidence.isnan().nonzero()[:, 0].tolist(), draws, generator)


def led(model: Model, log_likelihood: Callable[[Tensor], Tensor], draws: int, *, generator: Generator) -> Draws:
    """p(x) L(x) / Z by the same particles: L of what the network expects of x, in place of evidence.

    Asymptotically exact for the law of the ancestral sampler; log Z = log E_p[L]. Fails where a mode of the posterior is one that no
    particle turns to while much noise is left.

    Cost: 100 passes of the network forth and back for each of max(2000, draws) particles.

    Args:
        model: the prior p(x).
        log_likelihood: rows (N, D) to log L, (N,), in nats: finite, with a gradient through torch in real variables.
        draws: how many.
        generator: of all draws.

    Raises:
        Unavailable: the model does not draw step by step from noise, or the likelihood is not finite where draws go.
        OptionError: torch finds no gradient.
    """
    found = _found(lambda each: model.led(log_likelihood, each, ISLANDS, generator=generator), draws, "posterior", model)
    return _drawn(found, list(range(len(model.domain))), draws, generator)


def _found(run: Callable[[int], Particles], draws: int, question: str, model: Model) -> Particles:
    """So many particles an island as give the draws."""
    try:
        return run(max(100, -(-draws // ISLANDS)))
    except DataError as sentence:
        raise Unavailable(f"{question} by twisted particles", model.noun, str(sentence)) from None


def _drawn(found: Particles, free: list[int], draws: int, generator: Generator) -> Draws:
    islands = Islands(found.x.double(), found.log_z.double())
    (log_z, error), ess = islands.evidence(), islands.worth(free)
    how = f"{ISLANDS} runs of {found.x.shape[1]} particles led down the noise levels: effective size about {ess:.0f}"
    rows = islands.sample(draws, generator=generator)
    return Draws(rows, Kind.ESTIMATE, "twisted", ess, how, islands, None, float(log_z), float(error))
