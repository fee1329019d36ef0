"""Importance sampling against integrals in closed form."""

import math

import pytest
import torch

from pofx.errors import DataError
from pofx.samplers import Weighted, importance, log_mean, smoothed, systematic

LOG_Z = 1.7


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def log_normal(x, sd=1.0):
    return (-0.5 * (x / sd).square() - math.log(sd) - 0.5 * math.log(2 * math.pi)).sum(-1)


def weighted(n=20_000, sd=1.5, seed=0):
    """p = e^1.7 N(0, 1) from draws of N(0, sd^2), in two dimensions."""
    return importance(
        lambda x: LOG_Z + log_normal(x),
        lambda k, g: sd * torch.randn(k, 2, generator=g),
        lambda x: log_normal(x, sd),
        n,
        generator=seeded(seed),
    )


def test_the_evidence_is_the_integral():
    """5 standard errors: once in 1.7 million."""
    log_z, error = weighted().log_evidence
    assert 0 < float(error) < 0.02
    assert float(log_z) == pytest.approx(LOG_Z, abs=5 * float(error))


def test_the_effective_size_is_the_ratio_of_moments():
    """E[w]^2 / E[w^2] = (2 s^2 - 1) / s^4 for two dimensions: p^2 / q is a normal of variance 1 / (2 - 1 / s^2)."""
    want = (2 * 1.5**2 - 1) / 1.5**4
    assert float(weighted(200_000).ess) / 200_000 == pytest.approx(want, rel=0.02)


def test_expectations_and_their_errors():
    """Over 200 repeats z-scores have mean 0 and variance 1: 6 of their own errors (2e-9), and 10 % for errors being estimates."""
    runs = [weighted(1000, seed=s) for s in range(200)]
    answers = [run.expectation(run.x.square()) for run in runs]
    z = torch.stack([(mean - 1) / error for mean, error in answers])[:, 0]
    assert float(z.mean()) == pytest.approx(0, abs=6 / 200**0.5)
    assert float(z.var()) == pytest.approx(1, abs=6 * 0.1 + 0.1)
    log_z = torch.stack([torch.stack(run.log_evidence) for run in runs])
    z = (log_z[:, 0] - LOG_Z) / log_z[:, 1]
    assert float(z.mean()) == pytest.approx(0, abs=6 / 200**0.5 + 0.05)
    assert float(z.var()) == pytest.approx(1, abs=6 * 0.1 + 0.1)


def test_resampled_draws_are_of_p():
    """Each resample of n of ESS draws: 5 errors of a mean of ESS independent ones, doubled for the resampling."""
    run = weighted()
    x = run.resample(20_000, generator=seeded(1))
    bound = 2 * 5 / float(run.ess) ** 0.5
    assert x.mean(0).abs().max() < bound
    assert (x.var(0) - 1).abs().max() < bound * 2**0.5
    assert not torch.equal(x, x.sort(0).values)


def test_quantiles_of_equal_weights_are_the_draws_own():
    x = torch.randn(1000, 2, generator=seeded(3))
    found = Weighted(x, torch.zeros(1000)).quantile(torch.tensor([0.0005, 0.2505, 0.9999]))
    torch.testing.assert_close(found, x.sort(0).values[[0, 250, 999]])
    # and a weight of 3 is three rows: 1, 4, 4, 5, 5, 5
    log_w = torch.tensor([3.0, 1.0, 2.0]).log()
    rows = torch.tensor([5.0, 1.0, 4.0])
    shares = torch.tensor([0.1, 0.3, 0.45, 0.6, 0.9])
    torch.testing.assert_close(Weighted(rows, log_w).quantile(shares), torch.tensor([1.0, 4.0, 4.0, 5.0, 5.0]))


def test_chains_along_the_draws_are_of_the_target():
    """Second halves of 64 chains: moments within 6 errors of what they are worth, taken as a third of their states."""
    run = weighted(64 * 400)
    states = run.metropolis(64, generator=seeded(5))
    assert states.shape == (400, 64, run.x.shape[1])
    x = states[200:].flatten(0, 1)
    bound = 6 / (len(x) / 3) ** 0.5
    assert x.mean(0).abs().max() < bound
    assert (x.var(0) - 1).abs().max() < bound * 2**0.5
    assert (states.diff(dim=0) == 0).all(-1).any()  # refused moves stand still


def test_thin_tails_are_seen():
    assert float(weighted(sd=1.5).k_hat) < 0.5
    assert float(weighted(sd=0.5).k_hat) > 0.7  # w grows as exp(1.5 x^2): its variance does not exist


def test_no_weight_and_one_draw():
    value, error = log_mean(torch.full((4,), -torch.inf))
    assert float(value) == -math.inf
    assert float(error) == math.inf
    value, error = log_mean(torch.tensor([[3.0, 4.0]]))
    assert value.tolist() == [3.0, 4.0]
    assert error.tolist() == [math.inf, math.inf]


def test_systematic_counts_are_rounded_shares():
    log_w, n = 2 * torch.randn(30), 50
    which = systematic(log_w[:, None].expand(-1, 20_000), n, generator=seeded())
    counts = torch.stack([(which == k).sum(0) for k in range(30)]).double()
    share = n * log_w.softmax(0)[:, None]
    assert ((counts >= share.floor() - 1e-9) & (counts <= share.ceil() + 1e-9)).all()
    # a count varies between two neighbours: its standard deviation is at most 1/2; 6 errors of the mean of 20000
    torch.testing.assert_close(counts.mean(1, keepdim=True), share, atol=6 * 0.5 / 20_000**0.5, rtol=0)


def test_systematic_without_weight_is_uniform():
    assert systematic(torch.full((3,), -torch.inf), 6, generator=seeded()).tolist() == [0, 0, 1, 1, 2, 2]
    assert systematic(torch.tensor([-torch.inf, 0.0, -torch.inf]), 3, generator=seeded()).tolist() == [1, 1, 1]


def test_smoothing_lowers_the_error_of_heavy_weights():
    """w = u^-0.8 has no variance; its mean is 5. Over 400 repeats the smoothed mean is nearer, by half at the least."""
    log_w = -0.8 * torch.rand(500, 400).log()
    smooth, k_hat = smoothed(log_w)
    raw, better = ((w.exp().mean(0) - 5).square().mean() for w in (log_w, smooth))
    assert better < raw / 2
    assert float(k_hat.mean()) == pytest.approx(0.8, abs=0.1)
    assert (smooth.amax(0) <= log_w.amax(0) + 1e-12).all()
    body = log_w < log_w.quantile(0.8, dim=0)
    torch.testing.assert_close(smooth[body], log_w[body])
    assert (smooth.gather(0, log_w.argsort(0)).diff(dim=0) >= 0).all()


def test_weights_without_a_tail_stay():
    for log_w in (torch.randn(10), torch.zeros(100)):
        assert smoothed(log_w)[0] is log_w


def test_equal_generators_give_equal_answers():
    assert torch.equal(weighted(100).log_w, weighted(100).log_w)
    log_w = torch.randn(50, dtype=torch.float32)
    assert Weighted(torch.randn(50, 2, dtype=torch.float32), log_w).log_evidence[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "log_w", "sentence"),
    [
        (torch.zeros(3, 1), torch.zeros(2), "a log-weight a draw, got 3 draws and 2 weights"),
        (torch.zeros(0, 1), torch.zeros(0), "got 0 draws"),
        (torch.zeros(3, 1), torch.tensor([0.0, torch.nan, 0.0]), "log-weight 1 is nan"),
        (torch.zeros(3, 1), torch.tensor([0.0, 0.0, torch.inf]), "log-weight 2 is inf"),
        (torch.zeros(2, 1), torch.full((2,), -torch.inf), "every weight is 0"),
    ],
)
def test_bad_weights_are_refused(x, log_w, sentence):
    with pytest.raises(DataError, match=sentence):
        Weighted(x, log_w)
