"""Normals and the `gaussian` family against torch's, against each other's closed forms, and against known imputations."""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from pofx.distributions.gaussian import DiagonalGaussians, Gaussians, Patterns, Prior, data_variance, normals
from pofx.domain import Domain
from pofx.errors import Unavailable
from pofx.models.classical.gaussian import GaussianConfig
from pofx.models.classical.gaussian_em import Mixture, expectation_maximisation
from pofx.testing import check_model

SHAPES = {
    "full": lambda k, d: Gaussians(torch.randn(k, d), covariances(k, d)),
    "shared": lambda k, d: Gaussians(torch.randn(k, d), covariances(1, d)),
    "diagonal": lambda k, d: DiagonalGaussians(torch.randn(k, d), torch.rand(k, d) + 0.1),
    "spherical": lambda k, d: DiagonalGaussians(torch.randn(k, d), torch.rand(k, 1) + 0.1),
}


def covariances(k, d):
    a = torch.randn(k, d, d)
    return a @ a.mT + 0.1 * torch.eye(d)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def with_holes(x, share=0.5):
    # a seed of its own: the rows are drawn from 0, and holes must not depend on them
    return x.masked_fill(torch.rand(x.shape, generator=seeded(7)) < share, torch.nan)


def torchs(g):
    """The same normals, as torch has them."""
    covariance = g.covariance if isinstance(g, Gaussians) else g.variance.expand_as(g.mean).diag_embed()
    return MultivariateNormal(g.mean, covariance.expand(len(g.mean), -1, -1), validate_args=False)


@pytest.fixture(params=SHAPES)
def g(request):
    return SHAPES[request.param](3, 5)


# -- closed forms ----------------------------------------------------------------------------------


def test_log_prob_and_entropy_are_torchs(g):
    x = torch.randn(40, 5)
    torch.testing.assert_close(g.log_prob(x), torchs(g).log_prob(x[:, None]))
    torch.testing.assert_close(g.entropy(), torchs(g).entropy())


def test_kl_is_torchs():
    a, b = SHAPES["full"](3, 4), SHAPES["full"](3, 4)
    torch.testing.assert_close(a.kl(b), kl_divergence(torchs(a), torchs(b)))
    torch.testing.assert_close(a.kl(a), torch.zeros(3), atol=1e-12, rtol=0)


def test_a_row_with_holes_has_the_density_of_the_marginal(g):
    x = with_holes(torch.randn(60, 5))
    for row, got in zip(x, g.log_prob(x), strict=True):
        seen = (~row.isnan()).nonzero()[:, 0].tolist()
        want = g.marginal(seen).log_prob(row[None, seen])[0] if seen else torch.zeros(3)
        torch.testing.assert_close(got, want)


def test_conditional_is_joint_over_marginal(g):
    evidence = torch.tensor([0.3, torch.nan, -1.0, torch.nan, torch.nan])
    y = torch.randn(20, 3)
    whole = evidence.repeat(20, 1)
    whole[:, [1, 3, 4]] = y
    torch.testing.assert_close(g.conditional(evidence).log_prob(y), g.log_prob(whole) - g.log_prob(evidence[None]))


def test_patterns_give_every_row_back():
    for x in (torch.randn(2500, 3), with_holes(torch.randn(2500, 3)), with_holes(torch.randn(50, 12)), torch.full((4, 2), torch.nan)):
        patterns = Patterns(x)
        blocks = list(patterns.blocks(10))
        torch.testing.assert_close(patterns.restore([block.x for block in blocks]), x.nan_to_num())
        assert sum(int(block.real.sum()) for block in blocks) == len(x)


def test_log_prob_has_the_gradient_of_the_quadratic_form():
    g = SHAPES["full"](1, 4)
    x = torch.randn(6, 4, requires_grad=True)
    g.log_prob(x).sum().backward()
    torch.testing.assert_close(x.grad, -torch.linalg.solve(g.covariance[0], (x - g.mean).detach().T).T)


def test_spread_leads_back_to_the_normals(g):
    again = normals(g.mean, g.spread)
    x = torch.randn(5, 5)
    torch.testing.assert_close(again.log_prob(x), g.log_prob(x))


def test_draws_have_the_moments(g):
    n = 20_000
    for k in range(3):
        x = g.sample(torch.full((n,), k), generator=seeded(k))
        # 5 means and 15 covariances, 12 runs: 6 standard errors fail once in 10^6
        se = (torchs(g).variance[k] / n).sqrt()
        assert ((x.mean(0) - g.mean[k]).abs() < 6 * se).all()
        variance = torchs(g).covariance_matrix[k].diagonal()
        assert ((x.T.cov() - torchs(g).covariance_matrix[k]).abs() < 6 * (2 * variance[:, None] * variance / n).sqrt()).all()


def test_completions_have_the_conditional_moments(g):
    evidence = torch.tensor([0.3, torch.nan, -1.0, torch.nan, torch.nan])
    n = 20_000
    want = torchs(g.conditional(evidence))
    x = g.complete(evidence.repeat(n, 1), torch.full((n,), 1), generator=seeded())
    assert (x[:, [0, 2]] == evidence[[0, 2]]).all()
    got = x[:, [1, 3, 4]]
    assert ((got.mean(0) - want.mean[1]).abs() < 6 * (want.variance[1] / n).sqrt()).all()
    variance = want.variance[1]
    assert ((got.T.cov() - want.covariance_matrix[1]).abs() < 6 * (2 * variance[:, None] * variance / n).sqrt()).all()


def test_uphill_is_the_best_point_of_the_weighted_quadratics(g):
    r = torch.rand(4, 3)
    x = g.uphill(r).requires_grad_()
    (r * g.log_prob(x)).sum().backward()
    torch.testing.assert_close(x.grad, torch.zeros(4, 5), atol=1e-9, rtol=0)


# -- EM --------------------------------------------------------------------------------------------


def brute_force_moments(g, x, log_weight):
    """Expected sufficient statistics row by row, from the conditional of each row."""
    k, d = g.mean.shape
    r = (log_weight + g.log_prob(x)).softmax(-1)
    first, second = torch.zeros(k, d), torch.zeros(k, d, d)
    for row, weight in zip(x, r, strict=True):
        missing = row.isnan().nonzero()[:, 0]
        mean, covariance = row.repeat(k, 1), torch.zeros(k, d, d)
        if len(missing):
            law = torchs(g.conditional(row))
            mean[:, missing] = law.mean
            covariance[:, missing[:, None], missing] = law.covariance_matrix
        apart = mean - g.mean
        first += weight[:, None] * apart
        second += weight[:, None, None] * (apart[:, :, None] * apart[:, None] + covariance)
    return r.sum(0), first, second


def test_expected_statistics_are_those_of_each_rows_conditional(g):
    x, log_weight = with_holes(torch.randn(30, 5)), torch.tensor([0.2, 0.3, 0.5]).log()
    count, first, second = brute_force_moments(g, x, log_weight)
    moments = g.expect(x, log_weight)
    torch.testing.assert_close(moments.count, count)
    torch.testing.assert_close(moments.first, first)
    diagonal = second.diagonal(dim1=1, dim2=2)[..., None]
    torch.testing.assert_close(moments.second, second if isinstance(g, Gaussians) else diagonal)
    assert moments.log_likelihood == pytest.approx(float((g.log_prob(x) + log_weight).logsumexp(-1).mean()), abs=1e-10)


@pytest.mark.parametrize("strength", [1e-6, 1.0, 30.0])
def test_em_never_lowers_its_objective(g, strength):
    x = with_holes(torch.randn(80, 5) @ torch.randn(5, 5), 0.3)
    prior = Prior(strength, data_variance(x))
    start = Mixture(g, torch.full((3,), -math.log(3)))
    path = expectation_maximisation(start, len(x), lambda law, w: law.expect(x, w), prior, steps=25, tolerance=-1.0)
    objective = [state.objective for state in path]
    assert len(objective) == 25
    assert all(after >= before - 1e-9 for before, after in pairwise(objective))


def test_the_penalty_is_that_of_the_prior(g):
    prior = Prior(2.0, torch.rand(5) + 0.5)
    sigma = torchs(g).covariance_matrix[: len(g.spread)]
    trace = (prior.variance.diag() @ sigma.inverse()).diagonal(dim1=1, dim2=2).sum(-1)
    torch.testing.assert_close(prior.penalty(g), -(sigma.logdet() + trace).sum())


# -- the family ------------------------------------------------------------------------------------


def learned(x, holdout=None, **options):
    model = GaussianConfig(**options).build(Domain.real(x.shape[1]))
    return model, list(model.steps(x, holdout=holdout))


def test_complete_rows_are_fitted_in_closed_form():
    x = torch.randn(50, 4) @ torch.randn(4, 4) + 3
    model, path = learned(x, prior_rows=0)
    torch.testing.assert_close(model.mu, x.mean(0))
    torch.testing.assert_close(model.covariance, x.T.cov(correction=0), rtol=1e-6, atol=1e-6)
    assert len(path) == 1
    assert path[0] == pytest.approx(float(model.log_prob(x).mean()))


def test_the_prior_keeps_variances_and_shrinks_covariances():
    x = torch.randn(30, 3) @ torch.randn(3, 3)
    model, _ = learned(x, prior_rows=10.0)
    sample = x.T.cov(correction=0)
    torch.testing.assert_close(model.covariance.diagonal(), sample.diagonal())
    torch.testing.assert_close(model.covariance[0, 1], sample[0, 1] * 30 / 40)


def test_em_finds_the_law_behind_the_holes():
    mixing = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.5, 0.5, 0.7]])
    x = torch.randn(10_000, 3) @ mixing.T + torch.tensor([1.0, -2.0, 0.5])
    model, _ = learned(with_holes(x, 0.3), prior_rows=0.0, tolerance=1e-8)
    # seven in ten cells stand for 7,000 rows: a standard error is below 0.02
    torch.testing.assert_close(model.mu, torch.tensor([1.0, -2.0, 0.5]), atol=0.1, rtol=0)
    torch.testing.assert_close(model.covariance, mixing @ mixing.T, atol=0.1, rtol=0)


def test_held_out_rows_choose_the_prior():
    x = torch.randn(400, 20) @ torch.randn(20, 20)
    loose, _ = learned(x[:200], x[200:])
    usual, _ = learned(x[:200])
    assert loose.log_prob(x[200:]).mean() > usual.log_prob(x[200:]).mean()


def test_a_firmer_prior_is_found_where_there_are_few_rows():
    x = torch.randn(230, 30)  # independent: the firmer the better
    chosen, _ = learned(x[:30], x[30:])
    usual, _ = learned(x[:30])
    assert chosen.log_prob(x[30:]).mean() > usual.log_prob(x[30:]).mean()


def test_codes_are_white_and_lead_back():
    x = torch.randn(200, 4) @ torch.randn(4, 4)
    model, _ = learned(x, prior_rows=0.0)
    z = model.encode(x)
    torch.testing.assert_close(z.T.cov(correction=0), torch.eye(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(model.decode(z), x)


def test_impute_mode_and_conditional_mean_agree():
    model, _ = learned(torch.randn(60, 4) @ torch.randn(4, 4))
    evidence = torch.tensor([torch.nan, 0.5, torch.nan, -1.0])
    imputed = model.impute(evidence)
    torch.testing.assert_close(model.mode(evidence), imputed)
    torch.testing.assert_close(model.conditional(evidence).mean(), imputed[[0, 2]])
    torch.testing.assert_close(model.mode(), model.mean())


def test_units_change_the_density_by_the_jacobian_only():
    x, units = with_holes(torch.randn(80, 3) @ torch.randn(3, 3), 0.2), torch.tensor([1e-6, 1.0, 1e6])
    small, _ = learned(x)
    large, _ = learned(x * units)
    jacobian = (~x.isnan()).double() @ units.log()
    torch.testing.assert_close(large.log_prob(x * units), small.log_prob(x) - jacobian)


BAD = {
    "one row repeated": torch.ones(20, 3),
    "a constant column": torch.cat((torch.randn(20, 2), torch.full((20, 1), 7.0)), 1),
    "fewer rows than variables": torch.randn(3, 8),
    "rank one": torch.randn(20, 1) @ torch.randn(1, 5),
    "one row": torch.randn(1, 3),
    "an empty column": torch.cat((torch.randn(20, 2), torch.full((20, 1), torch.nan)), 1),
    "an empty row": torch.cat((torch.randn(20, 2), torch.full((1, 2), torch.nan))),
    "far from zero": torch.randn(20, 2) + 1e8,
}


@pytest.mark.parametrize("prior_rows", [None, 0.0])
@pytest.mark.parametrize("name", BAD)
def test_degenerate_rows_stay_finite(name, prior_rows):
    model, path = learned(BAD[name], prior_rows=prior_rows)
    assert math.isfinite(path[-1])
    assert model.log_prob(BAD[name]).isfinite().all()
    assert model.sample(5).isfinite().all()


def test_conditions_are_refused():
    with pytest.raises(Unavailable, match="fit all columns and ask `conditional`"):
        GaussianConfig().build(Domain.real(2), Domain.real(1))


def test_keeps_every_promise_of_a_family():
    x = with_holes(torch.randn(200, 3) @ torch.randn(3, 3), 0.2)
    model, _ = learned(x)
    check_model(model, x, generator=seeded())


@pytest.mark.slow
def test_imputes_breast_cancer_as_exact_em_does():
    datasets = pytest.importorskip("sklearn.datasets")
    numpy = pytest.importorskip("numpy")
    x = torch.tensor(datasets.load_breast_cancer().data)
    x = (x - x.mean(0)) / x.std(0, correction=0)
    hidden = numpy.random.RandomState(1234).choice(x.numel(), x.numel() // 2, replace=False)
    holes = x.flatten().index_fill(0, torch.tensor(hidden), torch.nan).view_as(x)
    model, _ = learned(holes)
    assert float((model.impute(holes) - x)[holes.isnan()].square().mean()) <= 0.23  # column means: 1.03
