"""The generic answers against closed forms and enumerations; every method by name.

Statistical comparisons are at 5 standard errors: each fails in under 1 in 10^6 runs of another seed, were errors normal
and known; the seeds are fixed.
"""

import math
from itertools import product

import numpy as np
import pytest
import torch

from pofx.ask.generic import (
    METHODS,
    Among,
    Between,
    Event,
    Value,
    conditional,
    drop,
    expectation,
    log_marginal,
    mode,
    mutual_information,
    posterior,
    probability,
)
from pofx.ask.generic.particles import Within
from pofx.ask.generic.resampling import first
from pofx.ask.generic.space import coordinates, target
from pofx.domain import Domain, Variable
from pofx.domain import VariableKind as K
from pofx.errors import DataError, OptionError, Unavailable
from pofx.models.base import Model
from pofx.models.classical.gaussian import GaussianConfig
from pofx.models.classical.gmm import GaussianMixtureConfig
from pofx.models.classical.latent_class import LatentClassConfig
from pofx.samplers import RandomWalk
from pofx.types import Kind

SIGMAS = 5.0
MU = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
FACTOR = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0.3, -0.5, 1.0]], dtype=torch.float64)
DISCRETE = Domain(
    (
        Variable("a", K.CATEGORICAL, levels=("r", "g", "b")),
        Variable("b", K.BINARY, levels=(0, 1)),
        Variable("c", K.COUNT, lower=0, upper=3),
        Variable("d", K.ORDINAL, levels=("s", "m", "l")),
    )
)
MIXED = Domain(
    (
        Variable("height", K.POSITIVE),
        Variable("weight", K.REAL, resolution=0.5),
        Variable("saved", K.REAL, spike=0.0),
        Variable("visits", K.COUNT, lower=0.0),
        Variable("share", K.INTERVAL, lower=0.0, upper=1.0),
        Variable("colour", K.CATEGORICAL, levels=("red", "green", "blue")),
    )
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian() -> Model:
    model = GaussianConfig().build(Domain.real(3))
    model.mu, model.covariance = MU.clone(), FACTOR @ FACTOR.T
    return model


def learned(config, domain: Domain, x: torch.Tensor) -> Model:
    model = config.build(domain)
    for _ in model.steps(x[40:], holdout=x[:40], generator=generator()):
        pass
    return model


def two_clouds(n: int = 600) -> torch.Tensor:
    g = generator()
    at = torch.where(torch.rand(n, 1, generator=g) < 0.4, torch.tensor([-2.0, 0.0, 1.0]), torch.tensor([1.5, 1.0, -1.0]))
    return at + torch.randn(n, 3, generator=g) @ torch.diag(torch.tensor([0.7, 1.0, 0.5]))


def levels(n: int = 800) -> torch.Tensor:
    g = generator()
    z = torch.randn(n, generator=g)
    e = torch.randn(4, n, generator=g)
    columns = (
        (z + e[0]).abs().floor().clamp(max=2),
        z + e[1] > 0,
        (z + e[2] + 1.5).round().clamp(0, 3),
        (z + e[3] + 1).floor().clamp(0, 2),
    )
    return torch.stack([column.double() for column in columns], 1)


def mixed(n: int = 600) -> torch.Tensor:
    g = generator()
    z = torch.randn(n, generator=g)
    e = torch.randn(6, n, generator=g) / 2
    columns = (
        (z + e[0]).exp(),
        ((z + e[1]) * 6).round() / 2,
        torch.where(torch.rand(n, generator=g) < 0.3, 0.0, z + e[2]),
        (z + e[3]).exp().round(),
        torch.sigmoid(z + e[4]),
        ((z + e[5]).abs() * 1.5).floor().clamp(max=2),
    )
    return torch.stack(columns, 1)


@pytest.fixture(scope="module")
def worlds():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    made = {
        "gaussian": gaussian(),
        "gmm": learned(GaussianMixtureConfig(components=2, covariance="full"), Domain.real(3), two_clouds()),
        "discrete": learned(LatentClassConfig(components=4), DISCRETE, levels()),
        "mixed": learned(LatentClassConfig(components=4), MIXED, mixed()),
    }
    torch.set_default_dtype(before)
    return made


def near(value, truth, error, sigmas: float = SIGMAS) -> None:
    value, truth, error = (torch.as_tensor(v, dtype=torch.float64) for v in (value, truth, error))
    assert bool(error.isfinite().all())
    off = ((value - truth).abs() - 1e-9 * (1 + truth.abs())).clamp_min(0) / error.clamp_min(1e-12)
    assert bool((off <= sigmas).all()), f"{value.tolist()} is {off.tolist()} standard errors {error.tolist()} from {truth.tolist()}"


def cells(domain: Domain) -> torch.Tensor:
    return torch.tensor(list(product(*(range(v.cardinality) for v in domain.variables))), dtype=torch.float64)


class Blind(Model):
    """A model that can not marginalise."""

    def __init__(self, base: Model) -> None:
        super().__init__(base.domain)
        self.base = base

    def _log_prob(self, x, c, generator):
        return self.base._log_prob(x, c, generator)

    def _sample(self, n, c, generator):
        return self.base._sample(n, c, generator)


# -- events ----------------------------------------------------------------------------------------


def test_an_event_says_which_rows_satisfy_it():
    event = Event.of(DISCRETE, {"a": {0.0, 2.0}, "c": Between(1, 3, (False, True)), "b": 1.0})
    x = torch.tensor([[0.0, 1, 2, 0], [1.0, 1, 2, 0], [2.0, 1, 1, 0], [2.0, 0, 3, 0], [2.0, 1, 3, torch.nan]])
    assert event.holds(x).tolist() == [True, False, False, False, True]
    assert event.fixed.tolist() == [False, True, False, False]
    assert event.as_point() is None
    assert event.sentence == "a in {r, b}, b = 1, c in (1, 3]"
    assert sorted(event.open) == [0, 2]


def test_a_point_is_an_event_and_back():
    point = torch.tensor([torch.nan, 2.0, torch.nan])
    event = Event.at(Domain.real(3), point)
    assert torch.equal(event.as_point().nan_to_num(7), point.nan_to_num(7))
    assert not event.has_mass
    assert Event.of(Domain.real(3), {"x1": {2.0}}).as_point() is not None
    with pytest.raises(DataError, match=r"needs shape \(3,\), got \(2,\)"):
        Event.at(Domain.real(3), point[:2])


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        ({"height": {1.0, 2.0}}, "'height' is continuous: a set of its values has probability 0"),
        ({"height": set()}, "'height' needs numbers, got"),
        ({"height": math.nan}, "'height' needs numbers"),
        ({"height": math.inf}, "a finite number"),
        ({"height": Between(2, 1)}, "the interval of 'height' is empty"),
        ({"height": Between(1, 1, (True, False))}, "the interval of 'height' is empty"),
        ({"colour": Between(0, 1)}, "the levels of 'colour' have no order"),
        ({"hight": 1.0}, "did you mean 'height'"),
    ],
)
def test_events_that_are_none_are_refused_in_a_sentence(known, sentence):
    with pytest.raises(OptionError, match=sentence):
        Event.of(MIXED, known)


def test_rounded_and_spiked_variables_take_values_with_mass():
    assert Event.of(MIXED, {"weight": 1.5, "saved": 0.0, "visits": 3.0}).has_mass
    assert not Event.of(MIXED, {"saved": 0.5}).has_mass
    assert Event.of(MIXED, {"weight": {1.0, 1.5}}).holds(torch.tensor([[1, 1.5 + 1e-9, 0, 0, 0, 0]])).all()


# -- conditionals: every method against the truth --------------------------------------------------


@pytest.mark.parametrize("method", ["exact", "sir", "hmc", "gibbs"])
@pytest.mark.parametrize("world", ["gaussian", "gmm"])
def test_given_a_value_of_reals(worlds, world, method):
    model = worlds[world]
    point = torch.tensor([1.3, torch.nan, torch.nan])
    truth, log_p = model.conditional(point), float(model.log_prob(point))
    draws = conditional(model, Event.at(model.domain, point), method=method, generator=generator(3))
    mean, error = draws.mean
    near(mean[1:], truth.mean(), error[1:])
    near(draws.log_evidence, log_p, draws.log_evidence_error)
    second, its_error = draws.expectation(lambda x: x[:, 1] * x[:, 2])
    reference = truth.sample(400_000, generator=generator(4)).prod(1)
    near(second, reference.mean(), (its_error.square() + reference.var() / len(reference)).sqrt())
    assert draws.rows.shape == (2000, 3)
    assert bool((draws.rows[:, 0] - 1.3).abs().max() < 1e-12)
    assert draws.kind is (Kind.EXACT if method == "exact" else Kind.ESTIMATE)
    assert draws.ess > 300


@pytest.mark.parametrize("method", ["rejection", "sir", "hmc", "gibbs"])
def test_given_an_interval_of_reals(worlds, method):
    """x0 > 2: one variable cut off, the others follow by regression; E[x0 | x0 > t] = mu + pdf / tail."""
    event = Event.of(Domain.real(3), {"x0": Between(2.0)})
    tail = 0.5 * math.erfc(1 / math.sqrt(2))
    hazard = math.exp(-0.5) / math.sqrt(2 * math.pi) / tail
    slope = (FACTOR @ FACTOR.T)[:, 0]
    draws = conditional(worlds["gaussian"], event, method=method, generator=generator(1))
    mean, error = draws.mean
    near(mean, MU + slope * hazard, error)
    near(draws.log_evidence, math.log(tail), draws.log_evidence_error)
    assert bool(event.holds(draws.rows).all())


def test_given_nearly_a_value_without_a_density(worlds):
    """A tolerance tends to the truth, and says how wide it is."""
    point = torch.tensor([1.3, torch.nan, torch.nan])
    draws = conditional(worlds["gaussian"], Event.at(Domain.real(3), point), method="abc", generator=generator(1))
    truth = worlds["gaussian"].conditional(point).mean()
    mean, error = draws.mean
    near(mean[1:], truth, error[1:] + 0.02)
    assert "within 0.0" in draws.how
    assert "standard deviations" in draws.how
    assert bool((draws.rows[:, 0] == 1.3).all())


@pytest.mark.parametrize("method", ["exact", "rejection", "sir", "gibbs", "abc"])
@pytest.mark.parametrize("known", [{"a": 1.0, "b": 1.0}, {"a": {0.0, 2.0}, "c": Between(1, 2)}, {"c": Between(2)}])
def test_given_levels_and_counts(worlds, method, known):
    """All 72 cells enumerated."""
    model, event = worlds["discrete"], Event.of(DISCRETE, known)
    x = cells(DISCRETE)
    p = model.log_prob(x).exp() * event.holds(x)
    draws = conditional(model, event, method=method, generator=generator(2))
    mean, error = draws.mean
    near(mean, (p[:, None] * x).sum(0) / p.sum(), error)
    if draws.log_evidence is not None:
        near(draws.log_evidence, p.sum().log(), draws.log_evidence_error)
    assert bool(event.holds(draws.rows).all())


GIVEN_A_TABLE = {
    "levels": {"colour": 1.0, "visits": 2.0},
    "a rounded number": {"weight": 1.0},
    "a spike": {"saved": 0.0},
    "a number beside the spike": {"saved": 0.7, "height": 1.2},
    "nothing but a share": {"share": 0.4},
}


@pytest.mark.parametrize("method", ["exact", "sir"])
@pytest.mark.parametrize("known", GIVEN_A_TABLE)
def test_given_parts_of_a_table(worlds, known, method):
    """Reals, grids, spikes, counts without end, shares and levels at once; moments of bounded functions, so that errors are sound."""
    model, event = worlds["mixed"], Event.of(MIXED, GIVEN_A_TABLE[known])
    truth = conditional(model, event, method="exact", draws=100_000, generator=generator(7))
    draws = conditional(model, event, method=method, generator=generator(2))

    def bounded(x):
        return torch.cat((torch.atan(x), x[:, :4] > x[:, :4].new_tensor([1.0, 0.2, 0.1, 1.5]), x[:, 2:3] == 0), 1)

    value, error = draws.expectation(bounded)
    reference, its_error = truth.expectation(bounded)
    near(value, reference, (error.square() + its_error.square()).sqrt())
    near(draws.log_evidence, truth.log_evidence, draws.log_evidence_error)
    assert draws.rows.shape == (2000, 6)


@pytest.mark.slow
def test_gibbs_over_levels_counts_without_end_grids_and_reals_at_once(worlds):
    model, event = worlds["mixed"], Event.of(MIXED, {"saved": 0.0, "colour": Among((0.0, 1.0))})
    truth = conditional(model, event, method="exact", draws=100_000, generator=generator(7))
    draws = conditional(model, event, method="gibbs", generator=generator(2))
    value, error = draws.expectation(torch.atan)
    reference, its_error = truth.expectation(torch.atan)
    near(value, reference, (error.square() + its_error.square()).sqrt())
    assert draws.rhat < 1.1


PARTS_OF_A_TABLE = (
    {"saved": Between(0.1, 2.0)},
    {"saved": Between(-1.0, 1.0), "height": Between(0.5, 2.0)},
    {"weight": Between(0.5, 3.0), "visits": Between(2.0)},
    {"weight": {0.0, 0.5, 2.0}, "share": Between(0.0, 0.5), "colour": {0.0, 2.0}},
)


@pytest.mark.parametrize("known", PARTS_OF_A_TABLE)
def test_given_intervals_and_sets_in_a_table(worlds, known):
    """Weights of the density against counting: grids, atoms and cut-off supports have the right measure."""
    model, event = worlds["mixed"], Event.of(MIXED, known)
    counted = conditional(model, event, method="rejection", draws=20_000, generator=generator(7))
    weighed = conditional(model, event, method="sir", generator=generator(2))
    assert bool(event.holds(weighed.rows).all())
    near(weighed.log_evidence, counted.log_evidence, math.hypot(weighed.log_evidence_error, counted.log_evidence_error))
    value, error = weighed.expectation(torch.atan)
    reference, its_error = counted.expectation(torch.atan)
    near(value, reference, (error.square() + its_error.square()).sqrt())


def test_the_first_good_method_is_taken(worlds):
    def taken(world, known):
        return conditional(worlds[world], Event.of(worlds[world].domain, known), generator=generator(0)).method

    assert taken("gaussian", {"x0": 1.0}) == "exact"
    assert taken("discrete", {"a": {0.0, 1.0}}) == "exact"
    assert taken("gaussian", {"x0": Between(0.0, 1.0)}) == "rejection"
    assert taken("gaussian", {"x0": Between(0.0, 1.0), "x1": 0.2}) == "sir"
    assert taken("gaussian", {"x0": Between(6.5)}) == "sir"


class Sampler(Model):
    """A model that draws and knows no density: (z, z + e)."""

    density = Kind.NONE

    def __init__(self) -> None:
        super().__init__(Domain.real(2))

    def _log_prob(self, x, c, generator):
        raise Unavailable("log_prob", "Sampler")

    def _sample(self, n, c, generator):
        z = torch.randn(n, 1, generator=generator, dtype=torch.float64)
        return torch.cat((z, z + torch.randn(n, 1, generator=generator, dtype=torch.float64)), 1)


def test_a_model_without_density_answers_by_its_draws():
    given = Event.of(Domain.real(2), {"x1": 1.0})
    draws = conditional(Sampler(), given, generator=generator(0))
    assert draws.method == "abc"
    near(draws.mean[0][0], 0.5, draws.mean[1][0] + 0.02)
    assert conditional(Sampler(), Event.of(Domain.real(2), {"x1": Between(1.0)}), generator=generator(0)).method == "rejection"
    with pytest.raises(Unavailable, match="it has no density"):
        conditional(Sampler(), given, method="sir", generator=generator(0))
    with pytest.raises(Unavailable, match="kind none"):
        conditional(Sampler(), given, method="hmc", generator=generator(0))
    with pytest.raises(Unavailable, match="it has no density"):
        mode(Sampler(), generator=generator(0))


@pytest.mark.parametrize("method", [None, *METHODS])
def test_evidence_of_probability_zero(worlds, method):
    with pytest.raises(Unavailable, match="has probability 0"):
        conditional(worlds["mixed"], Event.of(MIXED, {"height": -1.0}), method=method, generator=generator(0))
    with pytest.raises(Unavailable, match="has probability 0"):
        conditional(worlds["discrete"], Event.of(DISCRETE, {"a": 5.0}), method=method, generator=generator(0))


def test_refusals_are_sentences(worlds):
    normal, table = worlds["gaussian"], worlds["mixed"]
    with pytest.raises(OptionError, match="no method 'hcm'; did you mean 'hmc'"):
        conditional(normal, Event.of(normal.domain, {"x0": 1.0}), method="hcm", generator=generator(0))
    with pytest.raises(OptionError, match="fixes every variable"):
        conditional(normal, Event.at(normal.domain, torch.zeros(3)), generator=generator(0))
    with pytest.raises(OptionError, match="the event is over x0, x1, x2, the model over height"):
        conditional(table, Event.of(normal.domain, {"x0": 1.0}), generator=generator(0))
    with pytest.raises(OptionError, match="at least 1, got 0"):
        conditional(normal, Event.of(normal.domain, {"x0": 1.0}), draws=0, generator=generator(0))
    with pytest.raises(Unavailable, match="'weight' is discrete, lives on a grid or has a spike"):
        conditional(table, Event.of(MIXED, {"height": 1.0}), method="hmc", generator=generator(0))
    with pytest.raises(Unavailable, match="'saved' has a spike and values beside it"):
        conditional(table, Event.of(MIXED, {"height": 1.0}), method="gibbs", generator=generator(0))
    with pytest.raises(Unavailable, match="never takes a value given in advance"):
        conditional(normal, Event.of(normal.domain, {"x0": 1.0}), method="rejection", generator=generator(0))
    with pytest.raises(Unavailable, match="under 10"):
        conditional(normal, Event.of(normal.domain, {"x0": Between(4.9)}), method="rejection", draws=1000, generator=generator(0))


def test_equal_generators_give_equal_draws(worlds):
    for method in ("rejection", "sir", "hmc", "gibbs", "smc", "abc"):
        event = Event.of(Domain.real(3), {"x0": Between(0.0, 1.0)} if method == "rejection" else {"x0": 1.0})
        first, again = (conditional(worlds["gaussian"], event, method=method, draws=200, generator=generator(5)) for _ in range(2))
        assert torch.equal(first.rows, again.rows)


# -- conditionals by particles: errors are the spread of 20 islands, 8 of which Student's law on 19 degrees leaves with 2 in 10^7 ---

SPREADS = 8.0


@pytest.mark.parametrize("known", [{"x0": 7.0}, {"x0": Between(6.5), "x2": -1.0}], ids=str)
def test_particles_reach_evidence_six_deviations_away(worlds, known):
    """Moments by quadrature over x0: the others follow by regression."""
    model, covariance = worlds["gaussian"], FACTOR @ FACTOR.T
    draws = conditional(model, Event.of(model.domain, known), method="smc", generator=generator(3))
    x = torch.full((40_001, 3), torch.nan)
    ends = known["x0"] if isinstance(known["x0"], Between) else Between(known["x0"], known["x0"])
    x[:, 0] = torch.linspace(ends.lower, min(ends.upper, 12.0), len(x))
    width = (float(x[-1, 0] - x[0, 0]) / (len(x) - 1)) or 1 / len(x)
    if "x2" in known:
        x[:, 2] = known["x2"]
    p = model.log_prob(x).exp()
    near(draws.log_evidence, (p.sum() * width).log(), draws.log_evidence_error + 1e-3, SPREADS)
    seen = [d for d in range(3) if not bool(x[0, d].isnan())]
    slope = torch.linalg.solve(covariance[seen][:, seen], covariance[seen])
    means = MU + (x[:, seen] - MU[seen]) @ slope
    mean, error = draws.mean
    near(mean, (p[:, None] * means).sum(0) / p.sum(), error, SPREADS)
    assert draws.ess > 300
    assert bool(Event.of(model.domain, known).holds(draws.rows).all())


@pytest.mark.parametrize("known", [{"a": 1.0, "b": 1.0}, {"a": {0.0, 2.0}, "c": Between(1, 2)}])
def test_particles_over_levels_and_counts(worlds, known):
    model, event, x = worlds["discrete"], Event.of(DISCRETE, known), cells(DISCRETE)
    p = model.log_prob(x).exp() * event.holds(x)
    draws = conditional(model, event, method="smc", generator=generator(2))
    mean, error = draws.mean
    near(mean, (p[:, None] * x).sum(0) / p.sum(), error, SPREADS)
    near(draws.log_evidence, p.sum().log(), draws.log_evidence_error, SPREADS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "known", [{"colour": 1.0, "visits": 2.0}, {"height": 30.0}, {"weight": Between(0.5, 3.0), "share": Between(0.0, 0.5)}], ids=str
)
def test_particles_over_a_table_with_grids_spikes_and_counts_without_end(worlds, known):
    model, event = worlds["mixed"], Event.of(MIXED, known)
    draws = conditional(model, event, method="smc", generator=generator(2))
    truth = conditional(model, event, method="exact" if event.as_point() is not None else "rejection", draws=50_000, generator=generator(7))

    def bounded(x):
        return torch.cat((torch.atan(x), x[:, 2:3] == 0), 1)

    value, error = draws.expectation(bounded)
    reference, its_error = truth.expectation(bounded)
    near(value, reference, (error.square() + its_error.square()).sqrt(), SPREADS)
    near(draws.log_evidence, truth.log_evidence, math.hypot(draws.log_evidence_error, truth.log_evidence_error), SPREADS)


def test_moves_within_leave_exact_draws_where_they_are(worlds):
    """Atoms, cells and counts by turns: a ratio that forgot a measure would empty or fill the atom."""
    model, event = worlds["mixed"], Event.of(MIXED, {"share": 0.5})
    moving, x = coordinates(event), conditional(model, event, method="exact", draws=20_000, generator=generator(0)).rows
    q = first(event, moving, model.sample(2000, generator=generator(1)).double(), generator(1), centres=20)
    kernel, u, log_p = Within(q, moving, RandomWalk()), q.map.inverse(x), q.map.log_density(target(model, event))
    g = generator(2)
    for _ in range(5):
        moved = kernel(log_p, u, u.std(0), generator=g)
        u = moved.x
    y = q.map(u)[0]
    assert bool((y != x).any(0)[[0, 1, 2, 3, 5]].all())
    assert bool(moved.acceptance[[0, 1, 3]].gt(0.05).all())
    stays, is_now = (torch.cat((torch.atan(v), v[:, 2:3] == 0, v[:, 1:2] > 0.2, v[:, 3:4] > 1.5), 1) for v in (x, y))
    near(is_now.mean(0), stays.mean(0), (stays.var(0) / len(x) + is_now.var(0) / len(x)).sqrt())


class TwoPeaks(Model):
    """x0 ~ N(0, 1); the others 0.3 N(-m, 0.4^2) + 0.7 N(m, 0.4^2) together, m = 1.5 in each."""

    def _parts(self, x):
        peaks = (0.3, -1.5), (0.7, 1.5)
        normal = torch.distributions.Normal
        return [math.log(w) + normal(m, 0.4).log_prob(x[:, 1:]).sum(-1) + normal(0.0, 1.0).log_prob(x[:, 0]) for w, m in peaks]

    def _log_prob(self, x, c, generator):
        return torch.logaddexp(*self._parts(x))

    def _sample(self, n, c, generator):
        side = torch.where(torch.rand(n, 1, generator=generator) < 0.3, -1.5, 1.5)
        x = side + 0.4 * torch.randn(n, len(self.domain), generator=generator)
        x[:, 0] = (x[:, 0] - side[:, 0]) / 0.4
        return x


@pytest.mark.slow
def test_particles_weigh_peaks_that_chains_and_weights_can_not():
    """Twenty variables, five deviations out: no chain passes between the peaks, and no proposal of sir covers both."""
    model, event = TwoPeaks(Domain.real(20)), Event.of(Domain.real(20), {"x0": 5.0})
    draws = conditional(model, event, draws=500, generator=generator(3))
    assert draws.method == "smc"
    share, error = draws.expectation(lambda x: (x[:, 1] > 0).double())
    near(share, 0.7, error, SPREADS)
    assert float(error) < 0.1
    near(draws.log_evidence, -0.5 * 25 - 0.5 * math.log(2 * math.pi), draws.log_evidence_error, SPREADS)


def test_particles_refuse_what_they_can_not_weigh(worlds):
    class Drawn(Blind):
        density = Kind.BOUND

    point = torch.tensor([1.3, torch.nan, torch.nan])
    with pytest.raises(Unavailable, match="smc: its log_prob is of kind bound, not a fixed function"):
        conditional(Drawn(worlds["gaussian"]), Event.at(Domain.real(3), point), method="smc", generator=generator(0))
    draws = conditional(WithoutConstant(worlds["gaussian"]), Event.at(Domain.real(3), point), method="smc", generator=generator(0))
    near(draws.mean[0][1:], worlds["gaussian"].conditional(point).mean(), draws.mean[1][1:], SPREADS)
    assert draws.log_evidence is None


# -- expectations and probabilities ----------------------------------------------------------------


def test_expectations_with_and_without_control_variates(worlds):
    model = worlds["gaussian"]
    square = expectation(model, lambda x: x[:, 0] * x[:, 1], generator=generator(0))
    near(square.value, (FACTOR @ FACTOR.T)[0, 1] + MU[0] * MU[1], square.error)
    plain = (model.sample(10_000, generator=generator(0)).double()[:, :2]).prod(1).std() / 100
    assert float(square.error) < 0.95 * float(plain)
    linear = expectation(model, lambda x: torch.stack((x.sum(1), 3 * x[:, 0] + 1), 1), generator=generator(0))
    near(linear.value, [float(MU.sum()), 4.0], 1e-9)
    assert linear.kind is Kind.ESTIMATE
    assert "leaves 0%" in linear.how


def test_control_variates_keep_their_error_honest(worlds):
    """Of 200 runs the standardised errors have variance 1 within 5 sigma."""
    model, truth = worlds["gaussian"], math.exp(MU[0] + 0.5)
    z = []
    for seed in range(200):
        answer = expectation(model, lambda x: x[:, 0].clamp(max=8).exp(), draws=400, generator=generator(seed))
        z.append((float(answer) - truth) / float(answer.error))
    assert abs(np.mean(z)) < 0.5
    assert 0.6 < np.var(z) < 1.6


def test_the_mean_of_a_variable_is_exact_where_the_model_knows_it(worlds):
    answer = expectation(worlds["gaussian"], 1, generator=generator(0))
    assert (float(answer), answer.kind) == (-1.0, Kind.EXACT)
    estimate = expectation(Sampler(), 1, generator=generator(0))
    near(estimate.value, 0.0, estimate.error)
    assert estimate.kind is Kind.ESTIMATE


def test_functions_that_are_no_numbers_are_refused(worlds):
    with pytest.raises(DataError, match=r"NaN at \d+ of 10000 rows"):
        expectation(worlds["gaussian"], lambda x: x[:, 0].log(), generator=generator(0))
    with pytest.raises(DataError, match="for each of 10000 rows, got shape"):
        expectation(worlds["gaussian"], lambda x: x[0], generator=generator(0))
    with pytest.raises(DataError, match="True or False"):
        probability(worlds["gaussian"], lambda x: x[:, 0], generator=generator(0))
    with pytest.raises(OptionError, match=r"0 \.\.\. 2, got 3"):
        expectation(worlds["gaussian"], 3, generator=generator(0))
    with pytest.raises(OptionError, match="at least 2"):
        expectation(worlds["gaussian"], lambda x: x[:, 0], draws=1, generator=generator(0))


def test_probabilities(worlds):
    above = Event.of(Domain.real(3), {"x0": Between(1.0)})
    half = probability(worlds["gaussian"], above, generator=generator(0))
    assert half.kind is Kind.EXACT
    near(half.value, 0.5, 1e-12)
    share = probability(worlds["gaussian"], above.holds, generator=generator(0))
    near(share.value, 0.5, share.error)
    event = Event.of(DISCRETE, {"a": {0.0, 2.0}, "c": Between(1, 2)})
    known = probability(worlds["discrete"], event, generator=generator(0))
    x = cells(DISCRETE)
    assert known.kind is Kind.EXACT
    near(known.value, worlds["discrete"].log_prob(x).exp()[event.holds(x)].sum(), 1e-12)
    counted = probability(worlds["discrete"], event.holds, generator=generator(0))
    near(counted.value, known.value, counted.error)
    point = probability(worlds["gaussian"], Event.of(Domain.real(3), {"x0": 1.0}), generator=generator(0))
    assert (float(point), point.kind) == (0.0, Kind.EXACT)


def test_a_rounded_value_has_the_probability_of_its_cell(worlds):
    model = worlds["mixed"]
    known = probability(model, Event.of(MIXED, {"weight": {0.5, 1.0}, "saved": 0.0}), generator=generator(0))
    assert known.kind is Kind.EXACT
    x = model.sample(200_000, generator=generator(1))
    share = (((x[:, 1] - 0.75).abs() < 0.3) & (x[:, 2] == 0)).double()
    near(known.value, share.mean(), share.std() / len(share) ** 0.5)
    single = probability(model, Event.of(MIXED, {"weight": 0.5}), generator=generator(0))
    near(single.value, ((x[:, 1] - 0.5).abs() < 0.1).double().mean(), math.sqrt(0.25 / len(x)))


def test_a_predicate_that_is_never_true_has_a_bound(worlds):
    answer = probability(worlds["gaussian"], lambda x: x[:, 0] > 50, draws=1000, generator=generator(0))
    assert float(answer) == 0
    assert "P < 0.003 at 95 %" in answer.how
    assert 0 < float(answer.error) < 0.003


# -- marginals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", ["gaussian", "gmm", "discrete", "mixed"])
def test_log_p_of_rows_with_holes(worlds, world):
    model = worlds[world]
    x = model.sample(6, generator=generator(3)).double()
    holes = x.clone()
    holes[0, 0] = holes[1, 1:] = holes[2, :2] = holes[3, 2] = holes[4] = torch.nan
    answer = log_marginal(model, holes, generator=generator(4))
    truth = model.log_prob(holes)
    near(answer.value, truth, torch.from_numpy(answer.error))
    assert answer.error[4] == answer.error[5] == 0
    assert answer.error[:4].max() < 0.2


def test_rows_with_holes_where_p_is_zero(worlds):
    answer = log_marginal(worlds["mixed"], torch.tensor([[-1.0] + [torch.nan] * 5]), generator=generator(0))
    assert answer.value[0] == -math.inf
    with pytest.raises(DataError, match="over 6 variables"):
        log_marginal(worlds["mixed"], torch.zeros(2, 5), generator=generator(0))
    with pytest.raises(Unavailable, match="kind none"):
        log_marginal(Sampler(), torch.tensor([[1.0, torch.nan]]), generator=generator(0))


def test_dropping_columns(worlds):
    x = drop(worlds["gaussian"], (2, 0), 20_000, generator=generator(0))
    near(x.mean(0), MU[[2, 0]], x.std(0) / len(x) ** 0.5)
    with pytest.raises(OptionError, match="keeps distinct variables"):
        drop(worlds["gaussian"], (0, 0), 5, generator=generator(0))


# -- modes -----------------------------------------------------------------------------------------


def test_modes(worlds):
    closed = mode(worlds["gaussian"], generator=generator(0))
    assert closed.kind is Kind.EXACT
    near(closed.x, MU, 1e-9)
    interval = mode(worlds["gaussian"], Event.of(Domain.real(3), {"x0": Between(-5.0, 4.0)}), generator=generator(0))
    assert interval.kind is Kind.BOUND
    near(interval.x, MU, 1e-3)
    x = cells(DISCRETE)
    event = Event.of(DISCRETE, {"a": {1.0, 2.0}})
    found = mode(worlds["discrete"], event, generator=generator(0))
    near(found.log_p, worlds["discrete"].log_prob(x)[event.holds(x)].max(), 1e-9)
    table = mode(worlds["mixed"], Event.of(MIXED, {"saved": 0.3, "share": 0.5}), generator=generator(0))
    drawn = conditional(worlds["mixed"], Event.of(MIXED, {"saved": 0.3, "share": 0.5}), generator=generator(1))
    assert table.log_p >= float(worlds["mixed"].log_prob(drawn.rows).max())
    assert float(table.x[2]) == 0.3


class Bounded(Blind):
    """log of the mean of 8 noisy weights around p, each exp(s e - s^2 / 2): a bound that is looser where s is larger."""

    density = Kind.BOUND

    def _log_prob(self, x, c, generator):
        noise = torch.randn(8, len(x), generator=generator, dtype=torch.float64)
        return self.base._log_prob(x, c, generator) + (0.5 * noise - 0.125).logsumexp(0) - math.log(8)


def bound_at(model: Model, x: torch.Tensor, times: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of a bound at each row and its standard error."""
    values = torch.stack([model.log_prob(x, generator=generator(100 + k)) for k in range(times)])
    return values.mean(0), values.std(0) / times**0.5


def test_the_mode_of_a_bound(worlds):
    """The noise of this bound is as large everywhere: its mode is that of p, and its value lies a known way below log p there."""
    bounded = Bounded(worlds["discrete"])
    x, exact = cells(DISCRETE), worlds["discrete"].log_prob(cells(DISCRETE))
    for event in (None, Event.of(DISCRETE, {"a": {1.0, 2.0}}), Event.of(DISCRETE, {"b": 0.0, "c": 3.0})):
        inside = exact if event is None else exact[event.holds(x)]
        found = mode(bounded, event, generator=generator(0))
        assert found.kind is Kind.BOUND
        assert "draws behind log p held still; log p there is at least" in found.how
        assert event is None or bool(event.holds(found.x[None]))
        mean, error = bound_at(bounded, found.x[None], 300)
        near(found.log_p, mean[0], math.hypot(found.error, float(error)))
        assert found.log_p <= float(inside.max()) + SIGMAS * found.error
        # an end is chosen by 16 draws whose standard deviation is under 0.2: a cell 0.4 nats below the best can not win
        assert float(worlds["discrete"].log_prob(found.x[None])) >= float(inside.max()) - 0.4
    again = [mode(bounded, generator=generator(3)) for _ in range(2)]
    assert torch.equal(again[0].x, again[1].x)
    assert again[0].log_p == again[1].log_p


def test_a_bound_is_climbed_over_real_numbers(worlds):
    """The noise does not depend on x: every climb ends where log p has its maximum, whatever draws it holds still."""
    found = mode(Bounded(worlds["gaussian"]), Event.of(Domain.real(3), {"x0": 2.0}), generator=generator(0))
    closed = mode(worlds["gaussian"], Event.of(Domain.real(3), {"x0": 2.0}), generator=generator(0))
    assert closed.log_p - float(worlds["gaussian"].log_prob(found.x[None])) < 2e-3  # a step is not worth less than 0.001 nats
    assert float(found.x[0]) == 2.0
    assert found.log_p <= closed.log_p + SIGMAS * found.error


class Looser(Blind):
    """A density that says it is an estimate."""

    density = Kind.ESTIMATE


def test_the_mode_of_an_estimate_is_an_estimate(worlds):
    found = mode(Looser(worlds["discrete"]), generator=generator(0))
    assert found.kind is Kind.ESTIMATE
    assert "log p there is about" in found.how
    near(found.log_p, worlds["discrete"].log_prob(cells(DISCRETE)).max(), 1e-9)


class WithoutConstant(Blind):
    """A log-density that lacks its constant."""

    density = Kind.UNNORMALISED

    def _log_prob(self, x, c, generator):
        return self.base._log_prob(x, c, generator) + 5.0


def test_a_density_without_its_constant_gives_draws_and_no_evidence(worlds):
    model, point = WithoutConstant(worlds["gaussian"]), torch.tensor([1.3, torch.nan, torch.nan])
    for method in ("sir", "hmc"):
        draws = conditional(model, Event.at(model.domain, point), method=method, generator=generator(0))
        near(draws.mean[0][1:], worlds["gaussian"].conditional(point).mean(), draws.mean[1][1:])
        assert draws.log_evidence is None
    with pytest.raises(Unavailable, match="kind unnormalised"):
        log_marginal(model, point[None], generator=generator(0))


# -- posteriors ------------------------------------------------------------------------------------


def test_posterior_of_a_normal_prior_and_a_normal_likelihood(worlds):
    """y = x0 + x2 + e, e ~ N(0, 0.1^2), seen at 4."""
    s, h = FACTOR @ FACTOR.T, torch.tensor([1.0, 0.0, 1.0])
    variance = h @ s @ h + 0.01
    gain = s @ h / variance
    truth = MU + gain * (4.0 - h @ MU)
    evidence = torch.distributions.Normal(h @ MU, variance.sqrt()).log_prob(torch.tensor(4.0))
    found = posterior(
        worlds["gaussian"], lambda x: torch.distributions.Normal(x @ h.to(x), 0.1).log_prob(torch.tensor(4.0)), generator=generator(0)
    )
    mean, error = found.mean
    near(mean, truth, error, 6.0)  # the spread of 20 islands knows the error to a sixth
    near(found.log_evidence, evidence, found.log_evidence_error, 6.0)
    assert found.rows.shape == (4000, 3)
    assert "Hamiltonian" in found.how


@pytest.mark.parametrize(("world", "who"), [("discrete", "sweeps"), ("mixed", "proposed by the model")])
def test_posterior_of_an_event_is_the_conditional(worlds, world, who):
    """A likelihood of 1 on an event and e^-3 off it: known from the event's probability."""
    model = worlds[world]
    event = Event.of(model.domain, {"c": 2.0} if world == "discrete" else {"visits": 2.0})
    p = float(probability(model, event, generator=generator(0)))
    found = posterior(model, lambda x: torch.where(event.holds(x), 0.0, -3.0), draws=2000, generator=generator(0))
    z = p + (1 - p) * math.exp(-3)
    near(found.log_evidence, math.log(z), found.log_evidence_error, 6.0)
    share, error = found.expectation(lambda x: event.holds(x).double())
    near(share, p / z, error, 6.0)
    assert who in found.how


def test_posteriors_that_can_not_be_asked(worlds):
    with pytest.raises(DataError, match="for each of"):
        posterior(worlds["gaussian"], lambda x: x, generator=generator(0))
    with pytest.raises(DataError, match="the likelihood is 0 at all"):
        posterior(worlds["gaussian"], lambda x: torch.full((len(x),), -torch.inf), generator=generator(0))
    with pytest.raises(OptionError, match="at least 1, got 0"):
        posterior(worlds["gaussian"], lambda x: x[:, 0], draws=0, generator=generator(0))


# -- information -----------------------------------------------------------------------------------


def test_mutual_information(worlds):
    s = FACTOR @ FACTOR.T
    truth = 0.5 * (s[0, 0] * s[1, 1] / torch.det(s[:2, :2])).log()
    answer = mutual_information(worlds["gaussian"], [0], [1], generator=generator(0))
    near(answer.value, truth, answer.error)
    model, x = worlds["discrete"], cells(DISCRETE)
    p = model.log_prob(x).exp().reshape(3, 2, 4, 3)
    joint, a, cd = p.sum(1), p.sum((1, 2, 3)), p.sum((0, 1))
    truth = (joint * (joint / (a[:, None, None] * cd)).log()).sum()
    answer = mutual_information(model, [0], [2, 3], generator=generator(0))
    near(answer.value, truth, answer.error)


def test_mutual_information_where_marginals_are_estimated(worlds):
    s = FACTOR @ FACTOR.T
    truth = 0.5 * (s[0, 0] * s[1, 1] / torch.det(s[:2, :2])).log()
    answer = mutual_information(Blind(worlds["gaussian"]), [0], [1], draws=40, generator=generator(0))
    near(answer.value, truth, answer.error)
    with pytest.raises(OptionError, match="two groups of distinct variables"):
        mutual_information(worlds["gaussian"], [0], [0], generator=generator(0))
    with pytest.raises(Unavailable, match="kind none"):
        mutual_information(Sampler(), [0], [1], generator=generator(0))


def test_values_are_conditions_by_their_names():
    assert Event.of(DISCRETE, {"a": Value(1.0)}) == Event(DISCRETE, {0: Value(1.0)})
