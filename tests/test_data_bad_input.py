"""Whatever is wrong with data is one sentence that names the column or row and what to do, before any training."""

import datetime
import gzip
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from PIL import Image

from pofx.data import check_training, encode, infer_domain, load, read, split
from pofx.domain import Domain, Variable, VariableKind
from pofx.errors import DataError, OptionError, PofxError

ROWS = 40
REAL = [0.1 * k * k for k in range(ROWS)]

FILES = {
    "empty file": ("a.csv", b"", "is empty"),
    "blank file": ("a.csv", b"\n \n", "is empty"),
    "header only": ("a.csv", b"a,b\n", "a header and no rows"),
    "too many cells": ("a.csv", b"a,b\n1,2\n3,4,5\n", "3 cells in line 3, where the header has 2 columns"),
    "too few cells": ("a.csv", b"a,b,c\n1,2,3\n4,5\n", "2 cells in line 3"),
    "column twice": ("a.csv", b"a,b,a\n1,2,3\n", "column 'a' twice"),
    "column without a name": ("a.csv", b"a,,b\n1,2,3\n", "no name for column 2"),
    "no header": ("a.csv", b"1.5,2\n3,4\n", "add a header line"),
    "Latin-1": ("a.csv", "name,x\nZoë,1\n".encode("latin-1"), "not UTF-8 (byte 0xeb in line 2)"),
    "UTF-16": ("a.csv", "a,b\n1,2\n".encode("utf-16"), "UTF-16: save it as UTF-8"),
    "zero bytes": ("a.csv", b"a,b\n1,\0\n", "zero bytes"),
    "open quote": ("a.csv", b'a,b\n1,"2\n3,4\n', "damaged in line"),
    "no gzip": ("a.csv.gz", b"a,b\n1,2\n", "can not be read"),
    "gzip cut short": ("a.csv.gz", gzip.compress(b"a,b\n1,2\n" * 100)[:20], "can not be read"),
    "unknown ending": ("a.xlsx", b"PK", "an ending that is not read here"),
    "no ending": ("table", b"a,b\n1,2\n", "an ending that is not read here"),
    "no Parquet": ("a.parquet", b"PAR1 and then nothing", "can not be read as Parquet"),
    "no NPY": ("a.npy", b"\x93NUMPY and then nothing", "can not be read as an array"),
    "empty NPY": ("a.npy", b"", "can not be read as an array"),
    "no NPZ": ("a.npz", b"PK\3\4 and then nothing", "can not be read as an array"),
}


@pytest.mark.parametrize(("name", "content", "fragment"), FILES.values(), ids=FILES)
def test_a_bad_file_is_refused(tmp_path, name, content, fragment):
    (tmp_path / name).write_bytes(content)
    refused(lambda: read(tmp_path / name), fragment)


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def picture(folder, name, size, mode="L"):
    folder.mkdir(exist_ok=True)
    Image.new(mode, size).save(folder / name)
    return folder


def odd_pictures(path):
    picture(path / "p", "a.png", (4, 3))
    return picture(path / "p", "b.png", (5, 3))


def odd_colours(path):
    picture(path / "p", "a.png", (4, 3))
    return picture(path / "p", "b.png", (4, 3), "RGB")


def damaged_picture(path):
    folder = picture(path / "p", "a.png", (4, 3))
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:40])
    return folder


def empty_folder(path):
    (path / "p").mkdir()
    return path / "p"


SOURCES = {
    "no such file": (lambda path: path / "nowhere.csv", "there is no file"),
    "nearly a set": (lambda _: "irsi", "did you mean 'iris'"),
    "objects in NPZ": (lambda path: save(path / "a.npz", x=np.array([{}, 1], dtype=object)), "can not be read as an array"),
    "several arrays": (lambda path: save(path / "a.npz", u=np.zeros(3), v=np.zeros(3)), "it holds the arrays u, v"),
    "text in NPZ": (lambda path: save(path / "a.npz", x=np.array(["a", "b"])), "an array of numbers was expected"),
    "empty folder": (empty_folder, "holds no pictures"),
    "pictures of two sizes": (odd_pictures, "b.png is 3 × 5 pixels in grey, where a.png is 3 × 4"),
    "grey and colour": (odd_colours, "b.png is 3 × 4 pixels in colour"),
    "16 bits": (lambda path: picture(path / "p", "a.png", (4, 3), "I;16"), "more than 8 bits"),
    "damaged picture": (damaged_picture, "b.png can not be read as a picture"),
    "a series": (lambda _: pd.Series([1.0, 2.0]), "ambiguous"),
    "one number": (lambda _: np.float64(3.0), "got a single number"),
    "ragged rows": (lambda _: [[1.0, 2.0], [3.0]], "different lengths"),
    "an object": (lambda _: object(), "an array of numbers was expected"),
    "complex numbers": (lambda _: np.zeros(3, dtype=complex), "complex128"),
    "columns of unequal length": (lambda _: {"a": [1, 2], "b": [1]}, "do not make a table"),
    "column twice": (lambda _: pd.DataFrame([[1, 2]], columns=["a", "a"]), "column 'a' stands twice"),
    "names of two levels": (lambda _: pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("a", "b")])), "several levels"),
}


@pytest.mark.parametrize(("source", "fragment"), SOURCES.values(), ids=SOURCES)
def test_a_bad_source_is_refused(tmp_path, source, fragment):
    refused(lambda: read(source(tmp_path)), fragment)


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    refused(lambda: read(tmp_path / "a.parquet"), r"pip install 'pofx[parquet]'")


def with_column(values, name="a"):
    return pd.DataFrame({"x": REAL[: len(values)], name: values})


FRAMES = {
    "no rows": (pd.DataFrame({"a": pd.Series([], dtype=float)}), "no rows"),
    "no columns": (pd.DataFrame(index=range(3)), "no columns"),
    "an empty column": (with_column([None] * ROWS), "column 'a' is empty in every row: drop it"),
    "a null column of polars": (pl.DataFrame({"x": REAL, "a": [None] * ROWS}), "column 'a' is empty in every row: drop it"),
    "a constant number": (with_column([2.5] * ROWS), "column 'a' holds one value, 2.5, in every row"),
    "a constant text": (with_column(["u"] * ROWS), "column 'a' holds one value, 'u', in every row"),
    "a constant truth": (with_column([True] * ROWS), "column 'a' holds one value"),
    "infinity": (with_column([1.0, np.inf] * (ROWS // 2)), "column 'a' is infinite in row 1"),
    "minus infinity in polars": (pl.DataFrame({"a": [1.0, 2.0, -np.inf]}), "column 'a' is infinite in row 2"),
    "dates": (with_column(pd.date_range("2024-01-01", periods=ROWS)), "column 'a' holds dates or times"),
    "dates as objects": (with_column([datetime.date(2024, 1, 1)] * ROWS), "column 'a' holds dates or times"),
    "dates of polars": (pl.DataFrame({"a": [datetime.date(2024, 1, 1)] * 3}), "such as days since the first"),
    "durations": (with_column(pd.to_timedelta(range(ROWS), unit="h")), "column 'a' holds dates or times"),
    "mixed objects": (with_column([1, "a"] * (ROWS // 2)), "column 'a' mixes int and str (row 1)"),
    "lists": (pl.DataFrame({"a": [[1], [2]]}), "column 'a' holds values of type List"),
    "bytes": (with_column([b"u", b"v"] * (ROWS // 2)), "column 'a' mixes objects of type bytes"),
    "complex numbers": (with_column([1j, 2j] * (ROWS // 2)), "column 'a'"),
    "an identifier": (with_column(list(range(7, 7 + ROWS))), "column 'a' numbers its rows"),
    "a text identifier": (with_column([f"u{k}" for k in range(ROWS)]), "column 'a' has 40 different texts in 40 rows"),
    "a million levels, nearly": (pd.DataFrame({"a": [f"u{k % 80_000}" for k in range(200_000)]}), "80000 different texts"),
    "nearly numbers": (with_column([f"{v:.2f}" for v in REAL[:-1]] + ["unknown"]), "but for 'unknown' in row 39"),
    "integers that blur": (with_column([2**60 + k for k in range(ROWS)]), "integers beyond 2^53 (row 0)"),
    "no entries": (np.zeros((0, 3)), "no entries"),
    "an infinite entry": (np.array([[0.0, 1.0], [2.0, np.inf]]), "column 'x1' is infinite in row 1"),
    "an infinite pixel": (np.full((2, 2, 2), np.inf), "column 'x0' is infinite in row 0"),
    "an empty entry": (np.array([[0.0, np.nan], [2.0, np.nan]]), "'x1' is missing in every row"),
}


@pytest.mark.parametrize(("frame", "fragment"), FRAMES.values(), ids=FRAMES)
def test_a_bad_column_is_refused(frame, fragment):
    refused(lambda: infer_domain(frame), fragment)


DECLARATIONS = {
    "an unknown column": ({"agee": "real"}, "did you mean 'age'"),
    "an unknown kind": ({"age": "reel"}, "'reel' is no kind"),
    "an unknown field": ({"age": {"resolutoin": 1}}, "did you mean 'resolution'"),
    "an interval without bounds": ({"age": "interval"}, "finite bounds"),
}


@pytest.mark.parametrize(("declared", "fragment"), DECLARATIONS.values(), ids=DECLARATIONS)
def test_a_bad_declaration_is_refused(declared, fragment):
    refused(lambda: infer_domain({"age": [31, 42, 56, 31]}, declared), fragment, OptionError)


DOMAIN = Domain(
    (
        Variable("age", VariableKind.COUNT, lower=0),
        Variable("dose", VariableKind.POSITIVE),
        Variable("size", VariableKind.POSITIVE, resolution=0.1),
        Variable("share", VariableKind.INTERVAL, lower=0.0, upper=1.0),
        Variable("level", VariableKind.COUNT, lower=0, upper=16),
        Variable("pet", VariableKind.CATEGORICAL, levels=("cat", "dog", "newt")),
        Variable("year", VariableKind.ORDINAL, levels=(2007, 2008, 2009)),
    )
)
GOOD = {"age": 3, "dose": 1.5, "size": 0.0, "share": 0.5, "level": 16, "pet": "dog", "year": 2008}

CELLS = {
    "a fraction of a count": ("age", 2.5, "column 'age' is a count of whole numbers, got 2.5 in row 1"),
    "a negative count": ("age", -1, "column 'age' lies in [0, inf], got -1 in row 1"),
    "a dose of nothing": ("dose", 0.0, "column 'dose' is positive, got 0 in row 1"),
    "a negative rounded size": ("size", -0.1, "column 'size' is not below 0, got -0.1 in row 1"),
    "the end of an open interval": ("share", 1.0, "column 'share' lies in (0, 1), got 1 in row 1"),
    "a level too many": ("level", 17, "column 'level' lies in [0, 16], got 17 in row 1"),
    "an unseen level": ("pet", "emu", "column 'pet' has no level 'emu' (row 1)"),
    "a level misspelt": ("pet", "newtt", "did you mean 'newt'"),
    "a number for a level": ("pet", 3, "column 'pet'"),
    "an unseen number": ("year", 2010, "column 'year' has no level 2010 (row 1)"),
    "text for a number": ("dose", "much", "column 'dose'"),
    "infinity": ("dose", np.inf, "column 'dose' is infinite in row 1"),
}


@pytest.mark.parametrize(("name", "value", "fragment"), CELLS.values(), ids=CELLS)
def test_a_bad_cell_is_refused(name, value, fragment):
    encode([GOOD, GOOD], DOMAIN)
    refused(lambda: encode([GOOD, GOOD | {name: value}], DOMAIN), fragment)


def test_text_where_numbers_are_needed_names_the_first():
    refused(lambda: encode({"x0": [None, "low"]}, Domain.real(1)), "needs numbers, got the text 'low' in row 1")


NAMES = {
    "a column is absent": (["age", "dose"], False, "the rows lack column 'size' and 4 more"),
    "a column is misspelt": ([*list(DOMAIN.names[:-1]), "yaer"], False, "lack column 'year'; did you mean 'yaer'"),
    "evidence on nothing": (["agee"], True, "there is no column 'agee'; did you mean 'age'"),
}


@pytest.mark.parametrize(("names", "partial", "fragment"), NAMES.values(), ids=NAMES)
def test_columns_are_matched_by_name(names, partial, fragment):
    refused(lambda: encode({name: [GOOD.get(name, 0)] for name in names}, DOMAIN, partial=partial), fragment)


SHAPES = {
    "another width": (np.zeros((5, 3)), Domain.real(2), r"rows of shape (N, 2) were expected, got (5, 3)"),
    "another picture": (np.zeros((5, 4, 4)), Domain.counts((8, 8), 17), r"(N, 8, 8) were expected, got (5, 4, 4)"),
    "one picture": (np.zeros((8, 8)), Domain.counts((8, 8), 17), "add the first axis: x[None]"),
    "a brighter picture": (np.full((1, 8, 8), 17), Domain.counts((8, 8), 17), "got 17 in row 0"),
}


@pytest.mark.parametrize(("x", "domain", "fragment"), SHAPES.values(), ids=SHAPES)
def test_a_bad_shape_is_refused(x, domain, fragment):
    refused(lambda: encode(x, domain), fragment)


TRAINING = {
    "no rows": (torch.zeros(0, 2), "no rows to learn from"),
    "one row": (torch.zeros(1, 2), "1 row to learn from, at least 2"),
    "another width": (torch.zeros(3, 3), "rows of 2 columns were expected, got 3"),
    "infinity": (torch.tensor([[0.0, 1.0], [1.0, torch.inf]]), "column 'x1' is infinite in row 1"),
    "an empty column": (torch.tensor([[0.0, torch.nan], [1.0, torch.nan]]), "column 'x1' is empty in all 2 training rows"),
    "a constant": (torch.tensor([[0.0, 3.0], [1.0, 3.0], [2.0, torch.nan]]), "column 'x1' holds one value, 3, in all 3"),
    "one row many times": (torch.ones(5, 2), "column 'x0' holds one value"),
}


@pytest.mark.parametrize(("x", "fragment"), TRAINING.values(), ids=TRAINING)
def test_training_does_not_start_on(x, fragment):
    refused(lambda: check_training(x, Domain.real(2)), fragment)


def test_constants_that_harm_nothing_pass():
    check_training(torch.zeros(3, 4), Domain.counts((4,), 2))
    check_training(torch.zeros(3, 4), Domain(tuple(Variable(f"x{d}", VariableKind.REAL) for d in range(4)), (2, 2)))


def test_a_split_needs_two_parts():
    refused(lambda: split(torch.zeros(1, 2), 0.1, torch.Generator()), "can not be split")
    refused(lambda: split(torch.zeros(9, 2), 1.0, torch.Generator()), "between 0 and 1", OptionError)


def test_an_unknown_set_is_refused():
    refused(lambda: load("pengins"), "did you mean 'penguins'", OptionError)


def refused(ask, fragment, kind: type[PofxError] = DataError):
    with pytest.raises(kind) as caught:
        ask()
    message = str(caught.value)
    assert fragment in message
    assert len(message.splitlines()) == 1
