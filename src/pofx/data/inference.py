"""From a table or array to its Domain: what each column is, and the reason in words.

The rules, in order; a declaration of the user's comes before all of them.

* text, categories: two levels are binary, more are categorical, ordered categories are ordinal; booleans are binary
* numbers of two values: binary
* whole numbers
  - ordinal, when they end abruptly: up to 31 of them, the last no rarer than half the average, 10 rows or more for each
  - counts 0, 1, ..., when they start near 0 and stay below 256
  - else numbers on a grid (real or positive)
* other numbers: real, positive or interval, perhaps rounded or with a spike (see `grids`)
  - interval (0, 1): all strictly inside, with some in each outer tenth
  - positive: none below 0 (0 itself only as spike, or as a rounded value), and a log-normal is likelier than a normal:
    log sd(x) > mean(log x) + log sd(log x)

Columns that no density can be learned from are refused by name: all missing, constant, an identifier, dates, mixed objects.
An array of bytes or booleans, or of three axes and more, is an array of equal variables; another (N, D) array is a table
without names (x0, x1, ...) whose columns are real, counts, ordinal or binary, never positive or interval.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pofx.data.frames import Column, array, column, is_table, numbers, table
from pofx.data.grids import TIED, resolution, spike, tied_share
from pofx.domain import LEVELLED, Domain, Level, Variable, VariableKind, did_you_mean
from pofx.errors import DataError, OptionError

MOST_LEVELS = 1000
ORDINAL_LEVELS, ROWS_PER_LEVEL = 31, 10
LARGEST_COUNT = 255
PIXEL_LEVELS = 64  # an image with fewer levels has them by design (a bit, 17 greys), else they are bytes
Declared = Mapping[str, str | Mapping[str, Any] | Variable]


def infer_domain(data: Any, declared: Declared | None = None) -> Domain:  # noqa: ANN401
    """What the columns of a table, or the entries of an array, are.

    >>> import pandas as pd
    >>> rows = pd.DataFrame({"age": [31, 47, 52, 31, 60, 29], "pet": ["cat", "dog", "cat", "newt", "dog", "cat"]})
    >>> print(infer_domain(rows))
    column  kind         values          because
    age     count        0, 1, ...       whole numbers 29 ... 60
    pet     categorical  cat, dog, newt  text of 3 levels

    Args:
        data: a frame, mapping of columns, list of mappings, array or tensor; rows along the first axis.
        declared: what the user knows better, column -> a kind, some fields of a Variable, or a whole Variable. Levels that
            are not given are read off the data.

    Raises:
        DataError: there are no rows, or a column that no density can be learned from; says which, why, and what to do.
        OptionError: a declaration names an unknown column or kind.
    """
    declared = dict(declared or {})
    if not is_table(data):
        return _of_array(array(data), declared)
    frame = table(data)
    _check_declared(declared, frame.columns)
    if len(frame) < 2:
        raise DataError(f"the table has {'one row' if len(frame) else 'no rows'}: at least two are needed to learn from")
    columns = (column(frame[name], name) for name in frame.columns)
    return Domain(tuple(_declared(c, declared[c.name]) if c.name in declared else _inferred(c) for c in columns))


def _check_declared(declared: Declared, names: Sequence[str]) -> None:
    for name in declared:
        if name not in names:
            raise OptionError(f"there is no column {name!r} to declare{did_you_mean(name, names)}")


# -- arrays ----------------------------------------------------------------------------------------


def _of_array(x: NDArray[Any], declared: Declared) -> Domain:
    if x.size == 0:
        raise DataError(f"an array of shape {x.shape} has no entries: nothing can be learned from it")
    refuse_infinity(x)
    if x.ndim > 2 or x.dtype.kind == "b" or x.dtype == np.uint8:
        return _of_equal(x).replace(**declared)
    columns = (_entry(x, d) for d in range(x[0].size))
    _check_declared(declared, [f"x{d}" for d in range(x[0].size)])
    return Domain(tuple(_declared(c, declared[c.name]) if c.name in declared else _nameless(c) for c in columns))


def _entry(x: NDArray[Any], d: int) -> Column:
    values = x.reshape(len(x), -1)[:, d]
    return numbers(f"x{d}", values.astype(np.float64), str(x.dtype), whole=x.dtype.kind in "iu")


def _nameless(c: Column) -> Variable:
    """An entry of a vector: a number, never bounded by what was seen of it."""
    if not len(c.seen):
        raise DataError(f"entry {c.name!r} is missing in every row: drop it")
    if len(np.unique(c.seen)) == 1 and _whole(c):
        return _count(c, f"{c.seen[0]:g} in every row")
    v = _number(c)
    return replace(v, kind=VariableKind.REAL, lower=-math.inf, upper=math.inf) if v.continuous else v


def _of_equal(x: NDArray[Any]) -> Domain:
    """Pixels, bits, symbols: every entry can hold what any entry holds."""
    shape = event_shape(x.shape[1:])
    named = tuple(f"x{d}" for d in range(math.prod(shape)))
    top, dtype = float(np.nanmax(x)), str(x.dtype)
    if float(np.nanmin(x)) >= 0.0 and top <= LARGEST_COUNT and bool((np.isnan(x) | (x == np.rint(x))).all()):
        last = max(top, 1.0) if top < PIXEL_LEVELS else float(LARGEST_COUNT)
        return Domain(tuple(Variable(n, VariableKind.COUNT, lower=0.0, upper=last, dtype=dtype) for n in named), shape)
    step = 1.0 / 255.0 if _scaled_bytes(x) else None
    return Domain(tuple(Variable(n, VariableKind.REAL, resolution=step, dtype=dtype) for n in named), shape)


def event_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one datum; a picture with its colours last (H, W, C) is turned to (C, H, W)."""
    colours = (1, 3, 4)
    if len(shape) == 3 and shape[-1] in colours and shape[0] not in colours:
        return (shape[2], shape[0], shape[1])
    return shape or (1,)


def _scaled_bytes(x: NDArray[Any]) -> bool:
    """Whether these are bytes divided by 255, to the precision they are stored in."""
    scaled = x.astype(np.float64) * 255.0
    blur = 1024.0 * float(np.finfo(x.dtype).eps) if x.dtype.kind == "f" else 0.0
    inside = float(np.nanmin(scaled)) >= -blur and float(np.nanmax(scaled)) <= 255.0 + blur
    return inside and bool((np.isnan(scaled) | (np.abs(scaled - np.rint(scaled)) <= blur)).all())


def refuse_infinity(x: NDArray[Any], names: Sequence[str] = ()) -> None:
    """Raise DataError at the first infinite entry of rows (N, ...)."""
    infinite = np.isinf(x.reshape(len(x), -1))
    if infinite.any():
        row, d = np.argwhere(infinite)[0]
        where = names[d] if names else f"x{d}"
        raise DataError(f"column {where!r} is infinite in row {row}: put a number there, or leave the cell empty (NaN)")


# -- columns of a table ----------------------------------------------------------------------------


def _inferred(c: Column) -> Variable:
    if not len(c.seen):
        raise DataError(f"column {c.name!r} is empty in every row: drop it")
    if c.sort != "words":
        refuse_infinity(c.values, [c.name])
    if len(pd.unique(c.seen)) == 1:
        only = repr(c.seen[0])[:40] if c.sort == "words" else f"{c.seen[0]:g}"
        raise DataError(f"column {c.name!r} holds one value, {only}, in every row: there is nothing to learn, drop it")
    if c.levels:
        return _levelled(c, c.levels, "an ordered type" if c.ordered else "a categorical type")
    if c.sort == "words":
        return _words(c)
    if c.sort == "truth":
        return _levelled(c, (False, True), "true or false")
    if _numbers_rows(c):
        raise DataError(f"column {c.name!r} numbers its rows: it looks like an identifier, drop it or declare its kind")
    return _number(c)


def _declared(c: Column, change: str | Mapping[str, Any] | Variable) -> Variable:
    """What the user said, and for the rest what the data say."""
    if isinstance(change, Variable):
        return replace(change, name=c.name)
    try:
        start = _inferred(c)
    except DataError:
        start = _levelled(c, observed_levels(c), "") if c.sort == "words" else Variable(c.name, VariableKind.REAL, dtype=c.dtype)
    fields = {"kind": change} if isinstance(change, str) else dict(change)
    kind = fields.get("kind", start.kind)
    if kind in LEVELLED and not start.levels:
        fields = {"levels": observed_levels(c)} | fields
    if kind == VariableKind.INTERVAL:
        start = _bounded(start, c, fields)
    return Domain((start,)).replace(**{c.name: fields}).variables[0]


def _bounded(start: Variable, c: Column, fields: Mapping[str, Any]) -> Variable:
    """The variable with the bounds the user gave; (0, 1) is understood where all values lie inside."""
    inside = c.sort != "words" and len(c.seen) > 0 and c.seen.min() > 0.0 and c.seen.max() < 1.0
    lower, upper = (0.0, 1.0) if inside else (start.lower, start.upper)
    bounds = float(fields.get("lower", lower)), float(fields.get("upper", upper))
    return replace(start, kind=VariableKind.INTERVAL, levels=(), lower=bounds[0], upper=bounds[1])


def _levelled(c: Column, levels: tuple[Level, ...], why: str) -> Variable:
    kind = VariableKind.CATEGORICAL
    if len(levels) == 2:
        kind = VariableKind.BINARY
    elif c.ordered:
        kind = VariableKind.ORDINAL
    return Variable(c.name, kind, levels=levels, dtype=c.dtype, reason=f"{why} of {len(levels)} levels")


def observed_levels(c: Column) -> tuple[Level, ...]:
    """The values a column holds, sorted; whole numbers as integers."""
    if c.sort == "truth":
        return (False, True)
    values = sorted(set(c.seen.tolist()))
    return tuple(int(v) if isinstance(v, float) and v.is_integer() else v for v in values)


def _words(c: Column) -> Variable:
    texts = pd.unique(c.seen)
    if len(texts) > 20:
        _refuse_numerals(c, texts)
    if len(texts) > MOST_LEVELS or (len(texts) > 20 and len(texts) > 0.5 * len(c.seen)):
        raise DataError(
            f"column {c.name!r} has {len(texts)} different texts in {len(c.seen)} rows: "
            "it looks like an identifier or free text, drop it or declare its kind"
        )
    return _levelled(c, observed_levels(c), "text")


def _refuse_numerals(c: Column, texts: NDArray[Any]) -> None:
    """Numbers that are text because of a few odd cells would make hundreds of levels."""
    odd = {text for text in texts if math.isnan(_as_number(text))}
    if 0 < len(odd) < 0.1 * len(texts):
        row = next(i for i, value in enumerate(c.values) if value in odd)
        raise DataError(f"column {c.name!r} holds numbers but for {c.values[row]!r} in row {row}: put a number there, or none")


def _as_number(text: Any) -> float:  # noqa: ANN401
    try:
        return float(text)
    except ValueError:
        return math.nan


def _numbers_rows(c: Column) -> bool:
    """Whole numbers, each once, without a gap."""
    rows = len(c.seen)
    return c.sort == "integer" and rows > 20 and int(np.ptp(c.seen)) == rows - 1 and len(np.unique(c.seen)) == rows


# -- numbers ---------------------------------------------------------------------------------------


def _number(c: Column) -> Variable:
    x = c.seen
    points = np.unique(x)
    if len(points) == 2 and len(x) > 2:
        return _levelled(c, observed_levels(c), "numbers")
    if not _whole(c):
        return _continuous(c, least=0.0)
    first, last = points[0], points[-1]
    if _ends_abruptly(x):
        levels = tuple(range(int(first), int(last) + 1))
        return Variable(c.name, VariableKind.ORDINAL, levels=levels, dtype=c.dtype, reason=f"whole numbers that end at {last:g}")
    if 0 <= first <= 2 * (last - first) and last <= LARGEST_COUNT:
        return _count(c, f"whole numbers {first:g} ... {last:g}")
    return _continuous(c, least=1.0)


def _whole(c: Column) -> bool:
    """Integers by type; or floats that are all whole and meet often (a missing cell turns integers to floats)."""
    return c.sort == "integer" or bool((c.seen == np.rint(c.seen)).all() and tied_share(c.seen) >= TIED)


def _ends_abruptly(x: NDArray[np.float64]) -> bool:
    """Whether whole numbers fill a scale: a count's last value is rare, a scale's is not."""
    levels = int(np.ptp(x)) + 1
    enough = levels <= ORDINAL_LEVELS and len(x) >= ROWS_PER_LEVEL * levels
    return enough and float((x == x.max()).mean()) >= 0.5 / levels


def _count(c: Column, why: str) -> Variable:
    return Variable(c.name, VariableKind.COUNT, lower=0.0, dtype=c.dtype, reason=why)


def _continuous(c: Column, *, least: float) -> Variable:
    x = c.seen
    atom = spike(x)
    slab = x if atom is None else x[x != atom]
    step = _step(slab, c.dtype, least)
    kind, why = _support(slab, atom, step)
    if atom is not None:
        why += f"; {atom:g} in {(x == atom).mean():.0%} of rows"
    if step is not None:
        why += f"; rounded to multiples of {step:g}"
    lower, upper = (0.0, 1.0) if kind is VariableKind.INTERVAL else (-math.inf, math.inf)
    return Variable(c.name, kind, lower, upper, resolution=step, spike=atom, dtype=c.dtype, reason=why)


def _step(x: NDArray[np.float64], dtype: str, least: float) -> float | None:
    """Integers always lie on a grid; other numbers when many rows meet."""
    if least == 0.0 and tied_share(x) < TIED:
        return None
    single = "float32" in dtype.lower() or dtype == "float"
    return resolution(x, precision=2.0**-23 if single else 2.0**-52, least=least) or (least or None)


def _support(x: NDArray[np.float64], atom: float | None, step: float | None) -> tuple[VariableKind, str]:
    least = float(x.min()) if atom is None else min(float(x.min()), atom)
    if least < 0:
        return VariableKind.REAL, "numbers, some below 0"
    if x.min() == 0 and (step is None or x.max() == 0):
        return VariableKind.REAL, "numbers, some exactly 0"
    if 0 < least < 0.1 and 0.9 < x.max() < 1:
        return VariableKind.INTERVAL, "numbers strictly inside (0, 1), near both ends"
    above = np.where(x > 0, x, (step or 0.0) / 4)  # a rounded 0 stands for the middle of (0, r/2)
    if _log_normal_is_likelier(above):
        return VariableKind.POSITIVE, "none below 0, a log-normal likelier than a normal"
    return VariableKind.REAL, "none below 0, but a normal likelier than a log-normal"


def _log_normal_is_likelier(x: NDArray[np.float64]) -> bool:
    """Compare the largest log-likelihoods per row: -log sd(x) and -mean(log x) - log sd(log x)."""
    y = np.log(x)
    spread, log_spread = float(x.std()), float(y.std())
    return spread > 0 and log_spread > 0 and math.log(spread) > float(y.mean()) + math.log(log_spread)
