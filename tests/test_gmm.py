"""The `gmm` family against torch's mixtures, scikit-learn's EM, integrals and the closed forms of one normal."""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from pofx.distributions.drawing import draw, draw_per_row
from pofx.distributions.gaussian import Gaussians, Prior, data_variance
from pofx.domain import Domain
from pofx.errors import DataError, Unavailable
from pofx.models.classical.gaussian import GaussianConfig
from pofx.models.classical.gaussian_em import Mixture, QuadraticEStep
from pofx.models.classical.gmm import GaussianMixtureConfig
from pofx.models.classical.kmeans import nearest, partition
from pofx.testing import check_model

SHAPES = ("full", "tied", "diagonal", "spherical")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def clusters(n=300, d=2, k=3, apart=4.0):
    centres = apart * torch.randn(k, d, generator=seeded(11))
    which = torch.randint(k, (n,), generator=seeded(12))
    return centres[which] + torch.randn(n, d, generator=seeded(13)) @ torch.randn(d, d, generator=seeded(14))


def with_holes(x, share=0.3):
    return x.masked_fill(torch.rand(x.shape, generator=seeded(7)) < share, torch.nan)


def learned(x, holdout=None, **options):
    model = GaussianMixtureConfig(**options).build(Domain.real(x.shape[1]))
    return model, list(model.steps(x, holdout=holdout, generator=seeded()))


def torchs(model):
    """The same mixture, as torch has it."""
    c = model.components
    if isinstance(c, Gaussians):
        law = MultivariateNormal(c.mean, c.covariance.expand(len(c.mean), -1, -1), validate_args=False)
    else:
        law = Independent(Normal(c.mean, c.variance.expand_as(c.mean).sqrt(), validate_args=False), 1, validate_args=False)
    return MixtureSameFamily(Categorical(logits=model.log_weight, validate_args=False), law, validate_args=False)


@pytest.fixture(params=SHAPES)
def model(request):
    return learned(clusters(d=3), components=4, covariance=request.param, restarts=1)[0]


# -- the density and its questions -----------------------------------------------------------------


def test_log_prob_and_mean_are_torchs(model):
    x = 5 * torch.randn(50, 3)
    torch.testing.assert_close(model.log_prob(x), torchs(model).log_prob(x))
    torch.testing.assert_close(model.mean(), torchs(model).mean)


def test_one_normal_far_away_does_not_underflow(model):
    assert model.log_prob(torch.full((3,), 1e6)).isfinite()


def test_holes_are_summed_out(model):
    x = with_holes(clusters(40, 3), 0.5)
    for row in x[~x.isnan().all(1)]:
        seen = (~row.isnan()).nonzero()[:, 0].tolist()
        torch.testing.assert_close(model.log_prob(row), model.marginal(seen).log_prob(row[seen]))


def test_conditional_is_joint_over_marginal(model):
    evidence = torch.tensor([torch.nan, 1.0, torch.nan])
    y = 4 * torch.randn(30, 2)
    whole = evidence.repeat(30, 1)
    whole[:, [0, 2]] = y
    torch.testing.assert_close(model.conditional(evidence).log_prob(y), model.log_prob(whole) - model.log_prob(evidence))


def test_imputation_is_the_conditional_mean(model):
    evidence = torch.tensor([torch.nan, 1.0, torch.nan])
    torch.testing.assert_close(model.impute(evidence)[[0, 2]], model.conditional(evidence).mean())


def test_conditional_of_one_component_is_the_gaussians():
    x = clusters(d=3)
    mixture, _ = learned(x, components=1, covariance="full", prior_rows=0.0)
    gaussian = GaussianConfig(prior_rows=0.0).build(Domain.real(3))
    list(gaussian.steps(x))
    evidence = torch.tensor([0.5, torch.nan, torch.nan])
    torch.testing.assert_close(mixture.conditional(evidence).mu[0], gaussian.conditional(evidence).mu, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixture.conditional(evidence).spread[0], gaussian.conditional(evidence).covariance, rtol=1e-5, atol=1e-5)


def test_mode_is_no_worse_than_a_fine_grid():
    model, _ = learned(clusters(), components=4)
    side = torch.linspace(-12, 12, 201)
    grid = torch.cartesian_prod(side, side)
    assert model.log_prob(model.mode()) >= model.log_prob(grid).max() - 1e-9
    evidence = torch.tensor([torch.nan, 1.0])
    line = torch.stack((side, torch.full_like(side, 1.0)), 1)
    found = model.mode(evidence)
    assert found[1] == 1.0
    assert model.log_prob(found) >= model.log_prob(line).max() - 1e-9


def test_codes_are_responsibilities(model):
    x = clusters(20, 3)
    code = model.encode(x)
    torch.testing.assert_close(code.sum(-1), torch.ones(20))
    want = torchs(model)
    joint = want.mixture_distribution.logits + want.component_distribution.log_prob(x[:, None])
    torch.testing.assert_close(code, joint.softmax(-1))


def test_draws_by_the_inverse_cdf_have_the_frequencies():
    weights, n = torch.tensor([0.0, 3.0, 1.0, 0.0, 6.0]), 40_000
    for which in (draw(weights, n, generator=seeded()), draw_per_row(weights.expand(n, -1), generator=seeded())):
        share = torch.bincount(which, minlength=5) / n
        # 6 standard errors of the largest: once in 10^8
        torch.testing.assert_close(share, weights.double() / 10, atol=6 * 0.5 / n**0.5, rtol=0)
        assert share[0] == share[3] == 0
    assert draw(torch.zeros(4), 1000, generator=seeded()).unique().tolist() == [0, 1, 2, 3]


# -- EM --------------------------------------------------------------------------------------------


def test_one_component_is_the_sample_mean_and_covariance():
    x = clusters(d=4)
    full, _ = learned(x, components=1, covariance="full", prior_rows=0.0)
    torch.testing.assert_close(full.mu[0], x.mean(0))
    torch.testing.assert_close(full.spread[0], x.T.cov(correction=0), rtol=1e-6, atol=1e-6)
    diagonal, _ = learned(x, components=1, covariance="diagonal", prior_rows=0.0)
    torch.testing.assert_close(diagonal.spread[0, :, 0], x.var(0, correction=0), rtol=1e-6, atol=1e-6)
    spherical, _ = learned(x, components=1, covariance="spherical", prior_rows=0.0)
    torch.testing.assert_close(spherical.spread[0, 0, 0], x.var(0, correction=0).mean(), rtol=1e-6, atol=1e-6)


def test_two_components_shared_covariance_is_pooled_within():
    x = torch.cat((torch.randn(100, 2), torch.randn(50, 2) + 1000))
    tied, _ = learned(x, components=2, covariance="tied", prior_rows=0.0)
    pooled = (x[:100].T.cov(correction=0) * 100 + x[100:].T.cov(correction=0) * 50) / 150
    assert len(tied.spread) == 1
    torch.testing.assert_close(tied.spread[0], pooled, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("holes", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_likelihood_climbs(shape, holes):
    """With a prior of next to no rows the objective is the likelihood."""
    x = with_holes(clusters(d=3), holes)
    _, path = learned(x, components=4, covariance=shape, prior_rows=0.0, tolerance=0.0, steps=30)
    assert all(after >= before - 1e-6 for before, after in pairwise(path))


@pytest.mark.parametrize(("ours", "theirs"), [("full", "full"), ("tied", "tied"), ("diagonal", "diag"), ("spherical", "spherical")])
def test_a_step_is_scikit_learns(ours, theirs):
    mixture = pytest.importorskip("sklearn.mixture")
    x = clusters(d=3)
    model, _ = learned(x, components=3, covariance=ours, prior_rows=0.0, steps=1)
    start = model.components
    moments = start.expect(x, model.log_weight)
    after = start.maximise(moments, Prior(1e-12, data_variance(x)))
    covariance = model.spread if isinstance(start, Gaussians) else start.variance
    precision = covariance.inverse() if isinstance(start, Gaussians) else 1 / covariance
    given = precision[0] if ours == "tied" else precision[:, 0] if ours == "spherical" else precision
    peer = mixture.GaussianMixture(
        3, covariance_type=theirs, weights_init=model.log_weight.exp().numpy(), means_init=model.mu.numpy(),
        precisions_init=given.numpy(), max_iter=1, tol=0.0, reg_covar=0.0,
    )  # fmt: skip
    with pytest.warns(match="did not converge"):
        peer.fit(x.numpy())
    torch.testing.assert_close(after.mean, torch.tensor(peer.means_))
    spread = after.covariance if isinstance(after, Gaussians) else after.variance
    want = torch.tensor(peer.covariances_)
    torch.testing.assert_close(spread.reshape(want.shape), want)
    torch.testing.assert_close(moments.log_weight.exp(), torch.tensor(peer.weights_))


@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("covariances", ["full", "tied"])
def test_the_quadratic_form_is_the_cholesky_form(covariances, dtype, off):
    x = clusters(5000, 6, 8)
    model, _ = learned(x, components=8, covariance=covariances, steps=3)
    want = model.components.expect(x, model.log_weight)
    got = QuadraticEStep(x, dtype)(model.components, model.log_weight)
    assert got.log_likelihood == pytest.approx(want.log_likelihood, abs=off)
    torch.testing.assert_close(got.count, want.count, atol=off * len(x), rtol=0)
    scale = want.second.abs().amax()
    torch.testing.assert_close(got.first, want.first, atol=off * float(scale), rtol=0)
    torch.testing.assert_close(got.second, want.second, atol=off * float(scale), rtol=0)


def test_narrow_components_are_taken_out_of_the_quadratic_form():
    """A component 10^9 times narrower than the data is beyond float32 and float64 alike: the Cholesky form steps in."""
    x = torch.cat((torch.randn(200, 2), 1e-9 * torch.randn(200, 2)))
    narrow = Gaussians(torch.zeros(2, 2), torch.stack((torch.eye(2), 1e-18 * torch.eye(2))))
    log_weight = torch.full((2,), -math.log(2))
    want = narrow.expect(x, log_weight).log_likelihood
    for dtype in (torch.float32, torch.float64):
        assert QuadraticEStep(x, dtype)(narrow, log_weight).log_likelihood == want


def test_float32_learns_what_float64_learns():
    x = clusters(4000, 5, 6)
    fine, _ = learned(x, components=6, covariance="full")
    coarse, _ = learned(x, components=6, covariance="full", precision="float32")
    assert coarse.mu.dtype is torch.float64
    assert float(coarse.log_prob(x).mean()) == pytest.approx(float(fine.log_prob(x).mean()), abs=1e-3)


# -- choices ---------------------------------------------------------------------------------------


def test_the_number_of_clusters_is_found():
    x = clusters(600, 2, 3, apart=10.0)
    by_holdout, _ = learned(x[:400], x[400:], covariance="full")
    by_bic, _ = learned(x, covariance="full")
    assert len(by_holdout.mu) == len(by_bic.mu) == 3


def test_the_shape_is_chosen_by_unseen_rows():
    x = torch.randn(400, 12) * torch.linspace(0.1, 3, 12) + 6 * torch.randint(2, (400, 1))
    few = x[:40]
    auto, _ = learned(few, x[40:], prior_rows=0.5)
    full, _ = learned(few, x[40:], prior_rows=0.5, covariance="full")
    assert auto.log_prob(x[40:]).mean() >= full.log_prob(x[40:]).mean()
    assert auto.spread.shape[-1] == 1


def test_the_held_model_is_the_best_seen():
    x = clusters(200, 3, 4)
    model = GaussianMixtureConfig(covariance="full").build(Domain.real(3))
    best = -math.inf
    for _ in model.steps(x[:150], holdout=x[150:], generator=seeded()):
        best = max(best, float(model.log_prob(x[150:]).mean()))
    assert float(model.log_prob(x[150:]).mean()) == best


def test_more_restarts_give_no_looser_partition():
    y = clusters(500, 2, 8)

    def looseness(restarts):
        part = partition(y, 8, restarts=restarts, generator=seeded())
        return sum(float((y[part == j] - y[part == j].mean(0)).square().sum()) for j in part.unique())

    assert looseness(10) <= looseness(1) + 1e-9
    assert nearest(y, y[:5])[:5].tolist() == [0, 1, 2, 3, 4]


# -- bad input -------------------------------------------------------------------------------------

BAD = {
    "one row repeated": torch.ones(20, 3),
    "a duplicated row": torch.cat((torch.randn(20, 3), torch.ones(10, 3))),
    "a constant column": torch.cat((torch.randn(20, 2), torch.full((20, 1), 7.0)), 1),
    "fewer rows than variables": torch.randn(6, 8),
    "rank one": torch.randn(20, 1) @ torch.randn(1, 5),
    "an empty column": torch.cat((torch.randn(20, 2), torch.full((20, 1), torch.nan)), 1),
    "an empty row": torch.cat((torch.randn(20, 2), torch.full((1, 2), torch.nan))),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", BAD)
def test_degenerate_rows_stay_finite(name, shape):
    model, path = learned(BAD[name], components=4, covariance=shape, prior_rows=0.0, restarts=1)
    assert math.isfinite(path[-1])
    assert model.log_prob(BAD[name]).isfinite().all()
    assert model.sample(5).isfinite().all()


def test_one_row_has_one_component():
    model, _ = learned(torch.randn(1, 3))
    assert len(model.mu) == 1
    with pytest.raises(DataError, match="components=2 needs at least as many rows, got 1"):
        learned(torch.randn(1, 3), components=2)


def test_conditions_are_refused():
    with pytest.raises(Unavailable, match="fit all columns and ask `conditional`"):
        GaussianMixtureConfig().build(Domain.real(2), Domain.real(1))


@pytest.mark.parametrize("shape", SHAPES)
def test_keeps_every_promise_of_a_family(shape):
    x = with_holes(clusters(200, 3), 0.2)
    model, _ = learned(x, components=3, covariance=shape)
    check_model(model, x, generator=seeded())


def test_equal_generators_learn_equal_models():
    x = clusters(200, 3)
    one, two = learned(x, components=5)[0], learned(x, components=5)[0]
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_the_score_of_a_mixture_is_the_models():
    model, path = learned(clusters(), components=3, covariance="full", prior_rows=1.0)
    mixture = Mixture(model.components, model.log_weight)
    assert float(mixture.log_prob(clusters()).mean()) == pytest.approx(path[-1])
    torch.testing.assert_close(mixture.log_prob(clusters()), model.log_prob(clusters()))
