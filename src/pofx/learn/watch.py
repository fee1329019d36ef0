"""Looking up from the steps: time, interrupts, checkpoints, news. Rarely, so that a step costs what its arithmetic costs."""

import math
import time
from collections.abc import Callable

import torch

from pofx.learn.checkpoint import Checkpoint
from pofx.learn.distributed import Ranks
from pofx.learn.progress import Progress
from pofx.learn.record import Row

Tracker = Callable[[Row], None]
PERIOD = 0.25  # seconds between two looks
MOST_STEPS = 2.0**30  # between two looks, when steps are too quick to be timed


class Watch:
    """Says when to look up, and at a look whether to stop or save; every rank hears the same.

    The number of steps until the next look follows the pace since the last one, so that a look comes
    about every quarter of a second and near the end of the budget, and is the same on every rank.

    Args:
        ranks: the processes that learn together.
        interrupted: whether the user asked to stop.
        progress: told at every look.
        budget: seconds the run may take, stretches before a resume included; None: no bound.
        checkpoint: where the run is saved, or None.
        tracker: called with every new row of the history, on rank 0.
    """

    def __init__(
        self,
        ranks: Ranks,
        interrupted: Callable[[], bool],
        progress: Progress,
        *,
        budget: float | None = None,
        checkpoint: Checkpoint | None = None,
        tracker: Tracker | None = None,
    ) -> None:
        self.ranks = ranks
        self.progress = progress
        self.budget = math.inf if budget is None else budget
        self.checkpoint = checkpoint
        self._interrupted = interrupted
        self._tracker = tracker
        self._period = PERIOD if checkpoint is None else min(PERIOD, checkpoint.every)
        self._start = self._last_look = self._last_save = time.monotonic()
        self._steps = self._left = 0
        self.share = 0.0  # of the budget that was gone at the last look, the same on every rank
        self.done = 0.0  # of the run, in steps or in time if that ends first; the loop says so before every step
        self.rows = torch.zeros(0, dtype=torch.long)  # of this process, that the step is of; the loop says so as well

    def part(self, share: float) -> "Callable[[], Watch]":
        """Makes watches of a share of this one's budget, which save and tell nothing."""
        return lambda: Watch(self.ranks, self._interrupted, self.progress, budget=share * self.budget)

    def starts_after(self, seconds: float) -> None:
        """Count the seconds of a run that is resumed."""
        self._start -= seconds

    @property
    def seconds(self) -> float:
        """How long the run has taken."""
        return time.monotonic() - self._start

    def due(self) -> bool:
        """Whether to look up before the next step. One comparison; called before every step."""
        self._left -= 1
        return self._left < 0

    def look(self) -> tuple[str | None, bool]:
        """Why to stop now (None: go on), and whether to save."""
        now = time.monotonic()
        room = min(self._period, self.budget - self.seconds)
        steps = min(self._steps * room / max(now - self._last_look, 1e-9), MOST_STEPS)
        save = self.checkpoint is not None and now - self._last_save >= self.checkpoint.every
        gone = min(1.0, self.seconds / self.budget)
        wishes = (not self._interrupted(), self.seconds < self.budget, not save, max(1, int(steps)), gone)
        going, in_time, not_yet, left, self.share = self.ranks.least([float(wish) for wish in wishes])
        self._last_look, self._steps = now, int(left)
        self._left = self._steps - 1
        stop = "interrupted" if not going else None if in_time else f"its budget of {self.budget:g} s is spent"
        return stop, not not_yet

    def saved(self) -> None:
        """A checkpoint was written just now."""
        self._last_save = time.monotonic()

    def tell(self, row: Row) -> None:
        """Pass a new row of the history on."""
        if self._tracker is not None and self.ranks.first:
            self._tracker(row)
