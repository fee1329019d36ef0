"""Whatever a user calls a table or an array, as columns of numbers and words.

A table is a pandas, polars or pyarrow frame, a mapping of columns, or a list of mappings; everything else that
NumPy understands is an array. Rows are counted from 0 in every message.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pofx.domain import Level
from pofx.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_INTEGER = 2**53  # beyond it float64 can not tell neighbours apart


@dataclass(frozen=True)
class Column:
    """One column, read.

    Args:
        name: its name.
        values: float64 with NaN = missing, or objects (text) with None = missing.
        sort: "integer", "real", "truth" (0 and 1) or "words".
        dtype: its type in the user's table.
        levels: the categories its type declares, in their order; () when it declares none.
        ordered: whether the type says that their order means something.
    """

    name: str
    values: NDArray[Any]
    sort: str
    dtype: str
    levels: tuple[Level, ...] = ()
    ordered: bool = False

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Which rows have no value."""
        return np.asarray(pd.isna(self.values), dtype=bool)

    @property
    def seen(self) -> NDArray[Any]:
        """The values that are there."""
        return self.values[~self.missing]


def is_table(data: Any) -> bool:  # noqa: ANN401
    """Whether the data have named columns."""
    if isinstance(data, list | tuple):
        return bool(data) and all(isinstance(row, Mapping) for row in data)
    if isinstance(data, Mapping) or nw.dependencies.is_into_dataframe(data):
        return True
    return isinstance(nw.from_native(data, pass_through=True), nw.LazyFrame)


def table(data: Any) -> "nw.DataFrame[Any]":  # noqa: ANN401
    """The table as a narwhals frame whose columns have text for names.

    Raises:
        DataError: two columns have one name, names have several levels, or columns differ in length.
    """
    if isinstance(data, Mapping | list | tuple):
        data = _from_mappings(data)
    if isinstance(data, pd.DataFrame):
        data = _plain_labels(data)
    frame = nw.from_native(data)
    return frame.collect() if isinstance(frame, nw.LazyFrame) else frame


def column(series: "nw.Series[Any]", name: str) -> Column:
    """A column as numbers or words.

    Raises:
        DataError: it holds dates, mixed objects, complex numbers, or integers too large to be told apart.
    """
    dtype, kind = dtype_name(series), series.dtype
    if isinstance(kind, nw.Categorical | nw.Enum):
        return _categories(series, name, dtype)
    if isinstance(kind, nw.Object):
        return _objects(series, name, dtype)
    if isinstance(kind, nw.String):
        return Column(name, _words(series.to_numpy()), "words", dtype)
    if isinstance(kind, nw.Boolean):
        return Column(name, _floats(series), "truth", dtype)
    if isinstance(kind, nw.Unknown) and series.null_count() == len(series):
        return Column(name, np.full(len(series), np.nan), "real", dtype)
    if not kind.is_numeric() or str(dtype).startswith("complex"):
        raise DataError(f"column {name!r} holds {_called(dtype)}, which no model here takes: {_instead(dtype)}")
    return numbers(name, _floats(series), dtype, whole=kind.is_integer())


def numbers(name: str, values: NDArray[np.float64], dtype: str, *, whole: bool) -> Column:
    """A column of numbers, refused where float64 would blur its integers."""
    if whole and len(values) and np.nanmax(np.abs(values), initial=0.0) > LARGEST_INTEGER:
        row = int(np.nanargmax(np.abs(values)))
        raise DataError(
            f"column {name!r} holds integers beyond 2^53 (row {row}), which can not be told apart as numbers: "
            "if it is an identifier drop it, else turn it into text"
        )
    return Column(name, values, "integer" if whole else "real", dtype)


def array(data: Any) -> NDArray[Any]:  # noqa: ANN401
    """Numbers as a NumPy array (N, ...), the first axis the rows.

    Raises:
        DataError: the array holds no real numbers, is ragged or has no axis.
    """
    if isinstance(data, pd.Series) or nw.dependencies.is_into_series(data):
        raise DataError("a single column or row is ambiguous: pass a frame (series.to_frame(), or frame.iloc[[0]] for one row)")
    data = _numpy(data)
    if data.dtype.kind not in "biuf":
        raise DataError(f"an array of numbers was expected, got dtype {data.dtype}: put text and mixed columns into a data frame")
    if data.ndim == 0:
        raise DataError("an array with one row per datum was expected, got a single number")
    return data


def dtype_name(series: "nw.Series[Any]") -> str:
    """The column's type in its own library's words, enough to make it again."""
    native = series.to_native()
    own = getattr(native, "dtype", None) if hasattr(native, "dtype") else native.type
    if isinstance(own, pd.StringDtype) and own.na_value is pd.NA:
        return f"string[{own.storage}]"  # str(dtype) does not say where the text is stored
    return str(own)


def _from_mappings(data: Any) -> pd.DataFrame:  # noqa: ANN401
    if isinstance(data, Mapping):
        data = {name: values if np.ndim(values) or isinstance(values, list | tuple) else [values] for name, values in data.items()}
    try:
        return pd.DataFrame(data)
    except ValueError as error:
        raise DataError(f"the columns do not make a table: {str(error).splitlines()[0]}") from error


def _plain_labels(frame: pd.DataFrame) -> pd.DataFrame:
    if isinstance(frame.columns, pd.MultiIndex):
        raise DataError("the columns have names of several levels: join them into one name each")
    names = [str(label) for label in frame.columns]
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise DataError(f"column {twice!r} stands twice: rename one of them")
    return frame if names == list(frame.columns) else frame.set_axis(names, axis=1)


def _numpy(data: Any) -> NDArray[Any]:  # noqa: ANN401
    if isinstance(data, np.ma.MaskedArray):
        return np.ma.filled(np.ma.asarray(data, dtype=np.float64), np.nan)
    if hasattr(data, "detach"):
        return _of_tensor(data)
    try:
        return np.asarray(data)
    except ValueError as error:
        raise DataError("the rows have different lengths: an array needs equal rows") from error


def _of_tensor(data: "Tensor") -> NDArray[Any]:
    plain = data.detach().cpu()
    try:
        return plain.numpy()
    except TypeError:  # bfloat16 and other types that NumPy has no word for
        return plain.double().numpy()


def _floats(series: "nw.Series[Any]") -> NDArray[np.float64]:
    return np.asarray(series.cast(nw.Float64).to_numpy(), dtype=np.float64)


def _words(values: NDArray[Any]) -> NDArray[Any]:
    out = np.array(values, dtype=object)
    out[np.asarray(pd.isna(out), dtype=bool)] = None
    return out


def _categories(series: "nw.Series[Any]", name: str, dtype: str) -> Column:
    levels, ordered = declared_levels(series)
    if any(isinstance(level, str) for level in levels) or not levels:
        return Column(name, _words(series.cast(nw.String).to_numpy()), "words", dtype, levels, ordered)
    if not all(isinstance(level, bool | int | float) for level in levels):
        raise DataError(f"column {name!r} has categories that are neither text nor numbers: turn it into text")
    truth = all(isinstance(level, bool) for level in levels)
    values = np.asarray(pd.to_numeric(pd.Series(series.to_numpy()), errors="coerce"), dtype=np.float64)
    return Column(name, values, "truth" if truth else "real", dtype, levels, ordered)


def declared_levels(series: "nw.Series[Any]") -> tuple[tuple[Level, ...], bool]:
    """The categories that a column's type declares, and whether their order means something."""
    native = series.to_native()
    if isinstance(native, pd.Series):
        return tuple(native.cat.categories.tolist()), bool(native.cat.ordered)
    if hasattr(native, "unify_dictionaries"):
        chunks = native.unify_dictionaries().chunks
        return tuple(chunks[0].dictionary.to_pylist()) if chunks else (), bool(native.type.ordered)
    if isinstance(series.dtype, nw.Enum):
        return tuple(series.dtype.categories), True
    return (), False  # a polars Categorical shares one pool of categories with other columns


def _objects(series: "nw.Series[Any]", name: str, dtype: str) -> Column:
    values = series.to_numpy()
    match pd.api.types.infer_dtype(values, skipna=True):
        case "string" | "empty":
            return Column(name, _words(values), "words", dtype)
        case "boolean":
            return Column(name, _object_floats(values), "truth", dtype)
        case "integer":
            return numbers(name, _object_floats(values), dtype, whole=True)
        case "floating" | "mixed-integer-float" | "decimal":
            return numbers(name, _object_floats(values), dtype, whole=False)
        case "datetime" | "datetime64" | "date" | "timedelta" | "timedelta64" | "time" | "period" as found:
            raise DataError(f"column {name!r} holds {_called(found)}, which no model here takes: {_instead(found)}")
        case _:
            raise DataError(f"column {name!r} mixes {_mixture(values)}: make it one type, or drop it")


def _object_floats(values: NDArray[Any]) -> NDArray[np.float64]:
    missing = np.asarray(pd.isna(values), dtype=bool)
    return np.where(missing, np.nan, np.where(missing, 0, values).astype(np.float64))


def _mixture(values: NDArray[Any]) -> str:
    """Which types an object column holds, and the first row of the second."""
    present = [(row, type(value).__name__) for row, value in enumerate(values) if value is not None and value is not pd.NA]
    first = present[0][1]
    other = next(((row, kind) for row, kind in present if kind != first), None)
    return f"{first} and {other[1]} (row {other[0]})" if other else f"objects of type {first}"


def _called(dtype: str) -> str:
    word = dtype.lower()
    if any(part in word for part in ("date", "time", "duration", "period")):
        return f"dates or times ({dtype})"
    return f"values of type {dtype}"


def _instead(dtype: str) -> str:
    if "dates" in _called(dtype):
        return "turn it into numbers, such as days since the first, or drop it"
    return "turn it into numbers or text, or drop it"
