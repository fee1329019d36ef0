"""Comparisons: how each answer of a family is held against the truth, or against an answer that shares nothing with it."""

import math

import torch
from torch import Tensor

from pofx.ask.generic import (
    Draws,
    Event,
    entropy,
    expectation,
    log_marginal,
    mode,
    mutual_information,
    posterior,
    probability,
)
from pofx.domain import LEVELLED
from pofx.testing.case import require
from pofx.testing.subject import SIGMAS, Subject, known, mean_of, mean_of_few
from pofx.testing.worlds import Pair
from pofx.types import Answer, Generator, Kind

_OFTEN = 25  # conditionals of one point, where each is drawn
_ROWS = {"complete": (2000, 400), "impute": (2000, 200)}  # filled in again, by an exact answer and by an estimate of 1000 densities a row
_MANY = 400  # counted draws of a cell, from which the error of its log is normal


# -- log p -----------------------------------------------------------------------------------------


def surprise(s: Subject, g: Generator) -> None:
    """Every cell: they sum to 1, and -log p of draws is on average their entropy."""
    p = s.cells.p
    s.agree("the sum over all cells", known(p.sum()), known(1.0))
    x = s.model.sample(20_000, generator=g)
    s.agree("the mean of log p", mean_of(s.model.log_prob(x, generator=g)), known(torch.special.entr(p).sum().neg()))


def mass_by_weights(s: Subject, g: Generator) -> None:
    """log of the integral of p, by weighted draws, is 0; of a bound at most 0."""
    draws = s.draw(Event(s.world.domain, {}), "sir", g)
    (s.agree if s.exact else s.below)("log of the mass", _evidence(draws), known(0.0))


def below_the_counts(s: Subject, g: Generator) -> None:
    """Each cell's bound lies below the log of its share of the draws, and all cells' exponentials sum to at most 1."""
    low, error = _bound(s, s.cells.x, g)
    s.below("the mass of the bound", (low.exp().sum(), (low.exp() * error).norm()), known(1.0))
    p, n = s.cells.p, s.cells.draws or 0
    often = p * n >= _MANY
    s.below("the bound of each cell", (low[often], error[often]), (p[often].log(), ((1 - p) / (p * n)).sqrt()[often]))


# -- log p of rows with missing cells --------------------------------------------------------------


def _with_holes(s: Subject) -> Tensor:
    x = s.world.draw(3)
    x[0, 0] = x[1, 1:] = x[2, 2] = torch.nan
    return x


def holes_by_weights(s: Subject, g: Generator) -> None:
    """log p of three rows with holes by the family, and by importance sampling of whole rows."""
    x = _with_holes(s)
    found = _pair(log_marginal(s.blind, x, generator=g))
    value, error = s.model.log_prob_and_error(x, generator=g)
    (s.agree if s.model.missing is Kind.EXACT else s.below)("log p of a row with holes", (value, error), found)


def holes_by_cells(s: Subject, g: Generator) -> None:
    """The same, both ways, against the sum over cells, or the share of draws."""
    x = _with_holes(s)
    totals = [s.cells.total(s.cells.where(Event.at(s.world.domain, row))) for row in x]
    share, spread = (torch.stack(column) for column in zip(*totals, strict=True))
    truth = (share.log(), spread / share)
    compare = s.agree if s.exact else s.below
    compare("log p of a row with holes, by weights", _pair(log_marginal(s.blind, x, generator=g)), truth)
    if s.model.missing is not Kind.NONE:
        exact = s.model.missing is Kind.EXACT
        (s.agree if exact else s.below)("log p of a row with holes", mean_of_few(_repeated(s, x, 1 if exact else _OFTEN, g)), truth)


def holes_on_a_line(s: Subject, g: Generator) -> None:
    """The bound of one variable alone, integrated over an interval, lies below the share of draws there."""
    t, width = _line(0.0, 1.5, 200)
    x = torch.full((len(t), len(s.world.domain)), torch.nan, dtype=torch.float64)
    x[:, 0] = t
    low = _repeated(s, x, _OFTEN, g).exp().sum(1) * width
    s.below("the integral of the bound", mean_of_few(low), _share(s, g))


def _repeated(s: Subject, x: Tensor, times: int, g: Generator) -> Tensor:
    """log p of the rows so many times over; a number that is not drawn twice, so that it has no spread."""
    values = [s.model.log_prob(x, generator=g).double() for _ in range(times)]
    return torch.stack(values if times > 1 else values * 2)


# -- probabilities ---------------------------------------------------------------------------------


def probability_in_closed_form(s: Subject, g: Generator) -> None:
    """P(interval): the family's marginal over a line, and the share of draws."""
    t, width = _line(0.0, 1.5)
    summed = known(s.model.marginal([0]).log_prob(t[:, None]).double().exp().sum() * width)
    s.agree("P(event)", summed, _share(s, g))
    _own_probability(s, s.world.level, summed, g)


def probability_by_weights(s: Subject, g: Generator) -> None:
    """P(interval): by weighted draws, and the share of draws."""
    value, error = _evidence(s.draw(s.world.level, "sir", g))
    s.agree("P(event)", (value.exp(), value.exp() * error), _share(s, g))


def probability_by_cells(s: Subject, g: Generator) -> None:
    """P(level): the share of draws, of the marginal's draws, and its density, against the cells."""
    truth = s.cells.total(s.cells.where(s.world.level))
    s.agree("P(event)", _share(s, g), truth)
    _own_probability(s, s.world.level, truth, g)
    if s.model.answers("marginal") is Kind.NONE:
        return
    part, event = s.model.marginal([0]), s.world.level.conditions[0]
    x = part.sample(10_000, generator=g)
    s.agree("P(event) by the marginal", mean_of(event.holds(x[:, 0], part.domain.variables[0])), truth)
    at = s.world.level.values[:1, None]
    log_p = torch.stack([part.log_prob(at, generator=g).double().exp() for _ in range(2 if s.exact else _OFTEN)])[:, 0]
    (s.agree if part.density is Kind.EXACT else s.below)("the marginal's density", mean_of_few(log_p), truth)


def _own_probability(s: Subject, event: Event, truth: Pair, g: Generator) -> None:
    """P(event) by the family's own closed form, where it has one."""
    own = probability(s.model, event, generator=g)
    if own.kind is Kind.EXACT:
        s.agree("P(event) in closed form", _pair(own), truth)


def probability_by_the_marginal(s: Subject, g: Generator) -> None:
    """P(interval): the share of the marginal's draws and of the model's."""
    x = s.model.marginal([0]).sample(10_000, generator=g)
    s.agree("P(event)", mean_of(s.world.level.conditions[0].holds(x[:, 0], s.world.domain.variables[0])), _share(s, g))


def evidence_in_closed_form(s: Subject, g: Generator) -> None:
    """log P of an interval and a value: the family's marginal over a line, and weighted draws."""
    t, width = _line(-2.0, 0.5)
    at = torch.stack((t, torch.full_like(t, float(s.world.both.values[1]))), 1)
    log_p = s.model.marginal([0, 1]).log_prob(at).double().logsumexp(0) + math.log(width)
    s.agree("log P(event)", known(log_p), _evidence(s.draw(s.world.both, "sir", g)))


def evidence_twice(s: Subject, g: Generator) -> None:
    """log P of an interval and a value, by weighted draws of two seeds."""
    first, again = s.draw(s.world.both, "sir", g), s.draw(s.world.both, "sir", torch.Generator().manual_seed(5))
    s.agree("log P(event)", _evidence(first), _evidence(again))


def evidence_by_cells(s: Subject, g: Generator) -> None:
    """log P of a set and a value: the family's and by weighted draws (of a bound: below), by rejection; and draws nearby."""
    weight = s.cells.where(s.world.both)
    share, error = s.cells.total(weight)
    truth = (share.log(), error / share)
    (s.agree if s.exact else s.below)("log P(event) by weights", _evidence(s.draw(s.world.both, "sir", g)), truth)
    _own_probability(s, s.world.both, (share, error), g)
    points = _points(s)
    if s.model.missing is not Kind.NONE:
        exact = s.model.missing is Kind.EXACT
        own = _repeated(s, points, 1 if exact else _OFTEN, g).logsumexp(1)
        (s.agree if exact else s.below)("log P(event)", mean_of_few(own), truth)
    s.agree("log P(event) by rejection", _evidence(s.draw(s.world.both, "rejection", g)), truth)
    near = s.draw(s.world.level, "abc", g, 300)  # where its nearest draws lie in the event
    require(s.world.level.holds(near.rows), "draws by tolerance lie outside a likely event")
    s.agree("the mean of draws nearby", near.mean, s.cells.mean(s.cells.x, s.cells.where(s.world.level)))


def evidence_below_the_draws(s: Subject, g: Generator) -> None:
    """log P(interval): weights by a bound lie below the share of draws; the mean there by rejection and by tolerance."""
    counted = s.draw(s.world.level, "rejection", g)
    s.below("log P(event)", _evidence(s.draw(s.world.level, "sir", g)), _evidence(counted))
    s.agree("the mean given the event", counted.mean, s.draw(s.world.level, "abc", g, 300).mean)


# -- conditionals ----------------------------------------------------------------------------------


def conditional_in_closed_form(s: Subject, g: Generator) -> None:
    """E[x | point]: the family's, and weighted draws of the joint."""
    free = ~s.world.point.fixed
    mean, error = s.draw(s.world.point, "sir", g).mean
    s.agree("the mean given a point", _own_mean(s, g), (mean[free], error[free]))


def conditional_twice(s: Subject, g: Generator) -> None:
    """E[x | point]: weighted draws of the joint, and Hamiltonian chains."""
    s.agree("the mean given a point", s.draw(s.world.point, "sir", g).mean, s.draw(s.world.point, "hmc", g).mean)


def conditional_by_cells(s: Subject, g: Generator) -> None:
    """E[x | point]: the family's, the generic engine's (weights and chains where log p is a function) against the cells."""
    free = ~s.world.point.fixed
    value, error = s.cells.mean(s.cells.x, s.cells.where(s.world.point))
    for method in ("sir", "gibbs") if s.exact else ("rejection",):
        s.agree(f"the mean given a point by {method}", s.draw(s.world.point, method, g).mean, (value, error))
    if s.model.answers("conditional", s.world.point.seen) is not Kind.NONE:
        s.agree("the mean given a point", _own_mean(s, g), (value[free], error[free]))


def conditional_in_a_strip(s: Subject, g: Generator) -> None:
    """Rows drawn in an interval, their other variables drawn anew given the one: means and products stay."""
    x = s.draw(s.world.level, "rejection", g, _OFTEN).rows
    seen = sorted(s.world.level.conditions)
    holes = x.clone()
    holes[:, [d for d in range(x.shape[1]) if d not in seen]] = torch.nan
    parts = [s.model.conditional(row).sample(50, generator=g).double() for row in holes]
    off = torch.stack([part.mean(0) for part in parts]) - x[:, holes[0].isnan()]
    s.agree("rows drawn anew in an interval", mean_of_few(torch.cat((off, off * x[:, seen[:1]]), 1)), known(0.0))


def _own_mean(s: Subject, g: Generator) -> Pair:
    """The family's E[x_free | point]: in closed form, or over draws of conditionals that may be drawn themselves."""
    evidence = s.world.point.values
    if s.model.answers("conditional", s.world.point.seen) is Kind.EXACT:
        part = s.model.conditional(evidence)
        exact = part.answers("mean") is Kind.EXACT
        return known(part.mean()) if exact else mean_of(part.sample(50_000, generator=g))
    parts = (s.model.conditional(evidence).sample(200, generator=g).double() for _ in range(_OFTEN))
    return mean_of_few(torch.stack([part.mean(0) for part in parts]))


# -- filling in ------------------------------------------------------------------------------------


def total_law(s: Subject, g: Generator) -> None:
    """Rows of the model with cells hidden and drawn anew from p(x_m | x_o) are rows of the model: moments stay, pair by pair."""
    x = s.model.sample(_rows(s, "complete"), generator=g).double()
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-9)
    for hidden in s.world.holes:
        again = s.model.complete(_hidden(x, hidden), generator=g).double()
        before, after = (_moments((rows - mean) / scale, hidden) for rows in (x, again))
        s.agree(f"moments with {hidden} drawn anew", mean_of(after - before), known(0.0))


def tower(s: Subject, g: Generator) -> None:
    """E[(imputed - true) g(x_o)] = 0 of numbers, for g = 1 and each x_o; levels are hit as often as by the likeliest one."""
    x = s.model.sample(_rows(s, "impute"), generator=g).double()
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-9)
    for hidden in s.world.holes:
        filled = s.model.impute(_hidden(x, hidden), generator=g).double()
        seen = [d for d in range(x.shape[1]) if d not in hidden]
        given = torch.cat((torch.ones(len(x), 1), ((x - mean) / scale)[:, seen]), 1)
        for d in hidden:
            if s.world.domain.variables[d].kind in LEVELLED:
                hits, best = (level == x[:, d] for level in (filled[:, d], _likeliest(s, x, seen, d)))
                s.below(f"hits of the likeliest {d} over the imputed", mean_of(best.double() - hits.double()), known(0.0))
            else:
                s.agree(f"the imputed {d} given {hidden}", mean_of(((filled - x) / scale)[:, d, None] * given), known(0.0))


def _rows(s: Subject, question: str) -> int:
    exact, estimate = _ROWS[question]
    return exact if s.model.answers(question) is Kind.EXACT else estimate


def _likeliest(s: Subject, x: Tensor, seen: list[int], d: int) -> Tensor:
    """The most probable level of d given the seen cells of each row, by the cells."""
    same = (x[:, None, seen] == s.cells.x[None][..., seen]).all(-1).double() * s.cells.p
    levels = torch.nn.functional.one_hot(s.cells.x[:, d].long()).double()
    return (same @ levels).argmax(1).double()


def _hidden(x: Tensor, hidden: tuple[int, ...]) -> Tensor:
    holes = x.clone()
    holes[:, list(hidden)] = torch.nan
    return holes


def _moments(x: Tensor, hidden: tuple[int, ...]) -> Tensor:
    """x_d and x_d x_e of every hidden d, (N, K)."""
    pairs = [(d, e) for d in hidden for e in range(x.shape[1]) if e >= d or e not in hidden]
    return torch.cat((x[:, list(hidden)], torch.stack([x[:, d] * x[:, e] for d, e in pairs], 1)), 1)


# -- expectations, modes, posteriors ---------------------------------------------------------------


def _product(x: Tensor) -> Tensor:
    return (x[:, 0].clamp(-6, 6) * x[:, 2].clamp(-6, 6)).double()


def expectation_by_weights(s: Subject, g: Generator) -> None:
    """E[x0 x2] over draws, and over draws of another law weighted by the density; the family's E[x] against the latter."""
    found = _pair(expectation(s.blind, _product, draws=10_000, generator=g))
    weighted = s.draw(Event(s.world.domain, {}), "sir", g)
    s.agree("E[x0 x2]", weighted.expectation(_product), found)
    _mean_is(s, weighted.mean)


def expectation_by_cells(s: Subject, g: Generator) -> None:
    """E[x0 x2] over draws, and the family's E[x], against the cells."""
    truth = s.cells.total(_product(s.cells.x))
    s.agree("E[x0 x2]", _pair(expectation(s.blind, _product, draws=10_000, generator=g)), truth)
    _mean_is(s, s.cells.mean(s.cells.x, torch.ones_like(s.cells.p)))


def _mean_is(s: Subject, truth: Pair) -> None:
    """The family's own mean, if it has one."""
    if s.model.answers("mean") is not Kind.NONE:
        s.agree("E[x]", known(s.model.mean()), truth)


def mode_by_cells(s: Subject, g: Generator) -> None:
    """The generic mode is the best cell, and so is the family's where it says so; else its cell is no better."""
    found, best = mode(s.blind, generator=g), s.cells.p.max().log()
    s.agree("log p at the mode", known(found.log_p), known(best))
    own = s.model.answers("mode")
    if own is not Kind.NONE:
        at = known(s.model.log_prob(s.model.mode()[None])[0])
        (s.agree if own is Kind.EXACT else s.below)("log p at the family's mode", at, known(best))


def mode_of_a_bound(s: Subject, g: Generator) -> None:
    """The mode of a bound: as high as the bound of any cell, and its cell was drawn as often as that says."""
    found = mode(s.model, generator=g)
    low, error = _bound(s, s.cells.x, g)
    height = (torch.tensor(found.log_p), torch.tensor(found.error * 8.2 / SIGMAS))  # of 16 draws: Student's law again
    top = int(low.argmax())
    luck = error[top] * math.sqrt(2 * _OFTEN / 16)  # the end was chosen by 16 draws, and so were those it was chosen over
    s.below("the best cell's bound over the mode's", (low[top], (error[top].square() + luck.square()).sqrt()), height)
    share, spread = s.cells.total((s.cells.x == found.x).all(1).double())
    s.below("the mode's bound over the log of its share", height, (share.log(), spread / share))


def mode_above_the_draws(s: Subject, g: Generator) -> None:
    """The best of 20 climbs is higher than half of all draws, but for one time in 10^6; an exact mode is as high as it, or higher."""
    found = mode(s.blind, starts=20, generator=g)
    above = s.model.log_prob(s.model.sample(400, generator=g), generator=g).double() > found.log_p
    s.below("the share of draws above the mode", mean_of(above), known(0.5))
    if s.model.answers("mode") is Kind.EXACT:
        at = s.model.log_prob(s.model.mode()[None])[0]
        s.below("the climbs' end over the family's mode", known(found.log_p), known(at))


def _likelihood(x: Tensor) -> Tensor:
    return -0.5 * (x[:, 0] + x[:, 2] - 1.5).square().double()


def posterior_by_cells(s: Subject, g: Generator) -> None:
    """E[x | y] and log p(y) by Monte Carlo in sequence, against the cells."""
    x, likelihood = s.cells.x, _likelihood(s.cells.x).exp()
    value, error = s.cells.total(likelihood)
    _posterior_is(s, g, s.cells.mean(x, likelihood), (value.log(), error / value))


def posterior_by_draws(s: Subject, g: Generator) -> None:
    """The same against draws of the model, weighted by the likelihood."""
    x = s.model.sample(20_000, generator=g).double()
    likelihood = _likelihood(x).exp()
    weight = likelihood / likelihood.mean()
    mean = (weight[:, None] * x).mean(0)
    error = (weight[:, None] * (x - mean)).std(0) / len(x) ** 0.5
    _posterior_is(s, g, (mean, error), (likelihood.mean().log(), weight.std() / len(x) ** 0.5))


def _posterior_is(s: Subject, g: Generator, mean: Pair, log_evidence: Pair) -> None:
    found = posterior(s.blind, _likelihood, draws=2000, generator=g)
    s.agree("E[x | y]", found.mean, mean)
    s.agree("log p(y)", _evidence(found), log_evidence)


def information_by_cells(s: Subject, g: Generator) -> None:
    """I(x0; x1, x2) by Monte Carlo, against the cells."""
    found = mutual_information(s.model if s.model.missing is Kind.EXACT else s.blind, [0], [1, 2], generator=g)
    groups = ([0, 1, 2], [0], [1, 2])
    joint, a, b = (_entropy(s, keep) for keep in groups)
    s.agree("I(x0; x1, x2)", _pair(found), known(a + b - joint))


def _entropy(s: Subject, keep: list[int]) -> Tensor:
    _, at = s.cells.x[:, keep].unique(dim=0, return_inverse=True)
    return torch.special.entr(torch.zeros(int(at.max()) + 1, dtype=torch.float64).index_add(0, at, s.cells.p)).sum()


def entropy_by_cells(s: Subject, g: Generator) -> None:
    """-E[log p]: over draws, and over the cells."""
    _entropy_is(s, known(torch.special.entr(s.cells.p).sum()), g)


def entropy_by_weights(s: Subject, g: Generator) -> None:
    """-E[log p]: over draws, and over draws of another law weighted by the density."""
    _entropy_is(s, s.draw(Event(s.world.domain, {}), "sir", g).expectation(lambda x: -s.model.log_prob(x).double()), g)


def _entropy_is(s: Subject, truth: Pair, g: Generator) -> None:
    s.agree("the entropy over draws", _pair(entropy(s.blind, draws=10_000, generator=g)), truth)
    if s.model.answers("entropy") is Kind.EXACT:
        s.agree("the entropy", known(s.model.entropy()), truth)


# -- parts -----------------------------------------------------------------------------------------


def _line(low: float, high: float, n: int = 20_000) -> tuple[Tensor, float]:
    """Midpoints of a line, and their distance."""
    return low + (torch.arange(n, dtype=torch.float64) + 0.5) * (high - low) / n, (high - low) / n


def _points(s: Subject) -> Tensor:
    """The points of the event of a set and a value, NaN in the other variables."""
    event, x = s.world.both, s.cells.x
    keep = sorted(event.conditions)
    each = x[event.holds(x)][:, keep].unique(dim=0)
    return x.new_full((len(each), x.shape[1]), torch.nan).index_copy(1, torch.tensor(keep), each)


def _pair(answer: Answer) -> Pair:
    value = torch.as_tensor(answer.value)
    return value, torch.zeros_like(value) if answer.error is None else torch.as_tensor(answer.error)


def _share(s: Subject, g: Generator) -> Pair:
    return _pair(probability(s.blind, s.world.level.holds, draws=20_000, generator=g))


def _bound(s: Subject, x: Tensor, g: Generator) -> Pair:
    """log_prob of rows, drawn a few times over."""
    return mean_of_few(torch.stack([s.model.log_prob(x, generator=g).double() for _ in range(_OFTEN)]))


def _evidence(draws: Draws) -> Pair:
    return torch.tensor(draws.log_evidence, dtype=torch.float64), torch.tensor(draws.log_evidence_error, dtype=torch.float64)
