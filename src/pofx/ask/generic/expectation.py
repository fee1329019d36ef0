"""Expectations and probabilities by Monte Carlo, sharpened by what the model knows exactly."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pofx.ask.generic.closed import log_probability, sums_out
from pofx.ask.generic.draws import Function, checked
from pofx.ask.generic.space import draws_of
from pofx.errors import DataError, OptionError
from pofx.events import Event
from pofx.models.base import Model
from pofx.types import Answer, Generator, Kind

Predicate = Callable[[Tensor], Tensor]


def expectation(model: Model, f: Function | int, *, draws: int = 10_000, generator: Generator) -> Answer:
    """E[f(x)] = (1 / n) sum_i f(x_i), with its standard error.

    Where the model's mean is exact, x - E x is a control variate: f is regressed on it, and only what is left of f
    has an error; for an f that is linear in x nothing is. The regression adds a bias of O(1 / n). The error
    needs f to have a variance.

    Args:
        model: p(x).
        f: rows (n, D) to (n,) or (n, *event); or the number of a variable, whose mean is then exact if the model's is.
        draws: n.
        generator: of the draws.

    Raises:
        DataError: f is NaN at a draw, or gives no value a row.
        OptionError: fewer than 2 draws, or no such variable.
    """
    centre = _exact_mean(model)
    if isinstance(f, int):
        if not 0 <= f < len(model.domain):
            raise OptionError(f"variables are 0 ... {len(model.domain) - 1}, got {f}")
        if centre is not None:
            return Answer(_numpy(centre[f]), Kind.EXACT, None, "the model's mean in closed form")
        return expectation(model, lambda x: x[:, f], draws=draws, generator=generator)
    if draws < 2:
        raise OptionError(f"a mean with an error needs at least 2 draws, got {draws}")
    x = draws_of(model, draws, generator=generator)
    values = checked(f, x)
    flat = values.reshape(draws, -1)
    mean, error, how = _plain(flat) if centre is None else _controlled(flat, x - centre.to(x))
    shape = values.shape[1:]
    return Answer(_numpy(mean.reshape(shape)), Kind.ESTIMATE, _numpy(error.reshape(shape)), f"the mean over {draws} draws{how}")


def probability(model: Model, what: Event | Predicate, *, draws: int = 10_000, generator: Generator) -> Answer:
    """P(event): k / n of n draws; exact where the family restricts itself to it.

    The standard error is sqrt(q (1 - q) / n) at q = (k + 1) / (n + 2), so it is not 0 where k is 0 or n. An event
    that fixes a continuous variable to a value has probability 0.

    Args:
        model: p(x).
        what: an event, or a predicate of rows (n, D) to (n,) bool.
        draws: n.
        generator: of the draws.

    Raises:
        DataError: the predicate gives no truth value a row.
        OptionError: no draw is asked for.
    """
    if draws < 1:
        raise OptionError(f"the number of draws is at least 1, got {draws}")
    if isinstance(what, Event):
        known = _closed(model, what)
        if known is not None:
            return known
    x = draws_of(model, draws, generator=generator)
    true = what.holds(x) if isinstance(what, Event) else _truths(what, x)
    k = int(true.sum())
    q = (k + 1) / (draws + 2)
    limit = {0: f", so P < {3 / draws:.2g} at 95 %", draws: f", so P > {1 - 3 / draws:.6g} at 95 %"}.get(k, "")
    error = np.asarray(math.sqrt(q * (1 - q) / draws))
    return Answer(np.asarray(k / draws), Kind.ESTIMATE, error, f"true at {k} of {draws} draws{limit}")


def _exact_mean(model: Model) -> Tensor | None:
    exact = model.context is None and model.answers("mean") is Kind.EXACT and model.sampling is Kind.EXACT
    return model.mean().double().detach() if exact else None


def _plain(values: Tensor) -> tuple[Tensor, Tensor, str]:
    return values.mean(0), values.std(0) / math.sqrt(len(values)), ""


def _controlled(values: Tensor, z: Tensor) -> tuple[Tensor, Tensor, str]:
    """The intercept of values on z, whose mean is 0, and its error."""
    varies = z.std(0, correction=0) > 0
    z = z[:, varies] / z[:, varies].std(0, correction=0)
    free = len(z) - 1 - z.shape[1]
    if free < 1 or not z.shape[1]:
        return _plain(values)
    centred = z - z.mean(0)
    slope = torch.linalg.lstsq(centred, values - values.mean(0), driver="gelsd").solution
    left = values - values.mean(0) - centred @ slope
    # the intercept's error: that of the noise, and of the slope times how far the mean of z is from 0
    leverage = 1 / len(z) + (torch.linalg.pinv(centred).T @ z.mean(0)).square().sum()
    error = (left.square().sum(0) / free * leverage).sqrt()
    share = float((left.square().sum() / (values - values.mean(0)).square().sum().clamp_min(1e-300)).clamp_max(1))
    return values.mean(0) - z.mean(0) @ slope, error, f", of whose variance the exact mean of x leaves {share:.0%}"


def _closed(model: Model, event: Event) -> Answer | None:
    if not event.possible:
        return Answer(np.asarray(0.0), Kind.EXACT, None, "the event is outside the domain")
    if not event.has_mass:
        return Answer(np.asarray(0.0), Kind.EXACT, None, "a continuous variable takes a value given in advance with probability 0")
    if not event.conditions:
        return Answer(np.asarray(1.0), Kind.EXACT, None, "nothing is asked")
    if not sums_out(model, event):
        return None
    return Answer(np.asarray(math.exp(log_probability(model, event))), Kind.EXACT, None, "in closed form")


def _truths(predicate: Predicate, x: Tensor) -> Tensor:
    true = torch.as_tensor(predicate(x))
    if true.shape != x.shape[:1] or true.dtype != torch.bool:
        raise DataError(f"a predicate gives True or False for each of {len(x)} rows, got {true.dtype} of shape {tuple(true.shape)}")
    return true


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()
