"""Where missing cells are filled from, and log p to a requested accuracy: against the closed forms of a linear VAE."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal
from typer.testing import CliRunner

import pofx
from pofx.ask.accuracy import log_prob_within
from pofx.cli.main import app
from pofx.distributions.base import inverse_positive
from pofx.distributions.columns import Columns
from pofx.distributions.continuous import Normal
from pofx.domain import Domain
from pofx.errors import DataError, OptionError, Unavailable
from pofx.models.latent.decoder import Decoder
from pofx.models.latent.generative import Generative
from pofx.models.latent.inference import Draws, GaussianEncoder
from pofx.models.latent.posterior import Chain, gibbs
from pofx.models.latent.priors import StandardNormal
from pofx.models.latent.vae import VAE
from pofx.types import Kind

D, L, SIGMA = 3, 1, 0.6
NAN = math.nan
W = torch.tensor([[1.0], [-0.8], [0.9]], dtype=torch.float64)
COVARIANCE = W @ W.T + SIGMA**2 * torch.eye(D, dtype=torch.float64)
ROW = torch.tensor([1.2, NAN, NAN], dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_vae(shift=0.0, wide=1.0, **options):
    """x = W z + SIGMA e; q is the posterior given a whole row but for a shift and a wider deviation."""
    decoder, q = Decoder(L, Columns([Normal()] * D), widths=()), GaussianEncoder(Domain.real(D), L, widths=())
    variance = 1 / (1 + W.square().sum() / SIGMA**2)
    inlet = q.nets[0].inlet
    with torch.no_grad():
        decoder.heads.weight[0::2], decoder.heads.bias[0::2], decoder.heads.bias[1::2] = W, 0.0, inverse_positive(torch.tensor(SIGMA))
        q.features.scale.fill_(100.0)
        inlet.weight[:L], inlet.weight[L:] = 100 * variance * W.T / SIGMA**2, 0.0
        inlet.bias[:L], inlet.bias[L:] = shift, (wide * variance.sqrt()).log()
    return VAE(Generative(StandardNormal(L), decoder), q, Domain.real(D), **options).requires_grad_(False).eval()


def given_first():
    """Mean and covariance of the others given the first cell of ROW."""
    gain = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
    return gain * ROW[0], COVARIANCE[1:, 1:] - torch.outer(gain, COVARIANCE[0, 1:])


# -- chains ------------------------------------------------------------------------------------------------------------


def completed(vae, rows=4000):
    return vae.complete(ROW.expand(rows, -1), generator=generator())[:, 1:]


def far(draws):
    """How many standard errors mean and covariance of draws are from the conditional's, at most."""
    mean, covariance = given_first()
    off = draws - mean
    products = off[:, [0, 0, 1]] * off[:, [0, 1, 1]] - covariance[[0, 0, 1], [0, 1, 1]]
    each = torch.cat((off, products), -1)
    return float((each.mean(0).abs() / (each.std(0) / math.sqrt(len(each)))).max())


@pytest.mark.parametrize("corrected", [True, False])
def test_with_the_posterior_itself_both_chains_draw_the_missing_cells(corrected):
    assert far(completed(linear_vae(posterior=Chain(20, corrected)))) < 6


def test_a_chain_that_corrects_q_needs_no_good_one_and_one_that_trusts_it_does():
    wrong = {"shift": 0.25, "wide": 1.5}
    assert far(completed(linear_vae(**wrong, posterior=Chain(30)))) < 6
    assert far(completed(linear_vae(**wrong, posterior=Chain(30, corrected=False)))) > 12


def test_a_chain_imputes_the_conditional_mean():
    vae = linear_vae(shift=0.2, wide=1.4, posterior=Chain(100))
    filled = vae.impute(ROW.expand(200, -1), generator=generator())
    error = filled[:, 1:].std(0) / math.sqrt(200)
    assert ((filled[:, 1:].mean(0) - given_first()[0]).abs() < 6 * error).all()
    assert torch.equal(filled[:, 0], ROW[:1].expand(200))


def test_a_q_without_a_density_can_not_be_corrected():
    class Silent(GaussianEncoder):
        def draw(self, *inputs, **options):
            drawn = super().draw(*inputs, **options)
            return Draws(drawn.latents, drawn.log_q, drawn.kl)

    vae = linear_vae()
    silent = Silent(Domain.real(D), L, widths=())
    with pytest.raises(Unavailable, match="imputation='pseudo-gibbs'"):
        list(gibbs(vae.generative, silent, ROW[None].nan_to_num(0.0), 1))
    assert len(list(gibbs(vae.generative, silent, ROW[None].nan_to_num(0.0), 3, corrected=False))) == 3


@pytest.mark.parametrize("imputation", ["gibbs", "pseudo-gibbs"])
def test_chains_are_an_option_that_files_keep(imputation, tmp_path):
    x = MultivariateNormal(torch.zeros(D), COVARIANCE).sample((200,)).numpy()
    p = pofx.fit(x, "vae", imputation=imputation, latents=1, widths=(8,), max_epochs=2, draws=10, seed=0)
    p.save(tmp_path / "p.safetensors")
    x[:3, 1] = NAN
    one, other = (some.impute(x[:3], seed=1) for some in (p, pofx.open(tmp_path / "p.safetensors")))
    assert np.array_equal(one, other)


# -- accuracy ----------------------------------------------------------------------------------------------------------


def test_rows_are_brought_to_the_accuracy_and_stay_right():
    vae, law = linear_vae(shift=0.3, wide=1.3, draws=8), MultivariateNormal(torch.zeros(D), COVARIANCE)
    x = law.sample((300,))
    before = vae.log_prob_and_error(x, generator=generator())[1]
    value, error = log_prob_within(vae, x, accuracy=0.03, generator=generator())
    assert float(before.median()) > 0.1
    assert float(error.median()) < 0.04
    off = (value - law.log_prob(x)) / error
    assert off.abs().max() < 6
    assert abs(off.mean()) < 0.4  # of 300, the bound's own looseness with it
    joined = vae.log_prob_and_error(x.repeat(50, 1), generator=generator())[0].view(50, -1).mean(0)
    assert (value - joined).mean() > 0.01  # tighter than the mean of as many bounds


def test_an_exact_density_is_asked_once():
    p = pofx.fit(np.random.RandomState(0).randn(50, 2), "gaussian")
    x = np.zeros((2, 2))
    assert np.array_equal(p.log_prob(x, accuracy=1e-6).value, p.log_prob(x).value)
    assert p.log_prob(x, accuracy=1e-6).kind is Kind.EXACT


def test_a_single_draw_has_no_error_to_plan_by_and_gets_all_there_are():
    vae = linear_vae(draws=1)
    value, error = log_prob_within(vae, torch.zeros(1, D), accuracy=1.0, generator=generator())
    assert value.isfinite().all()
    assert (error == 0).all() or error.isfinite().all()


@pytest.mark.parametrize("accuracy", [0.0, -1.0, NAN])
def test_an_accuracy_is_above_zero(accuracy):
    with pytest.raises(OptionError, match="above 0"):
        log_prob_within(linear_vae(), torch.zeros(1, D), accuracy=accuracy)


# -- in rows and in the shell ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def p():
    x = torch.randn(200, D, generator=generator(), dtype=torch.float64).numpy() @ np.linalg.cholesky(COVARIANCE.numpy()).T
    return pofx.fit(x, "vae", latents=1, widths=(8,), max_epochs=2, draws=8, seed=0)


def test_a_line_between_two_rows_begins_and_ends_at_their_codes(p):
    a, b = np.array([[1.0, -1.0, 1.0]]), np.array([[-1.0, 0.5, 0.0]])
    line = p.interpolate(a, b, 5)
    assert line.shape == (5, D)
    ends = p.decode(np.concatenate((p.encode(a), (p.encode(a) + p.encode(b)) / 2, p.encode(b))))
    np.testing.assert_allclose(line[[0, 2, 4]], ends, rtol=1e-5, atol=1e-6)


def test_what_is_no_line_is_said(p):
    with pytest.raises(OptionError, match="2 or more, got 1"):
        p.interpolate(np.zeros((1, D)), np.ones((1, D)), 1)
    with pytest.raises(DataError, match="got 2 and 1"):
        p.interpolate(np.zeros((2, D)), np.ones((1, D)))


def test_score_takes_an_accuracy_in_the_shell(p, tmp_path):
    p.save(tmp_path / "p.safetensors")
    np.save(tmp_path / "rows.npy", np.zeros((3, D)))
    done = CliRunner().invoke(app, ["score", str(tmp_path / "p.safetensors"), str(tmp_path / "rows.npy"), "--accuracy", "0.05"])
    assert done.exit_code == 0, done.output
    assert "bound" in done.output
