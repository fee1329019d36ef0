"""Solvers against Gaussian data, where each is a scalar recursion, and their order on a mixture; the exact denoiser against Bayes."""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import MultivariateNormal

from pofx.errors import OptionError
from pofx.models.diffusion.exact import ExactDenoiser, check_mixture
from pofx.samplers import (
    DDIM,
    DPM2M,
    SOLVERS,
    Adaptive,
    Ancestral,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    Solver,
    TurnedAdams,
    TurnedRungeKutta,
    karras,
    last,
    log_uniform,
    turned,
)


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def mixture(k=4, e=2, dtype=torch.float64):
    g = seeded(0)
    root = 0.25 * torch.randn(k, e, e, generator=g, dtype=torch.float64)
    mean = 1.2 * torch.randn(k, e, generator=g, dtype=torch.float64)
    weight = torch.randn(k, generator=g, dtype=torch.float64).softmax(0)
    return ExactDenoiser(weight.to(dtype), mean.to(dtype), (root @ root.mT + 0.01 * torch.eye(e, dtype=torch.float64)).to(dtype))


# -- the exact denoiser --------------------------------------------------------------------------------


def test_the_score_is_that_of_the_log_density():
    p = mixture()
    y, s = 2 * torch.randn(50, 2, generator=seeded()), torch.rand(50, 1, generator=seeded()) * 3 + 0.05
    y.requires_grad_()
    (score,) = torch.autograd.grad(p.log_prob(y, s).sum(), y)
    assert torch.allclose((p(y, s) - y) / s**2, score, atol=1e-9)
    assert torch.allclose(p.score(y, s), score, atol=1e-9)
    assert torch.allclose(p(y, 0.3), p(y, torch.full((50, 1), 0.3)), atol=0)


def test_the_density_is_that_of_the_noised_mixture():
    p, y = mixture(), torch.randn(20, 2, generator=seeded())
    for s in (0.0, 0.7):
        each = [MultivariateNormal(m, c + s**2 * torch.eye(2)).log_prob(y) for m, c in zip(p.mean, p.covariance, strict=True)]
        assert torch.allclose(p.log_prob(y, s), (torch.stack(each, -1) + p.weight.log()).logsumexp(-1))
        assert torch.equal(p.component(y, s), (torch.stack(each, -1) + p.weight.log()).argmax(-1))


def test_the_denoiser_is_the_mean_of_the_posterior_and_its_slope_the_covariance():
    """y = x0 + s eps is the measurement A = I, R = s^2 I. Cov[x0 | y] = s^2 dD/dy."""
    p, s = mixture(e=3), 0.4
    for y in torch.randn(5, 3, generator=seeded()):
        mean, covariance = p.condition(torch.eye(3), y, s**2 * torch.eye(3))[0].moments()
        assert torch.allclose(p(y[None], s)[0], mean, atol=1e-12)
        slope = torch.autograd.functional.jacobian(lambda v: p(v[None], s)[0], y)
        assert torch.allclose(s**2 * slope, covariance, atol=1e-11)


def test_the_posterior_of_a_measurement_is_bayes():
    """log p(x | y) = log p(x) + log N(y; A x, R) - log p(y) at every x, and p(y) integrates N(y; A x, R) over draws of x."""
    p, a, y, noise = mixture(), torch.tensor([[1.0, -0.5], [0.3, 2.0]])[:1], torch.tensor([0.4]), torch.tensor([[0.09]])
    posterior, evidence = p.condition(a, y, noise)
    x = torch.randn(40, 2, generator=seeded())
    likelihood = MultivariateNormal(x @ a.mT, noise).log_prob(y)
    assert torch.allclose(posterior.log_prob(x), p.log_prob(x) + likelihood - evidence, atol=1e-9)
    one = ExactDenoiser(p.weight, p.mean @ a.mT, a @ p.covariance @ a.mT)
    assert float(one.log_prob(y[None], 0.3)) == pytest.approx(float(evidence), rel=1e-12)


def test_a_measurement_without_noise_and_components_it_rules_out():
    p = ExactDenoiser(torch.tensor([1.0, 1.0]), torch.tensor([[0.0, 0.0], [1e3, 0.0]]), 0.01 * torch.eye(2).expand(2, 2, 2))
    posterior, evidence = p.condition(torch.tensor([[1.0, 0.0]]), torch.tensor([0.05]), torch.zeros(1, 1))
    mean, covariance = posterior.moments()
    assert torch.allclose(mean, torch.tensor([0.05, 0.0]), atol=1e-12)
    assert torch.allclose(covariance, torch.tensor([[0.0, 0.0], [0.0, 0.01]]), atol=1e-12)
    assert float(evidence) == pytest.approx(math.log(0.5) - 0.125 - 0.5 * math.log(2 * math.pi * 0.01))


@pytest.mark.slow
def test_draws_have_the_mixtures_moments():
    """10^5 draws: each entry of mean and covariance within 6 of its errors (once in 10^9 each)."""
    p, n = mixture(e=3), 100_000
    m, c = p.moments()
    x = p.sample(n, generator=seeded())
    assert ((x.mean(0) - m).abs() < 6 * (c.diagonal() / n).sqrt()).all()
    products = (x - m)[:, :, None] * (x - m)[:, None]
    assert ((products.mean(0) - c).abs() < 6 * products.std(0) / math.sqrt(n)).all()


def test_points_are_a_mixture():
    """Sigma = 0: D is a softmax over points, and draws are the points."""
    points = torch.tensor([[0.0, 1.0], [2.0, -1.0], [1.0, 1.0]])
    p = ExactDenoiser(torch.ones(3), points, torch.zeros(3, 2, 2))
    y = torch.randn(6, 2, generator=seeded())
    r = (-(y[:, None] - points).square().sum(-1) / (2 * 0.5**2)).softmax(-1)
    assert torch.allclose(p(y, 0.5), r @ points)
    assert (p.sample(20, generator=seeded())[:, None] == points).all(-1).any(-1).all()


EYE = torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
BAD_MIXTURES = {
    "shapes": ((torch.ones(2), torch.zeros(3, 2), EYE), r"got \(2,\), \(3, 2\) and \(3, 2, 2\)"),
    "a weight of 0": ((torch.tensor([1.0, 0.0, 1.0]), torch.zeros(3, 2), EYE), "weights of a mixture are positive"),
    "a negative eigenvalue": ((torch.ones(3), torch.zeros(3, 2), -EYE), "symmetric and has no eigenvalue below 0"),
    "a skew": ((torch.ones(3), torch.zeros(3, 2), EYE + EYE.roll(1, 2).triu()), "symmetric and has no eigenvalue below 0"),
}


@pytest.mark.parametrize("name", BAD_MIXTURES)
def test_bad_mixtures_are_refused(name):
    parts, sentence = BAD_MIXTURES[name]
    with pytest.raises(OptionError, match=sentence):
        check_mixture(*parts)


def test_a_mixture_is_checked():
    with pytest.raises(OptionError, match="no eigenvalue below 0"):
        ExactDenoiser(torch.ones(3), torch.zeros(3, 2), -EYE)


# -- Gaussian data: every solver is a scalar recursion ---------------------------------------------------

M, V = 0.3, 0.7
GRID = karras(10, 0.01, 20.0)


def gaussian(y, s):
    """D of N(M, V): shrinks to the mean."""
    return M + V / (V + s**2) * (y - M)


def shrink(s):
    return V / (V + s**2)


# Each takes u = y - M at all levels so far, all levels s, the step i and a draw, and gives u at level i + 1. Written from the formulas of
# the methods, with D u = shrink u put in.


def ddim_of(eta):
    def recursion(u, s, i, z):
        up = eta * s[i + 1] / s[i] * math.sqrt(s[i] ** 2 - s[i + 1] ** 2)
        dn = math.sqrt(s[i + 1] ** 2 - up**2)
        return (dn / s[i] + (1 - dn / s[i]) * shrink(s[i])) * u[i] + (up * z() if eta else 0.0)

    return recursion


def euler_maruyama(u, s, i, z):
    a = 1 + 2 * (s[i + 1] - s[i]) * (1 - shrink(s[i])) / s[i]
    return a * u[i] + math.sqrt(2 * s[i] * (s[i] - s[i + 1])) * z()


def heun(u, s, i, z):
    """du/ds = g u with g = s / (V + s^2)."""
    h, g, ahead = s[i + 1] - s[i], s[i] / (V + s[i] ** 2), s[i + 1] / (V + s[i + 1] ** 2)
    return (1 + 0.5 * h * (g + ahead * (1 + h * g))) * u[i]


def dpm2m_of(eta):
    """The integral of e^(k(l - l_1)) k [D_0 + (l - l_0) D'] over l = -ln s with D' the past difference, to first order in D'."""

    def recursion(u, s, i, z):
        h, k = math.log(s[i] / s[i + 1]), 1 + eta**2
        now = shrink(s[i]) * u[i]
        if i:
            r = math.log(s[i - 1] / s[i]) / h
            now = (1 + 1 / (2 * r)) * now - 1 / (2 * r) * shrink(s[i - 1]) * u[i - 1]
        q = math.exp(-k * h)
        up = math.sqrt(s[i + 1] ** 2 * (1 - math.exp(-2 * eta**2 * h)))
        return q * u[i] + (1 - q) * now + (up * z() if eta else 0.0)

    return recursion


def corrected(recursion, snr, corrections):
    """ULA at level t with step e = 2 snr^2 t^2: u <- (1 - e / (V + t^2)) u + sqrt(2 e) z."""

    def both(u, s, i, z):
        v, e = recursion(u, s, i, z), 2 * snr**2 * s[i + 1] ** 2
        for _ in range(corrections):
            v = (1 - e / (V + s[i + 1] ** 2)) * v + math.sqrt(2 * e) * z()
        return v

    return both


def walk(recursion, u, levels, z):
    """All u: the last step, to the data, is D."""
    s, us = levels.tolist(), [u]
    for i in range(len(s) - 2):
        us.append(recursion(us, s, i, z))
    return [*us[1:], shrink(s[-2]) * us[-1]]


RECURSIONS = {
    "ddim": (DDIM(), ddim_of(0.0)),
    "ddim, half the noise": (DDIM(eta=0.5), ddim_of(0.5)),
    "ancestral": (Ancestral(), ddim_of(1.0)),
    "euler-maruyama": (EulerMaruyama(), euler_maruyama),
    "heun": (Heun(), heun),
    "dpm2m": (DPM2M(), dpm2m_of(0.0)),
    "dpm2m-sde": (DPM2M(eta=1.0), dpm2m_of(1.0)),
    "dpm2m, some noise": (DPM2M(eta=0.6), dpm2m_of(0.6)),
    "predictor-corrector": (PredictorCorrector(), corrected(ddim_of(1.0), 0.16, 1)),
    "three corrections of dpm2m": (PredictorCorrector(3, 0.3, DPM2M()), corrected(dpm2m_of(0.0), 0.3, 3)),
}


def variance(recursion, levels, start):
    """Of the data a solver makes of rows of this variance: the map's response to the start and to each draw, squared."""
    silent = walk(recursion, 1.0, levels, lambda: 0.0)[-1]
    draws = iter(range(10**9))
    walk(recursion, 0.0, levels, lambda: next(draws) * 0.0)
    total = silent**2 * start
    for j in range(next(draws)):
        impulse = iter([0.0] * j + [1.0])
        total += walk(recursion, 0.0, levels, lambda impulse=impulse: next(impulse, 0.0))[-1] ** 2
    return total


@pytest.mark.parametrize("grid", ["karras", "log uniform"])
@pytest.mark.parametrize("name", RECURSIONS)
def test_a_gaussian_is_a_recursion(name, grid):
    """The affine map (from y = 0 and y = 1) and the noise added, step by step, with the same draws."""
    solver, recursion = RECURSIONS[name]
    levels = GRID if grid == "karras" else log_uniform(7, 0.05, 10.0)
    y = torch.tensor([[0.0], [1.0], [-7.0]])
    walked = torch.stack(list(solver(gaussian, y, levels, generator=seeded())))
    g = seeded()
    expected = torch.stack(walk(recursion, y - M, levels, lambda: torch.randn(3, 1, generator=g))) + M
    assert walked.shape == (len(levels) - 1, 3, 1)
    assert torch.allclose(walked, expected, rtol=1e-11, atol=1e-11)


def test_variances_at_ten_steps():
    """Ten steps to s_min and D: of data with variance 0.7 two are too narrow, Euler-Maruyama too wide. Known from another derivation."""
    for name, known in (("ddim", 0.485), ("ancestral", 0.360), ("euler-maruyama", 1.009)):
        assert variance(RECURSIONS[name][1], karras(11, 0.01, 20.0), 400 + V) == pytest.approx(known, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECURSIONS)
def test_draws_have_the_recursions_variance(name):
    """40,000 draws: their variance within 6 of its errors (once in 10^9)."""
    solver, recursion = RECURSIONS[name]
    g, n = seeded(), 40_000
    levels = karras(8, 0.05, 20.0)
    x = last(solver(gaussian, M + 20 * torch.randn(n, 1, generator=g), levels, generator=g))
    exact = variance(recursion, levels, 400.0)
    assert float(x.var()) == pytest.approx(exact, abs=6 * exact * math.sqrt(2 / n))


WEAK = {"ancestral": 1, "euler-maruyama": 1, "ddim, half the noise": 1, "dpm2m-sde": 2}


@pytest.mark.parametrize("name", WEAK)
def test_weak_order(name):
    """From rows of the right law the exact reverse SDE ends in variance V^2 / (V + s_min^2): the error falls by 2^order."""
    low, high = 0.1, 5.0
    truth = V**2 / (V + low**2)
    errors = [abs(variance(RECURSIONS[name][1], log_uniform(n, low, high), V + high**2) - truth) for n in (101, 201)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(WEAK[name], abs=0.3)


@pytest.mark.parametrize(("solver", "order"), [(DDIM(), 1), (Heun(), 2), (DPM2M(), 2)])
@pytest.mark.parametrize("grid", [karras, log_uniform, turned])
def test_order_on_a_mixture(solver, order, grid):
    """Against a fine solution of another kind: the error falls by 2^order where steps are halved."""
    p, low, high = mixture(), 0.1, 5.0
    y = high * torch.randn(60, 2, generator=seeded())
    with torch.no_grad():
        truth = last(Adaptive(1e-11, 1e-11)(p, y, log_uniform(2, low, high)))
        errors = [float((last(solver(p, y, grid(n, low, high))) - truth).square().mean().sqrt()) for n in (161, 321)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize(("low", "high"), [(0.1, 5.0), (0.02, 80.0)])
def test_turned_steps_are_of_order_four(low, high):
    p = mixture()
    y = high * torch.randn(60, 2, generator=seeded())
    with torch.no_grad():
        truth = last(Adaptive(1e-12, 1e-12)(p, y, log_uniform(2, low, high)))
        errors = [float((last(TurnedRungeKutta()(p, y, turned(n, low, high))) - truth).square().mean().sqrt()) for n in (41, 81)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.3)


def slope(u):
    """dx / du = g(u) x of centred normal data, g = (cos a - c / cos a) a' / sin a, c = V / (V + s^2), a = sinh(u) / 10."""
    a = 0.1 * math.sinh(u)
    return (math.cos(a) - shrink(math.tan(a)) / math.cos(a)) * 0.1 * math.cosh(u) / math.sin(a)


def kutta(u, v, before):
    """A step of the 3/8 rule: its polynomial of g."""
    h, k_1 = v - u, slope(u)
    k_2 = slope(u + h / 3) * (1 + h / 3 * k_1)
    k_3 = slope(u + 2 * h / 3) * (1 + h * (k_2 - k_1 / 3))
    k_4 = slope(v) * (1 + h * (k_1 - k_2 + k_3))
    return 1 + h / 8 * (k_1 + 3 * k_2 + 3 * k_3 + k_4)


def adams(u, v, before):
    """Of f = g x at u and at the place before it, both with x at u as the unit."""
    if before is None:
        return 1 + (v - u) * slope(u)
    w, x_w = before
    r = (v - u) / (2 * (u - w))
    return 1 + (v - u) * ((1 + r) * slope(u) - r * slope(w) * x_w)


@pytest.mark.parametrize(("solver", "one"), [(TurnedRungeKutta(), kutta), (TurnedAdams(), adams)])
def test_turned_steps_on_centred_normal_data_are_a_recursion(solver, one):
    levels = solver.grid(7, 0.05, 10.0)
    y = torch.tensor([[1.0], [-7.0]])
    walked = list(solver(lambda y, s: shrink(s) * y, y, levels))
    angles = [math.atan(s) for s in levels.tolist()]
    place = [math.asinh(a / 0.1) for a in angles]
    x, before = math.cos(angles[0]), None
    for i, (u, v) in enumerate(pairwise(place)):
        if v or one is adams:
            factor = one(u, v, before)
            x, before = factor * x, (u, 1 / factor)
            torch.testing.assert_close(walked[i], x / math.cos(angles[i + 1]) * y, rtol=1e-11, atol=0)


def test_adams_is_of_order_two_up_to_the_data():
    p = mixture()
    y = 5.0 * torch.randn(60, 2, generator=seeded())
    with torch.no_grad():
        truth = last(Adaptive(1e-12, 1e-12)(p, y, log_uniform(2, 1e-4, 5.0)))
        errors = [float((last(TurnedAdams()(p, y, TurnedAdams().grid(n, 1e-3, 5.0))) - truth).square().mean().sqrt()) for n in (80, 160)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.3)


def test_a_standard_normal_stands_still():
    """D = y / (1 + s^2): x = y cos(a) keeps its place, however few the steps; y = x / cos(a) up to rounding."""
    y = torch.tensor([[-300.0], [0.1], [25.0]])
    *_, lowest, _ = TurnedRungeKutta()(lambda y, s: y / (1 + s.square()), y, turned(3, 0.01, 100.0))
    torch.testing.assert_close(lowest, y * math.sqrt((1 + 0.01**2) / (1 + 100.0**2)))


def test_the_adaptive_solver_keeps_its_tolerance():
    """On a Gaussian the ODE is solved exactly: u(s) = u(S) sqrt((V + s^2) / (V + S^2))."""
    low, high = 0.01, 20.0
    y = torch.tensor([[-30.0], [0.1], [25.0]])
    exact = M + (y - M) * math.sqrt((V + low**2) / (V + high**2)) * shrink(low)
    for tolerance in (1e-3, 1e-6, 1e-9):
        for levels in (log_uniform(2, low, high), karras(6, low, high)):
            ends = last(Adaptive(tolerance, tolerance)(gaussian, y, levels))
            assert (ends - exact).abs().max() < 50 * tolerance


# -- all solvers ---------------------------------------------------------------------------------------


def test_every_solver_has_a_line():
    assert {type(solver) for solver in SOLVERS.values()} == set(Solver.__subclasses__())
    assert next(iter(SOLVERS.values())) == DPM2M()


@pytest.mark.parametrize("name", SOLVERS)
def test_a_walk_ends_at_the_denoised_rows_and_only_rows_matter(name):
    """The last rows are D of those before. Nothing of a row depends on the other rows; without noise, not even on their number."""
    p, levels, solver = mixture(), karras(6, 0.02, 10.0), SOLVERS[name]
    y = 10 * torch.randn(5, 2, generator=seeded())
    steps = list(solver(p, y, levels, generator=seeded()))
    assert len(steps) == 6
    if name != "adams":  # walks to the data
        assert torch.equal(steps[-1], p(steps[-2], levels[-2].expand(5, 1)))
    assert torch.equal(last(solver(p, y, levels, generator=seeded())), steps[-1])
    others = torch.cat((y[:1], 50 * y[1:].flip(0)))
    assert torch.allclose(last(solver(p, others, levels, generator=seeded()))[0], steps[-1][0], rtol=1e-12)
    if name in ("dpm2m", "ddim", "heun", "adams", "rk4", "adaptive"):
        alone = torch.cat([last(solver(p, row[None], levels)) for row in y])
        assert torch.allclose(alone, steps[-1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", SOLVERS)
def test_rows_decide_the_type(name):
    p = mixture(dtype=torch.float32)
    y = 10 * torch.randn(4, 2, generator=seeded(), dtype=torch.float32)
    assert last(SOLVERS[name](p, y, karras(5, 0.02, 10.0), generator=seeded())).dtype == torch.float32


def test_evaluations_a_step():
    levels, y = karras(7, 0.02, 10.0), torch.ones(2, 2)
    for solver, expected in (
        (DDIM(), 7),
        (Ancestral(), 7),
        (EulerMaruyama(), 7),
        (DPM2M(), 7),
        (TurnedAdams(), 7),
        (Heun(), 13),
        (PredictorCorrector(2), 19),
        (TurnedRungeKutta(), 25),
    ):
        calls = []
        last(solver(lambda v, s, calls=calls: (calls.append(s.shape), 0.5 * v)[1], y, levels, generator=seeded()))
        assert calls == [(2, 1)] * expected


def test_gradients_go_through_the_walk():
    p, levels, y = mixture(), karras(4, 0.1, 5.0), torch.randn(3, 2, generator=seeded()).requires_grad_()
    for solver in (DPM2M(), Heun(), TurnedAdams()):
        assert torch.autograd.gradcheck(lambda v, solver=solver: last(solver(p, v, levels)), y)


BAD = {
    "noise left": (lambda: DDIM()(gaussian, torch.zeros(1, 1), torch.tensor([1.0, 0.1])), "where the data are, got 0.1"),
    "no steps": (lambda: DDIM()(gaussian, torch.zeros(1, 1), torch.zeros(1)), "is at least 1, got 0"),
    "rising": (lambda: Heun()(gaussian, torch.zeros(1, 1), torch.tensor([1.0, 2.0, 0.0])), "fall from each to the next"),
    "an eta of 2": (lambda: DDIM(eta=2.0), "eta is between 0 and 1, got 2.0"),
    "a negative eta": (lambda: DPM2M(eta=-1.0), "eta is at least 0, got -1.0"),
    "no corrections": (lambda: PredictorCorrector(0), "corrections is at least 1, got 0"),
    "an snr of 1": (lambda: PredictorCorrector(snr=1.0), "snr is between 0 and 1, got 1.0"),
    "no tolerance": (lambda: Adaptive(0.0, 0.0), "not both 0, got rtol=0.0 and atol=0.0"),
    "an empty walk": (lambda: last([]), "a walk has at least one step"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_refused_at_once(name):
    make, sentence = BAD[name]
    with pytest.raises(OptionError, match=sentence):
        make()
