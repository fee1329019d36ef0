"""Events, products and entropies in closed form, against the sum over every cell of a finite domain, and in real columns."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import pofx
from pofx.ask.generic import expected_product, probability
from pofx.data.preparation import prepare
from pofx.domain import Domain, Variable
from pofx.domain import VariableKind as K
from pofx.errors import DataError, OptionError, Unavailable
from pofx.events import Among, Between, Event, Value, both, listed
from pofx.learn import run
from pofx.models.composed import assemble
from pofx.models.registry import family
from pofx.types import Kind

FINITE = Domain(
    (
        Variable("visits", K.COUNT, lower=2, upper=8),
        Variable("colour", K.CATEGORICAL, levels=("r", "g", "b")),
        Variable("share", K.INTERVAL, lower=0.0, upper=2.0, resolution=0.25),
        Variable("sex", K.BINARY, levels=("f", "m")),
    )
)
FAMILIES = ("independent", "latent_class", "hclt", "chow_liu", "histogram", "density_tree")
CELLS = torch.cartesian_prod(*(v for variable in FINITE.variables if (v := listed(variable)) is not None))
EVENTS = (
    {0: Between(4, 6, (False, True))},
    {0: Between(3.5), 1: Among((0.0, 2.0))},
    {2: Between(0.5, 1.3), 3: Among((0.0, 1.0))},
    {1: Among((1.0, 2.0)), 2: Among((0.25, 1.0, 1.75)), 0: Between(upper=7, closed=(True, False))},
)


def rows(n: int = 300) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    z, e = torch.randn(n, generator=g), torch.randn(4, n, generator=g)
    visits = (5 + 1.5 * z + e[0]).round().clamp(2, 8)
    colour = (1 + z + e[1]).round().clamp(0, 2)
    share = ((4 + 1.5 * z + e[2]).round() / 4).clamp(0.25, 1.75)
    return torch.stack((visits, colour, share, (z + e[3] > 0).double()), 1)


@pytest.fixture(scope="module")
def models():
    return {name: fitted(name) for name in FAMILIES}


def fitted(name: str):
    """Learned in a moment, in double precision."""
    options = {"hclt": {"max_epochs": 5}, "latent_class": {"components": 3, "smoothing": 3.0}}
    config = family(name).configure(options.get(name, {}))
    model = assemble(config, FINITE, rows(), prepare(FINITE, rows(), config.takes)).double()
    run(model, rows()[50:], config=config, holdout=rows()[:50])
    return model.double().eval()


def masses(model) -> torch.Tensor:
    """P of every cell of the domain: the density times the width of the grid's cell."""
    with torch.no_grad():
        return model.log_prob(CELLS).exp() * FINITE["share"].resolution


@pytest.mark.parametrize("conditions", EVENTS, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_restriction_is_the_table_renormalised(models, name, conditions):
    model, event = models[name], Event(FINITE, conditions)
    p, holds = masses(model), event.holds(CELLS)
    part, log_p = model.restrict(event)
    total = p.sum()  # of a grid between two ends, all but what rounding to a grid puts beyond them
    assert abs(float(total) - 1) < 1e-9
    assert math.exp(log_p) == pytest.approx(float(p[holds].sum()), abs=1e-12 + abs(float(total) - 1))
    expected = torch.where(holds, p / math.exp(log_p), 0.0)
    torch.testing.assert_close(masses(part), expected, atol=1e-12, rtol=1e-10)
    answer = probability(model, event, generator=torch.Generator())
    assert answer.kind is Kind.EXACT
    assert float(answer) == pytest.approx(math.exp(log_p), rel=1e-12)
    mean = expected @ CELLS / expected.sum()
    rounding = torch.tensor([0.0, 0.0, 0.13, 0.0])  # a rounded law reports the mean of the value before rounding
    assert bool(((part.mean() - mean).abs() <= rounding + 1e-9).all())


@pytest.mark.parametrize("name", FAMILIES)
def test_restricted_twice_is_to_both_and_values_may_come_first_or_last(models, name):
    model = models[name]
    a, b = Event(FINITE, {0: Between(4, 7), 1: Among((0.0, 1.0))}), Event(FINITE, {0: Between(5), 3: Among((0.0, 1.0))})
    whole = Event(FINITE, {0: both(a.conditions[0], b.conditions[0]), 1: a.conditions[1]})
    (first, log_a), (one, log_p) = model.restrict(a), model.restrict(whole)
    second, log_b = first.restrict(b)
    assert log_a + log_b == pytest.approx(log_p, abs=1e-11)
    torch.testing.assert_close(masses(second), masses(one), atol=1e-12, rtol=1e-10)
    point = torch.tensor([torch.nan, torch.nan, 1.0, torch.nan])
    before = model.conditional(point).restrict(Event(FINITE.select([0, 1, 3]), whole.conditions))[0]
    after = one.conditional(point)
    some = CELLS[:, [0, 1, 3]].unique(dim=0)
    torch.testing.assert_close(before.log_prob(some), after.log_prob(some), atol=1e-10, rtol=1e-10)
    kept = one.marginal([2, 0])
    torch.testing.assert_close(kept.log_prob(CELLS[:, [2, 0]]).exp(), one.log_prob(holes(CELLS, [2, 0])).exp(), atol=1e-12, rtol=1e-10)


def holes(x: torch.Tensor, keep: list[int]) -> torch.Tensor:
    out = torch.full_like(x, torch.nan)
    out[:, keep] = x[:, keep]
    return out


@pytest.mark.parametrize("name", FAMILIES)
def test_products_of_functions(models, name):
    """Of one sign and of both, of one variable and of all: against the sum over the table."""
    model, p = models[name], masses(models[name])
    f = {0: lambda v: v - 5, 1: lambda v: v.square(), 2: lambda v: 1 - 2 * v, 3: lambda v: torch.where(v == 1, 0.0, -3.0)}
    for some in ([0], [1], [0, 2], [0, 1, 2, 3]):
        answer = expected_product(model, {d: f[d] for d in some}, generator=torch.Generator())
        expected = float((p * torch.stack([f[d](CELLS[:, d]) for d in some]).prod(0)).sum())
        assert answer.kind is Kind.EXACT
        assert float(answer) == pytest.approx(expected, abs=1e-9)
    assert float(expected_product(model, {0: torch.zeros_like, 1: f[1]}, generator=torch.Generator())) == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_entropy_is_that_of_the_table(models, name):
    for model in (models[name], models[name].restrict(Event(FINITE, EVENTS[1]))[0]):
        if model.answers("entropy") is Kind.NONE:
            with pytest.raises(Unavailable, match=r"entropy: no closed form.* approximately: the mean of -log_prob"):
                model.entropy()
            continue
        p = masses(model)
        log_p = torch.where(p > 0, p, 1.0).log() - math.log(FINITE["share"].resolution)
        assert model.entropy() == pytest.approx(float(-(p * log_p).sum()), abs=1e-9)


def test_who_has_an_entropy_in_closed_form(models):
    closed = {name for name, model in models.items() if model.answers("entropy") is Kind.EXACT}
    assert closed == {"chow_liu", "histogram", "density_tree"}  # the law of a rounded share has none: `independent` refuses


def test_refusals_have_sentences(models):
    model = models["hclt"]
    with pytest.raises(OptionError, match="fixes 'sex' to a value: `conditional` takes values"):
        model.restrict(Event(FINITE, {3: Value(1.0)}))
    with pytest.raises(OptionError, match="the event is over a, the model over visits"):
        model.restrict(Event(Domain((Variable("a", K.REAL),)), {0: Between(0.0)}))
    with pytest.raises(Unavailable, match=r"visits in \[9, inf\) has probability 0"):
        model.restrict(Event(FINITE, {0: Between(9.0)}))
    with pytest.raises(DataError, match="not finite at 2"):
        expected_product(model, {0: lambda v: 1 / (v - 2)}, generator=torch.Generator())
    with pytest.raises(OptionError, match="a function of one column or more"):
        expected_product(model, {}, generator=torch.Generator())


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_follow_the_restriction(models, name):
    """Chi-square over the cells of two variables: a right sampler fails once in a million runs."""
    part, n = models[name].restrict(Event(FINITE, EVENTS[1]))[0], 4000
    x = part.sample(n, generator=torch.Generator().manual_seed(1))
    pairs, place = torch.cat((CELLS, x))[:, :2].unique(dim=0, return_inverse=True)
    p = torch.zeros(len(pairs)).index_add_(0, place[: len(CELLS)], masses(part))
    counts = place[len(CELLS) :].bincount(minlength=len(pairs))
    assert bool((counts[p == 0] == 0).all())
    enough = p * n >= 5
    chi2 = ((counts - n * p).square() / (n * p))[enough].sum()
    free = int(enough.sum())
    assert float(chi2) < free + 2 * math.sqrt(free * 13.8) + 2 * 13.8  # Laurent and Massart: probability below e^-13.8 = 1e-6


# -- real columns ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table():
    g = np.random.default_rng(0)
    z = g.normal(size=400)
    saved = np.where(g.random(400) < 0.3, 0.0, np.exp(z + g.normal(size=400)))
    return pd.DataFrame({"z": z + 0.3 * g.normal(size=400), "saved": saved, "rounded": (10 * z).round(), "kind": np.where(z > 0, "a", "b")})


@pytest.mark.parametrize("name", ["hclt", "chow_liu", "latent_class"])
def test_a_real_column_integrates_to_one_between_ends(table, name):
    """The density of the marginal given an interval, by the midpoint rule; nothing outside; far tails have finite answers."""
    p = pofx.fit(table, name, **{"hclt": {"max_epochs": 5}, "latent_class": {"components": 3, "smoothing": 3.0}}.get(name, {}))
    part = p.conditional(z=Between(-0.5, 1.25), kind="a").marginal("z")
    x = torch.linspace(-0.5, 1.25, 4001)[1:] - 1.75 / 8000
    density = np.exp(np.asarray(part.log_prob(pd.DataFrame({"z": x.numpy()}))))
    assert density.mean() * 1.75 == pytest.approx(1.0, abs=1e-3 if name == "chow_liu" else 1e-5)  # chow_liu's steps fall between points
    assert np.isneginf(np.asarray(part.log_prob(pd.DataFrame({"z": [-0.51, 1.26]})))).all()
    drawn = part.sample(200, seed=0)["z"]
    assert drawn.between(-0.5, 1.25).all()
    spiked = [float(p.probability({"saved": Between(0.0, closed=(c, True))})) for c in (True, False)]
    assert spiked[0] == pytest.approx(1.0, abs=1e-6)
    assert spiked[0] - spiked[1] == pytest.approx(float(p.probability({"saved": 0.0})), abs=1e-6)
    far = p.conditional(z=Between(25.0))
    assert np.isfinite(far.mean().value if far.questions["mean"] is Kind.EXACT else far.sample(5, seed=0)["z"]).all()
    assert (far.sample(20, seed=0)["z"] >= 25).all()


def test_kernels_between_ends(table):
    """Mean by the midpoint rule; the mode's density is at least that of draws; a second interval narrows the first."""
    p = pofx.fit(table[["z", "rounded"]].assign(other=lambda t: t["z"] ** 2 + 0.1 * t["rounded"]), "kde")
    q = p.conditional(z=Between(0.2, 0.9), other=Between(0.5)).conditional(z=Between(0.4)).marginal("z")
    x = torch.linspace(0.4, 0.9, 2001)[1:] - 0.5 / 4000
    density = np.exp(np.asarray(q.log_prob(pd.DataFrame({"z": x.numpy()}))))
    assert density.mean() * 0.5 == pytest.approx(1.0, abs=1e-6)
    assert float(q.mean().value[0]) == pytest.approx(float((density * x.numpy()).mean() * 0.5), abs=1e-6)
    assert q.sample(300, seed=0)["z"].between(0.4, 0.9).all()
    best = q.model.log_prob(q.model.mode()[None])
    assert float(best[0]) >= np.asarray(q.log_prob(q.sample(500, seed=1))).max() - 1e-4


def test_products_and_entropy_in_the_users_words(table):
    p = pofx.fit(table, "chow_liu")
    exact = p.expectation({"kind": lambda level: 1.0 if level == "a" else 0.0})
    assert exact.kind is Kind.EXACT
    assert float(exact) == pytest.approx(float(p.probability({"kind": "a"})), rel=1e-12)
    drawn = p.expectation({"kind": lambda level: 1.0 if level == "a" else -1.0, "z": lambda z: z}, 4000)
    assert drawn.kind is Kind.ESTIMATE
    assert drawn.error is not None
    assert p.entropy().kind is Kind.EXACT
    q = pofx.fit(table, "latent_class", components=2)
    estimate = q.entropy(2000, seed=1)
    assert estimate.kind is Kind.ESTIMATE
    assert float(estimate.error) > 0
    bound = pofx.fit(table, "gaussian").entropy(500)
    assert "an upper bound" in bound.how


# -- normals: the probability of an interval, though what is left of them is none ------------------


@pytest.mark.parametrize("evidence", [{}, {"x2": 0.3}])
def test_a_gaussian_knows_the_probability_of_an_interval(evidence):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(500, 3, generator=g) @ torch.tensor([[1.0, 0.5, 0.2], [0.0, 0.8, -0.4], [0.0, 0.0, 0.5]]) + 1
    p = pofx.fit(x.numpy(), "gaussian", schema=Domain.real(3))
    q = p.conditional(evidence) if evidence else p
    found = q.probability({"x0": pofx.Between(-0.5, 1.2)})
    law = q.marginal("x0").model
    line = torch.linspace(-0.5, 1.2, 20_001)[:, None]
    assert found.kind is Kind.EXACT
    assert float(found) == pytest.approx(float(torch.trapezoid(law.log_prob(line).exp(), line[:, 0])), abs=1e-8)
    far = q.probability({"x0": pofx.Between(30.0)})
    assert far.kind is Kind.EXACT
    assert 0 < float(far) < 1e-50


@pytest.mark.parametrize(("covariance", "kind"), [("full", Kind.ESTIMATE), ("diagonal", Kind.EXACT)])
def test_two_intervals_at_once_are_closed_where_components_are_diagonal(covariance, kind):
    g = torch.Generator().manual_seed(1)
    x = torch.cat((torch.randn(200, 2, generator=g) - 2, torch.randn(300, 2, generator=g) + 1))
    p = pofx.fit(x.numpy(), "gmm", components=2, covariance=covariance, schema=Domain.real(2))
    one = p.probability({"x0": pofx.Between(-1.0, 2.0)})
    both = p.probability({"x0": pofx.Between(-1.0, 2.0), "x1": pofx.Between(0.0)})
    assert (one.kind, both.kind) == (Kind.EXACT, kind)
    axis = torch.arange(-1.0, 2.0, 0.01) + 0.005
    grid = torch.cartesian_prod(axis, torch.arange(0.0, 12.0, 0.01) + 0.005)
    truth = float(p.model.log_prob(grid).exp().sum() * 1e-4)
    allowed = 1e-4 if kind is Kind.EXACT else 4.9 * float(both.error) + 1e-4
    assert float(both) == pytest.approx(truth, abs=allowed)
    assert float(one) == pytest.approx(float(p.marginal("x0").model.log_prob(axis[:, None]).exp().sum() * 0.01), abs=1e-4)
