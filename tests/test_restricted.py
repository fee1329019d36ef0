"""Every law given that its value meets a condition, against quadrature or summation over what meets it."""

import inspect
import math

import numpy as np
import pytest
import torch
from test_laws import LAWS, line

from pofx.distributions.base import Law
from pofx.distributions.continuous import LogNormal, Normal, StudentT
from pofx.distributions.discrete import NegativeBinomial, Poisson, RestrictedFinite
from pofx.distributions.quantiles import bisect
from pofx.distributions.restricted import Restricted, restricted
from pofx.distributions.special import log_beta_tails, log_gamma_tails, normal_log_between
from pofx.distributions.wrapped import Gridded, MixtureLaw, PointMass, SpikeAndSlab
from pofx.errors import Unavailable
from pofx.events import NEVER, Among, Between, Value, both

DEVIATIONS = 6.0  # of a mean of draws: failure rate 2e-9 a comparison
KS = 3.0  # over sqrt(n): the distance of n draws exceeds it with probability 2 exp(-18) = 3e-8


def on_grid(law):
    """The width of the law's grid, or 0."""
    if isinstance(law, MixtureLaw | SpikeAndSlab):
        return on_grid(law.law)
    return law.resolution if isinstance(law, Gridded) else 0.0


def conditions(name):
    """Intervals with ends inside, at and beyond the middle of the law, open and closed, and sets where values have mass."""
    law, parameters = line(name)
    if isinstance(law, PointMass):
        return [Between(2.0, 4.0), Between(3.0), Among((3.0, 5.0))]
    draws = law.sample(parameters.expand(500, -1), generator=torch.Generator().manual_seed(7)).sort().values
    low, mid, high = (float(draws[i]) for i in (50, 250, 450))
    found = [Between(low, high), Between(mid), Between(upper=mid)]
    if not law.continuous or on_grid(law):
        found += [Between(low, closed=(False, True)), Between(upper=high, closed=(True, False))]
    r = on_grid(law)
    if r:
        found += [Among(tuple({low, mid, high})), Between(low - 0.3 * r, mid + 0.4 * r), Among((low, low + r))]
    elif not law.continuous:
        found += [Among(tuple({low, mid, high})), Value(mid), Between(low - 0.3, mid + 0.4)]
    if isinstance(law, SpikeAndSlab):
        found += [Between(law.at), Between(law.at, closed=(False, True)), Between(upper=law.at)]
    return [c for c in found if not (isinstance(c, Between) and c.lower == c.upper and c.closed != (True, True))]


CASES = [(name, condition) for name in LAWS for condition in conditions(name)]
each_case = pytest.mark.parametrize(("name", "condition"), CASES, ids=str)
every_third = pytest.mark.parametrize(("name", "condition"), CASES[::3], ids=str)


def measure(law, condition):
    """Points x that meet the condition and weights with sum_i mu_i p(x_i) f(x_i) = E f(x) 1[x meets it], to quadrature error."""
    if isinstance(law, SpikeAndSlab):
        x, mu = measure(law.law, condition)
        away = x != law.at
        spike = condition.contains(torch.tensor(law.at))
        return torch.cat((x[away], torch.full((int(spike),), law.at))), torch.cat((mu[away], torch.ones(int(spike))))
    if isinstance(law, MixtureLaw):
        return measure(law.law, condition)
    r, (lower, upper) = on_grid(law), law.support
    if r or not law.continuous:
        x = (r or 1.0) * torch.arange(max(lower, -4000 * (r or 1.0)) // (r or 1.0), min(upper, 4000 * (r or 1.0)) // (r or 1.0) + 1)
        x = x[condition.contains(x, 1e-9)]
        return x, torch.full_like(x, r or 1.0)
    if not isinstance(condition, Between):
        return torch.zeros(0), torch.zeros(0)
    return panels(max(lower, condition.lower), min(upper, condition.upper), lower, upper)


def panels(a, b, lower, upper):
    """Gauss-Legendre on many panels, after a change of variable that flattens the ends of the support."""
    nodes, weights = (torch.tensor(v) for v in np.polynomial.legendre.leggauss(12))
    span = upper - lower
    if upper < math.inf:
        to, slope, back = (
            (lambda t: lower + span * t.sigmoid()),
            (lambda t: span * t.sigmoid() * (-t).sigmoid()),
            lambda x: torch.logit((x - lower) / span),
        )
    elif lower == 0:
        to, slope, back = torch.exp, torch.exp, torch.log
    else:
        to, slope, back = torch.sinh, torch.cosh, torch.asinh
    start, end = back(torch.tensor([a, b])).clamp(-30, 30).tolist()
    ends = torch.linspace(start, end, 1001)
    half = ends.diff()[:, None] / 2
    t = (ends[:-1, None] + half + half * nodes).flatten()
    return to(t), (half * weights).flatten() * slope(t)


def expect(name, condition, f):
    """E[f(x) 1(x meets the condition)]."""
    law, parameters = line(name)
    x, mu = measure(law, condition)
    return (mu * law.log_prob(parameters, x).exp() * f(x)).nan_to_num().sum()


@each_case
def test_chance_is_the_mass_that_meets_it(name, condition):
    law, parameters = line(name)
    mass = expect(name, condition, torch.ones_like)
    torch.testing.assert_close(law.log_chance(parameters, condition).exp(), mass, atol=2e-9, rtol=2e-9)


@every_third
def test_density_is_the_laws_over_the_chance_inside_and_nothing_outside(name, condition):
    law, parameters = line(name)
    part = restricted(law, condition)
    x, mu = measure(law, condition)
    torch.testing.assert_close((mu * part.log_prob(parameters, x).exp()).sum(), torch.tensor(1.0), atol=4e-9, rtol=0)
    draws = law.sample(parameters.expand(300, -1), generator=torch.Generator().manual_seed(1))
    out = ~condition.contains(draws, 1e-9)
    assert part.log_prob(parameters, draws)[out].isneginf().all()
    expected = law.log_prob(parameters, draws[~out]) - law.log_chance(parameters, condition)
    torch.testing.assert_close(part.log_prob(parameters, draws[~out]), expected)
    assert part.log_prob(parameters, torch.tensor([torch.nan])) == 0


@pytest.mark.slow
@every_third
def test_mean_and_variance(name, condition):
    law, parameters = line(name)
    part, mass = restricted(law, condition), expect(name, condition, torch.ones_like)
    mean = expect(name, condition, lambda x: x) / mass
    variance = expect(name, condition, lambda x: (x - mean).square()) / mass
    # A rounded law reports the moments of the value before rounding; see `Gridded`.
    rounding = on_grid(law) / 2
    torch.testing.assert_close(part.mean(parameters), mean, atol=2e-7 + rounding, rtol=1e-7)
    torch.testing.assert_close(part.variance(parameters), variance, atol=1e-6 + on_grid(law) ** 2 / 2, rtol=1e-6 + 0.1 * (rounding > 0))


@pytest.mark.slow
@every_third
def test_draws_follow_it(name, condition):
    law, parameters = line(name)
    part, n = restricted(law, condition), 1000
    x = part.sample(parameters.expand(n, -1), generator=torch.Generator().manual_seed(3))
    assert x.shape == (n,)
    assert condition.contains(x, 1e-9).all()
    assert torch.equal(x, part.sample(parameters.expand(n, -1), generator=torch.Generator().manual_seed(3)))
    at, mu = measure(law, condition)
    p = mu * part.log_prob(parameters, at).exp()
    order = at.argsort()
    upto, at = p[order].cumsum(0), at[order]
    empirical = torch.searchsorted(x.sort().values, at + 1e-12, right=True) / n
    assert (empirical - upto).abs().max() <= KS / math.sqrt(n) + p.max() * (on_grid(law) == 0 and law.continuous)


@every_third
def test_mode_is_most_probable(name, condition):
    law, parameters = line(name)
    part = restricted(law, condition)
    x, _ = measure(law, condition)
    mode = part.mode(parameters)
    assert part.log_prob(parameters, mode) >= part.log_prob(parameters, x).max() - 1e-4


@every_third
def test_a_restriction_of_a_restriction_is_to_what_meets_both(name, condition):
    law, parameters = line(name)
    draws = law.sample(parameters.expand(200, -1), generator=torch.Generator().manual_seed(5))
    second = Between(upper=float(draws.median()))
    once, twice = restricted(law, both(condition, second)), restricted(restricted(law, condition), second)
    assert once == twice
    chained = law.log_chance(parameters, condition) + restricted(law, condition).log_chance(parameters, second)
    torch.testing.assert_close(chained, law.log_chance(parameters, both(condition, second)), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", LAWS)
def test_everything_and_nothing(name):
    law, parameters = line(name)
    torch.testing.assert_close(law.log_chance(parameters, Between()), torch.tensor(0.0), atol=1e-12, rtol=0)
    assert law.log_chance(parameters, NEVER) == -math.inf
    none = restricted(law, NEVER)
    numbers = none.mean(parameters), none.variance(parameters), none.mode(parameters), none.sample(parameters)
    assert all(bool(n.isfinite()) for n in numbers)


@pytest.mark.parametrize("name", ["normal", "log-normal", "poisson", "mixture of normals", "spike and grid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_type_and_batch_are_kept(name, dtype):
    law, parameters = line(name)
    part = restricted(law, Between(-0.3, 2.2))
    batch = parameters.to(dtype).expand(3, 2, -1)
    for value in (part.sample(batch), part.mean(batch), part.variance(batch), part.mode(batch), law.log_chance(batch, Between(1.0))):
        assert value.shape == (3, 2)
        assert value.dtype is dtype
    assert part.log_prob(batch, torch.ones(2, dtype=dtype)).shape == (3, 2)


@pytest.mark.parametrize("at", [20.0, -20.0])
def test_far_tails_of_a_normal(at):
    """P(x > a) = phi(a) (1/a - 1/a^3 + 3/a^5 - ...), an asymptotic series whose error is below its first term left out."""
    law, parameters = line("normal")
    m, s = law.loc_scale(parameters)
    end = float(m + at * s)
    condition = Between(end) if at > 0 else Between(upper=end)
    a = abs(at)
    series = sum((-1) ** k * math.prod(range(1, 2 * k, 2)) * a ** -(2 * k + 1) for k in range(12))
    expected = -a * a / 2 - 0.5 * math.log(2 * math.pi) + math.log(series)
    torch.testing.assert_close(law.log_chance(parameters, condition), torch.tensor(expected), atol=1e-11, rtol=0)
    part = restricted(law, condition)
    x = part.sample(parameters.expand(2000, -1), generator=torch.Generator().manual_seed(0))
    beyond = (x - m) / s * math.copysign(1, at) - a
    assert (beyond > 0).all()
    mean = math.exp(-a * a / 2 - 0.5 * math.log(2 * math.pi) - expected) - a  # phi / P - a
    torch.testing.assert_close(((part.mean(parameters) - m) / s).abs() - a, torch.tensor(mean), atol=1e-12, rtol=0)
    assert abs(float(beyond.mean()) - mean) < DEVIATIONS * mean / math.sqrt(2000)


def test_heavy_tails_keep_their_power():
    """P(T > t) of 3 degrees of freedom, in closed form: far out 2 sqrt(3) / (pi t^3) (1 + O(1 / t^2))."""
    nu = 3.0
    parameters = torch.tensor([0.0, math.log(math.expm1(1.0)), math.log(math.expm1(nu - 1))])
    t = 1e6
    expected = math.log(2 * math.sqrt(3) / math.pi) - 3 * math.log(t)
    torch.testing.assert_close(StudentT().log_chance(parameters, Between(t)), torch.tensor(expected), atol=1e-9, rtol=0)


def test_intervals_of_no_chance_are_minus_infinity_not_nan():
    for name in ("normal", "log-normal", "logit-normal", "beta", "student", "poisson", "negative binomial"):
        law, parameters = line(name)
        lower, _ = law.support
        gone = law.log_chance(parameters, Between(lower - 9.0, lower - 5.0)) if lower > -math.inf else law.log_chance(parameters, NEVER)
        assert gone == -math.inf
        assert not law.log_chance(parameters, Between(1e9)).isnan()


def test_a_spike_belongs_to_closed_ends_only():
    law, parameters = line("spike and log-normal")
    spike = torch.sigmoid(parameters[0])
    torch.testing.assert_close(law.log_chance(parameters, Between(0.0, closed=(False, True))).exp(), 1 - spike)
    torch.testing.assert_close(law.log_chance(parameters, Between(upper=0.0)).exp(), spike)
    torch.testing.assert_close(law.log_chance(parameters, Value(0.0)).exp(), spike)


def test_ends_on_a_grid_are_met_whatever_rounding_did_to_them():
    law = Gridded(Normal(), 0.1, 0.0)
    parameters = torch.tensor([0.3, 0.0])
    three = torch.tensor([3 * 0.1])  # 0.30000000000000004
    cell = law.log_prob(parameters, three)[0] + math.log(0.1)
    for condition in (Between(0.3, 0.3), Value(0.3), Between(0.25, 0.35), Among((0.3,))):
        torch.testing.assert_close(law.log_chance(parameters, condition), cell)
        assert restricted(law, condition).log_prob(parameters, three).exp() * 0.1 == pytest.approx(1.0)
    assert restricted(law, Between(0.3, closed=(False, True))).log_prob(parameters, three).isneginf().all()


def test_every_law_can_be_restricted():
    def below(kind):
        return {kind, *(c for sub in kind.__subclasses__() for c in below(sub))}

    made = {k for k in below(Law) if not inspect.isabstract(k) and k.__module__.startswith("pofx.")}
    assert made - {type(law) for law, _ in LAWS.values()} == {Restricted, RestrictedFinite}


@pytest.mark.parametrize("law", [Normal(), NegativeBinomial(), line("categorical")[0]], ids=str)
def test_a_restricted_law_is_not_fitted(law):
    with pytest.raises(Unavailable, match="before the restriction"):
        restricted(law, Between(1.0)).fit(torch.ones(3), torch.ones(3, 1))


# -- functions beneath -----------------------------------------------------------------------------


def test_incomplete_beta_is_the_binomial_tail():
    """I_p(k, n - k + 1) = P(Binomial(n, p) >= k), by summation."""
    n, p = 30, torch.tensor(0.3)
    log_pmf = (
        torch.tensor([math.log(math.comb(n, j)) for j in range(n + 1)])
        + torch.arange(n + 1) * p.log()
        + (n - torch.arange(n + 1)) * (1 - p).log()
    )
    k = torch.arange(1.0, n + 1)
    below, above = log_beta_tails(k, n - k + 1, p, 1 - p)
    torch.testing.assert_close(below, log_pmf.flip(0).logcumsumexp(0).flip(0)[1:], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(above, log_pmf.logcumsumexp(0)[:-1], atol=1e-12, rtol=1e-12)


def test_incomplete_gamma_is_the_poisson_tail():
    """P(k, r) = P(Poisson(r) >= k), by summation."""
    r, j = torch.tensor(7.5), torch.arange(400.0)
    log_pmf = j * r.log() - r - torch.lgamma(j + 1)
    k = torch.tensor([1.0, 5.0, 8.0, 30.0, 150.0])
    below, above = log_gamma_tails(k, r)
    at = k.long()
    torch.testing.assert_close(below, log_pmf.flip(0).logcumsumexp(0).flip(0)[at], atol=1e-11, rtol=1e-12)
    torch.testing.assert_close(above, log_pmf.logcumsumexp(0)[at - 1], atol=1e-11, rtol=1e-12)


def test_normal_between_adds_up():
    """Chances of neighbouring intervals sum to that of their union, in both tails and across the middle."""
    ends = torch.tensor([-math.inf, -30.0, -29.9, -3.0, -1e-9, 0.0, 1e-3, 2.0, 45.0, 60.0, math.inf])
    each = normal_log_between(ends[:-1], ends[1:])
    for i in range(len(each)):
        for j in range(i + 1, len(each) + 1):
            torch.testing.assert_close(each[i:j].logsumexp(0), normal_log_between(ends[i], ends[j]), atol=1e-12, rtol=1e-13)


def test_bisection_finds_every_double():
    sought = torch.tensor([-1e300, -2.5, -5e-324, 0.0, 5e-324, 1 / 3, 7.0, 1.7e308])
    found = bisect(lambda x: x < sought, torch.full_like(sought, -math.inf), torch.full_like(sought, math.inf))
    assert torch.equal(found, sought)


def test_log_normal_and_poisson_moments_far_out():
    """E[x | x > a] by the closed forms e^(m + s^2/2) Phi(s - z) / Phi(-z) and r P(k >= a - 1) / P(k >= a)."""
    m, s, z = 0.3, math.log1p(math.exp(-0.5)), 12.0
    law, parameters = LogNormal(), torch.tensor([m, -0.5])
    log_mean = m + s * s / 2 + torch.special.log_ndtr(torch.tensor(s - z)) - torch.special.log_ndtr(torch.tensor(-z))
    torch.testing.assert_close(restricted(law, Between(math.exp(m + s * z))).mean(parameters), log_mean.exp(), rtol=1e-10, atol=0)
    law, parameters = Poisson(), torch.tensor([3.0])
    part = restricted(law, Between(200.0))
    k = torch.arange(200.0, 400)
    p = law.log_prob(parameters, k).softmax(0)
    torch.testing.assert_close(part.mean(parameters), (p * k).sum(), rtol=1e-10, atol=0)
    torch.testing.assert_close(part.variance(parameters), (p * (k - (p * k).sum()).square()).sum(), rtol=1e-6, atol=1e-9)
