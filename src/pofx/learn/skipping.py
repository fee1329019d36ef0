"""Skipping: a step whose gradient is far larger than usual is not taken, and what is usual follows the gradients."""

import math
from dataclasses import dataclass, field
from statistics import median

WINDOW = 50  # recent norms, whose median is the usual one
LONGEST = WINDOW // 2  # steps skipped in a row at most


@dataclass
class Norms:
    """The recent norms of a player's gradients, those of skipped steps among them.

    A fixed bound, once the scale of gradients has passed it for good, stops learning without a word. Here the median goes with them:
    of norms that stay at a new scale half fill the window after `LONGEST` steps, and whatever they do, the step after
    `LONGEST` skipped ones is taken. So gradients that stay infinite reach the weights, and the run fails with a sentence.

    Args:
        recent: the norms, the newest last; one that is no number counts as infinite.
        in_a_row: steps skipped since one was taken.
        skipped: steps skipped in all.
    """

    recent: list[float] = field(default_factory=list)
    in_a_row: int = 0
    skipped: int = 0

    def admit(self, norm: float, above: float) -> bool:
        """Whether to take the step: its norm is no larger than `above` medians of those before it, or too many were skipped."""
        norm = math.inf if math.isnan(norm) else norm
        usual = median(self.recent) if self.recent else math.inf
        self.recent = [*self.recent[1 - WINDOW :], norm]
        if norm <= above * usual or self.in_a_row == LONGEST:
            self.in_a_row = 0
            return True
        self.in_a_row, self.skipped = self.in_a_row + 1, self.skipped + 1
        return False
