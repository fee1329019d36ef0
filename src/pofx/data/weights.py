"""How often each row counts: numbers beside the rows, or a column among theirs."""

from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from pofx.data.encoding import encode
from pofx.data.frames import is_table, table
from pofx.domain import Domain, Variable, VariableKind, did_you_mean
from pofx.errors import DataError


def weighted(source: object, weights: object) -> tuple[object, Float[Tensor, "*shape"] | None]:
    """The rows without the column that weighs them, and the weights; None where every row counts once.

    Args:
        source: a table or an array.
        weights: one number a row, or the name of a column of the table.

    Raises:
        DataError: there is no such column, or the weights are no numbers.
    """
    if weights is None:
        return source, None
    if not isinstance(weights, str):
        return source, _numbers(weights)
    if not is_table(source):
        raise DataError(f"weights are to be the column {weights!r}, but the rows are an array: give one number a row")
    frame = table(source)
    if weights not in frame.columns:
        raise DataError(f"there is no column {weights!r} to weigh the rows by{did_you_mean(weights, frame.columns)}")
    at = frame.columns.index(weights)
    return _without(source, frame, at), encode(frame.select(weights), Domain((Variable(weights, VariableKind.REAL),)))[:, 0]


def _numbers(weights: object) -> Tensor:
    try:
        return torch.from_numpy(np.array(weights, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise DataError(f"weights are one number a row, or the name of a column: {error}") from error


def _without(source: object, frame: "nw.DataFrame[Any]", at: int) -> object:
    """The table without one column, its labels as they were."""
    if isinstance(source, pd.DataFrame):
        return source.drop(columns=source.columns[at])
    return frame.drop(frame.columns[at]).to_native()
