"""The table of log-terms and its parts, on a linear-Gaussian model where every number has a closed form.

x = W z + mu + sigma e with z, e standard normal: log p(x), p(z | x) and the ELBO of any diagonal Gaussian q are known.
Statistical tests compare at 5.5 standard errors or more: they fail by chance in fewer than 1e-6 of runs.
"""

import math

import pytest
import torch
from linear_gaussian import MU, NAN, SIGMA, D, L, W, exact_log_p, exact_posterior, linear_gaussian
from torch.distributions import MultivariateNormal, kl_divergence
from torch.distributions import Normal as TorchNormal

from pofx.distributions.columns import Columns
from pofx.distributions.continuous import Normal
from pofx.distributions.discrete import Bernoulli, Categorical
from pofx.domain import Domain
from pofx.models.latent.decoder import Decoder, Heads
from pofx.models.latent.inference import Draws, GaussianEncoder, Inference, log_terms, proposed_terms
from pofx.models.latent.laws import DiagonalNormal
from pofx.models.latent.priors import StandardNormal
from pofx.objectives.elbo import LogTerms, effective_draws, elbo, iwae, iwae_error, log_weights


def kl(m, s):
    return DiagonalNormal(m, s.log()).kl(StandardNormal(m.shape[-1]))


class ExactPosterior(Inference):
    """q(z | x) = p(z | x), a full-covariance normal: an inference of another make behind the same seam."""

    def draw(self, model, x, c, draws, *, generator=None):
        qs = [exact_posterior(row) for row in x]
        z = torch.stack([q.rsample((draws,)) for q in qs], dim=1)
        log_q = torch.stack([q.log_prob(z[:, n]) for n, q in enumerate(qs)], dim=1)
        return Draws((z,), lambda: (log_q,), (None,))

    def mean(self, model, x, c):
        return (torch.stack([exact_posterior(row).mean for row in x]),)

    def marginal(self, keep):
        return self


class FixedGaussian(Inference):
    """q(z) = N(m, diag s^2) for every row."""

    def __init__(self, m, s):
        super().__init__()
        self.m, self.s = m, s

    def draw(self, model, x, c, draws, *, generator=None):
        z = self.m + self.s * torch.randn(draws, len(x), L, generator=generator)
        log_q = TorchNormal(self.m, self.s).log_prob(z).sum(-1)
        return Draws((z,), lambda: (log_q,), (kl(self.m, self.s).expand(len(x)),))

    def mean(self, model, x, c):
        return (self.m.expand(len(x), -1),)

    def marginal(self, keep):
        return self


@pytest.fixture
def x():
    rows = MU + torch.randn(8, L) @ W.T + SIGMA * torch.randn(8, D)
    rows[1, 2], rows[2, :3], rows[3] = NAN, NAN, NAN
    return rows


# -- identities --------------------------------------------------------------------------------------------------------


def test_with_the_exact_posterior_every_weight_is_p_of_x(x):
    log_w = log_weights(log_terms(linear_gaussian(), ExactPosterior(), x, None, 7))
    torch.testing.assert_close(log_w, exact_log_p(x).expand(7, -1), atol=5e-13, rtol=0)


def test_a_row_without_observations_has_probability_one():
    nothing = torch.full((1, D), NAN)
    terms = log_terms(linear_gaussian(), ExactPosterior(), nothing, None, 3)
    torch.testing.assert_close(log_weights(terms), torch.zeros(3, 1), atol=1e-13, rtol=0)


def test_elbo_lies_below_log_p_by_the_divergence_from_the_posterior(x):
    q = FixedGaussian(torch.tensor([0.3, -0.2]), torch.tensor([0.8, 0.6]))
    terms = log_terms(linear_gaussian(), q, x, None, 40_000)
    each = terms.log_likelihood - terms.kl[0]
    gap = torch.stack([kl_divergence(MultivariateNormal(q.m, torch.diag(q.s**2)), exact_posterior(row)) for row in x])
    error = each.std(0) / math.sqrt(len(each))
    assert ((elbo(terms) + gap - exact_log_p(x)).abs() < 5.5 * error + 1e-12).all()


def test_elbo_without_a_closed_form_uses_the_draws(x):
    q = FixedGaussian(torch.tensor([0.3, -0.2]), torch.tensor([0.8, 0.6]))
    terms = log_terms(linear_gaussian(), q, x, None, 9)
    expected = log_weights(terms).mean(0)
    terms.kl = (None,)
    torch.testing.assert_close(elbo(terms), expected)


def test_iwae_rises_with_the_draws_and_stays_below_log_p(x):
    row, posterior = x[:1], exact_posterior(x[0])
    q = FixedGaussian(posterior.mean + 0.3, 1.3 * posterior.stddev)  # wider than the posterior: the weights have a variance
    gaps = []
    for k in (1, 4, 16, 64):
        log_w = log_weights(log_terms(linear_gaussian(), q, row.expand(60_000 // k, -1), None, k))
        bound = iwae(log_w)
        gaps.append(float(exact_log_p(row) - bound.mean()))
        assert gaps[-1] > -5.5 * float(bound.std()) / math.sqrt(len(bound))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.1 * gaps[0]


def test_the_delta_methods_error_is_the_spread_of_the_bound(x):
    posterior = exact_posterior(x[0])
    q = FixedGaussian(posterior.mean + 0.1, 1.3 * posterior.stddev)
    log_w = log_weights(log_terms(linear_gaussian(), q, x[:1].expand(4000, -1), None, 200))
    ratio = iwae_error(log_w).square().mean().sqrt() / iwae(log_w).std()
    assert 0.9 < ratio < 1.1


def test_one_draw_knows_no_error():
    assert iwae_error(torch.randn(1, 3)).isinf().all()


def test_effective_draws_of_equal_and_of_lonely_weights():
    assert effective_draws(torch.zeros(5, 1)).item() == pytest.approx(5.0)
    assert effective_draws(torch.tensor([[0.0], [-1e3], [-1e3]])).item() == pytest.approx(1.0)


def test_levels_add_up():
    likelihood, a, b = torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 3)
    terms = LogTerms((), likelihood, lambda: (a, b), lambda: (b, a), (None, None))
    torch.testing.assert_close(log_weights(terms), likelihood)
    torch.testing.assert_close(elbo(terms), likelihood.mean(0))


def test_densities_are_computed_when_first_read():
    def never():
        raise AssertionError("not asked for")

    terms = LogTerms((), torch.zeros(1, 3), never, never, (torch.ones(3),))
    torch.testing.assert_close(elbo(terms), -torch.ones(3))


# -- prior -------------------------------------------------------------------------------------------------------------


def test_the_closed_form_of_the_divergence_is_torchs():
    m, s = torch.randn(6, 3), torch.rand(6, 3) + 0.1
    expected = kl_divergence(TorchNormal(m, s), TorchNormal(torch.zeros(3), torch.ones(3))).sum(-1)
    torch.testing.assert_close(kl(m, s), expected)


def test_the_closed_form_of_the_divergence_is_the_mean_of_the_draws():
    m, s = torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0])
    z = m + s * torch.randn(200_000, 2)
    each = TorchNormal(m, s).log_prob(z).sum(-1) - StandardNormal(2).log_prob(z)
    assert abs(float(each.mean() - kl(m, s))) < 5.5 * float(each.std()) / math.sqrt(len(z))


def test_the_prior_integrates_to_one():
    grid = torch.linspace(-8, 8, 401)
    density = StandardNormal(2).log_prob(torch.cartesian_prod(grid, grid)).exp()
    assert float(density.sum() * (grid[1] - grid[0]) ** 2) == pytest.approx(1.0, abs=1e-9)


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_pathwise_gradients_are_those_of_the_closed_form(x):
    row = x[0]
    m, s = torch.tensor([0.3, -0.2], requires_grad=True), torch.tensor([0.8, 0.6], requires_grad=True)
    off = row - MU - W @ m
    closed = -0.5 / SIGMA**2 * (off.square().sum() + (s.square() * W.square().sum(0)).sum()) - kl(m, s)
    expected = torch.cat(torch.autograd.grad(closed, (m, s)))
    rows = 20_000
    ms, ss = (v.detach().expand(rows, -1).clone().requires_grad_() for v in (m, s))
    bound = elbo(log_terms(linear_gaussian(), FixedGaussian(ms, ss), row.expand(rows, -1)))
    each = torch.cat(torch.autograd.grad(bound.sum(), (ms, ss)), dim=-1)
    assert ((each.mean(0) - expected).abs() < 5.5 * each.std(0) / math.sqrt(rows)).all()


# -- encoder -----------------------------------------------------------------------------------------------------------


def encoder(x, widths=(8,)):
    q = GaussianEncoder(Domain.real(D), L, widths=widths)
    q.initialise(x)
    return q.requires_grad_(False)


@pytest.mark.parametrize("widths", [(), (8,), (8, 6)])
def test_the_encoder_says_the_density_it_draws_from(x, widths):
    q, model = encoder(x, widths), linear_gaussian()
    drawn = q.draw(model, x, None, 3, generator=torch.Generator().manual_seed(1))
    m, log_s = q.top(x, None).m, q.top(x, None).log_s
    s = log_s.exp()
    torch.testing.assert_close(drawn.log_q()[0], TorchNormal(m, s).log_prob(drawn.latents[0]).sum(-1))
    torch.testing.assert_close(q.mean(model, x, None)[0], m)


def test_missing_cells_are_seen_only_when_expected(x):
    whole = x.nan_to_num(0.0)
    assert encoder(whole).nets[0].inlet.missing.numel() == 0
    q, model = encoder(x), linear_gaussian()
    before = q.mean(model, x, None)[0]
    with torch.no_grad():
        q.nets[0].inlet.missing.normal_()
    after = q.mean(model, x, None)[0]
    holes = x.isnan().any(-1)
    torch.testing.assert_close(after[~holes], before[~holes])
    assert ((after - before).abs().amax(-1)[holes] > 1e-6).all()


def test_proposals_of_rows_with_holes_weigh_without_bias(x):
    """E[w] = p(x_observed) for any encoder; the share of the prior keeps the weights bounded."""
    q, model = encoder(x.nan_to_num(0.0)), linear_gaussian()
    w = (log_weights(proposed_terms(model, q, x, None, 60_000)) - exact_log_p(x)).exp()
    assert ((w.mean(0) - 1).abs() < 6 * w.std(0) / math.sqrt(len(w)) + 1e-12).all()


def test_whole_rows_are_proposed_by_the_encoder_alone(x):
    rows, model = x.nan_to_num(0.0), linear_gaussian()
    q = encoder(rows)
    one, other = (ask(model, rows, None, 4, generator=torch.Generator().manual_seed(3)) for ask in (q.draw, q.propose))
    assert torch.equal(one.latents[0], other.latents[0])


def test_a_rows_proposal_does_not_depend_on_its_neighbours(x):
    q, model = encoder(x), linear_gaussian()
    m, log_s = q.top(x, None).m, q.top(x, None).log_s
    s = log_s.exp()
    drawn = q.propose(model, x, None, 5)
    z = drawn.latents[0]
    u = x.isnan().double().mean(-1)
    gaussian, prior = TorchNormal(m, s).log_prob(z).sum(-1), model.prior.log_prob(z)
    torch.testing.assert_close(drawn.log_q()[0].exp(), (1 - u / 2) * gaussian.exp() + u / 2 * prior.exp())


def test_the_encoder_of_a_marginal_sees_the_others_as_missing(x):
    q, keep = encoder(x), [3, 0]
    shown = torch.full_like(x, NAN)
    shown[:, keep] = x[:, keep]
    model = linear_gaussian()
    (seen,), (expected,) = q.marginal(keep).mean(model, x[:, keep], None), q.mean(model, shown, None)
    torch.testing.assert_close(seen, expected)
    (seen,), (expected,) = (part.mean(model, x[:, [0]], None) for part in (q.marginal(keep).marginal([1]), q.marginal([0])))
    torch.testing.assert_close(seen, expected)


# -- decoder -----------------------------------------------------------------------------------------------------------

MIXED = Columns([Categorical(9, numbers=True), Normal(), Categorical(3), Categorical(9, numbers=True), Bernoulli()])


def mixed_rows(n=200):
    return torch.stack(
        (
            torch.randint(9, (n,)).double(),
            torch.randn(n) * 3,
            torch.randint(3, (n,)).double(),
            torch.randint(2, 9, (n,)).double(),
            (torch.rand(n) < 0.3).double(),
        ),
        dim=-1,
    )


@pytest.mark.parametrize("tilts", [0, 3])
def test_heads_begin_at_the_independent_fit(tilts):
    x = mixed_rows()
    heads = Heads(MIXED, 4, tilts)
    heads.initialise(x)
    expected = MIXED.fit(x, torch.ones(len(x), 1))[0]
    torch.testing.assert_close(heads(torch.randn(6, 4)), expected.expand(6, -1))


def test_tilts_multiply_the_base_by_the_exponential_of_a_smooth_function():
    heads = Heads(Columns([Categorical(9, numbers=True)]), 1, 2)
    with torch.no_grad():
        heads.bias.normal_()
        heads.weight.copy_(torch.tensor([[0.4], [-0.7]]))
    r, v = torch.arange(1, 3)[:, None], torch.arange(9) + 0.5
    cosines = math.sqrt(2) * torch.cos(math.pi * r * v / 9)
    torch.testing.assert_close(heads(torch.ones(1, 1))[0], heads.bias + torch.tensor([0.4, -0.7]) @ cosines)


def test_levels_without_order_keep_a_logit_each():
    assert Heads(MIXED, 4, 3).weight.shape[0] == 3 + 2 + 3 + 3 + 1
    assert Heads(MIXED, 4, 8).weight.shape[0] == MIXED.width


@pytest.mark.parametrize("keep", [[0], [4, 1], [3, 2, 0], [0, 1, 2, 3, 4]])
def test_heads_of_a_marginal_give_the_same_parameters(keep):
    x, decoder = mixed_rows(), Decoder(2, MIXED, widths=(6,), tilts=3)
    with torch.no_grad():
        decoder.heads.weight.normal_()
        decoder.heads.bias.normal_()
    part, z = decoder.marginal(keep), torch.randn(len(x), 2)
    expected = MIXED.log_prob(decoder(z), x)[:, keep]
    torch.testing.assert_close(part.columns.log_prob(part(z), x[:, keep]), expected)


def test_conditions_reach_every_draw():
    decoder = Decoder(2, MIXED, context=3, widths=(6,))
    torch.nn.init.normal_(decoder.heads.weight)
    z, c = torch.randn(4, 5, 2), torch.randn(5, 3)
    torch.testing.assert_close(decoder(z, c)[2, 1], decoder(z[2, 1], c[1]))


def test_a_gated_decoder_gives_each_class_a_spread_of_its_own():
    """(1 + G c) * W z + U c + b, class by class; as without gates while G is zero."""
    decoder = Decoder(2, MIXED, context=3, widths=(6,), gated=True)
    gate, (z, c) = decoder.trunk[0], (torch.randn(5, 2), torch.eye(3)[[0, 1, 2, 1, 0]])
    v = torch.cat((z, c), 1)
    torch.testing.assert_close(gate(v), v @ gate.weight.T + gate.bias)
    torch.nn.init.normal_(gate.gain)
    for k in range(3):
        jacobian = torch.func.jacrev(gate)(torch.cat((z[0], torch.eye(3)[k])))[:, :2]
        torch.testing.assert_close(jacobian, (1 + gate.gain[:, k, None]) * gate.weight[:, :2])
        torch.testing.assert_close(gate(torch.cat((torch.zeros(2), torch.eye(3)[k]))), gate.weight[:, 2 + k] + gate.bias)
