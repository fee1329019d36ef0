"""The very deep VAE against a model small enough to be enumerated: 2 x 2 binary images.

Statistical tests compare at 5.5 standard errors or more: they fail by chance in fewer than 1e-6 of runs.
"""

import math
import sys

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import pofx
from pofx.cli.main import main
from pofx.distributions.columns import Columns
from pofx.distributions.discrete import Categorical
from pofx.domain import Domain, Variable
from pofx.domain import VariableKind as K
from pofx.errors import OptionError, PofxError, Unavailable
from pofx.learn import run
from pofx.models.latent.decoder import PixelHeads
from pofx.models.latent.deep import DeepConfig, Scale, TopDown, scales_of
from pofx.models.latent.inference import Encoder, Path
from pofx.models.latent.laws import Diagonal
from pofx.models.latent.vae import VAE
from pofx.models.registry import family
from pofx.nets.convolutional import Bottleneck

NAN = torch.nan
BINARY = Domain.counts((2, 2), 2)
WORLDS = torch.cartesian_prod(*[torch.arange(2, dtype=torch.float64)] * 4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def shaken(model, std=0.4):
    """Weights away from where they start."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=std)
    return model.requires_grad_(False).eval()


def tiny(draws=4000, domain=BINARY, **options):
    """Three levels: two of 2 x 2, one of 1 x 1."""
    options = {"blocks": "2x2,1x1", "width": 4, "inner": 3, "latents": 1, "draws": draws} | options
    model = DeepConfig(**options).build(domain).eval()
    shaken(model.generative)
    shaken(model.generative.decoder.heads, std=0.8)
    shaken(model.inference, std=0.2)  # far out, weights would be uneven and their errors large
    return model


def assert_sums_to_one(model):
    log_p, error = model.log_prob_and_error(WORLDS, generator=generator())
    p = log_p.exp()
    noise = (p * error).square().sum().sqrt()
    assert noise < 0.02
    assert (p.sum() - 1).abs() < 5.5 * noise
    return p, p * error


# -- the model ---------------------------------------------------------------------------------------------------------


def test_probabilities_of_all_images_sum_to_one_and_draws_follow_them():
    model, n = tiny(), 40_000
    p, error = assert_sums_to_one(model)
    assert p.std() > 0.03  # far from uniform
    drawn = model.sample(n, generator=generator(1))
    frequency = (drawn[:, None] == WORLDS).all(-1).double().mean(0)
    assert ((frequency - p).abs() < 5.5 * (p * (1 - p) / n + error.square()).sqrt()).all()


@pytest.mark.parametrize("path", [Path.TOP_DOWN, Path.LADDER])
def test_any_inference_serves_it(path):
    """The model knows no encoder: one without convolutions, which sees no state of the path, gives the same p."""
    deep = tiny(draws=8000)
    encoder = shaken(Encoder(BINARY, [Diagonal(size) for size in deep.generative.sizes], widths=(4,), path=path), std=0.1)
    other = VAE(deep.generative, encoder, BINARY, draws=8000)
    p, error = assert_sums_to_one(other.eval())
    q, other_error = assert_sums_to_one(deep)
    assert ((p - q).abs() < 5.5 * (error.square() + other_error.square()).sqrt()).all()


def test_what_drawing_finds_is_what_the_model_says():
    model, x = tiny(), WORLDS[:6]
    drawn = model.inference.draw(model.generative, x, None, 3, generator=generator())
    z = drawn.latents
    assert [level.shape[-1] for level in z] == [4, 4, 1] == list(model.generative.sizes)
    for told, asked in zip(drawn.log_prior(), model.generative.log_prior(z), strict=True):
        assert_close(told, asked)
    for told, asked in zip(drawn.log_q(), model.inference.log_prob(model.inference.see(x), z), strict=True):
        assert_close(told, asked)
    assert_close(drawn.parameters(), model.generative.parameters_at(z))
    for level in range(3):
        assert_close(model.generative.prior_of(level, z).log_prob(z[level]), drawn.log_prior()[level])


def test_the_divergence_of_each_block_is_its_closed_form():
    model, draws = tiny(), 20_000
    drawn = model.inference.draw(model.generative, WORLDS[:4], None, draws, generator=generator())
    assert len(drawn.kl) == 3
    for log_q, log_p, kl in zip(drawn.log_q(), drawn.log_prior(), drawn.kl, strict=True):
        each = log_q - log_p
        assert (kl > 1e-3).all()
        assert ((each.mean(0) - kl).abs() < 5.5 * each.std(0) / math.sqrt(draws)).all()


def test_it_starts_as_independent_pixels_with_a_normal_of_every_level():
    x = WORLDS[torch.tensor([0, 1, 3, 3, 7, 9])]
    model = DeepConfig(blocks="2x2,1x1").build(BINARY).eval()
    model.initialise(x)
    columns = model.generative.decoder.columns
    latents = model.generative.draw_latents((50,), like=x, generator=generator())
    parameters = model.generative.parameters_at(latents)
    assert_close(parameters, columns.fit(x, x.new_ones(6, 1))[0].expand(50, -1))
    for z, log_p in zip(latents, model.generative.log_prior(latents), strict=True):
        assert_close(log_p, torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1))


@pytest.mark.parametrize("scaled", [True, False])
def test_the_state_starts_as_large_whatever_the_depth(scaled):
    def variance(blocks):
        path = TopDown([Scale((4, 4), blocks)], 32, 16, 4).requires_grad_(False)
        for block in path.blocks if not scaled else []:
            block.enter.weight.mul_(blocks**0.5)
            block.rest.widen.weight.mul_(blocks**0.5)
        z = [torch.randn(100, size) for size in (*path.sizes, path.top)]
        return path.walk((100,), lambda level, seen, law: z[level]).var()

    torch.manual_seed(0)
    ratio = variance(40) / variance(4)
    assert 0.5 < ratio < 2 if scaled else ratio > 8


def test_a_bottleneck_keeps_the_size_of_what_it_is_told_to():
    torch.manual_seed(0)
    v = torch.randn(50, 64, 8, 8)
    deviations = [Bottleneck(64, 64, 64, (8, 8), scale)(v).std().item() for scale in (0.0, 0.5, 1.0)]
    assert deviations[0] == 0
    assert 0.4 < deviations[2] < 1.6
    assert deviations[1] == pytest.approx(deviations[2] / 2, rel=0.2)


# -- pixels ------------------------------------------------------------------------------------------------------------


def test_heads_are_one_by_one_convolutions_a_law():
    """Two colours of 2 x 2 whose pixels differ in their laws."""
    few, many = Categorical(3, numbers=True), Categorical(9, numbers=True)
    laws = [few, few, many, few, many, many, few, many]
    heads = PixelHeads(Columns(laws), range(8), (2, 2, 2), 5, tilts=4)
    for p in heads.parameters():
        torch.nn.init.normal_(p)
    h = torch.randn(3, 5, 2, 2)
    parameters = heads(h)
    at = {law: i for i, law in enumerate(dict.fromkeys(laws))}
    for d, law in enumerate(laws):
        own = h[:, :, d % 4 // 2, d % 2] @ heads.weights[at[law]][d // 4].T
        tilt = getattr(heads, f"tilt{at[law]}")
        positions = heads.columns.select([d])[1]
        assert_close(parameters[:, positions], heads.bias[positions] + (own if tilt is None else own @ tilt))
    keep = [6, 2, 4]
    assert_close(heads.marginal(keep)(h), parameters[:, heads.columns.select(keep)[1]])


@pytest.mark.parametrize(
    "domain",
    [
        Domain.counts((3, 4, 2), 256),
        Domain(Domain.real(12).variables, (3, 4)),
        Domain(
            (
                Variable("a", K.BINARY, levels=("no", "yes")),
                Variable("b", K.COUNT, lower=0),
                Variable("c", K.REAL),
                Variable("d", K.POSITIVE),
            ),
            (2, 2),
        ),
    ],
    ids=["colours", "reals", "mixed"],
)
def test_every_kind_of_pixel_learns_and_draws(domain):
    x = torch.randint(0, 2, (20, len(domain))).double()
    x[:, -1] += 1
    model = DeepConfig(width=4, latents=1, draws=3).build(domain)
    model.initialise(x)
    loss = model.loss(x, generator=generator())
    loss.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.eval().sample(3, generator=generator()).shape == (3, len(domain))
    assert model.log_prob(x).isfinite().all()


# -- missing pixels ----------------------------------------------------------------------------------------------------


def test_missing_pixels_are_summed_out_and_filled_in_by_the_conditional():
    model = tiny(draws=8000)
    p, error = assert_sums_to_one(model)
    x = torch.tensor([[1.0, NAN, 0.0, NAN], [NAN, NAN, NAN, 1.0], [NAN, 0.0, 1.0, 1.0], [NAN] * 4])
    log_p, log_error = model.log_prob_and_error(x, generator=generator(2))
    filled = model.impute(x, generator=generator(3))
    for row, value, off, full in zip(x, log_p, log_error, filled, strict=True):
        agree = ((row == WORLDS) | row.isnan()).all(-1)
        slack = 5.5 * (error[agree].square().sum() + (value.exp() * off).square()).sqrt()
        assert (p[agree].sum() - value.exp()).abs() < slack
        assert (full - (p[agree, None] * WORLDS[agree]).sum(0) / p[agree].sum()).abs().max() < 0.03
    assert model.missing is model.density


def test_a_marginal_is_the_sum_over_the_others():
    model = tiny(draws=8000)
    p, error = assert_sums_to_one(model)
    for keep, twice in (([3, 0], None), ([2, 3, 0], [1, 2])):
        part = model.marginal(keep) if twice is None else model.marginal(keep).marginal(twice)
        log_p, off = part.log_prob_and_error(torch.tensor([[1.0, 0.0]]), generator=generator(2))
        agree = (WORLDS[:, 3] == 1) & (WORLDS[:, 0] == 0)
        assert (log_p.exp() - p[agree].sum()).abs() < 5.5 * (error[agree].square().sum() + (log_p.exp() * off).square()).sqrt()


# -- options -----------------------------------------------------------------------------------------------------------


def test_blocks_are_resolutions_and_counts():
    assert scales_of((8, 8), "8x4,4x8") == (Scale((8, 8), 4), Scale((4, 4), 8))
    assert [s.sides for s in scales_of((28, 28), "28x2,14x3,7x3,4x2,1x1")] == [(28, 28), (14, 14), (7, 7), (4, 4), (1, 1)]
    assert [s.sides for s in scales_of((10, 28), None)] == [(10, 28), (5, 14), (3, 7), (2, 4), (1, 1)]
    assert scales_of((1, 1), None) == (Scale((1, 1), 2),)


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        ("2x0,1x1", "'2x0' is not RESOLUTIONxLEVELS"),
        ("2", "'2' is not RESOLUTIONxLEVELS"),
        ("", "'' is not RESOLUTIONxLEVELS"),
        ("4x1,1x1", "begin at resolution 4, but the longer side of the image has 2 pixels"),
        ("2x1,2x1", "coarser one each time, got 2 after 2"),
        ("1x1,2x2", "begin at resolution 1"),
    ],
)
def test_blocks_that_are_none_are_refused(blocks, says):
    with pytest.raises(OptionError, match=says):
        family("vdvae").configure({"blocks": blocks}).build(BINARY)


def test_rows_that_are_no_image_are_refused():
    with pytest.raises(Unavailable, match="it learns images"):
        DeepConfig().build(Domain.counts((4,), 2))
    assert DeepConfig(shape=(2, 2)).build(Domain.counts((4,), 2)).generative.sizes == (16, 16, 4, 4)
    with pytest.raises(OptionError, match="have 6 numbers, got 4 columns"):
        DeepConfig(shape=(2, 3)).build(Domain.counts((4,), 2))


def test_the_doubly_reparameterised_gradient_is_refused():
    model = DeepConfig(objective="iwae", gradient="dreg", loss_draws=3).build(BINARY)
    with pytest.raises(PofxError, match="gradient='plain'"):
        model.train().loss(WORLDS)


# -- learning and files ------------------------------------------------------------------------------------------------


def bars(n):
    """8 x 8 images of one bright row or column, with noise."""
    g = np.random.default_rng(0)
    x = (g.random((n, 8, 8)) < 0.05).astype(np.uint8)
    at, upright = g.integers(8, size=n), g.random(n) < 0.5
    for image, i, turn in zip(x, at, upright, strict=True):
        (image.T if turn else image)[i] = 1
    return x


def test_it_comes_back_from_its_file(tmp_path):
    x = bars(40)
    p = pofx.fit(x, "vdvae", blocks="8x1,4x1,1x1", width=4, latents=1, draws=3, max_epochs=2)
    p.save(tmp_path / "p.safetensors")
    again = pofx.open(tmp_path / "p.safetensors")
    a, b = (m.model.log_prob(torch.tensor(x).flatten(1).float(), generator=generator()) for m in (p, again))
    assert torch.equal(a, b)
    assert p.sample(2).shape == (2, 8, 8)
    assert "skipped" in p.record.history[-1]


def test_the_command_line_fits_it(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "bars.npy", bars(40))
    settings = ("--set", "blocks=8x1,2x2", "--set", "width=4", "--set", "max_epochs=1", "--set", "draws=2")
    arguments = ("fit", tmp_path / "bars.npy", "--family", "vdvae", *settings, "-o", tmp_path / "bars.safetensors")
    monkeypatch.setattr(sys, "argv", ["pofx", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert pofx.open(tmp_path / "bars.safetensors").model.noun
    monkeypatch.setattr(sys, "argv", ["pofx", *map(str, arguments[:4]), "--set", "blocks=8x0", "-o", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code
    assert "'8x0' is not RESOLUTIONxLEVELS" in capsys.readouterr().err


@pytest.mark.slow
def test_it_learns_what_pixels_have_in_common():
    """The entropy of a bar is known: log 16, and the noise beside it."""
    x = bars(2000)
    model = DeepConfig(blocks="8x1,4x1,1x2", width=16, latents=1, draws=50).build(Domain.counts((8, 8), 2))
    rows = torch.tensor(x).flatten(1).double()
    run(model, rows, config=DeepConfig(learning_rate=0.005, max_epochs=30))
    h = -(0.05 * math.log(0.05) + 0.95 * math.log(0.95))
    truth = math.log(16) + 56 * h
    columns = model.generative.decoder.columns
    independent = -columns.log_prob(columns.fit(rows, torch.ones(2000, 1))[0], rows).sum(-1).mean()
    found = -model.eval().log_prob(rows[:300], generator=generator()).mean()
    assert independent > truth + 15
    assert found < truth + 4
