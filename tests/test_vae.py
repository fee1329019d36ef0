"""The VAE against models whose every answer is known.

A linear decoder with normal laws is a Gaussian model; with one latent any decoder can be integrated on a grid.
Statistical tests compare at 5.5 standard errors or more: they fail by chance in fewer than 1e-6 of runs.
"""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from pofx.distributions.base import inverse_positive
from pofx.distributions.columns import Columns
from pofx.distributions.continuous import Normal
from pofx.domain import Domain, Variable
from pofx.errors import FileError, PofxError, Unavailable
from pofx.models.latent.decoder import Decoder
from pofx.models.latent.generative import Generative
from pofx.models.latent.inference import GaussianEncoder
from pofx.models.latent.laws import DiagonalNormal
from pofx.models.latent.priors import StandardNormal
from pofx.models.latent.vae import VAE, VAEConfig
from pofx.types import Kind

D, L, SIGMA, NAN = 4, 2, 0.6, torch.nan
W = torch.tensor([[1.0, 0.2], [-0.6, 0.9], [0.3, -1.0], [0.7, 0.7]], dtype=torch.float64)
MU = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64)
COVARIANCE = W @ W.T + SIGMA**2 * torch.eye(D, dtype=torch.float64)
OPEN = torch.tensor([[NAN, -0.5, 0.2, NAN]], dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def set_linear(model, w=W, mu=MU, sigma=SIGMA):
    """The parameters that make the laws N(mu + w [z, c], sigma^2)."""
    heads = model.generative.decoder.heads
    with torch.no_grad():
        heads.weight[0::2], heads.weight[1::2] = w, 0.0
        heads.bias[0::2], heads.bias[1::2] = mu, inverse_positive(torch.tensor(sigma))
    return model


def linear_vae(draws=64, context=0, **options):
    """N(MU, COVARIANCE) as a VAE; the encoder's mean is the posterior's, its scales are somewhat too wide."""
    decoder = Decoder(L, Columns([Normal()] * D), context=context, widths=())
    encoder = GaussianEncoder(Domain.real(D), L, context=context, widths=())
    domains = (Domain.real(D), Domain.real(context) if context else None)
    model = set_linear(
        VAE(Generative(StandardNormal(L), decoder), encoder, *domains, draws=draws, **options), torch.cat((W, torch.zeros(D, context)), 1)
    )
    posterior = torch.linalg.inv(torch.eye(L) + W.T @ W / SIGMA**2)
    with torch.no_grad():
        encoder.features.scale.fill_(100.0)  # no row is 3 deviations out, where a linear encoder would be bent
        encoder.nets[0].inlet.weight[:L, :D], encoder.nets[0].inlet.weight[L:] = 100 * posterior @ W.T / SIGMA**2, 0.0
        encoder.nets[0].inlet.bias[:L], encoder.nets[0].inlet.bias[L:] = (
            -posterior @ W.T @ MU / SIGMA**2,
            (1.2 * posterior.diagonal().sqrt()).log(),
        )
    return model.requires_grad_(False).eval()


def conditional(evidence):
    """Mean and covariance of the missing given the observed."""
    seen = ~evidence.isnan()
    gain = COVARIANCE[~seen][:, seen] @ torch.linalg.inv(COVARIANCE[seen][:, seen])
    return MU[~seen] + gain @ (evidence[seen] - MU[seen]), COVARIANCE[~seen][:, ~seen] - gain @ COVARIANCE[seen][:, ~seen]


def rows(n):
    return MU + torch.randn(n, L) @ W.T + SIGMA * torch.randn(n, D)


# -- density -----------------------------------------------------------------------------------------------------------


def test_log_prob_is_the_gaussians_within_its_error():
    x = rows(40)
    value, error = linear_vae(draws=4000).log_prob_and_error(x, generator=generator())
    assert ((value - MultivariateNormal(MU, COVARIANCE).log_prob(x)).abs() < 6 * error).all()
    assert error.max() < 0.1


def test_log_prob_lies_below_on_average_and_rises_with_the_draws():
    x = rows(1).expand(3000, -1)
    exact = MultivariateNormal(MU, COVARIANCE).log_prob(x[0])
    elbo = -linear_vae().loss(x, generator=generator())
    few, many = (linear_vae(draws=k).log_prob(x, generator=generator()) for k in (2, 50))
    assert elbo.mean() < few.mean() < many.mean() < exact + 5.5 * many.std() / math.sqrt(len(x))
    assert (elbo.mean() - exact).abs() > 10 * (many.mean() - exact).abs()


def test_missing_cells_are_integrated_out():
    x = rows(30)
    x[torch.rand(30, D) < 0.5] = NAN
    x[0] = NAN
    value, error = linear_vae(draws=6000).log_prob_and_error(x, generator=generator())
    for row, v, e in zip(x, value, error, strict=True):
        seen = ~row.isnan()
        exact = MultivariateNormal(MU[seen], COVARIANCE[seen][:, seen]).log_prob(row[seen]) if seen.any() else torch.tensor(0.0)
        assert abs(v - exact) < 6 * e + 1e-12


@pytest.mark.parametrize("keep", [[0], [3, 1], [2, 0, 3]])
def test_a_marginal_is_the_gaussians(keep):
    model = linear_vae(draws=6000)
    x, part = rows(20)[:, keep], model.marginal(keep)
    value, error = part.log_prob_and_error(x, generator=generator())
    exact = MultivariateNormal(MU[keep], COVARIANCE[keep][:, keep]).log_prob(x)
    assert ((value - exact).abs() < 6 * error).all()
    assert part.domain.names == tuple(f"x{d}" for d in keep)
    assert part.density is Kind.BOUND


def test_a_marginal_of_a_marginal():
    x = rows(5)[:, [2]]
    twice = linear_vae().marginal([3, 2]).marginal([1]).log_prob(x, generator=generator())
    torch.testing.assert_close(twice, linear_vae().marginal([2]).log_prob(x, generator=generator()))


def test_pieces_change_the_draws_but_not_the_answer():
    x, model = rows(7), linear_vae(draws=2000)
    model.values_at_once = 400
    value, error = model.log_prob_and_error(x, generator=generator())
    assert value.shape == (7,)
    assert ((value - MultivariateNormal(MU, COVARIANCE).log_prob(x)).abs() < 6 * error).all()


def test_conditions_shift_the_density():
    model, b = linear_vae(draws=4000, context=1), torch.tensor([[1.0], [0.0], [-2.0], [0.5]])
    set_linear(model, torch.cat((W, b), 1))
    x, c = rows(10), torch.randn(10, 1)
    with torch.no_grad():
        model.inference.nets[0].inlet.weight[:L, D:] = -model.inference.nets[0].inlet.weight[:L, :D] @ b / 100
    value, error = model.log_prob_and_error(x, c, generator=generator())
    assert ((value - MultivariateNormal(MU, COVARIANCE).log_prob(x - c @ b.T)).abs() < 6 * error).all()
    drawn = model.sample(20_000, c[0], generator=generator())
    assert ((drawn.mean(0) - MU - b @ c[0]).abs() < 5.5 * drawn.std(0) / math.sqrt(len(drawn))).all()


# -- draws -------------------------------------------------------------------------------------------------------------


def test_samples_have_the_gaussians_moments():
    x = linear_vae().sample(40_000, generator=generator())
    root = torch.linalg.cholesky(COVARIANCE)
    white = torch.linalg.solve_triangular(root, (x - MU).T, upper=False).T
    assert (white.mean(0).abs() < 5.5 / math.sqrt(len(x))).all()
    second = white[:, :, None] * white[:, None, :]
    assert ((second.mean(0) - torch.eye(D)).abs() < 5.5 * second.std(0) / math.sqrt(len(x))).all()


def test_equal_generators_give_equal_answers():
    model, x = linear_vae(), rows(5)
    x[0, 1] = NAN
    for ask in (model.loss, model.log_prob, model.impute, model.complete):
        assert torch.equal(ask(x, generator=generator(3)), ask(x, generator=generator(3)))
        assert not torch.equal(ask(x, generator=generator(3)), ask(x, generator=generator(4)))
    assert torch.equal(model.sample(4, generator=generator(3)), model.sample(4, generator=generator(3)))


def test_no_rows_are_no_rows():
    model = linear_vae()
    assert model.sample(0).shape == (0, D)
    assert model.log_prob(torch.zeros(0, D)).shape == (0,)
    assert model.impute(torch.zeros(0, D)).shape == (0, D)


# -- the posterior -----------------------------------------------------------------------------------------------------


def test_impute_is_the_conditional_mean():
    model, (mean, covariance) = linear_vae(draws=500), conditional(OPEN[0])
    filled = model.impute(OPEN.expand(400, -1), generator=generator())
    assert torch.equal(filled[:, 1:3], OPEN[:, 1:3].expand(400, -1))
    missing = filled[:, [0, 3]]
    # A self-normalised mean is off by the order of variance / draws, which is added to the tolerance.
    slack = 3 * covariance.diagonal().sqrt() / 500
    assert ((missing.mean(0) - mean).abs() < 5.5 * missing.std(0) / math.sqrt(400) + slack).all()
    assert (missing.std(0) < 0.2 * covariance.diagonal().sqrt()).all()


def test_complete_draws_from_the_conditional():
    model, (mean, covariance) = linear_vae(draws=500), conditional(OPEN[0])
    missing = model.complete(OPEN.expand(8000, -1), generator=generator())[:, [0, 3]]
    sd = covariance.diagonal().sqrt()
    assert ((missing.mean(0) - mean).abs() < 5.5 * sd / math.sqrt(8000) + 0.02 * sd).all()
    off = missing - mean
    second = off[:, :, None] * off[:, None, :]
    assert ((second.mean(0) - covariance).abs() < 5.5 * second.std(0) / math.sqrt(8000) + 0.03 * sd.max() ** 2).all()


def test_a_conditional_is_the_gaussians_within_its_error():
    torch.manual_seed(1)
    mean, covariance = conditional(OPEN[0])
    predictive = linear_vae().conditional(OPEN[0])
    assert predictive.density is Kind.ESTIMATE
    assert predictive.domain.names == ("x0", "x3")
    x = MultivariateNormal(mean, covariance).sample((20,))
    value, error = predictive.log_prob_and_error(x)
    assert ((value - MultivariateNormal(mean, covariance).log_prob(x)).abs() < 6 * error + 0.01).all()
    sd = covariance.diagonal().sqrt() / math.sqrt(predictive.effective_draws())
    assert ((predictive.mean() - mean).abs() < 6 * sd).all()
    drawn = predictive.sample(20_000, generator=generator())
    assert ((drawn.mean(0) - predictive.mean()).abs() < 5.5 * drawn.std(0) / math.sqrt(20_000)).all()


def test_a_conditionals_own_answers_are_those_of_its_mixture():
    predictive = linear_vae().conditional(torch.tensor([NAN, 0.3, NAN, NAN]))
    x = torch.tensor([[0.4, NAN, 1.0]])
    joint = predictive.log_prob(x)
    torch.testing.assert_close(predictive.marginal([0, 2]).log_prob(x[:, [0, 2]]), joint)
    given = predictive.conditional(torch.tensor([0.4, NAN, NAN]))
    torch.testing.assert_close(given.marginal([1]).log_prob(x[:, [2]]) + predictive.marginal([0]).log_prob(x[:, [0]]), joint)
    torch.testing.assert_close(predictive.impute(x)[0, 1], predictive.conditional(x[0]).mean()[0])
    assert not predictive.complete(x.expand(3, -1), generator=generator()).isnan().any()


def test_evidence_of_probability_zero_is_refused():
    model = VAEConfig(latents=2, widths=(4,)).build(Domain.counts((3,), 2))
    with pytest.raises(Unavailable, match="probability 0"):
        model.conditional(torch.tensor([NAN, 0.5, 1.0]))


def test_levels_are_imputed_by_the_posterior_on_a_grid():
    """One latent: P(level | evidence) and the mean of a count by quadrature."""
    variables = (Variable("k", "categorical", levels=("a", "b", "c")), Variable("y", "real"), Variable("n", "count", lower=0, upper=5))
    model = VAEConfig(latents=1, widths=(8,), draws=4000, dropout=0.0).build(Domain(variables))
    torch.nn.init.normal_(model.generative.decoder.heads.weight, std=0.7)
    model = model.requires_grad_(False).eval()
    x = torch.stack((torch.full((9,), NAN), torch.linspace(-2, 2, 9), torch.full((9,), NAN)), dim=-1)
    z = torch.linspace(-9, 9, 4001)[:, None, None]
    columns, parameters = model.generative.decoder.columns, model.generative.parameters_at((z,))
    weight = (columns.log_prob(parameters, x).sum(-1) + model.generative.prior.log_prob(z)).softmax(0)
    level = torch.stack([columns.log_prob(parameters, torch.tensor([v, NAN, NAN])).exp()[..., 0] for v in (0.0, 1.0, 2.0)])
    p = (weight * level).sum(1)
    count = (weight * columns.mean(parameters)[..., 2]).sum(0)
    filled = model.impute(x, generator=generator())
    clear = p.topk(2, dim=0).values.diff(dim=0).abs()[0] > 0.1
    assert clear.any()
    assert torch.equal(filled[clear, 0], p.argmax(0)[clear].double())
    assert ((filled[:, 2] - count).abs() < 0.15).all()


def test_codes_are_the_encoders_mean_and_the_decoders_centre():
    model, x = linear_vae(), rows(3)
    posterior = torch.linalg.inv(torch.eye(L) + W.T @ W / SIGMA**2)
    torch.testing.assert_close(model.encode(x), (x - MU) @ W @ posterior / SIGMA**2)
    z = torch.randn(2, 3, L)
    torch.testing.assert_close(model.decode(z), MU + z @ W.T)


# -- learning ----------------------------------------------------------------------------------------------------------

EVERY_KIND = Domain(
    (
        Variable("real", "real"),
        Variable("rounded", "real", resolution=0.1),
        Variable("spiked", "real", spike=0.0),
        Variable("pixel", "count", lower=0, upper=16),
        Variable("count", "count", lower=0),
        Variable("bit", "count", lower=0, upper=1),
        Variable("ordinal", "ordinal", levels=("low", "mid", "high")),
        Variable("colour", "categorical", levels=("r", "g", "b", "k")),
        Variable("binary", "binary", levels=("no", "yes")),
        Variable("constant", "count", lower=3, upper=3),
    )
)


def every_kind(n=150, missing=0.0):
    u = torch.randn(n)
    spiked = torch.where(torch.rand(n) < 0.4, 0.0, torch.randn(n))
    columns = (
        u + 0.3 * torch.randn(n),
        (10 * (u + torch.randn(n))).round() / 10,
        spiked,
        (8 + 4 * u + torch.randn(n)).round().clamp(0, 16),
        torch.poisson((0.5 * u).exp() * 3),
        (u > 0).double(),
        (u + 1.5).round().clamp(0, 2),
        torch.randint(4, (n,)).double(),
        (torch.rand(n) < 0.3).double(),
        torch.full((n,), 3.0),
    )
    x = torch.stack(columns, dim=-1)
    x[torch.rand(x.shape) < missing] = NAN
    return x


def learned(model, x, steps=30, rate=3e-3):
    model.initialise(x)
    model.train()
    adam = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        loss = model.loss(x, generator=None).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_every_kind_of_column_is_learned_and_asked(missing, objective):
    x = every_kind(missing=missing)
    model = VAEConfig(widths=(16, 16), draws=16, objective=objective, loss_draws=1 if objective == "elbo" else 3).build(EVERY_KIND)
    model.initialise(x)
    before = model.loss(x, generator=generator()).mean()
    before.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    model = learned(model, x)
    assert model.loss(x, generator=generator()).mean() < before
    assert model.log_prob(x, generator=generator()).isfinite().all()
    drawn = model.sample(200, generator=generator())
    assert model.log_prob(drawn, generator=generator()).isfinite().all()
    holes = every_kind(20, missing=0.4)
    for filled in (model.impute(holes, generator=generator()), model.complete(holes, generator=generator())):
        assert filled.isfinite().all()
        assert torch.equal(filled[~holes.isnan()], holes[~holes.isnan()])
    levels = model.impute(torch.full((1, 10), NAN), generator=generator())[0, [6, 7, 8]]
    assert torch.equal(levels, levels.round())


def test_learning_begins_at_the_independent_model():
    x = every_kind()
    model = VAEConfig(widths=(16,), dropout=0.0).build(EVERY_KIND)
    model.initialise(x)
    columns = model.generative.decoder.columns
    alone = columns.log_prob(columns.fit(x, torch.ones(len(x), 1))[0], x).sum(-1)
    m, log_s = model.inference.top(x, None).m, model.inference.top(x, None).log_s
    torch.testing.assert_close(-model.loss(x), alone - DiagonalNormal(m, log_s).kl(StandardNormal(m.shape[-1])))


def test_what_is_known_of_the_training_rows_does_not_change_the_loss():
    x = every_kind()
    model = VAEConfig(widths=(16,), dropout=0.0).build(EVERY_KIND)
    model.initialise(x)
    sure = model.train().loss(x, generator=generator())
    torch.testing.assert_close(model.eval().loss(x, generator=generator()), sure)
    holes = every_kind(missing=0.5)
    assert model.loss(holes, generator=generator()).isfinite().all()


def test_the_linear_vae_finds_the_principal_components():
    """With sigma held, the maximum likelihood of a linear decoder is probabilistic PCA's (Tipping and Bishop)."""
    x = rows(300) @ torch.diag(torch.tensor([1.0, 1.5, 0.7, 1.0]))
    x = x.clamp(x.mean(0) - 2.5 * x.std(0), x.mean(0) + 2.5 * x.std(0))  # a linear encoder must not be bent at 3 deviations
    centred = x - x.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    w = vectors[:, -L:] * (values[-L:] - SIGMA**2).clamp_min(0).sqrt()
    best = MultivariateNormal(x.mean(0), w @ w.T + SIGMA**2 * torch.eye(D)).log_prob(x).mean()

    decoder, encoder = Decoder(L, Columns([Normal(floor=SIGMA)] * D), widths=()), GaussianEncoder(Domain.real(D), L, widths=())
    model = VAE(Generative(StandardNormal(L), decoder), encoder, Domain.real(D), loss_draws=16)
    encoder.features.fit(x)
    heads = decoder.heads
    with torch.no_grad():
        heads.bias[0::2], heads.bias[1::2] = x.mean(0), -40.0  # softplus(-40) = 0: the scale is the floor
        heads.weight.normal_(std=0.1)
    adam = torch.optim.Adam(model.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 800)
    for _ in range(800):
        loss = model.loss(x, generator=None).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    w = heads.weight.detach()[0::2]
    found = MultivariateNormal(heads.bias.detach()[0::2], w @ w.T + SIGMA**2 * torch.eye(D)).log_prob(x).mean()
    assert best - 1e-2 < found <= best + 1e-12
    model.loss_draws = 200
    bound = -model.eval().loss(x, generator=generator()).mean().detach()
    assert best - 0.05 < bound < best + 5e-3


def test_a_repeated_point_has_no_infinite_likelihood():
    x = torch.cat((torch.zeros(60, 2), torch.randn(60, 2)))
    model = learned(VAEConfig(widths=(16,), dropout=0.0).build(Domain.real(2)), x, steps=400, rate=0.02)
    floors = [law.floor for law in model.generative.decoder.columns.laws]
    assert all(floor > 0 for floor in floors)
    most = sum(-math.log(floor * math.sqrt(2 * math.pi)) for floor in floors)
    assert model.log_prob(x, generator=generator()).max() <= most


def test_dependence_is_learned():
    x = torch.randint(2, (400, 1)).double().expand(-1, 6).clone()
    flip = torch.rand(x.shape) < 0.05
    x = torch.where(flip, 1 - x, x)
    model = learned(VAEConfig(latents=2, widths=(16,), dropout=0.0).build(Domain.counts((6,), 2)), x, steps=250, rate=0.01)
    truth = math.log(2) + 6 * (-0.05 * math.log(0.05) - 0.95 * math.log(0.95))  # but for the overlap of the two kinds of row
    assert -model.log_prob(x, generator=generator()).mean() < truth + 0.3
    assert 6 * math.log(2) > truth + 1.5


# -- state -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_state_returns_whole(missing):
    x = every_kind(missing=missing)
    config = VAEConfig(widths=(8,), draws=4)
    model, again = learned(config.build(EVERY_KIND), x, steps=2), config.build(EVERY_KIND).eval()
    again.load_tensors({k: v.clone() for k, v in model.state_dict().items()})
    assert torch.equal(again.log_prob(x, generator=generator()), model.log_prob(x, generator=generator()))


def test_a_strangers_state_is_refused():
    config = VAEConfig(widths=(8,))
    tensors = config.build(EVERY_KIND).state_dict()
    with pytest.raises(FileError, match="expected"):
        VAEConfig(widths=(9,)).build(EVERY_KIND).load_tensors(tensors)


def test_gates_without_conditions_are_refused():
    with pytest.raises(PofxError, match="gates=True scales what z does by conditions: give given, the columns that are"):
        VAEConfig(gates=True).build(Domain.real(2))


@pytest.mark.parametrize("option", [{"latents": 0}, {"draws": 0}, {"dropout": 1.0}, {"objective": "best"}, {"widths": (0,)}, {"tilts": -1}])
def test_options_out_of_range_are_refused(option):
    from pofx.models.registry import family

    with pytest.raises(PofxError, match="vae"):
        family("vae").configure(option)
