"""approach: from an unnormalised log-density, and no rows, to a flow that is near it.

The gradient loop is the one of `run`: its rows are empty and only say how many draws a step takes; the objective draws anew.
"""

from collections.abc import Callable
from contextlib import nullcontext
from enum import StrEnum

import torch
from torch import Tensor

from pofx.learn.distributed import choose_device, joined
from pofx.learn.interrupt import deferred_interrupt
from pofx.learn.loop import descend
from pofx.learn.progress import shown
from pofx.learn.record import Record
from pofx.learn.rows import Rows
from pofx.learn.streams import Stream, isolated, seed_of
from pofx.learn.watch import Tracker, Watch
from pofx.models.base import GradientConfig
from pofx.models.flows.flow import Flow
from pofx.models.registry import name_of
from pofx.objectives.base import Objective
from pofx.objectives.variational import ForwardKL, LogDensity, ReverseKL
from pofx.types import Generator

LOOK = 50  # steps that the record counts as an epoch
COLDEST = 0.1  # the power of p that tempering begins with


class Direction(StrEnum):
    """Which divergence is descended, and by which gradient."""

    REVERSE = "reverse"  # KL(q || p), along the path
    SCORE = "reverse-score"  # the same with the score of q: the plain reparameterised gradient
    FORWARD = "forward"  # KL(p || q), by weighted draws of q


def objective_of(direction: Direction, q: Flow, log_p: LogDensity, power: Callable[[], float]) -> Objective:
    """What is descended."""

    def draw(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        return q.reparameterised(n, generator=generator)

    def log_q(x: Tensor) -> Tensor:
        return -q.loss(x)

    if direction is Direction.FORWARD:
        return ForwardKL(q, draw, log_q, log_p, power=power)
    return ReverseKL(q, draw, log_q, log_p, path=direction is Direction.REVERSE, power=power)


def approach(
    q: Flow,
    log_p: LogDensity,
    *,
    config: GradientConfig,
    direction: Direction = Direction.REVERSE,
    anneal: float = 0.0,
    seed: int = 0,
    budget: float | None = None,
    device: str | torch.device | None = None,
    progress: bool | None = False,
    tracker: Tracker | None = None,
) -> Record:
    """Learn q's parameters from where they stand, in place; the last weights are kept, averaged where the options say so.

    The target is p^b with b rising evenly from 0.1 to 1 over the first part of the run. The learning rate falls as the options say.

    Args:
        q: what learns.
        log_p: log-density of rows (N, D), with or without its constant.
        config: the family's options; an epoch is `LOOK` steps of `batch_size` draws.
        direction: which divergence.
        anneal: the share of the run over which b rises; 0: b is 1 throughout.
        seed: of the draws.
        budget: seconds, after which learning stops; tempering and learning rate keep to it.
        device: where to learn; None or "auto" takes a CUDA device when there is one.
        progress: as of `run`.
        tracker: called with every new row of the history.

    Raises:
        TrainingError: a loss or weight is no longer finite; the sentence says at which step, and which weights q has.
    """
    where = choose_device(device)
    q.to(where)
    rows = Rows(torch.empty(LOOK * config.batch_size, 0, device=where))
    with (
        joined(where) as ranks,
        deferred_interrupt() as interrupted,
        isolated(seed_of(seed, Stream.TORCH), where),
        shown(progress if ranks.first else False, config.max_epochs * LOOK) as bar,
    ):
        watch = Watch(ranks, interrupted, bar, budget=budget, tracker=tracker)

        def power() -> float:
            return COLDEST + (1 - COLDEST) * watch.done / anneal if watch.done < anneal else 1.0

        outcome = descend(objective_of(direction, q, log_p, power), rows, None, config, seed, watch, nullcontext)
    return Record(name_of(config), config.model_dump(mode="json"), *outcome, watch.seconds, seed, str(where))
