"""Toys: each density integrates to one, is what its draws follow, and equals an independent computation where there is one."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from pofx.data import DATASETS, load
from pofx.data.toys import TOYS, Moons, Rings

SIDE, CELLS, FINE = 6.0, 40, 8
DRAWS = 40_000


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def masses(toy):
    """P of each of 40 x 40 cells of [-6, 6]^2, by Gauss-Legendre quadrature inside each."""
    nodes, weights = np.polynomial.legendre.leggauss(FINE)
    width = 2 * SIDE / CELLS
    edges = -SIDE + width * np.arange(CELLS)
    along = (edges[:, None] + width / 2 * (nodes + 1)).ravel()
    each = np.tile(weights * width / 2, CELLS)
    points = np.stack(np.meshgrid(along, along, indexing="ij"), axis=-1).reshape(-1, 2)
    density = np.exp(toy.log_prob(points)).reshape(len(along), -1) * each[:, None] * each
    return density.reshape(CELLS, FINE, CELLS, FINE).sum(axis=(1, 3))


SMOOTH = [name for name in TOYS if name != "checkerboard"]  # its edges cross the cells: it has its own test


@pytest.mark.parametrize("name", SMOOTH)
def test_the_density_integrates_to_one(name):
    assert masses(TOYS[name]).sum() == pytest.approx(1.0, abs=1e-8)


def test_the_checkerboard_is_uniform_on_eight_squares():
    centres = np.stack(np.meshgrid(np.arange(-7.0, 8, 2), np.arange(-7.0, 8, 2)), axis=-1).reshape(-1, 2)
    density = np.exp(TOYS["checkerboard"].log_prob(centres))
    assert 4 * density.sum() == pytest.approx(1.0, rel=1e-12)
    assert (density > 0).sum() == 8
    corners = np.array([[-4.0, -4.0], [-4.0 - 1e-9, -4.0], [4.0, 4.0], [3.999, 3.999], [-0.001, 0.0]])
    assert np.isfinite(TOYS["checkerboard"].log_prob(corners)).tolist() == [True, False, False, True, False]


def pearson(counts, expected):
    """P(a chi-square as large), over the cells with 10 expected draws or more and the rest as one."""
    big = expected >= 10
    counts, expected = (np.append(a[big], DRAWS - a[big].sum()) for a in (counts, expected))
    kept = expected > 1e-3
    statistic = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    return stats.chi2.sf(statistic, kept.sum() - 1)


@pytest.mark.parametrize("name", SMOOTH)
def test_draws_follow_the_density(name):
    """A right toy fails at 1e-6 of the seeds."""
    x = TOYS[name].sample(DRAWS, generator=seeded(1)).numpy()
    edges = np.linspace(-SIDE, SIDE, CELLS + 1)
    assert pearson(np.histogram2d(*x.T, bins=(edges, edges))[0], DRAWS * masses(TOYS[name])) > 1e-6


def test_draws_follow_the_checkerboard():
    """On cells of side 1/2, which its edges do not cross; a right one fails at 1e-6 of the seeds."""
    x = TOYS["checkerboard"].sample(DRAWS, generator=seeded(1)).numpy()
    edges = np.linspace(-4, 4, 17)
    middle = np.stack(np.meshgrid(edges[:-1] + 0.25, edges[:-1] + 0.25, indexing="ij"), axis=-1).reshape(-1, 2)
    expected = DRAWS / 4 * np.exp(TOYS["checkerboard"].log_prob(middle)).reshape(16, 16)
    counts = np.histogram2d(*x.T, bins=(edges, edges))[0]
    assert counts[expected == 0].sum() == 0
    assert pearson(counts, expected) > 1e-6


def test_equal_generators_give_equal_draws():
    for toy in TOYS.values():
        assert torch.equal(toy.sample(9, generator=seeded(3)), toy.sample(9, generator=seeded(3)))


def test_moons_do_not_depend_on_the_nodes():
    x = 10 * torch.rand(500, 2, generator=seeded(0)) * torch.tensor([1.0, 0.7]) - 5.0
    np.testing.assert_allclose(Moons().log_prob(x), Moons(nodes=1000).log_prob(x), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("point", [(0.3, 0.8), (1.5, -0.6), (4.0, 3.0)])
def test_moons_are_the_integral_over_the_angle(point):
    def blurred(t, x, y):
        return math.exp(-((point[0] - x(t)) ** 2 + (point[1] - y(t)) ** 2) / 0.02) / (0.02 * math.pi * 2 * math.pi)

    moons = ((math.cos, math.sin), (lambda t: 1 - math.cos(t), lambda t: 0.5 - math.sin(t)))
    total = sum(integrate.quad(blurred, 0, math.pi, args=moon, epsabs=0, epsrel=1e-11, limit=500)[0] for moon in moons)
    if total > 1e-300:
        assert float(Moons().log_prob([point])[0]) == pytest.approx(math.log(total), abs=1e-9)
    else:
        assert float(Moons().log_prob([point])[0]) < -600


def test_rings_are_the_integral_over_the_angle():
    toy, point = Rings(), (1.3, -1.4)
    centre = math.atan2(-1.4, 1.3)

    def blurred(a, r):
        squared = (point[0] - r * math.cos(a)) ** 2 + (point[1] - r * math.sin(a)) ** 2
        return math.exp(-squared / 0.02) / (3 * 2 * math.pi * 0.02 * math.pi)

    ends = {"a": centre - math.pi, "b": centre + math.pi, "points": [centre], "epsabs": 0, "limit": 500}
    total = sum(integrate.quad(blurred, args=(r,), **ends)[0] for r in toy.radii)
    assert float(toy.log_prob([point])[0]) == pytest.approx(math.log(total), abs=1e-9)


@pytest.mark.parametrize("name", TOYS)
def test_the_set_carries_its_density(name):
    toy = load(name)
    assert toy.kind == "toy"
    assert [len(part) for part in (toy.train, toy.holdout, toy.test)] == [5000, 1000, 5000]
    assert np.isfinite(toy.log_prob(toy.train)).all()
    np.testing.assert_array_equal(toy.log_prob(torch.as_tensor(toy.test)), TOYS[name].log_prob(toy.test))
    assert toy.log_prob(np.zeros((0, 2))).shape == (0,)
    np.testing.assert_array_equal(load(name).train, toy.train)


def test_every_toy_is_listed():
    assert {name for name, line in DATASETS.items() if line.kind == "toy"} == set(TOYS)
