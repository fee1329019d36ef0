"""The probability flow against closed forms: the likelihood and the codes of normals and of their mixtures."""

import pytest
import torch

from pofx.distributions.gaussian import Gaussians
from pofx.errors import OptionError
from pofx.models.diffusion.exact import ExactDenoiser
from pofx.samplers import decode, encode, ode_log_prob, probability_flow
from pofx.transforms.ode import DormandPrince, RungeKutta

LOW, HIGH = 2e-3, 80.0


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def mixture():
    """Centred."""
    g = seeded(0)
    root, mean = 0.25 * torch.randn(4, 2, 2, generator=g), 1.2 * torch.randn(4, 2, generator=g)
    weight = torch.randn(4, generator=g).softmax(0)
    p = ExactDenoiser(weight, mean, root @ root.mT + 0.01 * torch.eye(2))
    return ExactDenoiser(weight, mean - p.moments()[0], p.covariance)


def matched(p):
    """N(m, C + s_max^2 I)."""
    m, c = p.moments()
    law = Gaussians(m[None], (c + HIGH**2 * torch.eye(p.dim))[None])
    return lambda y: law.log_prob(y)[:, 0]


@pytest.mark.parametrize("method", [None, RungeKutta(64)])
def test_the_likelihood_of_a_mixture(method):
    """To 1e-3 nats of the density at s_min, and of the data themselves, whose least scale is 0.1."""
    p = mixture()
    x = p.sample(40, generator=seeded())
    answer = ode_log_prob(p, x, s_min=LOW, s_max=HIGH, log_prior=matched(p), method=method)
    assert (answer.value - p.log_prob(x, LOW)).abs().max() < 1e-3
    assert (answer.value - p.log_prob(x)).abs().max() < 3e-3
    assert torch.equal(answer.error, torch.zeros(40))
    assert answer.evaluations.max() < 600
    assert not answer.value.requires_grad


def test_the_likelihood_of_a_gaussian_is_exact():
    """The prior is exact, too: only the tolerance is left, and D may be differentiated as often as need be."""
    root = torch.randn(3, 3, generator=seeded())
    p = ExactDenoiser(torch.ones(1), torch.tensor([[1.0, -2.0, 0.5]]), (root @ root.mT)[None])
    x = p.sample(3, generator=seeded()).requires_grad_()
    answer = ode_log_prob(p, x, s_min=0.01, s_max=HIGH, log_prior=matched(p), method=DormandPrince(1e-7, 1e-7))
    assert torch.allclose(answer.value, p.log_prob(x, 0.01), atol=1e-4)
    (score,) = torch.autograd.grad(answer.value.sum(), x)
    assert torch.allclose(score, p.score(x, 0.01), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_probes_estimate_the_likelihood_with_an_honest_error():
    """z of 16 probes is near t_15, variance 15/13: over 100 rows its mean is within 5.5 of 0.11 and its mean square in (0.4, 3), 1e-6."""
    p, method = mixture(), RungeKutta(48)
    x = p.sample(100, generator=seeded())
    answer = ode_log_prob(p, x, s_min=LOW, s_max=HIGH, log_prior=matched(p), trace=16, method=method, generator=seeded())
    exact = ode_log_prob(p, x, s_min=LOW, s_max=HIGH, log_prior=matched(p), method=method)
    z = (answer.value - exact.value) / answer.error
    assert abs(float(z.mean())) < 5.5 * 0.11
    assert 0.4 < float(z.square().mean()) < 3


def test_the_likelihood_of_a_row_alone():
    """Probes and all: the first row's generator stands where that of the batch does."""
    p = mixture()
    x = p.sample(3, generator=seeded())
    for trace, rows in (("exact", 3), (2, 1)):
        together = ode_log_prob(p, x, s_min=0.1, s_max=HIGH, log_prior=matched(p), trace=trace, generator=seeded())
        for i in range(rows):
            alone = ode_log_prob(p, x[i : i + 1], s_min=0.1, s_max=HIGH, log_prior=matched(p), trace=trace, generator=seeded())
            assert float(alone.value) == pytest.approx(float(together.value[i]), abs=1e-10)
            assert alone.evaluations == together.evaluations[i]


def test_encode_then_decode_is_the_identity():
    p, method = mixture(), DormandPrince(1e-8, 1e-8)
    x = p.sample(20, generator=seeded())
    code = encode(p, x, s_min=LOW, s_max=HIGH, method=method)
    assert torch.allclose(decode(p, code.y, s_min=LOW, s_max=HIGH, method=method).y, x, atol=1e-5)
    rough = decode(p, encode(p, x, s_min=LOW, s_max=HIGH).y, s_min=LOW, s_max=HIGH)
    assert torch.allclose(rough.y, x, atol=1e-2)


def test_the_code_of_a_gaussian():
    """y_s - m = (y_0 - m) sqrt((v + s^2) / (v + s_0^2)), axis by axis."""
    v, m = torch.tensor([0.3, 2.0]), torch.tensor([[0.4, -1.0]])
    p = ExactDenoiser(torch.ones(1), m, v.diag()[None])
    x = p.sample(5, generator=seeded())
    code = encode(p, x, s_min=0.1, s_max=10.0, method=DormandPrince(1e-10, 1e-10)).y
    assert torch.allclose(code, m + (x - m) * ((v + 100) / (v + 0.01)).sqrt(), rtol=1e-8)


def test_the_flow_is_the_scores():
    p, y = mixture(), torch.randn(5, 2, generator=seeded())
    u = torch.linspace(-2, 2, 5)[:, None]
    assert torch.allclose(probability_flow(p)(u, y), -(2 * u).exp() * p.score(y, u.exp()))


def test_bad_ranges_and_probes_are_refused():
    p, x = mixture(), torch.zeros(1, 2)
    with pytest.raises(OptionError, match=r"0 < s_min < s_max, got s_min=0.0"):
        ode_log_prob(p, x, s_min=0.0, s_max=HIGH, log_prior=matched(p))
    with pytest.raises(OptionError, match="probes is at least 2, got 1"):
        ode_log_prob(p, x, s_min=LOW, s_max=HIGH, log_prior=matched(p), trace=1)
    for way in (encode, decode):
        with pytest.raises(OptionError, match=r"0 < s_min < s_max, got s_min=2.0 and s_max=1.0"):
            way(p, x, s_min=2.0, s_max=1.0)
