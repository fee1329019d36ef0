"""Conditioning by importance weights: draws near the event, weighted by p / q, the proposal q learned from them."""

import torch
from torch import Tensor

from pofx.ask.generic.draws import Draws, Importance
from pofx.ask.generic.kernels import Mixture, Rows, learn
from pofx.ask.generic.nearness import distance, placed
from pofx.ask.generic.space import Coordinate, LogDensity, coordinates, draws_of, target
from pofx.errors import Unavailable
from pofx.events import Event
from pofx.models.base import Model
from pofx.samplers import Weighted, systematic
from pofx.samplers.smc import rise
from pofx.types import Generator, Kind

POOL = 4000  # draws of the joint from which the proposal begins
CENTRES = 400
FEWEST = 10.0  # effective draws under which an answer would mean nothing
_ROUNDS = 2  # in which the proposal is learned
_ALIVE = 0.05  # the share of draws that weigh in while it is learned


def sir(model: Model, event: Event, draws: int, *, generator: Generator) -> Draws:
    """Sampling-importance-resampling: weights p(x) [x in event] / q(x), q learned in rounds from the weighted draws.

    q is a mixture of kernels (`kernels`) about draws of the joint that are nearest to the event; every round moves its
    centres to where the weights are. Means are self-normalised, so biased by O(1 / ESS). Every kind of variable, grids
    and spikes included. Fails in many dimensions: weights grow uneven, which ESS and Pareto's k-hat say; a mode of the
    conditional that no draw was near is missed, and nothing says so.

    Cost: about 4 `draws` + 6000 log-densities and 4000 draws of the joint.

    Raises:
        Unavailable: the model has no density, the event has probability 0, or under 10 effective draws.
    """
    weighted = weigh(model, event, max(4 * draws, POOL), generator=generator)
    if float(weighted.ess) < FEWEST:
        raise too_few("sir", model, float(weighted.ess), len(weighted.x))
    value, error = evidence_of(model, weighted)
    how = f"{draws} resampled from {len(weighted.x)} weighted draws{_bound(model)}: effective size {float(weighted.ess):.0f}"
    return Draws(
        rows=weighted.resample(draws, generator=generator),
        kind=Kind.ESTIMATE,
        method="sir",
        ess=float(weighted.ess),
        how=f"{how}, Pareto k-hat {float(weighted.k_hat):.2f}",
        source=Importance(weighted),
        log_evidence=value,
        log_evidence_error=error,
    )


def weigh(model: Model, event: Event, n: int, *, rounds: int = _ROUNDS, pool: Tensor | None = None, generator: Generator) -> Weighted:
    """n rows in the event, drawn from the learned proposal, with log-weights log p - log q.

    The mean of the weights is unbiased for P(event) (for p, where continuous variables are fixed): the proposal is
    learned from other draws than those that are weighed.

    Args:
        model: p, with a density.
        event: what is known; something is left open.
        n: rows.
        rounds: in which the proposal is learned.
        pool: draws of the joint, if there are any already.
        generator: of all draws.

    Raises:
        Unavailable: the model has no density, or one that is no weight, or no proposal falls where it is positive.
    """
    if model.density is Kind.NONE:
        raise Unavailable("conditional by weights", model.noun, "it has no density", instead="method='rejection' or 'abc'")
    if model.logs_average:
        why = "its log_prob is right in the mean and e^log_prob is not, so it is no weight"
        raise Unavailable("conditional by weights", model.noun, why, instead="method='rejection' or 'abc'")
    moving, log_p = coordinates(event), target(model, event, generator=generator)
    pool = draws_of(model, POOL, generator=generator) if pool is None else pool
    with torch.no_grad():
        proposal = first(event, moving, pool, generator)
        for _ in range(rounds):
            proposal = _better(proposal, log_p, moving, placed(event, moving, pool, generator=generator), generator)
        x = proposal.draw(n, generator)
        log_w = log_p(x) - proposal.log_prob(x)
    log_w = torch.where(log_w.isfinite(), log_w, -torch.inf)
    if bool((log_w == -torch.inf).all()):
        raise impossible(model, event, f"p is 0 at all {n} proposals")
    return Weighted(x, log_w)


def evidence_of(model: Model, weighted: Weighted) -> tuple[float | None, float | None]:
    """log of the mean weight and its error; None where the density lacks its constant."""
    if model.density is Kind.UNNORMALISED:
        return None, None
    value, error = weighted.log_evidence
    return float(value), float(error)


def impossible(model: Model, event: Event, why: str) -> Unavailable:
    """The refusal of an event of probability 0."""
    return Unavailable("conditional", model.noun, f"the evidence {event.sentence} has probability 0, or next to none: {why}")


def too_few(method: str, model: Model, ess: float, n: int) -> Unavailable:
    """The refusal of an answer that would mean nothing."""
    why = f"{ess:.1f} effective draws of {n} are under {FEWEST:.0f}"
    return Unavailable(f"conditional by {method}", model.noun, why, instead="more draws, wider evidence, or method='hmc' or 'gibbs'")


def _bound(model: Model) -> str:
    return "" if model.density is Kind.EXACT else f" (by a log-density of kind {model.density})"


def first(event: Event, moving: list[Coordinate], pool: Rows, generator: Generator, *, centres: int = CENTRES) -> Mixture:
    """The proposal before anything is weighed: centres at the draws of the joint that are nearest."""
    near = pool[distance(event, pool).argsort()[:centres]]
    near, far = (placed(event, moving, rows, generator=generator) for rows in (near, pool))
    return learn(moving, near, far, event.values.nan_to_num())


def _better(proposal: Mixture, log_p: LogDensity, moving: list[Coordinate], far: Rows, generator: Generator) -> Mixture:
    """Centres drawn by weight from the proposal's own draws; weights are flattened while few of them count."""
    x = proposal.draw(1000, generator)
    log_w = log_p(x) - proposal.log_prob(x)
    log_w = torch.where(log_w.isfinite(), log_w, -torch.inf)
    if bool((log_w == -torch.inf).all()):
        return proposal
    near = x[systematic(rise(log_w, _ALIVE, 1.0) * log_w, CENTRES, generator=generator)]
    return learn(moving, near, far, proposal.row)
