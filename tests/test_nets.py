"""Networks and what they are fed with."""

import torch
from torch import nn
from torch.testing import assert_close

from pofx.domain import Domain, Variable, VariableKind
from pofx.nets.features import Features
from pofx.nets.mlp import MLP

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
