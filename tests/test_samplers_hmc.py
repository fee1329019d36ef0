"""Hamiltonian Monte Carlo: the flow against physics, what is learned against closed forms, the draws against moments.

A z-score is (estimate - truth) / the sampler's own error; bounds of 6 fail about once in 10^8 numbers.
"""

import math

import pytest
import torch

from pofx.errors import DataError, OptionError
from pofx.samplers import Hamiltonian, Independence, RandomWalk, Sweep, hmc, kernels, mean_error
from pofx.samplers.densities import value_and_grad
from pofx.samplers.dual_averaging import DualAveraging
from pofx.samplers.hmc import chees, first_step, van_der_corput
from pofx.samplers.leapfrog import DIVERGENT, Trajectory, _flow, trajectory


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def standard(x):
    return -0.5 * x.square().sum(-1)


def banana(x):
    """x_0 ~ N(0, 1), x_1 ~ N(x_0^2 / 2, 1): E x_1 = 1/2, Var x_1 = 1 + 1/2, Cov = 0."""
    return -0.5 * x[:, 0].square() - 0.5 * (x[:, 1] - 0.5 * x[:, 0].square()).square()


def gamma(x):
    """x ~ Gamma(3): NaN below 0."""
    return (2 * x.log() - x)[:, 0]


def correlated(dim=10, rho=0.9):
    """Covariance rho^|i - j| in units that span 1000."""
    i = torch.arange(dim)
    scale = torch.logspace(-2, 1, dim)
    covariance = rho ** (i[:, None] - i).abs() * scale[:, None] * scale
    precision = covariance.inverse()
    return covariance, lambda x: -0.5 * ((x @ precision) * x).sum(-1)


def z_scores(draws, truth):
    """(mean over steps and chains - truth) / error, for each entry of the event."""
    return (draws.mean((0, 1)) - truth) / mean_error(draws)


# -- the flow ----------------------------------------------------------------------------------------


def test_the_flow_comes_back():
    x, v = torch.randn(5, 2), torch.randn(5, 2)
    end, v_end = _flow(banana, value_and_grad(banana, x), v, torch.tensor([[0.1, 0.2]]), 7)
    back, v_back = _flow(banana, end, -v_end, torch.tensor([[0.1, 0.2]]), 7)
    torch.testing.assert_close(back.x, x)
    torch.testing.assert_close(v_back, -v)


def test_the_energy_error_falls_as_the_square_of_the_step():
    x, v = 0.5 * torch.randn(50, 2), torch.randn(50, 2)

    def error(leapfrogs):
        end, v_end = _flow(banana, value_and_grad(banana, x), v, torch.full((1, 2), 0.5 / leapfrogs), leapfrogs)
        return (banana(x) - banana(end.x) + 0.5 * (v_end.square().sum(-1) - v.square().sum(-1))).abs().mean()

    order = math.log2(float(error(40) / error(80)))
    assert order == pytest.approx(2, abs=0.05)


def test_a_trajectory_that_leaves_the_support_stays_where_it_began():
    """A step of 100 from x > 0 lands at x < 0 for about half of the velocities, where the density is NaN."""
    start = value_and_grad(gamma, torch.full((1000, 1), 2.0))
    path = trajectory(gamma, start, torch.tensor([[100.0]]), 3, generator=seeded())
    assert path.divergent.any()
    assert path.point.x[path.divergent].eq(2).all()
    assert path.acceptance[path.divergent].eq(0).all()
    assert path.point.x.isfinite().all()
    assert path.proposal.isfinite().all()


def test_a_cliff_is_a_divergence():
    start = value_and_grad(lambda x: -1e6 * x.square().sum(-1), torch.zeros(10, 1))
    path = trajectory(lambda x: -1e6 * x.square().sum(-1), start, torch.ones(1, 1), 1, generator=seeded())
    assert path.divergent.all()
    assert DIVERGENT == 1000


# -- what is learned ---------------------------------------------------------------------------------


def test_dual_averaging_finds_the_target():
    """Acceptance e^-eps is 0.8 at eps = -log 0.8; with noise the average is far quieter than the steps it averages."""
    step, noise, now, average = DualAveraging(5.0, 0.8), torch.randn(4000), [], []
    for n in noise.tolist():
        step.update(math.exp(-step.now) + 0.1 * n)
        now.append(math.log(step.now))
        average.append(math.log(step.average))
    want = math.log(-math.log(0.8))
    assert average[-1] == pytest.approx(want, abs=0.05)
    assert torch.tensor(average[2000:]).std() < torch.tensor(now[2000:]).std() / 3


def test_van_der_corput():
    assert [van_der_corput(n) for n in range(1, 8)] == [0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875]


def test_the_first_step_is_accepted_half_of_the_time():
    scale = torch.tensor([[1e-4]])
    log_p = lambda x: standard(x / scale)
    point = value_and_grad(log_p, scale * torch.randn(2000, 1))
    step = first_step(log_p, point, torch.ones(1), generator=seeded())
    rates = [float(trajectory(log_p, point, torch.tensor([[step * k]]), 1, generator=seeded(1)).acceptance.mean()) for k in (0.5, 2)]
    assert rates[0] > 0.45
    assert rates[1] < 0.55


def test_no_step_suits_a_flat_density():
    with pytest.raises(OptionError, match="no step size suits this density"):
        hmc(lambda x: 0 * x.sum(-1), torch.randn(4, 1), generator=seeded())


def test_chees_is_the_slope_of_its_criterion():
    """A harmonic flow is x' = x cos t + v sin t, v' = v cos t - x sin t. With (x, v) and (-x, -v) all means are 0."""
    x, v, spread = torch.randn(500, 3), torch.randn(500, 3), torch.tensor([1.0, 10.0, 0.1])
    x, v = torch.cat((x, -x)), torch.cat((v, -v))

    def criterion(log_t):
        after = x * log_t.exp().cos() + v * log_t.exp().sin()
        return 0.25 * (after.square().sum(-1) - x.square().sum(-1)).square().mean() / (log_t / 2).exp()

    log_t = torch.tensor(0.4, requires_grad=True)
    (slope,) = torch.autograd.grad(criterion(log_t), log_t)
    t = math.exp(0.4)
    after, v_after = x * math.cos(t) + v * math.sin(t), v * math.cos(t) - x * math.sin(t)
    point = value_and_grad(standard, x)
    path = Trajectory(point, after * spread, v_after, torch.ones(1000), torch.zeros(1000, dtype=torch.bool))
    assert chees(x * spread, path, spread, 1, t) == pytest.approx(float(slope))
    shifted = Trajectory(point, after * spread + 7, v_after, torch.ones(1000), torch.zeros(1000, dtype=torch.bool))
    assert chees(x * spread + 7, shifted, spread, 1, t) == pytest.approx(float(slope))
    order = torch.arange(1000).reshape(2, 500).T.flatten()  # each problem holds pairs
    path = Trajectory(point, (after * spread)[order], v_after[order], torch.ones(1000), torch.zeros(1000, dtype=torch.bool))
    assert chees((x * spread)[order], path, spread, 5, t) == pytest.approx(float(slope))


def test_trajectories_grow_with_correlation():
    def leapfrogs(rho):
        return hmc(correlated(10, rho)[1], torch.randn(16, 10), steps=1, warmup=400, generator=seeded()).leapfrogs

    assert leapfrogs(0.0) < leapfrogs(0.95) / 2


# -- the draws ---------------------------------------------------------------------------------------


def test_a_correlated_gaussian_in_ten_dimensions():
    """10 means and 55 second moments."""
    covariance, log_p = correlated()
    got = hmc(log_p, torch.randn(16, 10), steps=1000, warmup=600, generator=seeded())
    assert z_scores(got.draws, torch.zeros(10)).abs().max() < 6
    products = torch.stack([got.draws[..., i] * got.draws[..., j] for i in range(10) for j in range(i + 1)], -1)
    truth = torch.stack([covariance[i, j] for i in range(10) for j in range(i + 1)])
    assert z_scores(products, truth).abs().max() < 6
    assert got.rhat.max() < 1.02
    assert got.ess.min() > 2000
    assert got.tail_ess.min() > 1000
    assert not got.divergences.any()
    assert 0.6 < float(got.acceptance.mean()) < 0.95
    torch.testing.assert_close(got.spread, covariance.diagonal().sqrt(), rtol=0.2, atol=0)
    torch.testing.assert_close(got.mean[0], got.draws.mean((0, 1)))
    torch.testing.assert_close(got.error[0], mean_error(got.draws))


def test_a_banana():
    got = hmc(banana, torch.randn(16, 2), steps=1500, warmup=500, generator=seeded())
    moments = torch.cat((got.draws, (got.draws - torch.tensor([0.0, 0.5])).square(), got.draws.prod(-1, keepdim=True)), -1)
    assert z_scores(moments, torch.tensor([0.0, 0.5, 1.0, 1.5, 0.0])).abs().max() < 6
    assert got.rhat.max() < 1.02


def test_a_density_with_a_border():
    """Gamma(3) has mean and variance 3; beyond 0 its log-density is NaN."""
    got = hmc(gamma, 0.5 + torch.rand(16, 1), steps=1000, warmup=300, generator=seeded())
    assert (got.draws > 0).all()
    assert z_scores(torch.cat((got.draws, (got.draws - 3).square()), -1), 3.0).abs().max() < 6


def test_chains_of_several_problems():
    """Each problem has a mean of its own; within problems the chains agree, across them they do not."""
    mean = torch.tensor([-5.0, 0.0, 20.0])
    each = mean.repeat_interleave(6)[:, None]
    got = hmc(lambda x: standard(x - each), each + torch.randn(18, 2), problems=3, steps=1000, warmup=300, generator=seeded())
    assert got.rhat.shape == got.ess.shape == got.mean.shape == (3, 2)
    assert got.rhat.max() < 1.02
    assert ((got.mean - mean[:, None]) / got.error).abs().max() < 6
    torch.testing.assert_close(got.spread, torch.ones(2), rtol=0.2, atol=0)  # not the distance between the problems


def test_modes_apart_are_seen_in_rhat():
    log_p = lambda x: torch.logaddexp(standard(x - 30), standard(x + 30))
    start = torch.tensor([[-30.0], [30.0], [-30.0], [30.0]])
    assert hmc(log_p, start, steps=200, warmup=200, generator=seeded()).rhat.min() > 1.5


def test_thinning_keeps_every_other_draw():
    start = torch.randn(4, 2)
    all_draws, half = (hmc(standard, start, steps=n, warmup=50, thin=k, generator=seeded()) for n, k in ((20, 1), (10, 2)))
    assert torch.equal(all_draws.draws[1::2], half.draws)
    torch.testing.assert_close(all_draws.acceptance, half.acceptance)


def test_the_type_is_the_starts_and_the_generator_decides():
    start = torch.randn(4, 2, dtype=torch.float32)
    one, two, other = (hmc(standard, start, steps=10, warmup=20, generator=seeded(s)).draws for s in (0, 0, 1))
    assert one.dtype == torch.float32
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_no_warm_up_keeps_the_first_step():
    got = hmc(standard, torch.randn(50, 1), steps=200, warmup=0, generator=seeded())
    assert abs(float(z_scores(got.draws, 0.0))) < 6


BAD = {
    "one chain": (torch.zeros(1, 2), {}, OptionError, "start at least 2 a problem, got 1 for problems=1"),
    "a ragged start": (torch.zeros(5, 2), {"problems": 2}, DataError, r"shape \(problems \* chains, D\), got \(5, 2\) for problems=2"),
    "an empty start": (torch.zeros(4, 0), {}, DataError, r"got \(4, 0\)"),
    "a start off the support": (torch.tensor([[0.0], [torch.nan]]), {}, DataError, "chain 1 starts where the log-density is not finite"),
    "no steps": (torch.zeros(2, 1), {"steps": 0}, OptionError, "steps is at least 1, got 0"),
    "less than no warm-up": (torch.zeros(2, 1), {"warmup": -1}, OptionError, "warmup is at least 0, got -1"),
    "no thinning": (torch.zeros(2, 1), {"thin": 0}, OptionError, "thin is at least 1, got 0"),
    "no leapfrogs": (torch.zeros(2, 1), {"most_leapfrogs": 0}, OptionError, "most_leapfrogs is at least 1, got 0"),
    "a target of one": (torch.zeros(2, 1), {"target": 1.0}, OptionError, "an acceptance between 0 and 1, got 1.0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    start, options, error, sentence = BAD[name]
    with pytest.raises(error, match=sentence):
        hmc(standard, start, generator=seeded(), **options)


def test_a_density_of_the_wrong_shape_or_without_gradient_is_refused():
    with pytest.raises(OptionError, match=r"one number a row, shape \(4,\), got \(4, 2\)"):
        hmc(lambda x: x, torch.randn(4, 2), generator=seeded())
    with pytest.raises(OptionError, match="a log-density with a gradient is needed"):
        hmc(lambda x: standard(x).detach(), torch.randn(4, 2), generator=seeded())


# -- kernels: exact draws stay exact draws -----------------------------------------------------------

KERNELS = {
    "random walk": RandomWalk(),
    "independence": Independence(lambda n, g: 3 * torch.randn(n, 2, generator=g), lambda x: standard(x / 3)),
    "hamiltonian": Hamiltonian(leapfrogs=4),
    "sweep": Sweep((None, None)),
    "sweep at random": Sweep((None, None), random=True),
    "sweep in a block": Sweep((None, None), block=Hamiltonian(leapfrogs=4)),
}


def exact_banana(n):
    x = torch.randn(n)
    return torch.stack((x, 0.5 * x.square() + torch.randn(n)), -1)


def moments(x):
    return torch.stack((x[:, 0], x[:, 1], x[:, 0].square(), x[:, 1].square(), x.prod(-1), x[:, 0].tanh() * x[:, 1]), -1)


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_leaves_the_density_unchanged(name):
    """Six moments of 40000 independent rows after 5 moves: 5.5 errors of the mean, once in 4 million."""
    x = start = exact_banana(40_000)
    generator = seeded(1)  # not the seed of the starts: equal streams would tie moves to starts
    for _ in range(5):
        moved = KERNELS[name](banana, x, torch.tensor([0.7, 0.7]), generator=generator)
        x = moved.x
    truth = torch.tensor([0.0, 0.5, 1.0, 1.75, 0.0, 0.0])  # the last two are odd in x_0
    z = (moments(x).mean(0) - truth) / (moments(x).std(0) / 200)
    assert z.abs().max() < 5.5
    assert (x != start).any(-1).double().mean() > 0.3
    rates = moved.acceptance[~moved.acceptance.isnan()]  # a coordinate may not be visited at random
    assert ((rates > 0) & (rates <= 1)).all()


def test_every_kernel_has_a_line_above():
    classes = {c for c in vars(kernels).values() if isinstance(c, type) and callable(getattr(c, "first_step", None))} - {kernels.Kernel}
    assert classes | {Sweep} == {type(k) for k in KERNELS.values()}


def test_an_independence_kernel_without_q_takes_the_ratio():
    """Draws of N(0, 1) and a likelihood N(1; x, 1): the posterior is N(1/2, 1/2)."""
    kernel, x, generator = Independence(lambda n, g: torch.randn(n, 1, generator=g)), torch.randn(20_000, 1), seeded(1)
    for _ in range(40):
        x = kernel(lambda y: standard(y - 1), x, torch.ones(1), generator=generator).x
    assert abs(float(x.mean()) - 0.5) < 5.5 * (0.5 / 20_000) ** 0.5
    assert abs(float(x.var()) - 0.5) < 5.5 * 0.5 * (2 / 20_000) ** 0.5


def test_a_hamiltonian_kernel_needs_a_step():
    with pytest.raises(OptionError, match="leapfrogs is at least 1, got 0"):
        Hamiltonian(leapfrogs=0)
