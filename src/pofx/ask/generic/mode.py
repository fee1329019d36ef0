"""A most probable x, by climbing from many draws.

A bound that is drawn anew at each call is no function to climb. With its draws held still it is one: chain r climbs
f_r(x) = bound(x; draws r), and fresh draws say how high the ends of all chains are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.ask.generic.conditional import conditional
from pofx.ask.generic.space import Coordinate, LogDensity, Unconstrained, coordinates, repeatable, target
from pofx.errors import Unavailable
from pofx.events import Event
from pofx.models.base import Model
from pofx.samplers import ascend
from pofx.samplers.densities import differentiable
from pofx.types import Generator, Kind, Point

_MOST = 512  # values of a grid or count that are tried
_FRESH = 16  # times a bound is drawn for the choice among ends, and again for the height of the one chosen
_GAIN = {True: 1e-9, False: 1e-3}  # nats that are worth a step, where log p is a function and where it is drawn


@dataclass(frozen=True)
class Mode:
    """Where p is high.

    Args:
        x: the point, (D,).
        log_p: log-density there, in nats.
        kind: EXACT where it is known to be the maximum; BOUND: log_p is at most the maximum (but for its error); ESTIMATE
            where the density is one.
        how: the method in one sentence.
        error: standard error of log_p, 0 where nothing is drawn.
    """

    x: Point
    log_p: float
    kind: Kind
    how: str
    error: float = 0.0


def mode(model: Model, event: Event | None = None, *, starts: int = 50, generator: Generator) -> Mode:
    """argmax p(x) where the event holds: in closed form where the family has it, else the best end of many climbs.

    Climbs start from draws of the conditional; continuous variables climb together by `samplers.ascend` in
    unconstrained coordinates (of the density of x, without Jacobian), variables with values try each. The family's own
    approximate mode, if it has one, is one more start. A variable with a spike, or on a grid or count of over 512 values about
    the draws, keeps the value of its start.

    Where log_prob is a bound or an estimate, each climb holds the draws behind it still (an equal generator at every
    call), the end is chosen by the mean of 16 fresh draws, and log_p is the mean of 16 others: choosing flatters the
    first. What is climbed is the bound: where it lies nearer to log p at one place than at another, so does the mode.

    Cost: a few dozen steps of `starts` log-densities and gradients, and as many log-densities for each value of a variable.

    Args:
        model: p(x), with a density.
        event: what is known; None: nothing.
        starts: how many climbs.
        generator: of the starts, and of the draws behind a bound.

    Raises:
        Unavailable: the model has no density, or the event has probability 0.
    """
    event = Event(model.domain, {}) if event is None else event
    point = event.as_point()
    if point is not None and model.answers("mode", event.seen) is Kind.EXACT:
        x = model.mode(point).double()
        return Mode(x, float(_height(model, x[None], generator)[0]), Kind.EXACT, "the family's closed form")
    if model.density is Kind.NONE:
        raise Unavailable("mode by climbing", model.noun, "it has no density", instead="the modes of a family learned from its draws")
    x = conditional(model, event, draws=starts, generator=generator).rows
    own = _own(model, event, point)
    x = x if own is None else torch.cat((x, own))
    return _climbed(model, event, x, generator)


def _climbed(model: Model, event: Event, x: Tensor, generator: Generator) -> Mode:
    moving = coordinates(event)
    unconstrained = Unconstrained(moving)
    x, log_p = _starts(model, event, x, generator)
    u = unconstrained.inverse(x)

    def height(u: Tensor) -> Tensor:
        return log_p(unconstrained(u)[0])

    values, fixed = _values(moving, u, event, differentiable(height, u[:2]))
    if bool(fixed.all()):
        return _best(model, x, "the best of the draws", generator)
    climbs = ascend(height, u, values=values, fixed=fixed, tolerance=_GAIN[repeatable(model)])
    agree = f"{int(climbs.agrees.sum())} of {len(u)} climbs reach the best place"
    how = agree if repeatable(model) else f"the best end of {len(u)} climbs, each with the draws behind log p held still"
    return _best(model, torch.cat((x, unconstrained(climbs.x)[0].detach())), how, generator)


def _starts(model: Model, event: Event, x: Tensor, generator: Generator) -> tuple[Tensor, LogDensity]:
    """The rows with a positive density, and the log-density that climbs from them."""
    while len(x):
        log_p = _held(model, event, len(x), generator)
        with torch.no_grad():
            good = log_p(x).isfinite()
        if bool(good.all()):
            return x, log_p
        x = x[good]
    raise Unavailable("mode", model.noun, "no start has a positive density")


def _held(model: Model, event: Event, chains: int, generator: Generator) -> LogDensity:
    """log p as a function: row i has the draws of row i mod chains, the same at every call."""
    if repeatable(model):
        return target(model, event)
    seed = _seed(generator)

    def log_p(x: Tensor) -> Tensor:
        each = (torch.Generator(x.device).manual_seed(seed) for _ in range(0, len(x), chains))
        return torch.cat([target(model, event, generator=g)(part) for g, part in zip(each, x.split(chains), strict=True)])

    return log_p


def _seed(generator: Generator) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device))


def _best(model: Model, x: Tensor, how: str, generator: Generator) -> Mode:
    log_p, _ = _height(model, x, generator)
    top = int(torch.where(log_p.isnan(), -torch.inf, log_p).argmax())
    if repeatable(model):
        return Mode(x[top], float(log_p[top]), Kind.BOUND, how)
    value, error = (float(number) for number in _height(model, x[top, None], generator))
    return Mode(x[top], value, model.density, f"{how}{_at_least(model, value, error)}", error)


def _at_least(model: Model, value: float, error: float) -> str:
    says = "at least" if model.density is Kind.BOUND else "about"
    return f"; log p there is {says} {value:.4g} ± {error:.2g} nats"


def _height(model: Model, x: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """log p of rows and its standard error; where it is drawn, by the mean of fresh draws."""
    with torch.no_grad():
        values = torch.stack([model.log_prob(x, generator=generator).double() for _ in range(1 if repeatable(model) else _FRESH)])
    error = torch.zeros_like(values[0]) if len(values) == 1 else values.std(0) / len(values) ** 0.5
    return values.mean(0), error


def _own(model: Model, event: Event, point: Tensor | None) -> Tensor | None:
    """The family's own approximate mode."""
    if point is None or model.answers("mode", event.seen) in (Kind.NONE, Kind.ESTIMATE):
        return None
    return model.mode(point).double()[None]


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
