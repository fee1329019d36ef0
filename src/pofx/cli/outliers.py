"""Outliers of a file under a model that is there, and how outliers are told."""

from pathlib import Path

import pandas as pd

from pofx.ask import open as opened
from pofx.ask.outliers import Outliers
from pofx.data import read


def under(model: Path, data: str, reference: str | None, *, cells: bool, seed: int) -> Outliers:
    """The rows of a file under a model that has not learned them, beside ordinary rows or the model's own draws."""
    return opened(model).outliers(read(data), None if reference is None else read(reference), cells=cells, seed=seed)


def told(result: Outliers, n: int) -> str:
    """The most surprising rows as text, and what the numbers are."""
    shown = result.table(n).to_string(float_format="{:.4g}".format, na_rep="")
    cells = f"; cells: {result.cells_kind}" if result.blame is not None else ""
    return f"{shown}\n\n{len(result)} rows, log_prob: {result.kind}{cells}; {result.how}"


def scores(result: Outliers) -> pd.DataFrame:
    """Every row's numbers, its label in the first column."""
    frame = result.frame()
    name = str(frame.index.name or "row")
    frame.insert(0, "row" if name in frame else name, frame.index)
    return frame
