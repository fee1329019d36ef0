"""Preparation: from the user's variables to what a family takes."""

import math

import pytest
import torch
from torch.testing import assert_close

from pofx.data.preparation import blank, prepare
from pofx.domain import Domain, Variable, VariableKind

VARIABLES = (
    Variable("real", VariableKind.REAL),
    Variable("positive", VariableKind.POSITIVE),
    Variable("interval", VariableKind.INTERVAL, lower=0.0, upper=2.0),
    Variable("rounded", VariableKind.REAL, resolution=0.1),
    Variable("spiked", VariableKind.REAL, spike=2.0),
    Variable("both", VariableKind.REAL, resolution=0.5, spike=1.0),
    Variable("rain", VariableKind.POSITIVE, spike=0.0),
    Variable("rounded_rain", VariableKind.POSITIVE, resolution=0.1, spike=0.0),
    Variable("share", VariableKind.INTERVAL, lower=0.0, upper=1.0, spike=1.0),
    Variable("percent", VariableKind.INTERVAL, lower=0.0, upper=1.0, resolution=0.01),
    Variable("pixel", VariableKind.COUNT, lower=0.0, upper=16.0),
    Variable("endless", VariableKind.COUNT, lower=3.0),
    Variable("wide", VariableKind.COUNT, lower=0.0, upper=65535.0),
    Variable("grade", VariableKind.ORDINAL, levels=("low", "mid", "high")),
    Variable("colour", VariableKind.CATEGORICAL, levels=("red", "green", "blue", "grey")),
    Variable("yes", VariableKind.BINARY, levels=(False, True)),
)
DOMAIN = Domain(VARIABLES)


def column(v, n, g):
    normal, uniform = torch.randn(n, generator=g), torch.rand(n, generator=g)
    if v.cardinality is not None:
        return (0.0 if v.levels else v.lower) + (uniform * min(v.cardinality, 2000)).floor()
    x = {"real": 5 * normal, "positive": normal.exp(), "interval": v.lower + (v.upper - v.lower) * (0.02 + 0.96 * uniform)}.get(v.kind)
    x = v.lower + (4 * normal.exp()).floor() if x is None else x
    if v.resolution is not None:
        x = (x / v.resolution).round().clamp(min=1 if v.kind == "positive" else -math.inf) * v.resolution
    return x if v.spike is None else torch.where(torch.rand(n, generator=g) < 0.4, v.spike, x)


def rows(n=600):
    g = torch.Generator().manual_seed(5)
    x = torch.stack([column(v, n, g) for v in VARIABLES], dim=1)
    x[torch.rand(x.shape, generator=g) < 0.1] = torch.nan
    return x


def there_and_back(preparation, x):
    y = x if preparation.lift is None else preparation.lift.lift(x)[0]
    u = y if preparation.transform is None else preparation.transform.inverse(y)[0]
    y = u if preparation.transform is None else preparation.transform(u)[0]
    return u, y if preparation.lift is None else preparation.lift(y)


@pytest.mark.parametrize("takes", ["everything", "discrete", "reals"])
def test_what_goes_in_comes_back(takes):
    x = rows()
    u, back = there_and_back(prepare(DOMAIN, x, takes), x)
    assert torch.equal(u.isnan(), x.isnan())
    assert_close(back, x, equal_nan=True, rtol=1e-9, atol=1e-9)


def test_reals_are_standardised():
    x = rows()
    preparation = prepare(DOMAIN, x, "reals")
    u = preparation.transform.inverse(preparation.lift.lift(x)[0])[0]
    mean = u.nanmean(0)
    sd = (u - mean).square().nanmean(0).sqrt()
    assert (mean.abs() < 0.2).all()
    assert ((sd > 0.7) & (sd < 1.3)).all()
    assert {(v.kind, v.resolution, v.spike) for v in preparation.domain.variables} == {(VariableKind.REAL, None, None)}


def test_discrete_leaves_codes_and_keeps_atoms_and_grids_exact():
    x = rows()
    preparation = prepare(DOMAIN, x, "discrete")
    u, _ = there_and_back(preparation, x)
    seen = preparation.domain
    for d, v in enumerate(VARIABLES):
        if not v.continuous:
            assert seen.variables[d] == v
            assert_close(u[:, d], x[:, d], equal_nan=True)
    spiked, both = DOMAIN.index("spiked"), DOMAIN.index("both")
    assert torch.equal(u[:, spiked].float() == seen["spiked"].spike, x[:, spiked] == 2.0)
    assert torch.equal(u[:, both].float() == seen["both"].spike, x[:, both] == 1.0)
    steps = u[:, DOMAIN.index("rounded")] / seen["rounded"].resolution
    assert_close(steps, steps.round(), equal_nan=True, rtol=0, atol=1e-9)


def test_everything_is_left_as_it_is():
    preparation = prepare(DOMAIN, rows(), "everything")
    assert (preparation.lift, preparation.transform) == (None, None)
    assert preparation.domain is DOMAIN


@pytest.mark.parametrize("takes", ["everything", "discrete", "reals"])
def test_a_blank_takes_the_numbers_of_another(takes):
    x = rows()
    fitted, empty = prepare(DOMAIN, x, takes), blank(DOMAIN, takes)
    for mine, theirs in ((empty.lift, fitted.lift), (empty.transform, fitted.transform)):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            mine.load_state_dict(theirs.state_dict())
    if fitted.lift is not None:
        share = torch.rand(x.shape)
        assert_close(empty.lift.place(x, share), fitted.lift.place(x, share), equal_nan=True)
    if fitted.transform is not None:
        assert_close(empty.transform(x.nan_to_num(1.0)), fitted.transform(x.nan_to_num(1.0)))


@pytest.mark.parametrize("takes", ["discrete", "reals"])
@pytest.mark.parametrize("value", [1.0, math.nan])
def test_constant_and_empty_columns_do_no_harm(takes, value):
    x = torch.full((7, len(VARIABLES)), value)
    x[:, DOMAIN.index("endless")] = 3.0
    x[:, DOMAIN.index("interval")] = value / 2
    x[:, DOMAIN.index("percent")] = value / 2
    preparation = prepare(DOMAIN, x, takes)
    u, back = there_and_back(preparation, x)
    assert not u.isinf().any()
    assert_close(back, x, equal_nan=True, rtol=1e-9, atol=1e-9)


def test_preparing_twice_gives_equal_numbers():
    x = rows()
    a, b = (prepare(DOMAIN, x, "reals") for _ in range(2))
    assert torch.equal(a.transform.scale, b.transform.scale)
    assert torch.equal(a.lift.cells.gap, b.lift.cells.gap)


def test_the_log_weights_and_slopes_of_a_density_are_the_change_of_variables():
    """A standard normal u behind log and affine maps is a log-normal x."""
    x = torch.randn(300, 1).mul(0.7).add(0.2).exp()
    preparation = prepare(Domain((VARIABLES[1],)), x, "reals")
    u, log_det = preparation.transform.inverse(x)
    shift, scale = preparation.transform.shift, preparation.transform.scale
    expected = torch.distributions.LogNormal(shift, scale).log_prob(x)[:, 0]
    assert_close(torch.distributions.Normal(0.0, 1.0).log_prob(u)[:, 0] + log_det, expected)
