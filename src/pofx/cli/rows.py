"""Rows of a file on their way in and out: whole numbers stay whole, labels stay with their rows, evidence stands in its column."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pofx.ask import PofX
from pofx.ask.evidence import fill_in, parse, point
from pofx.comparison.imputing import FAMILIES, Choice, choose
from pofx.data import decode, read, write
from pofx.errors import DataError, OptionError
from pofx.types import Answer

ENDINGS = (".csv", ".csv.gz", ".tsv", ".parquet", ".npy")
TEXT = (".csv", ".csv.gz", ".tsv", ".tsv.gz")


def read_typed(data: str) -> Any:  # noqa: ANN401
    """Rows of a file; a text file's column of whole numbers with empty cells is one of integers, not of reals.

    Text has no types, and the reader has no integers with holes: written back as it is, 3750 would become 3750.0.
    """
    rows = read(data)
    if isinstance(rows, pd.DataFrame) and data.lower().endswith(TEXT):
        return rows.astype({name: "Int64" for name in rows.columns if _whole(rows[name])})
    return rows


def _whole(column: "pd.Series[Any]") -> bool:
    if column.dtype != np.float64 or not column.isna().any():
        return False
    seen = column.dropna()
    return bool(len(seen)) and bool(((seen == seen.round()) & (seen.abs() < 2**53)).all())


def check_ending(out: Path | None, endings: tuple[str, ...] = ENDINGS) -> None:
    """Refuse, before anything is learned, a file that can not be written.

    Raises:
        DataError: the ending is none of those.
    """
    if out is not None and not out.name.lower().endswith(endings):
        raise DataError(f"{out} has an ending that is not written here: use {', '.join(endings[:-1])} or {endings[-1]}")


def filled_in(rows: Any, filled: Any) -> Any:  # noqa: ANN401
    """The filled columns where they stood in a table, beside those that the model does not know; an array as it is filled."""
    if not isinstance(rows, pd.DataFrame):
        return filled
    whole = rows.copy()
    for label in filled.columns:
        whole[label] = filled[label]
    return whole


def learned_to_fill(
    rows: Any,  # noqa: ANN401
    families: Sequence[str] | None,
    options: Mapping[str, Any],
    schema: Mapping[str, Any] | None,
    *,
    seed: int,
    budget: float | None,
) -> Choice:
    """The likeliest of the families, learned from the rows with holes; which one it is goes to standard error.

    Raises:
        OptionError: options that stand beside several families.
    """
    names = families or FAMILIES
    if options and len(names) > 1:
        raise OptionError(f"--set is an option of one family: name it with --family, got {len(names)} to choose from")
    choice = choose(rows, dict.fromkeys(names, options), schema=schema, seed=seed, budget=budget)
    print(choice, file=sys.stderr, flush=True)
    return choice


def clustered(p: Answer) -> pd.DataFrame:
    """The most probable component of each row, and its probability."""
    each = np.asarray(p)
    return pd.DataFrame({"cluster": each.argmax(1), "probability": each.max(1)})


def classified(p: PofX, data: str, column: str | None) -> pd.DataFrame:
    """The most probable level of each row, and p of every level."""
    name = column or p.only_levels()
    each = np.asarray(p.classify(data, name))
    variable = (p.domain if p.model.context is None or name in p.domain.names else p.model.context)[name]
    levels = np.array(variable.levels, dtype=object)
    return pd.DataFrame({name: levels[each.argmax(1)], **{f"p({level})": each[:, k] for k, level in enumerate(levels)}})


def write_labelled(table: object, out: Path) -> None:
    """Write rows with the labels that a Parquet file gave them: as its index again, or as the first columns of text."""
    if not isinstance(table, pd.DataFrame) or isinstance(table.index, pd.RangeIndex) or out.suffix == ".npy":
        write(table, out)
    elif out.suffix == ".parquet":
        table.to_parquet(out)
    else:
        write(table.reset_index(), out)


def sample_given(p: PofX, words: list[tuple[str, str]], n: int, seed: int) -> Any:  # noqa: ANN401
    """n whole rows with the given values in their columns and draws of p(the others | the given) in theirs.

    Raises:
        OptionError: a column is unknown or given twice, or every column is given.
        DataError: a value is not one of its column's.
        Unavailable: the family has no conditional.
    """
    if p.model.context is not None:
        return p.sample(n, given={name: [value] for name, value in parse(p.model.context, words).items()}, seed=seed)
    evidence = point(p.domain, parse(p.domain, words))
    rest = p.model.conditional(evidence).sample(n, generator=torch.Generator().manual_seed(seed))
    return decode(fill_in(evidence, rest), p.domain, p.container)
