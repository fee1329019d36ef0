"""Conditioning by Markov chains, started from importance-weighted draws: Hamiltonian Monte Carlo, and Gibbs sweeps."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.ask.generic.draws import Chains, Draws
from pofx.ask.generic.resampling import evidence_of, weigh
from pofx.ask.generic.space import Coordinate, LogDensity, Unconstrained, coordinates, repeatable, target
from pofx.errors import Unavailable
from pofx.events import Event
from pofx.models.base import Model
from pofx.samplers import Hamiltonian, Weighted, gibbs, hmc
from pofx.samplers.densities import differentiable, restricted
from pofx.types import Generator, Kind

CHAINS = 25
_WARMUP = 150
_TRUSTED = 0.7  # Pareto's k-hat up to which the start's estimate of the evidence is passed on
_MOST = 4096  # values of a window
_WIDER = 8  # times a window is made wider

Rows = Float[Tensor, "N D"]


def hamiltonian(model: Model, event: Event, draws: int, *, start: Weighted | None = None, generator: Generator) -> Draws:
    """25 chains of `samplers.hmc` over the variables left open, in unconstrained coordinates with their log-Jacobian.

    Every open variable is continuous, without grid or spike: moving a rounded variable as if it were not, and rounding
    at the end, would draw from another law than the model's (`gibbs` and `sir` draw from it). An interval of the event
    bounds its variable. Modes apart are visited as often as chains start there: R-hat says so.

    Cost: (150 + draws / 25) transitions of 25 chains, each of a few to 256 gradients; and that of `sir` for the start.

    Args:
        model: p, whose log_prob is a function with a gradient.
        event: what is known.
        draws: how many.
        start: weighted draws to start from, if there are any already.
        generator: of all draws.

    Raises:
        Unavailable: a variable left open is no such, the density is drawn anew at each call or has no gradient, or the
            event has probability 0.
    """
    rough = [event.domain.names[m.index] for m in coordinates(event) if not m.smooth]
    if rough:
        why = f"{rough[0]!r} is discrete, lives on a grid or has a spike, and is left open"
        raise Unavailable("conditional by hmc", model.noun, why, instead="method='gibbs' or 'sir'")
    world = _world(model, event, start, "hmc", generator)
    if not differentiable(world.log_p, world.start[:2]):
        raise Unavailable("conditional by hmc", model.noun, "its density has no gradient", instead="method='gibbs' or 'sir'")
    columns = torch.tensor([m.index for m in world.moving], device=world.start.device)
    given = restricted(world.log_p, world.start, columns)
    run = hmc(given, world.start[:, columns], steps=_steps(draws), warmup=_WARMUP, most_leapfrogs=64, generator=generator)
    u = world.start.expand(len(run.draws), -1, -1).clone()
    u[:, :, columns] = run.draws
    how = f"Hamiltonian chains, {int(run.divergences.sum())} divergences"
    return _collected(world, u, draws, "hmc", how)


def sweeps(model: Model, event: Event, draws: int, *, start: Weighted | None = None, generator: Generator) -> Draws:
    """25 chains of `samplers.gibbs`: each discrete or rounded variable exactly given the others, continuous ones together.

    Continuous variables take one Hamiltonian trajectory a sweep where the density has a gradient, else random walks,
    in unconstrained coordinates. A count without end and a grid move in a window of values that is made wider until
    no chain comes near its ends. Of two variables so tied that none can move alone, neither moves.

    Cost: (150 + draws / 25) sweeps of a log-density of 25 rows for each value of each discrete variable.

    Args:
        model: p, whose log_prob is a function.
        event: what is known.
        draws: how many.
        start: weighted draws to start from, if there are any already.
        generator: of all draws.

    Raises:
        Unavailable: a variable left open has a spike, or a window over 4096 values; the density is drawn anew at each
            call; or the event has probability 0.
    """
    spiked = [event.domain.names[m.index] for m in coordinates(event) if m.values is None and m.spike is not None and not m.step]
    if spiked:
        why = f"{spiked[0]!r} has a spike and values beside it: no sweep passes from one to the other"
        raise Unavailable("conditional by gibbs", model.noun, why, instead="method='sir'")
    world = _world(model, event, start, "gibbs", generator)
    fixed = event.fixed.to(world.start.device)
    smooth = any(m.smooth for m in world.moving)
    block = Hamiltonian() if smooth and differentiable(world.log_p, world.start[:2]) else None
    measured = _with_measure(world)
    for wider in range(_WIDER):
        lists = _lists(world, 2.0**wider, model)
        u = gibbs(measured, world.start, lists, fixed=fixed, steps=_steps(draws), warmup=_WARMUP, block=block, generator=generator).draws
        if not _touches(world, lists, u):
            return _collected(world, u, draws, "gibbs", "Gibbs chains")
    raise Unavailable("conditional by gibbs", model.noun, "a count or grid has no end that chains stay away from", instead="method='sir'")


@dataclass(frozen=True)
class _World:
    """What the chains walk on.

    Args:
        map: to and from unconstrained coordinates.
        log_p: log-density of rows in them.
        start: (chains, D), in them.
        moving: the variables left open.
        evidence: log P(event) of the start and its error, where it is known well.
    """

    map: Unconstrained
    log_p: LogDensity
    start: Rows
    moving: list[Coordinate]
    evidence: tuple[float | None, float | None]


def _world(model: Model, event: Event, start: Weighted | None, method: str, generator: Generator) -> _World:
    if not repeatable(model):
        why = f"its log_prob is of kind {model.density}, not a fixed function of x"
        raise Unavailable(f"conditional by {method}", model.noun, why, instead="method='rejection', 'sir' or 'abc'")
    weighted = weigh(model, event, 2000, generator=generator) if start is None else start
    moving = coordinates(event)
    unconstrained = Unconstrained(moving)
    log_p = unconstrained.log_density(target(model, event))
    x = weighted.resample(CHAINS, generator=generator)
    known = float(weighted.k_hat) <= _TRUSTED
    return _World(unconstrained, log_p, unconstrained.inverse(x), moving, evidence_of(model, weighted) if known else (None, None))


def _steps(draws: int) -> int:
    return max(8, -(-draws // CHAINS))


def _collected(world: _World, u: Float[Tensor, "steps chains D"], draws: int, method: str, who: str) -> Draws:
    x = world.map(u.flatten(0, 1))[0]
    chains = Chains(x.unflatten(0, u.shape[:2]))
    ess, rhat = chains.ess(), chains.rhat()
    how = f"{u.shape[1]} {who}, {u.shape[0]} steps each after {_WARMUP}: effective size {ess:.0f}, R-hat {rhat:.3f}"
    return Draws(x[:draws], Kind.ESTIMATE, method, ess, how, chains, rhat, *world.evidence)


# -- lists of values -------------------------------------------------------------------------------


def _with_measure(world: _World) -> LogDensity:
    """The log-density relative to counting on every grid, so that an atom and cells of a grid weigh as they should."""
    mixed = [m for m in world.moving if m.per != 1.0 and m.spike is not None]

    def log_p(u: Tensor) -> Tensor:
        return world.log_p(u) + sum((m.log_per(u[:, m.index]) for m in mixed), u.new_zeros(len(u)))

    return log_p if mixed else world.log_p


def _lists(world: _World, wider: float, model: Model) -> list[Tensor | None]:
    lists: list[Tensor | None] = [None] * world.start.shape[1]
    for m in world.moving:
        if not m.smooth:
            lists[m.index] = m.values if m.values is not None else _window(m, world.start[:, m.index], wider, model)
    return lists


def _window(m: Coordinate, start: Tensor, wider: float, model: Model) -> Tensor:
    """Values of a grid or count about those of the starts, which are among them."""
    middle, low, high = float(start[0]), float(start.min()), float(start.max())
    pad = wider * max(8 * m.step, high - low)
    first, last = (round((end - middle) / m.step) for end in (max(m.lower, low - pad), min(m.upper, high + pad)))
    if last - first >= _MOST:
        why = f"{model.domain.names[m.index]!r} would need a window of {last - first + 1} values, over {_MOST}"
        raise Unavailable("conditional by gibbs", model.noun, why, instead="method='sir'")
    steps = torch.arange(first, last + 1, device=start.device)
    values = middle + m.step * steps.to(start)
    # the starts to the bit: 3 * 0.1 is not 0.3
    near = (start.unique()[:, None] - values).abs().argmin(1)
    return values.index_copy(0, near, start.unique())


def _touches(world: _World, lists: list[Tensor | None], u: Tensor) -> bool:
    """Whether a chain came to an end of a window that is no end of the domain."""
    return any(_at_end(m, values, u[..., m.index]) for m in world.moving if m.values is None and (values := lists[m.index]) is not None)


def _at_end(m: Coordinate, values: Tensor, u: Tensor) -> bool:
    low = bool((u == values[0]).any()) and float(values[0]) - m.step >= m.lower
    high = bool((u == values[-1]).any()) and float(values[-1]) + m.step <= m.upper
    return low or high
