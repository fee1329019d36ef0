"""Two stages against what they must be: a linear decoder under a Gaussian of its codes is a Gaussian again."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

import pofx
from pofx.distributions.base import inverse_positive
from pofx.domain import Domain, Variable
from pofx.errors import OptionError, Unavailable
from pofx.learn import run
from pofx.models.base import Model
from pofx.models.composed.two_stage import LatentConfig, TwoStage
from pofx.models.latent.vae import VAEConfig
from pofx.types import Kind

D, L, SIGMA = 4, 2, 0.6
W = torch.tensor([[1.0, 0.2], [-0.6, 0.9], [0.3, -1.0], [0.7, 0.7]], dtype=torch.float64)
MEAN = torch.tensor([1.5, -0.5], dtype=torch.float64)  # of the codes, far from N(0, I)
ROOT = torch.tensor([[1.2, 0.0], [0.9, 0.4]], dtype=torch.float64)
COVARIANCE = W @ ROOT @ ROOT.T @ W.T + SIGMA**2 * torch.eye(D, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_vae(draws=2000):
    """p(x | z) = N(W z, sigma^2) and q(z | x) = p(z | x) under N(0, I), somewhat wider."""
    model = VAEConfig(latents=L, widths=(), dropout=0.0, draws=draws).build(Domain.real(D))
    heads, encoder = model.generative.decoder.heads, model.inference
    posterior = torch.linalg.inv(torch.eye(L) + W.T @ W / SIGMA**2)
    with torch.no_grad():
        heads.weight[0::2], heads.weight[1::2] = W, 0.0
        heads.bias[0::2], heads.bias[1::2] = 0.0, inverse_positive(torch.tensor(SIGMA))
        encoder.features.scale.fill_(100.0)
        encoder.nets[0].inlet.weight[:L], encoder.nets[0].inlet.weight[L:] = 100 * posterior @ W.T / SIGMA**2, 0.0
        encoder.nets[0].inlet.bias[:L], encoder.nets[0].inlet.bias[L:] = 0.0, (1.3 * posterior.diagonal().sqrt()).log()
    return model.requires_grad_(False).eval()


def rows(n, seed=1):
    g = generator(seed)
    z = MEAN + torch.randn(n, L, generator=g) @ ROOT.T
    return z @ W.T + SIGMA * torch.randn(n, D, generator=g)


class Known(Model):
    """The law of the codes itself, in units that the codes are standardised to."""

    def __init__(self, centre, spread):
        super().__init__(Domain.real(L))
        root = ROOT / spread[:, None]
        self.law = MultivariateNormal((MEAN - centre) / spread, root @ root.T)

    def _log_prob(self, x, c, generator):
        return self.law.log_prob(x)

    def _sample(self, n, c, generator):
        return self.law.loc + torch.randn(n, L, generator=generator) @ self.law.scale_tril.T


class Drawn(Known):
    """The same without a density."""

    density = Kind.NONE


def two_stage(law=Known):
    centre, spread = torch.tensor([0.7, 0.2]), torch.tensor([1.5, 0.5])
    model = TwoStage(linear_vae(), law(centre, spread), Domain.real(D), learning=(VAEConfig(), VAEConfig()))
    model.centre.copy_(centre)
    model.spread.copy_(spread)
    return model.eval()


# -- the answers ---------------------------------------------------------------------------------------------------------


def test_log_prob_is_that_of_the_decoder_under_the_new_prior():
    x = rows(40)
    value, error = two_stage().log_prob_and_error(x, generator=generator())
    exact = MultivariateNormal(W @ MEAN, COVARIANCE).log_prob(x)
    assert ((value - exact).abs() < 6 * error).all()  # the normal tail beyond 6 is 2e-9, of 40 rows 1e-7
    assert error.max() < 0.3


def test_draws_have_its_moments():
    x = two_stage().sample(40_000, generator=generator())
    off = (x - W @ MEAN).mean(0) / (COVARIANCE.diagonal() / 40_000).sqrt()
    assert off.abs().max() < 5.5  # fails by chance in 2e-7 of runs
    torch.testing.assert_close(x.T.cov(), COVARIANCE, rtol=0, atol=0.12)  # more than 6 standard errors of the largest


def test_imputation_is_the_conditional_mean():
    x = rows(12)
    holes = x.clone()
    holes[:, 1:3] = math.nan
    gain = COVARIANCE[1:3][:, [0, 3]] @ torch.linalg.inv(COVARIANCE[[0, 3]][:, [0, 3]])
    exact = (W @ MEAN)[1:3] + (x[:, [0, 3]] - (W @ MEAN)[[0, 3]]) @ gain.T
    filled = two_stage().impute(holes, generator=generator())
    assert torch.equal(filled[:, [0, 3]], x[:, [0, 3]])
    assert (filled[:, 1:3] - exact).abs().max() < 0.35  # the conditional's deviation is 1.1, of some 100 draws 0.05 and more


def test_a_prior_without_density_samples_and_refuses_log_prob():
    model = two_stage(Drawn)
    assert model.density is Kind.NONE
    assert model.answers("impute") is Kind.NONE
    assert torch.equal(model.sample(5, generator=generator()), two_stage().sample(5, generator=generator()))
    with pytest.raises(Unavailable, match="its prior, Drawn, has no density"):
        model.log_prob(rows(3))


class Noisy(Known):
    """The same, whose log p is known up to noise."""

    logs_average = True
    density = Kind.BOUND

    def _log_prob(self, x, c, generator):
        return super()._log_prob(x, c, generator) + 2.0 * torch.randn(x.shape[:-1], generator=generator)


def test_a_noisy_bound_is_averaged_and_weighs_nothing():
    """The evidence lower bound, log p - KL(q || posterior) in closed form; e^2 of noise would lift the weighted one by 2 nats."""
    x, model = rows(2000), two_stage(Noisy)
    assert model.density is Kind.BOUND
    value, error = model.log_prob_and_error(x, generator=generator())
    exact = MultivariateNormal(W @ MEAN, COVARIANCE).log_prob(x)
    prior, noise = torch.linalg.inv(ROOT @ ROOT.T), W.T @ W / SIGMA**2
    posterior = torch.linalg.inv(prior + noise)
    mean = (prior @ MEAN + x @ W / SIGMA**2) @ posterior
    narrow = torch.linalg.inv(torch.eye(L) + noise)
    q = MultivariateNormal(x @ W @ narrow / SIGMA**2, torch.diag((1.3 * narrow.diagonal().sqrt()) ** 2))
    gap = torch.distributions.kl_divergence(q, MultivariateNormal(mean, posterior))
    off = (value - exact + gap).mean()
    assert abs(float(off)) < 4.9 * float(error.square().sum().sqrt()) / len(x)  # fails once in 10^6


@pytest.mark.slow
def test_a_diffusion_model_of_codes_is_one_model():
    """Sample, encode, decode, and a bound below the truth and not far off: a normal in the plane of two codes."""
    x = rows(1500).numpy()
    options = {"autoencoder": f"vae:latents={L}:widths=[]:dropout=0:max_epochs=60", "prior": "diffusion:width=32:blocks=2:masked=0"}
    p = pofx.fit(x, "latent", progress=False, **options)
    held_out = rows(400, seed=9)
    score = p.score(held_out.numpy())
    truth = float(MultivariateNormal(W @ MEAN, COVARIANCE).log_prob(held_out).mean())
    assert score.kind is Kind.BOUND
    assert truth - 1.0 < float(score) < truth + 3 * float(score.error)
    drawn = torch.tensor(p.sample(4000, seed=1), dtype=torch.float64)
    assert (drawn.mean(0) - W @ MEAN).abs().max() < 0.3
    assert (drawn.T.cov() - COVARIANCE).abs().max() < 0.6
    codes = p.encode(held_out.numpy())
    assert codes.shape == (400, L)
    assert np.mean((np.asarray(p.decode(codes)) - held_out.numpy()) ** 2) < 2 * SIGMA**2


# -- learning ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", ["draws", "means"])
def test_the_second_stage_learns_the_codes_of_q_and_leaves_the_first_alone(codes):
    x = rows(4000)
    config = LatentConfig(prior="gaussian", autoencoder=f"vae:latents={L}:widths=[]:dropout=0", codes=codes)
    model = config.build(Domain.real(D))
    model.vae.load_tensors(linear_vae().state_dict())
    before = {name: t.clone() for name, t in model.vae.state_dict().items()}
    first, second = model.stages()
    run(second[0], x, config=second[1])
    assert all(torch.equal(t, before[name]) for name, t in model.vae.state_dict().items())
    q_mean, q_variance = model.vae.inference.top(x, None).moments
    drawn = model.centre + model.spread * model.prior.sample(100_000, generator=generator())
    torch.testing.assert_close(drawn.mean(0), q_mean.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(drawn.var(0), q_mean.var(0) + (codes == "draws") * q_variance.mean(0), rtol=0.12, atol=0)
    assert set(first[0].parameters()) == set(model.vae.parameters())


@pytest.fixture(scope="module")
def penguins():
    """M1+M2: the codes of the other columns, beside a species that every fifth row shows."""
    table = pofx.load("penguins")
    frame = table.train.copy()
    frame.loc[frame.index % 5 != 0, "species"] = None
    options = {
        "autoencoder": "vae:latents=6:beta=0.3:dropout=0:widths=[32]:draws=8:learning_rate=0.01",
        "max_epochs": 40,
        "beside": "species",
    }
    prior = "m2:latents=2:widths=[32]:draws=4:learning_rate=0.01"
    return pofx.fit(frame, "latent", prior=prior, schema=table.domain, holdout=table.holdout, **options)


@pytest.mark.slow
def test_m1_and_m2_classify_raw_rows(penguins, tmp_path):
    test = pofx.load("penguins").test
    answer = penguins.classify(test, "species")
    levels = penguins.domain["species"].levels
    right = [levels[k] == name for k, name in zip(answer.value.argmax(1), test.species, strict=True)]
    assert np.mean(right) > 0.8
    assert "stage 2 (m2)" in penguins.record.stopped
    penguins.save(tmp_path / "p.safetensors")
    q = pofx.open(tmp_path / "p.safetensors")
    assert (q.classify(test, "species").value == answer.value).all()
    filled = q.impute(test[:8].assign(species=None))
    assert np.mean([a == b for a, b in zip(filled.species, test.species[:8], strict=True)]) > 0.5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prior": "nothing"}, "there is no family 'nothing'"),
        ({"prior": "glow"}, "'glow' learns images, and codes are none"),
        ({"prior": "latent"}, "'latent' is of two stages itself"),
        ({"autoencoder": "gmm"}, "the first stage is a vae with its options, not 'gmm'"),
    ],
)
def test_stages_that_can_not_be_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        LatentConfig(**options)


def test_what_can_not_stand_beside_is_refused():
    domain = Domain((Variable("a", "real"), Variable("y", "categorical", levels=("r", "g"))))
    with pytest.raises(OptionError, match="prior 'realnvp' does not take 'y', which is categorical, as it is"):
        LatentConfig(prior="realnvp", beside="y").build(domain)
    with pytest.raises(OptionError, match="nothing is left to encode"):
        LatentConfig(prior="m2", beside=("a", "y")).build(domain)


def test_a_label_beside_means_is_classified_at_the_mean(tmp_path):
    frame = pofx.load("penguins").train[:120]
    first = "vae:latents=2:widths=[8]:draws=8"
    p = pofx.fit(frame, "latent", autoencoder=first, prior="m2:widths=[8]:draws=4", codes="means", beside="species", max_epochs=2, seed=0)
    once = p.classify(frame, "species").value
    assert np.array_equal(once, p.classify(frame, "species").value)  # no draw enters
    p.save(tmp_path / "p.safetensors")
    assert np.array_equal(once, pofx.open(tmp_path / "p.safetensors").classify(frame, "species").value)


def test_codes_of_several_levels_stand_side_by_side():
    x = torch.randn(200, 3).numpy()
    p = pofx.fit(x, "latent", autoencoder="vae:latents=2:higher_latents=[1]:widths=[8]:draws=16", prior="gaussian", max_epochs=2, seed=0)
    assert p.encode(x[:4]).shape == (4, 3)
    assert np.isfinite(p.log_prob(x[:4]).value).all()
    assert p.sample(3, seed=0).shape == (3, 3)
