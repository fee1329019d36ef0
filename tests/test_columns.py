"""A product of laws is its laws, one column at a time, however they are grouped."""

import pytest
import torch

from pofx.distributions.columns import Columns
from pofx.distributions.continuous import LogNormal, Normal
from pofx.distributions.discrete import Bernoulli, Categorical, Poisson
from pofx.distributions.wrapped import Gridded, MixtureLaw, PointMass

MIXED = [
    Normal(),
    Categorical(3),
    Normal(),
    PointMass(2.0),
    Poisson(),
    Gridded(Normal(0.05), 0.5, 0.0),
    Categorical(3),
    LogNormal(),
    MixtureLaw(Normal(), 2),
]
PRODUCTS = {
    "mixed": MIXED,
    "one group": [Bernoulli()] * 6,
    "groups side by side": [Normal(), Normal(), Poisson(), Poisson()],
    "one": [Poisson()],
    "no parameters": [PointMass(1.0)] * 2,
}


def made(laws):
    """A product, parameters (5, 1, width) and rows (7, D) with a hole."""
    columns = Columns(laws)
    theta = torch.randn(5, 1, columns.width)
    x = columns.sample(theta[0].expand(7, -1))
    x[2, 0] = torch.nan
    return columns, theta, x


def positions(laws):
    """Where the parameters of each variable stand: equal laws together, in order of first appearance."""
    at, begin = {}, 0
    for law in dict.fromkeys(laws):
        for d, other in enumerate(laws):
            if other == law:
                at[d] = slice(begin, begin + law.width)
                begin += law.width
    return at


@pytest.mark.parametrize("laws", PRODUCTS.values(), ids=PRODUCTS)
def test_each_column_is_its_law(laws):
    columns, theta, x = made(laws)
    at = positions(laws)
    by_column = [law.log_prob(theta[..., at[d]], x[:, d]) for d, law in enumerate(laws)]
    torch.testing.assert_close(columns.log_prob(theta, x), torch.stack(by_column, dim=-1))
    for name in ("mean", "mode", "centre", "log_prior"):
        by_column = [getattr(law, name)(theta[:, 0, at[d]]) for d, law in enumerate(laws)]
        torch.testing.assert_close(getattr(columns, name)(theta[:, 0]), torch.stack(by_column, dim=-1))


@pytest.mark.parametrize("laws", PRODUCTS.values(), ids=PRODUCTS)
def test_fit_is_each_columns_fit(laws):
    columns, theta, _ = made(laws)
    x = columns.sample(theta[0].expand(60, -1))
    x[:5, 0] = torch.nan
    weights = torch.rand(60, 3)
    fitted, at = columns.fit(x, weights), positions(laws)
    assert fitted.shape == (3, columns.width)
    for d, law in enumerate(laws):
        torch.testing.assert_close(fitted[:, at[d]], law.fit(x[:, d], weights), atol=1e-6, rtol=1e-6)
    again = columns.fit(x, weights, fitted)
    torch.testing.assert_close(columns.log_prob(again[0], x), columns.log_prob(fitted[0], x), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("laws", PRODUCTS.values(), ids=PRODUCTS)
def test_selection_is_the_same_laws_of_those_columns(laws):
    columns, theta, x = made(laws)
    keep = list(range(len(laws)))[::-2]
    chosen, at = columns.select(keep)
    assert chosen.laws == tuple(laws[d] for d in keep)
    torch.testing.assert_close(chosen.log_prob(theta[..., at], x[:, keep]), columns.log_prob(theta, x)[..., keep])


def test_permuting_the_columns_permutes_the_answer():
    columns, theta, x = made(MIXED)
    order = torch.randperm(len(MIXED)).tolist()
    other, at = columns.select(order)
    torch.testing.assert_close(other.log_prob(theta[..., at], x[:, order]), columns.log_prob(theta, x)[..., order])
    torch.testing.assert_close(other.mean(theta[..., at]), columns.mean(theta)[..., order])


def test_draws_have_the_shape_of_the_parameters_and_the_generator_decides_them():
    columns, theta, _ = made(MIXED)
    draws = [columns.sample(theta, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert draws[0].shape == (5, 1, len(MIXED))
    assert torch.equal(*draws)


def test_centre_is_the_mean_of_numbers_and_the_mode_of_levels():
    columns = Columns([Normal(), Categorical(3), Categorical(3, numbers=True)])
    theta = columns.fit(torch.tensor([[1.0, 2.0, 2.0], [2.0, 2.0, 0.0], [3.0, 0.0, 1.0]]), torch.ones(3, 1))
    torch.testing.assert_close(columns.centre(theta)[0], torch.tensor([2.0, 2.0, 1.0]))


def test_gradients_reach_every_parameter():
    columns, theta, x = made(MIXED)
    free = theta.clone().requires_grad_()
    columns.log_prob(free, x).sum().backward()
    assert free.grad.isfinite().all()
    assert (free.grad.abs().sum((0, 1)) > 0).all()
