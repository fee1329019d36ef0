"""Flows of images: scales, masks, nets that look around."""

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch.autograd.functional import jacobian
from torch.distributions import Normal
from torch.testing import assert_close

import pofx
from pofx.domain import Domain
from pofx.errors import DataError, OptionError, Unavailable
from pofx.models.flows.images import GlowConfig, scales_of
from pofx.models.flows.realnvp import RealNVPConfig
from pofx.nets.convolutional import ResidualCNN
from pofx.transforms.convolutional import ChannelCouplings, ChannelNorm, CheckerboardCouplings, InvertibleConvolution
from pofx.transforms.monotone import Affine, Shift
from pofx.transforms.spatial import FactorOut, Squeeze, Tower

SHAPES = [(1, 2), (3, 3), (2, 3), (4, 4), (2, 1, 1), (3, 2, 4)]
CONFIGS = {"glow": GlowConfig, "realnvp": partial(RealNVPConfig, net="conv"), "spline": partial(GlowConfig, coupling="spline", bins=4)}


def images(*shape):
    return Domain(Domain.real(math.prod(shape)).variables, shape)


@pytest.fixture(params=CONFIGS)
def config(request):
    return partial(CONFIGS[request.param], layers=2, width=4)


def bent(config, shape, context=None, std=0.2, **options):
    """A flow whose weights are away from where they start."""
    flow = config(**options).build(images(*shape), context).eval()
    for p in flow.transform.parameters():
        torch.nn.init.normal_(p, std=std)
    return flow


@pytest.mark.parametrize("shape", SHAPES)
def test_untrained_it_is_the_standard_normal(config, shape):
    flow, x = config().build(images(*shape)), torch.randn(5, math.prod(shape))
    assert_close(flow.log_prob(x), Normal(0, 1).log_prob(x).sum(1))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_log_determinant_is_autograds(config, shape):
    flow, x = bent(config, shape, Domain.real(2)), torch.randn(math.prod(shape))
    c = torch.randn(2)
    u, log_det = flow.transform.inverse(x, c)
    J = jacobian(lambda v: flow.transform.inverse(v, c)[0], x)
    assert_close(log_det, torch.linalg.slogdet(J).logabsdet)
    assert_close(flow.transform(u, c)[0], x, rtol=1e-9, atol=1e-9)


def test_density_integrates_to_one(config):
    flow = bent(config, (1, 2), Domain.real(1))
    grid = torch.linspace(-12, 12, 301)
    with torch.no_grad():
        x = torch.cartesian_prod(grid, grid)
        p = flow.log_prob(x, torch.full((len(x), 1), 0.5)).exp()
    assert (p.sum() * (grid[1] - grid[0]) ** 2).item() == pytest.approx(1.0, abs=2e-3)


def test_samples_follow_the_density(config):
    """E[1 / p(x)] over draws inside a box is its volume; failure rate below 1e-6: 6 standard errors."""
    flow = bent(config, (2, 1, 1))
    x = flow.sample(40_000, generator=torch.Generator().manual_seed(1))
    inside = (x.abs() < 1).all(-1)
    weight = torch.where(inside, (-flow.log_prob(x)).exp(), 0.0).detach()
    assert (weight.mean() - 4.0).abs() < 6 * weight.std() / math.sqrt(len(x))


def test_float32_round_trip(config):
    flow, x = bent(config, (4, 4)).float(), torch.randn(50, 16).float()
    assert_close(flow.decode(flow.encode(x)), x, rtol=1e-3, atol=1e-3)
    assert flow.sample(3).dtype is torch.float32


@pytest.mark.parametrize("monotone", [Shift(), Affine()])
@pytest.mark.parametrize("make", [ChannelCouplings, CheckerboardCouplings])
def test_stiff_couplings_come_back_in_single_precision(make, monotone):
    """Raw numbers of scale 10."""
    T = make((2, 2, 2), 1, monotone, net=partial(ResidualCNN, width=4)).float()
    torch.nn.init.normal_(T.nets[0].last.weight, std=10.0)
    u = torch.randn(200, 8, dtype=torch.float32)
    assert_close(T(T.inverse(u)[0])[0], u, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_tails_are_never_nan(config, dtype):
    x = torch.tensor([[1e30, -1e30, 1e18, 0.0], [1e6, -1e6, 1e4, 1e7]], dtype=dtype)
    log_p = bent(config, (2, 2)).to(dtype).log_prob(x)
    assert (log_p < -1000).all()
    x[:, 1] = -math.inf
    assert torch.equal(bent(config, (2, 2)).to(dtype).log_prob(x), torch.full((2,), -math.inf, dtype=dtype))


def test_half_precision_gives_numbers(config):
    flow = bent(config, (4, 4)).bfloat16()
    assert flow.log_prob(torch.randn(3, 16, dtype=torch.bfloat16)).isfinite().all()


def test_gradients_are_those_of_differences(config):
    flow, x = bent(config, (2, 2)), torch.randn(2, 4, requires_grad=True)
    assert torch.autograd.gradcheck(flow.transform.inverse, (x,))


def test_the_start_makes_channels_standard():
    x = torch.randn(500, 12) * 3 + torch.arange(12.0)
    T = Tower(ChannelNorm((3, 2, 2)))
    T.start(x)
    u = T.inverse(x)[0].reshape(-1, 3, 2, 2).detach()
    deviation, mean = torch.std_mean(u, (0, 2, 3), correction=0)
    assert_close(mean, torch.zeros(3), atol=1e-9, rtol=0)
    assert_close(deviation, torch.ones(3))


def test_a_squeeze_parts_a_checkerboard():
    colour = ((torch.arange(4)[:, None] + torch.arange(6)) % 2).double().flatten()
    channels = Squeeze((1, 4, 6)).inverse(colour)[0].reshape(4, 6)
    assert torch.equal(channels[[0, 3]], torch.zeros(2, 6))
    assert torch.equal(channels[[1, 2]], torch.ones(2, 6))


def test_what_is_factored_out_is_the_first_half_of_the_channels():
    x = torch.randn(3, 20)
    u = FactorOut((5, 2, 2), ChannelNorm).inverse(x)[0]
    assert torch.equal(u[:, :8], x[:, :8])


def test_an_invertible_convolution_starts_as_a_rotation_of_the_channels():
    T, x = InvertibleConvolution((4, 1, 1)), torch.randn(6, 4)
    assert_close(T.inverse(x)[0].norm(dim=1), x.norm(dim=1))
    assert_close(T.inverse(x)[1], torch.zeros(6))
    assert not torch.allclose(T.inverse(x)[0], x)


@pytest.mark.parametrize(("shape", "scales"), [((1, 28, 28), 2), ((1, 8, 8), 2), ((3, 32, 32), 4), ((1, 2, 2), 1), ((1, 3, 4), 0)])
def test_the_number_of_scales_follows_the_sides(shape, scales):
    assert scales_of(shape, None) == scales


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda: GlowConfig(scales=4).build(images(28, 28)), "28 x 28 can be halved 2 times"),
        (lambda: GlowConfig().build(images(1, 1)), "pixels of both colours"),
        (lambda: RealNVPConfig(net="conv").build(Domain.real(4)), r"images \(H, W\) or \(C, H, W\), got shape \(4,\)"),
        (lambda: GlowConfig(shape=(2, 3)).build(Domain.real(4)), r"images of shape \(2, 3\) have 6 numbers, got 4 columns"),
        (lambda: Squeeze((1, 3, 4)), "even sides, got 3 x 4"),
        (lambda: FactorOut((1, 2, 2), ChannelNorm), "halves the channels, got 1"),
        (lambda: ChannelCouplings((1, 2, 2), 2, Affine()), "some on both sides, got 0 and 1"),
        (lambda: Tower(ChannelNorm((1, 2, 2)), ChannelNorm((4, 1, 1))), "can not follow"),
    ],
)
def test_what_can_not_be_is_refused(ask, sentence):
    with pytest.raises(OptionError, match=sentence):
        ask()


def test_tables_are_refused():
    with pytest.raises(Unavailable, match="it learns images"):
        GlowConfig().build(Domain.real(4))


def test_conditions_of_another_width_are_refused(config):
    with pytest.raises(DataError, match="conditional on 2 variables, got 3"):
        bent(config, (2, 2), Domain.real(2)).log_prob(torch.zeros(4, 4), torch.zeros(4, 3))


def test_it_opens_to_the_same_p(config, tmp_path):
    x = torch.randint(0, 4, (60, 4, 4)).numpy()
    p = pofx.fit(x, config(max_epochs=1))
    p.save(tmp_path / "p.safetensors")
    q = pofx.open(tmp_path / "p.safetensors")
    assert p.domain.shape == (4, 4)
    assert np.array_equal(np.asarray(q.log_prob(x)), np.asarray(p.log_prob(x)))


def test_columns_of_a_table_are_an_image_where_that_is_said(config, tmp_path):
    """The label stands beside them: p(image | label), opened again and asked for images of a label."""
    x = np.column_stack([np.random.default_rng(0).normal(size=(60, 16)), np.arange(60) % 2])
    frame = pd.DataFrame(x, columns=[*(f"p{d}" for d in range(16)), "label"]).astype({"label": int}).astype({"label": str})
    p = pofx.fit(frame, config(max_epochs=1, shape=(4, 4)), given="label")
    p.save(tmp_path / "p.safetensors")
    draws = pofx.open(tmp_path / "p.safetensors").sample(3, given={"label": "1"}, seed=0)
    assert draws.shape == (3, 16)
    assert np.array_equal(draws, p.sample(3, given={"label": "1"}, seed=0))
    assert not np.allclose(p.log_prob(frame), p.log_prob(frame.assign(label=frame.label[::-1].to_numpy())))


@pytest.mark.slow
def test_it_learns_what_a_class_looks_like(config):
    """Given the class, bars lie down or stand up: draws of a class have the energy of theirs in the right direction."""
    g = torch.Generator().manual_seed(0)
    c = torch.randint(0, 2, (2000, 1), generator=g).double()
    level = torch.randn(2000, 4, generator=g)
    x = torch.where(c[:, :, None].bool(), level[:, :, None].expand(-1, 4, 4), level[:, None].expand(-1, 4, 4)).flatten(1)
    x = x + 0.3 * torch.randn(x.shape, generator=g)
    torch.manual_seed(0)
    flow = config(width=16, layers=4).build(images(4, 4), Domain.real(1))
    flow.initialise(x, c)
    optimiser = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for _ in range(300):
        batch = torch.randint(len(x), (128,), generator=g)
        optimiser.zero_grad()
        flow.loss(x[batch], c[batch]).mean().backward()
        optimiser.step()
    drawn = flow.eval().sample(5000, torch.tensor([[0.0], [1.0]]), generator=g).reshape(5000, 2, 4, 4)
    across, down = drawn.mean(3).square().mean((0, 2)), drawn.mean(2).square().mean((0, 2))  # of means along rows, of means along columns
    assert across[1] > 2 * across[0]
    assert down[0] > 2 * down[1]
