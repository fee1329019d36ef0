"""p(x | event) for any model: in closed form where it has one, else by the best method that works, which says so."""

from collections.abc import Callable

from pofx.ask.generic.chains import hamiltonian, sweeps
from pofx.ask.generic.closed import exact
from pofx.ask.generic.draws import Draws, Importance
from pofx.ask.generic.particles import particles
from pofx.ask.generic.rejection import rejection
from pofx.ask.generic.resampling import impossible, sir
from pofx.ask.generic.tolerance import abc
from pofx.ask.generic.twisting import twisting
from pofx.domain import did_you_mean
from pofx.errors import OptionError, Unavailable
from pofx.events import Event
from pofx.models.base import Model
from pofx.types import Generator, Kind

Method = Callable[..., Draws]
METHODS: dict[str, Method] = {
    "exact": exact,
    "rejection": rejection,
    "sir": sir,
    "hmc": hamiltonian,
    "gibbs": sweeps,
    "smc": particles,
    "twisted": twisting,
    "abc": abc,
}

_GOOD = 0.7  # Pareto's k-hat up to which importance weights are taken
_SHARE = 0.05  # of the draws asked for, that they must be worth


def conditional(model: Model, event: Event, *, method: str | None = None, draws: int = 2000, generator: Generator) -> Draws:
    """Draws of p(x | event), the evidence in place.

    Methods, in the order in which None tries them: `exact` (closed form), `rejection` (draws of the joint where the event
    holds), `sir` (importance weights), `hmc` (chains over continuous variables), `gibbs` (chains over any), `smc` (particles led
    to the event: for modes that chains do not pass between, in more variables than weights bear), `twisted` (a diffusion model's own way
    from noise, led to values), and for a model without density, or with one that is no weight, `abc` (draws near the event, a tolerance).
    The first one that is good is taken: weights with k-hat up to 0.7 and worth a twentieth of the draws, chains with R-hat up to 1.05.
    Where none is, the best of what there is, and `how` says what is wrong with it.

    Args:
        model: p(x).
        event: what is known.
        method: one of those, or None.
        draws: how many.
        generator: of all draws.

    Raises:
        OptionError: an unknown method, no draw asked for, an event of another domain or that fixes every variable, or a
            model of p(x | c).
        Unavailable: the method can not work here, or the event has probability 0.
    """
    _check(model, event, draws)
    if method is not None:
        if method not in METHODS:
            raise OptionError(f"there is no method {method!r}{did_you_mean(method, METHODS)}")
        return METHODS[method](model, event, draws, generator=generator)
    return _cascade(model, event, draws, generator)


def _check(model: Model, event: Event, draws: int) -> None:
    if model.context is not None:
        raise OptionError(f"{model.noun} is p(x | c): questions about some of its variables need a p(x)")
    if event.domain.names != model.domain.names:
        raise OptionError(f"the event is over {', '.join(event.domain.names[:6])}, the model over {', '.join(model.domain.names[:6])}")
    if draws < 1:
        raise OptionError(f"the number of draws is at least 1, got {draws}")
    if len(event.seen) == len(model.domain):
        raise OptionError("the evidence fixes every variable: nothing is left to ask about")
    if not event.possible:
        raise impossible(model, event, "it is outside the domain")


def _cascade(model: Model, event: Event, draws: int, generator: Generator) -> Draws:
    best, refusal = None, None
    for name in (name for name in METHODS if name != "abc" or model.density is Kind.NONE or model.logs_average):
        try:
            found = _tried(METHODS[name], best, model, event, draws, generator)
        except Unavailable as sentence:
            refusal = sentence
            continue
        if _good(found, draws):
            return found
        best = found if best is None or found.ess > best.ess else best
    if best is None:
        raise refusal or impossible(model, event, "no method finds it")
    return best


def _tried(method: Method, best: Draws | None, model: Model, event: Event, draws: int, generator: Generator) -> Draws:
    """The method's draws; chains start from weighted draws that there are already."""
    if method in (hamiltonian, sweeps) and best is not None and isinstance(best.source, Importance):
        return method(model, event, draws, start=best.source.weighted, generator=generator)
    return method(model, event, draws, generator=generator)


def _good(found: Draws, draws: int) -> bool:
    if found.rhat is not None:
        return found.rhat <= 1.05
    return found.ess >= min(draws, max(100.0, _SHARE * draws)) and found.k_hat <= _GOOD
