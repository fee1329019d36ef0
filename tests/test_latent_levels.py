"""Several levels of latents: every path of q weighs without bias, is exact where the model is linear, and pays the KL it says."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.distributions import Normal as TorchNormal

import pofx
from pofx.distributions.base import inverse_positive
from pofx.distributions.columns import Columns
from pofx.distributions.continuous import Normal
from pofx.domain import Domain
from pofx.errors import OptionError
from pofx.models.latent.decoder import Decoder
from pofx.models.latent.generative import Generative, Link
from pofx.models.latent.inference import Encoder, Path, held_terms, log_terms, proposed_terms
from pofx.models.latent.laws import Diagonal, DiagonalNormal
from pofx.models.latent.priors import StandardNormal
from pofx.models.latent.vae import VAEConfig
from pofx.objectives.elbo import divergence, elbo, iwae, log_weights

PATHS = list(Path)
D, SIGMA, T = 3, 0.7, 0.5
NAN = float("nan")
B, BIAS = 0.8, 0.3  # z_1 = B z_2 + BIAS + T e
W = torch.tensor([[1.0, 0.0], [-0.6, 0.0], [0.4, 0.0]], dtype=torch.float64)  # of (z_1, z_2): a ladder is exact where x hangs on z_1 alone
MU = torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64)
LATENTS = torch.tensor([[B**2 + T**2, B], [B, 1.0]], dtype=torch.float64)  # the covariance of (z_1, z_2), about (BIAS, 0)
CENTRE = torch.tensor([BIAS, 0.0], dtype=torch.float64)


def linear(w):
    """p(x, z_1, z_2) of normals with means affine in what is above."""
    model = Generative(StandardNormal(1), Decoder(2, Columns([Normal()] * D), widths=()), [Link(1, 1, ())])
    heads, (net,) = model.decoder.heads, model.links[0].net
    with torch.no_grad():
        net.weight[0], net.bias[0], net.bias[1] = B, BIAS, math.log(T)
        heads.weight[0::2], heads.bias[0::2], heads.bias[1::2] = w, MU, inverse_positive(torch.tensor(SIGMA))
    return model.requires_grad_(False)


def of_x(w):
    return MultivariateNormal(MU + w @ CENTRE, w @ LATENTS @ w.T + SIGMA**2 * torch.eye(D))


def regression(target, given):
    """Coefficients, constant and deviation of one of (z_1, z_2, x) given others, all of them jointly normal; indices into that vector."""
    joint = torch.cat((torch.eye(2), regression.w))
    noise = torch.block_diag(torch.zeros(2, 2), SIGMA**2 * torch.eye(D))
    covariance, mean = joint @ LATENTS @ joint.T + noise, torch.cat((CENTRE, MU + regression.w @ CENTRE))
    gain = torch.linalg.solve(covariance[given][:, given], covariance[given][:, target])
    return gain, mean[target] - gain @ mean[given], (covariance[target, target] - gain @ covariance[given, target]).sqrt()


def exact(path, w):
    """q = p(z | x) of the linear model, by affine networks."""
    q, x = Encoder(Domain.real(D), [Diagonal(1), Diagonal(1)], widths=(), path=path), [2, 3, 4]
    regression.w = w
    before = {Path.TOP_DOWN: ([1], []), Path.BOTTOM_UP: ([], [0]), Path.LADDER: ([], [])}[path]
    with torch.no_grad():
        q.features.scale.fill_(100.0)  # no row is 3 deviations out, where a linear encoder would be bent
        for level, (net, seen) in enumerate(zip(q.nets, before, strict=True)):
            gain, constant, deviation = regression(level, seen + x)
            if path is Path.LADDER and level == 0:  # N(m, s^2) is the likelihood of z_1, which the link's law multiplies
                s2 = SIGMA**2 / w[:, 0].square().sum()
                gain, constant, deviation = w[:, 0] * s2 / SIGMA**2, -(w[:, 0] @ MU) * s2 / SIGMA**2, s2.sqrt()
            net.inlet.weight.zero_()
            net.inlet.weight[0], net.inlet.bias[0], net.inlet.bias[1] = 100 * gain[len(seen) :], constant, deviation.log()
            if seen:
                net.before.weight[0], net.before.weight[1] = gain[0], 0.0
    return q.requires_grad_(False)


def bent(path, widths=(5,), scale=0.4):
    """A model and an inference of two levels, 2 and 1 wide, with arbitrary numbers."""
    model = Generative(StandardNormal(1), Decoder(3, Columns([Normal()] * D), widths=(6,)), [Link(1, 2, (4,))])
    q = Encoder(Domain.real(D), [Diagonal(2), Diagonal(1)], widths=widths, path=path)
    with torch.no_grad():
        for p in (*model.parameters(), *q.parameters()):
            p.copy_(scale * torch.randn_like(p))
    return model, q


# -- the prior ---------------------------------------------------------------------------------------------------------


def test_the_density_of_all_levels_integrates_to_one_and_is_that_of_its_draws():
    model, _ = bent(Path.TOP_DOWN)
    axis = torch.linspace(-8, 8, 49)
    grid = torch.cartesian_prod(axis, axis, axis)
    density = sum(model.log_prior(model.levels_of(grid))).exp() * (axis[1] - axis[0]) ** 3
    assert density.sum().item() == pytest.approx(1, abs=1e-3)
    draws = torch.cat(model.draw_latents((200_000,), like=grid), -1)
    of_grid, of_draws = (torch.cat((v, v.square(), v[:, [0, 0, 1]] * v[:, [1, 2, 2]]), -1) for v in (grid, draws))
    error = of_draws.std(0) / math.sqrt(len(draws))
    assert ((density @ of_grid - of_draws.mean(0)).abs() < 6 * error + 1e-3).all()


def test_links_begin_at_the_standard_normal():
    model = VAEConfig(latents=3, higher_latents=(2, 1)).build(Domain.real(D)).generative.eval()
    assert model.sizes == (3, 2, 1)
    z = torch.randn(5, 6)
    for part, log_p in zip(model.levels_of(z), model.log_prior(model.levels_of(z)), strict=True):
        torch.testing.assert_close(log_p, StandardNormal(part.shape[-1]).log_prob(part))


# -- inference ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_with_the_exact_posterior_every_weight_is_p_of_x(path):
    w = W if path is Path.LADDER else W + torch.tensor([0.0, 0.5])
    x = of_x(w).sample((6,))
    log_w = log_weights(log_terms(linear(w), exact(path, w), x, None, 7))
    torch.testing.assert_close(log_w, of_x(w).log_prob(x).expand(7, -1), atol=1e-11, rtol=0)


@pytest.mark.parametrize("path", PATHS)
def test_proposals_weigh_without_bias_whatever_is_missing(path):
    """E[w] = p(x_observed), by the integral over a grid of the levels."""
    model, q = bent(path)
    x = torch.tensor([[0.3, -1.0, 0.5], [NAN, 0.8, NAN], [NAN, NAN, NAN]])
    q.initialise(x)
    axis = torch.linspace(-7, 7, 43)
    z = model.levels_of(torch.cartesian_prod(axis, axis, axis)[:, None])
    log_p = (model.log_likelihood(z, x) + sum(model.log_prior(z))).logsumexp(0) + 3 * torch.log(axis[1] - axis[0])
    w = (log_weights(proposed_terms(model, q, x, None, 20_000)) - log_p).exp()
    assert ((w.mean(0) - 1).abs() < 6 * w.std(0) / math.sqrt(len(w)) + 1e-3).all()


@pytest.mark.parametrize("path", PATHS)
def test_q_says_the_density_it_draws_from(path):
    model, q = bent(path)
    x = torch.randn(4, D)
    drawn = q.draw(model, x, None, 3)
    for said, at in zip(drawn.log_q(), drawn.density(drawn.latents), strict=True):
        torch.testing.assert_close(said, at)


@pytest.mark.parametrize("path", PATHS)
def test_the_divergences_are_those_of_the_draws(path):
    model, q = bent(path)
    terms = log_terms(model, q, torch.randn(5, D), None, 20_000)
    for level in range(2):
        each = terms.log_q[level] - terms.log_prior[level]
        assert ((divergence(terms, level) - each.mean(0)).abs() < 6 * each.std(0) / math.sqrt(len(each)) + 1e-12).all()
    assert [kl is None for kl in terms.kl] == ([True, False] if path is Path.BOTTOM_UP else [False, False])


def test_a_product_of_normals_is_the_normal_between_them():
    a, b = DiagonalNormal(torch.randn(4, 2), torch.randn(4, 2)), DiagonalNormal(torch.randn(4, 2), torch.randn(4, 2))
    z = torch.randn(50, 4, 2)
    apart = a.times(b).log_prob(z) - a.log_prob(z) - b.log_prob(z)
    torch.testing.assert_close(apart, apart[:1].expand_as(apart))


def test_the_closed_form_of_the_divergence_is_torchs():
    q, p = DiagonalNormal(torch.randn(4, 2), torch.randn(4, 2)), DiagonalNormal(torch.randn(4, 2), torch.randn(4, 2))
    expected = torch.distributions.kl_divergence(TorchNormal(q.m, q.s), TorchNormal(p.m, p.s)).sum(-1)
    torch.testing.assert_close(q.kl(p), expected)


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [Path.TOP_DOWN, Path.BOTTOM_UP])
def test_the_doubly_reparameterised_gradient_of_levels_has_the_plain_ones_mean(path):
    model, q = bent(path, scale=0.2)
    model.requires_grad_(False)
    rows, parts, row = 4_000, 12, torch.randn(1, D)

    def gradients(terms):
        loss = iwae(log_weights(terms(model, q, row.expand(rows, -1), None, 3))).mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [p for p in q.parameters() if p.requires_grad])])

    plain, other = (torch.stack([gradients(terms) for _ in range(parts)]) for terms in (log_terms, held_terms))
    error = ((plain.var(0) + other.var(0)) / parts).sqrt()
    z = (plain.mean(0) - other.mean(0)) / error.clamp_min(1e-12)
    assert z.abs().max() < 14  # of Student's t with 11 degrees or more, over some 60 numbers: 1e-6
    assert error.max() < 0.05 * plain.mean(0).abs().max()


def test_a_ladder_has_no_density_with_its_numbers_held():
    model, q = bent(Path.LADDER)
    with pytest.raises(pofx.errors.Unavailable, match="only where it drew"):
        held_terms(model, q, torch.randn(1, D), None, 2)


# -- whole models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_a_hierarchy_learns_answers_and_comes_back_from_its_file(path, tmp_path):
    x = of_x(W).sample((300,)).numpy()
    p = pofx.fit(x, "vae", latents=2, higher_latents=(1,), path=str(path), widths=(8,), max_epochs=3, draws=200, seed=0)
    p.save(tmp_path / "p.safetensors")
    again = pofx.open(tmp_path / "p.safetensors")
    assert torch.equal(torch.as_tensor(again.log_prob(x[:5]).value), torch.as_tensor(p.log_prob(x[:5]).value))
    z = p.encode(x[:5])
    assert z.shape == (5, 3)
    assert p.decode(z).shape == (5, D)
    assert p.marginal("x0", "x2").log_prob(x[:5, [0, 2]]).value.shape == (5,)
    holed = x[:5].copy()
    holed[:, 1] = NAN
    assert p.impute(holed).shape == (5, D)


def test_learning_reaches_the_linear_model():
    """With an exact family of posteriors the bound learned is the likelihood that was learned from."""
    w, x = W + torch.tensor([0.0, 0.5]), of_x(W + torch.tensor([0.0, 0.5])).sample((2000,))
    model, q = linear(w), exact(Path.TOP_DOWN, w)
    terms = log_terms(model, q, x, None, 1)
    spread = (elbo(terms) - of_x(w).log_prob(x)).mean()  # the closed forms of the KL leave noise about it, no bias
    assert abs(spread) < 6 * (elbo(terms) - of_x(w).log_prob(x)).std() / math.sqrt(len(x))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"path": "ladder"}, "path='ladder' orders several levels: give higher_latents"),
        ({"higher_latents": (2,), "path": "bottom-up", "prior": "vamp"}, "prior='vamp' asks q for the top level alone: path='bottom-up'"),
    ],
)
def test_what_levels_can_not_do_is_said(options, sentence):
    with pytest.raises(OptionError, match=sentence):
        VAEConfig(**options).build(Domain.real(D))
