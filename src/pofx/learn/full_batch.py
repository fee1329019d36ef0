"""Families that learn from all rows at once: a closed form is one step, EM is many."""

import math
from typing import cast

import torch
from torch import Tensor

from pofx.errors import TrainingError
from pofx.learn.record import Outcome, Row
from pofx.learn.watch import Watch
from pofx.models.base import FullBatch, Model
from pofx.types import Kind


def learn_full_batch(model: FullBatch, x: Tensor, holdout: Tensor | None, generator: torch.Generator, watch: Watch) -> Outcome:
    """Take the family's own steps until they end, the time is spent, or the user interrupts.

    The model is whole at the end of every step, and only there does this stop. A history has one row per
    step; its loss is -log p of the training rows, under the candidate at hand where a family tries several.
    Held-out rows are scored once, under the model that is kept.

    Raises:
        TrainingError: the log-likelihood of the rows is NaN after a step.
    """
    history: list[Row] = []
    stop: str | None = None
    for step, value in enumerate(model.steps(x, holdout=holdout, generator=generator), start=1):
        if math.isnan(value):
            raise TrainingError(f"the log-likelihood of the rows after step {step} is nan")
        history.append(Row(step=step, epoch=step, train=-value, holdout=None, seconds=watch.seconds))
        watch.tell(history[-1])
        watch.progress(step, f"loss {-value:.6g}")
        stop, _ = watch.look()
        if stop is not None:
            break
    if history and holdout is not None:
        history[-1]["holdout"] = _loss(model, holdout, generator)
    ended = "its closed form is reached" if len(history) == 1 else f"its own criterion is met after {len(history)} steps"
    return Outcome(history, stop or ended, len(history))


def _loss(model: FullBatch, rows: Tensor, generator: torch.Generator) -> float | None:
    """Mean of -log p of the rows; None where the model can not marginalise their missing cells."""
    density = cast("Model", model)
    if density.missing is Kind.NONE and bool(rows.isnan().any()):
        return None
    with torch.no_grad():
        return -float(density.log_prob(rows, generator=generator).mean())
