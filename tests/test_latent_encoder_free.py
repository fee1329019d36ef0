"""Inference without an encoder, on linear-Gaussian models whose posteriors and likelihoods have closed forms.

Statistical tests compare at 5.5 standard errors or more: they fail by chance in fewer than 1e-6 of runs.
"""

import math

import pytest
import torch
from linear_gaussian import NAN, SIGMA, D, L, W, exact_log_p, exact_posterior, linear_gaussian, rows
from torch.distributions import MultivariateNormal

import pofx
from pofx.distributions.columns import Columns
from pofx.distributions.continuous import Normal
from pofx.domain import Domain
from pofx.errors import OptionError
from pofx.models.latent.decoder import Decoder
from pofx.models.latent.encoder_free import Climb, FromPrior, Hamiltonian, Laplace, Table
from pofx.models.latent.generative import Generative, Link
from pofx.models.latent.inference import log_terms, proposed_terms
from pofx.models.latent.learning import Joint
from pofx.models.latent.priors import Mixture, StandardNormal
from pofx.models.latent.vae import VAE, VAEConfig
from pofx.objectives.elbo import elbo, iwae, log_weights
from pofx.types import Kind

WAYS = ["table", "hmc", "prior"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def holed(n, share=0.4):
    x = rows(n)
    x[torch.rand(n, D) < share] = NAN
    x[0] = NAN
    return x


# -- the normal about the mode -----------------------------------------------------------------------------------------


def test_of_a_linear_model_it_is_the_posterior():
    x = holed(30)
    law = Laplace().law(linear_gaussian(), x, None)
    for m, factor, row in zip(law.m, law.factor, x, strict=True):
        exact = exact_posterior(row)
        torch.testing.assert_close(m, exact.mean, atol=2e-3, rtol=0)
        torch.testing.assert_close(factor @ factor.T, exact.covariance_matrix, atol=1e-9, rtol=1e-9)


def test_so_every_weight_is_p_of_x_and_the_bound_is_tight():
    x, model = holed(30), linear_gaussian()
    terms = log_terms(model, Laplace(), x, None, 7, generator=generator())
    torch.testing.assert_close(log_weights(terms), exact_log_p(x).expand(7, -1), atol=1e-2, rtol=0)
    many = log_terms(model, Laplace(), x, None, 4000, generator=generator())
    assert ((elbo(many) - exact_log_p(x)).abs() < 0.05).all()


def test_two_levels_are_drawn_together():
    model = Generative(StandardNormal(1), Decoder(3, Columns([Normal()] * 2), widths=()), [Link(1, 2, ())])
    with torch.no_grad():
        model.decoder.heads.weight.normal_()
        model.links[0].net[-1].weight.copy_(torch.tensor([[0.8], [-0.5], [0.0], [0.0]]))
    x = torch.randn(5, 2)
    terms = log_terms(model, Laplace(), x, None, 3000, generator=generator())
    assert [z.shape for z in terms.latents] == [(3000, 5, 2), (3000, 5, 1)]
    proposed = log_weights(proposed_terms(model, Laplace(), x, None, 20_000, generator=generator()))
    naive = log_weights(log_terms(model, FromPrior().train(), x, None, 200_000, generator=generator()))
    for n in range(5):
        error = 6 * (proposed[:, n].softmax(0).std() * math.sqrt(20_000) + naive[:, n].softmax(0).std() * math.sqrt(200_000))
        assert (iwae(proposed)[n] - iwae(naive)[n]).abs() < error


def test_a_mixture_of_modes_is_weighed_without_bias():
    """One latent, an even decoder: two modes. The normal sees one, the prior's share the other."""
    model = Generative(Mixture(1, 2), Decoder(1, Columns([Normal()] * 1), widths=(8,)))
    with torch.no_grad():
        for p in model.decoder.parameters():
            p.copy_(1.5 * torch.randn(p.shape))
        model.prior.mean.copy_(torch.tensor([[-1.5], [1.5]]))
    x = torch.linspace(-3, 3, 6)[:, None]
    z = torch.linspace(-12, 12, 20_001)[:, None, None]
    log_joint = model.log_likelihood((z.expand(-1, 6, -1),), x) + model.log_prior((z,))[0]
    exact = log_joint.logsumexp(0) + math.log(24 / 20_000)
    log_w = log_weights(proposed_terms(model, Laplace(), x, None, 100_000, generator=generator()))
    error = log_w.softmax(0).std(0) * math.sqrt(len(log_w))
    assert ((iwae(log_w) - exact).abs() < 6 * error + 1e-6).all()
    assert (error < 0.05).all()


def test_a_row_does_not_depend_on_its_neighbours():
    model, x = linear_gaussian(), rows(6)
    torch.testing.assert_close(Laplace().mean(model, x, None)[0][2:3], Laplace().mean(model, x[2:3], None)[0])


# -- draws of the prior ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [1, 2, 3])
def test_the_spread_of_prior_weights_is_the_closed_form_and_multiplies(units):
    """x = z + sigma e, unit by unit: E[w^2] / E[w]^2 = prod (1 + a) / sqrt(1 + 2 a) exp(m^2 a^2 / ((1 + a) (1 + 2 a))), a = 1 / sigma^2."""
    sigma, n = 0.5, 400_000
    model = linear_gaussian(torch.eye(units), torch.zeros(units), sigma)
    x, a = torch.full((1, units), 0.7), 1 / sigma**2
    expected = ((1 + a) / math.sqrt(1 + 2 * a) * math.exp(0.7**2 * a**2 / ((1 + a) * (1 + 2 * a)))) ** units
    log_w = log_weights(log_terms(model, FromPrior().train(), x, None, n, generator=generator()))[:, 0]
    w = (log_w - iwae(log_w[:, None])).exp()
    squares = w.square()
    assert abs(squares.mean() - expected) < 6 * squares.std() / math.sqrt(n) + 6 * expected * w.std() / math.sqrt(n)
    assert (log_w.exp().mean() - exact_density(x, sigma)).abs() < 6 * log_w.exp().std() / math.sqrt(n)


def exact_density(x, sigma):
    return torch.distributions.Normal(0.0, math.sqrt(1 + sigma**2)).log_prob(x).sum().exp()


# -- tables of latents -------------------------------------------------------------------------------------------------


def moved(move, x, times, model=None):
    """The table after so many steps at a decoder that stands still."""
    model, table = model or linear_gaussian(), Table(L, move)
    table.initialise(x)
    table.train()
    for _ in range(times):
        for part in torch.randperm(len(x)).split(max(1, len(x) // 2)):
            table.passed(0.0, part)
            drawn = table.draw(model, x[part], None, 1, generator=generator(int(torch.randint(2**31, ()))))
            torch.testing.assert_close(drawn.latents[0][0], table.z[part])
    return table


def test_a_table_that_climbs_arrives_at_the_modes():
    x = holed(20)
    table = moved(Climb(5), x, 20)
    torch.testing.assert_close(table.z, torch.stack([exact_posterior(row).mean for row in x]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("row", [[0.1, NAN, 1.0, 2.5, 0.0], [3.0, -4.0, -2.0, NAN, 1.0]])
def test_chains_have_the_posteriors_moments(row):
    row, n = torch.tensor(row), 4000
    z = moved(Hamiltonian(4), row.expand(n, -1), 60).z
    mean, covariance = exact_posterior(row).mean, exact_posterior(row).covariance_matrix
    assert ((z.mean(0) - mean).abs() < 5.5 * (covariance.diagonal() / n).sqrt()).all()
    spread = (covariance.square() + covariance.diagonal()[:, None] * covariance.diagonal()).sqrt() / math.sqrt(n)
    assert ((z.T.cov() - covariance).abs() < 5.5 * spread).all()


def test_rows_that_are_not_of_the_table_are_answered_by_the_normal():
    model, table = linear_gaussian(), Table(L, Climb(2))
    x = rows(3)
    torch.testing.assert_close(table.eval().mean(model, x, None), Laplace().mean(model, x, None))
    assert isinstance(table.marginal([0, 1]), Laplace)


def best_likelihood(x):
    """The exact maximum likelihood of W and mu with sigma held, by quasi-Newton ascent of the closed form."""
    patterns = [(pattern, x[(~x.isnan() == pattern).all(1)][:, pattern]) for pattern in (~x.isnan()).unique(dim=0) if pattern.any()]
    w, mu = W.clone().requires_grad_(), x.nanmean(0).requires_grad_()
    search = torch.optim.LBFGS([w, mu], max_iter=400, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def log_p(w, mu):
        covariance = w @ w.T + SIGMA**2 * torch.eye(D)
        return sum(MultivariateNormal(mu[s], covariance[s][:, s]).log_prob(part).sum() for s, part in patterns) / len(x)

    def minus():
        search.zero_grad()
        loss = -log_p(w, mu)
        loss.backward()
        return loss

    search.step(minus)
    return log_p, float(log_p(w, mu).detach())


@pytest.mark.slow
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_learning_with_chains_finds_the_maximum_likelihood(missing):
    """Of probabilistic PCA, within 1e-3 nats a row, also with missing cells: the chains' slopes are those of log p(x) in the mean."""
    x = rows(150)
    x[torch.rand(x.shape) < missing] = NAN
    log_p, best = best_likelihood(x)
    x = x.repeat(8, 1)  # as many chains a row
    decoder = Decoder(L, Columns([Normal(floor=SIGMA)] * D), widths=())
    model = VAE(Generative(StandardNormal(L), decoder), Table(L, Hamiltonian(5)), Domain.real(D), objective=Joint())
    heads = decoder.heads
    model.inference.initialise(x)
    with torch.no_grad():
        heads.bias[0::2], heads.bias[1::2] = x.nanmean(0), -40.0  # softplus(-40) = 0: the scale is the floor
        heads.weight.normal_(std=0.1)
    adam = torch.optim.Adam(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 1000)
    for step in range(1000):
        model.inference.passed(step / 1000, torch.arange(len(x)))
        adam.zero_grad()
        model.loss(x, generator=generator(step)).mean().backward()
        adam.step()
        schedule.step()
    found = float(log_p(heads.weight.detach()[0::2], heads.bias.detach()[0::2]))
    assert best - 1e-3 < found <= best + 1e-9


# -- whole models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("levels", [(), (1,)])
def test_it_learns_answers_and_comes_back_from_its_file(way, levels, tmp_path):
    x = holed(120, 0.1).float().numpy()
    by = {"objective": "iwae", "loss_draws": 20} if way == "prior" else {}
    options = by | {"latents": 2, "higher_latents": levels, "widths": (8,), "max_epochs": 3, "draws": 50}
    p = pofx.fit(x, "vae", inference=way, seed=0, **options)
    p.save(tmp_path / "p.safetensors")
    again = pofx.open(tmp_path / "p.safetensors")
    answer = p.log_prob(x[:5])
    assert answer.kind is Kind.BOUND
    assert torch.equal(torch.as_tensor(again.log_prob(x[:5]).value), torch.as_tensor(answer.value))
    z = p.encode(x[:5])
    assert z.shape == (5, 2 + len(levels))
    assert p.decode(z).shape == (5, D)
    assert p.marginal("x0", "x2").log_prob(x[:5, [0, 2]]).value.shape == (5,)
    filled = p.impute(x[:5])
    assert not torch.as_tensor(filled.value if hasattr(filled, "value") else filled).isnan().any()
    assert p.diagnose(x[:40]).numbers()


@pytest.mark.parametrize("way", ["table", "hmc"])
def test_each_row_moves_its_own_latents(way):
    """After learning, what the table holds of a row is near what the row is encoded to; of another row it is not."""
    x = rows(100, 0.1).numpy()
    options = {"latents": 2, "widths": (16,), "dropout": 0.0, "batch_size": 25, "learning_rate": 0.02, "max_epochs": 20}
    p = pofx.fit(x, "vae", inference=way, holdout=x[:10], seed=0, **options)
    table = next(part for part in p.model.modules() if isinstance(part, Table))
    z, codes = table.z.double(), torch.as_tensor(p.encode(x)).double()
    assert z.shape == codes.shape
    own = (z - codes).square().sum(-1).mean()
    assert own < 0.5 * (z - codes.roll(1, 0)).square().sum(-1).mean()


@pytest.mark.parametrize("way", ["table", "hmc"])
def test_a_run_goes_on_from_its_checkpoint_to_the_bit(way, tmp_path):
    x = rows(60).numpy()

    def run(epochs, checkpoint=None):
        return pofx.fit(x, "vae", inference=way, latents=2, widths=(8,), max_epochs=epochs, seed=0, checkpoint=checkpoint)

    run(3, tmp_path / "c")
    parts, whole = run(6, tmp_path / "c").model.state_dict(), run(6).model.state_dict()
    for name, tensor in whole.items():
        assert torch.equal(parts[name], tensor), name


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"inference": "table", "prior": "vamp"}, "prior='vamp' asks q about its pseudo-inputs: inference='encoder', not 'table'"),
        ({"inference": "hmc", "prior": "categorical"}, "prior='categorical' has no slope to climb"),
        ({"inference": "prior"}, "inference='prior' has weights that only objective='iwae' climbs"),
        ({"inference": "table", "beta": 2.0}, "inference='table' climbs log p\\(x, z\\) at one z a row"),
        ({"inference": "hmc", "objective": "iwae"}, "inference='hmc' climbs log p\\(x, z\\) at one z a row"),
        ({"inference": "hmc", "loss_draws": 3}, "inference='hmc' climbs log p\\(x, z\\) at one z a row"),
        ({"inference": "table", "posterior": "full"}, "posterior='full' is for inference='encoder': inference='table' takes 'diagonal'"),
        ({"inference": "prior", "objective": "iwae", "move_steps": 3}, "move_steps=3 is for inference='table' or inference='hmc'"),
        ({"inference": "hmc", "higher_latents": (2,), "path": "ladder"}, "is for inference='encoder'"),
    ],
)
def test_what_does_not_fit_is_said(options, sentence):
    with pytest.raises(OptionError, match=sentence):
        VAEConfig(**options).build(Domain.real(D))
