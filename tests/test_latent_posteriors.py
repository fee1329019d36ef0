"""Families of posteriors and discrete latents: laws against grids and enumerations, and each gradient against the exact one.

The exact bound of a small model is a sum over all categories and a grid of the numbers, and its gradient that of the sum.
Means of 30 parts are compared by Student's t with 29 degrees: |t| > 9 by chance in 7e-10 of cases, for at most 200 numbers a test;
means of many draws at 6 standard errors.
"""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import MultivariateNormal, kl_divergence
from torch.distributions import StudentT as TorchStudent
from torch.nn.functional import one_hot

import pofx
from pofx.distributions.base import inverse_positive
from pofx.distributions.columns import Columns
from pofx.distributions.continuous import Normal
from pofx.domain import Domain
from pofx.errors import OptionError, Unavailable
from pofx.learn.run import run
from pofx.models.latent.continuous import Flow, Full, StudentT
from pofx.models.latent.decoder import Decoder
from pofx.models.latent.discrete import Categorical, CategoricalPrior, OneHots
from pofx.models.latent.generative import Generative, Link
from pofx.models.latent.inference import Encoder, Path, held_terms, log_terms, proposed_terms, score_terms
from pofx.models.latent.laws import Diagonal, DiagonalNormal, LatentLaw
from pofx.models.latent.priors import StandardNormal
from pofx.models.latent.vae import VAEConfig
from pofx.objectives.elbo import elbo, iwae, log_weights

D, NAN, PARTS, FAR = 3, math.nan, 30, 9.0
TAILS = 12.0  # more degrees of freedom than a law begins with: about 22, so that the slopes have a variance
LAWS = {
    "diagonal": lambda: Diagonal(2),
    "full": lambda: Full(2),
    "student": lambda: StudentT(2),
    "flow": lambda: Flow(2, context=3, widths=(6,)),
    "categorical": lambda: Categorical(2, 3),
}
SMOOTH = [name for name in LAWS if name != "categorical"]


def stirred(module, scale):
    """Its parameters elsewhere than they begin; a net may not have the weights that its mask leaves out."""
    masks = {id(part.theta): part.mask for part in module.modules() if hasattr(part, "theta")}
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.5 * scale * torch.randn_like(p) * masks[id(p)] if id(p) in masks else scale * torch.randn_like(p))
    return module


def law(name, rows=1, scale=0.5):
    """Of arbitrary numbers, alike for all rows. Student's t has tails that a grid holds."""
    made = stirred(LAWS[name](), scale)
    a = scale * torch.randn(made.outputs)
    a[made.outputs - made.late :] += TAILS if name == "student" else 0.0
    return made(a.expand(rows, -1))


def states(sizes):
    """Every z of the law: a grid of numbers, or all one-hots; (G, L), and the measure of a point."""
    if sizes == "categorical":
        codes = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        return one_hot(codes, 3).flatten(-2).double(), 1.0
    axis = torch.linspace(-9, 9, 301)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2


def bent(name, scale=0.5):
    """A model and an inference with arbitrary numbers: one level of the law, or a number below three categories."""
    if name == "levels":
        laws, prior, links = [Diagonal(1), Categorical(1, 3)], CategoricalPrior(1, 3), [Link(3, 1, (4,))]
    else:
        laws, links = [LAWS[name]()], []
        prior = CategoricalPrior(2, 3) if name == "categorical" else StandardNormal(2)
    size = sum(each.latents for each in laws)
    model = Generative(prior, Decoder(size, Columns([Normal()] * D), widths=(6,)), links)
    q = Encoder(Domain.real(D), laws, widths=(5,))
    stirred(model, scale), stirred(q, scale)
    with torch.no_grad():
        model.decoder.heads.weight[1::2] = 0  # the deviations of x: a heavy tail of z would make E log p(x | z) endless
        if name == "student":
            last = q.nets[0].rest[-1]
            last.weight[2:4], last.bias[2:4] = 0, 0  # deviations of 1: a grid holds them, and they hold the posterior
            last.bias[4:] += TAILS
    return model, q


def everywhere(name):
    """All latents of `bent`, (G, 1, L) a level, and the measure of a point."""
    if name == "levels":
        axis = torch.linspace(-8, 8, 801)
        i, k = torch.cartesian_prod(torch.arange(len(axis)), torch.arange(3)).T
        return (axis[i][:, None, None], one_hot(k, 3).double()[:, None]), float(axis[1] - axis[0])
    z, cell = states(name)
    return (z[:, None],), cell


def exact_bound(name, model, q, row):
    """sum_z q(z | x) log w(z)."""
    latents, cell = everywhere(name)
    log_q = q.draw(model, row, None, 1).density(latents)
    log_w = model.log_likelihood(latents, row) + sum(model.log_prior(latents)) - sum(log_q)
    return (sum(log_q).exp() * log_w).sum() * cell


def parameters(*modules):
    return [p for module in modules for p in module.parameters() if p.requires_grad and p.numel()]


def gradient(value, of):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, of, allow_unused=True, materialize_grads=True)])


# -- laws --------------------------------------------------------------------------------------------------------------


def test_every_law_has_a_line_above():
    assert {type(LAWS[name]()) for name in LAWS} == set(LatentLaw.__subclasses__())


@pytest.mark.parametrize("name", LAWS)
def test_density_integrates_to_one_and_draws_agree_with_it(name):
    """In means, squares, cross-moments and waves; the wings beyond the grid hold less than 1e-6."""
    with torch.no_grad():
        q = law(name)
        z, cell = states(name)
        p = q.log_prob(z[:, None])[:, 0].exp() * cell
        assert abs(p.sum() - 1) < 1e-4
        drawn = q.draw((200_000, 1)).z[:, 0]
        along = torch.randn(z.shape[-1], 2)
        of_all, of_draws = (torch.cat((v, (v[:, :, None] * v[:, None]).flatten(1), (v @ along).cos()), -1) for v in (z, drawn))
        error = of_draws.std(0) / math.sqrt(len(drawn))
        assert ((of_draws.mean(0) - p @ of_all).abs() < 6 * error + 1e-3 * error.max()).all()


@pytest.mark.parametrize("name", ["full", "student", "categorical"])
def test_moments_and_entropy_are_those_of_the_density(name):
    with torch.no_grad():
        q = law(name)
        z, cell = states(name)
        log_p = q.log_prob(z[:, None])[:, 0]
        p = log_p.exp() * cell
        mean = p @ z
        tolerance = {"atol": 3e-4 if name == "student" else 1e-6, "rtol": 0}  # its wings beyond the grid
        torch.testing.assert_close(q.moments.mean[0], mean, **tolerance)
        torch.testing.assert_close(q.moments.variance[0], p @ (z - mean).square(), **tolerance)
        torch.testing.assert_close(q.entropy[0], -(p * log_p).sum(), **tolerance)


def test_closed_forms_are_torchs():
    full = law("full", 4)
    normal = MultivariateNormal(full.m, scale_tril=full.factor)
    torch.testing.assert_close(full.kl(StandardNormal(2)), kl_divergence(normal, MultivariateNormal(torch.zeros(2), torch.eye(2))))
    t, z = law("student", 4), torch.randn(5, 4, 2)
    peer = TorchStudent(t.nu, t.m, t.s)
    torch.testing.assert_close(t.log_prob(z), peer.log_prob(z).sum(-1))
    torch.testing.assert_close(t.entropy, peer.entropy().sum(-1))
    torch.testing.assert_close(t.moments.variance, peer.variance)
    q, p = law("categorical", 4), CategoricalPrior(2, 3)
    with torch.no_grad():
        p.logits.normal_()
    peers = kl_divergence(TorchCategorical(logits=q.logits), TorchCategorical(logits=p.logits))
    torch.testing.assert_close(q.kl(p), peers.sum(-1))


@pytest.mark.parametrize("name", [*LAWS, "levels"])
def test_q_says_the_density_it_draws_from(name):
    model, q = bent(name)
    drawn = q.draw(model, torch.randn(4, D), None, 3)
    for said, at, held in zip(drawn.log_q(), drawn.density(drawn.latents), drawn.held(drawn.latents), strict=True):
        torch.testing.assert_close(said, at)
        torch.testing.assert_close(said, held)


def test_a_draw_of_categories_is_one_hot_to_the_bit():
    q = law("categorical", 50)
    z = q.draw((20, 50)).z.unflatten(-1, (2, 3))
    assert torch.equal(z, one_hot(z.argmax(-1), 3).double())


@pytest.mark.parametrize("name", ["full", "student", "flow"])
def test_a_family_begins_at_the_normal_with_independent_units_or_near_it(name):
    q = Encoder(Domain.real(D), [LAWS[name]()], widths=(5,))
    began, z = q.top(torch.randn(4, D), None), torch.randn(6, 4, 2)
    if name == "student":
        torch.testing.assert_close(began.nu, torch.full((4, 2), 10.0), atol=1e-3, rtol=0)
        return
    base = began.base if name == "flow" else DiagonalNormal(began.m, began.log_d)
    torch.testing.assert_close(began.log_prob(z), base.log_prob(z))
    assert base.log_s.std() > 0
    same = [one.draw((6, 4), generator=torch.Generator().manual_seed(1)) for one in (began, base)]
    torch.testing.assert_close(same[0].z, same[1].z)


# -- inference ---------------------------------------------------------------------------------------------------------


def test_with_the_exact_posterior_of_coupled_units_every_weight_is_p_of_x():
    w, mu, sigma = torch.randn(D, 2), torch.randn(D), 0.7
    model, q = Generative(StandardNormal(2), Decoder(2, Columns([Normal()] * D), widths=())), Encoder(Domain.real(D), [Full(2)], widths=())
    covariance = torch.linalg.inv(torch.eye(2) + w.T @ w / sigma**2)
    gain, factor = covariance @ w.T / sigma**2, torch.linalg.cholesky(covariance)
    with torch.no_grad():
        heads, (net,) = model.decoder.heads, q.nets
        heads.weight[0::2], heads.bias[0::2], heads.bias[1::2] = w, mu, inverse_positive(torch.tensor(sigma))
        q.features.scale.fill_(100.0)  # no row is 3 deviations out, where a linear encoder would be bent
        net.inlet.weight.zero_()
        net.inlet.weight[:2], net.inlet.bias[:2] = 100 * gain, -gain @ mu
        net.inlet.bias[2:4], net.inlet.bias[4] = factor.diagonal().log(), factor[1, 0]
    p = MultivariateNormal(mu, w @ w.T + sigma**2 * torch.eye(D))
    x = p.sample((6,))
    log_w = log_weights(log_terms(model, q, x, None, 7))
    torch.testing.assert_close(log_w, p.log_prob(x).expand(7, -1), atol=1e-11, rtol=0)


@pytest.mark.parametrize("name", [*LAWS, "levels"])
def test_proposals_weigh_without_bias_whatever_is_missing(name):
    """E[w] = p(x_observed), by the sum over all latents."""
    model, q = bent(name, 0.4)
    x = torch.tensor([[0.3, -1.0, 0.5], [NAN, 0.8, NAN], [NAN, NAN, NAN]])
    q.initialise(x)
    with torch.no_grad():
        z, cell = everywhere(name)
        log_p = (model.log_likelihood(z, x) + sum(model.log_prior(z))).logsumexp(0) + math.log(cell)
        w = (log_weights(proposed_terms(model, q, x, None, 20_000)) - log_p).exp()
    assert ((w.mean(0) - 1).abs() < 6 * w.std(0) / math.sqrt(len(w)) + 1e-4).all()


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [2, 3])
@pytest.mark.parametrize("name", ["full", "student"])
def test_pathwise_gradients_of_powers_are_those_of_the_moments(name, power):
    """E z^2 = m^2 + v, E z^3 = m^3 + 3 m v for any symmetric law."""
    rows = 100_000
    made = LAWS[name]()
    a = torch.tensor([0.7, -0.4, -0.2, 0.3, 12.0, 12.0] if name == "student" else [0.7, -0.4, -0.2, 0.3, 0.8])  # finite variances of slopes
    a = a.requires_grad_()
    mean, v = made(a).moments
    exact = gradient((mean**2 + v if power == 2 else mean**3 + 3 * mean * v).sum(), a)
    each = a.detach().expand(rows, -1).clone().requires_grad_()
    slopes = torch.autograd.grad((made(each).draw((rows,)).z ** power).sum(), each)[0]
    error = slopes.std(0) / math.sqrt(rows)
    assert ((slopes.mean(0) - exact).abs() < 6 * error).all()
    assert (error < 0.05 * exact.abs().max()).all()


def parts_of(table, model, q, row, of, rows, k):
    """The gradient of the mean bound over `rows` equal rows, PARTS times."""
    each = [gradient(elbo(table(model, q, row.expand(rows, -1), None, k)).mean(), of) for _ in range(PARTS)]
    return torch.stack(each)


def unbiased(parts, exact, share=0.05):
    error = parts.std(0) / math.sqrt(PARTS)
    assert ((parts.mean(0) - exact).abs() < FAR * error + 1e-4 * exact.abs().max()).all()
    assert error.max() < share * exact.abs().max()


@pytest.mark.parametrize("name", SMOOTH)
def test_the_pathwise_gradient_is_that_of_the_exact_bound(name):
    (model, q), row = bent(name), torch.randn(1, D)
    of = parameters(model, q)
    unbiased(parts_of(log_terms, model, q, row, of, 1500, 1), gradient(exact_bound(name, model, q, row), of))


@pytest.mark.parametrize("name", ["categorical", "levels", "full", "flow"])
def test_the_score_functions_gradient_is_that_of_the_exact_bound(name):
    (model, q), row = bent(name), torch.randn(1, D)
    of = parameters(model, q)
    unbiased(parts_of(score_terms, model, q, row, of, 1500, 3), gradient(exact_bound(name, model, q, row), of), share=0.1)


def test_the_score_functions_table_has_the_values_of_the_plain_one():
    model, q = bent("levels")
    x = torch.randn(4, D)
    plain, score = (t(model, q, x, None, 3, generator=torch.Generator().manual_seed(1)) for t in (log_terms, score_terms))
    assert torch.equal(plain.log_likelihood, score.log_likelihood)
    torch.testing.assert_close(log_weights(plain), log_weights(score))


@pytest.mark.parametrize("k", [2, 8])
def test_the_other_draws_take_off_variance(k):
    """Against the score function with nothing taken off, t_k d log q / d phi."""
    (model, q), row = bent("categorical"), torch.tensor([[4.0, -3.0, 3.0]])
    of = parameters(q)

    def bare(model, q, x, c, draws):
        terms = score_terms(model, q, x, c, draws)
        score = sum(q.draw(model, x, c, 1).density(terms.latents))
        terms.log_likelihood = terms.log_likelihood.detach() * (1 + score - score.detach())
        return terms

    with_others, alone = (parts_of(table, model, q, row, of, 50, k) for table in (score_terms, bare))
    assert with_others.var(0).sum() < 0.1 * alone.var(0).sum()
    exact = gradient(exact_bound("categorical", model, q, row), of)
    unbiased(alone, exact, share=10.0)
    unbiased(with_others, exact, share=10.0)


@pytest.mark.parametrize("name", ["full", "student", "flow"])
def test_the_doubly_reparameterised_gradient_has_the_plain_ones_mean(name):
    (model, q), row = bent(name, 0.4), torch.randn(1, D)
    of, off = parameters(q), []
    for seed in range(PARTS):  # of the same draws, so their common noise is gone
        found = [
            gradient(iwae(log_weights(t(model, q, row.expand(600, -1), None, 3, generator=torch.Generator().manual_seed(seed)))).mean(), of)
            for t in (log_terms, held_terms)
        ]
        off.append(torch.stack((found[1] - found[0], found[0])))
    away, plain = torch.stack(off).unbind(1)
    error = away.std(0) / math.sqrt(PARTS)
    assert (away.mean(0).abs() < FAR * error + 1e-9).all()
    assert 0 < error.max() < 0.1 * plain.mean(0).abs().max()


# -- straight through --------------------------------------------------------------------------------------------------


def mean_slope(df, logit, tau):
    """E[f'(hard) d soft / d logit] of a binary variable, by a grid of its logistic noise u: soft = sigma((logit + u) / tau)."""
    v = tau * torch.linspace(-40, 40, 400_001)  # logit + u, fine where the slope is
    soft, u = torch.sigmoid(v / tau), v - logit
    density = torch.sigmoid(u) * torch.sigmoid(-u)
    return float((df((v > 0).double()) * soft * (1 - soft) / tau * density).sum() * (v[1] - v[0]))


def powers(power):
    return lambda z: power * z ** (power - 1)


LOGIT = 0.8
TRUE = math.exp(-LOGIT) / (1 + math.exp(-LOGIT)) ** 2  # d/d logit of E f(z) = sigma(logit) for f(z) = z^n


def test_straight_through_is_right_for_linear_and_quadratic_functions_as_tau_falls_and_off_for_cubic_ones():
    """On the edge from 0 to 1 the limit is the trapezoid rule, (f'(0) + f'(1)) / 2, for f(1) - f(0)."""
    for power, limit in ((1, 1.0), (2, 1.0), (3, 1.5)):
        off = [abs(mean_slope(powers(power), LOGIT, tau) / TRUE - limit) for tau in (1.0, 0.1, 0.01)]
        assert off[0] > 0.05
        assert off[0] > off[1] > off[2]
        assert off[2] < 0.01


@pytest.mark.parametrize(("power", "tau"), [(1, 0.2), (1, 1.0), (3, 0.2), (3, 1.0)])
def test_straight_through_has_the_slope_of_the_integral(power, tau):
    logits = torch.tensor([0.0, LOGIT]).expand(200_000, 1, 2).clone().requires_grad_()
    z = OneHots(logits, tau).draw((200_000,)).z[:, 1]
    slopes = torch.autograd.grad((z**power).sum(), logits)[0][:, 0, 1]
    assert abs(slopes.mean() - mean_slope(powers(power), LOGIT, tau)) < 6 * slopes.std() / math.sqrt(len(slopes))


def test_straight_through_of_a_quadratic_form_of_three_categories_is_right_as_tau_falls():
    b, a = torch.randn(3), torch.randn(3, 3)
    exact = torch.tensor([0.5, -0.3, 0.0], requires_grad=True)
    f_at = b + a.diagonal()  # f(z) = b z + z a z at the one-hots
    truth = gradient(exact.softmax(0) @ f_at, exact)
    off = []
    for tau in (1.0, 0.05):
        logits = exact.detach().expand(400_000, 1, 3).clone().requires_grad_()
        z = OneHots(logits, tau).draw((400_000,)).z
        slopes = torch.autograd.grad((z @ b + (z @ a * z).sum(-1)).sum(), logits)[0][:, 0]
        off.append(((slopes.mean(0) - truth).abs() - 6 * slopes.std(0) / math.sqrt(len(slopes))).max() / truth.abs().max())
    assert off[0] > 0.05
    assert off[1] < 0.01


# -- whole models ------------------------------------------------------------------------------------------------------

SMALL = {"latents": 2, "widths": (8,), "draws": 16}
WHOLE = {
    "full": {"posterior": "full"},
    "student": {"posterior": "student", "higher_latents": (1,)},
    "flow": {"posterior": "flow", "posterior_steps": 3, "objective": "iwae", "gradient": "dreg", "loss_draws": 2},
    "categorical": {"prior": "categorical", "categories": 3, "temperature": 0.5},
    "score": {"prior": "categorical", "categories": 3, "gradient": "score", "loss_draws": 2},
    "mixed": {"prior": "categorical", "categories": 3, "higher_latents": (2,), "posterior": "full", "path": "bottom-up"},
}


@pytest.mark.parametrize("name", WHOLE)
def test_every_option_learns_answers_and_comes_back_from_its_file(name, tmp_path):
    x = np.random.default_rng(0).normal(size=(120, D))
    p = pofx.fit(x, "vae", max_epochs=2, seed=0, progress=False, **SMALL, **WHOLE[name])
    p.save(tmp_path / "p.safetensors")
    again = pofx.open(tmp_path / "p.safetensors")
    assert torch.equal(torch.as_tensor(again.log_prob(x[:5]).value), torch.as_tensor(p.log_prob(x[:5]).value))
    z = p.encode(x[:5])
    assert p.decode(z).shape == (5, D)
    if name == "categorical":
        assert z.shape == (5, 6)
        np.testing.assert_allclose(z.reshape(5, 2, 3).sum(-1), 1, rtol=1e-5)
    holed = x[:5].copy()
    holed[:, 1] = NAN
    assert np.isfinite(p.impute(holed)).all()
    assert np.isfinite(p.marginal("x0", "x2").log_prob(x[:5, [0, 2]]).value).all()
    assert p.sample(3, seed=1).shape == (3, D)


@pytest.mark.parametrize("name", WHOLE)
def test_every_parameter_learns(name):
    model, x = VAEConfig(**SMALL, **WHOLE[name]).build(Domain.real(D)), torch.randn(40, D)
    model.initialise(x)
    stirred(model.generative, 0.1), stirred(model.inference, 0.1)
    model.train().loss(x).mean().backward()
    still = {n for n, p in model.named_parameters() if p.requires_grad and p.numel() and (p.grad is None or not p.grad.any())}
    assert not still


def test_one_categorical_variable_is_a_mixture_whose_weights_it_learns():
    """Two far clusters: the prior learns the share of the rows in each, q which of them a row is in."""
    config = VAEConfig(prior="categorical", latents=1, categories=2, widths=(8,), dropout=0.0, gradient="score", loss_draws=2)
    first = torch.arange(200) < 60
    x = 0.3 * torch.randn(200, 2) + 4 * first[:, None]
    model = config.build(Domain.real(2))
    model.initialise(x)
    adam = torch.optim.Adam(model.train().parameters(), lr=0.02)
    for _ in range(150):
        adam.zero_grad()
        model.loss(x).mean().backward()
        adam.step()
    with torch.no_grad():
        p = model.eval().encode(x)
        (which,) = p[first].mean(0).round().nonzero()
        assert model.generative.prior.logits.softmax(-1)[0, which].item() == pytest.approx(0.3, abs=0.03)
        assert ((p[:, which[0]] > 0.5) == first).all()


@pytest.mark.parametrize("name", WHOLE)
def test_learning_in_half_precision_leaves_the_laws_in_full(name):
    config, x = VAEConfig(**SMALL, **WHOLE[name]), torch.randn(40, D, dtype=torch.float32)
    model = config.build(Domain.real(D)).float()
    run(model, x, config=config.model_copy(update={"max_epochs": 1}), precision="bf16")
    with torch.no_grad():
        assert model.log_prob(x).isfinite().all()


# -- refusals ----------------------------------------------------------------------------------------------------------

TWO = {"higher_latents": (2,), "path": "ladder"}
DISCRETE = {"prior": "categorical"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"posterior": "full", **TWO}, "a ladder multiplies normal laws with independent units: posterior='diagonal', not 'full'"),
        ({"posterior": "flow", "prior": "vamp"}, "prior='vamp' mixes normal laws with independent units: posterior='diagonal', not 'flow'"),
        ({"posterior": "student", **DISCRETE}, "posterior='student' is of continuous latents: prior='categorical' of one level has none"),
        ({"posterior_steps": 3}, "posterior_steps=3 is for posterior='flow': posterior='diagonal' takes 2"),
        ({"categories": 3}, "categories=3 is for prior='categorical': prior='normal' takes 10"),
        ({"temperature": 0.5, **DISCRETE, "gradient": "score", "loss_draws": 2}, "temperature=0.5 is for gradient='plain'"),
        ({"gradient": "score"}, "loss_draws is 2 or more, got 1"),
        ({"gradient": "score", "objective": "iwae"}, "gradient='score' is for objective 'elbo': objective 'iwae' takes 'plain'"),
        ({"gradient": "dreg", "objective": "iwae", **DISCRETE}, "follows draws that move smoothly"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_built(options, sentence):
    with pytest.raises(OptionError, match=sentence):
        VAEConfig(**options).build(Domain.real(D))


def test_the_score_function_needs_other_draws_and_a_density():
    model, q = bent("categorical")
    with pytest.raises(OptionError, match="2 or more, got 1"):
        score_terms(model, q, torch.randn(1, D), None, 1)

    class Silent(Encoder):
        def draw(self, *args, **options):
            return super().draw(*args, **options)._replace(density=None)

    silent = Silent(Domain.real(D), [Categorical(2, 3)], widths=(5,))
    with pytest.raises(Unavailable, match="only where it drew"):
        score_terms(model, silent, torch.randn(1, D), None, 2)


def test_a_ladder_stands_on_a_discrete_top():
    model = VAEConfig(**SMALL, **TWO, **DISCRETE).build(Domain.real(D))
    assert model.generative.sizes == (2, 20)
    assert model.inference.path is Path.LADDER
    assert model.loss(torch.randn(4, D)).isfinite().all()
