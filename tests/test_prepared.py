"""A family behind preparation: in the user's units, exact where it can be, an honest bound or estimate where not."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import LogNormal, MultivariateNormal, Normal
from torch.special import ndtr
from torch.testing import assert_close

import pofx
from pofx.data.preparation import prepare
from pofx.domain import Domain, Variable, VariableKind
from pofx.errors import FileError, Unavailable
from pofx.models import composed
from pofx.models.base import FamilyConfig, FullBatch, Model, Takes
from pofx.models.classical.gaussian import GaussianConfig
from pofx.models.classical.independent import Independent, IndependentConfig
from pofx.models.composed.completed import Completed
from pofx.models.composed.mixture import MixtureOfModels
from pofx.models.composed.prepared import STEEP, Prepared
from pofx.models.composed.weighted import WeightedMean, WeightedPick
from pofx.models.flows.realnvp import RealNVPConfig
from pofx.models.registry import families
from pofx.objectives.bounds import log_mean_and_error, mean_and_error
from pofx.types import Kind

REAL = Variable("real", VariableKind.REAL)
OTHER = Variable("other", VariableKind.REAL)
WEIGHT = Variable("weight", VariableKind.POSITIVE)
DIE = Variable("die", VariableKind.COUNT, lower=1.0, upper=6.0)
GRADE = Variable("grade", VariableKind.ORDINAL, levels=("low", "mid", "high"))
RAIN = Variable("rain", VariableKind.POSITIVE, spike=0.0)
ROUNDED = Variable("rounded", VariableKind.REAL, resolution=0.5)


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def correlated(n, dim, rho=0.8, seed=2):
    covariance = torch.full((dim, dim), rho) + (1 - rho) * torch.eye(dim)
    return torch.randn(n, dim, generator=generator(seed)) @ torch.linalg.cholesky(covariance).T


def rows(domain, n=500):
    """Correlated columns of each kind."""
    z = correlated(n, len(domain))
    make = {
        "real": lambda u: 3 + 2 * u,
        "other": lambda u: 1 - u,
        "weight": lambda u: (1 + 0.5 * u).exp(),
        "die": lambda u: (u * 1.5 + 3.5).round().clamp(1, 6),
        "grade": lambda u: (u + 1).round().clamp(0, 2),
        "rain": lambda u: (u + 0.3).clamp(min=0),
        "rounded": lambda u: (4 * u).round() / 2,
    }
    return torch.stack([make[v.name](z[:, d]) for d, v in enumerate(domain.variables)], dim=1)


def learned(*variables, config=None, x=None, **options):
    """A Gaussian behind the maps of these variables."""
    domain = Domain(variables)
    config = GaussianConfig(**options) if config is None else config
    x = rows(domain) if x is None else x
    model = composed.assemble(config, domain, x, prepare(domain, x, config.takes))
    for _ in model.steps(x, generator=generator()):
        pass
    return model, x


def spread(x):
    return MultivariateNormal(x.mean(0), x.T.cov(correction=0))


# -- nothing lifted: exact -------------------------------------------------------------------------


def test_log_prob_is_in_the_users_units():
    model, x = learned(REAL, OTHER, prior_rows=0.0)
    assert (model.density, model.missing) == (Kind.EXACT, Kind.EXACT)
    assert_close(model.log_prob(x), spread(x).log_prob(x), rtol=1e-5, atol=1e-5)


def test_a_log_scale_gives_the_log_normal():
    model, x = learned(WEIGHT, prior_rows=0.0)
    log = x.log()
    assert_close(model.log_prob(x), LogNormal(log.mean(), log.std(correction=0)).log_prob(x)[:, 0], rtol=1e-5, atol=1e-5)


def test_outside_the_support_the_density_is_zero():
    model, _ = learned(REAL, WEIGHT)
    x = torch.tensor([[0.0, -1.0], [0.0, 0.0], [math.inf, 1.0], [-math.inf, 1.0]])
    assert torch.equal(model.log_prob(x), torch.full((4,), -math.inf))


def test_steps_tell_the_log_likelihood_in_the_users_units():
    domain = Domain((REAL, WEIGHT))
    x = rows(domain)
    model = composed.assemble(GaussianConfig(), domain, x, prepare(domain, x, "reals"))
    *_, last = model.steps(x)
    assert last == pytest.approx(float(model.log_prob(x).mean()))


def test_marginal_conditional_mean_and_mode_pass_through_affine_maps():
    model, x = learned(REAL, OTHER, prior_rows=0.0)
    m, S = x.mean(0), x.T.cov(correction=0)
    assert_close(model.mean(), m)
    assert_close(model.marginal([1]).log_prob(x[:, [1]]), Normal(m[1], S[1, 1].sqrt()).log_prob(x[:, 1]), rtol=1e-5, atol=1e-5)
    given = model.conditional(torch.tensor([torch.nan, 0.5]))
    mean = m[0] + S[0, 1] / S[1, 1] * (0.5 - m[1])
    assert isinstance(given, Prepared)
    assert given.domain.names == ("real",)
    assert_close(given.mean()[0], mean, rtol=1e-5, atol=1e-5)
    assert_close(model.mode(torch.tensor([torch.nan, 0.5])), torch.stack((mean, torch.tensor(0.5))), rtol=1e-5, atol=1e-5)
    assert_close(model.impute(torch.tensor([[torch.nan, 0.5]]))[0, 0], mean, rtol=1e-5, atol=1e-5)


def test_marginal_times_conditional_is_the_joint():
    model, x = learned(REAL, WEIGHT, OTHER)
    for row in x[:5]:
        evidence = torch.stack((torch.tensor(torch.nan), row[1], torch.tensor(torch.nan)))
        product = model.marginal([1]).log_prob(row[[1]]) + model.conditional(evidence).log_prob(row[[0, 2]])
        assert_close(product, model.log_prob(row))


def test_imputation_on_a_log_scale_is_the_conditional_mean():
    """Completions average to the log-normal's mean; failure rate below 1e-6: 6 standard errors."""
    model, _ = learned(REAL, WEIGHT, prior_rows=0.0)
    evidence = torch.tensor([4.0, torch.nan])
    base = model.conditional(evidence)
    shift, scale = base.transform.shift, base.transform.scale
    law = LogNormal(shift + scale * base.base.mu, scale * base.base.covariance[0, 0].sqrt())
    filled = model.impute(evidence.expand(2000, 2), generator=generator())
    error = law.variance.sqrt() / math.sqrt(2000 * 32)
    assert (filled[:, 1].mean() - law.mean).abs() < 6 * error
    assert torch.equal(filled[:, 0], torch.full((2000,), 4.0))


def test_encode_then_decode_is_the_row():
    model, x = learned(REAL, WEIGHT, DIE, GRADE, RAIN, ROUNDED)
    assert_close(model.decode(model.encode(x)), x)


def test_what_has_no_closed_form_is_refused_with_a_way_out():
    model, _ = learned(REAL, WEIGHT)
    with pytest.raises(Unavailable, match="the mean of samples"):
        model.mean()
    with pytest.raises(Unavailable, match="'weight' is on another scale"):
        model.mode()
    assert model.mode(torch.tensor([torch.nan, 2.0]))[1] == 2.0
    with pytest.raises(Unavailable, match="outside the domain"):
        model.conditional(torch.tensor([torch.nan, -2.0]))


# -- lifted: a bound ---------------------------------------------------------------------------------


def exact_masses(model, points=200_001):
    """P(code) of a one-variable model, by quadrature over the base."""
    u = torch.linspace(-12, 12, points)[:, None]
    p = model.base.log_prob(u).exp() * (u[1] - u[0])
    y = u if model.transform is None else model.transform(u)[0]
    codes, index = model.lift(y)[:, 0].unique(return_inverse=True)
    return codes, torch.zeros(len(codes)).index_add(0, index, p)


@pytest.mark.parametrize("variable", [DIE, GRADE], ids=lambda v: v.name)
def test_the_bound_of_a_code_lies_below_its_probability_and_near(variable):
    model, _ = learned(variable)
    codes, masses = exact_masses(model)
    value, error = model.log_prob_and_error(codes[:, None], generator=generator())
    assert (model.density, model.missing) == (Kind.BOUND, Kind.BOUND)
    assert_close(masses.sum(), torch.tensor(1.0))
    assert (value <= masses.log() + 6 * error + 1e-6).all()
    assert (value >= masses.log() - 0.05 - 6 * error).all()


def test_rain_is_an_atom_and_a_density():
    model, _ = learned(RAIN, x=rows(Domain((RAIN,)), 4000))
    dry = model.log_prob(torch.zeros(1, 1), generator=generator()).exp()
    grid = torch.linspace(1e-4, 60, 60_001)[:, None]
    with torch.no_grad():
        wet = model.log_prob(grid, generator=generator()).exp().sum() * (grid[1, 0] - grid[0, 0])
    assert float(dry + wet) == pytest.approx(1.0, abs=0.1)
    assert float(dry + wet) < 1 + 1e-3
    drawn = model.sample(4000, generator=generator())
    assert (drawn >= 0).all()
    assert float((drawn == 0).double().mean()) == pytest.approx(float(dry), abs=0.1)


def test_rounded_values_have_the_density_of_their_cell():
    model, x = learned(ROUNDED, x=rows(Domain((ROUNDED,)), 4000))
    law = Normal(x.mean(), (x.var() + 0.5**2 / 12).sqrt())
    grid = torch.arange(-4.0, 4.5, 0.5)
    cells = (law.cdf(grid + 0.25) - law.cdf(grid - 0.25)).log() - math.log(0.5)
    value, error = model.log_prob_and_error(grid[:, None], generator=generator())
    assert ((value - cells).abs() <= 6 * error + 0.05).all()
    assert (model.sample(100) * 2 % 1 == 0).all()


def test_the_error_is_that_of_the_mean():
    """Over many seeds, values scatter by what they say; failure rate below 1e-6."""
    model, x = learned(DIE, ROUNDED, REAL)
    runs = [model.log_prob_and_error(x[:300], generator=generator(seed)) for seed in range(40)]
    scatter = torch.stack([value for value, _ in runs]).var(0).mean()
    said = torch.stack([error for _, error in runs]).square().mean(0).mean()
    assert 0.7 < float(scatter / said) < 1.4


def test_equal_generators_give_equal_answers():
    model, x = learned(DIE, REAL, RAIN)
    holed = x.clone()
    holed[:, 1] = torch.nan
    for ask in (model.log_prob, model.impute, model.complete):
        a, b = (ask(holed, generator=generator()) for _ in range(2))
        assert torch.equal(a, b)
    assert torch.equal(model.sample(5, generator=generator()), model.sample(5, generator=generator()))
    assert torch.equal(model.conditional(holed[0]).log_prob(x[:3, [1]]), model.conditional(holed[0]).log_prob(x[:3, [1]]))


def test_lifted_evidence_is_an_event():
    """p(real | die) against the ratio of integrals over the cell, on a grid."""
    model, x = learned(REAL, DIE)
    given = model.conditional(torch.tensor([torch.nan, 5.0]))
    assert isinstance(given.base, MixtureOfModels)
    assert given.density is Kind.ESTIMATE
    assert "effective sample size" in given.approximation
    grid = torch.linspace(-6, 12, 25)
    y = torch.linspace(-8, 8, 8001)
    inside = model.lift(torch.stack((torch.zeros(8001), y), 1))[:, 1] == 5.0
    u_real = model.transform.inverse(torch.stack((grid, torch.zeros(25)), 1))[0][:, 0]
    pairs = torch.stack((u_real[:, None].expand(-1, 8001), y.expand(25, -1)), -1)
    joint = (model.base.log_prob(pairs).exp() * inside).sum(1)
    alone = (model.base.marginal([1]).log_prob(y[:, None]).exp() * inside).sum()
    exact = (joint / alone).log() - model.transform.scale[0].log()
    assert_close(given.log_prob(grid[:, None]), exact, rtol=0, atol=0.05)
    drawn = given.sample(4000, generator=generator())
    close = x[x[:, 1] == 5][:, 0]
    assert drawn.mean() == pytest.approx(float(close.mean()), abs=0.4)


def test_missing_levels_are_filled_with_the_most_probable_one():
    model, x = learned(REAL, GRADE)
    holed = x.clone()
    holed[:, 1] = torch.nan
    filled = model.impute(holed, generator=generator())
    assert set(filled[:, 1].unique().tolist()) <= {0.0, 1.0, 2.0}
    assert (filled[:, 1] == x[:, 1]).double().mean() > (x[:, 1] == x[:, 1].mode().values).double().mean() + 0.1


def test_completions_of_lifted_evidence_follow_the_conditional():
    """Means of completions and of the conditional's draws agree within 6 standard errors."""
    model, _ = learned(REAL, DIE, RAIN)
    evidence = torch.tensor([torch.nan, 2.0, torch.nan])
    completed = model.complete(evidence.expand(4000, 3), generator=generator())[:, [0, 2]]
    drawn = model.conditional(evidence).sample(4000, generator=generator())
    error = (drawn.var(0) / 2000).sqrt()
    assert ((completed.mean(0) - drawn.mean(0)).abs() < 6 * error).all()


def test_observed_cells_stay_and_codes_are_valid():
    model, x = learned(REAL, DIE, GRADE, RAIN, ROUNDED, WEIGHT)
    holed = torch.where(torch.rand(x.shape, generator=generator()) < 0.5, torch.nan, x)
    for filled in (model.impute(holed, generator=generator()), model.complete(holed, generator=generator())):
        assert not filled.isnan().any()
        assert torch.equal(filled[~holed.isnan()], x[~holed.isnan()])
    completed = model.complete(holed, generator=generator())
    assert torch.equal(completed[:, 1], completed[:, 1].round().clamp(1, 6))


def test_codes_out_of_range_have_no_density():
    model, _ = learned(REAL, DIE)
    assert torch.equal(model.log_prob(torch.tensor([[0.0, 0.0], [0.0, 7.0]])), torch.full((2,), -math.inf))


# -- learned noise -----------------------------------------------------------------------------------


def noisy(*variables, bend=0.1, **options):
    """A small flow over correlated rows, behind its maps, with learned noise away from its start."""
    domain = Domain(variables)
    x = rows(domain)
    config = RealNVPConfig(layers=2, width=8, noise="variational", **options)
    model = composed.assemble(config, domain, x, prepare(domain, x, "reals", config.dequantise))
    model.initialise(x)
    for p in model.noise.parameters():
        torch.nn.init.normal_(p, std=bend, generator=generator(3))
    return model.eval(), x


@pytest.mark.parametrize("dequantise", ["scores", "uniform"])
def test_masses_of_codes_with_learned_noise_are_the_bases(dequantise):
    """E[w] over 4000 draws against the frequency of codes in a million samples; failure rate below 1e-6: 6 standard errors."""
    model, _ = noisy(DIE, GRADE, dequantise=dequantise)
    codes = torch.cartesian_prod(torch.arange(1, 7), torch.arange(3)).double()
    with torch.no_grad():
        log_w = -model.loss(codes.repeat(4000, 1), generator=generator()).reshape(4000, 18)
    value, error = log_mean_and_error(log_w)
    drawn = model.sample(400_000, generator=generator())
    share = torch.bincount(((drawn[:, 0] - 1) * 3 + drawn[:, 1]).long(), minlength=18) / len(drawn)
    spread = ((value.exp() * error).square() + share / len(drawn)).sqrt()
    assert (spread < 0.03).all()
    assert ((value.exp() - share).abs() < 6 * spread + 1e-6).all()
    mean, its_error = model.log_prob_and_error(codes, generator=generator())
    assert (mean < value + 6 * (error + its_error)).all()


@pytest.mark.parametrize("dequantise", ["scores", "uniform"])
def test_gradients_reach_the_noise_and_missing_or_wrong_cells_do_it_no_harm(dequantise):
    model, x = noisy(DIE, REAL, GRADE, dequantise=dequantise)
    x = x[:60].clone()
    x[::3, 0] = torch.nan
    model.loss(x, generator=generator()).mean().backward()
    gradients = [p.grad for p in model.noise.parameters()]
    assert all(g.isfinite().all() for g in gradients)
    assert all((g != 0).any() for g in gradients)
    wrong = torch.tensor([[7.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, math.inf, 1.0], [1.0, 0.0, 3.0]])
    assert torch.equal(model.log_prob(wrong), torch.full((4,), -math.inf))


@pytest.mark.parametrize("dequantise", ["scores", "uniform"])
def test_learned_noise_sees_which_way_p_rises_at_the_middles_of_cells(dequantise):
    """Against central differences of log p(y) - log q(y | x); nothing is dropped, while learning either."""
    model, x = noisy(DIE, REAL, GRADE, dequantise=dequantise, dropout=0.5)
    x = x[:100]
    for p in model.base.parameters():
        torch.nn.init.normal_(p, std=0.3, generator=generator(4))

    def log_w(z):
        u, log_weight = model._inverse(*model.lift.place(x, ndtr(z).expand(len(x), -1)))
        return model.base.log_prob(u) + log_weight

    steps = 1e-5 * torch.eye(3)[model.noise.lifted]
    with torch.no_grad():
        differences = torch.stack([(log_w(step) - log_w(-step)) / 2e-5 for step in steps], -1)
        slope = model.train()._steering(x, None, None)[:, 3:]
    assert_close(slope, differences.clamp(-STEEP, STEEP), rtol=1e-5, atol=1e-6)
    assert (differences.std(0) > 0.1).all()
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize("cell", [math.nan, 7.0])
def test_a_missing_or_wrong_cell_leaves_the_slopes_of_the_others_finite(cell):
    model, x = noisy(DIE, REAL, GRADE, dequantise="uniform")
    x = x[:5].clone()
    x[0, 0] = cell
    slope = model._slope(x, None, None)
    assert slope.isfinite().all()
    assert slope[0, 0] == 0
    assert (slope[:, 1] != 0).all()


def test_learned_noise_closes_the_bound():
    """A flow that is kept as it is, cells of width 1 and a slope across them: 60 steps win more than half of what uniform noise loses."""
    model, x = noisy(DIE, GRADE, dequantise="uniform", bend=1e-3, tight=True, draws=100)
    with torch.no_grad():
        model.base.base.transform.parts[-1].log_diagonal.sub_(1.0)  # a narrow base, so that it is not level within a cell
        truth = model.log_prob(x[:200], generator=generator()).mean()
    optimiser, noise = torch.optim.Adam(model.noise.parameters(), lr=2e-2), generator(5)
    before = truth + model.loss(x[:200], generator=generator()).mean()
    for _ in range(60):
        optimiser.zero_grad()
        model.loss(x[:200], generator=noise).mean().backward()
        optimiser.step()
    after = truth + model.loss(x[:200], generator=generator()).mean()
    assert 0 < after < 0.5 * before


def test_noise_fitted_to_each_row_closes_the_bound_without_learning():
    """The narrow base of before, noise untrained: more than half of the gap goes, none of it beyond the truth; failure rate below 1e-6."""
    gaps, spread = {}, {}
    for refine in (0, 60):
        model, x = noisy(DIE, GRADE, dequantise="uniform", bend=1e-3, draws=100)
        with torch.no_grad():
            model.base.base.transform.parts[-1].log_diagonal.sub_(1.0)
            model.lifting = replace(model.lifting, refine=0, tight=True)
            truth = model.log_prob(x[:100], generator=generator())
            model.lifting = replace(model.lifting, refine=refine, tight=False)
            value, error = model.log_prob_and_error(x[:100], generator=generator(6))
        gaps[refine], spread[refine] = (truth - value).mean(), error.square().sum().sqrt() / 100
        assert all(p.grad is None for p in model.parameters())
    assert -6 * spread[60] < gaps[60] < 0.5 * gaps[0]


def test_a_row_outside_the_support_does_fitted_noise_no_harm():
    model, x = noisy(DIE, REAL, GRADE)
    model.lifting = replace(model.lifting, refine=3)
    wrong = torch.cat((x[:2], torch.tensor([[7.0, 0.0, 0.0], [1.0, math.inf, 1.0]])))
    value = model.log_prob(wrong, generator=generator())
    assert value[:2].isfinite().all()
    assert torch.equal(value[2:], torch.full((2,), -math.inf))


def test_the_tight_bound_lies_between_the_mean_and_the_truth():
    """Means over rows of the two bounds and of one with many draws; failure rate below 1e-6: 6 standard errors of the first gap."""
    loose, x = noisy(DIE, GRADE, bend=0.3)
    tight, _ = noisy(DIE, GRADE, bend=0.3, tight=True)
    many, _ = noisy(DIE, GRADE, bend=0.3, tight=True, draws=100)
    with torch.no_grad():
        values = [model.log_prob(x[:50].repeat(8, 1), generator=generator()) for model in (loose, tight)]
        most = many.log_prob(x[:50], generator=generator())
    gap = values[1] - values[0]
    assert gap.mean() > 6 * gap.std() / math.sqrt(len(gap))
    assert values[1].mean() < most.mean() + 6 * values[1].std() / math.sqrt(len(gap))
    assert (loose.density, tight.density) == (Kind.BOUND, Kind.BOUND)


def test_conditions_steer_learned_noise():
    """Masses of all codes under one condition sum to one; failure rate below 1e-6: 6 standard errors."""
    domain, context = Domain((DIE,)), Domain((WEIGHT, GRADE))
    both = rows(Domain((DIE, WEIGHT, GRADE)))
    x, c, config = both[:, :1], both[:, 1:], RealNVPConfig(layers=2, width=8, noise="variational")
    model = composed.assemble(config, domain, x, prepare(domain, x, "reals"), context, c)
    model.initialise(x, c)
    for p in model.noise.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=generator(3))
    shares = [model.noise(model._steering(x[:1], row, None), generator=generator())[0] for row in (c[:1], c[1:2])]
    assert not torch.equal(*shares)
    codes = torch.arange(1.0, 7)[:, None].repeat(4000, 1)
    with torch.no_grad():
        log_w = -model.eval().loss(codes, c[:1].expand(len(codes), 2), generator=generator()).reshape(4000, 6)
    value, error = log_mean_and_error(log_w)
    spread = (value.exp() * error).square().sum().sqrt()
    assert spread < 0.02
    assert (value.exp().sum() - 1).abs() < 6 * spread


def test_completions_weigh_learned_noise_and_keep_what_is_seen():
    model, x = noisy(DIE, REAL, GRADE)
    holed = x[:40].clone()
    holed[:, 1] = torch.nan
    for ask in (model.impute, model.complete):
        filled = ask(holed, generator=generator())
        assert filled.isfinite().all()
        assert torch.equal(filled[:, [0, 2]], x[:40, [0, 2]])


# -- files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"noise": "variational", "dequantise": "uniform", "augment": 2}], ids=["plain", "noisy"])
def test_a_flow_comes_back_from_its_tensors_with_its_proposal(options):
    domain, config = Domain((REAL, DIE, RAIN)), RealNVPConfig(layers=2, width=8, **options)
    x = rows(domain)
    x[::3, 0] = torch.nan
    model = composed.assemble(config, domain, x, prepare(domain, x, "reals", config.dequantise))
    model.initialise(x)
    with torch.device("meta"):
        composed.blank(config, domain, None, True)
    other = composed.blank(config, domain, None, True)
    other.load_tensors(model.state_dict())
    assert torch.equal(*(m.eval().log_prob(x, generator=generator()) for m in (model, other)))
    assert (model.density, model.missing) == (Kind.BOUND, Kind.BOUND)


@pytest.mark.parametrize("config", [GaussianConfig(), IndependentConfig()], ids=lambda c: type(c).__name__)
def test_a_blank_with_the_tensors_is_the_model(config):
    domain = Domain((REAL, DIE, RAIN))
    model, x = learned(*domain.variables, config=config, x=rows(domain, 60))
    other = composed.blank(config, model.domain)
    other.load_tensors(model.state_dict())
    assert torch.equal(*(m.log_prob(x, generator=generator()) for m in (model, other)))
    assert torch.equal(*(m.sample(9, generator=generator()) for m in (model, other)))
    with pytest.raises(FileError, match="lacks"):
        other.load_tensors({})


def test_a_skeleton_needs_no_storage():
    with torch.device("meta"):
        model = composed.blank(GaussianConfig(), Domain((REAL, DIE, RAIN, ROUNDED)))
    assert all(t.is_meta for t in model.state_dict().values())


E, S, N = Kind.EXACT, Kind.ESTIMATE, Kind.NONE


@pytest.mark.parametrize(
    ("config", "variables", "kinds"),
    [  # marginal, conditional, mean, mode, impute, complete, encode, decode
        (GaussianConfig(), (REAL, OTHER), (E, E, E, E, E, E, E, E)),
        (GaussianConfig(), (REAL, WEIGHT), (E, E, N, N, S, E, E, E)),
        (GaussianConfig(), (REAL, DIE), (E, S, N, S, S, S, E, E)),
        (RealNVPConfig(layers=2), (REAL, OTHER), (N, N, N, N, S, S, E, E)),
        (RealNVPConfig(layers=2), (REAL, DIE), (N, N, N, N, S, S, E, E)),
        (IndependentConfig(), (REAL, DIE), (E, E, E, E, E, E, N, N)),
    ],
    ids=lambda value: getattr(type(value), "__name__", "") if isinstance(value, FamilyConfig) else None,
)
def test_every_question_says_what_the_maps_leave_of_it(config, variables, kinds):
    domain = Domain(variables)
    x = rows(domain)
    model = composed.assemble(config, domain, x, prepare(domain, x, config.takes))
    if isinstance(model, FullBatch):
        list(model.steps(x))
    else:
        model.initialise(x)
    evidence = torch.tensor([float(x[0, 0]), math.nan])
    questions = {
        "marginal": lambda: model.marginal([0]),
        "conditional": lambda: model.conditional(evidence),
        "mean": model.mean,
        "mode": model.mode,
        "impute": lambda: model.impute(evidence, generator=generator()),
        "complete": lambda: model.complete(evidence, generator=generator()),
        "encode": lambda: model.encode(x[:2]),
        "decode": lambda: model.decode(torch.zeros(2, 2)),
    }
    for (question, ask), kind in zip(questions.items(), kinds, strict=True):
        assert model.answers(question) is kind, question
        if kind is Kind.NONE:
            with pytest.raises(Unavailable, match=model.noun):
                ask()
        else:
            ask()


def test_a_mode_with_every_bent_variable_observed_is_exact():
    model, _ = learned(REAL, WEIGHT)
    assert model.answers("mode", seen=[1]) is Kind.EXACT
    assert model.answers("mode", seen=[0]) is Kind.NONE


def test_a_family_that_takes_everything_stands_alone():
    model = composed.blank(IndependentConfig(), Domain((REAL, DIE)))
    assert type(model) is Independent


class Rigid(Model):
    """A standard normal that can not marginalise; with a context, its mean is the first feature."""

    def __init__(self, domain, context=None):
        super().__init__(domain, context)
        self.register_buffer("zero", torch.zeros(()))

    def _log_prob(self, x, c, generator):
        mean = 0.0 if c is None else c[:, :1]
        return Normal(0.0, 1.0).log_prob(x - mean).sum(-1)

    def _sample(self, n, c, generator):
        return torch.randn(n, len(self.domain), generator=generator) + (0.0 if c is None else c[:, :1])


class RigidConfig(FamilyConfig):
    conditional = True

    def _build(self, domain, context=None):
        return Rigid(domain, context)


class GridConfig(RigidConfig):
    """A family whose base shows what domain it was built on."""

    takes = Takes.DISCRETE


def test_a_grid_carried_along_is_built_again_from_the_tensors():
    domain = Domain((ROUNDED, DIE))
    x = rows(domain)
    model = composed.assemble(GridConfig(), domain, x, prepare(domain, x, "discrete"))
    other = composed.blank(GridConfig(), domain)
    assert other.base.domain != model.base.domain
    other.load_tensors(model.state_dict())
    assert other.base.domain == model.base.domain
    assert other.base.domain["rounded"].resolution == pytest.approx(0.5 / float(model.transform.scale[0]))


# -- context -----------------------------------------------------------------------------------------


def test_raw_conditions_become_features():
    domain, context = Domain((REAL,)), Domain((WEIGHT, GRADE))
    both = rows(Domain((REAL, WEIGHT, GRADE)))
    x, c = both[:, :1], both[:, 1:]
    model = composed.assemble(RigidConfig(), domain, x, prepare(domain, x, "reals"), context, c)
    u = (x - x.mean()) / x.std(correction=0)
    feature = (c[:, :1] - c[:, 0].mean()) / c[:, 0].std(correction=0)
    assert_close(model.log_prob(x, c), Normal(0.0, 1.0).log_prob(u - feature)[:, 0] - x.std(correction=0).log())
    drawn = model._sample(500, c[:1].expand(500, 2), generator())
    assert drawn.mean() == pytest.approx(float(x.mean() + x.std() * feature[0]), abs=6 * float(x.std()) / math.sqrt(500))
    other = composed.blank(RigidConfig(), domain, context)
    other.load_tensors(model.state_dict())
    assert_close(other.log_prob(x, c), model.log_prob(x, c))


# -- missing cells of a family that needs whole rows -------------------------------------------------


def completed(draws=16):
    """A standard normal over two independent reals, behind a proposal that is a little off."""
    domain = Domain.real(2)
    model = Completed(Rigid(domain), GaussianConfig().build(domain), draws=draws)
    model.initialise(1.3 * correlated(2000, 2, rho=0.3))
    return model


def test_rows_with_missing_cells_are_integrated_out():
    model = completed(draws=500)
    x = torch.tensor([[0.3, torch.nan], [torch.nan, -1.0], [torch.nan, torch.nan], [0.2, 0.4]])
    value, error = model.log_prob_and_error(x, generator=generator())
    exact = Normal(0.0, 1.0).log_prob(x.nan_to_num(0.0)).where(~x.isnan(), torch.tensor(0.0)).sum(1)
    assert ((value - exact).abs() <= 6 * error + 1e-9).all()
    assert error[3] == 0.0
    assert model.missing is Kind.BOUND


def test_the_training_bound_lies_below_the_tighter_one():
    model = completed()
    x = torch.tensor([[0.3, torch.nan]]).expand(4000, 2)
    one = -model.loss(x, generator=generator())
    many = model.log_prob(x, generator=generator())
    exact = Normal(0.0, 1.0).log_prob(torch.tensor(0.3))
    assert one.mean() < many.mean() < exact + 6 * many.std() / math.sqrt(4000)


def test_importance_resampling_imputes():
    model = completed(draws=64)
    x = torch.tensor([[0.3, torch.nan]]).expand(1000, 2)
    filled, drawn = model.impute(x, generator=generator()), model.complete(x, generator=generator())
    assert filled[:, 1].mean() == pytest.approx(0.0, abs=0.04)
    assert drawn[:, 1].mean() == pytest.approx(0.0, abs=6 / math.sqrt(1000))
    assert drawn[:, 1].std() == pytest.approx(1.0, abs=0.15)
    assert torch.equal(filled[:, 0], x[:, 0])


def test_whole_rows_are_the_bases_own():
    model, x = completed(), torch.randn(7, 2)
    assert_close(model.log_prob(x), model.base.log_prob(x))
    assert_close(model.loss(x), model.base.loss(x))
    assert model.density is Kind.EXACT


def test_delta_method_error():
    """Failure rate below 1e-6: the variance of 4000 values is known to 3 percent, the bound is 30."""
    log_weights = 0.5 * torch.randn(100, 4000, generator=generator())
    value, error = log_mean_and_error(log_weights)
    assert float(value.std() / error.square().mean().sqrt()) == pytest.approx(1.0, abs=0.3)


# -- mixtures and weights ----------------------------------------------------------------------------


def two_normals():
    models = []
    for mean in (-2.0, 1.0):
        model = GaussianConfig().build(Domain.real(2))
        model.mu = torch.full((2,), mean)
        models.append(model)
    return MixtureOfModels(models, torch.tensor([0.3, 0.7]).log())


def mixture_density(x):
    each = torch.stack([Normal(mean, 1.0).log_prob(x).sum(-1) for mean in (-2.0, 1.0)])
    return torch.logsumexp(each + torch.tensor([[0.3], [0.7]]).log(), 0)


def test_a_mixture_sums_its_models():
    p, x = two_normals(), torch.randn(9, 2)
    assert_close(p.log_prob(x), mixture_density(x))
    assert_close(p.mean(), torch.full((2,), 0.1))
    assert_close(p.marginal([1]).log_prob(x[:, 1:]), mixture_density(x[:, 1:]))
    given = p.conditional(torch.tensor([0.4, torch.nan]))
    x[:, 0] = 0.4
    assert_close(given.log_prob(x[:, 1:]), mixture_density(x) - mixture_density(x[:, :1]))
    assert p.sample(0).shape == (0, 2)


def test_a_mixture_draws_from_its_models_by_weight():
    """Failure rate below 1e-6: 6 standard errors."""
    p = two_normals()
    drawn = p.sample(4000, generator=generator())
    assert ((drawn.mean(0) - 0.1).abs() < 6 * drawn.std(0) / math.sqrt(4000)).all()
    assert (drawn[:-1, 0] * drawn[1:, 0]).mean().abs() < 1.0  # not one component after the other
    holed = torch.tensor([[0.4, torch.nan]]).expand(4000, 2)
    mean = p.conditional(holed[0]).mean()
    assert_close(p.impute(holed)[0, 1], mean[0])
    filled = p.complete(holed, generator=generator())[:, 1]
    assert (filled.mean() - mean[0]).abs() < 6 * filled.std() / math.sqrt(4000)


def test_weighted_means_and_picks():
    values, log_weights = torch.randn(5, 3, 2), 400 * torch.randn(5, 3)
    mean, pick = WeightedMean(), WeightedPick(generator())
    for value, log_weight in zip(values, log_weights, strict=True):
        mean.add(value, log_weight)
        pick.add(value, log_weight)
    assert_close(mean.value, torch.einsum("sn,snd->nd", log_weights.softmax(0), values))
    assert_close(pick.value, values[log_weights.argmax(0), torch.arange(3)])


def test_picks_follow_the_weights():
    """Failure rate below 1e-6: 6 standard deviations of a binomial."""
    pick = WeightedPick(generator())
    for k, w in enumerate((0.2, 0.5, 0.3)):
        pick.add(torch.full((20_000,), float(k)), torch.full((20_000,), math.log(w)))
    for k, w in enumerate((0.2, 0.5, 0.3)):
        assert (pick.value == k).double().mean() == pytest.approx(w, abs=6 * math.sqrt(w * (1 - w) / 20_000))


def test_an_impossible_draw_spoils_no_mean():
    value, error = mean_and_error(torch.tensor([[1.0, -math.inf], [3.0, -math.inf]]), torch.zeros(2, 2))
    assert_close(value, torch.tensor([2.0, -math.inf]))
    assert_close(error, torch.tensor([1.0, 0.0]))


CLOSED = [name for name, line in families().items() if line.baseline]


@pytest.mark.parametrize("family", CLOSED)
def test_a_value_rounded_to_its_bound_is_one_like_the_others(family):
    """Below r / 2 a positive number reads 0, and near its ends a share reads 0 or 1: all of them have a density and come back."""
    z = torch.rand(2, 600, generator=generator())
    frame = {"rain": ((z[0] * 3).exp() - 1).mul(2).floor() / 20, "share": (z[1] * 20).round() / 20}
    schema = {
        "rain": Variable("rain", "positive", resolution=0.05),
        "share": Variable("share", "interval", lower=0.0, upper=1.0, resolution=0.05),
    }
    p = pofx.fit({name: column.numpy() for name, column in frame.items()}, family, schema=schema)
    ends = {"rain": [0.0, 0.0, 0.05], "share": [0.0, 1.0, 0.5]}
    assert np.isfinite(np.asarray(p.log_prob(ends))).all()
    drawn = p.sample(4000)
    for name, value in (("rain", 0.0), ("share", 0.0), ("share", 1.0)):
        assert 0 < np.mean(np.asarray(drawn[name]) == value) < 0.2


@pytest.mark.parametrize("family", CLOSED)
def test_numbers_are_the_same_whatever_torchs_default_type(family):
    weights = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            p = pofx.fit("penguins", family)
            weights.append([*p.model.state_dict().values(), torch.from_numpy(np.asarray(p.log_prob(pofx.load("penguins").test)))])
        finally:
            torch.set_default_dtype(torch.float64)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(*weights, strict=True))
