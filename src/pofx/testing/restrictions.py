"""Checks of restriction to events, and of the entropy: what a family that claims them is held to."""

import math

import torch
from torch import Tensor

from pofx.domain import VariableKind
from pofx.events import Among, Between, Condition, Event
from pofx.models.base import Model
from pofx.testing.case import DELTA, Case, answered, close, gap, require
from pofx.types import Kind


def restriction_is_p_over_its_probability(case: Case) -> None:
    """log p(x | E) = log p(x) - log P(E) in E and -inf outside; draws lie in E, which has P(E) of the model's own draws (Hoeffding)."""
    if not (case.exact and case.unconditional):
        return
    x, _ = case.complete_rows()
    drawn = case.sample(case.draws).double() if case.model.sampling is Kind.EXACT else None
    for event in events(case, x):
        found = answered(case.model.restrict, event)
        if found is None:
            continue
        part, log_p = found
        what = f"given {event.sentence}"
        require(part.domain.names == case.domain.names, f"the restriction is over {part.domain.names}")
        holds = event.holds(x)
        expected = torch.where(holds, case.log_prob(x) - log_p, -math.inf)
        value = _log_prob(part, x, case)
        require(close(case, value, expected), f"{what}, log_prob is not log p(x) - log P: {gap(value, expected)}")
        require(event.holds(part.sample(200, generator=case.generator)), f"{what}, a draw lies outside the event")
        if drawn is not None:
            off = abs(float(event.holds(drawn).double().mean()) - math.exp(log_p))
            allowed = math.sqrt(math.log(2 / DELTA) / 2 / len(drawn))
            require(off <= allowed, f"P({event.sentence}) = {math.exp(log_p):.4g}, off the share of draws by {off:.3g}")


def restrictions_add_up(case: Case) -> None:
    """P(E) + P(not E) = 1 for a cut of one variable; restricting twice is restricting to both; marginals of a restriction are its own."""
    if not (case.exact and case.unconditional):
        return
    x, _ = case.complete_rows()
    for event in events(case, x):
        found = answered(case.model.restrict, event)
        if found is None:
            continue
        whole, log_p = found
        for d in event.conditions:
            first = Event(case.domain, {d: event.conditions[d]})
            rest = Event(case.domain, {k: c for k, c in event.conditions.items() if k != d})
            half, log_first = case.model.restrict(first)
            off = abs(log_first + half.log_chance(rest) - log_p)
            require(off <= case.rounding * (1 + abs(log_p)), f"log P({event.sentence}) one after the other is off by {off:.3g}")
            _complement_adds_up(case, first, log_first)
        _keeps_marginals(case, whole, x[event.holds(x)])


def _complement_adds_up(case: Case, event: Event, log_p: float) -> None:
    ((d, condition),) = event.conditions.items()
    if isinstance(condition, Between) and condition.upper == math.inf:
        other = Event(case.domain, {d: Between(upper=condition.lower, closed=(True, not condition.closed[0]))})
        total = math.exp(log_p) + math.exp(case.model.log_chance(other))
        require(abs(total - 1) <= case.rounding, f"P({event.sentence}) + P({other.sentence}) = {total:.9g}")


def _keeps_marginals(case: Case, part: Model, x: Tensor) -> None:
    """log p(x with NaN | E) is that of the restriction's marginal."""
    for keep in case.splits() if case.sums_out and len(x) else ():
        marginal = answered(part.marginal, keep)
        if marginal is None or marginal.density is not Kind.EXACT:
            continue
        holes = torch.full_like(x, torch.nan)
        holes[:, keep] = x[:, keep]
        whole, own = _log_prob(part, holes, case), _log_prob(marginal, x[:, keep], case)
        require(close(case, whole, own), f"given an event, log_prob with NaN is not the marginal's: {gap(whole, own)}")


def entropy_is_the_mean_of_minus_log_p(case: Case) -> None:
    """A closed entropy lies within 8 standard errors of the mean of -log p over draws, where their kurtosis is below 10."""
    entropy = answered(case.model.entropy) if case.unconditional and case.exact and case.model.sampling is Kind.EXACT else None
    if entropy is None or case.model.answers("entropy") is not Kind.EXACT:
        return
    surprise = -case.log_prob(case.sample(case.draws)).double()
    error = float(surprise.std()) / math.sqrt(len(surprise))
    z = (surprise - surprise.mean()) / surprise.std().clamp(min=1e-300)
    off = abs(entropy - float(surprise.mean()))
    allowed = 8 * error + case.rounding * (1 + abs(entropy)) if float(z.pow(4).mean()) < 10 else math.inf
    require(off <= allowed, f"entropy is {entropy:.6g} nats, the mean of -log p over draws {float(surprise.mean()):.6g}")


def events(case: Case, x: Tensor) -> list[Event]:
    """An event on each variable alone, and one on two of them, with some probability as the rows have it."""
    each = {d: _condition(case, x, d) for d in range(len(case.domain))}
    some = [{d: each[d]} for d in list(each)[:8]]
    pair = [{d: each[d] for d in (0, len(each) - 1)}] if len(each) > 1 else []
    return [Event(case.domain, conditions) for conditions in (*some, *pair)]


def _condition(case: Case, x: Tensor, d: int) -> Condition:
    """From a middle value of the rows on, for every other variable without the value itself; of levels without order a set."""
    variable, column = case.domain.variables[d], x[:, d].double()
    middle = float(column.sort().values[len(column) // 2])
    if variable.kind in (VariableKind.CATEGORICAL, VariableKind.BINARY):
        return Among(tuple(range(len(variable.levels)))[:2])
    if variable.continuous or variable.cardinality is None or middle + 1 < variable.upper:
        return Between(middle, closed=(d % 2 == 0, True))
    return Between(upper=middle)


def _log_prob(model: Model, x: Tensor, case: Case) -> Tensor:
    with torch.no_grad():
        return model.log_prob(x, generator=case.generator)
