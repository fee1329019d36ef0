"""Tables and arrays to tensors of a domain.

Columns are found by name, in any order; a level becomes its position in the variable's levels; a missing cell (None,
null, NaN, NA) becomes NaN. `decode` in `containers` is the way back.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pofx.data.frames import Column, array, column, is_table, numbers, table
from pofx.data.inference import refuse_infinity
from pofx.domain import LEVELLED, Domain, Variable, VariableKind, did_you_mean
from pofx.errors import DataError

Rows = Float[Tensor, "N D"]


def encode(data: Any, domain: Domain, *, partial: bool = False) -> Rows:  # noqa: ANN401
    """Rows as a tensor (N, D) of the domain, NaN = missing.

    Columns that the domain does not know are left out, unless `partial`: then a column the domain knows may be absent
    (it is unobserved), and one that it does not know is refused, because it may be a slip of the pen.

    Raises:
        DataError: a column is absent, or a value is infinite, an unseen level, or outside what its variable can be; the
            sentence names column and row, rows counted from 0.
    """
    if not is_table(data):
        return torch.from_numpy(_from_array(array(data), domain))
    frame = table(data)
    _check_names(frame.columns, domain.names, partial=partial)
    x = np.full((len(frame), len(domain)), np.nan)
    for d, v in enumerate(domain.variables):
        if v.name in frame.columns:
            x[:, d] = _codes(column(frame[v.name], v.name), v)
    check_support(x, domain)
    return torch.from_numpy(x)


def count(data: Any) -> int:  # noqa: ANN401
    """How many rows there are."""
    return len(table(data) if is_table(data) else array(data))


def encode_in_pieces(data: Any, domain: Domain, size: int) -> Iterator[Rows]:  # noqa: ANN401
    """The rows of `encode`, so many at a time: memory for one piece, whatever the length; no rows are one empty piece.

    Raises:
        DataError: as `encode`; rows are counted from the first of all pieces.
    """
    whole = table(data) if is_table(data) else array(data)
    for start in range(0, max(len(whole), 1), size):
        piece = whole[start : start + size]
        try:
            x = encode(piece if isinstance(piece, np.ndarray) else piece.to_native(), domain)
        except DataError:
            encode(data, domain)  # the sentence of the whole names the row in the whole
            raise
        yield x


def together(pieces: Iterator[Any], n: int) -> Any:  # noqa: ANN401
    """Consecutive pieces of n rows, tables or arrays of one kind, as one: an array is filled as they come."""
    first = next(pieces)
    if len(first) == n:
        return first
    if isinstance(first, np.ndarray | Tensor):
        return _stacked(first, pieces, n)
    if isinstance(first, pd.DataFrame):
        return pd.concat([first, *pieces], ignore_index=True)
    return nw.concat([nw.from_native(piece) for piece in chain([first], pieces)]).to_native()


def _stacked(first: Any, rest: Iterator[Any], n: int) -> Any:  # noqa: ANN401
    shape = (n, *first.shape[1:])
    out = first.new_empty(shape) if isinstance(first, Tensor) else np.empty(shape, first.dtype)
    start = 0
    for piece in chain([first], rest):
        out[start : start + len(piece)] = piece
        start += len(piece)
    return out


def _check_names(came: Sequence[str], known: Sequence[str], *, partial: bool) -> None:
    absent = [name for name in known if name not in came]
    if absent and not partial:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise DataError(f"the rows lack column {absent[0]!r}{more}{did_you_mean(absent[0], came)}")
    if partial:
        for name in came:
            if name not in known:
                raise DataError(f"there is no column {name!r}{did_you_mean(name, known)}")


def _from_array(x: NDArray[Any], domain: Domain) -> NDArray[np.float64]:
    flat = np.ascontiguousarray(_as_event(x, domain)).reshape(len(x), len(domain)).astype(np.float64)
    for d, v in enumerate(domain.variables):
        if v.kind in LEVELLED:
            flat[:, d] = _codes(numbers(v.name, flat[:, d], str(x.dtype), whole=False), v)
    check_support(flat, domain)
    return flat


def _as_event(x: NDArray[Any], domain: Domain) -> NDArray[Any]:
    """The rows in the layout of the domain: as they are, flat, or with the colours moved to the front."""
    if x.shape[1:] == domain.shape or x.shape[1:] == (len(domain),) or (x.ndim == 1 and len(domain) == 1):
        return x
    if len(domain.shape) == 3 and x.shape[1:] == (*domain.shape[1:], domain.shape[0]):
        return np.moveaxis(x, -1, 1)
    event = ", ".join(map(str, domain.shape))
    one = "; for one row, add the first axis: x[None]" if x.shape == domain.shape else ""
    raise DataError(f"rows of shape (N, {event}) were expected, got {x.shape}{one}")


def _codes(c: Column, v: Variable) -> NDArray[np.float64]:
    """The column as numbers; levels as their positions."""
    named = any(isinstance(level, str) for level in v.levels)
    if named:
        return _positions(_texts(c), c, v)
    if c.sort == "words" and len(c.seen):
        row = int(np.flatnonzero(~c.missing)[0])
        raise DataError(f"column {c.name!r} is of kind {v.kind} and needs numbers, got the text {c.values[row]!r} in row {row}")
    numbers = np.full(len(c.values), np.nan) if c.sort == "words" else np.asarray(c.values, dtype=np.float64)
    return _positions(numbers, c, v) if v.levels else numbers


def _texts(c: Column) -> NDArray[Any]:
    """Text; of numbers, their digits: levels like '311' come back from a CSV file as numbers."""
    if c.sort == "words":
        return c.values
    return np.array([None if np.isnan(value) else f"{value:.17g}" for value in c.values], dtype=object)


def _positions(values: NDArray[Any], c: Column, v: Variable) -> NDArray[np.float64]:
    known = pd.Index(v.levels, dtype=object) if values.dtype == object else pd.Index([float(level) for level in v.levels])
    at = known.get_indexer(pd.Index(values, dtype=known.dtype)).astype(np.float64)
    missing = c.missing
    if unseen := np.flatnonzero((at < 0) & ~missing).tolist():
        value = c.values[unseen[0]]
        near = did_you_mean(str(value), map(str, v.levels))
        raise DataError(f"column {c.name!r} has no level {_shown(value)} (row {unseen[0]}){near}")
    at[missing] = np.nan
    return at


def _shown(value: Any) -> str:  # noqa: ANN401
    return repr(value) if isinstance(value, str) else f"{value:g}"


def check_support(x: NDArray[np.float64], domain: Domain) -> None:
    """Refuse the first value that its variable can not take.

    Raises:
        DataError: an infinity, a count that is not whole, a value outside the bounds; names column and row.
    """
    if len(x):
        refuse_infinity(x, domain.names)
    least, most = np.array([_limits(v) for v in domain.variables]).T
    if (np.fmin.reduce(x, axis=0, initial=np.inf) < least).any() or (np.fmax.reduce(x, axis=0, initial=-np.inf) > most).any():
        spikes = np.array([np.nan if v.spike is None else v.spike for v in domain.variables])
        _refuse_first(((x < least) | (x > most)) & (x != spikes), x, domain)
    counts = np.flatnonzero([v.kind is VariableKind.COUNT for v in domain.variables])
    if len(counts):
        whole = x if len(counts) == len(domain) else x[:, counts]
        broken = (whole != np.rint(whole)) & ~np.isnan(whole)
        _refuse_first(broken, whole, domain.select(counts.tolist()) if broken.any() else domain)


def _refuse_first(wrong: NDArray[np.bool_], x: NDArray[np.float64], domain: Domain) -> None:
    if wrong.any():
        row, d = np.argwhere(wrong)[0]
        v, value = domain.variables[d], x[row, d]
        raise DataError(f"column {v.name!r} {_must(v, value)}, got {value:g} in row {row}: mend the value, or declare another kind")


def _limits(v: Variable) -> tuple[float, float]:
    """The least and greatest value; an open end is closed one step inside, or at the end itself where values are rounded."""
    lower = 0.0 if v.kind is VariableKind.POSITIVE else v.lower
    if v.kind in {VariableKind.POSITIVE, VariableKind.INTERVAL} and v.resolution is None:
        return float(np.nextafter(lower, np.inf)), float(np.nextafter(v.upper, -np.inf)) if v.upper < np.inf else np.inf
    return (0.0, len(v.levels) - 1.0) if v.levels else (float(lower), float(v.upper))


def _must(v: Variable, value: float) -> str:
    if v.kind is VariableKind.COUNT and not float(value).is_integer():
        return "is a count of whole numbers"
    if v.kind is VariableKind.POSITIVE:
        return "is positive" if v.resolution is None else "is not below 0"
    brackets = "()" if v.kind is VariableKind.INTERVAL else "[]"
    return f"lies in {brackets[0]}{v.lower:g}, {v.upper:g}{brackets[1]}"
