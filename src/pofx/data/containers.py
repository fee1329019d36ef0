"""What rows came in, and tensors back into it: decode(encode(rows)) = rows.

A container is plain data (JSON), kept in a model's file, so that a model opened elsewhere gives its samples as the table it
was learned from: same labels, order, types, categories.
"""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import narwhals as nw
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pofx.data.frames import array, declared_levels, dtype_name, is_table, table
from pofx.domain import LEVELLED, Domain, Variable, VariableKind, did_you_mean
from pofx.errors import DataError, OptionError

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

Table = TypeVar("Table")
TABLES, ARRAYS = ("pandas", "polars", "pyarrow"), ("numpy", "torch")


@dataclass(frozen=True)
class Field:
    """One column of the user's table, as it is to come back.

    Args:
        label: its label: text, or a number in some pandas frames.
        dtype: its type, in its library's words.
        levels: the categories that the type declares, in order.
        ordered: whether their order means something.
    """

    label: str | int
    dtype: str
    levels: tuple[str | int | float | bool, ...] = ()
    ordered: bool = False


@dataclass(frozen=True)
class Container:
    """What rows came in, so that rows can go out as the same: plain data, kept in a model's file.

    Args:
        library: "pandas", "polars" or "pyarrow" (tables), "numpy" or "torch" (arrays).
        fields: the columns of a table.
        dtype: of an array.
        shape: of one datum of an array, as the user lays it out.
    """

    library: str
    fields: tuple[Field, ...] = ()
    dtype: str = ""
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.library not in TABLES + ARRAYS:
            raise OptionError(f"rows can not be made by {self.library!r}{did_you_mean(self.library, TABLES + ARRAYS)}")


def container_of(data: Any) -> Container:  # noqa: ANN401
    """What `decode` is to give back for data like these."""
    if not is_table(data):
        x = array(data)
        library, dtype = ("torch", str(data.dtype).removeprefix("torch.")) if isinstance(data, Tensor) else ("numpy", str(x.dtype))
        return Container(library, dtype=dtype, shape=tuple(x.shape[1:]))
    frame = table(data)
    labels = list(data.columns) if isinstance(data, pd.DataFrame) else frame.columns
    fields = tuple(_field(frame[name], label) for name, label in zip(frame.columns, labels, strict=True))
    library = str(frame.implementation.value)
    return Container(library if library in TABLES else "pandas", fields)


def _field(series: "nw.Series[Any]", label: Any) -> Field:  # noqa: ANN401
    label = int(label) if isinstance(label, int | np.integer) and not isinstance(label, bool) else str(label)
    if isinstance(series.dtype, nw.Categorical | nw.Enum):
        return Field(label, dtype_name(series), *declared_levels(series))
    return Field(label, dtype_name(series))


def decode(x: Float[Tensor, "N D"], domain: Domain, container: Container) -> Any:  # noqa: ANN401
    """Rows of the domain (all of the container's columns, or some) as what they came in.

    Codes go back to levels. Numbers go back to their type: to the nearest integer it can hold where it holds integers, and
    where a rounded value lies on its decimal grid, to the number that one types there. NaN goes back to what marks a
    missing cell; in an integer type that has no such mark, the column becomes one of floats.

    Raises:
        DataError: the library that the rows came from is not installed.
        OptionError: the container names a type that its library does not have.
    """
    values = x.detach().cpu().numpy().astype(np.float64)
    if container.library in ARRAYS:
        return _to_array(values, domain, container)
    fields = {str(f.label): f for f in container.fields}
    chosen = [
        _fitting(fields.get(v.name, Field(v.name, v.dtype, ordered=v.kind is VariableKind.ORDINAL)), v, container.library)
        for v in domain.variables
    ]
    columns = [_values(values[:, d], v) for d, v in enumerate(domain.variables)]
    make = {"pandas": _to_pandas, "polars": _to_polars, "pyarrow": _to_pyarrow}[container.library]
    try:
        return make(columns, chosen)
    except ImportError as error:
        raise DataError(f"the rows came from {container.library}, which is not installed: pip install {container.library}") from error


def like(rows: object, filled: Table) -> Table:
    """The filled rows under the index of the rows they stand for, where those have one."""
    if isinstance(rows, pd.DataFrame) and isinstance(filled, pd.DataFrame):
        filled.index = rows.index
    return filled


_TEXT = {"pandas": "str", "polars": "String", "pyarrow": "string"}


def _fitting(field: Field, v: Variable, library: str) -> Field:
    """The field, widened to hold what the variable can be: the rows that came may have had an empty column, or few levels."""
    categories = re.match(r"category|enum|dictionary", field.dtype.lower()) is not None
    named = any(isinstance(level, str) for level in v.levels)
    if categories and v.levels:
        return replace(field, levels=(*field.levels, *(level for level in v.levels if level not in field.levels)))
    if named and not re.search(r"str|object|categ", field.dtype.lower()):
        return replace(field, dtype=_TEXT[library])
    if not named and (categories or re.match(r"str|large_str|categ", field.dtype.lower())):
        return replace(field, dtype="float64")
    return field


# -- numbers and levels ----------------------------------------------------------------------------


def _values(values: NDArray[np.float64], v: Variable) -> NDArray[Any]:
    """Text levels and truths as objects with None = missing; all else as floats with NaN."""
    if v.kind not in LEVELLED:
        return values if v.resolution is None else _on_grid(values, v.resolution)
    missing = np.isnan(values)
    at = np.clip(np.rint(np.where(missing, 0.0, values)), 0, len(v.levels) - 1).astype(np.intp)
    named = any(isinstance(level, str | bool) for level in v.levels)
    out = np.array(v.levels, dtype=object if named else np.float64)[at]
    out[missing] = None if named else np.nan
    return out


def _on_grid(values: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """A multiple of 0.1 as the number that one types, 0.3 and not 0.30000000000000004; what is off the grid stays."""
    multiple = np.rint(values / step)
    inverse = 1.0 / step
    exact = multiple / np.rint(inverse) if abs(inverse - np.rint(inverse)) < 1e-9 * inverse else multiple * step
    return np.where(np.abs(values - exact) <= 1e-12 * np.maximum(np.abs(values), step), exact, values)


def _cast(values: NDArray[Any], dtype: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values in the NumPy type nearest to a library's type, and which are missing (there: NaN, or 0)."""
    missing = np.asarray(pd.isna(values), dtype=bool)
    target = _numpy_type(dtype)
    if target.kind == "f":
        return values.astype(np.float64).astype(target), missing
    filled = np.where(missing, 0, values).astype(np.float64)
    if target.kind == "b":
        return filled >= 0.5, missing
    low, high = float(np.iinfo(target).min), float(np.iinfo(target).max)
    if high > 2**53:  # as a float 2^63 - 1 is 2^63, which no longer fits
        high = float(np.nextafter(high, 0.0))
    np.rint(filled, out=filled)
    return np.clip(filled, low, high, out=filled).astype(target), missing


def _numpy_type(dtype: str) -> "np.dtype[Any]":
    name = dtype.lower().removesuffix("[pyarrow]")
    name = {"double": "float64", "float": "float32", "halffloat": "float16", "boolean": "bool"}.get(name, name)
    known = re.fullmatch(r"u?int(8|16|32|64)|float(16|32|64)|bool", name)
    return np.dtype(name if known else "float64")


# -- arrays ----------------------------------------------------------------------------------------


def _to_array(values: NDArray[np.float64], domain: Domain, container: Container) -> Any:  # noqa: ANN401
    for d, v in enumerate(domain.variables):
        if v.kind in LEVELLED or v.resolution is not None:
            values[:, d] = _values(values[:, d], v).astype(np.float64)
    rows, missing = _cast(_in_layout(values, domain, container.shape), container.dtype)
    if missing.any() and rows.dtype.kind != "f":
        rows = np.where(missing, np.nan, rows.astype(np.float64))
    if container.library == "numpy":
        return rows
    own = getattr(torch, container.dtype, None)  # bfloat16 has no NumPy type
    lossy = isinstance(own, torch.dtype) and own.is_floating_point
    return torch.from_numpy(np.ascontiguousarray(rows)).to(own) if lossy else torch.from_numpy(np.ascontiguousarray(rows))


def _in_layout(values: NDArray[np.float64], domain: Domain, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Rows as the user lays them out; flat where only some of the entries are there."""
    if values.shape[1] != int(np.prod(shape)):
        return values
    if len(shape) == 3 and shape != domain.shape and shape == (*domain.shape[1:], domain.shape[0]):
        return np.moveaxis(values.reshape(len(values), *domain.shape), 1, -1)
    return values.reshape(len(values), *shape)


# -- tables ----------------------------------------------------------------------------------------


def _to_pandas(columns: list[NDArray[Any]], fields: list[Field]) -> pd.DataFrame:
    try:
        frame = pd.concat([_pandas_series(values, f) for values, f in zip(columns, fields, strict=True)], axis=1)
    except TypeError as error:
        raise OptionError(f"pandas does not know a column's type: {error}") from error
    frame.columns = pd.Index([f.label for f in fields])
    return frame


def _pandas_series(values: NDArray[Any], field: Field) -> "pd.Series[Any]":
    if field.dtype == "category":
        return pd.Series(pd.Categorical(values.tolist(), categories=list(field.levels), ordered=field.ordered))
    words = values.dtype == object and any(isinstance(value, str) for value in values)
    if words or field.dtype == "object":
        return pd.Series(values, dtype="object").astype(_pandas_type(field))
    numbers, missing = _cast(values, field.dtype)
    series = pd.Series(numbers).astype(_pandas_type(field))
    if not missing.any() or (isinstance(series.dtype, np.dtype) and series.dtype.kind == "f"):
        return series
    if isinstance(series.dtype, np.dtype):  # integers and truths of NumPy have no mark for a missing value
        return pd.Series(values).astype("object" if series.dtype.kind == "b" else "float64")
    return series.mask(missing)


def _pandas_type(field: Field) -> Any:  # noqa: ANN401
    known = pd.api.types.pandas_dtype(field.dtype)
    older = isinstance(known, np.dtype) and known.kind == "U"  # before pandas 3 "str" would make text of None, too
    return np.dtype(object) if older else known


def _to_polars(columns: list[NDArray[Any]], fields: list[Field]) -> "pl.DataFrame":
    import polars as pl

    return pl.DataFrame([_polars_series(values, f) for values, f in zip(columns, fields, strict=True)])


def _polars_series(values: NDArray[Any], field: Field) -> "pl.Series":
    import polars as pl

    name = str(field.label)
    if field.dtype.startswith("Enum"):
        return pl.Series(name, values.tolist(), dtype=pl.Enum([str(level) for level in field.levels]))
    if field.dtype in {"String", "Categorical"}:
        return pl.Series(name, values.tolist(), dtype=pl.String).cast(pl.String if field.dtype == "String" else pl.Categorical)
    numbers, missing = _cast(values, field.dtype)
    series = pl.Series(name, numbers)
    return series.set(pl.Series(missing), None) if missing.any() else series


def _to_pyarrow(columns: list[NDArray[Any]], fields: list[Field]) -> "pa.Table":
    import pyarrow as pa

    return pa.table([_pyarrow_array(values, f) for values, f in zip(columns, fields, strict=True)], [str(f.label) for f in fields])


def _pyarrow_array(values: NDArray[Any], field: Field) -> "pa.Array[Any]":
    import pyarrow as pa

    if parts := re.match(r"dictionary<values=(\w+), indices=(\w+)", field.dtype):
        at = pd.Index(list(field.levels)).get_indexer(pd.Index(values.tolist()))
        codes = pa.array(at, pa.type_for_alias(parts[2]), mask=at < 0)
        return pa.DictionaryArray.from_arrays(codes, pa.array(list(field.levels), pa.type_for_alias(parts[1])), ordered=field.ordered)
    if "string" in field.dtype:
        return pa.array(values.tolist(), pa.type_for_alias(field.dtype))
    numbers, missing = _cast(values, field.dtype)
    return pa.array(numbers, mask=missing)
