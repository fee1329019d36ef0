"""The built-in sets: one name, three parts, the domain, the source and the licence."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pofx.data.catalogue import DATASETS, SetKind, SetLine
from pofx.data.downloads import load_images
from pofx.data.inference import infer_domain
from pofx.data.toys import TOYS
from pofx.domain import Domain, did_you_mean
from pofx.errors import OptionError

SEED = 0  # of the order of a table's rows, and of a toy's draws: part of the definition of the set
SHARES = (0.70, 0.15)
TOY_ROWS = (5000, 1000, 5000)
DIGITS_ENDS = (1000, 1350)


@dataclass(frozen=True, eq=False)
class DataSet:
    """A set in three parts, so that figures on it can be compared.

    Args:
        name: what the user writes.
        kind: "table", "image" or "toy".
        train: rows to learn from: a pandas frame, or an array (N, H, W), (N, H, W, 3) of bytes, (N, 2) of reals.
        holdout: rows to watch learning on, and to choose by.
        test: rows to report on. A table's parts are 70 / 15 / 15 % of its rows in a fixed random order.
        domain: what a row is, inferred from all rows.
        source: who made it.
        licence: as the source states it.
        log_prob: of a toy, the exact log-density of rows (N, 2) in nats; else None.
        labels: of images, part -> the class of each; else None (a table's class is one of its columns).
    """

    name: str
    kind: SetKind
    train: Any
    holdout: Any
    test: Any
    domain: Domain
    source: str
    licence: str
    log_prob: Callable[[Any], NDArray[np.float64]] | None = None
    labels: Mapping[str, NDArray[Any]] | None = None


def load(name: str) -> DataSet:
    """A built-in set by its name.

    >>> digits = load("digits")
    >>> digits.train.shape, digits.domain.shape, digits.licence
    ((1000, 8, 8), (8, 8), 'CC BY 4.0 (UCI), copy BSD-3-Clause (scikit-learn)')

    Raises:
        OptionError: there is no set of that name.
        DataError: the set is to be downloaded and can not be, and is not in the folder that POFX_DATA names.
    """
    if name not in DATASETS:
        raise OptionError(f"there is no built-in set {name!r}{did_you_mean(name, DATASETS)}")
    line = DATASETS[name]
    if line.kind == "toy":
        return _toy(line)
    if line.kind == "table":
        return _table(line)
    return _remote(line) if line.remote else _digits(line)


def _table(line: SetLine) -> DataSet:
    with as_file(files("pofx.data") / "sets" / f"{line.name}.csv.gz") as path:
        rows = pd.read_csv(path)
    shuffled = rows.iloc[np.random.RandomState(SEED).permutation(len(rows))]  # a stream that NumPy has frozen
    ends = [round(SHARES[0] * len(rows)), round(sum(SHARES) * len(rows))]
    cuts = zip([0, *ends], [*ends, len(rows)], strict=True)
    train, holdout, test = (shuffled.iloc[a:b].reset_index(drop=True) for a, b in cuts)
    return DataSet(line.name, line.kind, train, holdout, test, infer_domain(rows), line.source, line.licence)


def _toy(line: SetLine) -> DataSet:
    toy, generator = TOYS[line.name], torch.Generator().manual_seed(SEED)
    train, holdout, test = (toy.sample(n, generator=generator).numpy() for n in TOY_ROWS)
    return DataSet(line.name, line.kind, train, holdout, test, Domain.real(2), line.source, line.licence, toy.log_prob)


def _digits(line: SetLine) -> DataSet:
    with as_file(files("pofx.data") / "sets" / "digits.npz") as path, np.load(path, allow_pickle=False) as arrays:
        x, y = arrays["images"], arrays["labels"]
    return _images(line, np.split(x, DIGITS_ENDS), np.split(y, DIGITS_ENDS))


def _remote(line: SetLine) -> DataSet:
    x_train, y_train, x_test, y_test = load_images(line.name)
    end = [len(x_train) - len(x_train) // 6]
    return _images(line, [*np.split(x_train, end), x_test], [*np.split(y_train, end), y_test])


def _images(line: SetLine, x: list[NDArray[Any]], y: list[NDArray[Any]]) -> DataSet:
    labels = dict(zip(("train", "holdout", "test"), y, strict=True))
    train, holdout, test = x
    return DataSet(line.name, line.kind, train, holdout, test, infer_domain(train), line.source, line.licence, labels=labels)
