"""The simplest flow: log-det is autograd's, the way back undoes the way there, jumps are drawn uniformly."""

import math

import pytest
import torch

from pofx.errors import OptionError
from pofx.transforms.inverse_cdf import Bernoulli, Exponential, Gaussian, GeneralisedInverseCDF, InverseCDF, InvertibleLaw, SpikeAndSlab

CONTINUOUS: dict[str, InvertibleLaw] = {"exponential": Exponential(1.7), "gaussian": Gaussian(-1.0, 0.3)}
LAWS: dict[str, InvertibleLaw] = CONTINUOUS | {
    "bernoulli": Bernoulli(0.3),
    "spike and Gaussian": SpikeAndSlab(0.3, -0.8, Gaussian(-1.0, 0.3)),
    "spike and exponential": SpikeAndSlab(0.6, 0.0, Exponential(2.0)),
}
U = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("name", CONTINUOUS)
def test_inverse_undoes_forward(name):
    T = InverseCDF(CONTINUOUS[name])
    x, log_det = T(U)
    u, log_det_back = T.inverse(x)
    torch.testing.assert_close(u, U)
    torch.testing.assert_close(log_det, -log_det_back)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_log_det_is_autograds(name):
    T = InverseCDF(CONTINUOUS[name])
    u = U[::50, 0].unsqueeze(0)
    J = torch.autograd.functional.jacobian(lambda v: T(v)[0], u)[0, :, 0]
    torch.testing.assert_close(torch.linalg.slogdet(J).logabsdet, T(u)[1][0])


@pytest.mark.parametrize("name", CONTINUOUS)
def test_laws_are_torchs(name):
    torchs = {"exponential": torch.distributions.Exponential(1.7), "gaussian": torch.distributions.Normal(-1.0, 0.3)}[name]
    x = torchs.icdf(U)
    law = CONTINUOUS[name]
    for ours, theirs in ((law.quantile(U), x), (law.cdf(x), torchs.cdf(x)), (law.log_prob(x), torchs.log_prob(x))):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", LAWS)
def test_quantile_is_the_least_x_that_reaches_u(name):
    """F(F^-1(u)) >= u, and F just below F^-1(u) is less than u."""
    law = LAWS[name]
    x = law.quantile(U)
    assert (law.cdf(x) >= U - 1e-12).all()
    assert (law.cdf(x - 1e-9) < U + 1e-12).all()


@pytest.mark.parametrize("name", LAWS)
def test_lift_lands_where_forward_leads_back(name):
    """T(lift(x)) = x, the lifted u is uniform again (Kolmogorov, fails below 1 in 10^6), and p is exact for each draw."""
    T = GeneralisedInverseCDF(LAWS[name])
    g = torch.Generator().manual_seed(0)
    u = torch.rand(20_000, 1, generator=g)
    x = T(u)
    lifted, log_p = T.lift(x, generator=g)
    torch.testing.assert_close(T(lifted), x, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(log_p, LAWS[name].log_prob(x)[:, 0])
    ranks = torch.arange(1, 20_001) / 20_000
    distance = (lifted[:, 0].sort().values - ranks).abs().max()
    assert float(distance) < math.sqrt(math.log(2e6) / 2 / 20_000) + 1e-4


def test_spike_and_slab_sums_to_one():
    law = LAWS["spike and Gaussian"]
    x = torch.linspace(-5, 3, 80_000) + 1e-6
    total = float(law.log_prob(x).exp().sum() * (x[1] - x[0])) + float(law.atom(torch.tensor(-0.8)))
    assert total == pytest.approx(1, abs=1e-4)


def test_wrong_laws_are_refused():
    with pytest.raises(OptionError, match="no bijection: use GeneralisedInverseCDF"):
        InverseCDF(Bernoulli(0.5))
    with pytest.raises(OptionError, match="slab needs a law without atoms"):
        SpikeAndSlab(0.5, 0.0, Bernoulli(0.5))
    for wrong in (
        lambda: Exponential(0.0),
        lambda: Gaussian(0.0, -1.0),
        lambda: Bernoulli(1.0),
        lambda: SpikeAndSlab(0.0, 0.0, Exponential(1.0)),
    ):
        with pytest.raises(OptionError, match="must be"):
            wrong()
