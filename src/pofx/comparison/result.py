"""What a comparison finds out about one family: a row of the table, and what the pictures need."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pofx.measure import Calibration, Memorising, PerCell, TwoSamples
from pofx.models.base import Diagnosis
from pofx.types import Answer, Kind

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Learning:
    """How the family was learned.

    Args:
        seconds: wall time of `fit`, preparation included.
        peak_memory_mb: the largest resident memory of the process meanwhile, None where the system does not tell.
        parameters: how many numbers the learned model holds; of a kernel density they are the rows themselves.
        stopped: why learning stopped, a clause.
        history: losses in nats a row (the family's own objective), one dict a look.
        kept: the step whose weights were kept.
        surrogate: whether training rows were learned by something else than minus the true bound, which held-out rows were judged by.
    """

    seconds: float
    peak_memory_mb: float | None
    parameters: int
    stopped: str
    history: list[dict[str, Any]]
    kept: int
    surrogate: bool = False


@dataclass(frozen=True)
class Likelihood:
    """How probable the test rows are.

    Args:
        nats: log p of each test row.
        score: their mean, labelled.
        bits_per_dim: -log2 p a variable.
        seconds_per_1000: to score 1000 rows.
    """

    nats: Floats
    score: Answer
    bits_per_dim: float
    seconds_per_1000: float


@dataclass(frozen=True)
class Sampling:
    """How the samples compare with the test rows.

    Args:
        x: samples, encoded.
        seconds_per_1000: to draw 1000 rows.
        mmd: unbiased MMD^2 to the test rows.
        c2st: accuracy of a classifier that tells samples from test rows.
        memorising: nearness to training rows.
        marginals: distance of each variable's marginal.
    """

    x: Floats
    seconds_per_1000: float
    mmd: TwoSamples
    c2st: TwoSamples
    memorising: Memorising
    marginals: Answer


@dataclass(frozen=True)
class Code:
    """What the representation keeps.

    Args:
        width: numbers in a code.
        accuracy: of the nearest neighbours' label in the code; None without labels.
        plane: the test rows' codes on their two principal axes, (M, 2); None for a code of one number.
        shares: the share of the variance on each of the two.
    """

    width: int
    accuracy: Answer | None
    plane: Floats | None
    shares: tuple[float, float] | None


@dataclass(frozen=True)
class Scored:
    """How probable the hidden cells of rows are, given the others.

    Args:
        rows: how many were asked: the first of the task's, fewer than all where time was short.
        nats: -log p a hidden cell, labelled; None of too few rows.
        seconds_per_1000: to score 1000 rows, with and without the cells.
    """

    rows: int
    nats: PerCell | None
    seconds_per_1000: float


@dataclass(frozen=True)
class Filled:
    """How far from the truth hidden cells are filled in.

    Args:
        rows: how many were asked.
        numbers: squared errors in standard deviations; None of too few rows, or where no number was hidden.
        levels: which were filled in wrongly; likewise.
        seconds_per_1000: to fill 1000 rows.
    """

    rows: int
    numbers: PerCell | None
    levels: PerCell | None
    seconds_per_1000: float


@dataclass(frozen=True)
class Completed:
    """How draws of the hidden cells lie about the truth.

    Args:
        rows: how many were asked.
        calibration: of the draws; None of too few rows, or where no number was hidden.
        seconds_per_1000: for one draw of 1000 rows.
    """

    rows: int
    calibration: Calibration | None
    seconds_per_1000: float


@dataclass(frozen=True)
class Answering:
    """What a family says of hidden cells. A question that it refuses is None."""

    scored: Scored | None = None
    filled: Filled | None = None
    completed: Completed | None = None

    @property
    def score(self) -> Answer | None:
        """-log p of the hidden cells given the others, in nats a cell."""
        return None if self.scored is None or self.scored.nats is None else self.scored.nats.answer

    @property
    def kind(self) -> Kind:
        """What the score is."""
        return Kind.NONE if self.score is None else self.score.kind

    @property
    def nats(self) -> float:
        """The score; NaN where there is none."""
        return math.nan if self.score is None else float(self.score)

    @property
    def numbers(self) -> Answer | None:
        """How far off the hidden numbers are filled in, in standard deviations."""
        return None if self.filled is None or self.filled.numbers is None else self.filled.numbers.root

    @property
    def levels(self) -> Answer | None:
        """Which share of the hidden levels is filled in wrongly."""
        return None if self.filled is None or self.filled.levels is None else self.filled.levels.answer

    @property
    def calibration(self) -> Calibration | None:
        """Of the draws of hidden numbers."""
        return None if self.completed is None else self.completed.calibration

    @property
    def questions(self) -> dict[str, Scored | Filled | Completed]:
        """Those that it answers, each with how many rows it was asked and what they cost."""
        parts = {"scored": self.scored, "filled": self.filled, "drawn": self.completed}
        return {name: part for name, part in parts.items() if part is not None}


@dataclass(frozen=True)
class Result:
    """One family on the task. A part that the family can not give is None.

    Args:
        family: its name in the registry.
        says: the family in one sentence.
        takes: what it models as it is: "everything", "discrete" or "reals".
        config: its options.
        failed: whether there is nothing to measure.
        reason: one sentence: why it failed, or what a number lacks.
        trace: where an unexpected failure was raised.
        learning: how it was learned.
        likelihood: of the test rows.
        sampling: its samples.
        code: its representation.
        latents: what its latents carry for the test rows.
        answering: what it says of hidden cells of the test rows.
        surface: log p over a grid, for two real variables (see `compare.surface`).
    """

    family: str
    says: str = ""
    takes: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    failed: bool = False
    reason: str = ""
    trace: str = ""
    learning: Learning | None = None
    likelihood: Likelihood | None = None
    sampling: Sampling | None = None
    code: Code | None = None
    latents: Diagnosis | None = None
    answering: Answering = Answering()
    surface: Floats | None = None

    @property
    def kind(self) -> Kind:
        """What the likelihood is."""
        return Kind.NONE if self.likelihood is None else self.likelihood.score.kind

    @property
    def nats(self) -> float:
        """The mean of -log p over the test rows; NaN where there is none."""
        return math.nan if self.likelihood is None else -float(self.likelihood.score)

    def to_json(self) -> dict[str, Any]:
        """A row of results.json: flat, numbers or null."""
        head = {"family": self.family, "status": "failed" if self.failed else "ok", "reason": self.reason or None, "kind": str(self.kind)}
        parts = (
            _likelihood(self.likelihood)
            | _learning(self.learning)
            | _sampling(self.sampling)
            | _code(self.code)
            | _latents(self.latents)
            | _answering(self.answering)
        )
        tail = {"takes": self.takes or None, "config": self.config, "traceback": self.trace or None}
        return head | {name: _plain(value) for name, value in parts.items()} | tail


def _likelihood(part: Likelihood | None) -> dict[str, Any]:
    if part is None:
        return dict.fromkeys(("test_nats", "test_nats_se", "bits_per_dim", "score_seconds_per_1000"))
    return {
        "test_nats": -float(part.score),
        "test_nats_se": part.score.error,
        "bits_per_dim": part.bits_per_dim,
        "score_seconds_per_1000": part.seconds_per_1000,
    }


def _learning(part: Learning | None) -> dict[str, Any]:
    if part is None:
        return dict.fromkeys(("fit_seconds", "parameters", "peak_memory_mb", "stopped"))
    return {
        "fit_seconds": part.seconds,
        "parameters": part.parameters,
        "peak_memory_mb": part.peak_memory_mb,
        "stopped": part.stopped,
    }


def _sampling(part: Sampling | None) -> dict[str, Any]:
    names = ("sample_seconds_per_1000", "mmd2", "mmd2_se", "mmd2_p", "c2st", "c2st_se", "c2st_p")
    more = ("nearest_training_ratio", "nearest_training_ratio_se", "copies", "copies_of_test_rows", "marginal_distance")
    if part is None:
        return dict.fromkeys(names + more)
    near = part.memorising
    tests = (part.mmd, part.mmd.distance.error, part.mmd.p_value, part.c2st, part.c2st.distance.error, part.c2st.p_value)
    values = (near.ratio, near.ratio.error, near.copies, near.copies_held_out, float(np.nanmean(part.marginals.value)))
    return dict(zip(names + more, (part.seconds_per_1000, *tests, *values), strict=True))


def _code(part: Code | None) -> dict[str, Any]:
    accuracy = None if part is None else part.accuracy
    return {
        "code_width": None if part is None else part.width,
        "code_accuracy": accuracy,
        "code_accuracy_se": None if accuracy is None else accuracy.error,
    }


def _latents(part: Diagnosis | None) -> dict[str, Any]:
    """Of all levels together."""
    found = {} if part is None else part.numbers()
    return {f"latent_{name}": sum(found[name]) if name in found else None for name in ("units", "active", "kl")}


def _answering(part: Answering) -> dict[str, Any]:
    sure = part.calibration
    answers = {
        "hidden_nats": part.score,
        "hidden_numbers_error": part.numbers,
        "hidden_levels_wrong": part.levels,
        "hidden_coverage_90": None if sure is None else sure.coverage(),
        "hidden_width_90": None if sure is None else sure.sharpness,
    }
    errors = {f"{name}_se": None if answer is None else answer.error for name, answer in answers.items()}
    asked = {question: part.questions.get(question) for question in ("scored", "filled", "drawn")}
    rows = {f"hidden_rows_{question}": None if found is None else found.rows for question, found in asked.items()}
    costs = {f"hidden_{question}_seconds_per_1000": None if found is None else found.seconds_per_1000 for question, found in asked.items()}
    return {"hidden_kind": str(part.kind)} | answers | errors | rows | costs


def _plain(value: Any) -> Any:  # noqa: ANN401
    """A JSON number, text or null; JSON has no infinities."""
    if value is None or isinstance(value, str | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
