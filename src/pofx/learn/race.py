"""Which of several ways to learn: a short run of each from the same start, judged on held-out rows."""

import math
from collections.abc import Callable, Sequence

from pofx.learn.record import Outcome
from pofx.models.base import GradientConfig

SHARE = 0.1  # of the epochs, and of the budget, that each rival runs
LEAST_EPOCHS = 3

Heat = Callable[[GradientConfig], Outcome]  # learns a copy of the model by these options


def race(rivals: Sequence[GradientConfig], heat: Heat, *, judged: bool) -> GradientConfig:
    """The rival whose short run ends with the least held-out loss.

    A run's learning rates fall over its own length, so a rival is seen as it would end, not as it begins.

    Args:
        rivals: the ways to learn, the usual one first.
        heat: runs one.
        judged: whether there are held-out rows; without them the usual one wins.
    """
    if len(rivals) == 1 or not judged:
        return rivals[0]
    return min(rivals, key=lambda rival: _least(heat(_short(rival))))


def _short(config: GradientConfig) -> GradientConfig:
    epochs = min(config.max_epochs, max(LEAST_EPOCHS, round(SHARE * config.max_epochs)))
    return config.model_copy(update={"max_epochs": epochs, "patience": epochs})


def _least(outcome: Outcome) -> float:
    return min((row["holdout"] for row in outcome.history if row["holdout"] is not None), default=math.inf)
