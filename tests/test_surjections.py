"""Surjections with noise of their own: right inverses whose weights are unbiased, so that masses sum to one and bounds stay below."""

import math
from importlib import import_module
from itertools import product

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

import pofx
from pofx.domain import Domain, Variable, VariableKind
from pofx.errors import OptionError
from pofx.models.flows.bases import LawBase
from pofx.models.flows.families import MaskedAutoregressiveConfig, NeuralSplineConfig
from pofx.models.flows.flow import Flow
from pofx.models.flows.realnvp import RealNVPConfig
from pofx.models.flows.surjected import Surjected
from pofx.objectives.bounds import log_mean_and_error
from pofx.transforms.base import Surjection
from pofx.transforms.linear import Triangular
from pofx.transforms.noise import Noise, Shares, log_normal
from pofx.transforms.pointwise import ActNorm
from pofx.transforms.surjections import Absolute, Argmax, Chain, Drawn, Slice
from pofx.types import Kind

DRAWS = 40_000
SIZES = (3, 2)


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def bent(module, std=0.2):
    """Weights away from where they start."""
    for p in module.parameters():
        torch.nn.init.normal_(p, std=std, generator=generator(7))
    return module


def law(dim):
    """A normal that no sign leaves as it is, narrower than the noise, so that weights have a variance."""
    covariance = 0.2 * torch.ones(dim, dim) + 0.4 * torch.eye(dim)
    return MultivariateNormal(torch.linspace(-0.3, 0.5, dim), covariance)


def signs(x):
    """log p(|y| = x): the sum over all signs."""
    return torch.stack([law(2).log_prob(x * torch.tensor(s)) for s in product((-1.0, 1.0), repeat=2)]).logsumexp(0)


CODES = torch.cartesian_prod(torch.arange(3), torch.arange(2)).double()
POINTS = torch.tensor([[0.3, 1.2], [0.9, 0.1], [2.0, 0.4]], dtype=torch.float64)
LAYERS = {  # surjection, width of y, rows x, log p(x) when y follows `law`; None where weights have no variance: see the quadrature below
    "slice": (lambda: Slice(2, 2), 4, POINTS, lambda x: MultivariateNormal(law(4).loc[:2], law(4).covariance_matrix[:2, :2]).log_prob(x)),
    "slice, learned": (lambda: Slice(2, 1, layers=2, width=8), 3, POINTS, lambda x: law_of_two(x)),
    "absolute": (lambda: Absolute(2), 2, POINTS, signs),
    "argmax": (lambda: Argmax(SIZES, layers=2, width=8), 5, CODES, None),
    "chain": (lambda: Chain(Slice(2, 1), ActNorm(2), Absolute(2)), 3, POINTS, lambda x: chained(x)),
}


def law_of_two(x):
    return MultivariateNormal(law(3).loc[:2], law(3).covariance_matrix[:2, :2]).log_prob(x)


def chained(x):
    """|y_12 exp(s) + t| with the numbers that `bent` gives the scales between."""
    T = bent(LAYERS["chain"][0]()).parts[1]
    corners = [T.inverse(x * torch.tensor(s)) for s in product((-1.0, 1.0), repeat=2)]
    return torch.stack([law_of_two(y) + log_det for y, log_det in corners]).logsumexp(0)


@pytest.fixture(params=LAYERS)
def case(request):
    make, width, x, exact = LAYERS[request.param]
    return bent(make()), width, x, exact


def test_every_class_has_a_line_above():
    written = {t for t in vars(import_module("pofx.transforms.surjections")).values() if isinstance(t, type) and issubclass(t, Surjection)}
    assert written - {Surjection, Drawn} == {type(make()) for make, *_ in LAYERS.values()}


def test_a_lift_leads_back(case):
    S, width, x, _ = case
    y, log_weight = S.lift(x.expand(500, *x.shape), generator=generator())
    assert y.shape == (500, len(x), width)
    assert_close(S(y), x.expand(500, *x.shape))
    assert_close(S(S.middle(x)), x)
    assert log_weight.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lift_leads_back_whatever_the_dtype_and_the_noise(case, dtype):
    S, _, x, _ = case
    epsilon = 20 * torch.randn(300, len(x), S.noises, generator=generator())
    y, log_weight = S.to(dtype).place(x.to(dtype).expand(300, *x.shape), epsilon.to(dtype))
    assert_close(S(y), x.to(dtype).expand(300, *x.shape), rtol=0.05, atol=0.05)
    assert log_weight.isfinite().all()


def test_equal_generators_give_equal_lifts(case):
    S, _, x, _ = case
    assert torch.equal(*(S.lift(x, generator=generator(3))[0] for _ in range(2)))


def test_weights_are_unbiased_and_their_logs_a_bound(case):
    """E_q[p(y) / q(y | x)] = p(x) within 6 standard errors, failure rate below 1e-6; E_q of the log is below."""
    S, width, x, exact = case
    if exact is None:
        return
    with torch.no_grad():
        y, log_weight = S.lift(x.expand(DRAWS, *x.shape), generator=generator())
    log_w = law(width).log_prob(y) + log_weight
    truth = exact(x)
    p, error = log_w.exp().mean(0), log_w.exp().std(0) / math.sqrt(DRAWS)
    assert (6 * error < 0.3 * p).all()  # else this could not fail
    assert ((p - truth.exp()).abs() < 6 * error).all()
    assert (log_w.mean(0) < truth).all()


def test_gradients_are_those_of_differences(case):
    S, _, x, _ = case
    noise = torch.randn(len(x), S.noises, generator=generator()).requires_grad_()
    assert torch.autograd.gradcheck(lambda e: S.place(x, e), noise)


def test_a_slice_is_exact_where_its_noise_is_the_posterior():
    x = torch.randn(50, 2, generator=generator())
    y, log_weight = Slice(2, 3).lift(x, generator=generator())
    assert_close(log_normal(y) + log_weight, log_normal(x))


def test_signs_are_exact_where_the_base_has_none():
    x = torch.rand(50, 2, generator=generator())
    y, log_weight = Absolute(2).lift(x, generator=generator())
    assert_close(log_normal(y) + log_weight, log_normal(x) + 2 * math.log(2))


def test_the_density_of_pushed_scores_is_that_of_their_map():
    S, noise = bent(Argmax(SIZES, layers=2, width=8)), torch.randn(5, generator=generator())
    for x in CODES:
        J = torch.autograd.functional.jacobian(lambda e, x=x: S.place(x, e)[0], noise)
        assert_close(S.place(x, noise)[1], torch.linalg.slogdet(J).logabsdet - log_normal(noise))


def test_scores_are_pushed_to_every_place_below_the_top():
    """y_k = T - softplus(T - u_k) undone: u_k = T - log(exp(T - y_k) - 1)."""
    S, y = Argmax((3,), layers=0), torch.tensor([[0.2, 1.5, 1.4999], [-9.0, 0.3, -4.0]])
    top = y[:, 1:2]
    u = torch.where(y == top, y, top - (top - y).expm1().log())
    assert_close(S.place(torch.ones(2, 1), u)[0], y)


@pytest.mark.parametrize(("S", "x"), [(Absolute(2), [1.0, -0.5]), (Argmax((3, 2)), [3.0, 0.0]), (Argmax((3, 2)), [0.5, 1.0])])
def test_what_nothing_leads_to_is_infinitely_far(S, x):
    y, log_weight = S.double().lift(torch.tensor([x]))
    assert y.isinf().any()
    assert log_weight.isfinite().all()


@pytest.mark.parametrize(("make", "says"), [(lambda: Slice(2, 0), "1 variable"), (lambda: Argmax((3, 1)), r"2 levels .* got \[3, 1\]")])
def test_what_adds_nothing_is_refused(make, says):
    with pytest.raises(OptionError, match=says):
        make()


# -- noise -----------------------------------------------------------------------------------------


def test_the_density_of_noise_is_that_of_its_map():
    noise, h = bent(Noise(3, 2, layers=3, width=8)), torch.tensor([0.4, -2.0])
    epsilon = torch.randn(3, generator=generator())
    J = torch.autograd.functional.jacobian(lambda e: noise(e, h)[0], epsilon)
    assert_close(noise(epsilon, h)[1], log_normal(epsilon) - torch.linalg.slogdet(J).logabsdet)


def test_shares_start_uniform_and_leave_the_others_in_the_middle():
    share, log_weight = Shares(4, [0, 2, 3], 5)(torch.randn(4000, 5), generator=generator())
    assert_close(log_weight, torch.zeros(4000))
    assert (share[:, 1] == 0.5).all()
    assert (share[:, [0, 2, 3]].mean(0) - 0.5).abs().max() < 6 / math.sqrt(12 * 4000)


def test_missing_and_infinite_steering_is_never_nan():
    share, log_weight = bent(Shares(2, [0, 1], 3))(torch.tensor([[math.nan, math.inf, -1e30]]))
    assert share.isfinite().all()
    assert log_weight.isfinite().all()


def test_weights_of_learned_shares_are_unbiased():
    """E_q[f(share) / q(share | h)] is the integral of f over the square; failure rate below 1e-6: 6 standard errors."""
    shares = bent(Shares(2, [0, 1], 1), std=0.3)
    with torch.no_grad():
        share, log_weight = shares(torch.ones(DRAWS, 1), generator=generator())
    w = (share[:, 0] * share[:, 1].square()) * log_weight.exp()
    assert (w.mean() - 1 / 6).abs() < 6 * w.std() / math.sqrt(DRAWS)
    assert log_weight.mean() < -0.05  # it is not uniform here


# -- flows -----------------------------------------------------------------------------------------


def levels(*sizes):
    names = [tuple("abc"[:k]) for k in sizes]
    return Domain(tuple(Variable(f"v{v}", VariableKind.CATEGORICAL, levels=each) for v, each in enumerate(names)))


def category(**options):
    """A flow of one variable of two levels, away from its start."""
    flow = Surjected(levels(2), Argmax((2,), layers=2, width=16), Flow(Domain.real(2), Triangular(2), LawBase(2)), **options)
    for p in flow.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.3, generator=generator(5))
    return flow


def masses(flow):
    """E_q[p(y) / q(y | x)] of both levels, by quadrature over the noise: its density times the weight falls like exp(-|epsilon|)."""
    axis = torch.linspace(-20, 20, 401)
    noise = torch.cartesian_prod(axis, axis).expand(2, -1, 2)
    with torch.no_grad():
        y, log_weight = flow.surjection.place(torch.tensor([0.0, 1.0])[:, None, None].expand(2, noise.shape[1], 1), noise)
        log_p = flow.base.log_prob(y) + log_weight + log_normal(noise)
    return log_p.exp().sum(1) * (axis[1] - axis[0]) ** 2


def test_masses_of_levels_are_those_of_the_flow_and_sum_to_one():
    """P(y_0 > y_1) of the normal that the flow is, and by frequency: 6 standard deviations of a binomial, failure rate below 1e-6."""
    flow = category().requires_grad_(False)
    p = masses(flow)
    T = flow.base.transform
    y = T(torch.eye(2))[0] - T(torch.zeros(1, 2))[0]  # the rows of a linear map
    gap, mean = y[:, 0] - y[:, 1], T(torch.zeros(1, 2))[0][0]
    exact = torch.special.ndtr((mean[0] - mean[1]) / gap.norm())
    assert_close(p, torch.stack((exact, 1 - exact)), rtol=0, atol=2e-3)
    drawn = flow.sample(20_000, generator=generator())
    assert float(drawn.mean()) == pytest.approx(float(1 - exact), abs=6 * 0.5 / math.sqrt(20_000))


def test_a_flow_says_that_it_is_a_bound_and_how_sure():
    """Mean of logs below the log of the mean weight below log p; its error is its scatter, within 30 % of 400 values: below 1e-6."""
    flow, x = category(draws=8), torch.zeros(400, 1)
    assert flow.density is Kind.BOUND
    with torch.no_grad():
        value, error = flow.log_prob_and_error(x, generator=generator())
        tighter = category(draws=8, tight=True).log_prob(x, generator=generator())
    assert value.mean() < tighter.mean() < masses(flow)[0].log() + 6 * tighter.std() / 20
    assert float(value.std() / error.square().mean().sqrt()) == pytest.approx(1.0, abs=0.3)
    assert torch.equal(flow.log_prob(torch.tensor([[2.0]])), torch.tensor([-math.inf]))


@pytest.mark.slow
def test_the_bound_of_categories_closes_in_learning():
    """150 steps on two categories that agree: the bound comes nearer to the entropy of the data, log 2, by two thirds, and not below."""
    torch.manual_seed(0)
    first = torch.arange(200).remainder(2).double()
    x, noise = torch.stack((first, first), 1), generator(2)
    flow = Surjected(levels(2, 2), Argmax((2, 2)), RealNVPConfig(layers=2, width=16).build(Domain.real(4)))
    flow.initialise(x)
    before = flow.loss(x, generator=noise).mean() - math.log(2)
    optimiser = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        flow.loss(x, generator=noise).mean().backward()
        optimiser.step()
    after = flow.loss(x, generator=noise).mean() - math.log(2)
    assert 0 < after < before / 3


@pytest.mark.slow
def test_a_variant_with_every_kind_of_noise_learns_and_its_file_opens(tmp_path):
    """Twelve pixels of digits, 2 passes: the same numbers after opening."""
    rows = pofx.load("digits")
    domain = rows.domain.select(range(20, 32))
    train, test = (part.reshape(len(part), 64)[:, 20:32] for part in (rows.train, rows.test))
    name = "realnvp:layers=2:noise=variational:dequantise=uniform:augment=3:max_epochs=2:draws=4"
    p = pofx.fit(train[:200], name, schema=domain, progress=False)
    p.save(tmp_path / "p.safetensors")
    q = pofx.open(tmp_path / "p.safetensors")
    assert p.log_prob(test[:50]).kind is Kind.BOUND
    assert np.array_equal(np.asarray(p.log_prob(test[:50])), np.asarray(q.log_prob(test[:50])))
    assert np.isfinite(np.asarray(q.log_prob(test[:50]))).all()


@pytest.mark.parametrize("config", [RealNVPConfig, NeuralSplineConfig, MaskedAutoregressiveConfig])
def test_an_augmented_flow_starts_as_the_normal_of_the_rows(config):
    x = torch.randn(2000, 2, generator=generator()) @ torch.tensor([[1.0, 0.6], [0.0, 0.8]]) + 2
    flow = config(augment=2, shrink=0.0).build(Domain.real(2)).eval()
    flow.initialise(x)
    assert flow.density is Kind.BOUND
    value, error = flow.log_prob_and_error(x[:200], generator=generator())
    truth = MultivariateNormal(x.mean(0), x.T.cov(correction=0)).log_prob(x[:200])
    assert (value - truth).abs().max() < 0.2
    assert error.max() < 0.2
    assert_close(flow.decode(flow.encode(x[:5])), x[:5])
    assert flow.sample(7).shape == (7, 2)


def weighed(flow, x, draws):
    """log p(x) of each row by the log of the mean weight, all draws at once, and its standard error."""
    with torch.no_grad():
        log_w = -flow.loss(x.repeat(draws, 1), generator=generator()).reshape(draws, len(x))
    return log_mean_and_error(log_w)


def test_masses_of_an_augmented_flow_integrate_to_one():
    """Importance estimate on a grid, 100 draws a point; they scatter independently, failure rate below 1e-6: 6 standard errors."""
    flow = RealNVPConfig(augment=1, layers=4, width=8).build(Domain.real(1)).eval()
    for p in flow.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.15, generator=generator(5))
    grid = torch.linspace(-12, 12, 801)[:, None]
    value, error = weighed(flow, grid, 100)
    step = grid[1, 0] - grid[0, 0]
    spread = (value.exp() * error * step).square().sum().sqrt()
    assert spread < 0.02
    assert (value.exp().sum() * step - 1).abs() < 6 * spread + 1e-3
