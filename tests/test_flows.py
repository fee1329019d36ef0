"""Flows: an exact density that a simple one is bent into, whichever family bends it."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from pofx.domain import Domain
from pofx.errors import DataError, OptionError, Unavailable
from pofx.models.flows.families import (
    AdditiveConfig,
    InverseAutoregressiveConfig,
    MaskedAutoregressiveConfig,
    NeuralSplineAutoregressiveConfig,
    NeuralSplineConfig,
)
from pofx.models.flows.flow import Flow
from pofx.models.flows.realnvp import RealNVPConfig
from pofx.models.registry import families
from pofx.types import Kind


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


CONFIGS = {
    "nice": AdditiveConfig,
    "realnvp": RealNVPConfig,
    "nsf": NeuralSplineConfig,
    "maf": MaskedAutoregressiveConfig,
    "iaf": InverseAutoregressiveConfig,
    "nsf-ar": NeuralSplineAutoregressiveConfig,
}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def bent(config, dim, context=None, **options):
    """A flow whose weights are away from where they start."""
    flow = config(**{"layers": 2, "width": 16, **options}).build(Domain.real(dim), context).eval()
    for p in flow.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.15)
    for m in flow.modules():
        if hasattr(m, "mask"):
            m.weight.data.mul_(m.mask)
    return flow


def test_the_registry_has_every_family(config):
    assert config in {line.config for line in families().values()}


def test_untrained_it_is_the_standard_normal(config):
    flow, x = config().build(Domain.real(3)), torch.randn(5, 3)
    assert_close(flow.log_prob(x), MultivariateNormal(torch.zeros(3), torch.eye(3)).log_prob(x))


def test_initialised_it_is_the_normal_of_the_rows(config):
    x = torch.randn(400, 3) @ torch.randn(3, 3) + 2
    flow = config(shrink=0.0).build(Domain.real(3))
    flow.initialise(x)
    law = MultivariateNormal(x.mean(0), x.T.cov(correction=0))
    assert_close(flow.log_prob(x), law.log_prob(x), rtol=1e-4, atol=1e-4)


def test_density_integrates_to_one(config):
    flow = bent(config, 2)
    grid = torch.linspace(-60, 60, 1201)
    with torch.no_grad():
        p = flow.log_prob(torch.cartesian_prod(grid, grid)).exp()
    assert (p.sum() * (grid[1] - grid[0]) ** 2).item() == pytest.approx(1.0, abs=2e-3)


def test_a_conditional_density_integrates_to_one(config):
    flow = bent(config, 1, Domain.real(2))
    grid = torch.linspace(-25, 25, 5001)[:, None]
    p = flow.log_prob(grid, torch.tensor([[0.5, -1.0]]).expand(5001, 2)).exp()
    assert (p.sum() * (grid[1] - grid[0]))[0].item() == pytest.approx(1.0, abs=1e-3)


def test_samples_follow_the_density(config):
    """E[1 / p(x)] over draws inside a box is its area; failure rate below 1e-6: 6 standard errors."""
    flow = bent(config, 2)
    x = flow.sample(40_000, generator=generator())
    inside = (x.abs() < 1).all(-1)
    weight = torch.where(inside, (-flow.log_prob(x)).exp(), 0.0).detach()
    assert (weight.mean() - 4.0).abs() < 6 * weight.std() / math.sqrt(len(x))


def test_encode_and_decode_undo_each_other(config):
    flow, x = bent(config, 5, Domain.real(2)), torch.randn(6, 5)
    c = torch.randn(6, 2)
    z = flow.encode(x, c)
    assert_close(flow.decode(z, c), x, rtol=1e-9, atol=1e-9)
    assert not z.requires_grad


def test_float32_round_trip(config):
    flow, x = bent(config, 6, layers=4).float(), torch.randn(50, 6).float()
    assert_close(flow.decode(flow.encode(x)), x, rtol=1e-3, atol=1e-3)
    assert flow.sample(3).dtype is torch.float32


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinity_has_no_density(config, value):
    x = torch.zeros(3, 4)
    x[torch.arange(3), torch.tensor([0, 2, 3])] = value
    assert torch.equal(bent(config, 4).log_prob(x), torch.full((3,), -math.inf))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_tails_are_never_nan(config, dtype):
    x = torch.tensor([[1e30, -1e30, 1e18, 0.0], [1e4, 1e5, -1e6, 1e7]], dtype=dtype)
    log_p = bent(config, 4).to(dtype).log_prob(x)
    assert not log_p.isnan().any()
    assert (log_p < -1000).all()


def test_equal_generators_give_equal_samples(config):
    flow = bent(config, 3)
    assert torch.equal(*(flow.sample(7, generator=generator(3)) for _ in range(2)))
    assert not flow.sample(2).requires_grad


def test_no_tensor_has_two_names(config):
    tensors = bent(config, 3).state_dict().values()
    assert len({t.data_ptr() for t in tensors}) == len(tensors)


def test_missing_cells_are_refused(config):
    with pytest.raises(Unavailable, match="missing cells"):
        bent(config, 3).log_prob(torch.tensor([[0.0, torch.nan, 1.0]]))
    assert Flow.missing is Kind.NONE


def test_conditions_of_another_width_are_refused(config):
    with pytest.raises(DataError, match="conditional on 2 variables, got 3"):
        bent(config, 3, Domain.real(2)).log_prob(torch.zeros(4, 3), torch.zeros(4, 3))


@pytest.mark.parametrize("one", [RealNVPConfig, NeuralSplineConfig, AdditiveConfig])
def test_one_variable_needs_a_condition(one):
    with pytest.raises(OptionError, match="a coupling needs"):
        one().build(Domain.real(1))


def test_an_odd_number_of_layers_is_refused():
    with pytest.raises(ValueError, match="multiple of 2"):
        RealNVPConfig(layers=5)


@pytest.mark.parametrize(("rows", "epochs"), [(200, 300), (1000, 75), (10**6, 2)])
def test_the_length_of_a_run_follows_the_rows(rows, epochs):
    assert NeuralSplineConfig().for_rows(rows).max_epochs == epochs
    assert NeuralSplineConfig(max_epochs=7).for_rows(rows).max_epochs == 7


@pytest.mark.parametrize("base", ["student", "mixture"])
def test_a_base_is_learned_too(config, base):
    flow = bent(config, 2, base=base, components=3)
    assert all(p.requires_grad for p in flow.base.parameters())
    x = flow.sample(500, generator=generator())
    assert x.isfinite().all()
    assert flow.log_prob(x).isfinite().all()


def test_tails_of_a_student_base_are_heavy():
    """Far out a spline flow is linear, so its tails are its base's: log p falls like a power, not like a square."""
    x = torch.tensor([[30.0, 0.0], [3000.0, 0.0]])
    light, heavy = (NeuralSplineConfig(base=base).build(Domain.real(2)).log_prob(x).detach() for base in ("normal", "student"))
    assert light[1] < -1e6
    assert heavy[1] > -100
    assert float(heavy.diff()) == pytest.approx(-(8 + 1) * math.log(100), rel=0.02)


def test_every_candidate_of_the_search_is_valid(config):
    for option, candidates in config.space.items():
        for value in candidates:
            config(**{option: value}).build(Domain.real(3))


def crescent(n, seed):
    x = torch.randn(n, 2, generator=generator(seed))
    return torch.stack((x[:, 0], 0.3 * x[:, 1] + x[:, 0].square()), 1)


def crescent_log_prob(x):
    y = (x[:, 1] - x[:, 0].square()) / 0.3
    return -0.5 * (x[:, 0].square() + y.square()) - math.log(2 * math.pi * 0.3)


@pytest.mark.slow
def test_it_learns_a_crescent(config):
    """The divergence from the truth falls from the normal's to below 0.05 nats."""
    torch.manual_seed(0)
    x, held = crescent(4000, 1), crescent(4000, 2)
    options = {"dropout": 0.0, "layers": 4}
    flow = config(**{name: value for name, value in options.items() if name in config.model_fields}).build(Domain.real(2))
    flow.initialise(x)
    before = (crescent_log_prob(held) - flow.log_prob(held)).mean()
    optimiser = torch.optim.Adam(flow.parameters(), lr=3e-3)
    falling = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.02 ** (1 / 600))
    for _ in range(600):
        batch = x[torch.randint(len(x), (256,))]
        optimiser.zero_grad()
        flow.loss(batch).mean().backward()
        optimiser.step()
        falling.step()
    after = (crescent_log_prob(held) - flow.eval().log_prob(held)).mean()
    assert before > 0.5
    assert after < 0.05
