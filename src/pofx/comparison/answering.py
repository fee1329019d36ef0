"""Ask one family about hidden cells: how probable, filled with what, how sure; as many rows as its time allows."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.comparison.result import Answering, Completed, Filled, Scored
from pofx.comparison.task import Task
from pofx.errors import Unavailable
from pofx.measure import HiddenCells, calibration, scales, squared_error, surprise, wrong
from pofx.measure.hidden_cells import DRAWS
from pofx.models.base import Model
from pofx.types import Kind

SECONDS = 3.0  # for each of the three questions
LEAST = 20  # rows: of fewer, an average and above all its error say nothing


def answering(model: Model, task: Task, seed: int) -> Answering:
    """What a family says of the task's hidden cells.

    Cost: about 3 s a question at most, or the first row, whatever it takes. So a slow machine asks a slow family less.
    """
    return Answering(scored(model, task, seed), filled(model, task, seed), completed(model, task, seed))


def scored(model: Model, task: Task, seed: int) -> Scored | None:
    """log p(hidden cells | the others) = log p(row) - log p(row without its hidden cells)."""
    generator = torch.Generator(_device(model)).manual_seed(seed)

    def ask(x: Tensor, holes: Tensor) -> Tensor:
        return torch.stack([model.log_prob(rows, generator=generator).double() for rows in (x, holes)], dim=1)

    kind = model.density.worst(model.missing)
    asked = None if kind in {Kind.NONE, Kind.UNNORMALISED} else _in_time(ask, model, task.hidden)
    if asked is None or bool(asked.answers.isnan().any()):
        return None
    whole, rest = asked.answers.unbind(1)
    nats = surprise(asked.rows, whole, rest, kind) if asked.enough else None
    return Scored(len(asked.rows), nats, asked.pace)


def filled(model: Model, task: Task, seed: int) -> Filled | None:
    """The hidden cells by `impute`."""
    generator = torch.Generator(_device(model)).manual_seed(seed)
    asked = _in_time(lambda _, holes: model.impute(holes, generator=generator), model, task.hidden)
    if asked is None:
        return None
    numbers = squared_error(asked.rows, asked.answers, scales(task.train, task.domain)) if asked.enough else None
    levels = wrong(asked.rows, asked.answers, task.domain) if asked.enough else None
    return Filled(len(asked.rows), numbers, levels, asked.pace)


def completed(model: Model, task: Task, seed: int) -> Completed | None:
    """The hidden cells by many draws of `complete`."""
    generator = torch.Generator(_device(model)).manual_seed(seed)

    def ask(_: Tensor, holes: Tensor) -> Tensor:
        draws = model.complete(holes.repeat(DRAWS, 1), generator=generator)
        return draws.reshape(DRAWS, *holes.shape).transpose(0, 1)

    asked = _in_time(ask, model, task.hidden)
    if asked is None:
        return None
    draws, ties = list(asked.answers.unbind(1)), torch.Generator().manual_seed(seed)
    found = calibration(asked.rows, draws, scales(task.train, task.domain), generator=ties) if asked.enough else None
    return Completed(len(asked.rows), found, asked.pace / DRAWS)


@dataclass(frozen=True)
class Asked:
    """Answers about the first rows, as many as there was time for.

    Args:
        rows: those.
        answers: one for each.
        pace: seconds for 1000 rows.
    """

    rows: HiddenCells
    answers: Tensor
    pace: float

    @property
    def enough(self) -> bool:
        """Whether they make an average with an error."""
        return len(self.rows.row.unique()) >= LEAST


def _in_time(ask: Callable[[Tensor, Tensor], Tensor], model: Model, hidden: HiddenCells) -> Asked | None:
    """Ask about the rows piece by piece, each at most as large as all before it, while there is time. None: refused, or nothing to ask."""
    answers: list[Tensor] = []
    done, size, left, pace = 0, 1, SECONDS, math.inf
    while 0 < size <= len(hidden) - done:
        start, piece = time.perf_counter(), hidden[done : done + size]
        try:
            with torch.no_grad():
                answers.append(ask(piece.x.to(_device(model)), piece.holes.to(_device(model))).cpu())
        except Unavailable:
            return None
        took = time.perf_counter() - start
        done, left, pace = done + size, left - took, min(pace, max(took, 1e-9) / size)
        size = min(done, len(hidden) - done, math.floor(left / pace))
    return Asked(hidden[:done], torch.cat(answers), 1000 * pace) if answers else None


def _device(model: Model) -> torch.device:
    return next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
