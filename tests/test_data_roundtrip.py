"""What went in comes out: same values, columns, order, types, levels, missing cells; for every kind of table and array."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal as assert_polars_equal

from pofx.data import Container, container_of, decode, encode, infer_domain
from pofx.data.frames import table
from pofx.domain import Domain, Variable, VariableKind

ROWS = 24
NUMBERS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: v + 0.0)  # no negative zero: numbers, not bit patterns
WORDS = st.sampled_from(["", "cat", "dog", "newt", "Zoë", "0311", "True"])


def cells(values, missing):
    """A column that varies, with missing cells when asked for."""
    column = st.lists(st.none() | values if missing else values, min_size=ROWS, max_size=ROWS)
    return column.filter(lambda c: len({v for v in c if v is not None}) > 1)


def pandas_columns():
    whole, small = st.integers(-(2**40), 2**40), st.integers(0, 9)
    single = NUMBERS.map(lambda v: float(np.float32(v)))
    floats = [("float64", NUMBERS, True), ("float32", single, True)]
    plain = [*floats, ("int64", whole, False), ("uint8", small, False), ("bool", st.booleans(), False)]
    extension = [("Int64", whole, True), ("UInt8", small, True), ("Float32", single, True), ("boolean", st.booleans(), True)]
    arrow = [("int64[pyarrow]", whole, True), ("double[pyarrow]", NUMBERS, True), ("bool[pyarrow]", st.booleans(), True)]
    words = [(name, WORDS, True) for name in ("object", "str", "string[python]", "string[pyarrow]")]
    categories = [(pd.CategoricalDtype(["newt", "", "cat", "dog", "Zoë", "0311", "True"], ordered=o), WORDS, True) for o in (False, True)]
    numbered = [(pd.CategoricalDtype([3, 1, 2, 9], ordered=True), st.sampled_from([1, 2, 3]), True)]
    return [*plain, *extension, *arrow, *words, *categories, *numbered]


def polars_columns():
    whole, small = st.integers(-(2**40), 2**40), st.integers(0, 9)
    single = NUMBERS.map(lambda v: float(np.float32(v)))
    enum = pl.Enum(["newt", "", "cat", "dog", "Zoë", "0311", "True"])
    words = [(dtype, WORDS, True) for dtype in (pl.String, pl.Categorical, enum)]
    numbers = [(pl.Float64, NUMBERS, True), (pl.Float32, single, True), (pl.Int64, whole, True), (pl.UInt8, small, True)]
    return [*numbers, (pl.Boolean, st.booleans(), True), *words]


def rows_of(columns):
    """Some of the kinds of columns, in any order, filled."""
    chosen = st.lists(st.sampled_from(range(len(columns))), min_size=1, max_size=4, unique=True)
    return chosen.flatmap(lambda picks: st.tuples(*(st.tuples(st.just(columns[k][0]), cells(*columns[k][1:])) for k in picks)))


def there_and_back(frame):
    domain = declared(frame)
    return decode(encode(frame, domain), domain, container_of(frame))


def declared(frame):
    """The inferred domain, whatever identifiers chance makes: text is categorical, numbers are what they look like."""
    kinds = {name: "categorical" for name, dtype in table(frame).schema.items() if "String" in str(dtype) or "Object" in str(dtype)}
    reals = {name: "real" for name, dtype in table(frame).schema.items() if dtype.is_numeric()}
    return infer_domain(frame, kinds | reals)


@given(rows_of(pandas_columns()))
@settings(max_examples=60, deadline=None)
def test_pandas_frames_come_back(columns):
    frame = pd.DataFrame({f"c{k}": pd.Series(values, dtype=dtype) for k, (dtype, values) in enumerate(columns)})
    pd.testing.assert_frame_equal(there_and_back(frame), frame)


@given(rows_of(polars_columns()))
@settings(max_examples=60, deadline=None)
def test_polars_frames_come_back(columns):
    frame = pl.DataFrame({f"c{k}": pl.Series(values, dtype=dtype) for k, (dtype, values) in enumerate(columns)})
    assert_polars_equal(there_and_back(frame), frame)


@given(rows_of(polars_columns()))
@settings(max_examples=25, deadline=None)
def test_pyarrow_tables_come_back(columns):
    frame = pl.DataFrame({f"c{k}": pl.Series(values, dtype=dtype) for k, (dtype, values) in enumerate(columns)}).to_arrow()
    frame = pa.table({name: pa.array(frame[name].to_pylist(), frame[name].type) for name in frame.column_names})
    back = there_and_back(frame)
    assert back.to_pydict() == frame.to_pydict()
    assert back.schema.equals(frame.schema, check_metadata=False)


@given(st.lists(st.integers(0, 1000), min_size=30, max_size=30), st.sampled_from([0.1, 0.01, 0.005, 0.25, 2.5, 25.0]))
@settings(max_examples=100, deadline=None)
def test_rounded_values_come_back_to_the_bit(multiples, step):
    domain = Domain((Variable("a", VariableKind.REAL, resolution=step),))
    frame = pd.DataFrame({"a": [float(f"{k * step:.10g}") for k in multiples]})
    x = encode(frame, domain)
    assert decode(x, domain, container_of(frame))["a"].tolist() == frame["a"].tolist()
    wobbly = torch.nextafter(x, torch.full_like(x, torch.inf))
    assert decode(wobbly, domain, container_of(frame))["a"].tolist() == frame["a"].tolist()


ARRAYS = {
    "reals": np.random.RandomState(0).randn(50, 3),
    "single precision": np.random.RandomState(0).randn(50, 3).astype(np.float32),
    "one column": np.random.RandomState(0).randn(50),
    "integers": np.random.RandomState(0).randint(-5, 90, (50, 3)),
    "two values": np.random.RandomState(0).choice([2.0, 5.0], (50, 2)),
    "greys": np.random.RandomState(0).randint(0, 17, (50, 8, 8)).astype(np.uint8),
    "colours last": np.random.RandomState(0).randint(0, 256, (20, 5, 6, 3)).astype(np.uint8),
    "colours first": np.random.RandomState(0).randint(0, 256, (20, 3, 5, 6)).astype(np.uint8),
    "bits": np.random.RandomState(0).rand(50, 4) < 0.3,
    "holes": np.where(np.random.RandomState(0).rand(50, 3) < 0.2, np.nan, np.random.RandomState(1).randn(50, 3)),
}


@pytest.mark.parametrize("x", ARRAYS.values(), ids=ARRAYS)
def test_arrays_come_back(x):
    domain = infer_domain(x)
    back = decode(encode(x, domain), domain, container_of(x))
    assert back.dtype == x.dtype
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool], ids=str)
def test_tensors_come_back(dtype):
    x = (10 * torch.rand(30, 4, generator=torch.Generator().manual_seed(0))).to(dtype)
    x[0, 0] = 0
    domain = infer_domain(x)
    back = decode(encode(x, domain), domain, container_of(x))
    assert back.dtype is dtype
    assert torch.equal(back, x)


def test_colours_are_channels_first_within():
    x = ARRAYS["colours last"]
    domain = infer_domain(x)
    assert domain.shape == (3, 5, 6)
    inside = encode(x, domain).reshape(-1, 3, 5, 6)
    assert torch.equal(inside, torch.from_numpy(np.moveaxis(x, -1, 1).astype(np.float64)))


def test_masked_cells_are_missing():
    x = np.ma.masked_array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.5]], mask=[[0, 1], [0, 0], [0, 0]])
    assert encode(x, Domain.real(2)).isnan().tolist() == [[False, True], [False, False], [False, False]]


MIXED = pd.DataFrame({"n": [1.5, np.nan, 2.5, 4.0], "pet": ["cat", None, "dog", "cat"], "k": [3, 4, 4, 5], 7: [True, False, True, True]})


def test_columns_are_found_by_name_in_any_order():
    domain = infer_domain(MIXED)
    assert domain.names == ("n", "pet", "k", "7")
    shuffled = MIXED[["k", 7, "n", "pet"]].assign(more=1)
    np.testing.assert_array_equal(encode(shuffled, domain), encode(MIXED, domain))


def test_a_number_for_a_label_comes_back():
    assert there_and_back(MIXED[["k", 7]]).columns.tolist() == ["k", 7]


def test_mappings_are_tables():
    domain = infer_domain(MIXED)
    expected = encode(MIXED[:1], domain)
    row = {"n": 1.5, "pet": "cat", "k": 3, "7": True}
    for rows in (row, [row], {name: [value] for name, value in row.items()}, {name: np.array([value]) for name, value in row.items()}):
        assert torch.equal(encode(rows, domain), expected)
    assert isinstance(decode(expected, domain, container_of([row])), pd.DataFrame)


def test_absent_columns_are_unobserved_when_partial():
    x = encode({"pet": ["dog"]}, infer_domain(MIXED), partial=True)
    assert x.isnan().tolist() == [[True, False, True, True]]
    assert x[0, 1] == 1.0


def test_some_of_the_variables_come_back_as_some_of_the_columns():
    frame = pl.DataFrame({"a": [1.5, 2.0, 2.5], "b": ["u", "v", "u"], "c": [True, False, True]})
    domain = infer_domain(frame)
    kept = domain.select([2, 0])
    assert_polars_equal(decode(encode(frame, domain)[:, [2, 0]], kept, container_of(frame)), frame[["c", "a"]])
    pixels = ARRAYS["greys"]
    some = infer_domain(pixels).select([0, 9])
    drawn = decode(torch.tensor([[3.0, 4.0]]), some, container_of(pixels))
    assert drawn.tolist() == [[3, 4]]
    assert drawn.dtype == np.uint8


def test_draws_fit_their_type():
    frame = pd.DataFrame({"byte": np.array([0, 255], dtype=np.uint8), "big": np.array([-(2**50), 2**50])})
    domain = Domain(tuple(Variable(name, VariableKind.REAL) for name in frame))
    drawn = decode(torch.tensor([[-3.2, 1e30], [300.4, -1e30], [7.4, 12.6]]), domain, container_of(frame))
    assert drawn.dtypes.tolist() == frame.dtypes.tolist()
    assert drawn["byte"].tolist() == [0, 255, 7]
    assert drawn["big"].tolist()[2] == 13
    assert abs(drawn["big"][0]) > 2**62


def test_a_missing_cell_of_an_integer_column_makes_it_one_of_floats():
    frame = pd.DataFrame({"k": [1, 2, 3], "t": [True, False, True]})
    domain = infer_domain(frame, {"k": "count"})
    back = decode(torch.tensor([[1.0, torch.nan], [torch.nan, 1.0]]), domain, container_of(frame))
    assert back["k"].dtype == np.float64
    assert back["t"].tolist() == [None, True]


def test_containers_are_plain_data():
    import dataclasses
    import json

    from pydantic import TypeAdapter

    adapter = TypeAdapter(Container)
    for data in (MIXED, pl.from_pandas(MIXED[["n", "pet"]]), ARRAYS["greys"], torch.zeros(2, 2)):
        container = container_of(data)
        assert adapter.validate_python(json.loads(json.dumps(dataclasses.asdict(container)))) == container
        assert adapter.validate_json(adapter.dump_json(container)) == container


def test_levels_keep_their_types():
    frame = pd.DataFrame({"year": [2007, 2008, 2009] * 20, "flag": [True, False, True] * 20})
    domain = infer_domain(frame)
    assert domain["year"].levels == (2007, 2008, 2009)
    assert domain["flag"].levels == (False, True)
    pd.testing.assert_frame_equal(there_and_back(frame), frame)


HOLES = {
    "pandas": pd.DataFrame({"pet": [None, None], "k": [None, 1.0], "c": pd.Categorical([None, "u"], categories=["u"])}),
    "an empty number": pd.DataFrame({"pet": [np.nan, np.nan], "k": ["", ""], "c": ["u", None]}).replace("", None),
    "polars": pl.DataFrame({"pet": [None, None], "k": [None, None], "c": pl.Series([None, "u"], dtype=pl.Enum(["u"]))}),
    "pyarrow": pa.table({"pet": pa.nulls(2), "k": pa.nulls(2), "c": pa.array(["u", None]).dictionary_encode()}),
}


@pytest.mark.parametrize("rows", HOLES.values(), ids=HOLES)
def test_holes_can_be_filled_with_what_their_columns_never_held(rows):
    """Rows to impute: a column without a value has the wrong type, a category lacks levels."""
    domain = infer_domain(pd.DataFrame({"pet": ["cat", "dog", "newt"] * 9, "k": [1, 0, 4] * 9, "c": ["u", "v", "w"] * 9}))
    assert encode(rows, domain).isnan().any()
    full = decode(torch.tensor([[2.0, 4.0, 1.0], [0.0, 1.0, 2.0]]), domain, container_of(rows))
    assert table(full)["pet"].to_list() == ["newt", "cat"]
    assert table(full)["k"].to_list() == [4, 1]
    assert table(full)["c"].to_list() == ["v", "w"]


def test_digits_are_the_text_of_their_level():
    domain = infer_domain(pd.DataFrame({"code": ["311", "12", "7"] * 9}))
    assert encode({"code": [12, 7, None, 311]}, domain).nan_to_num(-1).flatten().tolist() == [0.0, 2.0, -1.0, 1.0]
