"""Which family wins on what: numbers of one meaning, and only differences beyond their error."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch

from pofx.comparison.result import Answering, Result
from pofx.comparison.words import NOTHING, at_most, duration, listed
from pofx.measure import PerCell, paired_difference
from pofx.types import Answer, Kind

CLEAR = 2.0  # standard errors that make a difference
Estimate = tuple[float, float]  # value and standard error
Part = Callable[[Result], PerCell | None]  # of the answers about hidden cells: the least mean is the best


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


def best_by_answers(results: Sequence[Result]) -> Result | None:
    """The family that gives hidden cells the largest probability."""
    return _first(results, _nats)


def by_answers(results: Sequence[Result]) -> list[Result]:
    """Those that were asked about hidden cells: the least behind the best first, those without a score last."""
    best = best_by_answers(results)
    asked = [r for r in results if r.answering.questions]
    gaps = {r.family: None if best is None else behind_in_answers(r, best) for r in asked}
    return sorted(asked, key=lambda r: (math.isnan(r.answering.nats), math.inf if (gap := gaps[r.family]) is None else float(gap)))


def behind_in_answers(result: Result, best: Result) -> Answer | None:
    """How many nats a hidden cell behind the best, from the rows that both were asked, with its error."""
    return _gap(result, best, _nats)


def wins(results: Sequence[Result]) -> list[Win]:
    """One line a question that some family has an answer to."""
    measured = [r for r in results if not r.failed]
    answers = (_best_answerer(measured, question) for question in ASKED)
    found = [_likeliest(measured), *answers, *(_least(measured, q) for q in QUESTIONS)]
    return [win for win in found if win is not None]


def _likeliest(results: Sequence[Result]) -> Win | None:
    best = best_by_likelihood(results)
    if best is None or best.likelihood is None:
        return None
    level = [r.family for r in results if r is not best and _within_error(behind(r, best))]
    value = f"{at_most(best.kind)}{best.nats:.2f} ± {error_of(best.likelihood.score):.2f} nats a row ({best.kind})"
    return Win("likelihood of the test rows", best.family, value, tuple(level), _bounds_behind(results, best))


def _best_answerer(results: Sequence[Result], question: "Asked") -> Win | None:
    best = _first(results, question.part)
    if best is None:
        return None
    level = [r.family for r in results if r is not best and _within_error(_gap(r, best, question.part))]
    return Win(question.name, best.family, question.words(best.answering), tuple(level))


def _first(results: Sequence[Result], part: Part) -> Result | None:
    """The least mean over hidden cells, two families compared on the rows that both were asked."""
    found = [r for r in results if (own := part(r)) is not None and math.isfinite(float(own))]
    return reduce(lambda best, r: r if _ahead(r, best, part) else best, found) if found else None


def _ahead(result: Result, other: Result, part: Part) -> bool:
    gap = _gap(result, other, part)
    return gap is not None and float(gap) < 0


def _gap(result: Result, best: Result, part: Part) -> Answer | None:
    own, its = part(result), part(best)
    return None if own is None or its is None or not math.isfinite(float(own)) else own - its


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


@dataclass(frozen=True)
class Asked:
    """A question about hidden cells.

    Args:
        name: what is compared.
        part: a family's answers.
        words: of the best.
    """

    name: str
    part: Part
    words: Callable[[Answering], str]


def _nats(r: Result) -> PerCell | None:
    return None if r.answering.scored is None else r.answering.scored.nats


def _numbers(r: Result) -> PerCell | None:
    return None if r.answering.filled is None else r.answering.filled.numbers


def _levels(r: Result) -> PerCell | None:
    return None if r.answering.filled is None else r.answering.filled.levels


def shown(answer: Answer | None, digits: int = 3, unit: float = 1.0) -> str:
    """Value ± error in a unit, infinite where something is impossible."""
    if answer is None:
        return NOTHING
    return f"{unit * float(answer):.{digits}f} ± {unit * error_of(answer):.{digits}f}" if math.isfinite(float(answer)) else "∞"


ASKED = (
    Asked("likelihood of hidden cells, given the others", _nats, lambda a: f"{at_most(a.kind)}{shown(a.score)} nats a cell ({a.kind})"),
    Asked("filling in hidden numbers", _numbers, lambda a: f"{shown(a.numbers)} standard deviations off"),
    Asked("filling in hidden levels", _levels, lambda a: f"{shown(a.levels, 1, 100)} % wrong"),
)
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
