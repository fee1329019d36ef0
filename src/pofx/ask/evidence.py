"""Evidence and rows: from the user's words to tensors of the domain."""

import re
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from pofx.data import encode, read
from pofx.domain import Domain, Level, Variable, did_you_mean
from pofx.errors import DataError, OptionError
from pofx.events import Among, Between, Condition, Event, Value
from pofx.types import Point, X

_COMPARISON = re.compile(r"\s*(<=|>=|==|=|<|>)\s*")
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def point(domain: Domain, evidence: Mapping[str, Any]) -> Point:
    """One datum with NaN where the evidence says nothing.

    Raises:
        OptionError: a column is unknown, or a value is no single value.
        DataError: a value is outside its column's domain.
    """
    for name, value in evidence.items():
        domain.index(name)
        if isinstance(value, list | tuple | set | slice | Mapping):
            raise OptionError(f"evidence on {name!r} is one value, got {value!r}")
    x = torch.full((len(domain),), torch.nan, dtype=torch.float64)
    for name, value in evidence.items():
        x[domain.index(name)] = encode({name: [value]}, domain.select([domain.index(name)]))[0, 0]
    return x


def one_row(domain: Domain, row: Any) -> Point:  # noqa: ANN401
    """One datum from a mapping column -> value, or from a table of one row; NaN where a cell is missing or its column absent.

    Raises:
        DataError: a column is unknown, a value is outside its column's domain, or there are other than one row.
    """
    single = row.to_dict() if isinstance(row, pd.Series) else row
    if isinstance(single, Mapping) and not any(isinstance(cell, Sized) and not isinstance(cell, str) for cell in single.values()):
        single = {name: [cell] for name, cell in single.items()} or {domain.names[0]: [None]}
    x = encode(read(single), domain, partial=True)
    if len(x) != 1:
        raise DataError(f"one row is asked about at a time, got {len(x)}")
    return x[0]


def event(domain: Domain, evidence: Mapping[str, Any]) -> Event:
    """What is known, one condition a column: a value, a set (or list) of values or levels, or a `Between`.

    Raises:
        OptionError: a column is unknown, a set is empty, an interval is empty or of unordered levels.
        DataError: a value is not one of the variable's.
    """
    return Event(domain, {domain.index(name): _condition(domain, name, value) for name, value in evidence.items()})


def _condition(domain: Domain, name: str, value: Any) -> Condition:  # noqa: ANN401
    if isinstance(value, Between):
        return value
    several = isinstance(value, set | frozenset | list | tuple)
    codes = [float(point(domain, {name: one})[domain.index(name)]) for one in (value if several else [value])]
    return Among(tuple(sorted(codes))) if several else Value(codes[0])


def parse(domain: Domain, words: Sequence[tuple[str, str]]) -> dict[str, Level]:
    """Evidence from words, such as ("age", "30"): each column's kind says how its word is read, and nothing is guessed.

    A column of levels takes one of its levels as it is written (a number level by its value, true and false in any case); every other
    column takes a decimal number.

    Raises:
        OptionError: a column is unknown, or given twice.
        DataError: the word is no value of the column's kind.
    """
    evidence: dict[str, Level] = {}
    for name, word in words:
        variable = domain[name]
        if name in evidence:
            raise OptionError(f"column {name!r} is given twice, {evidence[name]!r} and {word!r}: give it once")
        evidence[name] = _level(variable, word) if variable.levels else _number(variable, word)
    return evidence


def conditions(domain: Domain, words: Sequence[str]) -> dict[str, Any]:
    """Events from words: NAME=VALUE, "age >= 30", "10 < age <= 20", "30 > age"; several of one column must all hold.

    >>> from pofx.domain import Variable
    >>> conditions(Domain((Variable("age", "real"),)), ["10 < age <= 20"])
    {'age': Between(lower=10.0, upper=20.0, closed=(False, True))}

    Raises:
        OptionError: the words are no comparison of a column with values, or a column of levels is compared by size.
        DataError: a word is no value of the column's kind.
    """
    found: dict[str, Any] = {}
    for name, sign, word in (part for text in words for part in _comparisons(domain, text)):
        if sign == "=":
            one = parse(domain, [(name, word)])[name]
            if name in found:
                raise OptionError(f"column {name!r} is given twice, {found[name]!r} and {word!r}: give it once")
            found[name] = one
        else:
            found[name] = _narrowed(found.get(name, Between()), domain[name], sign, word)
    return found


def _comparisons(domain: Domain, text: str) -> list[tuple[str, str, str]]:
    """(column, sign, word) of "a < x <= b" and the like, the column on the left."""
    parts = _COMPARISON.split(text.strip())
    turned = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
    named = [i for i in range(0, len(parts), 2) if parts[i] in domain.names]
    if len(parts) not in (3, 5) or not named or (len(parts) == 5 and named[0] != 2):
        domain.index(parts[0] if len(parts) == 3 and not named else domain.names[0])  # an unknown column is told as such
        raise OptionError(f"expected a column compared with a value, such as age=30 or '10 < age <= 20', got {text!r}")
    at = named[0]
    out = []
    if at > 0:
        sign = parts[at - 1].replace("==", "=")
        out.append((parts[at], turned.get(sign, sign), parts[at - 2]))
    if at + 2 < len(parts):
        out.append((parts[at], parts[at + 1].replace("==", "="), parts[at + 2]))
    return out


def _narrowed(so_far: object, variable: Variable, sign: str, word: str) -> Between:
    if variable.levels:
        raise OptionError(
            f"column {variable.name!r} has levels, which are not compared by size: write {variable.name}={variable.levels[0]}"
        )
    if not isinstance(so_far, Between):
        raise OptionError(f"column {variable.name!r} is given twice: give it once")
    end, closed = _number(variable, word), sign.endswith("=")
    if sign.startswith("<"):
        return Between(so_far.lower, end, (so_far.closed[0], closed))
    return Between(end, so_far.upper, (closed, so_far.closed[1]))


def fill_in(evidence: Point, rest: Float[Tensor, "n others"]) -> X:
    """Rows (n, D) with the evidence in its columns and draws of the others, (n, D - seen), in theirs, in order."""
    rows = evidence.to(rest).expand(len(rest), -1).clone()
    rows[:, evidence.isnan().to(rest.device)] = rest
    return rows


def _level(variable: Variable, word: str) -> Level:
    for level in variable.levels:
        if word == level or _same(level, word):
            return level
    near = did_you_mean(word, map(str, variable.levels))
    raise DataError(f"column {variable.name!r} has no level {word!r}{near}")


def _same(level: Level, word: str) -> bool:
    if isinstance(level, bool):
        return word.lower() == str(level).lower()
    return not isinstance(level, str) and _as_number(word) == level


def _number(variable: Variable, word: str) -> float:
    number = _as_number(word)
    if number is None:
        raise DataError(f"column {variable.name!r} is of kind {variable.kind} and takes a number, got {word!r}")
    return number


def _as_number(word: str) -> float | None:
    """The finite decimal number that the word is, or None: no digits grouped by _, no nan, no inf."""
    return float(word) if _DECIMAL.fullmatch(word.strip()) else None
