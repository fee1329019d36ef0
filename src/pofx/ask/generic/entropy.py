"""H = -E[log p(x)]: in closed form where the family has one, else the mean of -log p over draws of p."""

import math

import numpy as np
import torch

from pofx.ask.generic.space import draws_of
from pofx.errors import OptionError, Unavailable
from pofx.models.base import Model
from pofx.types import Answer, Generator, Kind


def entropy(model: Model, *, draws: int = 10_000, generator: Generator) -> Answer:
    """H in nats, with respect to the domain's base measure.

    Estimated, it is the mean of -log p over draws, with its standard error. Of a density that is a lower bound on log p, the
    mean estimates an upper bound on H, and `how` says so.

    Args:
        model: p(x).
        draws: where it is estimated.
        generator: of the draws.

    Raises:
        OptionError: p is conditional, or fewer than 2 draws.
        Unavailable: p has no density, or none with its constant.
    """
    if model.context is not None:
        raise OptionError(f"{model.noun} is p(x | c): its entropy differs by c; give one condition's draws to `log_prob`")
    if model.answers("entropy") is Kind.EXACT:
        return Answer(np.asarray(model.entropy()), Kind.EXACT, None, "in closed form")
    if model.density in (Kind.NONE, Kind.UNNORMALISED):
        raise Unavailable("entropy", model.noun, "it needs a density with its constant", families=model.conditional_families)
    if draws < 2:
        raise OptionError(f"a mean with an error needs at least 2 draws, got {draws}")
    x = draws_of(model, draws, generator=generator)
    with torch.no_grad():
        surprise = -model.log_prob(x, generator=generator).double()
    above = ", an upper bound: log p is a lower one" if model.density is Kind.BOUND else ""
    error = float(surprise.std()) / math.sqrt(draws)
    return Answer(np.asarray(float(surprise.mean())), Kind.ESTIMATE, np.asarray(error), f"the mean of -log p over {draws} draws{above}")
