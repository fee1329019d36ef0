"""R-hat, effective sizes and Pareto's k against processes that have them in closed form, and against the papers' loops."""

import math

import pytest
import torch

from pofx.errors import DataError
from pofx.samplers import bulk_ess, mean_error, mean_ess, pareto_k, rhat, tail_ess, weight_ess
from pofx.samplers.diagnostics import fit_pareto, tail_length


def ar1(phi, steps, *shape):
    """x_t = phi x_t-1 + sqrt(1 - phi^2) n_t, in equilibrium from the first step: variance 1, autocorrelation phi^t."""
    x = torch.empty(steps, *shape)
    x[0] = torch.randn(shape)
    for t in range(1, steps):
        x[t] = phi * x[t - 1] + math.sqrt(1 - phi**2) * torch.randn(shape)
    return x


# -- the papers' formulas, as loops ------------------------------------------------------------------


def halves(x):
    half = len(x) // 2
    return torch.cat((x[:half], x[-half:]), 1)


def ranks(x):
    """Phi^-1 of the mean rank of each number among all."""
    flat = x.flatten().tolist()
    mean_rank = [sum(b < a for b in flat) + (sum(b == a for b in flat) + 1) / 2 for a in flat]
    return torch.special.ndtri((torch.tensor(mean_rank) - 0.375) / (len(flat) + 0.25)).reshape(x.shape)


def plain_rhat(x):
    n = len(x)
    within, between = x.var(0).mean(), n * x.mean(0).var()
    return float((((n - 1) / n * within + between / n) / within).sqrt())


def plain_ess(x):
    n, m = x.shape
    centred = x - x.mean(0)
    within = x.var(0).mean()
    total = (n - 1) / n * within + x.mean(0).var()

    def rho(t):
        return 1.0 if t == 0 else float(1 - (within - (centred[: n - t] * centred[t:]).sum(0).mean() / n) / total)

    pairs, least = 0.0, math.inf
    for k in range(n // 2):
        pair = rho(2 * k) + rho(2 * k + 1)
        if pair <= 0:
            return n * m / max(-1 + 2 * pairs + max(rho(2 * k), 0.0), 1 / math.log10(n * m))
        least = min(least, pair)
        pairs += least
    return n * m / (-1 + 2 * pairs)


SERIES = {
    "independent": lambda: torch.randn(20, 3),
    "slow": lambda: ar1(0.9, 41, 3),
    "antithetic": lambda: ar1(-0.7, 40, 2),
    "ties": lambda: torch.randint(3, (30, 4)).double(),
    "apart": lambda: torch.randn(16, 3) + torch.arange(3.0),
    "one chain": lambda: ar1(0.5, 50, 1),
}


@pytest.mark.parametrize("name", SERIES)
def test_the_papers_loops_agree(name):
    x = SERIES[name]()
    folded = (x - x.flatten().quantile(0.5)).abs()
    assert float(rhat(x)) == pytest.approx(max(plain_rhat(halves(ranks(y))) for y in (x, folded)))
    assert float(bulk_ess(x)) == pytest.approx(plain_ess(halves(ranks(x))))
    assert float(mean_ess(x)) == pytest.approx(plain_ess(halves(x)))
    tails = [(x <= x.flatten().quantile(q)).double() for q in (0.05, 0.95)]
    assert float(tail_ess(x)) == pytest.approx(min(plain_ess(halves(t)) for t in tails if t.unique().numel() > 1))


# -- processes with a known answer -------------------------------------------------------------------


@pytest.mark.parametrize("phi", [-0.5, 0.0, 0.5, 0.9])
def test_effective_size_of_an_autoregression(phi):
    """ESS / S = (1 - phi) / (1 + phi). Over 200 copies the mean has an error; 6 of them (2e-9) and 4 % for the window's bias."""
    x = ar1(phi, 1000, 4, 200)
    tau = x[..., 0].numel() / mean_ess(x)
    want = (1 + phi) / (1 - phi)
    assert float(tau.mean()) == pytest.approx(want, abs=6 * float(tau.std()) / 200**0.5 + 0.04 * want)
    assert float((bulk_ess(x) / mean_ess(x)).mean()) == pytest.approx(1, abs=0.05)


def test_the_error_of_a_mean_is_its_spread():
    """The mean of 4 x 1000 steps of an autoregression has variance (1 + phi) / (1 - phi) / 4000 to 1 %; z-scores have variance 1."""
    x = ar1(0.6, 1000, 4, 500)
    z = x.mean((0, 1)) / mean_error(x)
    # the variance of 500 z-scores has the error sqrt(2 / 500) = 0.063; 6 of them, and 5 % for errors being estimates
    assert float(z.var()) == pytest.approx(1, abs=6 * 0.063 + 0.05)
    assert float(mean_error(x).mean()) == pytest.approx((4 / 4000) ** 0.5, rel=0.05)


def test_mixed_chains_have_an_rhat_of_one():
    assert rhat(torch.randn(1000, 4, 50)).max() < 1.01


def test_chains_apart_are_seen_in_place_spread_and_drift():
    x = torch.randn(2000, 4)
    spread = x * torch.tensor([1.0, 1.0, 1.0, 3.0])
    drift = x + torch.linspace(0, 2, 2000)[:, None]
    assert all(float(rhat(y)) > 1.05 for y in (x + torch.tensor([0.0, 0.0, 0.0, 1.0]), spread, drift))
    assert plain_rhat(halves(ranks_fast(spread))) < 1.01  # only the folded ranks see it


def ranks_fast(x):
    order = x.flatten().argsort().argsort().double() + 1
    return torch.special.ndtri((order - 0.375) / (x.numel() + 0.25)).reshape(x.shape)


def test_heavy_tails_do_not_matter_to_ranks():
    x = torch.randn(500, 4, 3)
    torch.testing.assert_close(bulk_ess(x.exp().exp()), bulk_ess(x))
    assert rhat(torch.distributions.Cauchy(0.0, 1.0).sample((1000, 4, 20))).max() < 1.02


def test_what_stands_still():
    fixed, stuck = torch.full((10, 3), 0.1), torch.tensor([0.1, 0.2, 0.3]).expand(10, 3)
    for f in (rhat, bulk_ess, tail_ess, mean_ess):
        assert f(fixed).isnan()
        assert f(torch.full((10, 3), torch.nan)).isnan()
    assert float(mean_error(fixed)) == 0
    assert float(rhat(stuck)) == math.inf
    assert bulk_ess(stuck) <= 6  # half chains


def test_events_keep_their_shape_and_type():
    x = torch.randn(20, 3, 2, 5, dtype=torch.float32)
    for f in (rhat, bulk_ess, tail_ess, mean_ess, mean_error):
        assert f(x).shape == (2, 5)
        assert f(x).dtype == torch.float32


@pytest.mark.parametrize("f", [rhat, bulk_ess, tail_ess, mean_ess, mean_error])
def test_three_steps_are_too_few(f):
    with pytest.raises(DataError, match="need at least 4 steps of each chain, got 3"):
        f(torch.randn(3, 2))


# -- weights -----------------------------------------------------------------------------------------


def test_effective_size_of_weights():
    assert float(weight_ess(torch.full((7,), 800.0))) == pytest.approx(7)
    assert float(weight_ess(torch.tensor([-800.0, 0.0, -torch.inf]))) == 1
    assert float(weight_ess(torch.full((3,), -torch.inf))) == 0
    log_w = 0.5 * torch.randn(10_000, 20)  # log-normal weights: E[w]^2 / E[w^2] = exp(-sigma^2)
    torch.testing.assert_close(weight_ess(log_w).mean() / 10_000, torch.tensor(-0.25).exp(), rtol=0.01, atol=0)


@pytest.mark.parametrize("k", [0.1, 0.5, 0.7, 1.0])
def test_weights_with_a_pareto_tail(k):
    """w = u^-k has P(w > t) = t^(-1/k), a Pareto tail at every threshold. 6 errors of the mean of 200 (2e-9), and 0.03 of bias."""
    log_w = -k * torch.rand(4000, 200).log()
    n = tail_length(4000)
    got, want = pareto_k(log_w), (n * k + 5) / (n + 10)
    assert float(got.mean()) == pytest.approx(want, abs=6 * float(got.std()) / 200**0.5 + 0.03)


def test_few_weights_lean_on_the_prior():
    """A tail of 20 of 100 weights counts 20 against the prior's 10 at 1/2: k = 1.5 is answered by about 1.17."""
    got = pareto_k(-1.5 * torch.rand(100, 2000).log())
    assert float(got.mean()) == pytest.approx((20 * 1.5 + 5) / 30, abs=6 * float(got.std()) / 2000**0.5 + 0.06)


def test_the_fit_finds_both_parameters():
    u = torch.rand(5000, 50)
    k, sigma = fit_pareto((3.0 * (u**-0.4 - 1) / 0.4).sort(0).values)
    torch.testing.assert_close(sigma.mean(), torch.tensor(3.0), rtol=0.02, atol=0)
    torch.testing.assert_close(k.mean(), torch.tensor(0.4), rtol=0, atol=0.02)


def test_weights_without_a_tail_to_fit():
    assert float(pareto_k(torch.zeros(100))) == -math.inf
    assert float(pareto_k(torch.randn(20))) == math.inf
    assert float(pareto_k(torch.arange(100.0) ** 2 * 10)) == math.inf
    assert pareto_k(torch.full((100,), -torch.inf)).isnan()
    assert float(pareto_k(torch.rand(10_000).log())) < 0  # uniform weights are bounded: their shape is -1
