"""What a comparison found: the task, a row for each family, and how it was made."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from pofx.comparison.ranking import Win, best_by_answers, best_by_likelihood, by_answers, by_likelihood, error_of, wins
from pofx.comparison.result import Result
from pofx.comparison.task import Task
from pofx.domain import did_you_mean
from pofx.errors import OptionError
from pofx.learn import write_atomically


@dataclass(frozen=True)
class Setting:
    """How a comparison was made.

    Args:
        seed: of every random number.
        budget: seconds a family may learn, or None.
        jobs: families learned at the same time.
        command: what makes it again.
        seconds: how long all of it took.
        machine: in words.
        versions: of what the numbers depend on.
    """

    seed: int = 0
    budget: float | None = None
    jobs: int = 1
    command: str = ""
    seconds: float = 0.0
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Findings:
    """Every family on one task.

    Args:
        task: the rows.
        results: one for each family, in the order of the registry.
        setting: how it was made.
    """

    task: Task
    results: tuple[Result, ...]
    setting: Setting

    def __getitem__(self, family: str) -> Result:
        for result in self.results:
            if result.family == family:
                return result
        raise OptionError(f"no family {family!r} was compared{did_you_mean(family, [r.family for r in self.results])}")

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    @property
    def ranked(self) -> list[Result]:
        """The best likelihood first, the failed last."""
        return by_likelihood(self.results)

    @property
    def best(self) -> Result | None:
        """The family with the best likelihood of the test rows, bounds taken as they are."""
        return best_by_likelihood(self.results)

    @property
    def answering(self) -> list[Result]:
        """Those that were asked about hidden cells, the best score first."""
        return by_answers(self.results)

    @property
    def best_answerer(self) -> Result | None:
        """The family that gives hidden cells the largest probability."""
        return best_by_answers(self.results)

    @property
    def wins(self) -> list[Win]:
        """Which family wins on what."""
        return wins(self.results)

    def to_json(self) -> dict[str, Any]:
        """What results.json holds."""
        setting = self.setting
        return {
            "data": _data(self.task),
            "families": [result.to_json() for result in self.results],
            "wins": {win.question: [win.family, *win.level] for win in self.wins},
            "seed": setting.seed,
            "budget_seconds": setting.budget,
            "jobs": setting.jobs,
            "seconds": setting.seconds,
            "command": setting.command,
            "machine": setting.machine,
            "versions": setting.versions,
        }

    def save(self, path: str | PathLike[str]) -> None:
        """Write results.json, atomically."""
        write_atomically(Path(path), json.dumps(self.to_json(), indent=1, allow_nan=False).encode())


def _data(task: Task) -> dict[str, Any]:
    truth = task.truth
    return {
        "name": task.name,
        "kind": task.kind,
        "rows": task.splits,
        "variables": len(task.domain),
        "shape": list(task.domain.shape),
        "missing_share": task.missing,
        "hidden_cells": int(task.hidden.mask.sum()),
        "hidden_rows": len(task.hidden),
        "source": task.source or None,
        "licence": task.licence or None,
        "true_test_nats": None if truth is None else -float(truth),
        "true_test_nats_se": None if truth is None else error_of(truth),
        "domain": task.domain.to_json(),
    }
