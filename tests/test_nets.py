"""Networks and what they are fed with."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pofx.domain import Domain, Variable, VariableKind
from pofx.errors import OptionError
from pofx.nets.features import Features
from pofx.nets.made import MADE
from pofx.nets.mlp import MLP
from pofx.nets.residual import ResidualMLP
from pofx.nets.waves import Waves

MIXED = Domain(
    (
        Variable("a", VariableKind.REAL),
        Variable("k", VariableKind.CATEGORICAL, levels=("x", "y", "z")),
        Variable("n", VariableKind.COUNT, lower=0.0),
    )
)
ROWS = torch.tensor([[1.0, 0.0, 4.0], [3.0, 2.0, torch.nan], [5.0, torch.nan, 8.0]])


def test_last_layer_starts_at_zero_unless_told():
    v = torch.randn(5, 3)
    assert_close(MLP(3, 2)(v), torch.zeros(5, 2))
    assert MLP(3, 2, zero_last=False)(v).abs().min() > 0


def test_without_hidden_layers_it_is_affine():
    net = MLP(3, 2, (), zero_last=False)
    a, b = torch.randn(3), torch.randn(3)
    assert_close(net((a + b) / 2), (net(a) + net(b)) / 2)


def test_dropout_and_activation_go_between_the_layers():
    kinds = [type(layer) for layer in MLP(3, 2, (4,), activation=nn.Tanh, dropout=0.5)]
    assert kinds == [nn.Linear, nn.Tanh, nn.Dropout, nn.Linear]


def test_features_are_standardised_numbers_levels_and_observed_columns():
    features = Features(MIXED).fit(ROWS)
    a = (ROWS[:, 0] - 3) / (8 / 3) ** 0.5
    expected = torch.tensor([[a[0], -1, 1, 0, 0, 0, 1, 1], [a[1], 0, 0, 0, 1, 0, 1, -1], [a[2], 1, 0, 0, 0, 0, -1, 1]])
    assert features.width == 8
    assert_close(features(ROWS), expected)


def test_a_variable_never_missing_in_training_has_no_say_when_missing_later():
    features = Features(MIXED).fit(ROWS)
    at_mean = features(torch.tensor([3.0, 1.0, 6.0]))
    assert_close(features(torch.tensor([torch.nan, 1.0, 6.0])), at_mean)


def test_width_does_not_depend_on_the_rows():
    assert Features(MIXED).fit(ROWS[:1]).width == Features(MIXED).width == 8
    assert Features(MIXED, mask=False)(ROWS).shape == (3, 5)


def test_constant_or_empty_columns_are_not_divided_by_zero():
    rows = torch.tensor([[7.0, torch.nan], [7.0, torch.nan]])
    assert_close(Features(Domain.real(2), mask=False).fit(rows)(rows), torch.zeros(2, 2))


def test_dtype_in_is_dtype_out():
    assert Features(MIXED).fit(ROWS)(ROWS.float()).dtype is torch.float32


# -- MADE ------------------------------------------------------------------------------------------

NETS = {
    "plain": {"widths": (16, 12)},
    "one layer": {"widths": (5,)},
    "residual": {"widths": (12, 12, 12), "residual": True},
    "backwards": {"widths": (16, 16), "backwards": True},
    "context": {"widths": (16, 16), "context": 2},
    "fewer units than degrees": {"widths": (3, 2)},
}


@pytest.fixture(params=NETS)
def made(request):
    """A net of 5 variables and 2 outputs each, away from its start, and a condition for 4 columns."""
    net = MADE(5, 2, **NETS[request.param])
    net.theta.data = torch.randn_like(net.theta) * net.mask
    return net, torch.randn(2, 4) if net.context else None


def test_outputs_see_the_variables_before_theirs_only(made):
    net, c = made
    c = None if c is None else c[:, :1].expand(-1, 64)
    J = torch.autograd.functional.jacobian(lambda x: net(x, c).sum((0, 2)), torch.randn(5, 64)).sum(-1)
    order = [net.at(i) for i in range(5)]
    J = J[order][:, order]
    assert torch.equal(J.triu(), torch.zeros(5, 5))
    if min(net.form.widths) >= 5:
        assert (J.tril(-1).diagonal(-1) != 0).all()


def test_every_variable_sees_the_condition():
    net = MADE(1, 2, (8,), context=2)
    net.layers[-1].weight.data.normal_()
    J = torch.autograd.functional.jacobian(lambda c: net(torch.zeros(1, 1), c).flatten(), torch.randn(2, 1))
    assert (J.abs().sum((1, 2)) > 0).all()


def test_unrolled_it_gives_what_the_pass_gives(made):
    net, c = made
    x, seen = torch.randn(5, 4), {}

    def solve(d, outputs):
        seen[d] = outputs
        return x[d]

    assert torch.equal(net.unroll(solve, x, c).x, x)
    assert_close(torch.stack([seen[d] for d in range(5)], 1), net(x, c))


@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
def test_many_columns_give_what_few_give(options, monkeypatch):
    """Products of a cut layer leave out what is 0."""
    net = MADE(5, 2, **options)
    net.theta.data = torch.randn_like(net.theta) * net.mask
    x, c = torch.randn(5, 9).requires_grad_(), torch.randn(2, 9) if net.context else None
    found = []
    for wide in (1, 10):
        monkeypatch.setattr("pofx.nets.made._WIDE", wide)
        y = net(x, c)
        found.append((y, *torch.autograd.grad(y.cos().sum(), (x, net.theta))))
    assert_close(*found)
    assert any(layer.units for layer in net.layers) == (len(net.form.widths) > 1)


def test_layers_follow_theta_wherever_it_goes():
    net, x = MADE(3, 1, (8,), start=(0.5,)), torch.randn(3, 4)
    assert_close(net(x), torch.full((1, 3, 4), 0.5))
    with torch.no_grad():
        net.theta.add_(net.mask)
    assert not torch.equal(net(x)[0, 2], net(x)[0, 0])
    single = copy.deepcopy(net).float()
    assert_close(single(x.float()), net(x).float())
    other = MADE(3, 1, (8,))
    other.load_state_dict(net.state_dict(), assign=True)
    assert_close(other(x), net(x))
    assert_close(torch.func.functional_call(net, {"theta": 0 * net.theta}, (x,)), torch.zeros(1, 3, 4))


def test_what_a_unit_may_not_have_stays_zero(made):
    net, c = made
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(5):
        optimiser.zero_grad()
        net(torch.randn(5, 4), c).square().sum().backward()
        optimiser.step()
    assert not net.theta[net.mask == 0].any()
    assert all(layer.weight.any() for layer in net.layers)


def test_a_residual_net_starts_at_zero_and_stands_upright():
    net, v = ResidualMLP(3, 2, 8), torch.randn(6, 3)
    assert torch.equal(net(v), torch.zeros(6, 2))
    net.last.weight.data.normal_()
    assert_close(net.upright(v.T).T, net(v))


def test_a_net_gives_the_same_on_columns():
    net, v = MLP(3, 2, (8,), zero_last=False), torch.randn(6, 3)
    assert_close(net.upright(v.T).T, net(v))


# -- waves -----------------------------------------------------------------------------------------


def test_waves_are_octaves_of_the_held_value():
    v = torch.tensor([[0.5, -9.0], [2.0, 0.0]])
    angles = [2**k * math.pi / 2 * v.clamp(-2, 2) for k in range(3)]
    waves = [torch.stack([f(a) / 2 ** (k / 2) for k, a in enumerate(angles)], 1) for f in (torch.sin, torch.cos)]
    assert_close(Waves(3, 2.0)(v), torch.cat((v[:, None], *waves), 1).flatten(0, 1))
    assert Waves()(v) is v


def test_with_waves_a_net_learns_edges_that_it_does_not_learn_without():
    v = torch.linspace(-4, 4, 256)[None]

    def left(waves):
        net = ResidualMLP(1, 1, 32, waves=waves)
        adam = torch.optim.Adam(net.parameters(), 5e-3, foreach=False)
        for _ in range(100):
            adam.zero_grad()
            loss = (net.upright(v) - (12 * v).sin().sign()).square().mean()
            loss.backward()
            adam.step()
        return loss.item()

    assert left(Waves(6)) < 0.1 < 0.5 < left(None)  # of a variance of 1


@pytest.mark.parametrize(("count", "bound"), [(-1, 5.0), (2, 0.0), (2, math.inf), (2, math.nan)])
def test_impossible_waves_are_refused(count, bound):
    with pytest.raises(OptionError, match="positive bound"):
        Waves(count, bound)
