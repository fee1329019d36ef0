"""The diffusion model against closed forms: an exact denoiser in place of the network, laws of independent values, normal data."""

import base64
import math
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

import pofx
import pofx.ask.generic
import pofx.events
from pofx.domain import Domain, Variable, VariableKind
from pofx.errors import DataError, OptionError, Unavailable
from pofx.models.diffusion import heads as heads_module
from pofx.models.diffusion.diffusion import Asking, Diffusion, Learning
from pofx.models.diffusion.exact import ExactDenoiser
from pofx.models.diffusion.families import DiffusionConfig
from pofx.models.diffusion.heads import Heads, chebyshev
from pofx.models.diffusion.levels import AlongPath, Even, Histogram, LogNormal, Met, Steps, Weight
from pofx.models.diffusion.path import PATHS, Prediction, Target, path_of
from pofx.models.diffusion.views import View, some_hidden
from pofx.report.diagnoses import of_noise, write_picture
from pofx.report.noise import film
from pofx.samplers.twisted import width_of
from pofx.types import Kind

K = VariableKind
E = math.e
MIXED = Domain(
    (
        Variable("height", K.REAL),
        Variable("grade", K.ORDINAL, levels=("low", "middle", "high")),
        Variable("kind", K.CATEGORICAL, levels=("a", "b", "c", "d")),
        Variable("visits", K.COUNT, lower=2, upper=7),
        Variable("on", K.BINARY, levels=(False, True)),
    )
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture(dim=2):
    g = seeded(4)
    root = 0.4 * torch.randn(3, dim, dim, generator=g)
    p = ExactDenoiser(torch.tensor([0.5, 0.3, 0.2]), 1.2 * torch.randn(3, dim, generator=g), root @ root.mT + 0.05 * torch.eye(dim))
    centred = p.mean - p.moments()[0]
    return ExactDenoiser(p.weight, centred, p.covariance)


class Exact(torch.nn.Module):
    """An exact denoiser in the place of a network that predicts x_0."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, v, view, u, c):
        s = u.exp()
        return self.p(v[..., 0] * (1 + s.square()).sqrt(), s)


def exact(p, asking=Asking(), span=(0.002, 80.0)):  # noqa: B008
    """The diffusion model whose network is the exact denoiser of p, after it has met some rows."""
    domain = Domain.real(p.dim)
    model = Diffusion(domain, None, Heads(domain, Prediction(Target.X0)), Exact(p), Learning(Even()), asking, span)
    model.variance.copy_(p.moments()[1].diagonal())
    for k in range(200):
        model.loss(p.sample(256, generator=seeded(k)), generator=seeded(k + 1000))
    return model.eval()


# -- paths and predictions ---------------------------------------------------------------------------


@pytest.mark.parametrize("target", Target)
@pytest.mark.parametrize("path", PATHS)
def test_every_prediction_gives_back_what_it_was_made_of(path, target):
    g, s = seeded(), torch.tensor([0.05, 0.3, 1.0, 4.0, 20.0])[:, None]
    x_0, eps = torch.randn(5, 3, generator=g), torch.randn(5, 3, generator=g)
    prediction = Prediction(target, path_of(path), deviation=0.7)
    f = prediction.of(x_0, eps, s)
    # at s = 20 the rows of x_0 are divided by eps' share; rounding is s times as large
    torch.testing.assert_close(prediction.denoised(f, x_0 + s * eps, s), x_0, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_time_and_level_are_inverse(path):
    s = torch.tensor([0.02, 0.3, 1.0, 5.0, 40.0])
    torch.testing.assert_close(path.level(path.time(s)), s, rtol=1e-9, atol=0)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_flow_is_the_drift_of_the_probability_flow(path):
    """alpha' D + sigma' (x - alpha D) / sigma = f x - g^2 score / 2, f = alpha' / alpha, g^2 = 2 sigma sigma' - 2 f sigma^2."""
    p, t = mixture(), torch.full((6, 1), 0.37)
    alpha, sigma, (d_alpha, d_sigma) = path.alpha(t), path.sigma(t), path.slopes(t)
    y = p.sample(6, generator=seeded()) + sigma / alpha * torch.randn(6, 2, generator=seeded(1))
    x, mean = alpha * y, p(y, sigma / alpha)
    flow = d_alpha * mean + d_sigma * (x - alpha * mean) / sigma
    f, score = d_alpha / alpha, (alpha * mean - x) / sigma.square()
    drift = f * x - 0.5 * (2 * sigma * d_sigma - 2 * f * sigma.square()) * score
    torch.testing.assert_close(flow, drift, atol=1e-11, rtol=1e-11)


def test_edm_predicts_with_the_posterior_mean_of_a_normal_at_zero():
    s, y, v = torch.tensor([[0.1], [1.0], [30.0]]), torch.tensor([[0.4], [-2.0], [11.0]]), 0.7**2
    assert torch.allclose(Prediction(Target.EDM, deviation=0.7).denoised(torch.zeros_like(y), y, s), v / (v + s.square()) * y)


def test_an_unknown_path_is_named():
    with pytest.raises(OptionError, match="one of vp, cosine, linear, ve, edm, got 'up'"):
        path_of("up")


# -- levels ------------------------------------------------------------------------------------------


def bumped():
    heights = 1 + 50 * torch.linspace(-2, 2, 32, dtype=torch.float64).square().neg().exp()
    return Histogram(heights / heights.sum())


@pytest.mark.parametrize("law", [Even(), LogNormal(), bumped(), *(AlongPath(path) for path in PATHS.values())])
def test_levels_have_the_density_they_say(law):
    """place is the inverse of the integral of the density."""
    ends = torch.tensor([0.01, 30.0]).log()
    log_s = torch.linspace(float(ends[0]), float(ends[1]), 200_001)
    density = law.density(log_s, ends)
    upto = torch.cat((torch.zeros(1), torch.cumulative_trapezoid(density, log_s)))
    assert abs(float(upto[-1]) - 1) < 1e-4
    u = torch.tensor([0.03, 0.2, 0.5, 0.9, 0.99])
    at = law.place(u, ends)
    assert torch.allclose(upto[torch.searchsorted(log_s, at).clamp_max(200_000)], u, atol=2e-4)


def test_adaptive_levels_go_where_the_integrand_is():
    met, ends = Met(), torch.tensor([-4.0, 4.0])
    for _ in range(400):
        log_s = met.law(ends).place(torch.rand(256, generator=seeded()), ends)
        met.see(log_s, (-(log_s**2)).exp() * 10, torch.zeros(2, 256), ends)
    middle = met.law(ends).place(torch.tensor([0.1, 0.9]), ends)
    assert float(middle.abs().max()) < 2  # of even levels 3.2


def test_edm_weight_is_a_unit_of_loss_at_each_level():
    """Of a network of zeros, with normal data of unit variance, w |x_0 - D|^2 / s^2 has mean 1."""
    s = torch.tensor([0.02, 0.5, 3.0, 40.0])
    error = s.square() / (1 + s.square())  # the posterior variance
    assert torch.allclose(Weight.EDM.at(s.log(), torch.ones(4)) * error / s.square(), torch.ones(4))


# -- the bound ---------------------------------------------------------------------------------------


def test_the_bound_of_the_exact_denoiser_is_tight():
    """As s_min falls and s_max rises the gap closes: at 0.002 and 80 it is the error of the average, 4.9 of them once in 10^6 runs."""
    p = mixture()
    x = p.sample(400, generator=seeded(1))
    value, error = exact(p, Asking(draws=256)).log_prob_and_error(x, generator=seeded(2))
    gap = p.log_prob(x) - value
    assert abs(float(gap.mean())) < 4.9 * float(error.square().sum().sqrt() / len(x)) + 0.002
    assert float(error.mean()) < 0.25, "0.9 where what is by chance is left in"


@pytest.mark.parametrize("steps", [5, 20, 100])
def test_the_bound_of_few_steps_has_its_closed_form(steps):
    """Normal data N(0, v): the gap is KL to the prior, the decoder's, and that of each step's variance, rho - 1 - ln rho over 2."""
    v, s_min, s_max = 0.7, 0.05, 20.0
    p = ExactDenoiser(torch.ones(1), torch.zeros(1, 1), torch.full((1, 1, 1), v))
    levels = torch.linspace(math.log(s_min), math.log(s_max), steps + 1).exp()
    t, s = levels[:-1], levels[1:]
    after = v * t.square() / (v + t.square())  # variance of x_0 given y_t
    expected = 0.5 * math.log(2 * math.pi * E * v)
    # E of the bound: decoder and steps by E |x_0 - D(y_s)|^2 = v s^2 / (v + s^2)
    mean_error = v * s.square() / (v + s.square())
    nats = 0.5 * (math.log(2 * math.pi * s_min**2) + 1) + (0.5 * (1 / t.square() - 1 / s.square()) * mean_error).sum()
    ratio = s_max**2 / (v + s_max**2)
    nats = nats + 0.5 * (ratio - 1 - math.log(ratio) + v / (v + s_max**2))
    assert float(nats) > expected
    assert float((after > 0).all())
    model = exact(p, Asking(draws=64, steps_bounded=steps), (s_min, s_max))
    x = p.sample(20_000, generator=seeded(3))
    found = -model.log_prob(x, generator=seeded(5))
    assert abs(float(found.mean() - nats)) < 4.9 * float(found.std()) / math.sqrt(len(x))  # fails once in 10^6


def test_the_gap_on_normal_data_is_its_closed_form():
    """Continuous time, N(0, v): -log p = bound + ln(1 + s_min^2 / v) / 2 + KL to the prior, in the mean over x, to quadrature."""
    v, s_min, s_max = 0.7, 0.3, 10.0
    p = ExactDenoiser(torch.ones(1), torch.zeros(1, 1), torch.full((1, 1, 1), v))
    model, x = exact(p, Asking(draws=128), (s_min, s_max)), p.sample(20_000, generator=seeded(3))
    gap = p.log_prob(x) - model.log_prob(x, generator=seeded(4))
    # E gap = E KL(q(y_min | x) p(x) || p(y_min) p(x | y_min)): the decoder N(y, s_min^2) against the posterior, both ends normal
    integral = 0.5 * (math.log(s_max**2 / (v + s_max**2)) - math.log(s_min**2 / (v + s_min**2)))
    ratio = s_max**2 / (v + s_max**2)
    bound = 0.5 * (math.log(2 * math.pi * s_min**2) + 1) + integral + 0.5 * (ratio - 1 - math.log(ratio) + v / (v + s_max**2))
    expected = bound - 0.5 * math.log(2 * math.pi * E * v)
    assert abs(float(gap.mean()) - expected) < 4.9 * float(gap.std()) / math.sqrt(len(x))
    assert expected > 0.05


def test_steps_tend_to_continuous_time():
    ends, u = torch.tensor([-3.0, 3.0]), torch.linspace(0.05, 0.95, 7)
    log_s, weight = Steps(100_000).at(u, ends)
    assert torch.allclose(log_s, Even().place(u, ends), atol=1e-4)
    assert torch.allclose(weight, 1 / Even().density(log_s, ends), rtol=1e-4)


def test_the_odes_likelihood_is_that_of_the_mixture():
    p = mixture()
    x = p.sample(64, generator=seeded(1))
    model = exact(p, Asking(ode=True))
    assert model.density is Kind.ESTIMATE
    value, error = model.log_prob_and_error(x)
    assert float((value - p.log_prob(x)).abs().max()) < 2e-3  # the data are noised by s_min = 0.002
    assert float(error.max()) == 0
    z = model.encode(x)
    assert torch.allclose(model.decode(z), x, atol=1e-3)
    assert abs(float(z.var()) - 1) < 0.4


def test_draws_are_of_the_mixture():
    p = mixture()
    x = exact(p, Asking(steps=40)).sample(4000, generator=seeded())
    mean, covariance = p.moments()
    error = (covariance.diagonal() / 4000).sqrt()
    assert ((x.mean(0) - mean).abs() < 5 * error + 0.01).all()  # 5 errors of two means: once in 10^6; the solver's is below 0.01
    assert torch.allclose(x.T.cov(), covariance, atol=0.12)


# -- values ------------------------------------------------------------------------------------------


def pixels(levels=17, dim=5):
    return Domain.counts((dim,), levels)


def of_values(domain):
    return DiffusionConfig(net="mlp", width=16, blocks=1).build(domain).eval()


def test_a_network_of_zeros_has_a_bound_of_log_k():
    """17 values with no frequencies: log2 17 bits a variable, to the error of the average."""
    domain = pixels()
    model = of_values(domain)
    model.heads.parts[0].scale.fill_(4.0)
    model.ends.copy_(torch.tensor([0.25 / 8, 200.0]).log())
    x = torch.randint(0, 17, (400, 5), generator=seeded()).double()
    value, error = (part.detach() for part in model.log_prob_and_error(x, generator=seeded(1)))
    total = -value.mean() / 5
    assert abs(float(total) - math.log(17)) < 4.9 * float(error.mean()) / math.sqrt(400) / 5 + 0.003


def test_a_network_of_zeros_is_the_law_of_independent_variables():
    """With b = log of the frequencies the bound's mean over the rows is their entropy, mixed kinds alike."""
    g = seeded()
    p = torch.tensor([0.1, 0.5, 0.05, 0.35])
    kind, grade = (torch.multinomial(w, 3000, replacement=True, generator=g) for w in (p, p[:3] / p[:3].sum()))
    domain = MIXED.select([1, 2])
    x = torch.stack((grade, kind), 1).double()
    model = of_values(domain)
    model.initialise(x)
    counts = [torch.bincount(column, minlength=k) / 3000 for column, k in ((grade, 3), (kind, 4))]
    entropy = -sum(float((share * share.log()).sum()) for share in counts)
    value, error = (part.detach() for part in model.log_prob_and_error(x, generator=seeded(1)))
    # the bound is 0.01 below for the prior; its own error is that of 3,000 averages
    gap = -float(value.mean()) - entropy
    assert -4.9 * float(error.square().sum().sqrt()) / 3000 < gap < 0.02 + 4.9 * float(error.square().sum().sqrt()) / 3000


def test_a_noise_and_its_opposite_leave_no_cross_term():
    """A network of zeros with EDM's target: x_0 - D = (s^2 x_0 - s eps) / (1 + s^2), of whose square the product with eps is gone."""
    x = torch.randn(40, 2, generator=seeded())
    model = DiffusionConfig(width=8, blocks=1).build(Domain.real(2))
    model.initialise(x)
    view, log_s = model._view(x), torch.linspace(-4, 2, 40)
    found = model._paired_error(view, None, log_s, seeded(5))
    s, eps = log_s.exp()[:, None], torch.randn(40, 2, generator=seeded(5))
    torch.testing.assert_close(
        found, ((s.square() * view.x_0).square() / s.square() + eps.square()).sum(1) / (1 + s[:, 0].square()).square()
    )


def test_a_mixed_row_goes_to_its_coordinates_and_back():
    g = seeded()
    x = torch.stack([torch.randn(50, generator=g), *(torch.randint(0, k, (50,), generator=g).double() for k in (3, 4, 6, 2))], 1)
    x[:, 3] += 2
    model = of_values(MIXED)
    model.initialise(x)
    heads = model.heads
    assert heads.width == 1 + 1 + 4 + 1 + 1
    x_0 = heads.embed(x)
    torch.testing.assert_close(heads.read(x_0), x)
    assert torch.allclose(heads.embed(x).mean(0)[0], torch.zeros(()), atol=1e-12)
    # near the data D is the value itself: the noise of a coordinate says which it is, whatever the network
    s = torch.full((50, 1), 0.01)
    out = torch.randn(50, sum(heads.outputs), generator=g)
    near = heads.denoised(out, x_0 + s * torch.randn(x_0.shape, generator=g), s)
    assert torch.allclose(near[:, 1:], x_0[:, 1:], atol=1e-6)


def test_the_law_of_a_value_is_bayes_rule():
    """p(v | y) by hand, of an ordered and an unordered variable."""
    model = of_values(MIXED.select([1, 2]))
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0], [1.0, 0.0], [1.0, 2.0]])
    model.initialise(x)
    ordered, unordered = model.heads.parts
    g, s = seeded(), torch.tensor([[0.4], [2.0]])
    a, y = torch.randn(2, 4, generator=g), torch.randn(2, 4, generator=g)
    corners = torch.stack([unordered.embed(torch.tensor([[float(v)]]))[0] for v in range(4)])
    by_hand = (a + unordered.bias[0] - 0.5 * ((y[:, None] - corners) / s[..., None]).square().sum(-1)).log_softmax(-1)
    torch.testing.assert_close(unordered.odds(a, y, s).log_softmax(-1)[:, 0], by_hand)
    places = torch.stack([ordered.embed(torch.tensor([[float(v)]]))[0] for v in range(3)])[:, 0]
    by_hand = (a[:, :3] + ordered.bias[0] - 0.5 * ((y[:, :1] - places) / s).square()).log_softmax(-1)
    torch.testing.assert_close(ordered.odds(a[:, :3], y[:, :1], s).log_softmax(-1)[:, 0], by_hand)


def test_of_many_values_the_first_and_the_last_stand_alone():
    """32 polynomials of 256 values: cos k t of cos t, orthogonal over the angle; one of them alone makes an end e times as likely."""
    basis = chebyshev(256, 32)
    assert basis.shape == (32, 256)
    assert bool((basis[:, -1] == 1).all())
    z = torch.linspace(-1, 1, 256)
    torch.testing.assert_close(basis[0], z)
    torch.testing.assert_close(basis[1], 2 * z**2 - 1)
    torch.testing.assert_close(basis[2], 4 * z**3 - 3 * z)
    spike = torch.zeros(256).index_fill(0, torch.tensor(0), 1.0)
    best = basis.T @ torch.linalg.lstsq(basis.T, spike[:, None]).solution[:, 0]
    assert float(best[0]) > 0.5
    assert float(best[1:].abs().max()) < float(best[0]) / 2


def test_many_values_share_outputs_and_few_rows_at_once_are_all_rows(monkeypatch):
    domain = Domain(tuple(Variable(f"x{d}", VariableKind.COUNT, lower=0.0, upper=upper) for d, upper in enumerate((255.0, 99.0))))
    part = Heads(domain, Prediction()).parts[0]
    assert part.outputs == 64
    g = seeded()
    x = torch.stack((torch.randint(0, 256, (40,), generator=g), torch.randint(0, 100, (40,), generator=g)), 1).double()
    part.initialise(x)
    out, y, s = torch.randn(40, 64, generator=g), torch.randn(40, 2, generator=g), torch.rand(40, 1, generator=g)
    shares = part.odds(out, y, s).softmax(-1)
    assert bool((shares[:, 1, 100:] == 0).all())
    mean = (shares * part.places).sum(-1)
    monkeypatch.setattr(heads_module, "_KEPT", 3 * part.bias.numel())
    torch.testing.assert_close(part.denoised(out, y, s), mean)


def test_a_value_that_is_none_has_probability_0():
    model = of_values(MIXED.select([1, 3]))
    model.initialise(torch.tensor([[0.0, 2.0], [1.0, 5.0], [2.0, 7.0]]))
    x = torch.tensor([[3.0, 2.0], [1.5, 2.0], [1.0, 1.0], [1.0, 8.0], [1.0, 2.0], [math.inf, 2.0]])
    value = model.log_prob(x, generator=seeded())
    assert value.isinf().tolist() == [True, True, True, True, False, True]


# -- parts of a row ----------------------------------------------------------------------------------


def test_cells_are_noised_given_or_absent():
    view = View(torch.zeros(5000, 6), torch.zeros(5000, 6), (torch.arange(6) == 2).double().expand(5000, 6))
    some = some_hidden(view, 0.5, seeded())
    assert bool((some.given + some.absent + some.noised == 1).all())
    assert bool((some.absent[:, 2] == 1).all()), "a missing cell is absent"
    whole = (some.noised.sum(1) == 5).double().mean()
    assert 0.5 < float(whole) < 0.68  # half are left as they are, and some of the others by chance
    assert some_hidden(view, 0.0, seeded()).given.sum() == 0


def test_every_second_picture_shows_what_is_outside_of_a_rectangle():
    """Of 8 x 8 pixels with 3 channels: what is noised fills its bounding box, in all channels alike; scattered cells hardly ever do."""
    view = View(torch.zeros(4000, 192), torch.zeros(4000, 192), torch.zeros(4000, 192))
    given = some_hidden(view, 1.0, seeded(), (3, 8, 8)).given
    shown = given[given.sum(1) > 0]
    inside = 1 - shown.view(-1, 3, 8, 8)
    box = inside.amax((1, 3))[:, :, None] * inside.amax((1, 2))[:, None, :]
    filled = (inside == box[:, None]).flatten(1).all(1).double().mean()
    assert 0.4 < float(filled) < 0.6
    whole_width = (inside.amax((1, 2)) > 0).all(1) & (inside[:, 0] == box).flatten(1).all(1)
    assert float(whole_width.double().mean()) > 0.03, "halves, too"


def test_what_is_absent_or_given_is_not_read_from_the_noise():
    domain = Domain.real(3)
    model = DiffusionConfig(width=16, blocks=1).build(domain).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=seeded())
    flags = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    model.requires_grad_(False)
    view, s = View(torch.tensor([[0.3, 0.0, 0.0]]), *flags), torch.tensor([[0.5]])
    y = torch.tensor([[9.0, -7.0, 0.4]])
    other = torch.tensor([[-1.0, 2.0, 0.4]])
    assert float(model.denoised(y, s, view)[0, 2]) == float(model.denoised(other, s, view)[0, 2])
    moved = view._replace(x_0=torch.tensor([[0.9, 0.0, 0.0]]))
    assert float(model.denoised(y, s, view)[0, 2]) != float(model.denoised(y, s, moved)[0, 2]), "what is given is seen"


def tied(n, seed):
    """x1 follows x0, r = 0.8, and a third variable is its sign."""
    z = torch.randn(n, 2, generator=seeded(seed), dtype=torch.float64)
    return torch.stack((z[:, 0], 0.8 * z[:, 0] + 0.6 * z[:, 1], (z[:, 0] > 0).double()), 1).numpy()


@pytest.fixture(scope="module")
def correlated():
    domain = Domain((*Domain.real(2).variables, Variable("up", K.BINARY, levels=(0, 1))))
    options = {"width": 64, "blocks": 2, "max_epochs": 80, "patience": 80, "batch_size": 512, "learning_rate": 6e-3, "masked": 0.75}
    return pofx.fit(tied(20_000, 0), "diffusion", schema=domain, progress=False, **options)


@pytest.mark.slow
def test_it_learns_conditionals_and_marginals(correlated):
    """Against the closed forms; a learned network's errors are not statistical, so the bounds are what a good fit keeps."""
    given = correlated.conditional(x0=1.0)
    assert given.approximation
    draws = given.sample(4000, seed=1)
    assert abs(draws[:, 0].mean() - 0.8) < 0.08
    assert abs(draws[:, 0].std() - 0.6) < 0.06
    assert draws[:, 1].mean() > 0.97, "the sign of what is known"
    alone, values = correlated.using(draws=4096).marginal("x1"), torch.linspace(-2, 2, 9)[:, None]
    found, expected = alone.log_prob(values.numpy()), torch.distributions.Normal(0.0, 1.0).log_prob(values[:, 0])
    assert (abs(found.value - expected.numpy()) < 0.15 + found.error).all()
    assert found.error.max() < 0.12
    filled = correlated.impute([[1.5, float("nan"), float("nan")]])
    assert abs(float(filled[0][1]) - 1.2) < 0.25
    assert float(filled[0][2]) == 1


@pytest.mark.slow
def test_particles_correct_what_the_network_says_of_parts(correlated):
    """The same conditional from the law of whole rows, and p(x0 = 1) of the standard normal."""
    led = correlated.conditional(x0=1.0, method="twisted", seed=1)
    draws = led.sample(2000, seed=2)
    assert abs(draws[:, 0].mean() - 0.8) < 0.1
    assert draws[:, 1].mean() > 0.97
    assert "led down the noise levels" in led.approximation
    missing = correlated.conditional(up=1, method="twisted", seed=1).sample(2000, seed=2)
    assert abs(missing[:, 0].mean() - math.sqrt(2 / math.pi)) < 0.1


@pytest.mark.slow
def test_its_bound_is_near_the_entropy(correlated):
    """h(x0, x1) = ln(2 pi e 0.6): the third variable is told by the first but at the boundary."""
    found = correlated.score(tied(2000, 7))
    truth = -math.log(2 * math.pi * E * 0.6)
    assert found.kind is Kind.BOUND
    assert truth - 0.25 < float(found) < truth + 5 * float(found.error)


def test_parts_are_refused_where_they_were_not_learned():
    model = DiffusionConfig(width=16, blocks=1, masked=0.0).build(Domain.real(2)).eval()
    assert model.answers("conditional") is Kind.NONE


# -- led to what is seen ---------------------------------------------------------------------------------


def test_particles_are_led_to_the_exact_conditional():
    """Of a mixture with its exact denoiser: the posterior's mean, and its evidence, a density. The islands' spread is the error; with 20
    islands 6.7 of it is passed once in 10^6 runs."""
    p = mixture()
    model, seen = exact(p, span=(0.01, 20.0)), torch.tensor([0.3, math.nan])
    draws = pofx.ask.generic.conditional(model, pofx.events.Event.at(model.domain, seen), method="twisted", draws=4000, generator=seeded())
    posterior, log_z = p.condition(torch.tensor([[1.0, 0.0]]), seen[:1], torch.zeros(1, 1))
    assert (draws.rows[:, 0] == 0.3).all()
    assert abs(draws.log_evidence - float(log_z)) < 6.7 * draws.log_evidence_error + 0.02  # levels are 100, not endless
    mean, error = draws.mean
    assert abs(float(mean[1] - posterior.moments()[0][1])) < 6.7 * float(error[1]) + 0.02
    assert draws.ess > 200


def test_particles_are_led_up_a_likelihood():
    """Of a mixture with its exact denoiser and log L of |x|, neither linear nor normal: mean and evidence by quadrature."""
    p = mixture()
    model = exact(p, span=(0.01, 20.0))

    def log_l(x):
        return -0.5 * ((x.norm(dim=1) - 1.2) / 0.15).square() + 0.8 * x[:, 0].tanh()

    line = torch.linspace(-6, 6, 1201)
    grid = torch.cartesian_prod(line, line)
    log_p = p.log_prob(grid) + log_l(grid)
    log_z = float(log_p.logsumexp(0) + 2 * math.log(0.01))
    mean = (log_p.softmax(0)[:, None] * grid).sum(0)
    found = pofx.ask.generic.posterior(model, log_l, method="twisted", draws=4000, generator=seeded())
    # islands are 20: 6.7 errors of theirs are passed once in 10^6 runs; 100 levels are not endless
    assert abs(found.log_evidence - log_z) < 6.7 * found.log_evidence_error + 0.02
    m, error = found.mean
    assert ((m - mean).abs() < 6.7 * error + 0.02).all()
    assert found.ess > 100
    assert "led down the noise levels" in found.how


def test_the_width_of_a_normal_likelihood_is_its_deviation():
    x = torch.randn(500, 3, generator=seeded())

    def log_l(x):
        return -0.5 * ((x[:, 1] - 0.2) / 0.3).square() + 7.0

    best = torch.tensor([[0.0, 0.2, 0.0]])
    assert abs(width_of(log_l, torch.cat((x, best))) - 0.3) < 1e-12
    assert width_of(lambda x: x[:, 0].round(), x) > 1e6


def test_a_likelihood_without_a_gradient_leads_nowhere():
    model = pofx.fit(tied(200, 0)[:, :2], "diffusion", width=16, blocks=1, max_epochs=1, progress=False)
    with pytest.raises(OptionError, match="needs the gradient of the log-likelihood, and torch finds none"):
        model.posterior(lambda x: (x[:, 0] > 0).double(), method="twisted")
    with pytest.raises(Unavailable, match="it has to be finite wherever draws go"):
        model.posterior(lambda x: torch.where(x[:, 0] > 0, x[:, 0], -math.inf), method="twisted")
    with pytest.raises(OptionError, match="method is one of smc, twisted, got 'hmc'"):
        model.posterior(lambda x: x[:, 0], method="hmc")
    with pytest.raises(Unavailable, match="does not draw step by step from noise"):
        pofx.fit("moons", "gaussian").posterior(lambda x: x[:, 0], method="twisted")


def test_particles_led_to_values_have_their_probability():
    """Of a network of zeros, independent variables: log Z is the log of the frequency times the density of the real, seen in its units."""
    domain = MIXED.select([0, 1, 2])
    g = seeded(2)
    x = torch.stack((3 + 2 * torch.randn(4000, generator=g), *(torch.randint(0, k, (4000,), generator=g).double() for k in (3, 4))), 1)
    model = of_values(domain)
    model.initialise(x)
    model.requires_grad_(False)
    for row, expected in (
        ([math.nan, 1.0, 2.0], math.log(1 / 12)),
        ([5.0, math.nan, 3.0], math.log(1 / 4) - 0.5 - 0.5 * math.log(2 * math.pi * 4)),
    ):
        found = model.particles(torch.tensor(row), 150, 20, generator=seeded())
        mean, error = found.log_z.logsumexp(0) - math.log(20), found.log_z.std() / math.sqrt(20)
        assert abs(float(mean) - expected) < 6.7 * float(error) + 0.08  # frequencies of 4,000 rows
        kept = torch.tensor(row)
        assert (found.x[..., ~kept.isnan()] == kept[~kept.isnan()]).all()


def test_only_models_that_draw_from_noise_are_led():
    model = pofx.fit("moons", "gaussian").model
    with pytest.raises(Unavailable, match="does not draw step by step from noise"):
        model.particles(torch.tensor([0.1, math.nan]), 10, 4, generator=seeded())
    led = DiffusionConfig(width=16, blocks=1).build(Domain.real(2))
    event = pofx.events.Event(led.domain, {0: pofx.events.Between(0.0, 1.0)})
    with pytest.raises(Unavailable, match="led to values, not to sets and intervals"):
        pofx.ask.generic.conditional(led, event, method="twisted", draws=100, generator=seeded())


# -- looking at it ---------------------------------------------------------------------------------------


def test_what_a_level_costs_is_the_posterior_variance():
    """N(0, v): E |x_0 - D|^2 / s^2 = v / (v + s^2), and the bands, the top and the end together are minus the bound."""
    v = 0.7
    p = ExactDenoiser(torch.ones(1), torch.zeros(1, 2), v * torch.eye(2)[None])
    model, x = exact(p, span=(0.1, 10.0)), p.sample(20_000, generator=seeded())
    edges = torch.linspace(math.log(0.1), math.log(10.0), 13)
    forgotten, decoded, each = model.paid(x, None, edges, seeded(1))
    # the mean over a band of 2 v / (v + e^2u) is (ln of (v + s^2) / s^2 at its ends) / width
    at = (v / edges.mul(2).exp() + 1).log()
    expected = (at[:-1] - at[1:]) / (edges[1] - edges[0])
    error = each.std(1) / math.sqrt(len(x))
    assert ((each.mean(1) - expected).abs() < 5 * error).all()  # 12 bands: fails once in 10^5
    whole = (forgotten + decoded).mean() + each.mean(1).sum() * (edges[1] - edges[0])
    value, errors = model.log_prob_and_error(x[:2000], generator=seeded(2))
    assert abs(float(whole + value.mean())) < 5 * float(errors.square().sum().sqrt()) / 2000 + 5 * float(value.std()) / math.sqrt(2000)


def test_arrows_end_at_the_denoised_and_the_way_ends_at_a_draw():
    p = mixture()
    found = exact(p).diagnose(p.sample(100, generator=seeded()), generator=seeded(1))
    for s, tips in zip(found.field.levels, found.field.tips, strict=True):
        torch.testing.assert_close(tips, p(found.field.tails, torch.full((len(tips), 1), s)))
    assert found.way.shape == (21, 400, 2)
    assert len(found.at) == 21
    assert found.at[-1] == 0
    mean, covariance = p.moments()
    assert torch.allclose(found.way[-1].mean(0), mean, atol=6 * float(covariance.max() / 400) ** 0.5)
    assert not found.warnings
    near = exact(p, span=(0.002, 1.0)).diagnose(p.sample(100, generator=seeded()), generator=seeded(1))
    assert "forgetting a row costs" in near.warnings[0]


@pytest.mark.parametrize(("name", "panels"), [("digits", 3), ("moons", 4), ("iris", 1)])
def test_every_kind_of_rows_has_its_pictures(name, panels, tmp_path):
    p = pofx.fit(name, "diffusion", max_epochs=1, progress=False)
    found = p.diagnose(pofx.load(name).test[:64], seed=0)
    shown = list(of_noise(found, "diffusion", p.domain))
    assert len(shown) == panels
    assert all(panel.picture.startswith("data:image/png;base64," if panel.is_image else "<svg") for panel in shown)
    assert "mathdefault" not in shown[0].picture
    for ending, begins in ((".png", b"\x89PNG"), (".html", b"<!doctype html>"), (".svg", b"<?xml")):
        write_picture(found, tmp_path / f"noise{ending}", p.domain)
        assert (tmp_path / f"noise{ending}").read_bytes().startswith(begins)
    assert "eight in ten" in found.sentence()
    assert f"on the way {found.paid:.3f}" in str(found)


def test_a_film_has_every_frame_of_the_way():
    p = pofx.fit("moons", "diffusion", max_epochs=1, width=16, blocks=1, steps=7, progress=False)
    source = film(p.diagnose(pofx.load("moons").test, seed=0), p.domain)
    moving = Image.open(BytesIO(base64.b64decode(source.split(",")[1])))
    assert moving.n_frames == 8


@pytest.mark.parametrize("net", ["mlp", "transformer"])
def test_a_file_is_opened_under_another_default_type(net, tmp_path):
    """Counts, levels and reals: what no file holds follows the weights; and so does what is asked in another way."""
    rows = {"a": [0.1, 0.5, -1.0, 0.3] * 10, "b": ["x", "y", "x", "z"] * 10, "n": [1, 4, 2, 3] * 10}
    torch.set_default_dtype(torch.float32)
    try:
        p = pofx.fit(rows, "diffusion", net=net, width=16, blocks=1, max_epochs=1, progress=False, schema={"n": "count"})
        expected = np.asarray(p.log_prob(rows))
        p.save(tmp_path / "p.safetensors")
    finally:
        torch.set_default_dtype(torch.float64)
    opened = pofx.open(tmp_path / "p.safetensors")
    assert np.array_equal(np.asarray(opened.log_prob(rows)), expected)
    assert len(opened.using(steps=3).conditional(b="x").sample(5)["a"]) == 5


# -- guidance and conditions -------------------------------------------------------------------------


def test_guidance_goes_past_the_condition():
    context = Domain.real(1)
    model = DiffusionConfig(width=16, blocks=1, guidance=2.0).build(Domain.real(2), context).eval()
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.normal_(std=0.3, generator=seeded())
    view, c = model._view(torch.zeros(3, 2)), torch.tensor([[0.5], [1.0], [-1.0]])
    y, s = torch.randn(3, 2, generator=seeded(1)), torch.full((3, 1), 0.7)
    told, alone = model.denoised(y, s, view, c), model.denoised(y, s, view, torch.full_like(c, torch.nan))
    assert not torch.allclose(told, alone)
    torch.testing.assert_close(model.denoiser(view, c)(y, s), told + 2 * (told - alone))


# -- nothing depends on how many rows there are ------------------------------------------------------


@pytest.mark.parametrize(
    "family",
    [
        DiffusionConfig(width=16, blocks=1),
        DiffusionConfig(net="unet", channels=(8, 16), shape=(4, 4)),
        DiffusionConfig(net="transformer", width=16, blocks=1),
        DiffusionConfig(net="transformer", width=16, blocks=1, shape=(4, 4)),
    ],
)
def test_a_row_alone_is_as_in_a_batch(family):
    domain = Domain.real(16)
    model = family.build(domain).eval()
    model.asking = Asking(ode_steps=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=seeded())
    x, s = torch.randn(6, 16, generator=seeded(1)), torch.linspace(0.1, 3, 6)[:, None]
    whole = model.denoised(x, s, model._view(x))
    for i in range(6):
        torch.testing.assert_close(model.denoised(x[i : i + 1], s[i : i + 1], model._view(x[i : i + 1])), whole[i : i + 1])
    torch.testing.assert_close(torch.cat([model.encode(part) for part in x.split(2)]), model.encode(x))
    ode = Diffusion(domain, None, model.heads, model.net, model.learning, Asking(ode=True, ode_steps=3))
    torch.testing.assert_close(torch.cat([ode.log_prob(part) for part in x.split(1)]), ode.log_prob(x))


# -- bad input ---------------------------------------------------------------------------------------


def test_the_odes_likelihood_is_of_reals():
    with pytest.raises(OptionError, match="likelihood='ode' is of real variables"):
        DiffusionConfig(likelihood="ode").build(MIXED)


def test_images_and_rows_decide_what_was_not_given():
    pixels, reals = Domain.counts((8, 8), 17), Domain.real(3)
    images = DiffusionConfig().for_domain(pixels).for_rows(1000)
    assert (images.batch_size, images.learning_rate, images.dropout, images.masked) == (64, 3e-3, 0.1, 0.25)
    table = DiffusionConfig().for_domain(reals).for_rows(5000)
    assert (table.batch_size, table.learning_rate, table.dropout, table.max_epochs, table.masked) == (256, 6e-3, 0.0, 200, 0.5)
    given = DiffusionConfig(batch_size=32, dropout=0.2, max_epochs=3).for_domain(pixels).for_rows(10_000)
    assert (given.batch_size, given.dropout, given.max_epochs) == (32, 0.2, 3)


def test_levels_must_rise():
    with pytest.raises(OptionError, match=r"noise goes from s_min up to s_max, got 2\.0 and 1\.0"):
        DiffusionConfig(s_min=2.0, s_max=1.0).build(Domain.real(2))


def test_a_unet_is_for_images():
    with pytest.raises(OptionError, match=r"net='unet' is for images of pixels that are alike, got shape \(5,\)"):
        DiffusionConfig(net="unet").build(MIXED)


def test_no_steps_are_refused():
    with pytest.raises(OptionError, match="family 'diffusion', option 'steps': Input should be greater than or equal to 1, got 0"):
        pofx.fit([[0.0, 1.0], [1.0, 0.5], [0.2, 0.2]], "diffusion", steps=0)


def test_evidence_that_contradicts_the_domain_is_refused():
    model = pofx.fit([[0.1, 1], [1.1, 0], [0.2, 1], [0.4, 0]] * 6, "diffusion", schema={"x1": "binary"}, width=16, blocks=1, max_epochs=1)
    with pytest.raises(DataError, match="column 'x1' has no level 7"):
        model.conditional(x1=7)


def test_no_steps_are_refused_of_what_was_learned_and_likelihoods_of_another_shape_too():
    model = pofx.fit("moons", "diffusion", width=16, blocks=1, max_epochs=1)
    with pytest.raises(OptionError, match="option 'steps': Input should be greater than or equal to 1, got 0"):
        model.using(steps=0)
    with pytest.raises(OptionError, match=r"a log-density gives one number a row, shape \(2,\), got \(2, 2\)"):
        model.posterior(lambda x: x, method="twisted")
