"""Every bad input of the design, end to end: one sentence that names the place, before any training starts."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch

import pofx
import pofx.ask
from pofx.errors import PofxError

rng = np.random.RandomState(0)


def frame(**columns):
    return pd.DataFrame({"a": rng.randn(50), "b": rng.randn(50)} | columns)


FIT = {
    "no rows": (frame()[:0], "no rows"),
    "one row": (frame()[:1], "one row"),
    "no columns": (pd.DataFrame(index=range(5)), "no columns"),
    "a constant column": (frame(c=1.5), "'c' holds one value, 1.5, in every row"),
    "a column without a value": (frame(c=np.nan), "'c'"),
    "an infinity": (frame(c=np.r_[rng.randn(49), np.inf]), "'c'.*row 49|row 49.*'c'"),
    "a column twice": (pd.DataFrame(rng.randn(9, 2), columns=["a", "a"]), "'a'"),
    "a million levels": (frame(c=[f"id-{i}" for i in range(50)]), "'c'"),
    "lists in cells": (frame(c=[[1, 2]] * 50), "'c'"),
    "dates": (frame(c=pd.date_range("2020-01-01", periods=50)), "'c'"),
    "complex numbers": (frame(c=rng.randn(50) + 1j), "'c'"),
    "an array of strings": (np.array([["x", "y"]] * 5), "number"),
    "a scalar": (3.0, "single number"),
    "an empty array": (np.zeros((0, 3)), "no entries"),
    "no data": (None, "None"),
    "a file that is not there": ("nowhere.csv", "nowhere.csv"),
    "a folder that is empty": ("docs", "no pictures"),
    "an unknown name": ("irsi", "iris"),
}


@pytest.fixture
def no_training(monkeypatch):
    def started(*_, **__):
        pytest.fail("training started")

    for learner in ("descend", "learn_full_batch"):
        monkeypatch.setattr(sys.modules["pofx.learn.run"], learner, started)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("family", ["gmm", "vae"])
@pytest.mark.parametrize(("data", "sentence"), FIT.values(), ids=FIT)
def test_bad_data_is_told_before_training(data, sentence, family):
    with pytest.raises(PofxError, match=sentence) as caught:
        pofx.fit(data, family)
    assert "\n" not in str(caught.value)


OPTIONS = {
    "unknown family": ({"family": "gnm"}, "did you mean 'gmm'"),
    "unknown option": ({"family": "gmm", "component": 3}, "did you mean 'components'"),
    "option of a wrong type": ({"family": "gmm", "components": "many"}, "components"),
    "option out of range": ({"family": "vae", "learning_rate": -1.0}, "learning_rate"),
    "unknown column given": ({"family": "vae", "given": "c"}, "no column 'c'"),
    "everything given": ({"family": "vae", "given": ["a", "b"]}, "every column is given"),
    "unknown column in the schema": ({"schema": {"c": "count"}}, "no column 'c'"),
    "unknown kind in the schema": ({"schema": {"a": "counts"}}, "did you mean 'count'"),
    "a schema the data contradict": ({"schema": {"a": "positive"}}, "'a'"),
    "held-out rows of another table": ({"holdout": pd.DataFrame({"z": [1.0]})}, "'a'"),
    "a device that is not there": ({"device": "quantum"}, "quantum"),
    "a negative budget": ({"budget": -1.0}, "budget"),
}


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("options", "sentence"), OPTIONS.values(), ids=OPTIONS)
def test_bad_options_are_told_before_training(options, sentence):
    with pytest.raises(PofxError, match=sentence):
        pofx.fit(frame(), **options)


def test_the_familys_refusal_of_a_condition_is_told_before_training():
    with pytest.raises(PofxError, match="given"):
        pofx.fit(frame(), "gmm", given="a")


ROWS = {
    "wrong width": (np.zeros((3, 5)), "2|columns"),
    "an infinity": (pd.DataFrame({"a": [np.inf], "b": [0.0]}), "'a'"),
    "text in a number": (pd.DataFrame({"a": ["x"], "b": [0.0]}), "'a'"),
    "a column missing": (pd.DataFrame({"a": [0.0]}), "'b'"),
}


@pytest.fixture(scope="module")
def p():
    torch.manual_seed(0)
    return pofx.fit(frame(), "gaussian")


@pytest.mark.parametrize(("rows", "sentence"), ROWS.values(), ids=ROWS)
def test_bad_rows_are_told(p, rows, sentence):
    with pytest.raises(PofxError, match=sentence):
        p.log_prob(rows)
