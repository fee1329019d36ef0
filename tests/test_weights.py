"""Rows that count unequally: an integer weight is so many rows, and rows of q weighted by p / q stand for rows of p."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from test_cli import pofx_
from test_learn import Config, normal, weights
from torch.testing import assert_close

import pofx
from pofx.errors import DataError, Unavailable
from pofx.learn import run
from pofx.learn.rows import Rows

COUNTS = torch.tensor([3.0, 0.0, 1.0, 2.0, 5.0, 1.0], dtype=torch.float64)


@pytest.fixture
def rows():
    return torch.randn(6, 2) + 1, torch.randn(4, 2)


def repeated(x, w):
    return x.repeat_interleave(w.long(), 0)


@pytest.mark.parametrize("unit", [1.0, 0.25])
def test_an_integer_weight_is_so_many_rows(rows, unit):
    """Loss, held-out score and every step of whole passes are those of the repeated rows, in whatever unit weights are."""
    x, held = rows
    held_w = torch.tensor([1.0, 4.0, 0.0, 2.0])
    config = Config(batch_size=100, max_epochs=20, learning_rate=0.1)
    one, other = normal(), normal()
    a = run(one, x, config=config, holdout=held, weights=unit * COUNTS, holdout_weights=unit * held_w)
    b = run(other, repeated(x, COUNTS), config=config, holdout=repeated(held, held_w))
    assert_close(weights(one), weights(other), rtol=1e-10, atol=1e-12)
    for name in ("train", "holdout"):
        assert [row[name] for row in a.history] == pytest.approx([row[name] for row in b.history], rel=1e-10)


def test_minibatches_have_the_whole_pass_s_mean(rows):
    """With a step of size nearly 0 the mean over a pass of the batches' losses is sum w loss / sum w."""
    x, _ = rows
    record = run(normal(), x, config=Config(batch_size=4, max_epochs=1, learning_rate=1e-300), weights=COUNTS)
    exact = (COUNTS * normal().loss(x).detach()).sum() / COUNTS.sum()
    assert record.history[0]["train"] == pytest.approx(float(exact), rel=1e-12)


def test_weighted_rows_of_q_give_p():
    """q = N(0, 2²), p = N(1, 0.8²): the closed form of the weighted likelihood is the weighted mean and deviation, which are p's."""
    x = 2 * torch.randn(5000, 2)
    w = (-0.5 * ((x - 1) / 0.8).square() + 0.5 * (x / 2).square()).sum(1).exp()
    model = normal()
    for rate in (0.1, 0.01, 1e-3):
        run(model, x, config=Config(batch_size=5000, max_epochs=120, learning_rate=rate), weights=w)
    mean = (w[:, None] * x).sum(0) / w.sum()
    assert_close(model.mu.detach(), mean, rtol=0, atol=1e-4)
    size = float(w.sum() ** 2 / w.square().sum())
    assert (model.mu - 1).abs().max() < 6 * 0.8 / math.sqrt(size)  # 6 errors of means worth so many rows: below 1e-8
    assert (model.log_sigma.exp() - 0.8).abs().max() < 6 * 0.8 / math.sqrt(2 * size)


def test_what_rows_set_before_the_first_step_sees_their_weights():
    """1000 copies of each row, each drawn half its weight's times, rounded up or down: a deviation of 16 at most; 6 of them."""
    x = torch.arange(6.0)[:, None]
    seen = Rows(x.repeat(1000, 1), None, COUNTS.repeat(1000)).alike(torch.Generator().manual_seed(0)).x
    got = torch.stack([(seen == k).sum() for k in range(6)]).double()
    assert_close(got, 500 * COUNTS, rtol=0, atol=96.0)
    assert Rows(x).alike(torch.Generator()).x is x


@pytest.fixture
def table():
    source = np.random.default_rng(0)
    frame = pd.DataFrame(source.normal(size=(300, 2)), columns=["a", "b"])
    return frame.assign(w=np.exp(2 * frame["a"] - 2))  # p = N(2, 1) in a


def test_a_column_or_numbers_weigh_a_fit(table):
    """Both give one model, whose mean is that of the weighted rows and not of the rows."""
    plain = table.drop(columns="w")
    options = {"layers": 2, "width": 8, "max_epochs": 3}
    p = pofx.fit(table, "realnvp", weights="w", progress=False, **options)
    q = pofx.fit(plain, "realnvp", weights=table["w"], progress=False, **options)
    assert p.domain.names == ("a", "b")
    assert_close(np.asarray(p.log_prob(plain)), np.asarray(q.log_prob(plain)))
    drawn = p.sample(4000)
    assert abs(drawn["a"].mean() - np.average(table["a"], weights=table["w"])) < 0.5
    assert drawn["a"].mean() > 1


def test_the_shell_weighs_by_a_column(table, tmp_path):
    table.to_csv(tmp_path / "t.csv", index=False)
    settings = ("--set", "layers=2", "--set", "width=8", "--set", "max_epochs=2")
    pofx_("fit", tmp_path / "t.csv", "-f", "realnvp", "--weights", "w", *settings, "-o", tmp_path / "m.safetensors")
    assert pofx.open(tmp_path / "m.safetensors").domain.names == ("a", "b")
    error = pofx_("fit", tmp_path / "t.csv", "-f", "realnvp", "--weights", "v", code=2)
    assert "there is no column 'v' to weigh the rows by" in error


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([1.0, 2.0], "got 300 rows and weights of shape"),
        (np.where(np.arange(300) == 7, -1.0, 1.0), "the weight of row 7 is -1"),
        (np.where(np.arange(300) == 7, np.nan, 1.0), "the weight of row 7 is nan"),
        (np.zeros(300), "the weights of all 300 rows are 0"),
        (["x"] * 300, "one number a row, or the name of a column"),
        ("v", "there is no column 'v'"),
    ],
)
def test_weights_that_can_not_work_are_told(table, given, sentence):
    with pytest.raises(DataError, match=sentence):
        pofx.fit(table, "realnvp", weights=given)


def test_an_array_has_no_columns(table):
    with pytest.raises(DataError, match="the rows are an array: give one number a row"):
        pofx.fit(table.to_numpy(), "realnvp", weights="w")


def test_families_of_all_rows_at_once_name_those_that_can(table):
    with pytest.raises(Unavailable, match=r"gmm has no learning from weighted rows.*families that answer it: .*realnvp.*vae"):
        pofx.fit(table, "gmm", weights="w")
