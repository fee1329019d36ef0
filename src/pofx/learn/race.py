"""Several ways to learn the same model: each has its run, and held-out rows say which is kept."""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy

from pofx.learn.record import Outcome
from pofx.models.base import GradientConfig, Model

SHARE = 0.2  # of a budget of time that each rival of the usual way may take

Run = Callable[[Model, GradientConfig], Outcome]


def race(model: Model, ways: Sequence[GradientConfig], run: Run, run_aside: Run) -> tuple[GradientConfig, Outcome]:
    """Learn the model by the way whose best held-out loss is the least; among equals by the usual one.

    Args:
        model: untrained; it ends with the winner's weights.
        ways: to learn, the usual one first; the others run on copies.
        run: learns by the usual way.
        run_aside: learns by another.
    """
    copies = [deepcopy(model) for _ in ways[1:]]
    aside = [(way, run_aside(copy, way), copy) for way, copy in zip(ways[1:], copies, strict=True)]
    way, outcome, best = min(((ways[0], run(model, ways[0]), model), *aside), key=lambda end: _least(end[1]))
    if best is not model:
        model.load_tensors(best.state_dict())
    return way, outcome


def _least(outcome: Outcome) -> float:
    return min((row["holdout"] for row in outcome.history if row["holdout"] is not None), default=math.inf)
