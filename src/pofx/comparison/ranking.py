"""Which family wins on what: numbers of one meaning, and only differences beyond their error."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pofx.comparison.result import Result
from pofx.comparison.words import at_most, duration, listed
from pofx.measure import paired_difference
from pofx.types import Answer, Kind

CLEAR = 2.0  # standard errors that make a difference
Estimate = tuple[float, float]  # value and standard error


@dataclass(frozen=True)
class Win:
    """The answer to one question of "who wins on what".

    Args:
        question: what is compared.
        family: the first.
        value: its number, in words.
        level: families whose difference from the first is within its error.
        caveat: what the reader must know to trust the order, or "".
    """

    question: str
    family: str
    value: str
    level: tuple[str, ...] = ()
    caveat: str = ""


def by_likelihood(results: Sequence[Result]) -> list[Result]:
    """The best likelihood first; then those without one; then the failed."""
    return sorted(results, key=lambda r: (r.failed, math.isnan(r.nats), r.nats))


def best_by_likelihood(results: Sequence[Result]) -> Result | None:
    """The family with the largest mean log p of the test rows, bounds taken as they are."""
    return min((r for r in results if math.isfinite(r.nats)), key=lambda r: r.nats, default=None)


def behind(result: Result, best: Result) -> Answer | None:
    """How many nats a row behind the best, from the same test rows: mean of log p_best - log p, with its error."""
    if result.likelihood is None or best.likelihood is None or not math.isfinite(result.nats):
        return None
    return paired_difference(torch.as_tensor(best.likelihood.nats), torch.as_tensor(result.likelihood.nats))


def wins(results: Sequence[Result]) -> list[Win]:
    """One line a question that some family has an answer to."""
    measured = [r for r in results if not r.failed]
    found = [_likeliest(measured), *(_least(measured, q) for q in QUESTIONS)]
    return [win for win in found if win is not None]


def _likeliest(results: Sequence[Result]) -> Win | None:
    best = best_by_likelihood(results)
    if best is None or best.likelihood is None:
        return None
    level = [r.family for r in results if r is not best and _within_error(behind(r, best))]
    value = f"{at_most(best.kind)}{best.nats:.2f} ± {error_of(best.likelihood.score):.2f} nats a row ({best.kind})"
    return Win("likelihood of the test rows", best.family, value, tuple(level), _bounds_behind(results, best))


def _within_error(gap: Answer | None) -> bool:
    return gap is not None and float(gap) <= CLEAR * error_of(gap)


def _bounds_behind(results: Sequence[Result], best: Result) -> str:
    hidden = [r.family for r in results if r.kind is Kind.BOUND and r.nats > best.nats]
    if best.kind is Kind.BOUND or not hidden:
        return ""
    says = "reports a bound" if len(hidden) == 1 else "report bounds"
    return f"{listed(hidden)} {says}: the true likelihood may be better than shown, never worse"


def error_of(answer: Answer) -> float:
    """The standard error of one number, 0 where it has none."""
    return 0.0 if answer.error is None else float(answer.error)


@dataclass(frozen=True)
class Question:
    """A number of which less is better.

    Args:
        name: what is compared.
        number: value and standard error of a family, or None.
        words: of value and error.
    """

    name: str
    number: Callable[[Result], Estimate | None]
    words: Callable[[float, float], str]


def _least(results: Sequence[Result], question: Question) -> Win | None:
    found = {r.family: estimate for r in results if (estimate := question.number(r)) is not None}
    if not found:
        return None
    best = min(found, key=lambda name: found[name])
    value, error = found[best]
    level = [name for name, (v, e) in found.items() if name != best and v - value <= CLEAR * math.hypot(e, error)]
    return Win(question.name, best, question.words(value, error), tuple(level))


def _mmd(r: Result) -> Estimate | None:
    return None if r.sampling is None else (float(r.sampling.mmd), error_of(r.sampling.mmd.distance))


def _told_apart(r: Result) -> Estimate | None:
    return None if r.sampling is None else (abs(float(r.sampling.c2st) - 0.5), error_of(r.sampling.c2st.distance))


def _mistaken(r: Result) -> Estimate | None:
    accuracy = None if r.code is None else r.code.accuracy
    return None if accuracy is None else (1 - float(accuracy), error_of(accuracy))


QUESTIONS = (
    Question("samples like the data (MMD²)", _mmd, lambda v, e: f"{v:.4f} ± {e:.4f}"),
    Question(
        "samples hard to tell from the data (C2ST)", _told_apart, lambda v, e: f"accuracy {v:.2f} ± {e:.2f} from 0.5, where none can tell"
    ),
    Question("representation", _mistaken, lambda v, e: f"{1 - v:.1%} ± {e:.1%} of labels found from the nearest codes"),
    Question("time to learn", lambda r: None if r.learning is None else (r.learning.seconds, 0.0), lambda v, _: duration(v)),
    Question(
        "time to sample",
        lambda r: None if r.sampling is None else (r.sampling.seconds_per_1000, 0.0),
        lambda v, _: f"{duration(v)} for 1,000 rows",
    ),
)
