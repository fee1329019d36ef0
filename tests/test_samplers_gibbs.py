"""Gibbs sampling against enumerated tables, Gaussian conditionals and a mixed law in closed form."""

import itertools

import pytest
import torch

from pofx.errors import DataError, OptionError
from pofx.samplers import Hamiltonian, Sweep, gibbs, mean_error
from pofx.samplers.densities import restricted
from pofx.samplers.gibbs import _exact, _walk, table


def tensor(values):
    """In float64 also while the file is read, before a test sets the default."""
    return torch.tensor(values, dtype=torch.float64)


VALUES = (tensor([0.0, 1.0]), tensor([-1.0, 0.0, 2.0]), tensor([0.0, 1.0, 2.0, 3.0]))
WORLDS = tensor(list(itertools.product(*(v.tolist() for v in VALUES))))
# the 1 - 1e-7 quantiles of chi-square with 3 and 23 degrees of freedom
CHI_SQUARE = {3: 35.41, 23: 76.91}


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def logits():
    return 1.5 * torch.randn(2, 3, 4, generator=seeded(2))


def discrete(x):
    """A table of 24 worlds; -inf elsewhere."""
    place = [(x[:, d, None] == VALUES[d]).double() for d in range(3)]
    inside = torch.stack([p.sum(-1) for p in place]).prod(0) > 0
    return torch.where(inside, logits()[tuple(p.argmax(-1) for p in place)], -torch.inf)


def chi_square(x, worlds, p):
    counts = torch.stack([(x == w).all(-1).sum() for w in worlds]).double()
    assert counts.sum() == len(x)
    return float(((counts - len(x) * p).square() / (len(x) * p)).sum())


def z_scores(draws, truth):
    return (draws.mean((0, 1)) - truth) / mean_error(draws)


@pytest.mark.parametrize("random", [False, True])
def test_an_enumerated_table(random):
    """4000 chains after 40 sweeps, one draw each: independent, so Pearson's sum is chi-square; once in 10^7."""
    start = WORLDS[0].repeat(4000, 1)
    got = gibbs(discrete, start, VALUES, steps=1, warmup=40, random=random, generator=seeded())
    assert chi_square(got.draws[0], WORLDS, logits().flatten().softmax(0)) < CHI_SQUARE[23]
    assert got.acceptance.isnan().all()


def test_a_held_coordinate_gives_the_conditional():
    got = gibbs(
        discrete, torch.tensor([[1.0, 2.0, 0.0]]).repeat(4000, 1), VALUES, fixed=torch.tensor([True, True, False]),
        steps=1, warmup=1, generator=seeded(),
    )  # fmt: skip
    assert (got.draws[..., :2] == torch.tensor([1.0, 2.0])).all()
    assert chi_square(got.draws[0, :, 2:], VALUES[2][:, None], logits()[1, 2].softmax(0)) < CHI_SQUARE[3]


# -- continuous coordinates --------------------------------------------------------------------------

SPREAD = tensor([0.01, 1.0, 100.0])
COVARIANCE = tensor([[1.0, 0.5, 0.3], [0.5, 1.0, -0.2], [0.3, -0.2, 1.0]]) * SPREAD[:, None] * SPREAD
PRECISION = COVARIANCE.inverse()


def gaussian(x):
    return -0.5 * ((x @ PRECISION) * x).sum(-1)


@pytest.mark.parametrize("block", [None, Hamiltonian()])
def test_a_gaussian_conditional(block):
    """x_0, x_1 given x_2 = 150: mean and variance by Schur's complement; 6 of the chains' own errors, once in 10^8."""
    start = torch.cat((SPREAD[:2] * torch.randn(32, 2), torch.full((32, 1), 150.0)), 1)
    fixed = torch.tensor([False, False, True])
    got = gibbs(gaussian, start, (None,) * 3, fixed=fixed, steps=800, warmup=400, block=block, generator=seeded())
    mean = COVARIANCE[:2, 2] / COVARIANCE[2, 2] * 150
    covariance = COVARIANCE[:2, :2] - COVARIANCE[:2, 2:] @ COVARIANCE[2:, :2] / COVARIANCE[2, 2]
    moments = torch.cat(((x := got.draws[..., :2]), (x - mean).square(), (x - mean).prod(-1, keepdim=True)), -1)
    truth = torch.cat((mean, covariance.diagonal(), covariance[0, 1:]))
    assert z_scores(moments, truth).abs().max() < 6
    assert (got.draws[..., 2] == 150).all()
    assert got.rhat[0, :2].max() < 1.02
    assert got.rhat[0, 2].isnan()
    target = 0.44 if block is None else 0.651
    torch.testing.assert_close(got.acceptance[:2], torch.full((2,), target), atol=0.06, rtol=0)


def test_scales_are_found_from_afar():
    """From starts all at one place, so a first scale of 2.4 where 0.024 and 240 are right."""
    got = gibbs(gaussian, torch.zeros(16, 3), (None,) * 3, steps=200, warmup=600, generator=seeded())
    torch.testing.assert_close(got.acceptance, torch.full((3,), 0.44), atol=0.08, rtol=0)


# -- mixed rows --------------------------------------------------------------------------------------

MEANS = tensor([-2.0, 0.0, 1.5])
LOG_WEIGHTS = tensor([0.2, 0.3, 0.5]).log()


def mixed(x):
    """z in {0, 1, 2}, x | z ~ N(mean_z, 1), y | x ~ N(x, 1)."""
    z = x[:, 0].long()
    return LOG_WEIGHTS[z] - 0.5 * (x[:, 1] - MEANS[z]).square() - 0.5 * (x[:, 2] - x[:, 1]).square()


@pytest.mark.parametrize(("random", "block"), [(False, None), (True, None), (False, Hamiltonian())])
def test_a_mixed_conditional(random, block):
    """Given y: p(z | y) from the evidences N(y; mean_z, 2), and E[x | z, y] = (mean_z + y) / 2."""
    y, n = 0.3, 32
    start = torch.stack((torch.randint(3, (n,)).double(), torch.randn(n), torch.full((n,), y)), 1)
    values = (torch.arange(3.0), None, None)
    fixed = torch.tensor([False, False, True])
    got = gibbs(mixed, start, values, fixed=fixed, steps=800, warmup=300, random=random, block=block, generator=seeded())
    p = (LOG_WEIGHTS - 0.25 * (y - MEANS).square()).softmax(0)
    z = (got.draws[..., :1] == torch.arange(3.0)).double()
    moments = torch.cat((z, got.draws[..., 1:2], z * got.draws[..., 1:2]), -1)
    truth = torch.cat((p, (p * (MEANS + y) / 2).sum()[None], p * (MEANS + y) / 2))
    assert z_scores(moments, truth).abs().max() < 6


def test_chains_of_several_problems_keep_their_conditions():
    """Row i belongs to chain i mod chains, also where each value of a coordinate is tried."""
    y = torch.tensor([-3.0, 3.0]).repeat_interleave(500)

    def given(x):
        full = torch.cat((x, y.repeat(len(x) // len(y))[:, None]), 1)
        return mixed(full)

    start = torch.stack((torch.zeros(1000), torch.zeros(1000)), 1)
    got = gibbs(given, start, (torch.arange(3.0), None), problems=2, steps=300, warmup=100, generator=seeded())
    z = (got.by_problem[..., :1] == torch.arange(3.0)).double()
    p = (LOG_WEIGHTS - 0.25 * (torch.tensor([[-3.0], [3.0]]) - MEANS).square()).softmax(-1)
    assert ((z.mean((0, 1)) - p) / mean_error(z)).abs().max() < 6
    assert got.rhat.shape == (2, 2)


def test_the_table_of_a_coordinate():
    x = WORLDS[:5]
    got = table(discrete, x, 1, VALUES[1])
    for v, value in enumerate(VALUES[1]):
        changed = x.clone()
        changed[:, 1] = value
        torch.testing.assert_close(got[:, v], discrete(changed))


def test_moves_carry_the_log_density_of_where_they_stand():
    x = SPREAD * torch.randn(200, 3)
    moved, log, acceptance = _walk(gaussian, x, gaussian(x), 1, torch.tensor(2.0), generator=seeded())
    torch.testing.assert_close(log, gaussian(moved))
    assert (moved[:, 1] != x[:, 1]).double().mean() == pytest.approx(float(acceptance), abs=0.2)
    moved, log = _exact(discrete, WORLDS, 1, VALUES[1], seeded())
    torch.testing.assert_close(log, discrete(moved))


def test_columns_given_the_others_keep_to_their_chain_when_tiled():
    x, z = torch.randn(4, 3), torch.randn(8, 2)
    got = restricted(gaussian, x, torch.tensor([0, 2]))(z)
    rows = torch.stack([torch.stack((z[i, 0], x[i % 4, 1], z[i, 1])) for i in range(8)])
    torch.testing.assert_close(got, gaussian(rows))


def test_a_held_nan_is_the_log_densitys_affair():
    log_p = lambda x: gaussian(torch.cat((x[:, :2], x[:, 2:].nan_to_num()), 1))
    start = torch.cat((torch.zeros(4, 2), torch.full((4, 1), torch.nan)), 1)
    got = gibbs(log_p, start, (None,) * 3, fixed=torch.tensor([False, False, True]), steps=5, warmup=5, generator=seeded())
    assert got.draws[..., 2].isnan().all()
    assert got.draws[..., :2].isfinite().all()


def test_worlds_without_density_are_never_drawn():
    log_p = lambda x: torch.where(x[:, 0] == 2, torch.nan, torch.where(x[:, 0] == 1, -torch.inf, x[:, 0]))
    got = gibbs(log_p, torch.zeros(50, 1), (torch.arange(4.0),), steps=20, warmup=0, generator=seeded())
    assert set(got.draws.unique().tolist()) == {0.0, 3.0}


def test_the_type_is_the_starts_and_the_generator_decides():
    start = torch.zeros(4, 2, dtype=torch.float32)
    log_p = lambda x: -x.square().sum(-1)
    one, two, other = (gibbs(log_p, start, (torch.arange(3.0), None), steps=9, generator=seeded(s)).draws for s in (0, 0, 1))
    assert one.dtype == torch.float32
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_block_without_continuous_coordinates_is_no_move():
    moved = Sweep(VALUES, block=Hamiltonian())(discrete, WORLDS, torch.ones(3), generator=seeded())
    assert discrete(moved.x).isfinite().all()
    assert moved.acceptance.isnan().all()


BAD = {
    "a list short": ((None,), {}, OptionError, "rows have 2 coordinates, got 1 lists"),
    "a mark short": ((None, None), {"fixed": torch.tensor([True])}, OptionError, "rows have 2 coordinates, got 2 lists and 1 marks"),
    "an empty list": ((torch.zeros(0), None), {}, OptionError, "coordinate 0 has an empty list of values"),
    "nothing free": ((None, None), {"fixed": torch.tensor([True, True])}, OptionError, "every coordinate is held"),
    "off the list": ((None, torch.tensor([1.0])), {}, DataError, "chain 0 starts at coordinate 1 = 0.0, which is not on its list"),
    "no steps": ((None, None), {"steps": 0}, OptionError, "steps is at least 1, got 0"),
    "no thinning": ((None, None), {"thin": 0}, OptionError, "thin is at least 1, got 0"),
    "ragged": ((None, None), {"problems": 2}, DataError, r"got \(3, 2\) for problems=2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    values, options, error, sentence = BAD[name]
    with pytest.raises(error, match=sentence):
        gibbs(lambda x: -x.square().sum(-1), torch.zeros(3, 2), values, generator=seeded(), **options)


def test_a_start_off_the_support_is_refused():
    with pytest.raises(DataError, match="chain 0 starts where the log-density is not finite"):
        gibbs(lambda x: x[:, 0].log(), torch.full((2, 1), -1.0), (None,), generator=seeded())
