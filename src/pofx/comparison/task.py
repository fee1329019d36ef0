"""The task: the rows that every family is given, the same for all."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from pofx.data import Container, DataSet, check_training, container_of, decode, encode, infer_domain, load, names_a_set, read, split
from pofx.domain import Domain
from pofx.errors import DataError
from pofx.measure import HiddenCells, held_out, hide
from pofx.types import Answer

TEST_SHARE, HOLDOUT_SHARE = 0.2, 0.1
LEAST_TEST_ROWS = 10
Schema = Domain | Mapping[str, Any] | None


@dataclass(frozen=True)
class Task:
    """What is compared on: encoded rows to learn from, to watch learning on, and to test on.

    Args:
        name: of the data, as the user would write it.
        domain: what a row is.
        container: what a table of rows is, for the user.
        train: rows (N, D) to learn from, NaN = missing.
        holdout: rows that learning is watched on.
        test: rows that no family sees before it is measured.
        hidden: cells of the test rows that every family is asked about.
        kind: "table", "image" or "toy".
        source: where the data are from.
        licence: of the data.
        labels: of training and of test rows; no family sees them.
        true_nats: log p of each test row under the density it was drawn from, where that is known.
    """

    name: str
    domain: Domain
    container: Container
    train: Tensor
    holdout: Tensor
    test: Tensor
    hidden: HiddenCells
    kind: str = "table"
    source: str = ""
    licence: str = ""
    labels: tuple[Tensor, Tensor] | None = None
    true_nats: Tensor | None = None

    def rows(self, x: Tensor) -> Any:  # noqa: ANN401
        """Encoded rows as the user's kind of table."""
        return decode(x, self.domain, self.container)

    @property
    def truth(self) -> Answer | None:
        """The mean log p of the test rows under the density they were drawn from: what no p(x) beats on average."""
        return None if self.true_nats is None else held_out(self.true_nats)

    @property
    def missing(self) -> float:
        """The share of missing cells in all rows."""
        every = torch.cat((self.train, self.holdout, self.test))
        return float(every.isnan().double().mean())

    @property
    def splits(self) -> dict[str, int]:
        """How many rows there are of each sort."""
        return {"train": len(self.train), "holdout": len(self.holdout), "test": len(self.test)}


def task_of(data: Any, *, test: Any = None, schema: Schema = None, seed: int = 0) -> Task:  # noqa: ANN401
    """The task that data stand for: a built-in set with its own split, or rows split here at random.

    Args:
        data: the name of a built-in set, a path, a frame, an array.
        test: rows to test on; a fifth of the data when none are given.
        schema: the domain, or corrections of the inferred one, column -> kind.
        seed: of the split and of the hidden cells.

    Raises:
        DataError: the data can not be learned from, or there are under 10 rows to test on.
    """
    if isinstance(data, str) and names_a_set(data):
        data = load(data)
    if isinstance(data, DataSet):
        return _of_set(data, schema, seed)
    rows = read(data)
    domain = schema if isinstance(schema, Domain) else infer_domain(rows, schema)
    name = str(data) if isinstance(data, str | PathLike) else "rows"
    generator = torch.Generator().manual_seed(seed)
    x = encode(rows, domain)
    learn, tested = split(x, TEST_SHARE, generator) if test is None else (x, encode(read(test), domain))
    train, holdout = split(learn, HOLDOUT_SHARE, generator)
    hidden = hide(tested, generator=generator)
    return _checked(Task(name, domain, container_of(rows), train, holdout, tested, hidden, "table" if domain.is_table else "image"))


def _of_set(data: DataSet, schema: Schema, seed: int) -> Task:
    domain = schema if isinstance(schema, Domain) else data.domain.replace(**dict(schema or {}))
    train, holdout, test = (encode(part, domain) for part in (data.train, data.holdout, data.test))
    hidden = hide(test, generator=torch.Generator().manual_seed(seed))
    task = Task(data.name, domain, container_of(data.train), train, holdout, test, hidden, data.kind, data.source, data.licence)
    true_nats = None if data.log_prob is None else torch.as_tensor(data.log_prob(data.test))
    return _checked(replace(task, labels=_labels(data), true_nats=true_nats))


def _labels(data: DataSet) -> tuple[Tensor, Tensor] | None:
    if data.labels is None:
        return None
    train, test = (torch.as_tensor(data.labels[part]).long() for part in ("train", "test"))
    return train, test


def _checked(task: Task) -> Task:
    check_training(task.train, task.domain)
    if len(task.test) < LEAST_TEST_ROWS:
        raise DataError(f"a comparison needs at least {LEAST_TEST_ROWS} rows to test on, got {len(task.test)}: give more data")
    return task
