"""Files of every kind give the rows that were written to them."""

import gzip

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from PIL import Image

from pofx.data import infer_domain, load, read

TABLE = pd.DataFrame({"a": [0.1, 2.0, 1 / 3], "b": [1, 2, 3], "c": ["u", "v,w", 'x"y'], "d": [True, False, True]})


def test_csv_comes_back_to_the_bit(tmp_path):
    for name, options in (("a.csv", {}), ("a.csv.gz", {}), ("a.tsv", {"sep": "\t"}), ("b.csv", {"sep": ";"})):
        TABLE.to_csv(tmp_path / name, index=False, **options)
        pd.testing.assert_frame_equal(read(tmp_path / name), TABLE)
        pd.testing.assert_frame_equal(read(str(tmp_path / name)), TABLE)


def test_a_quoted_line_break_is_no_row(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n"u\nv",1\nw,2\n')
    assert read(tmp_path / "a.csv")["a"].tolist() == ["u\nv", "w"]


def test_a_byte_order_mark_and_spaces_are_no_part_of_names(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfa, b\r\n1, u\r\n2, v\r\n\r\n")
    frame = read(tmp_path / "a.csv")
    assert frame.columns.tolist() == ["a", "b"]
    assert frame["b"].tolist() == ["u", "v"]


def test_missing_cells_are_missing_and_none_is_a_level(tmp_path):
    (tmp_path / "a.csv").write_text("fence,n\nNone,1\n,2\nNA,\nunknown,nan\n")
    frame = read(tmp_path / "a.csv")
    assert frame["fence"].isna().tolist() == [False, True, True, False]
    assert frame["n"].isna().tolist() == [False, False, True, True]
    assert frame["fence"][0] == "None"


def test_leading_zeros_stay(tmp_path):
    rows = "".join(f"{k:04d},{k}.5,0.{k},-{k}\n" for k in range(900, 1100))
    (tmp_path / "a.csv").write_text("code,x,y,z\n" + rows)
    frame = read(tmp_path / "a.csv")
    assert frame["code"].tolist()[:2] == ["0900", "0901"]
    assert [frame[name].dtype.kind for name in "xyz"] == ["f", "f", "i"]


def test_parquet_comes_back(tmp_path):
    TABLE.to_parquet(tmp_path / "a.parquet", index=False)
    pd.testing.assert_frame_equal(read(tmp_path / "a.parquet"), TABLE)


def test_arrays_come_back(tmp_path):
    x = np.arange(12.0).reshape(4, 3)
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "one.npz", anything=x)
    np.savez_compressed(tmp_path / "main.npz", y_train=np.zeros(4), x_train=x)
    for name in ("a.npy", "one.npz", "main.npz"):
        np.testing.assert_array_equal(read(tmp_path / name), x)


@pytest.mark.parametrize(("mode", "shape"), [("L", (3, 4)), ("1", (3, 4)), ("RGB", (3, 4, 3)), ("RGBA", (3, 4, 3)), ("P", (3, 4, 3))])
def test_a_folder_of_pictures_is_an_array(tmp_path, mode, shape):
    (tmp_path / "notes.txt").write_text("no picture")
    for k, name in enumerate(("b.png", "a.png")):
        Image.new(mode, (4, 3), 0).save(tmp_path / name) if k else Image.new(mode, (4, 3), 1).save(tmp_path / name)
    x = read(tmp_path)
    assert x.shape == (2, *shape)
    assert x.dtype == np.uint8
    assert x[0].max() <= x[1].max()  # in the order of names: a, then b


def test_grey_pictures_keep_their_levels(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (5, 6, 7)).astype(np.uint8)
    for k, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / f"{k}.png")
    np.testing.assert_array_equal(read(tmp_path), pixels)
    assert infer_domain(read(tmp_path)).shape == (6, 7)


def test_rows_in_memory_come_back_as_they_are():
    frames = (TABLE, pl.from_pandas(TABLE), pl.from_pandas(TABLE).to_arrow())
    for rows in (*frames, np.eye(3), torch.eye(3), [{"a": 1}], {"a": [1]}, [[1.0], [2.0]]):
        assert read(rows) is rows


def test_a_lazy_frame_is_a_frame():
    assert infer_domain(pl.from_pandas(TABLE).lazy().select("a", "b")).names == ("a", "b")


def test_a_built_in_name_gives_its_training_rows():
    pd.testing.assert_frame_equal(read("iris"), load("iris").train)


def test_gzip_is_transparent(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"a,b\n1,u\n2,v\n"))
    assert read(tmp_path / "a.csv.gz")["b"].tolist() == ["u", "v"]
