"""From what the user points at to a frame or an array.

CSV is read as it is written: text is UTF-8, a cell that is empty or one of `MISSING` has no value, numbers with leading
zeros (post codes) stay text, and every row has the cells of the header.
"""

import csv
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pofx.data.builtin import load
from pofx.data.catalogue import DATASETS, names_a_set
from pofx.data.frames import array, is_table, table
from pofx.domain import did_you_mean
from pofx.errors import DataError

MISSING = ("", "NA", "N/A", "n/a", "<NA>", "NaN", "nan", "NULL", "null")  # not None or unknown, which are levels in real tables
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
MAIN_ARRAYS = ("x", "X", "data", "images", "x_train", "X_train", "train")
_LEADING_ZERO, _ZEROS_SOMEWHERE = re.compile(r"-?0\d"), re.compile(r'[,;\t"\n ]-?0\d')


def read(source: Any) -> Any:  # noqa: ANN401
    """Rows from a file, a folder of images, a frame, an array, a tensor, or the training rows of a built-in set.

    Args:
        source: a path ending in .csv, .csv.gz, .tsv, .tsv.gz, .parquet, .npy or .npz; a folder; the name of a set; or rows
            that are already in memory, which come back as they are.

    Returns:
        A frame (pandas for files) or an array with one row per datum.

    Raises:
        DataError: there is nothing there, or it can not be read as rows; one sentence says why.
    """
    if isinstance(source, str) and names_a_set(source):
        return load(source).train
    if isinstance(source, str | PathLike):
        return _read_path(Path(source))
    if source is None:
        raise DataError("rows, a file's path or a built-in set's name was expected, got None")
    if is_table(source):
        table(source)
    else:
        array(source)
    return source


def _read_path(path: Path) -> Any:  # noqa: ANN401
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        known = "" if path.suffix else did_you_mean(str(path), DATASETS)
        raise DataError(f"there is no file {str(path)!r}{' and no built-in set of that name' if known else ''}{known}")
    name = path.name.lower()
    if name.endswith((".csv", ".csv.gz")):
        return read_text(path, ",")
    if name.endswith((".tsv", ".tsv.gz")):
        return read_text(path, "\t")
    if name.endswith((".parquet", ".pq")):
        return read_parquet(path)
    if name.endswith((".npy", ".npz")):
        return read_numpy(path)
    raise DataError(f"{path} has an ending that is not read here: use .csv, .csv.gz, .tsv, .parquet, .npy, .npz or a folder of images")


# -- text ------------------------------------------------------------------------------------------


def read_text(path: Path, separator: str) -> pd.DataFrame:
    """A table with a header from a delimited text file.

    Raises:
        DataError: it is empty, has no rows, is not UTF-8, is damaged, has unequal rows, or a column name twice.
    """
    text = _decoded(path)
    if not text.strip():
        raise DataError(f"{path} is empty: a header and rows were expected")
    separator = _separator(text, separator)
    header, zeros = _checked_rows(path, text, separator)
    frame = pd.read_csv(
        io.StringIO(text),
        sep=separator,
        dtype=dict.fromkeys(zeros, "str"),
        na_values=list(MISSING),
        keep_default_na=False,
        index_col=False,
        low_memory=False,
        skipinitialspace=True,
    )
    return frame.set_axis(header, axis=1)


def _decoded(path: Path) -> str:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} can not be read: {_line(error)}") from error
    if raw[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        raise DataError(f"{path} is UTF-16: save it as UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{path} is not UTF-8 (byte {raw[error.start]:#04x} in line {line}): save it as UTF-8") from error
    if "\0" in text:
        raise DataError(f"{path} holds zero bytes: it is no text file, or it is damaged")
    return text


def _separator(text: str, expected: str) -> str:
    """The separator of the ending, unless the header has none of it but semicolons or tabs."""
    header = text.lstrip().partition("\n")[0]
    return expected if expected in header else next((other for other in (";", "\t") if other in header), expected)


def _checked_rows(path: Path, text: str, separator: str) -> tuple[list[str], set[str]]:
    """The header, and the columns that hold numbers with leading zeros."""
    rows = _parsed(path, text, separator)
    header = [name.strip() for name in next(rows)[1]]
    _check_header(path, header)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path} has a header and no rows: nothing can be learned from it")
    if not _ZEROS_SOMEWHERE.search(text) and _even(text, separator, len(header)):
        return header, set()  # nearly always: a loop over cells would take ten times as long as reading them
    zeros: set[str] = set()
    for line, row in chain([first], rows):
        if len(row) != len(header):
            raise DataError(f"{path} has {len(row)} cells in line {line}, where the header has {len(header)} columns")
        zeros.update(name for name, cell in zip(header, row, strict=True) if _LEADING_ZERO.match(cell))
    return header, zeros


def _even(text: str, separator: str, width: int) -> bool:
    try:
        return set(map(len, _rows(text, separator))) <= {0, width}
    except csv.Error:
        return False


def _parsed(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, with the number of the line it ends in."""
    reader = _rows(text, separator)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path} is damaged in line {reader.line_num}: {error}") from error


def _rows(text: str, separator: str) -> Any:  # noqa: ANN401
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)


def _check_header(path: Path, header: list[str]) -> None:
    for d, name in enumerate(header):
        if not name:
            raise DataError(f"{path} has no name for column {d + 1} in its header")
        if name in header[:d]:
            raise DataError(f"{path} has column {name!r} twice in its header: rename one of them")
    if all(_is_number(name) for name in header):
        raise DataError(f"{path} has numbers where the names of the columns were expected ({', '.join(header[:3])}): add a header line")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


# -- binary ----------------------------------------------------------------------------------------


def read_parquet(path: Path) -> pd.DataFrame:
    """A table from a Parquet file.

    Raises:
        DataError: pyarrow is not installed, or the file is damaged.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path} is Parquet, which needs pyarrow: pip install 'pofx[parquet]'") from None
    try:
        return parquet.read_table(path).to_pandas()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} can not be read as Parquet: {_line(error)}") from error


def read_numpy(path: Path) -> NDArray[Any]:
    """The array of an .npy file, or the one or main array of an .npz file; objects are refused, they could run code.

    Raises:
        DataError: it is damaged, holds objects, or several arrays of which none is the main one.
    """
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            return array(found if isinstance(found, np.ndarray) else found[_main(list(found.files))])
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (OSError, ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path} can not be read as an array of numbers: {_line(error)}") from error


def _main(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    for name in MAIN_ARRAYS:
        if name in names:
            return name
    raise DataError(f"it holds the arrays {', '.join(names) or '(none)'}: name one of them x, or pass an array")


def read_folder(path: Path) -> NDArray[np.uint8]:
    """The pictures in a folder, by name, as (N, H, W) greys or (N, H, W, 3) colours of one byte; transparency is dropped.

    Raises:
        DataError: there are none, one is damaged, or they differ in size; names the odd file.
    """
    pictures = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
    if not pictures:
        raise DataError(f"the folder {path} holds no pictures ({', '.join(PICTURES)})")
    arrays = [_picture(file) for file in pictures]
    for file, one in zip(pictures, arrays, strict=True):
        if one.shape != arrays[0].shape:
            first = f"{pictures[0].name} is {_size(arrays[0])}"
            raise DataError(f"{file} is {_size(one)}, where {first}: all pictures need one size, all grey or all colour")
    return np.stack(arrays)


def _picture(file: Path) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(file) as picture:
            if picture.mode.startswith(("I", "F")):
                raise DataError(f"{file} has more than 8 bits a pixel (mode {picture.mode}): convert it to 8 bits")
            return np.asarray(picture.convert("L" if picture.mode in {"1", "L", "LA", "La"} else "RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} can not be read as a picture: {_line(error)}") from error


def _size(picture: NDArray[np.uint8]) -> str:
    height, width = picture.shape[:2]
    return f"{height} × {width} pixels in {'colour' if picture.ndim == 3 else 'grey'}"
