"""Diagnostics of latents against closed forms: a linear VAE at its optimum, encoders set by hand, normals whose overlap is known.

Statistical tests compare at 5.5 standard errors or more: they fail by chance in fewer than 1e-6 of runs.
"""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from tests.test_cli import pofx_
from torch.distributions import Independent, Normal, kl_divergence

import pofx
from pofx.distributions.base import inverse_positive
from pofx.distributions.columns import Columns
from pofx.distributions.continuous import Normal as NormalLaw
from pofx.domain import Domain
from pofx.errors import DataError, OptionError, Unavailable
from pofx.learn import Record
from pofx.models.latent.aggregated import aggregated_posterior, gap
from pofx.models.latent.decoder import Decoder
from pofx.models.latent.diagnostics import activity, diagnose, overlap, plane, unit_kl, weights
from pofx.models.latent.generative import Generative
from pofx.models.latent.inference import Draws, GaussianEncoder, Inference
from pofx.models.latent.laws import DiagonalNormal
from pofx.models.latent.priors import Mixture, StandardNormal
from pofx.models.latent.vae import VAE
from pofx.report.diagnoses import write_picture
from pofx.types import Kind

PHI = torch.special.ndtr


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Fixed(Inference):
    """q(z | x) = N(m, diag s^2) with one m and s for each row, whatever stands in it; the row's first cell says which."""

    def __init__(self, m, s, says=True):
        super().__init__()
        self.m, self.s, self.says = m, s, says

    def draw(self, model, x, c, draws, *, generator=None):
        n = x[:, 0].long()
        law = Independent(Normal(self.m[n], self.s[n]), 1)
        z = self.m[n] + self.s[n] * torch.randn(draws, len(n), self.m.shape[1], generator=generator)
        density = (lambda latents: (law.log_prob(latents[0]),)) if self.says else None
        kl = DiagonalNormal(self.m[n], self.s[n].log()).kl(model.prior)
        return Draws((z,), lambda: (law.log_prob(z),), (kl,), None, density)

    def mean(self, model, x, c):
        return (self.m[x[:, 0].long()],)

    def marginal(self, keep):
        raise NotImplementedError


def generative(latents, prior=None):
    return Generative(prior or StandardNormal(latents), Decoder(latents, Columns([NormalLaw()]), widths=()))


def which(n):
    return torch.arange(n, dtype=torch.float64)[:, None]


def even(x, c=None):
    return torch.zeros(50, len(x))


# -- a linear VAE at its optimum ---------------------------------------------------------------------------------------

EIGENVALUES = torch.tensor([4.0, 2.0, 1.2, 0.9, 0.5], dtype=torch.float64)
SIGMA_2 = 1.0  # between the third and the fourth


def ppca_vae(active=None, draws=64):
    """x = W z + sigma e with W at the maximum likelihood, W_k = sqrt(lambda_k - sigma^2)_+ u_k, and the exact posterior as q."""
    d = len(EIGENVALUES)
    u = torch.linalg.qr(torch.randn(d, d, generator=generator(3)))[0]
    size = (EIGENVALUES - SIGMA_2).clamp_min(0).sqrt()
    if active is not None:
        size[active:] = 0
    w = u * size
    decoder, q = Decoder(d, Columns([NormalLaw()] * d), widths=()), GaussianEncoder(Domain.real(d), d, widths=())
    precision = 1 + size.square() / SIGMA_2
    with torch.no_grad():
        decoder.heads.weight[0::2], decoder.heads.bias[0::2] = w, 0.0
        decoder.heads.weight[1::2], decoder.heads.bias[1::2] = 0.0, inverse_positive(torch.tensor(math.sqrt(SIGMA_2)))
        q.features.scale.fill_(100.0)
        q.nets[0].inlet.weight[:d], q.nets[0].inlet.weight[d:] = 100 * (w / SIGMA_2 / precision).T, 0.0
        q.nets[0].inlet.bias[:d], q.nets[0].inlet.bias[d:] = 0.0, -0.5 * precision.log()
    model = VAE(Generative(StandardNormal(d), decoder), q, Domain.real(d), draws=draws).requires_grad_(False).eval()
    x = torch.randn(1500, d, generator=generator(4)) * EIGENVALUES.sqrt() @ u.T
    return model, x, precision


def test_a_unit_is_active_where_the_eigenvalue_is_above_the_noise():
    model, x, precision = ppca_vae()
    found = model.diagnose(x, generator=generator())
    assert found.levels[0].idle == [4, 5]
    assert found.levels[0].active == int((EIGENVALUES > SIGMA_2).sum())
    # Var_x(E[z_k | x]) = lambda_k w_k^2 / (w_k^2 + sigma^2)^2 = 1 - sigma^2 / lambda_k: here of 1500 rows.
    exact = model.inference.mean(model.generative, x, None)[0].var(0, correction=0)
    error = 5.5 * (2 * (1 / precision) * (exact + 1 / precision) / 20 / len(x)).sqrt()
    assert ((torch.tensor(found.levels[0].activity) - exact).abs() < error).all()
    assert torch.allclose(exact[:3], 1 - SIGMA_2 / EIGENVALUES[:3], atol=6 * math.sqrt(2 / 1500))
    assert "2 of 5 units carry nothing: 4, 5; latents=3 would do" in found.warnings


def test_the_exact_posterior_has_even_weights_and_the_prior_no_holes():
    model, x, _ = ppca_vae()
    found = model.diagnose(x, generator=generator())
    assert found.weights.median > 63.9
    assert (found.weights.poor, found.weights.heavy) == (0, 0)
    # Rows of p(x) have codes of p(z): the gap is 0 but for the mixture's being of 1500 rows.
    assert found.overlap.resolved
    assert found.overlap.gap < 0.3
    assert found.overlap.holes < 0.1
    assert found.plane.holes < 0.01
    assert not any("collapsed" in warning or "holes" in warning or "few" in warning for warning in found.warnings)


def test_a_collapsed_posterior_is_said_in_words_and_a_healthy_one_is_not():
    dead, x, _ = ppca_vae(active=0)
    found = dead.diagnose(x, generator=generator())
    assert found.kl == 0
    assert len(found.warnings) == 1
    assert all(word in found.warnings[0] for word in ("the posterior has collapsed: KL 0 nats", "beta_warmup=", "free_bits="))
    assert "Warning: the posterior has collapsed" in str(found)
    alive, x, _ = ppca_vae(active=2)
    assert not any("collapsed" in warning for warning in alive.diagnose(x, generator=generator()).warnings)


# -- units -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", [3, 64])
def test_activity_and_kl_of_units_are_the_closed_forms_whatever_the_number_of_draws(draws):
    n, prior = 4000, Normal(torch.tensor([0.0, 0.5, 0.0]), torch.tensor([1.0, 2.0, 1.0]))
    m = torch.randn(n, 3, generator=generator(1)) * torch.tensor([1.0, 0.3, 0.0])
    s = torch.tensor([0.3, 1.0, 1.0]) * (0.8 + 0.4 * torch.rand(n, 3, generator=generator(2)))
    z = m + s * torch.randn(draws, n, 3, generator=generator(3))
    exact = kl_divergence(Normal(m, s), prior).mean(0)
    parts = torch.stack([unit_kl(part, prior_draws(prior)) for part in z.split(n // 20, dim=1)])
    assert ((parts.mean(0) - exact).abs() < 5.5 * parts.std(0) / math.sqrt(20) * 1.6 + 1e-3).all()
    noise = (4 * m.var(0) * s.square().mean(0) / draws + 2 * s.pow(4).mean(0) / draws**2 * (1 + 1 / (draws - 1))) / n
    assert ((activity(z) - m.var(0, correction=0)).abs() < 5.5 * noise.sqrt()).all()


def prior_draws(prior):
    return prior.mean + prior.stddev * torch.randn(200_000, 3, generator=generator(4))


def test_kl_of_a_level_and_its_units_are_those_of_set_encoders():
    m, s = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [0.5, 0.0]]), torch.tensor([[0.5, 1.0], [0.4, 0.9], [0.3, 1.1]])
    found = diagnose(generative(2), Fixed(m, s), which(3), weigh=even, generator=generator())
    exact = kl_divergence(Normal(m, s), Normal(0.0, 1.0))
    assert found.levels[0].kl == pytest.approx(float(exact.sum(1).mean()), abs=1e-12)
    assert found.levels[0].error == pytest.approx(float(exact.sum(1).std()) / math.sqrt(3), abs=1e-12)
    np.testing.assert_allclose(found.levels[0].unit_kl, exact.mean(0), atol=0.04)  # 10,923 draws a row, 32,768 of the prior
    assert sum(found.levels[0].unit_kl) == pytest.approx(found.kl, abs=0.06)


def test_without_a_closed_form_the_kl_is_by_draws():
    prior = Mixture(2, 1)
    with torch.no_grad():
        prior.mean.copy_(torch.tensor([[0.4, -0.2]]))
        prior.log_scale.copy_(torch.tensor([[0.2, -0.1]]))
    m, s = torch.randn(400, 2, generator=generator(1)), torch.full((400, 2), 0.6)
    found = diagnose(generative(2, prior).requires_grad_(False), Fixed(m, s), which(400), weigh=even, generator=generator())
    exact = kl_divergence(Normal(m, s), Normal(prior.mean[0], prior.log_scale[0].exp())).detach()
    assert abs(found.levels[0].kl - float(exact.sum(1).mean())) < 6 * 1.5 / math.sqrt(400 * 64)
    np.testing.assert_allclose(found.levels[0].unit_kl, exact.mean(0), atol=0.05)


# -- the aggregated posterior against the prior ------------------------------------------------------------------------


def test_holes_of_a_narrower_normal_are_its_tails():
    """q(z) = N(0, s^2) against N(0, 1): q / p < 1/20 where z^2 > 2 log(20 / s) / (1 / s^2 - 1)."""
    s = 0.5
    far = math.sqrt(2 * math.log(20 / s) / (1 / s**2 - 1))
    exact = float(2 * PHI(torch.tensor(-far)))
    found = overlap(generative(1), Fixed(torch.zeros(1, 1), torch.full((1, 1), s)), which(1), points=40_000, generator=generator())
    assert abs(found.holes - exact) < 5.5 * math.sqrt(exact / 40_000)
    assert found.beyond == 0  # p / q >= s everywhere
    assert abs(found.gap - float(kl_divergence(Normal(0.0, s), Normal(0.0, 1.0)))) < 5.5 * found.error


def test_what_lies_beyond_the_prior_is_the_half_space_of_a_shift():
    """q(z) = N((a, 0), I) against N(0, I): log q / p = a z_1 - a^2 / 2, so both masses are Phi(-(log 20) / a - a / 2 + ...)."""
    a = 2.5
    found = overlap(generative(2), Fixed(torch.tensor([[a, 0.0]]), torch.ones(1, 2)), which(1), points=40_000, generator=generator())
    exact = float(PHI(torch.tensor(a / 2 - math.log(20) / a)))  # the same from both sides: a shift is symmetric
    for mass in (found.holes, found.beyond):
        assert abs(mass - exact) < 5.5 * math.sqrt(exact / 40_000)
    assert abs(found.gap - a**2 / 2) < 5.5 * found.error


def test_the_gap_is_that_of_the_aggregated_posterior():
    model, x, _ = ppca_vae()
    x, prior = 2 * x[:200], model.generative.prior
    found = overlap(model.generative, model.inference, x, points=8000, generator=generator(1))
    other = gap(aggregated_posterior(model.inference, x), prior, draws=8000, like=x, generator=generator(2))
    assert abs(found.gap - other.value) < 5.5 * math.hypot(found.error, other.error)
    paid = diagnose(model.generative, model.inference, x, weigh=even, generator=generator(3)).kl
    assert abs(found.gap + found.information - paid) < 5.5 * found.error


def test_codes_of_few_rows_are_islands_and_are_called_so():
    m, s = 3 * torch.randn(20, 4, generator=generator(1)), torch.full((20, 4), 0.05)
    found = diagnose(generative(4), Fixed(m, s), which(20), weigh=even, generator=generator())
    assert found.overlap.information == pytest.approx(math.log(20), abs=0.05)  # all that 20 rows can tell
    assert not found.overlap.resolved
    assert "islands" in str(found)
    assert found.numbers()["gap"] is None


def test_a_q_that_says_no_density_has_no_gap():
    m = torch.randn(50, 2, generator=generator(1))
    found = diagnose(generative(2), Fixed(m, torch.ones(50, 2), says=False), which(50), weigh=even, generator=generator())
    assert found.overlap is None
    assert "q says its density only where it drew" in str(found)


# -- the plane ---------------------------------------------------------------------------------------------------------


def test_holes_of_the_plane_are_those_of_its_densities():
    """Codes N((1.5, 0), diag(1/4, 1/4)) in 2 of 3 directions, against N(0, I): cells against the integral over a fine grid."""
    q = torch.tensor([1.5, 0.0, 0.0]) + torch.tensor([0.8, 0.5, 0.01]) * torch.randn(40_000, 3, generator=generator(1))
    p = torch.randn(40_000, 3, generator=generator(2))
    found = plane(q, p)
    axis = torch.linspace(-5, 5, 401)
    z = torch.cartesian_prod(axis, axis)
    log_p = Normal(0.0, 1.0).log_prob(z).sum(-1)
    log_q = Normal(torch.tensor([1.5, 0.0]), torch.tensor([0.8, 0.5])).log_prob(z).sum(-1)
    mass = log_p.exp() * (axis[1] - axis[0]) ** 2
    exact = float(mass[log_q - log_p < math.log(1 / 20)].sum())
    assert 0.3 < exact < 0.9
    assert abs(found.holes - exact) < 0.06  # cells are a third of a deviation wide, and their rarest are not judged
    np.testing.assert_allclose(found.shares, np.array([0.64, 0.25]) / 0.8901, atol=0.02)
    assert 0.99 < found.prior.sum() <= 1
    assert 0.99 < found.codes.sum() <= 1


def test_equal_laws_have_no_holes_in_any_number_of_dimensions():
    for latents in (1, 2, 5):
        q, p = torch.randn(2, 30_000, latents, generator=generator(latents))
        found = plane(q, p)
        assert len(found.edges) == min(2, latents)
        assert found.holes == found.beyond == 0


def test_what_is_beyond_is_what_the_other_would_call_a_hole():
    q, p = torch.tensor([2.0]) + 0.3 * torch.randn(30_000, 1, generator=generator(1)), 0.3 * torch.randn(30_000, 1, generator=generator(2))
    found = plane(q, p)
    assert min(found.holes, found.beyond) > 0.95


# -- weights -----------------------------------------------------------------------------------------------------------


def test_weights_are_counted_by_row():
    log_w = torch.zeros(100, 4)
    log_w[0, 0] = 50.0  # one draw has it all
    found = weights(log_w)
    assert found.draws == 100
    assert found.poor == 0.25
    assert found.heavy == 0.25
    assert found.median == pytest.approx(100)


# -- from outside ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned():
    """A short fit of a table with four columns that share one cause."""
    rng = np.random.default_rng(0)
    cause = rng.normal(size=(400, 1))
    frame = pd.DataFrame(2 * cause + 0.4 * rng.normal(size=(400, 4)), columns=list("abcd")).round(3)
    return frame, pofx.fit(frame, "vae", latents=2, widths=(16,), draws=16, max_epochs=25, progress=False, seed=0)


def test_the_record_of_a_fit_carries_what_the_latents_are(learned):
    _, p = learned
    found = p.record.diagnosis
    assert found["units"] == [2]
    assert 1 <= found["active"][0] <= 2
    assert found["kl"][0] > 0.5
    assert f"{found['active'][0]} of 2 units active" in p.record.summary()
    again = Record.from_json(json.loads(json.dumps(p.record.to_json())))
    assert again.diagnosis == found
    assert again.summary() == p.record.summary()
    assert not any("collapsed" in warning for warning in p.record.warnings)


def test_a_collapse_is_told_at_the_end_of_a_fit():
    noise = pd.DataFrame(np.random.default_rng(1).normal(size=(200, 2)), columns=["a", "b"])
    p = pofx.fit(noise, "vae", latents=2, widths=(8,), draws=4, max_epochs=20, beta=50.0, learning_rate=0.02, progress=False)
    assert any("collapsed" in warning for warning in p.record.warnings)
    assert "\nWarning: the posterior has collapsed" in p.record.summary()


def test_families_without_latents_refuse_in_one_sentence_and_keep_an_empty_record(learned):
    frame, _ = learned
    p = pofx.fit(frame, "gaussian", progress=False)
    assert p.record.diagnosis == {}
    assert p.model.answers("diagnose") is Kind.NONE
    with pytest.raises(Unavailable, match=r"has no latents to diagnose: .*families that answer it: vae"):
        p.diagnose(frame)


def test_no_rows_and_missing_cells_and_a_marginal(learned):
    frame, p = learned
    with pytest.raises(DataError, match="one or more rows"):
        p.diagnose(frame[:0])
    holes = frame.mask(np.random.default_rng(2).random(frame.shape) < 0.3)
    assert p.diagnose(holes).rows == 400
    one = p.diagnose(frame[:1])
    assert one.rows == 1
    assert one.levels[0].error == math.inf
    assert json.dumps(one.numbers())
    assert p.marginal("a", "c").diagnose(frame[["a", "c"]]).rows == 400
    assert str(p.diagnose(frame, seed=1)) == str(p.diagnose(frame, seed=1))


def test_a_conditional_vae_is_diagnosed_at_its_conditions(learned):
    frame, _ = learned
    p = pofx.fit(frame, "vae", given="a", latents=2, widths=(8,), draws=8, max_epochs=2, progress=False)
    assert p.diagnose(frame).rows == len(frame)


def test_the_command_prints_table_and_warnings_and_draws(learned, tmp_path):
    frame, p = learned
    frame.to_csv(tmp_path / "rows.csv", index=False)
    p.save(tmp_path / "p.safetensors")
    told = pofx_("diagnose", tmp_path / "p.safetensors", tmp_path / "rows.csv", "--plot", tmp_path / "codes.svg")
    assert told.strip() == str(pofx.open(tmp_path / "p.safetensors").diagnose(frame))
    assert (tmp_path / "codes.svg").read_text().lstrip().startswith("<?xml")
    for name, begins in (("codes.png", b"\x89PNG"), ("codes.html", b"<!doctype html>")):
        write_picture(p.diagnose(frame), tmp_path / name, p.domain)
        assert (tmp_path / name).read_bytes().startswith(begins)
    refused = pofx_("diagnose", tmp_path / "p.safetensors", tmp_path / "rows.csv", "--plot", tmp_path / "codes.gif", code=2)
    assert "a picture ends in .svg, .png, .html" in refused
    with pytest.raises(OptionError, match=r"codes\.gif"):
        write_picture(p.diagnose(frame), tmp_path / "codes.gif", p.domain)


def test_holes_are_hatched_where_they_are(tmp_path):
    m = torch.tensor([[2.0, 0.0]])
    found = diagnose(generative(2), Fixed(m, torch.full((1, 2), 0.5)), which(1), weigh=even, generator=generator())
    assert any("holes of the plane" in warning for warning in found.warnings)
    write_picture(found, tmp_path / "codes.svg", Domain.real(2))
    hatched = (tmp_path / "codes.svg").read_text().count("url(#h")
    assert hatched == 2 * int(found.plane.in_holes.sum() + found.plane.is_beyond.sum())
