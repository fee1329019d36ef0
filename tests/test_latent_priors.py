"""Priors of latent-variable models: densities against grids, draws against densities, models against closed forms.

The known mistakes of public code each have a test that fails on them: a mixture for each latent dimension instead of a joint one and
a log-determinant counted once a dimension (the grid, `torch.distributions`), exp(log variance) taken for a deviation (draws
against the density, cross-moments and a random projection included).
Statistical tests compare at 6 standard errors: they fail by chance in fewer than 1e-6 of runs.
"""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence
from torch.nn.functional import one_hot

import pofx
from pofx.distributions.base import inverse_positive
from pofx.distributions.columns import Columns
from pofx.distributions.continuous import Normal as NormalLaw
from pofx.domain import Domain, Variable
from pofx.errors import OptionError, Unavailable
from pofx.models.classical.gaussian import GaussianConfig
from pofx.models.latent.aggregated import Aggregated, aggregated_posterior, gap, posterior_normals
from pofx.models.latent.decoder import Decoder
from pofx.models.latent.discrete import CategoricalPrior
from pofx.models.latent.generative import Generative
from pofx.models.latent.inference import GaussianEncoder
from pofx.models.latent.laws import DiagonalNormal
from pofx.models.latent.priors import Mixture, ModelPrior, NormalMixture, Prior, StandardNormal, Vamp
from pofx.models.latent.vae import VAE, VAEConfig
from pofx.models.registry import family
from pofx.types import Kind

NAN = torch.nan
MIXED = Domain((Variable("y", "real"), Variable("n", "count", lower=0, upper=4), Variable("k", "categorical", levels=("a", "b", "c"))))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixed_rows(n, missing=0.0):
    x = torch.stack((torch.randn(n), torch.randint(5, (n,)).double(), torch.randint(3, (n,)).double()), dim=-1)
    x[torch.rand(x.shape) < missing] = NAN
    return x


def stirred(module, scale=0.4):
    """Its parameters moved, so that nothing is where it starts."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn(p.shape))
    return module.requires_grad_(False).eval()


def encoder(rows=None, domain=MIXED, latents=2, **options):
    q = GaussianEncoder(domain, latents, widths=(8,), **options)
    if rows is not None:
        q.initialise(rows)
    return stirred(q)


def mixture():
    """Far apart along one diagonal, narrow and tilted against the axes as a whole: no product of mixtures has its cross-moments."""
    prior = Mixture(2, 3)
    with torch.no_grad():
        prior.mean.copy_(torch.tensor([[2.0, 2.0], [-2.0, -1.5], [0.5, 0.0]]))
        prior.log_scale.copy_(torch.tensor([[0.4, 0.7], [0.5, 0.3], [0.9, 0.6]]).log())
        prior.logits.copy_(torch.tensor([0.5, 0.0, -0.7]))
    return prior.requires_grad_(False)


def vamp():
    x = mixed_rows(40, missing=0.2)
    q = encoder(x)
    prior = Vamp(2, 7, q)
    prior.initialise(x)
    return prior.requires_grad_(False)


def aggregated():
    x = mixed_rows(30)
    return aggregated_posterior(encoder(x), x)


def flow(name, scale, **options):
    return ModelPrior(stirred(family(name).configure(options).build(Domain.real(2)), scale))


PRIORS = {
    "normal": lambda: StandardNormal(2),
    "mixture": mixture,
    "vamp": vamp,
    "aggregated": aggregated,
    "realnvp": lambda: flow("realnvp", 0.1, layers=4, width=16),
    "nsf": lambda: flow("nsf", 0.1, layers=2, width=16),
    "maf": lambda: flow("maf", 0.05, layers=2),
}
AXIS = torch.linspace(-12.0, 12.0, 961, dtype=torch.float64)


def on_grid(prior):
    """Points of a grid (G, 2) and the probability of the cell about each."""
    z = torch.cartesian_prod(AXIS, AXIS)
    with torch.no_grad():
        log_p = torch.cat([prior.log_prob(part) for part in z.split(2**16)])
    return z, log_p.exp() * (AXIS[1] - AXIS[0]) ** 2


def moments(z):
    """Means, second and cross-moments, and waves along a random projection, (N, 8)."""
    a = torch.randn(2, 2, generator=generator(5))
    waves = z @ a
    return torch.cat((z, z.square(), z[:, :1] * z[:, 1:], waves.cos(), waves[:, :1].sin()), dim=-1)


@pytest.mark.parametrize("name", PRIORS)
def test_density_integrates_to_one_and_draws_agree_with_it(name):
    prior = PRIORS[name]()
    z, p = on_grid(prior)
    assert abs(p.sum() - 1) < 1e-4
    drawn = moments(prior.sample((300, 400), like=z, generator=generator()).reshape(-1, 2))
    error = drawn.std(0) / math.sqrt(len(drawn))
    assert ((drawn.mean(0) - p @ moments(z)).abs() < 6 * error + 1e-3 * error.max()).all()


def test_every_prior_has_a_line_above():
    def leaves(kind):
        return {kind} if not kind.__subclasses__() else set().union(*map(leaves, kind.__subclasses__()))

    on_a_grid = {kind for kind in leaves(Prior) if kind.__module__.startswith("pofx")} - {CategoricalPrior}  # it is enumerated
    assert {type(make()) for make in PRIORS.values()} == on_a_grid


def test_categories_sum_to_one_and_are_drawn_as_often_as_likely():
    prior = CategoricalPrior(2, 3)
    with torch.no_grad():
        prior.logits.normal_()
        z = one_hot(torch.cartesian_prod(torch.arange(3), torch.arange(3)), 3).flatten(-2).double()
        p = prior.log_prob(z).exp()
        drawn = prior.sample((300, 400), like=z, generator=generator()).reshape(-1, 6)
    share = (drawn @ z.T == 2).double().mean(0)
    torch.testing.assert_close(p.sum(), torch.tensor(1.0))
    assert ((share - p).abs() < 6 * (p * (1 - p) / len(drawn)).sqrt()).all()


def test_a_mixture_is_of_the_whole_z():
    prior, z = mixture(), torch.randn(3, 5, 2)
    normals = Independent(Normal(prior.mean, prior.log_scale.exp()), 1)
    exact = MixtureSameFamily(Categorical(logits=prior.logits), normals)
    torch.testing.assert_close(prior.log_prob(z), exact.log_prob(z))
    joint = normals.log_prob(z[..., None, :]) + prior.logits
    torch.testing.assert_close(prior.responsibilities(z), joint.softmax(-1))


@pytest.mark.parametrize("latents", [1, 2, 16])
def test_a_mixture_starts_about_the_standard_normal(latents):
    z = Mixture(latents, 4000).sample((40_000,), like=torch.zeros(0), generator=generator())
    # The centres are draws themselves: 4000 of them, with at most all of the variance.
    assert (z.mean(0).abs() < 6 * math.sqrt(1 / 4000 + 1 / 40_000)).all()
    assert ((z.square().mean(0) - 1).abs() < 6 * math.sqrt(2 / 4000 + 2 / 40_000)).all()


def test_narrow_components_far_out_keep_single_precision():
    prior = Mixture(2, 1).float()
    with torch.no_grad():
        prior.mean.fill_(4.0)
        prior.log_scale.fill_(math.log(1e-3))
    z = torch.full((1, 2), 4.0) + 1e-3 * torch.tensor([[1.0, -0.5]])
    exact = Independent(Normal(prior.mean[0].double(), 1e-3), 1).log_prob(z.double())
    torch.testing.assert_close(prior.log_prob(z.float()).double(), exact, atol=2e-3, rtol=0)  # what rounding z itself costs


# -- the VampPrior -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("context", [0, 2])
def test_a_vamp_prior_of_all_rows_is_the_aggregated_posterior(missing, context):
    x, z = mixed_rows(25, missing), torch.randn(4, 6, 2)
    c = torch.randn(25, context) if context else None
    q = encoder(x, context=context)
    prior = Vamp(2, len(x), q)
    prior.initialise(x, c)
    stirred(q)  # pseudo-inputs are inputs of q, whatever q becomes
    m, log_s = q.top(x, c).m, q.top(x, c).log_s
    exact = MixtureSameFamily(Categorical(logits=torch.zeros(25)), Independent(Normal(m, log_s.exp()), 1))
    torch.testing.assert_close(prior.log_prob(z), exact.log_prob(z))
    torch.testing.assert_close(aggregated_posterior(q, x, c).log_prob(z), exact.log_prob(z))


def test_pseudo_inputs_are_rows_evenly_apart_and_repeat_where_there_are_too_few():
    x = mixed_rows(10)
    q = encoder(x)
    seen = q.see(x, None)[0]
    for components, rows in ((3, [0, 3, 6]), (20, [n // 2 for n in range(20)])):
        prior = Vamp(2, components, q)
        prior.initialise(x)
        assert torch.equal(prior.u, seen[rows])


def test_the_model_contains_no_encoder_and_a_copy_asks_its_own():
    model = VAEConfig(latents=2, widths=(8,), prior="vamp").build(MIXED)
    model.initialise(mixed_rows(20))
    model.eval()
    own = {name for name, _ in model.generative.named_parameters()}
    assert {name for name in own if name.startswith("prior")} == {"prior.u"}
    twin, z = copy.deepcopy(model), torch.randn(3, 2)
    before = model.generative.prior.log_prob(z)
    stirred(twin.inference)
    assert torch.equal(model.generative.prior.log_prob(z), before)
    assert not torch.allclose(twin.generative.prior.log_prob(z), before)


# -- the bound ---------------------------------------------------------------------------------------------------------


def test_one_component_pays_the_closed_form_of_the_divergence():
    prior, q = Mixture(2, 1), encoder()
    with torch.no_grad():
        prior.log_scale.copy_(torch.tensor([[0.3, -0.8]]))
    x = mixed_rows(4)
    m, log_s = q.top(x, None).m, q.top(x, None).log_s
    drawn = q.draw(Generative(prior, Decoder(2, Columns([NormalLaw()] * 3))), x, None, 60_000, generator=generator())
    paid = drawn.log_q()[0] - prior.log_prob(drawn.latents[0])
    exact = kl_divergence(Independent(Normal(m, log_s.exp()), 1), Independent(Normal(prior.mean[0], prior.log_scale[0].exp()), 1))
    assert ((paid.mean(0) - exact).abs() < 6 * paid.std(0) / math.sqrt(len(paid))).all()


@pytest.mark.parametrize("prior", ["mixture", "vamp", "realnvp", "maf:layers=2"])
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_every_parameter_of_a_prior_learns(prior, objective):
    model = VAEConfig(latents=2, widths=(8,), prior=prior, prior_components=5, objective=objective, loss_draws=2).build(MIXED)
    x = mixed_rows(30, missing=0.2)
    model.initialise(x)
    stirred(model.generative.prior, 0.1).requires_grad_(True)
    model.train().loss(x, generator=generator()).mean().backward()
    learned = dict(model.generative.prior.named_parameters())
    assert learned
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learned.values())
    assert any(bool(p.grad.any()) for p in learned.values())


def test_kept_pseudo_inputs_stand_still():
    model = VAEConfig(latents=2, widths=(8,), prior="vamp", pseudo_inputs="kept").build(MIXED)
    assert not any(p.requires_grad for p in model.generative.prior.parameters())


def test_a_flow_prior_begins_as_the_standard_normal():
    prior, z = VAEConfig(latents=2, prior="realnvp").build(MIXED).generative.prior.eval(), torch.randn(7, 2)
    torch.testing.assert_close(prior.log_prob(z), StandardNormal(2).log_prob(z))


# -- whole models ------------------------------------------------------------------------------------------------------

D, L, SIGMA = 4, 2, 0.6
W = torch.tensor([[1.0, 0.2], [-0.6, 0.9], [0.3, -1.0], [0.7, 0.7]], dtype=torch.float64)
MU = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64)


def linear_vae(prior, draws=6000):
    """x = MU + W z + SIGMA e with z from the prior; q is the posterior under a flat prior, one and a half times as wide."""
    decoder, q = Decoder(L, Columns([NormalLaw()] * D), widths=()), GaussianEncoder(Domain.real(D), L, widths=())
    posterior = torch.linalg.inv(W.T @ W)
    with torch.no_grad():
        decoder.heads.weight[0::2], decoder.heads.bias[0::2] = W, MU
        decoder.heads.bias[1::2] = inverse_positive(torch.tensor(SIGMA))
        q.features.scale.fill_(100.0)
        q.nets[0].inlet.weight[:L], q.nets[0].inlet.weight[L:] = 100 * posterior @ W.T, 0.0
        q.nets[0].inlet.bias[:L], q.nets[0].inlet.bias[L:] = -posterior @ W.T @ MU, (1.5 * SIGMA * posterior.diagonal().sqrt()).log()
    return VAE(Generative(prior, decoder), q, Domain.real(D), draws=draws).requires_grad_(False).eval()


def test_a_gaussian_prior_makes_a_gaussian_of_x():
    z = torch.randn(500, 2) @ torch.tensor([[1.0, 0.6], [0.0, 0.5]]) + torch.tensor([0.7, -0.4])
    law = GaussianConfig().build(Domain.real(2))
    list(law.steps(z))
    mean = law.mean()
    covariance = torch.linalg.inv(-torch.autograd.functional.hessian(lambda v: law.log_prob(v[None])[0], mean))
    exact = MultivariateNormal(MU + W @ mean, W @ covariance @ W.T + SIGMA**2 * torch.eye(D))
    x = exact.sample((20,))
    value, error = linear_vae(ModelPrior(law)).log_prob_and_error(x, generator=generator())
    assert ((value - exact.log_prob(x)).abs() < 6 * error).all()
    assert error.max() < 0.1


def of_x(prior, seen):
    """p(x_seen) of the linear model as components and their weights."""
    covariances = [W @ torch.diag(s.square()) @ W.T + SIGMA**2 * torch.eye(D) for s in prior.log_scale.exp()]
    return [MultivariateNormal((MU + W @ m)[seen], C[seen][:, seen]) for m, C in zip(prior.mean, covariances, strict=True)]


@pytest.mark.parametrize("seen", [[0, 1, 2, 3], [0, 2, 3]])
def test_a_mixture_prior_makes_a_mixture_of_x_and_its_clusters(seen):
    prior = mixture()
    model, components = linear_vae(prior), of_x(prior, seen)
    x = torch.full((30, D), NAN)
    x[:, seen] = torch.stack([components[n % 3].sample() for n in range(30)])
    joint = torch.stack([law.log_prob(x[:, seen]) for law in components], dim=-1) + prior.logits.log_softmax(0)
    value, error = model.log_prob_and_error(x, generator=generator())
    assert ((value - joint.logsumexp(-1)).abs() < 6 * error).all()
    assert error.max() < 0.1
    p = model.cluster(x, generator=generator())
    torch.testing.assert_close(p.sum(-1), torch.ones(30))
    # A ratio of two means over the same draws: its error is at most that of the weights.
    assert ((p - joint.softmax(-1)).abs() < 6 * error[:, None] + 1e-3).all()
    assert model.answers("cluster") is Kind.ESTIMATE
    drawn = model.sample(60_000, generator=generator())[:, seen]
    means = torch.stack([law.mean for law in components])
    pi = prior.logits.softmax(0)
    assert ((drawn.mean(0) - pi @ means).abs() < 6 * drawn.std(0) / math.sqrt(len(drawn))).all()


def test_no_rows_have_no_clusters():
    assert linear_vae(mixture()).cluster(torch.zeros(0, D)).shape == (0, 3)
    assert linear_vae(mixture(), draws=4).cluster(torch.zeros(2, 3, D)).shape == (2, 3, 3)


def test_clusters_need_a_mixture():
    model = linear_vae(StandardNormal(2))
    assert model.answers("cluster") is Kind.NONE
    with pytest.raises(Unavailable, match=r"prior=mixture"):
        model.cluster(torch.zeros(1, D))


# -- the aggregated posterior ------------------------------------------------------------------------------------------


def test_the_gap_of_one_row_is_its_divergence():
    m, s = torch.tensor([[0.7, -0.3]]), torch.tensor([[0.4, 1.3]])
    found = gap(Aggregated(posterior_normals(DiagonalNormal(m, s.log()))), StandardNormal(2), draws=50_000, like=m, generator=generator())
    assert abs(found.value - DiagonalNormal(m, s.log()).kl(StandardNormal(2)).item()) < 6 * found.error
    assert 0 < found.error < 0.02


def test_the_gap_to_itself_is_nothing_and_to_the_prior_less_than_the_rows_pay():
    m, log_s = torch.randn(50, 2), torch.full((50, 2), -1.5)
    whole = Aggregated(posterior_normals(DiagonalNormal(m, log_s)))
    assert gap(whole, whole, like=m, generator=generator()) == (0.0, 0.0)
    paid = DiagonalNormal(m, log_s).kl(StandardNormal(2)).mean()
    apart = gap(whole, StandardNormal(2), draws=60_000, like=m, generator=generator())
    assert 6 * apart.error < apart.value < paid - 6 * apart.error


# -- from outside ------------------------------------------------------------------------------------------------------


def blobs(n=300, missing=0.0):
    """Two kinds of row far apart in every column."""
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=n)
    frame = pd.DataFrame({f"x{d}": np.where(kind == 1, 3.0, -3.0) + rng.normal(size=n) for d in range(4)})
    frame["who"] = np.where(kind == 1, "b", "a")
    return frame.mask(rng.random(frame.shape) < missing), kind


@pytest.mark.parametrize("given", [None, "who"])
@pytest.mark.parametrize("prior", ["mixture", "vamp", "nsf:layers=2"])
def test_a_file_gives_back_every_prior(tmp_path, prior, given):
    frame, _ = blobs(120, missing=0.0 if given else 0.2)
    p = pofx.fit(frame, "vae", given=given, latents=2, widths=(8,), draws=8, prior=prior, prior_components=4, max_epochs=2, progress=False)
    p.save(tmp_path / "p.safetensors")
    again = pofx.open(tmp_path / "p.safetensors")
    np.testing.assert_array_equal(np.asarray(again.log_prob(frame)), np.asarray(p.log_prob(frame)))
    if isinstance(_prior(p), NormalMixture):
        np.testing.assert_array_equal(np.asarray(again.cluster(frame)), np.asarray(p.cluster(frame)))


def _prior(p):
    return getattr(p.model, "base", p.model).generative.prior


def test_clusters_that_are_far_apart_are_found():
    frame, kind = blobs(missing=0.1)
    p = pofx.fit(
        frame, "vae", latents=2, widths=(32,), dropout=0.0, prior="mixture", prior_components=2, max_epochs=40, progress=False, seed=0
    )
    found = p.cluster(frame)
    assert found.kind is Kind.ESTIMATE
    right = (np.argmax(found, 1) == kind).mean()
    assert max(right, 1 - right) > 0.97


@pytest.mark.parametrize("name", ["gmm", "latent_class"])
def test_a_mixture_by_em_clusters_by_its_responsibilities(name):
    frame, _ = blobs()
    numbers = frame.drop(columns="who")
    p = pofx.fit(numbers, name, components=2, progress=False)
    found = p.cluster(numbers)
    assert found.kind is Kind.EXACT
    np.testing.assert_allclose(np.asarray(found), p.encode(numbers))


def test_other_families_refuse_to_cluster():
    frame, _ = blobs(60)
    with pytest.raises(Unavailable, match="gmm"):
        pofx.fit(frame, "independent", progress=False).cluster(frame)


@pytest.mark.parametrize(
    ("prior", "sentence"),
    [
        ("gmm", "by gradients"),
        ("hclt", "real vectors"),
        ("vae", "real vectors"),
        ("glow", "real vectors"),
        ("vmap", "there is no family 'vmap'"),
        ("nsf:layers=0", "layers"),
    ],
)
def test_what_is_no_prior_is_refused_with_a_sentence(prior, sentence):
    with pytest.raises(OptionError, match=sentence):
        family("vae").configure({"prior": prior})


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (lambda: VAEConfig(latents=2).build(Domain.real(2)), "exact densities"),
        (lambda: GaussianConfig().build(Domain((Variable("a", "positive"),))), "real variables"),
    ],
)
def test_a_model_that_is_no_prior_is_refused(model, sentence):
    with pytest.raises(OptionError, match=sentence):
        ModelPrior(model())


@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_a_marginal_keeps_the_whole_prior(prior):
    model = VAEConfig(latents=2, widths=(8,), prior=prior, prior_components=5, draws=3000).build(MIXED)
    model.initialise(mixed_rows(30, missing=0.2))
    stirred(model, 0.2)
    x, keep = mixed_rows(8), [2, 0]
    part, error = model.marginal(keep).log_prob_and_error(x[:, keep], generator=generator(1))
    x[:, 1] = NAN
    whole, own = model.log_prob_and_error(x, generator=generator(2))
    assert ((part - whole).abs() < 6 * (error.square() + own.square()).sqrt()).all()
    assert own.max() < 0.1
