"""Parts that learn one after the other: a run for each, and one record of all."""

import math
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from pofx.learn.record import Record, Row
from pofx.models.base import FamilyConfig, Staged
from pofx.models.registry import name_of


def in_stages(
    model: Staged, config: FamilyConfig, run: Callable[..., Record], budget: float | None, checkpoint: str | PathLike[str] | None
) -> Record:
    """Run every stage; the record's history is theirs end to end, and its losses are each stage's own.

    Args:
        model: what learns.
        config: its options.
        run: learns one stage: takes its model, config, budget and checkpoint.
        budget: seconds for all, half of what is left for each: how many come after it, no stage knows.
        checkpoint: a file, for stage k that with ".k" after its name.
    """
    records: list[Record] = []
    left = math.inf if budget is None else budget
    stages = model.stages()
    stage = next(stages, None)
    while stage is not None:
        part, options = stage
        path = None if checkpoint is None else Path(f"{checkpoint}.{len(records) + 1}")
        records.append(run(part, config=options, budget=None if budget is None else left / 2, checkpoint=path))
        left -= records[-1].seconds
        stage = next(stages, None)
    return _joined(records, config)


def _joined(records: list[Record], config: FamilyConfig) -> Record:
    history: list[Row] = []
    before = Row(step=0, epoch=0, train=math.nan, holdout=None, seconds=0.0)
    kept = 0
    for record in records:
        kept = before["step"] + record.kept
        history += [_after(before, row) for row in record.history]
        before = history[-1] if record.history else before
    stopped = "; ".join(f"stage {k} ({one.family}): {one.stopped}" for k, one in enumerate(records, start=1))
    last = records[-1]
    seconds = sum(one.seconds for one in records)
    options = config.model_dump(mode="json")
    return Record(name_of(config), options, history, stopped, kept, seconds, last.seed, last.device, surrogate=last.surrogate)


def _after(before: Row, row: Row) -> Row:
    """The row, counted on from the last one of the stage before."""
    return Row(
        step=before["step"] + row["step"],
        epoch=before["epoch"] + row["epoch"],
        train=row["train"],
        holdout=row["holdout"],
        seconds=before["seconds"] + row["seconds"],
    )
