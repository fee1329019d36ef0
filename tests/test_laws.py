"""Every law against quadrature or summation: total mass, mean, entropy, mode, samples, maximum likelihood."""

import inspect
import math

import pytest
import torch

from pofx.distributions.base import Law
from pofx.distributions.choose import candidates, choose, default_law
from pofx.distributions.continuous import Beta, LogitNormal, LogNormal, Normal, StudentT
from pofx.distributions.discrete import (
    Bernoulli,
    Categorical,
    DiscretisedLogistic,
    NegativeBinomial,
    Ordinal,
    Poisson,
    RestrictedFinite,
)
from pofx.distributions.restricted import Restricted
from pofx.distributions.special import log1mexp, log_rising, normal_log_mass
from pofx.distributions.wrapped import Gridded, MixtureLaw, PointMass, SpikeAndSlab
from pofx.domain import Variable, VariableKind
from pofx.errors import OptionError, Unavailable

# name: a law and the parameters it is tried at.
LAWS = {
    "normal": (Normal(), [1.0, 0.5]),
    "normal with floor": (Normal(floor=0.3), [1.0, -30.0]),
    "student": (StudentT(), [-1.0, 0.5, 3.0]),
    "log-normal": (LogNormal(), [0.3, -0.5]),
    "logit-normal": (LogitNormal(-1.0, 3.0), [0.4, 0.2]),
    "beta": (Beta(-1.0, 3.0), [1.5, 2.5]),
    "bernoulli": (Bernoulli(), [0.3]),
    "categorical": (Categorical(4, first=2, numbers=True), [0.3, 1.0, -1.0, 0.0]),
    "ordinal": (Ordinal(4), [-0.7, 0.5, 1.0]),
    "poisson": (Poisson(2), [3.3]),
    "negative binomial": (NegativeBinomial(1), [3.3, 1.2]),
    "discretised logistic": (DiscretisedLogistic(0, 16), [0.2, -2.0]),
    "discretised logistic at the edge": (DiscretisedLogistic(-3, 4), [1.3, -1.0]),
    "mixture of normals": (MixtureLaw(Normal(), 2), [0.0, 1.0, -4.0, 0.5, 4.0, -0.5]),
    "mixture of logistics": (MixtureLaw(DiscretisedLogistic(0, 16), 2), [0.0, 1.0, -0.6, -3.0, 0.5, -2.5]),
    "spike and slab": (SpikeAndSlab(Normal(), 0.0), [0.3, 1.0, 0.5]),
    "spike and log-normal": (SpikeAndSlab(LogNormal(), 0.0), [-0.3, 0.3, -0.5]),
    "grid": (Gridded(Normal(0.1), 0.5, 0.0), [1.0, 0.5]),
    "coarse grid": (Gridded(Normal(0.1), 2.0, 0.0), [0.9, 0.3]),
    "grid of student": (Gridded(StudentT(0.25), 0.5, 0.0), [1.0, 0.5, 4.0]),
    "grid of log-normal": (Gridded(LogNormal(), 0.25, 0.0), [0.3, -0.5]),
    "grid of logit-normal": (Gridded(LogitNormal(0.0, 4.0), 0.25, 0.0), [0.3, 0.5]),
    "spike and grid": (SpikeAndSlab(Gridded(Normal(0.1), 0.5, 0.0), 0.0), [0.3, 1.0, 0.5]),
    "mixture of grids": (MixtureLaw(Gridded(Normal(0.1), 0.5, 0.0), 2), [0.0, 1.0, -4.0, 0.5, 4.0, -0.5]),
    "point mass": (PointMass(3.0), []),
}
FREE_OF_FIT = {"point mass", "normal with floor"}  # nothing to fit, or a maximum at the floor


def line(name):
    law, parameters = LAWS[name]
    return law, torch.tensor(parameters)


def measure(law):
    """Points x and weights mu with sum_i mu_i p(x_i) f(x_i) = E f(x), to quadrature error."""
    if isinstance(law, SpikeAndSlab):
        x, mu = measure(law.law)
        away = x != law.at
        return torch.cat((x[away], torch.tensor([law.at]))), torch.cat((mu[away], torch.ones(1)))
    if isinstance(law, MixtureLaw):
        return measure(law.law)
    lower, upper = law.support
    if isinstance(law, Gridded):
        first = -3000 if lower == -math.inf else math.ceil(lower / law.resolution)
        last = 3000 if upper == math.inf else math.floor(upper / law.resolution)
        x = law.resolution * torch.arange(first, last + 1)
        return x, torch.full_like(x, law.resolution)
    if not law.continuous:
        x = torch.arange(lower, min(upper, 2000) + 1)
        return x, torch.ones_like(x)
    t = torch.linspace(-30, 30, 60001)  # the trapezoidal rule after a change of variable that flattens the ends
    if upper < math.inf:
        x, slope = lower + (upper - lower) * t.sigmoid(), (upper - lower) * t.sigmoid() * (-t).sigmoid()
    elif lower == 0:
        x = slope = t.exp()
    else:
        x, slope = t.sinh(), t.cosh()
    return x, slope * 0.001


def expect(name, f):
    """E f(x, log p(x)) by quadrature."""
    law, parameters = line(name)
    x, mu = measure(law)
    log_p = law.log_prob(parameters, x)
    return torch.where(log_p > -700, mu * log_p.exp() * f(x, log_p), 0.0).sum()


@pytest.mark.parametrize("name", LAWS)
def test_mass_is_one(name):
    torch.testing.assert_close(expect(name, lambda x, _: torch.ones_like(x)), torch.tensor(1.0), atol=2e-9, rtol=0)


@pytest.mark.parametrize("name", LAWS)
def test_mean(name):
    law, parameters = line(name)
    # A rounded law reports the mean before rounding.
    rounding = law.resolution / 2 if name == "coarse grid" else 0.02 if "grid" in name else 0.0
    torch.testing.assert_close(law.mean(parameters), expect(name, lambda x, _: x), atol=1e-6 + rounding, rtol=0)


@pytest.mark.parametrize("name", LAWS)
def test_variance(name):
    law, parameters = line(name)
    mean = expect(name, lambda x, _: x)
    # Sheppard's correction stands for the variance that rounding adds; on a coarse grid it is rough.
    rounding = 0.2 if name == "coarse grid" else 0.03 if "grid" in name else 1e-6
    expected = expect(name, lambda x, _: (x - mean).square())
    torch.testing.assert_close(law.variance(parameters), expected, atol=1e-6, rtol=rounding)


@pytest.mark.parametrize("name", LAWS)
def test_entropy(name):
    law, parameters = line(name)
    try:
        entropy = law.entropy(parameters)
    except Unavailable:
        pytest.skip("no closed form")
    torch.testing.assert_close(entropy, expect(name, lambda _, log_p: -log_p), atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", LAWS)
def test_distribution_function(name):
    law, parameters = line(name)
    at = law.sample(parameters.expand(5, -1))
    try:
        cdf = law.cdf(parameters, at)
    except Unavailable:
        pytest.skip("no closed form")
    x, mu = measure(law)
    mass = torch.where(x <= at[:, None], mu * law.log_prob(parameters, x).exp(), 0.0).sum(-1)
    # The trapezoidal rule has an error of half a step where it is cut off.
    torch.testing.assert_close(cdf, mass, atol=2e-3 if law.continuous and "grid" not in name else 1e-8, rtol=0)


@pytest.mark.parametrize("name", LAWS)
def test_mode_is_most_probable(name):
    law, parameters = line(name)
    x, _ = measure(law)
    mode = law.mode(parameters)
    assert law.log_prob(parameters, mode) >= law.log_prob(parameters, x).max() - 1e-4


@pytest.mark.parametrize("name", LAWS)
def test_samples_follow_the_law(name):
    """Mean and distribution function within 6 standard errors (a correct sampler fails with probability below 1e-8)."""
    law, parameters = line(name)
    n = 20_000
    x = law.sample(parameters.expand(n, -1), generator=torch.Generator().manual_seed(1))
    assert x.shape == (n,)
    mean = expect(name, lambda x, _: x)
    deviation = expect(name, lambda x, _: (x - mean).square()).sqrt()
    assert (x.mean() - mean).abs() <= 6 * deviation / n**0.5 + 1e-9
    for cut in x[:4] + 1e-9:
        share = expect(name, lambda x, _, cut=cut: (x <= cut).to(x))
        assert ((x <= cut).double().mean() - share).abs() <= 6 * (share * (1 - share) / n).clamp_min(0).sqrt() + 2e-3


@pytest.mark.parametrize("name", LAWS)
def test_equal_generators_give_equal_draws(name):
    law, parameters = line(name)
    draws = [law.sample(parameters.expand(50, -1), generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)


def rows(name, n=300):
    law, parameters = line(name)
    generator = torch.Generator().manual_seed(2)
    return law.sample(parameters.expand(n, -1), generator=generator), torch.rand(n, 2, generator=generator)


def log_posterior(law, parameters, x, weights):
    """What fit maximises, for each weighting."""
    return (weights * law.log_prob(parameters, x[:, None])).sum(0) + law.log_prior(parameters)


@pytest.mark.parametrize("name", [name for name in LAWS if name not in FREE_OF_FIT])
def test_fit_is_the_maximum(name):
    law, parameters = line(name)
    x, weights = rows(name)
    fitted = law.fit(x, weights)
    best = log_posterior(law, fitted, x, weights)
    assert (best >= log_posterior(law, parameters.expand_as(fitted), x, weights)).all()
    slack = 1e-4 if isinstance(law, MixtureLaw) else 1e-6  # nats a row: EM stops before Newton's method does
    generator = torch.Generator().manual_seed(4)
    for size in (1e-3, 1e-2, 1e-1):
        for _ in range(10):
            moved = fitted + size * torch.randn(fitted.shape, generator=generator)
            assert (log_posterior(law, moved, x, weights) <= best + slack * len(x)).all()


@pytest.mark.parametrize("name", LAWS)
def test_weightings_are_fitted_apart_and_missing_rows_count_nothing(name):
    law, _ = line(name)
    x, weights = rows(name)
    fitted = law.fit(x, weights)
    torch.testing.assert_close(law.fit(x, weights[:, 1:])[0], fitted[1], atol=2e-2, rtol=1e-3)  # EM stops when all have settled
    holes = torch.cat((x, torch.full((20,), torch.nan)))
    torch.testing.assert_close(law.fit(holes, torch.cat((weights, torch.ones(20, 2)))), fitted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", LAWS)
def test_fit_from_a_start_never_ends_lower(name):
    law, _ = line(name)
    x, weights = rows(name)
    start = law.fit(x, torch.rand(300, 2)) + 0.05 * torch.randn(2, law.width)
    for _ in range(3):
        end = law.fit(x, weights, start)
        assert (log_posterior(law, end, x, weights) >= log_posterior(law, start, x, weights) - 1e-9).all()
        start = end


@pytest.mark.parametrize("name", LAWS)
def test_columns_under_weights_of_their_own(name):
    """What a law inside a mixture is asked for: weights (N, D, K) that differ by column."""
    law, _ = line(name)
    x, weights = rows(name, 100)
    both, own = torch.stack((x, x.flip(0)), dim=1), torch.stack((weights, weights.flip(0)), dim=1)
    fitted = law._fit(both, torch.ones_like(both), own, None)
    torch.testing.assert_close(fitted[0], fitted[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fitted[0], law.fit(x, weights), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", LAWS)
def test_missing_is_factor_one_and_leaves_gradients_alone(name):
    law, parameters = line(name)
    x = torch.stack((torch.tensor(torch.nan), law.mode(parameters)))
    free = parameters.clone().requires_grad_()
    log_p = law.log_prob(free, x)
    assert log_p[0] == 0
    if law.width:
        (gradient,) = torch.autograd.grad(log_p.sum(), free)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAWS)
def test_far_values_have_finite_log_densities_and_gradients(name, dtype):
    law, parameters = line(name)
    lower, upper = law.support
    far = torch.tensor([max(-1e6, lower), min(1e6, upper)], dtype=dtype)
    if law.continuous:
        far = far.clamp(lower + 1e-5, upper - 1e-5)  # the ends themselves are excluded
    for scale in (0.0, 10.0, -10.0):
        free = (parameters + scale).to(dtype).requires_grad_()
        log_p = law.log_prob(free, far)
        assert log_p.dtype is dtype
        assert log_p.isfinite().all()
        if law.width:
            assert torch.autograd.grad(log_p.sum(), free)[0].isfinite().all()


@pytest.mark.parametrize("name", LAWS)
def test_outside_the_support_there_is_nothing(name):
    law, parameters = line(name)
    lower, upper = law.support
    outside = [lower - 3.0] * (lower > -math.inf) + [upper + 3.0] * (upper < math.inf) + [lower + 0.5] * (not law.continuous)
    if outside:
        assert law.log_prob(parameters, torch.tensor(outside)).isneginf().all()


@pytest.mark.parametrize("name", LAWS)
def test_single_precision_agrees(name):
    law, parameters = line(name)
    x, _ = rows(name, 50)
    single = law.log_prob(parameters.float(), x.float())
    torch.testing.assert_close(single.double(), law.log_prob(parameters, x), atol=2e-4, rtol=2e-4)


def test_every_law_has_a_line():
    def below(kind):
        return {kind, *(c for sub in kind.__subclasses__() for c in below(sub))}

    made = {k for k in below(Law) if not inspect.isabstract(k) and k.__module__.startswith("pofx.")}
    assert made - {Restricted, RestrictedFinite} == {type(law) for law, _ in LAWS.values()}  # those two have tests of their own


def test_laws_are_equal_when_equal():
    for law, _ in LAWS.values():
        assert law == eval(repr(law))
        assert hash(law) == hash(eval(repr(law)))


# -- guards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "law", [Normal(), StudentT(), LogNormal(), LogitNormal(0.0, 5.0), Beta(0.0, 5.0), MixtureLaw(Normal(), 2)], ids=str
)
def test_a_duplicated_row_does_not_run_away(law):
    x = torch.tensor([1.0, 1.0, 4.0])
    weights = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]).T.contiguous()
    log_p = law.log_prob(law.fit(x, weights), x[:, None])
    assert log_p.isfinite().all()
    assert log_p.max() < 12  # log(1 / (1e-3 sd)) and a little


@pytest.mark.parametrize("name", LAWS)
def test_constant_column_and_weightless_component(name):
    law, parameters = line(name)
    x = law.mode(parameters).expand(5).clone()
    fitted = law.fit(x, torch.stack((torch.ones(5), torch.zeros(5)), dim=1))
    assert fitted.isfinite().all()
    assert law.log_prob(fitted, x[:, None]).isfinite().all()


def test_column_never_seen():
    for law, _ in LAWS.values():
        assert law.fit(torch.full((4,), torch.nan), torch.ones(4, 1)).isfinite().all()


def test_mistakes_are_said():
    with pytest.raises(OptionError, match="2 or more levels"):
        Ordinal(1)
    with pytest.raises(OptionError, match="1 or more components"):
        MixtureLaw(Normal(), 0)


# -- special functions -----------------------------------------------------------------------------


@pytest.mark.parametrize("h", [1e-6, 1e-3, 0.04, 0.06, 0.5])
def test_normal_mass_agrees_with_quadrature_into_the_tails(h):
    m = torch.tensor([0.0, 0.3, -1.0, 5.0, -30.0, 200.0])
    by_nodes = Law.log_mass(Normal(1.0), torch.tensor([0.0, -800.0]), m[:5], h)  # s = 1
    torch.testing.assert_close(normal_log_mass(m, torch.tensor(h))[:5], by_nodes, atol=1e-9, rtol=1e-9)
    assert normal_log_mass(m.float(), torch.tensor(h).float()).isfinite().all()


def test_normal_masses_of_neighbours_add_up():
    edges = torch.linspace(-12, 12, 301)
    for cut in (1, 3, 60, 300):
        e = edges[::cut]
        mass = normal_log_mass((e[1:] + e[:-1]) / 2, e.diff()).exp().sum()
        torch.testing.assert_close(mass, torch.tensor(1.0), atol=1e-13, rtol=0)


def test_normal_mass_has_its_gradient():
    m = torch.tensor([0.0, 0.3, 4.0, -4.0, 0.1], requires_grad=True)
    h = torch.tensor([0.5, 0.01, 1.0, 3.0, 20.0], requires_grad=True)
    assert torch.autograd.gradcheck(normal_log_mass, (m + 1e-3, h))


def test_log1mexp_and_log_rising():
    d = torch.tensor([1e-15, 1e-5, 0.5, 0.7, 30.0])
    torch.testing.assert_close(log1mexp(d), torch.tensor([math.log(-math.expm1(-v)) for v in d.tolist()]), rtol=1e-14, atol=1e-16)
    r, x = torch.tensor([0.5, 29.9, 30.1, 500.0]), torch.tensor([3.0, 7.0, 7.0, 2.0])
    rising = [sum(math.log(a + i) for i in range(int(b))) for a, b in zip(r.tolist(), x.tolist(), strict=True)]
    torch.testing.assert_close(log_rising(r, x), torch.tensor(rising), rtol=1e-12, atol=0)


def test_mixture_of_one_is_its_law():
    x, weights = rows("normal")
    one = MixtureLaw(Normal(), 1).fit(x, weights)
    torch.testing.assert_close(one[:, 1:], Normal().fit(x, weights))


def test_negative_binomial_is_the_poisson_in_the_limit():
    x = torch.arange(12.0)
    negative = NegativeBinomial().log_prob(torch.tensor([3.0, 1e9]), x)
    torch.testing.assert_close(negative, Poisson().log_prob(torch.tensor([3.0]), x), atol=1e-6, rtol=0)


# -- which law suits which variable ----------------------------------------------------------------

VARIABLES = [
    Variable("a", VariableKind.REAL),
    Variable("a", VariableKind.REAL, resolution=0.5),
    Variable("a", VariableKind.REAL, spike=0.0),
    Variable("a", VariableKind.REAL, resolution=0.5, spike=0.0),
    Variable("a", VariableKind.POSITIVE),
    Variable("a", VariableKind.POSITIVE, resolution=0.5, spike=0.0),
    Variable("a", VariableKind.INTERVAL, lower=-1.0, upper=2.0),
    Variable("a", VariableKind.INTERVAL, lower=-1.0, upper=2.0, resolution=0.5),
    Variable("a", VariableKind.COUNT, lower=0.0),
    Variable("a", VariableKind.COUNT, lower=0.0, upper=1.0),
    Variable("a", VariableKind.COUNT, lower=2.0, upper=2.0),
    Variable("a", VariableKind.COUNT, lower=1.0, upper=16.0),
    Variable("a", VariableKind.COUNT, lower=0.0, upper=255.0),
    Variable("a", VariableKind.COUNT, lower=0.0, upper=999.0),
    Variable("a", VariableKind.ORDINAL, levels=("low", "mid", "high")),
    Variable("a", VariableKind.ORDINAL, levels=("low",)),
    Variable("a", VariableKind.CATEGORICAL, levels=("a", "b", "c")),
    Variable("a", VariableKind.CATEGORICAL, levels=("a",)),
    Variable("a", VariableKind.BINARY, levels=("n", "y")),
]


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda v: f"{v.kind}-{v.resolution}-{v.spike}-{v.cardinality}")
def test_every_variable_has_laws_that_give_its_values_back(variable):
    for law in (*candidates(variable), default_law(variable)):
        theta = torch.randn(8, law.width)
        x = law.sample(theta)
        assert law.log_prob(theta, x).isfinite().all()
        if variable.cardinality is not None:
            first = variable.lower if variable.kind is VariableKind.COUNT else 0
            assert ((x >= first) & (x < first + variable.cardinality)).all()
        assert law.numbers == (variable.kind is VariableKind.COUNT or variable.continuous) or variable.cardinality == 1


def test_heads_have_floors():
    for variable in VARIABLES:
        if variable.continuous and variable.spike is None:
            law = default_law(variable)
            theta = torch.tensor([0.3, -1e4], requires_grad=True)
            log_p = law.log_prob(theta, torch.tensor(0.5 if variable.resolution else 0.4))
            assert log_p.isfinite()
            assert torch.autograd.grad(log_p, theta)[0].isfinite().all()


def test_choice_follows_unseen_rows():
    generator = torch.Generator().manual_seed(0)
    heavy = StudentT().sample(torch.tensor([0.0, 0.5, -2.0]).expand(600, -1), generator=generator)
    plain = Normal().sample(torch.tensor([0.0, 0.5]).expand(600, -1), generator=generator)
    variables = [Variable("heavy", VariableKind.REAL), Variable("plain", VariableKind.REAL)]
    x = torch.stack((heavy, plain), dim=1)
    for holdout in (None, x[400:]):
        chosen = choose(variables, x[:400], holdout, generator=generator)
        assert isinstance(candidates(variables[0])[chosen[0]], StudentT)
    assert choose(variables, x[:3]) == [0, 0]
