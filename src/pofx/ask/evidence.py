"""Evidence and rows: from the user's words to tensors of the domain."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.data import encode
from pofx.domain import Domain, Level, Variable, did_you_mean
from pofx.errors import DataError, OptionError
from pofx.types import Point, X

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
