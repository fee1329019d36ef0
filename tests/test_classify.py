"""Classification by Bayes' rule where the class is the condition of p(x | c), and decoding beside another class."""

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import pofx
from pofx.ask.pofx import PofX
from pofx.cli.main import app
from pofx.data import container_of
from pofx.domain import Domain, Variable
from pofx.errors import DataError, OptionError
from pofx.models.base import Model
from pofx.types import Kind

CLASSES = Variable("kind", "categorical", levels=("r", "g", "b"))


class Shifted(Model):
    """p(x | c) = N(x; c, 1), and a fourth of the rows r, the others g."""

    def __init__(self, *more):
        super().__init__(Domain.real(1), Domain((CLASSES, *more)))

    def frequencies(self, j):
        return torch.tensor([0.25, 0.75, 0.0])

    def _log_prob(self, x, c, generator):
        return torch.distributions.Normal(c.sum(-1), 1.0).log_prob(x[:, 0])

    def _sample(self, n, c, generator):
        return c.sum(-1, keepdim=True) + torch.randn(n, 1, generator=generator)


X = np.linspace(-2, 3, 6)[:, None]


def shifted(*more):
    return PofX(Shifted(*more), container_of(X))


def bayes(x, prior):
    joint = np.array(prior) * np.exp(-0.5 * (x - np.arange(3.0)) ** 2)
    return joint / joint.sum(1, keepdims=True)


def test_the_condition_is_classified_by_bayes_rule():
    answer = shifted().classify(X)
    assert answer.kind is Kind.EXACT
    np.testing.assert_allclose(answer.value, bayes(X, [0.25, 0.75, 0.0]), atol=1e-12)


def test_a_prior_of_ones_own_replaces_the_frequencies():
    np.testing.assert_allclose(shifted().classify(X, prior={"r": 2, "g": 6}).value, bayes(X, [0.25, 0.75, 0.0]), atol=1e-12)


def test_other_conditions_are_taken_from_the_rows_or_beside_them():
    p, size = shifted(Variable("size", "real")), np.full((6, 1), 0.5)
    beside = pd.DataFrame({"size": size[:, 0]})
    np.testing.assert_allclose(p.classify(X, "kind", beside).value, bayes(X - size, [0.25, 0.75, 0.0]), atol=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"prior": {"x": 1.0}}, OptionError, "maps its levels to numbers from 0 up, got 'x'"),
        ({"prior": {"r": -1.0}}, OptionError, "maps its levels to numbers from 0 up"),
        ({"prior": {"r": 0.0}}, OptionError, "gives some level a positive number"),
        ({"prior": {"b": 1.0}}, DataError, "condition 'kind' = 'b' was in no training row"),
    ],
)
def test_priors_that_can_not_be_are_refused(options, error, sentence):
    with pytest.raises(error, match=sentence):
        shifted().classify(X, **options)


# -- as a user has it ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def p():
    """A vae of two numbers that a level shifts; of its three, one is in no row."""
    g = np.random.default_rng(0)
    kind = np.where(np.arange(300) % 3 == 0, "r", "g")
    table = pd.DataFrame({"a": g.normal(size=300) + 6 * (kind == "g"), "b": g.normal(size=300), "kind": kind})
    options = {"latents": 1, "widths": (16,), "max_epochs": 20, "draws": 16, "learning_rate": 0.01}
    return pofx.fit(table, "vae", given="kind", schema={"kind": CLASSES}, holdout=table[::5], **options)


def test_training_frequencies_are_the_prior_and_go_through_a_file(p, tmp_path):
    torch.testing.assert_close(p.model.frequencies(0), torch.tensor([1 / 3, 2 / 3, 0.0]).double())
    rows = pd.DataFrame({"a": [0.0, 6.0], "b": [0.0, 0.0]})
    answer = p.classify(rows)
    assert answer.kind is Kind.ESTIMATE
    assert answer.value.argmax(1).tolist() == [0, 1]
    p.save(tmp_path / "p.safetensors")
    assert (pofx.open(tmp_path / "p.safetensors").classify(rows).value == answer.value).all()


def test_a_code_beside_another_class_changes_the_class(p):
    rows = pd.DataFrame({"a": [0.0] * 4, "b": [-1.0, 0.0, 0.5, 1.0]})
    r, g = pd.DataFrame({"kind": ["r"] * 4}), pd.DataFrame({"kind": ["g"] * 4})
    there = p.decode(p.encode(rows, given=r), given=g)
    assert (p.classify(there).value.argmax(1) == 1).all()


def test_a_level_that_no_training_row_had_is_refused(p):
    for ask in (lambda: p.sample(2, given={"kind": ["b"]}), lambda: p.log_prob(pd.DataFrame({"a": [0.0], "b": [0.0], "kind": ["b"]}))):
        with pytest.raises(DataError, match="condition 'kind' = 'b' was in no training row"):
            ask()


def test_the_shell_classifies(p, tmp_path):
    p.save(tmp_path / "p.safetensors")
    pd.DataFrame({"a": [0.0, 6.0], "b": [0.0, 0.0]}).to_csv(tmp_path / "rows.csv", index=False)
    arguments = ["classify", str(tmp_path / "p.safetensors"), str(tmp_path / "rows.csv"), "--out", str(tmp_path / "kinds.csv")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "kinds.csv")
    assert list(table.columns) == ["kind", "p(r)", "p(g)", "p(b)"]
    assert list(table.kind) == ["r", "g"]
