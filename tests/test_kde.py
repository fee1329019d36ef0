"""The `kde` family against a float64 brute force, integrals, and the closed forms of one kernel."""

import math

import pytest
import torch
from torch.distributions import Normal

from pofx.domain import Domain
from pofx.errors import Unavailable
from pofx.models.classical.kde import KernelDensityConfig, scale_of, scott_bandwidth, silverman_bandwidth
from pofx.testing import check_model


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def learned(x, holdout=None, **options):
    model = KernelDensityConfig(**options).build(Domain.real(x.shape[1]))
    return model, list(model.steps(x, holdout=holdout, generator=seeded()))


def brute_force(model, q):
    """log Σ_i w_i Π_d N(q_d | x_id, h_d²), one subtraction at a time, a missing entry left out of the product."""
    log_kernel = Normal(model.rows, model.bandwidth, validate_args=False).log_prob(q[:, None].nan_to_num())
    log_kernel = torch.where(q[:, None].isnan(), 0.0, log_kernel)
    return (model.log_weight + log_kernel.sum(-1)).logsumexp(-1)


def rings(n, d, seed=3):
    """Rows on two shells: nothing a normal is like."""
    x = torch.randn(n, d, generator=seeded(seed))
    return x / x.norm(dim=1, keepdim=True) * (1 + 2 * torch.randint(2, (n, 1), generator=seeded(seed + 1)))


# -- the density and its questions -----------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 10])
@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_every_row_is_a_brute_forces_however_far(d, scale):
    model, _ = learned(rings(600, d) + 100, scale=scale)
    q = rings(200, d, seed=9) * torch.logspace(0, 3, 200)[:, None] + 100
    want = brute_force(model, q)
    assert want.min() < -1e5
    torch.testing.assert_close(model.log_prob(q), want, atol=1e-6, rtol=1e-12)


def test_a_row_with_holes_is_a_brute_forces():
    model, _ = learned(rings(300, 4))
    q = rings(100, 4, seed=9)
    q = q.masked_fill(torch.rand(q.shape, generator=seeded(7)) < 0.5, torch.nan)
    torch.testing.assert_close(model.log_prob(q), brute_force(model, q))
    for row in q[~q.isnan().all(1)]:
        seen = (~row.isnan()).nonzero()[:, 0].tolist()
        torch.testing.assert_close(model.log_prob(row), model.marginal(seen).log_prob(row[seen]))


def test_mass_is_one():
    line = torch.linspace(-8, 8, 4001)[:, None]
    model, _ = learned(rings(50, 1))
    assert float(torch.trapezoid(model.log_prob(line).exp(), line[:, 0])) == pytest.approx(1, abs=1e-9)
    side = torch.linspace(-8, 8, 401)
    model, _ = learned(rings(80, 2))
    mass = model.log_prob(torch.cartesian_prod(side, side)).exp().sum() * (side[1] - side[0]) ** 2
    assert float(mass) == pytest.approx(1, abs=1e-6)


def test_conditional_is_joint_over_marginal():
    model, _ = learned(rings(200, 3))
    evidence = torch.tensor([torch.nan, 0.7, torch.nan])
    y = torch.randn(30, 2)
    whole = evidence.repeat(30, 1)
    whole[:, [0, 2]] = y
    torch.testing.assert_close(model.conditional(evidence).log_prob(y), model.log_prob(whole) - model.log_prob(evidence))


def test_far_evidence_picks_its_kernel():
    model, _ = learned(torch.tensor([[0.0, 0.0], [10.0, 5.0]]), scale=0.1)
    torch.testing.assert_close(model.impute(torch.tensor([1e4, torch.nan]))[1], torch.tensor(5.0))


def test_means_are_those_of_kernels():
    model, _ = learned(rings(100, 3))
    torch.testing.assert_close(model.mean(), model.rows.mean(0))
    evidence = torch.tensor([torch.nan, 0.7, torch.nan])
    torch.testing.assert_close(model.impute(evidence)[[0, 2]], model.conditional(evidence).mean())


def test_mode_is_no_worse_than_a_fine_grid():
    model, _ = learned(rings(300, 2))
    side = torch.linspace(-4, 4, 201)
    assert model.log_prob(model.mode()) >= model.log_prob(torch.cartesian_prod(side, side)).max() - 1e-6
    found = model.mode(torch.tensor([torch.nan, 0.5]))
    assert found[1] == 0.5
    assert model.log_prob(found) >= model.log_prob(torch.stack((side, torch.full_like(side, 0.5)), 1)).max() - 1e-6


def test_draws_have_the_moments():
    model, _ = learned(rings(100, 2))
    n = 40_000
    x = model.sample(n, generator=seeded())
    want = model.rows.var(0, correction=0) + model.bandwidth.square()
    # 2 means and 2 variances of a bounded-kurtosis law: 6 standard errors fail once in 10^7
    assert ((x.mean(0) - model.mean()).abs() < 6 * (want / n).sqrt()).all()
    assert ((x.var(0) - want).abs() < 6 * want * math.sqrt(2 / n)).all()


def test_completions_have_the_conditional_moments():
    model, _ = learned(rings(100, 2))
    n, evidence = 40_000, torch.tensor([torch.nan, 0.5])
    law = model.conditional(evidence)
    x = model.complete(evidence.repeat(n, 1), generator=seeded())
    assert (x[:, 1] == 0.5).all()
    variance = (law.log_weight.exp() @ (law.rows - law.mean()).square() + law.bandwidth.square())[0]
    assert (x[:, 0].mean() - law.mean()[0]).abs() < 6 * (variance / n).sqrt()


# -- the bandwidth ---------------------------------------------------------------------------------


def test_rules_are_their_formulas():
    x = torch.randn(500, 2)
    sd = scale_of(x)
    torch.testing.assert_close(silverman_bandwidth(x), sd * 500 ** (-1 / 6))  # (4 / (D + 2)) = 1 at D = 2
    torch.testing.assert_close(scott_bandwidth(x), sd * 500 ** (-1 / 6))
    torch.testing.assert_close(silverman_bandwidth(x[:, :1]), (4 / 1500) ** 0.2 * sd[:1])
    assert (sd <= x.std(0)).all()


@pytest.mark.parametrize("rule", ["likelihood", "silverman", "scott"])
def test_units_scale_the_bandwidth(rule):
    x = rings(200, 2)
    one, _ = learned(x, bandwidth=rule)
    hundred, _ = learned(100 * x, bandwidth=rule)
    torch.testing.assert_close(hundred.bandwidth, 100 * one.bandwidth)
    torch.testing.assert_close(hundred.log_prob(100 * x), one.log_prob(x) - 2 * math.log(100))


def test_the_step_tells_the_leave_one_out_likelihood():
    x = rings(40, 2)
    model, (told,) = learned(x, bandwidth="silverman")
    left = []
    for i in range(40):
        others, _ = learned(torch.cat((x[:i], x[i + 1 :])), bandwidth="silverman")
        others.bandwidth = model.bandwidth
        left.append(float(others.log_prob(x[i])))
    assert told == pytest.approx(sum(left) / 40)


def test_no_bandwidth_on_the_grid_likes_unseen_rows_better():
    x = rings(400, 2)
    for holdout in (x[200:], None):
        model, _ = learned(x[:200], holdout)
        best = silverman_bandwidth(x[:200])
        scored = x[200:] if holdout is not None else x[:200]
        own = None if holdout is not None else torch.arange(200)
        chosen = model._score(model.bandwidth, scored, own)
        assert chosen >= max(model._score(best * c, scored, own) for c in torch.logspace(-1, 0.9, 30).tolist()) - 0.01
    unseen, rule = learned(x[:200], x[200:])[0], learned(x[:200], bandwidth="silverman")[0]
    assert unseen.log_prob(x[200:]).mean() > rule.log_prob(x[200:]).mean()


# -- bad input -------------------------------------------------------------------------------------

BAD = {
    "one row repeated": torch.ones(20, 3),
    "every row twice": torch.randn(20, 3).repeat(2, 1),
    "a constant column": torch.cat((torch.randn(20, 2), torch.full((20, 1), 7.0)), 1),
    "mostly one value": torch.cat((torch.zeros(90, 1), torch.randn(10, 1))),
    "fewer rows than variables": torch.randn(3, 8),
    "one row": torch.randn(1, 3),
    "an empty row": torch.cat((torch.randn(20, 2), torch.full((1, 2), torch.nan))),
}


@pytest.mark.parametrize("rule", ["likelihood", "silverman", "scott"])
@pytest.mark.parametrize("name", BAD)
def test_degenerate_rows_stay_finite(name, rule):
    model, path = learned(BAD[name], bandwidth=rule)
    assert math.isfinite(path[-1])
    assert (model.bandwidth > 0).all()
    assert model.log_prob(BAD[name]).isfinite().all()
    assert model.sample(5).isfinite().all()


def test_missing_training_cells_are_completed_by_a_normal():
    whole = torch.randn(2000, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.4]])
    x = whole.masked_fill(torch.rand(whole.shape, generator=seeded(7)) < 0.3, torch.nan)
    model, _ = learned(x)
    seen = ~x.isnan()
    assert torch.equal(model.rows[seen], x[seen])
    # 2,000 rows: a covariance's standard error is below 0.05
    torch.testing.assert_close(model.rows.T.cov(), whole.T.cov(), atol=0.25, rtol=0)


def test_conditions_are_refused():
    with pytest.raises(Unavailable, match="fit all columns and ask `conditional`"):
        KernelDensityConfig().build(Domain.real(2), Domain.real(1))


def test_keeps_every_promise_of_a_family():
    x = rings(200, 3)
    model, _ = learned(x)
    check_model(model, x, generator=seeded())
