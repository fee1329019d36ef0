"""search: choose a family's options by held-out likelihood."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pofx.ask.fitting import Rows, Schema, gather, learn
from pofx.ask.pofx import PofX
from pofx.learn import search as tried
from pofx.learn.search import Attempt
from pofx.models.registry import family as registered


@dataclass(frozen=True)
class Found:
    """What a search found.

    Args:
        best: the p(x) with the best held-out score.
        options: its options.
        score: its mean log-density of the held-out rows, nats a row.
        trials: every configuration tried, with its score, time, or the reason it failed.
        stopped: why no more were tried.
    """

    best: PofX
    options: dict[str, Any]
    score: float
    trials: tuple[Attempt, ...]
    stopped: str

    def __str__(self) -> str:
        ranked = sorted(self.trials, key=lambda trial: -float("inf") if trial.score is None else trial.score, reverse=True)
        lines = [f"{_score(t):>12}  {t.seconds:6.1f} s  {t.options}{'  ' + t.reason if t.reason else ''}" for t in ranked]
        return "\n".join((f"held-out nats a row, the best first; {self.stopped}", *lines))


def search(
    family: str,
    data: Any,  # noqa: ANN401
    *,
    trials: int = 20,
    timeout: float | None = None,
    given: str | Sequence[str] | None = None,
    holdout: Any = None,  # noqa: ANN401
    schema: Schema = None,
    seed: int = 0,
    budget: float | None = None,
    device: str = "auto",
    **fixed: Any,  # noqa: ANN401
) -> Found:
    """Choose the family's options by the mean log-density of held-out rows; the first trial is the defaults.

    Args:
        family: a name of `pofx.families()`.
        data: as `pofx.fit` takes it.
        trials: how many configurations at most.
        timeout: seconds after which no new one begins.
        given: columns to condition on.
        holdout: rows to score on; a tenth of the data when none are given.
        schema: the domain, or corrections to the inferred one.
        seed: of the split, of learning and of the proposals.
        budget: seconds each may learn.
        device: where to learn.
        **fixed: options that stay as they are.

    Raises:
        PofxError: the data or options can not work; Optuna is missing; every trial failed.
    """
    rows = gather(data, given=given, holdout=holdout, schema=schema, seed=seed)
    best = _Best(family, rows, seed, budget, device)
    found = tried(family, best.score, trials=trials, timeout=timeout, seed=seed, fixed=fixed)
    return Found(best.p, found.options, found.score, found.attempts, found.stopped)


class _Best:
    """Learns with options, and keeps the p(x) that scored best."""

    p: PofX

    def __init__(self, family: str, rows: Rows, seed: int, budget: float | None, device: str) -> None:
        self.family, self.rows, self.seed, self.budget, self.device = family, rows, seed, budget, device
        self.best = -float("inf")

    def score(self, options: dict[str, Any]) -> float:
        config = registered(self.family).configure(options)
        p = learn(self.rows, self.family, config, seed=self.seed, budget=self.budget, device=self.device)
        score = p.held_out(*self.rows.parts(self.rows.holdout))
        if score > self.best:
            self.best, self.p = score, p
        return score


def _score(trial: Attempt) -> str:
    return "failed" if trial.score is None else f"{trial.score:.4f}"
