"""Hyper-parameters: try options of a family's declared space, keep those of the best held-out score."""

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pofx.domain import did_you_mean
from pofx.errors import OptionError, PofxError, TrainingError
from pofx.models.base import FamilyConfig
from pofx.models.registry import family as registered

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

Options = dict[str, Any]


@dataclass(frozen=True)
class Attempt:
    """One row of the table of trials.

    Args:
        options: what was tried.
        score: the held-out score, or None when learning failed.
        seconds: how long it took.
        reason: why it failed, in one sentence.
    """

    options: Options
    score: float | None
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class Search:
    """What a search found.

    Args:
        options: those of the best score.
        score: the best score.
        attempts: every trial, in the order they were made.
        stopped: why no more were made.
    """

    options: Options
    score: float
    attempts: tuple[Attempt, ...]
    stopped: str


def search(
    family: str | type[FamilyConfig],
    score: Callable[[Options], float],
    *,
    trials: int = 20,
    timeout: float | None = None,
    seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
) -> Search:
    """Choose the options of a family by held-out score; the first trial is the family's defaults.

    Proposals come from Optuna's tree-structured Parzen estimator, which takes each option's candidates as
    ordered, from the plainest up. No options are tried twice. A trial that fails with a `PofxError` is a row with its reason.

    Args:
        family: its name, or its configuration.
        score: learns with the options and returns the held-out score, the greater the better (mean log-density, say).
        trials: how many at most.
        timeout: seconds after which no new trial begins.
        seed: of the proposals.
        fixed: options that stay as they are given, in every trial.

    Raises:
        OptionError: Optuna is missing, the family is unknown, or there are no trials to make.
        TrainingError: every trial failed; the first one's reason is given.
    """
    config = registered(family).config if isinstance(family, str) else family
    settled = dict(fixed or {})
    space = {name: candidates for name, candidates in config.space.items() if name not in settled}
    _check(config, settled, trials)
    proposals = _Proposals(config, space, seed)
    attempts: list[Attempt] = []
    start = time.monotonic()
    while (stopped := _reason(len(attempts), trials, time.monotonic() - start, timeout, proposals)) is None:
        attempts.append(_attempt(settled | proposals.next(), score))
        proposals.learn(attempts[-1].score)
    return _best(attempts, stopped)


def _reason(made: int, trials: int, seconds: float, timeout: float | None, proposals: "_Proposals") -> str | None:
    """Why to make no more trials; the first is always made."""
    if made == 0:
        return None
    if timeout is not None and seconds >= timeout:
        return f"{timeout:g} s are over"
    if proposals.exhausted:
        return "every combination has been tried"
    return f"all {trials} trials are made" if made >= trials else None


def _check(config: type[FamilyConfig], fixed: Options, trials: int) -> None:
    for name in fixed.keys() - config.model_fields.keys():
        raise OptionError(f"{config.__name__} has no option {name!r}{did_you_mean(name, config.model_fields)}")
    if trials < 1:
        raise OptionError(f"a search makes 1 trial or more, got {trials}")


def _attempt(options: Options, score: Callable[[Options], float]) -> Attempt:
    start = time.monotonic()
    try:
        value = float(score(options))
    except PofxError as error:
        return Attempt(options, None, time.monotonic() - start, str(error))
    seconds = time.monotonic() - start
    return Attempt(options, value, seconds) if math.isfinite(value) else Attempt(options, None, seconds, f"its score is {value}")


def _best(attempts: list[Attempt], stopped: str) -> Search:
    scored = [(attempt.score, attempt) for attempt in attempts if attempt.score is not None]
    if not scored:
        raise TrainingError(f"none of {len(attempts)} trials could be learned; the first: {attempts[0].reason}")
    value, best = max(scored, key=lambda pair: pair[0])
    return Search(best.options, value, tuple(attempts), stopped)


Places = dict[str, int]  # option -> which of its candidates


class _Proposals:
    """The family's defaults first, then Optuna's proposals, each once.

    Args:
        config: the family's options.
        space: option -> candidates.
        seed: of the proposals.
    """

    def __init__(self, config: type[FamilyConfig], space: Mapping[str, tuple[Any, ...]], seed: int) -> None:
        self.space = space
        self._study = _study(seed)
        self._random = random.Random(seed)
        self._tried: set[tuple[int, ...]] = set()
        self._pending: Trial | None = None
        self._defaults: Options | None = {name: config.model_fields[name].get_default(call_default_factory=True) for name in space}

    @property
    def exhausted(self) -> bool:
        """Whether no combination is left."""
        return len(self._tried) >= math.prod(len(candidates) for candidates in self.space.values())

    def next(self) -> Options:
        """Options that were not tried before."""
        if (defaults := self._defaults) is not None:
            self._defaults = None
            if any(value not in self.space[name] for name, value in defaults.items()):
                return defaults  # beside the space: Optuna can not learn from it
            self._study.enqueue_trial({name: self.space[name].index(value) for name, value in defaults.items()})
        places = self._proposed()
        self._tried.add(tuple(places.values()))
        return {name: self.space[name][place] for name, place in places.items()}

    def learn(self, score: float | None) -> None:
        """Tell Optuna how the last proposal did."""
        from optuna.trial import TrialState

        if self._pending is not None:
            self._study.tell(self._pending, score, state=TrialState.FAIL if score is None else TrialState.COMPLETE)
            self._pending = None

    def _proposed(self) -> Places:
        places = self._asked()
        if tuple(places.values()) in self._tried:  # Optuna repeats itself in small spaces
            self.learn(None)
            self._study.enqueue_trial(self._untried())
            places = self._asked()
        return places

    def _asked(self) -> Places:
        trial = self._pending = self._study.ask()
        return {name: trial.suggest_int(name, 0, len(candidates) - 1) for name, candidates in self.space.items()}

    def _untried(self) -> Places:
        while True:
            places = {name: self._random.randrange(len(candidates)) for name, candidates in self.space.items()}
            if tuple(places.values()) not in self._tried:
                return places


def _study(seed: int) -> "Study":
    try:
        import optuna
    except ImportError as error:
        raise OptionError("search needs Optuna: pip install 'pofx[tune]'") from error
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # creating a study announces it
    try:
        return optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    finally:
        optuna.logging.set_verbosity(verbosity)
