"""Outliers of a file: under a model that is there, or under models learned from the rest of the file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from pofx.ask import open as opened
from pofx.ask.fitting import Rows, learn
from pofx.ask.outliers import ROUNDS, Outliers, cross_fitted, index_of, trimmed
from pofx.data import container_of, encode, infer_domain, load, names_a_set, read
from pofx.domain import Domain
from pofx.models.base import Model
from pofx.models.registry import family as registered


def under(model: Path, data: str, reference: str | None, *, cells: bool, seed: int) -> Outliers:
    """The rows of a file under a model that has not learned them, beside ordinary rows or the model's own draws."""
    return opened(model).outliers(read(data), None if reference is None else read(reference), cells=cells, seed=seed)


def within(
    data: str,
    family: str,
    settings: dict[str, Any],
    kinds: dict[str, Any] | None,
    reference: str | None,
    *,
    folds: int,
    trim: float,
    cells: bool,
    seed: int,
    budget: float | None,
) -> Outliers:
    """The rows of a file, each part under the model learned from the other parts, less the share of them that is trimmed.

    The budget is shared by the parts.
    """
    config = registered(family).configure(settings)
    source = read(data)
    domain = _domain(data, source, kinds)
    x = encode(source, domain)
    known = None if reference is None else encode(read(reference), domain)
    empty = Rows(x[:0], x[:0], domain, (), container_of(source))

    def model_of(train: Tensor, holdout: Tensor) -> Model:
        share = None if budget is None else budget / (folds * (ROUNDS + 1 if trim else 1))
        return learn(replace(empty, train=train, holdout=holdout), family, config, seed=seed, budget=share, progress=None).model

    robust = trimmed(model_of, trim, seed=seed)
    result = cross_fitted(x, domain, robust, folds=folds, reference=known, index=index_of(source), cells=cells, seed=seed)
    how = f"learned without the {trim:.0%} of rows that are most surprising; {result.how}" if trim else result.how
    return replace(result, how=how)


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


def _domain(data: str, source: object, kinds: dict[str, Any] | None) -> Domain:
    return load(data).domain if names_a_set(data) and kinds is None else infer_domain(source, kinds)
