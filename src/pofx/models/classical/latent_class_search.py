"""How many classes, how much smoothing, which start: by the score of held-out rows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from pofx.distributions.columns import Columns
from pofx.models.classical.latent_class_em import Mixture, expectation_maximisation, log_joint, seeded
from pofx.types import Generator

_CLASSES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
_ROWS_A_CLASS = 5  # that a tried number of classes leaves to each
_USUAL, _LOOSER, _FIRMER = 10.0, (3.0, 1.0, 0.3, 0.1), (30.0, 100.0, 300.0)
_PATIENCE = 2  # numbers of classes without a better score before their walk ends


@dataclass(frozen=True)
class Options:
    """What the user left open (None) and how hard to try."""

    classes: int | None
    smoothing: float | None
    restarts: int
    steps: int
    tolerance: float


class Search:
    """Attempts at EM on rows x, each scored on held-out rows; the best is kept.

    First the number of classes under the usual smoothing, then the smoothing, and where another smoothing won, the
    number of classes again. Without held-out rows there is one class unless the user says otherwise, and the score is
    the likelihood of x.

    Args:
        columns: the laws.
        x: rows (N, D).
        held: rows (M, D), perhaps none.
        options: what is open.
        generator: of the starts.
    """

    def __init__(self, columns: Columns, x: Tensor, held: Tensor, options: Options, generator: Generator) -> None:
        self.columns, self.x, self.held, self.options, self.generator = columns, x, held, options, generator
        self.score = -math.inf
        self.classes, self.smoothing = 1, _USUAL if options.smoothing is None else options.smoothing
        self.best: Mixture | None = None  # until the first attempt ends, where that stands

    def steps(self) -> Iterator[float]:
        """Every step of every attempt, with the mean log-likelihood of x after it; `best` is whole each time."""
        usual = self.smoothing
        yield from self._walk([(k, usual) for k in self._numbers()], _PATIENCE)
        if self.options.smoothing is not None or not len(self.held):
            return
        for path in (_FIRMER, _LOOSER):
            if self.smoothing == usual:
                yield from self._walk([(self.classes, a) for a in path], 1)
        if self.smoothing != usual:
            more = [k for k in self._numbers() if k > self.classes]
            fewer = [k for k in reversed(self._numbers()) if k < self.classes]
            before = self.classes
            for numbers in (more, fewer):
                if self.classes == before:
                    yield from self._walk([(k, self.smoothing) for k in numbers], _PATIENCE)

    def _numbers(self) -> Sequence[int]:
        if self.options.classes is not None:
            return (self.options.classes,)
        return [k for k in _CLASSES if k == 1 or (len(self.held) and k * _ROWS_A_CLASS <= len(self.x))]

    def _walk(self, path: Sequence[tuple[int, float]], patience: int) -> Iterator[float]:
        """Attempts along a path of (classes, smoothing) until as many as `patience` of them have brought nothing."""
        idle = 0
        for classes, smoothing in path:
            before = self.score
            for _ in range(self.options.restarts if classes > 1 else 1):
                yield from self._attempt(classes, smoothing)
            idle = 0 if self.score > before else idle + 1
            if idle == patience:
                return

    def _attempt(self, classes: int, smoothing: float) -> Iterator[float]:
        """EM from one random start."""
        first = self.score == -math.inf
        start = seeded(self.columns, self.x, classes, smoothing, self.generator)
        steps, tolerance = self.options.steps, self.options.tolerance
        path = expectation_maximisation(self.columns, self.x, start, smoothing, steps=steps, tolerance=tolerance)
        for mixture, log_likelihood, _ in path:
            self.best = mixture if first else self.best
            yield log_likelihood
        unseen = self.held if len(self.held) else self.x
        score = float(log_joint(self.columns, mixture, unseen).logsumexp(-1).mean())
        if first or score > self.score:
            self.best, self.score, self.classes, self.smoothing = mixture, score, classes, smoothing
