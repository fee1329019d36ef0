"""What latent-variable models learn by, held against closed forms, enumerations and the gradients that theory gives.

x = W z + mu + sigma e with z, e standard normal is the model: p(x), p(z | x) and every divergence of normals are known.
Statistical tests compare at 5.5 standard errors or more: they fail by chance in fewer than 1e-6 of runs.
"""

import itertools
import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence
from torch.distributions import Normal as TorchNormal

import pofx
from pofx.distributions.base import inverse_positive
from pofx.distributions.columns import Columns
from pofx.distributions.continuous import Normal
from pofx.domain import Domain
from pofx.errors import OptionError, PofxError, Unavailable
from pofx.learn.run import run
from pofx.models.latent.decoder import Decoder
from pofx.models.latent.generative import Generative
from pofx.models.latent.inference import Draws, GaussianEncoder, Inference, held_terms, log_terms, mean_terms
from pofx.models.latent.learning import Autoencoder, Elbo, InfoVAE
from pofx.models.latent.priors import StandardNormal
from pofx.models.latent.vae import VAE, VAEConfig
from pofx.objectives.elbo import LogTerms, elbo, iwae, log_weights
from pofx.objectives.mmd import imq, mmd2, rbf

D, L, SIGMA = 5, 2, 0.7
W = torch.tensor([[1.2, 0.3], [-0.5, 0.9], [0.1, -1.1], [0.8, 0.8], [0.0, 0.4]], dtype=torch.float64)
MU = torch.tensor([0.5, -1.0, 0.0, 2.0, 0.3], dtype=torch.float64)
ROW = torch.tensor([1.5, -0.4, -0.9, 3.1, 0.6], dtype=torch.float64)
PRECISION = torch.eye(L, dtype=torch.float64) + W.T @ W / SIGMA**2
MEAN = torch.linalg.solve(PRECISION, W.T @ (ROW - MU) / SIGMA**2)
POSTERIOR = MultivariateNormal(MEAN, precision_matrix=PRECISION)
LOG_P = MultivariateNormal(MU, W @ W.T + SIGMA**2 * torch.eye(D, dtype=torch.float64)).log_prob(ROW)
HALFWAY = torch.tensor(0.5)


def linear_gaussian():
    model = Generative(StandardNormal(L), Decoder(L, Columns([Normal()] * D), widths=()))
    heads = model.decoder.heads
    with torch.no_grad():
        heads.weight[0::2], heads.weight[1::2] = W, 0.0
        heads.bias[0::2], heads.bias[1::2] = MU, inverse_positive(torch.tensor(SIGMA))
    return model


class Factor(Inference):
    """q(z) = N(m_n, F F^T), row n's own mean: any normal, the posterior itself among them."""

    def __init__(self, m, factor, held=True):
        super().__init__()
        self.m, self.factor, self.says = m, factor, held

    def draw(self, model, x, c, draws, *, generator=None):
        eps = torch.randn(draws, len(x), L, generator=generator)
        z = self.m + (self.factor @ eps[..., None])[..., 0]
        q, still = (MultivariateNormal(m, scale_tril=f) for m, f in ((self.m, self.factor), (self.m.detach(), self.factor.detach())))
        held = (lambda zs: (still.log_prob(zs[0]),)) if self.says else None
        return Draws((z,), lambda: (q.log_prob(z),), (None,), held)

    def mean(self, model, x, c):
        return (self.m.expand(len(x), -1),)

    def marginal(self, keep):
        return self


def table(kl=(None, None), k=4, n=3):
    a, b = torch.randn(2, k, n), torch.randn(2, k, n)
    return LogTerms((), torch.randn(k, n), lambda: tuple(a), lambda: tuple(b), kl)


def two_levels():
    """One level with a closed form, whose mean is 2, and one without, whose mean over the draws is 0.5."""
    q = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 5.0]])
    p = q - torch.tensor([[0.2, 0.6, 0.4], [0.0, 1.0, 0.8]])
    return LogTerms((), torch.zeros(2, 3), lambda: (q, p), lambda: (q, q), (torch.tensor([1.0, 2.0, 3.0]), None))


# -- the weighted bound ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kl", [(None, None), (torch.ones(3), None), (torch.ones(3), torch.arange(3.0))])
def test_plain_learning_is_the_bound_bit_by_bit(kl):
    terms = table(kl)
    plain = terms.log_likelihood.mean(0)
    for q, p, known in zip(terms.log_q, terms.log_prior, kl, strict=True):
        plain = plain - ((q - p).mean(0) if known is None else known)
    assert torch.equal(elbo(terms), plain)
    assert torch.equal(Elbo(beta=1.0, warmup=0.0, free=0.0).climbed(terms, torch.tensor(0.0)), plain)
    assert torch.equal(Elbo(beta=7.0, free=2.0).judged(terms), plain)


@pytest.mark.parametrize(("done", "weight"), [(0.0, 0.0), (0.1, 0.75), (0.2, 1.5), (0.4, 3.0), (0.41, 3.0), (1.0, 3.0)])
def test_the_weight_of_the_divergence_rises_evenly_and_ends(done, weight):
    terms = table()
    climbed = Elbo(beta=3.0, warmup=0.4).climbed(terms, torch.tensor(done))
    torch.testing.assert_close(climbed, terms.log_likelihood.mean(0) - weight * (terms.log_likelihood.mean(0) - elbo(terms)))


def test_without_divergence_the_likelihood_is_left_and_a_whole_runs_warm_up_ends_at_its_end():
    terms = table()
    torch.testing.assert_close(elbo(terms, beta=0.0), terms.log_likelihood.mean(0))
    assert torch.equal(Elbo(warmup=1.0).climbed(terms, torch.tensor(0.0)), terms.log_likelihood.mean(0))
    assert torch.equal(Elbo(warmup=1.0).climbed(terms, torch.tensor(1.0)), elbo(terms))


@pytest.mark.parametrize(("free", "cost"), [(0.0, 2.5), (0.4, 2.5), (0.6, 2.6), (1.9, 3.9), (2.5, 5.0)])
def test_free_bits_are_the_larger_of_a_levels_mean_divergence_and_the_gift(free, cost):
    """Kingma et al.: sum_j max(free, mean over the batch of KL_j), here of means 2 and 0.5."""
    assert elbo(two_levels(), free=free).mean().item() == pytest.approx(-cost)
    assert elbo(two_levels(), beta=3.0, free=free).mean().item() == pytest.approx(-3 * cost)


def test_a_level_within_its_gift_is_not_pressed_and_one_beyond_it_wholly():
    kl = torch.tensor([0.2, 0.4], requires_grad=True)
    terms = LogTerms((), torch.zeros(1, 2), tuple, tuple, (kl,))
    assert torch.equal(torch.autograd.grad(elbo(terms, free=0.31).sum(), kl)[0], torch.zeros(2))
    assert torch.equal(torch.autograd.grad(elbo(terms, free=0.29).sum(), kl)[0], -torch.ones(2))


# -- importance weights ------------------------------------------------------------------------------------------------


def normal(shift=0.3, width=1.3):
    return Factor(MEAN + shift, torch.diag(width * POSTERIOR.stddev))


def test_the_gap_of_the_bound_is_the_divergence_from_the_posterior_and_falls_with_the_draws():
    q, model, gaps = normal(), linear_gaussian().requires_grad_(False), []
    for k in (1, 2, 5, 10, 50):
        bound = iwae(log_weights(log_terms(model, q, ROW.expand(100_000 // k, -1), None, k)))
        gaps.append(((LOG_P - bound.mean()).item(), bound.std().item() / math.sqrt(len(bound))))
    exact = kl_divergence(MultivariateNormal(q.m, q.factor @ q.factor.T), POSTERIOR).item()
    assert abs(gaps[0][0] - exact) < 5.5 * gaps[0][1]
    for (more, e), (less, f) in itertools.pairwise(gaps):
        assert more - less > 5.5 * math.hypot(e, f) > 0
    assert gaps[-1][0] > -5.5 * gaps[-1][1]
    assert gaps[-1][0] < 0.05 * exact


def gradients(q, model, draw, rows, k, seed=0):
    """Of -iwae in m and in the diagonal of the factor, (rows, 2 L): every row has parameters of its own."""
    m, s = (v.detach().expand(rows, -1).clone().requires_grad_() for v in (q.m, q.factor.diagonal()))
    own = Factor(m, torch.diag_embed(s))
    terms = draw(model, own, ROW.expand(rows, -1), None, k, generator=torch.Generator().manual_seed(seed))
    bound = iwae(log_weights(terms))
    return bound, torch.cat(torch.autograd.grad(-bound.sum(), (m, s)), dim=-1)


@pytest.mark.parametrize("k", [1, 3, 64])
def test_the_doubly_reparameterised_gradient_has_the_plain_ones_mean(k):
    q, model, rows = normal(), linear_gaussian().requires_grad_(False), 128_000 // k
    value, plain = gradients(q, model, log_terms, rows, k)
    same, held = gradients(q, model, held_terms, rows, k)
    torch.testing.assert_close(same, value)
    off = held - plain  # of the same draws, so their common noise is gone
    assert (off.mean(0).abs() < 5.5 * off.std(0) / math.sqrt(rows)).all()
    assert (off.std(0) > 0).all()
    if k == 64:
        assert (held.var(0) < 0.5 * plain.var(0)).all()


def test_the_exact_gradient_of_one_draw():
    """K = 1 is the ELBO, whose gradient is that of KL(q || posterior): in m it is PRECISION (m - MEAN)."""
    q, model = normal(), linear_gaussian().requires_grad_(False)
    m, s = q.m.clone().requires_grad_(), q.factor.diagonal().clone().requires_grad_()
    exact = torch.cat(torch.autograd.grad(kl_divergence(MultivariateNormal(m, torch.diag(s**2)), POSTERIOR), (m, s)))
    _, each = gradients(q, model, held_terms, 50_000, 1, seed=1)
    assert ((each.mean(0) - exact).abs() < 5.5 * each.std(0) / math.sqrt(len(each))).all()


def test_at_the_posterior_the_doubly_reparameterised_gradient_has_no_noise():
    m, factor = MEAN.clone().requires_grad_(), POSTERIOR.scale_tril.clone().requires_grad_()
    model = linear_gaussian().requires_grad_(False)
    norms = []
    for draw in (held_terms, log_terms):
        loss = -iwae(log_weights(draw(model, Factor(m, factor), ROW.expand(20, -1), None, 8))).sum()
        norms.append(max(float(g.abs().max()) for g in torch.autograd.grad(loss, (m, factor))))
    assert norms[0] < 1e-10
    assert norms[1] > 1e-2


@pytest.mark.parametrize("k", [1, 16])
def test_the_models_own_gradient_is_the_plain_one(k):
    found = []
    for draw in (log_terms, held_terms):
        model = linear_gaussian()
        terms = draw(model, normal(), ROW.expand(6, -1), None, k, generator=torch.Generator().manual_seed(2))
        found.append(torch.autograd.grad(iwae(log_weights(terms)).sum(), list(model.parameters())))
    torch.testing.assert_close(*found)


def test_the_encoders_density_with_its_numbers_held_is_its_density():
    x = MU + torch.randn(6, D)
    q = GaussianEncoder(Domain.real(D), L, widths=(8,))
    q.initialise(x)
    drawn = q.draw(linear_gaussian(), x, None, 3)
    torch.testing.assert_close(drawn.held(drawn.latents)[0], drawn.log_q()[0])
    z = torch.randn(3, 6, L)
    m, log_s = q.top(x, None).m, q.top(x, None).log_s
    torch.testing.assert_close(drawn.held((z,))[0], TorchNormal(m, log_s.exp()).log_prob(z).sum(-1))
    assert not drawn.held((z,))[0].requires_grad
    assert drawn.log_q()[0].requires_grad


def test_a_q_that_knows_its_density_only_where_it_drew_is_refused():
    silent = Factor(MEAN, POSTERIOR.scale_tril, held=False)
    with pytest.raises(Unavailable, match="only where it drew"):
        held_terms(linear_gaussian(), silent, ROW[None], None, 2)


# -- InfoVAE -----------------------------------------------------------------------------------------------------------


def test_mmd_is_unbiased_for_the_closed_form_of_normals():
    """With k = exp(-|a - b|^2 / (2 L)) and a - b ~ N(d, diag v): E k = prod_l exp(-d_l^2 / (2 (L + v_l))) sqrt(L / (L + v_l))."""
    d, s = torch.tensor([1.0, -0.5]), torch.tensor([0.5, 1.5])

    def mean_kernel(d, v):
        return (torch.exp(-d.square() / (2 * (L + v))) * (L / (L + v)).sqrt()).prod()

    exact = mean_kernel(0 * d, 2 * s**2) + mean_kernel(0 * d, torch.full((L,), 2.0)) - 2 * mean_kernel(d, 1 + s**2)
    z, y = d + s * torch.randn(4000, 8, L), torch.randn(4000, 8, L)
    each = mmd2(z, y, rbf)
    assert abs(each.mean() - exact) < 5.5 * each.std() / math.sqrt(len(each))
    assert exact > 20 * each.std() / math.sqrt(len(each))
    alike = mmd2(torch.randn(4000, 8, L), y, imq)
    assert abs(alike.mean()) < 5.5 * alike.std() / math.sqrt(len(alike))


@pytest.mark.parametrize("kernel", [rbf, imq])
def test_mmd_is_what_enumerating_the_pairs_gives(kernel):
    z, y, n, m = torch.randn(4, 3), torch.randn(4, 3) + 1, 4, 4
    k = {rbf: lambda a, b: math.exp(-(a - b).square().sum() / 6), imq: lambda a, b: 6 / (6 + float((a - b).square().sum()))}[kernel]
    pairs = list(itertools.permutations(range(n), 2))
    within = sum(k(z[i], z[j]) + k(y[i], y[j]) for i, j in pairs) / (n * (n - 1))
    across = sum(k(a, b) for a in z for b in y) / (n * m)
    assert mmd2(z, y, kernel).item() == pytest.approx(within - 2 * across)


@pytest.mark.parametrize("kernel", [rbf, imq])
def test_mmd_has_a_gradient_where_draws_coincide_and_where_one_is_alone(kernel):
    for rows in (1, 3):
        z = torch.zeros(rows, L, requires_grad=True)
        (slope,) = torch.autograd.grad(mmd2(z, torch.ones(rows, L), kernel), z)
        assert (slope < 0).all()  # towards the others: descending it moves z up
        assert slope.isfinite().all()


def test_infovae_is_the_weighted_bound_less_the_discrepancy_of_all_levels():
    z, y = (torch.randn(2, 5, 3), torch.randn(2, 5, 1)), (torch.randn(2, 5, 3), torch.randn(2, 5, 1))
    terms = LogTerms(z, torch.randn(2, 5), tuple, tuple, (torch.rand(5), torch.rand(5)), lambda: y)
    within = Elbo(beta=0.5, warmup=0.8)
    apart = sum(mmd2(torch.cat((z[0][k], z[1][k]), -1), torch.cat((y[0][k], y[1][k]), -1), rbf) for k in (0, 1)) / 2
    climbed = InfoVAE(within, 30.0, rbf).climbed(terms, HALFWAY)
    torch.testing.assert_close(climbed, within.climbed(terms, HALFWAY) - 30 * apart)
    assert torch.equal(InfoVAE(within, 30.0).judged(terms), elbo(terms))


def test_the_draws_that_codes_are_compared_with_are_the_priors():
    terms = log_terms(linear_gaussian(), normal(), ROW.expand(50_000, -1), None, 1)
    (y,) = terms.prior_draws()
    assert y.shape == terms.latents[0].shape
    assert (y.mean((0, 1)).abs() < 5.5 / math.sqrt(50_000)).all()


# -- the plain autoencoder ---------------------------------------------------------------------------------------------


def test_the_autoencoder_is_the_likelihood_at_the_mean():
    model, q = linear_gaussian(), normal()
    climbed = Autoencoder().climbed(mean_terms(model, q, ROW[None], None, 4), HALFWAY)
    torch.testing.assert_close(climbed, TorchNormal(MU + W @ q.m, SIGMA).log_prob(ROW).sum()[None])


def test_the_linear_autoencoder_finds_the_principal_subspace():
    """Of all maps through L numbers, the least squared error has the span of the first L eigenvectors."""
    torch.manual_seed(3)
    x = MU + torch.randn(300, L) @ W.T + 0.3 * torch.randn(300, D)
    x = x.clamp(x.mean(0) - 2.5 * x.std(0), x.mean(0) + 2.5 * x.std(0))  # a linear encoder must not be bent at 3 deviations
    centred = x - x.mean(0)
    least = torch.linalg.eigvalsh(centred.T @ centred)[:-L].sum() / len(x)
    decoder, encoder = Decoder(L, Columns([Normal(floor=SIGMA)] * D), widths=()), GaussianEncoder(Domain.real(D), L, widths=())
    model = VAE(Generative(StandardNormal(L), decoder), encoder, Domain.real(D), objective=Autoencoder())
    encoder.features.fit(x)
    with torch.no_grad():
        decoder.heads.bias[0::2], decoder.heads.bias[1::2] = x.mean(0), -40.0  # softplus(-40) = 0: the scale is the floor
    adam = torch.optim.Adam(model.train().parameters(), lr=0.02)
    for _ in range(500):
        loss = model.loss(x).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        found = (model.decode(model.encode(x)) - x).square().sum(-1).mean()
    assert least - 1e-9 < found < 1.01 * least


# -- options, runs, files ----------------------------------------------------------------------------------------------


def options(objective, **more):
    return VAEConfig(objective=objective, latents=2, widths=(8,), dropout=0.0, draws=8, **more)


EVERY = {
    "plain": options("elbo"),
    "weighted": options("elbo", beta=4.0, free_bits=0.1),
    "warm": options("elbo", beta_warmup=0.5),
    "iwae": options("iwae", loss_draws=3),
    "dreg": options("iwae", loss_draws=3, gradient="dreg"),
    "infovae": options("infovae", beta=0.0, kernel="rbf"),
    "autoencoder": options("autoencoder"),
}


def rows(n=60):
    return MU + torch.randn(n, L) @ W.T + SIGMA * torch.randn(n, D)


@pytest.mark.parametrize("name", EVERY)
def test_held_out_rows_are_judged_by_the_bound_whatever_surrogate_is_learned_by(name):
    config, x = EVERY[name], rows()
    model = config.build(Domain.real(D))
    record = run(model, x, config=config.model_copy(update={"max_epochs": 2}), holdout=x, seed=1)
    parts = (model.generative, model.inference, x)
    terms = log_terms(*parts, None, config.loss_draws, generator=torch.Generator().manual_seed(5))
    judges = {
        "iwae": lambda: iwae(log_weights(terms)),
        "autoencoder": lambda: mean_terms(model.generative, model.inference, x).log_likelihood[0],
    }
    bound = judges.get(config.objective, lambda: elbo(terms))()
    assert torch.equal(-model.eval().loss(x, generator=torch.Generator().manual_seed(5)), bound)
    assert all(math.isfinite(row["train"]) and math.isfinite(row["holdout"]) for row in record.history)
    assert record.surrogate is (name in {"weighted", "warm", "infovae"})
    assert ("held-out bound" in record.summary()) is record.surrogate
    assert type(record).from_json(record.to_json()) == record


def test_the_run_says_how_far_it_is_and_of_which_rows_a_step_is():
    config = VAEConfig(objective="elbo", beta_warmup=0.5, latents=2, widths=(8,), batch_size=10, max_epochs=4)
    model, heard = config.build(Domain.real(D)), []
    hear, model.passed = model.passed, lambda done, at: (heard.append((done, at)), hear(done, at))
    run(model, rows(50), config=config, seed=1)
    assert [done for done, _ in heard] == [step / 20 for step in range(20)]
    for first in range(0, 20, 5):
        assert torch.cat([at for _, at in heard[first : first + 5]]).sort().values.tolist() == list(range(50))


def test_patience_counts_from_the_end_of_the_warm_up():
    x, far = rows(40), rows(40) + 50.0
    ends = []
    for warmup in (0.0, 0.5):
        config = VAEConfig(latents=2, widths=(8,), max_epochs=24, patience=1, beta_warmup=warmup, learning_rate=1e-9, ema=None)
        ends.append(run(config.build(Domain.real(D)), x, config=config, holdout=far, seed=1).epochs)
    assert ends[0] < 12 <= ends[1]
    assert ends[1] < 24


def test_a_gradient_that_would_be_compiled_wrong_is_not_compiled():
    config = EVERY["dreg"]
    with pytest.raises(OptionError, match="gets wrong: leave compile out"):
        run(config.build(Domain.real(D)), rows(), config=config, compile=True)


def test_the_length_of_the_run_is_part_of_a_warmed_ones_identity():
    assert VAEConfig(beta_warmup=0.2).scheduled
    assert not VAEConfig().scheduled


@pytest.mark.parametrize("name", ["warm", "dreg", "infovae", "autoencoder"])
def test_a_file_keeps_every_option(name, tmp_path):
    chosen = {key: value for key, value in EVERY[name].model_dump().items() if key in EVERY[name].model_fields_set}
    x = rows(40).numpy()
    p = pofx.fit(x, "vae", max_epochs=1, seed=0, progress=False, **chosen)
    p.save(tmp_path / "p.safetensors")
    again = pofx.open(tmp_path / "p.safetensors")
    assert again.record == p.record
    assert torch.equal(torch.as_tensor(again.log_prob(x).value), torch.as_tensor(p.log_prob(x).value))


def test_learning_on_missing_cells_climbs_the_bound_on_the_observed_ones():
    x = rows(40)
    x[torch.rand(x.shape) < 0.3] = torch.nan
    for name in ("iwae", "dreg", "infovae", "autoencoder"):
        model = EVERY[name].build(Domain.real(D))
        model.initialise(x)
        model.train().loss(x).mean().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"beta_warmup": 1.5}, "'beta_warmup'.*less than or equal to 1, got 1.5"),
        ({"objective": "iwae", "loss_draws": 0}, "'loss_draws'.*greater than or equal to 1, got 0"),
        ({"beta": -1.0}, "'beta'"),
        ({"free_bits": -1.0}, "'free_bits'"),
        ({"kernel": "cosine"}, "'kernel'"),
    ],
)
def test_options_out_of_range_are_refused(wrong, says):
    from pofx.models.registry import family

    with pytest.raises(PofxError, match=says):
        family("vae").configure(wrong)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"gradient": "dreg"}, "gradient='dreg' is for objective 'iwae': objective 'elbo' takes 'plain'"),
        ({"objective": "iwae", "beta": 2.0}, "beta=2.0 is for objective 'elbo' or 'infovae': objective 'iwae' takes 1.0"),
        ({"objective": "autoencoder", "loss_draws": 4}, "loss_draws=4 is for objective 'elbo' or 'iwae' or 'infovae'"),
        ({"kernel": "rbf"}, "kernel='rbf' is for objective 'infovae'"),
        ({"objective": "infovae", "batch_size": 1}, "batch_size is 2 or more"),
    ],
)
def test_options_that_the_objective_does_not_read_are_refused(wrong, says):
    with pytest.raises(OptionError, match=says):
        VAEConfig(**wrong).build(Domain.real(2))
