"""The kinds of columns: a table of made columns and what they are, and the two traps, rounding and spikes."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pofx.data import infer_domain
from pofx.data.grids import resolution
from pofx.domain import CONTINUOUS

N = 2000
TABLES = Path(os.environ.get("POFX_DATA", "")) / "tables"  # real tables with their kinds in NAME.json beside NAME.csv


def rng():
    return np.random.RandomState(0)


def unused(levels):
    return pd.Series(rng().choice(sorted(levels)[:3], N), dtype=pd.CategoricalDtype(levels))


def ordered(levels):
    return pd.Series(rng().choice(levels, N), dtype=pd.CategoricalDtype(levels, ordered=True))


COLUMNS = {
    "normal": (rng().randn(N), "real", {}),
    "log-normal": (np.exp(rng().randn(N)), "positive", {"resolution": None}),
    "log-normal, single precision": (np.exp(rng().randn(N)).astype(np.float32), "positive", {"resolution": None, "dtype": "float32"}),
    "far above 0, skewed to the left": (1000 - 10 * np.exp(rng().randn(N)), "real", {"resolution": None}),
    "uniform on (0, 1)": (rng().rand(N), "interval", {"lower": 0.0, "upper": 1.0}),
    "a narrow part of (0, 1)": (0.4 + 0.2 * rng().rand(N), "real", {}),
    "uniform on [0, 1]": (np.append(rng().rand(N - 2), [0.0, 1.0]), "real", {}),
    "one decimal": (rng().randn(N).round(1), "real", {"resolution": 0.1, "spike": None}),
    "one decimal, single precision": ((50 + 9 * rng().randn(N)).round(1).astype(np.float32), "real", {"resolution": 0.1}),
    "steps of 25": ((4000 + 800 * rng().randn(N)) // 25 * 25.0, "real", {"resolution": 25.0}),
    "steps of 0.005": ((np.exp(0.5 * rng().randn(N)) * 200).round() / 200, "positive", {"resolution": 0.005}),
    "one decimal, a few slips": (np.append(rng().randn(N - 9).round(1), 9 * [0.123]), "real", {"resolution": 0.1}),
    "one decimal, one in ten not": (np.where(rng().rand(N) < 0.1, rng().randn(N), rng().randn(N).round(1)), "real", {"resolution": None}),
    "four decimals, no two alike": (1000 * rng().rand(N).round(7), "real", {"resolution": None}),
    "rounded to 0": (np.exp(rng().randn(N)).round(), "count", {}),
    "rounded to 0, one decimal": ((0.5 * np.exp(rng().randn(N))).round(1), "positive", {"resolution": 0.1}),
    "zeros and a log-normal": (np.where(rng().rand(N) < 0.3, 0.0, np.exp(rng().randn(N))), "positive", {"spike": 0.0, "resolution": None}),
    "zeros and rounded": (np.where(rng().rand(N) < 0.3, 0.0, np.exp(2 + rng().randn(N)).round(2)), "positive", {"spike": 0.0}),
    "a mark below 0": (np.where(rng().rand(N) < 0.3, -9.0, np.exp(rng().randn(N))), "real", {"spike": -9.0}),
    "a value in the middle": (np.where(rng().rand(N) < 0.2, 0.5, rng().randn(N)), "real", {"spike": 0.5}),
    "a value in too few rows": (np.where(rng().rand(N) < 0.02, 0.5, rng().randn(N)), "real", {"spike": None}),
    "Poisson": (rng().poisson(3.0, N), "count", {"lower": 0}),
    "Poisson, missing cells": (np.where(rng().rand(N) < 0.1, np.nan, rng().poisson(3.0, N)), "count", {"dtype": "float64"}),
    "ages": (rng().randint(17, 90, N), "count", {"lower": 0}),
    "a scale of 1 ... 5": (rng().randint(1, 6, N), "ordinal", {"levels": (1, 2, 3, 4, 5)}),
    "years": (rng().choice([2007, 2009, 2010], N), "ordinal", {"levels": (2007, 2008, 2009, 2010)}),
    "prices": (np.exp(8 + rng().randn(N)).astype(int), "positive", {"resolution": 1.0}),
    "temperatures": ((3 + 12 * rng().randn(N)).astype(int), "real", {"resolution": 1.0}),
    "two numbers": (rng().choice([1, 2], N), "binary", {"levels": (1, 2)}),
    "two reals": (rng().choice([0.5, 1.0], N), "binary", {"levels": (0.5, 1)}),
    "truths": (rng().rand(N) < 0.5, "binary", {"levels": (False, True)}),
    "truths, missing cells": (pd.Series([True, None, False, True] * 9, dtype=object), "binary", {"levels": (False, True)}),
    "truths, nullable": (pd.array([True, None, False, True] * 9, dtype="boolean"), "binary", {"dtype": "boolean"}),
    "two texts": (rng().choice(["m", "f"], N), "binary", {"levels": ("f", "m")}),
    "three texts": (rng().choice(["u", "w", "v"], N), "categorical", {"levels": ("u", "v", "w")}),
    "codes": (rng().choice(["0311", "311", "0012"], N), "categorical", {"levels": ("0012", "0311", "311")}),
    "categories": (unused(["w", "u", "v", "z"]), "categorical", {"levels": ("w", "u", "v", "z")}),
    "ordered categories": (ordered(["low", "mid", "high"]), "ordinal", {"levels": ("low", "mid", "high"), "dtype": "category"}),
    "ordered numbers": (ordered([3, 1, 2]), "ordinal", {"levels": (3, 1, 2)}),
    "nullable integers": (pd.array([1, None, 3, 8] * 9, dtype="Int64"), "count", {"dtype": "Int64"}),
    "an Enum of polars": (pl.Series(["b", "a", "c"] * 9, dtype=pl.Enum(["c", "b", "a"])), "ordinal", {"levels": ("c", "b", "a")}),
    "a Categorical of polars": (pl.Series(["b", "a", "c"] * 9, dtype=pl.Categorical), "categorical", {"levels": ("a", "b", "c")}),
    "few rows": (np.array([1.0, 2.0, 3.0]), "real", {"resolution": None}),
}


@pytest.mark.parametrize(("values", "kind", "fields"), COLUMNS.values(), ids=COLUMNS)
def test_a_column_is_what_it_was_made_as(values, kind, fields):
    frame = pl.DataFrame({"a": values}) if isinstance(values, pl.Series) else pd.DataFrame({"a": values})
    v = infer_domain(frame)["a"]
    assert v.kind == kind, v
    assert {name: getattr(v, name) for name in fields} == fields
    assert v.reason


@given(st.integers(-6, 4), st.sampled_from([1.0, 2.0, 2.5, 5.0]), st.integers(0, 2**30))
@settings(max_examples=60, deadline=None)
def test_every_decimal_grid_is_found(power, mantissa, seed):
    """Of 4000 rows on about 60 points of a grid, the step is found, or a coarser one that holds 99 % of the rows."""
    step = float(f"{mantissa}e{power}")
    steps = (10 * np.random.RandomState(seed).randn(4000)).round()
    found = resolution(steps * step)
    assert found == pytest.approx(step, rel=1e-12)


@given(st.floats(1e-6, 1e6), st.floats(-1e3, 1e3), st.integers(0, 2**30))
@settings(max_examples=60, deadline=None)
def test_full_precision_is_never_called_rounded(scale, shift, seed):
    x = scale * np.random.RandomState(seed).randn(300) + shift
    assert infer_domain(pd.DataFrame({"a": x}))["a"].resolution is None
    single = x.astype(np.float32)
    if len(np.unique(single)) == len(single):
        assert infer_domain(pd.DataFrame({"a": single}))["a"].resolution is None


def test_kinds_do_not_depend_on_the_unit():
    """Inches or metres: a column times 1000 is of the same kind."""
    x = np.exp(0.3 * rng().randn(N))
    kinds = {infer_domain(pd.DataFrame({"a": unit * x}))["a"].kind for unit in (1e-4, 1.7, 39.37, 1e5)}
    assert len(kinds) == 1


def test_a_declaration_comes_first():
    frame = pd.DataFrame({"id": [f"u{k}" for k in range(30)], "n": range(30), "w": np.linspace(0.1, 0.2, 30), "k": [3, 1, 2] * 10})
    d = infer_domain(frame, {"id": "categorical", "n": "count", "w": {"kind": "interval", "upper": 0.5}, "k": "ordinal"})
    assert [v.kind for v in d.variables] == ["categorical", "count", "interval", "ordinal"]
    assert (d["w"].lower, d["w"].upper) == (0.0, 0.5)
    assert d["k"].levels == (1, 2, 3)
    assert d["id"].reason == "as you said"


ARRAYS = {
    "reals": (rng().randn(99, 3), (3,), "real", {"resolution": None}),
    "positive numbers": (np.exp(rng().randn(99, 3)), (3,), "real", {}),
    "rounded": (rng().randn(99, 3).round(1), (3,), "real", {"resolution": 0.1}),
    "one axis": (rng().randn(99), (1,), "real", {}),
    "counts": (rng().poisson(3, (99, 2)), (2,), "count", {"lower": 0}),
    "17 greys": (np.arange(128).reshape(2, 8, 8).astype(np.uint8) % 17, (8, 8), "count", {"upper": 16, "dtype": "uint8"}),
    "bytes": (np.arange(128).reshape(2, 8, 8).astype(np.uint8), (8, 8), "count", {"upper": 255}),
    "17 greys as floats": (np.arange(128.0).reshape(2, 8, 8) % 17, (8, 8), "count", {"upper": 16, "dtype": "float64"}),
    "bits": (rng().rand(9, 5) < 0.5, (5,), "count", {"upper": 1, "dtype": "bool"}),
    "symbols": (rng().randint(0, 21, (9, 5)).astype(np.uint8), (5,), "count", {"upper": 20}),
    "black": (np.zeros((2, 3, 3), dtype=np.uint8), (3, 3), "count", {"upper": 1}),
    "bytes over 255": (rng().randint(0, 256, (2, 4, 4)).astype(np.float32) / np.float32(255), (4, 4), "real", {"resolution": 1 / 255}),
    "grey reals": (rng().rand(2, 4, 4), (4, 4), "real", {"resolution": None}),
    "colours last": (rng().randint(0, 256, (2, 6, 5, 3)).astype(np.uint8), (3, 6, 5), "count", {"upper": 255}),
    "colours first": (rng().randint(0, 256, (2, 3, 4, 5)).astype(np.uint8), (3, 4, 5), "count", {"upper": 255}),
    "one colour last": (rng().randint(0, 256, (2, 6, 5, 1)).astype(np.uint8), (1, 6, 5), "count", {}),
    "a tensor": (torch.rand(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), (2,), "real", {"dtype": "float64"}),
}


@pytest.mark.parametrize(("x", "shape", "kind", "fields"), ARRAYS.values(), ids=ARRAYS)
def test_an_array_is_a_vector_or_equal_pixels(x, shape, kind, fields):
    d = infer_domain(x)
    assert d.shape == shape
    assert {v.kind for v in d.variables} == {kind}
    assert d.names[0] == "x0"
    for v in d.variables:
        assert {name: getattr(v, name) for name in fields} == fields


def test_a_dead_pixel_of_a_flat_array_is_a_count():
    x = np.column_stack((np.zeros(50), rng().poisson(3, 50)))
    assert [v.kind for v in infer_domain(x).variables] == ["count", "count"]


def test_the_domain_prints_as_a_table_with_reasons():
    text = str(infer_domain(pd.DataFrame({"a": COLUMNS["zeros and rounded"][0], "pet": ["cat", "newt"] * (N // 2)})))
    assert "spike at 0" in text
    assert "because" in text.splitlines()[0]
    assert "text of 2 levels" in text


@pytest.mark.skipif(not TABLES.is_dir(), reason="needs real tables, which are not shipped, in the folder tables of POFX_DATA")
@pytest.mark.slow
def test_real_tables_are_read_as_their_keepers_describe_them():
    """Nine columns in ten: continuous as continuous, levels as levels; an ordinal may look like a count or a category."""
    agree, all_columns = 0, 0
    for path in TABLES.glob("*.json"):
        keeper = json.loads(path.read_text())
        if isinstance(keeper, dict):
            domain = infer_domain(pd.read_csv(TABLES / keeper["file"], keep_default_na=False, na_values=[""]))
            pairs = [(str(domain[name].kind), column["type"]) for name, column in keeper["schema"].items()]
            agree += sum(alike(*pair) for pair in pairs)
            all_columns += len(pairs)
    assert all_columns == 397
    assert agree >= 0.9 * all_columns


def alike(found, described):
    """Text alone can not say whether its levels have an order, nor can whole numbers say whether they count."""
    continuous = {str(kind) for kind in CONTINUOUS}
    loose = {"ordinal": {"count", "categorical", "binary"}, "categorical": {"binary"}}
    return found == described or {found, described} <= continuous or found in loose.get(described, set())
