"""Ascent against maxima that are known: quadratics, Rosenbrock's valley, mixtures, tables."""

import itertools

import pytest
import torch

from pofx.errors import DataError, OptionError
from pofx.samplers import ascend


def tensor(values):
    """In float64 also while the file is read, before a test sets the default."""
    return torch.tensor(values, dtype=torch.float64)


MEANS, SDS, WEIGHTS = tensor([[0.0, 0.0], [5.0, 5.0], [-4.0, 3.0]]), tensor([1.0, 0.5, 0.3]), tensor([0.2, 0.3, 0.5])


def mixture(x):
    square = ((x[:, None] - MEANS) / SDS[:, None]).square().sum(-1)
    return (WEIGHTS.log() - 2 * SDS.log() - 0.5 * square).logsumexp(-1)


def rosenbrock(x):
    return -(100 * (x[:, 1:] - x[:, :-1].square()).square() + (1 - x[:, :-1]).square()).sum(-1)


def test_the_best_of_many_modes():
    start = 5 * torch.randn(64, 2)
    got = ascend(mixture, start)
    torch.testing.assert_close(got.x[got.best[0]], MEANS[2], atol=1e-5, rtol=0)
    assert got.converged.all()
    assert 1 <= got.agrees.sum() < 64
    nearest = (got.x[:, None] - MEANS).norm(dim=-1).amin(1)
    assert nearest.max() < 1e-3  # every start is at a mode
    assert (got.log_p >= mixture(start)).all()
    assert torch.equal(got.agrees, got.log_p > got.log_p.max() - 1e-3)


def test_a_gaussian_of_any_scale():
    """Units a million apart, which the starts show; and the same without their help, a hundred apart."""
    scale = torch.logspace(-3, 3, 8)
    got = ascend(lambda x: -0.5 * ((x - 3) / scale).square().sum(-1), 3 + 5 * scale * torch.randn(20, 8))
    assert got.log_p.min() > -1e-8
    assert got.agrees.all()
    scale = torch.logspace(-1, 1, 8)
    got = ascend(lambda x: -0.5 * ((x - 3) / scale).square().sum(-1), torch.zeros(3, 8))
    assert got.log_p.min() > -1e-6


def test_rosenbrocks_valley():
    got = ascend(rosenbrock, torch.randn(20, 5))
    torch.testing.assert_close(got.x[got.best[0]], torch.ones(5), atol=1e-3, rtol=0)
    assert got.converged.all()


def test_a_point_is_never_worse_than_its_start():
    """Also where a function is rough, flat, bounded by NaN, or one step is all there is."""
    functions = {
        "rough": lambda x: (x.square().sin() * 10 - x.abs()).sum(-1),
        "flat": lambda x: 0 * x.sum(-1),
        "bounded": lambda x: (x.log() * 2 - x).sum(-1),
        "kinked": lambda x: -x.abs().sum(-1),
        "heavy": lambda x: -2 * torch.log1p((x - 1e3).square()).sum(-1),
    }
    for f in functions.values():
        start = torch.rand(50, 3) * 4
        for steps in (1, 5, 300):
            got = ascend(f, start, steps=steps)
            assert (got.log_p >= f(start)).all()
            torch.testing.assert_close(got.log_p, f(got.x))


def test_a_border_is_respected():
    """Gamma(3) has its mode at 2, and no density below 0."""
    got = ascend(lambda x: (2 * x.log() - x)[:, 0], 0.01 + 10 * torch.rand(30, 1))
    torch.testing.assert_close(got.x, torch.full((30, 1), 2.0), atol=1e-3, rtol=0)


def test_a_density_without_bound_is_not_called_converged():
    got = ascend(lambda x: x.sum(-1), torch.zeros(3, 2), steps=20)
    assert not got.converged.any()
    assert (got.log_p > 0).all()


def test_flat_is_converged_where_it_stands():
    start = torch.randn(5, 2)
    got = ascend(lambda x: 0 * x.sum(-1), start)
    assert got.converged.all()
    assert torch.equal(got.x, start)


def test_a_gradient_that_is_not_finite_stays_and_says_so():
    got = ascend(lambda x: -x.abs().sqrt().sum(-1), torch.tensor([[0.0], [1.0]]))
    assert got.x[0] == 0
    assert not got.converged[0]


# -- discrete coordinates ----------------------------------------------------------------------------

VALUES = (tensor([0.0, 1.0]), tensor([0.0, 1.0, 2.0]), tensor([0.0, 1.0, 2.0]))


def test_a_table_is_climbed_to_a_coordinatewise_maximum_and_from_everywhere_to_the_best():
    logits = torch.randn(2, 3, 3)
    log_p = lambda x: logits[tuple(x.long().T)]
    worlds = torch.tensor(list(itertools.product(*(v.tolist() for v in VALUES))))
    got = ascend(log_p, worlds, values=VALUES)
    assert got.log_p[got.best[0]] == logits.max()
    assert got.converged.all()
    for d, v in enumerate(VALUES):
        for value in v:
            other = got.x.clone()
            other[:, d] = value
            assert (log_p(other) <= got.log_p).all()


def test_mixed_coordinates():
    """z picks a component, x its place: from every z the best one is found, as x is dragged along."""

    def log_p(x):
        z = x[:, 0].long()
        return torch.tensor([0.0, 1.0, 3.0])[z] - 0.5 * (x[:, 1] - torch.tensor([0.0, 0.5, 1.5])[z]).square()

    got = ascend(log_p, torch.tensor([[0.0, -1.0], [1.0, 0.0], [2.0, 5.0]]), values=(torch.arange(3.0), None))
    torch.testing.assert_close(got.x, torch.tensor([[2.0, 1.5]]).expand(3, 2), atol=1e-4, rtol=0)
    assert got.agrees.all()


def test_held_coordinates_stay():
    """The maximum over x_0 given x_1 of a Gaussian with correlation 0.8 is 0.8 x_1; a held NaN is the density's affair."""
    log_p = lambda x: -(x[:, 0].square() - 1.6 * x[:, 0] * x[:, 1] + x[:, 1].square())
    start = torch.stack((torch.zeros(4), torch.arange(4.0)), 1)
    got = ascend(log_p, start, fixed=torch.tensor([False, True]), problems=4)
    torch.testing.assert_close(got.x, torch.stack((0.8 * torch.arange(4.0), torch.arange(4.0)), 1), atol=1e-4, rtol=0)
    held = torch.tensor([[0.5, torch.nan]])
    got = ascend(lambda x: -x[:, 0].square() + x[:, 1].nan_to_num(), held, fixed=torch.tensor([False, True]))
    assert abs(float(got.x[0, 0])) < 1e-4
    assert got.agrees.all()


def test_each_problem_has_its_best():
    target = torch.tensor([-10.0, 10.0]).repeat_interleave(5)[:, None]
    log_p = lambda x: -0.5 * (x - target.repeat(len(x) // 10, 1)).square().sum(-1)
    got = ascend(log_p, torch.randn(10, 2), problems=2)
    assert got.best.shape == (2,)
    assert got.best[0] < 5 <= got.best[1]
    torch.testing.assert_close(got.x[got.best], torch.tensor([[-10.0, -10.0], [10.0, 10.0]]), atol=1e-4, rtol=0)
    assert got.agrees.all()


def test_equal_heights_at_other_places_do_not_agree():
    got = ascend(lambda x: -(x.square() - 1).square().sum(-1), torch.tensor([[2.0], [-2.0], [3.0]]))
    assert got.agrees.sum() in (1, 2)


def test_the_type_is_the_starts():
    got = ascend(lambda x: -(x - 1).square().sum(-1), torch.randn(4, 2, dtype=torch.float32))
    assert got.x.dtype == got.log_p.dtype == torch.float32
    torch.testing.assert_close(got.x, torch.ones(4, 2, dtype=torch.float32), atol=1e-3, rtol=0)


BAD = {
    "no steps": ({"steps": 0}, OptionError, "steps is at least 1, got 0"),
    "a list short": ({"values": (None,)}, OptionError, "rows have 2 coordinates, got 1 lists"),
    "nothing free": ({"fixed": torch.tensor([True, True])}, OptionError, "every coordinate is held"),
    "off the list": ({"values": (torch.tensor([1.0]), None)}, DataError, "chain 0 starts at coordinate 0 = 0.0"),
    "ragged": ({"problems": 2}, DataError, r"got \(3, 2\) for problems=2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    options, error, sentence = BAD[name]
    with pytest.raises(error, match=sentence):
        ascend(lambda x: -x.square().sum(-1), torch.zeros(3, 2), **options)


def test_a_density_without_gradient_is_refused():
    with pytest.raises(OptionError, match="a log-density with a gradient is needed"):
        ascend(lambda x: -x.detach().square().sum(-1), torch.zeros(3, 2))
