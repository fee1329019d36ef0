"""The deepest test as data: for each family, world and question, what its answer is and what it is held against, or why it is not.

`cell` decides by what the model says of itself (`Model.answers`, `density`, `missing`) alone, so that the table is
written without learning anything, and a new family has its row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from pofx.errors import OptionError
from pofx.models.base import FamilyConfig, Model
from pofx.models.composed import blank
from pofx.testing import held
from pofx.testing.subject import Subject
from pofx.testing.worlds import World, worlds
from pofx.types import Generator, Kind

Compare = Callable[[Subject, Generator], None]
Bounds = (Kind.EXACT, Kind.BOUND)


@dataclass(frozen=True)
class Held:
    """An answer that is tested.

    Args:
        kind: of the family's own answer; NONE where it has none, and the generic one alone is tested.
        against: what it is held against.
        compare: the comparison.
    """

    kind: Kind
    against: str
    compare: Compare


@dataclass(frozen=True)
class Open:
    """An answer that is not tested.

    Args:
        kind: of the family's own answer.
        why: in one sentence.
    """

    kind: Kind
    why: str


Cell = Held | Open

CELLS, COUNTS, WEIGHTS, CHAINS, DRAWS, AGAIN = "cells", "counts", "weights", "chains", "draws", "rows drawn anew"


def _truth(model: Model) -> str:
    """How the probability of a cell is known in a discrete world."""
    return CELLS if model.density is Kind.EXACT else COUNTS


NO_WEIGHT = "its log_prob is right in the mean and e^log_prob is not, so that neither sums nor weights of it are of p"


def log_prob(model: Model, world: World) -> Cell:
    """log p of whole rows."""
    kind = model.density
    if model.logs_average and not world.discrete:
        return Open(kind, NO_WEIGHT)
    if kind not in Bounds:
        return Open(kind, "its log_prob is neither exact nor a bound: nothing says on which side of the truth it lies")
    if not world.discrete:
        return Held(kind, WEIGHTS, held.mass_by_weights)
    return Held(kind, CELLS, held.surprise) if kind is Kind.EXACT else Held(kind, COUNTS, held.below_the_counts)


def missing_cells(model: Model, world: World) -> Cell:
    """log p of rows with missing cells."""
    kind = model.missing
    if model.logs_average:
        return Open(kind, NO_WEIGHT)
    if model.density not in Bounds:
        return Open(kind, "its log_prob is neither exact nor a bound: the sum of it over a cell is neither")
    if world.discrete:
        return Held(kind, _truth(model), held.holes_by_cells)
    if model.density is Kind.EXACT:
        return Held(kind, WEIGHTS, held.holes_by_weights)
    return Held(kind, DRAWS, held.holes_on_a_line)


def probability(model: Model, world: World) -> Cell:
    """P(interval) or P(level)."""
    kind = model.answers("marginal")
    if world.discrete:
        return Held(kind, _truth(model), held.probability_by_cells)
    if model.density is Kind.EXACT:
        return Held(kind, DRAWS, held.probability_in_closed_form if kind is Kind.EXACT else held.probability_by_weights)
    if kind is Kind.NONE:
        return Open(kind, "it has no marginal, and weights by its log_prob are no probability: the share of its draws is all there is")
    return Held(kind, DRAWS, held.probability_by_the_marginal)


def evidence(model: Model, world: World) -> Cell:
    """log P of an interval or a set, and a value."""
    kind = model.answers("marginal")
    if model.logs_average:
        return Open(kind, NO_WEIGHT)
    if model.density not in Bounds:
        return Open(kind, "weights by a log_prob that is neither exact nor a bound are no probability")
    if world.discrete:
        return Held(model.missing, _truth(model), held.evidence_by_cells)
    if model.density is not Kind.EXACT:
        return Held(kind, DRAWS, held.evidence_below_the_draws)
    if kind is Kind.EXACT:
        return Held(kind, WEIGHTS, held.evidence_in_closed_form)
    return Held(kind, WEIGHTS, held.evidence_twice)


def conditional(model: Model, world: World) -> Cell:
    """E[x | a value of some variables]."""
    kind = model.answers("conditional", world.point.seen)
    if world.discrete:
        return Held(kind, _truth(model), held.conditional_by_cells)
    if model.density is Kind.EXACT:
        known = kind is Kind.EXACT
        return Held(kind, WEIGHTS, held.conditional_in_closed_form) if known else Held(kind, CHAINS, held.conditional_twice)
    if kind is Kind.NONE:
        return Open(kind, "it has no conditional, and weights by its log_prob lead to another law; `complete` is held against its draws")
    return Held(kind, AGAIN, held.conditional_in_a_strip)


def complete(model: Model, world: World) -> Cell:
    """Draws of p(x_m | x_o)."""
    kind = model.answers("complete")
    if kind is Kind.NONE:
        return Open(kind, "it does not complete rows; the generic engine's draws are held under `conditional`")
    return Held(kind, AGAIN, held.total_law)


def impute(model: Model, world: World) -> Cell:
    """E[x_m | x_o] of numbers, the likeliest level."""
    kind = model.answers("impute")
    if kind is Kind.NONE:
        return Open(kind, "it does not impute rows; the generic engine's means are held under `conditional`")
    return Held(kind, f"draws, {_truth(model)}" if world.discrete else DRAWS, held.tower)


def expectation(model: Model, world: World) -> Cell:
    """E[x], E[x0 x2]."""
    kind = model.answers("mean")
    if world.discrete:
        return Held(kind, _truth(model), held.expectation_by_cells)
    if model.density is Kind.EXACT:
        return Held(kind, WEIGHTS, held.expectation_by_weights)
    return Open(kind, "a mean over its draws is all there is, and weights by its log_prob are those of another law")


def mode(model: Model, world: World) -> Cell:
    """A most probable x."""
    kind = model.answers("mode")
    if model.density is Kind.NONE:
        return Open(kind, "it has no density")
    if not world.discrete:
        return Held(kind, DRAWS, held.mode_above_the_draws)
    if model.density is Kind.EXACT:
        return Held(kind, CELLS, held.mode_by_cells)
    if model.density is Kind.BOUND:
        return Held(kind, COUNTS, held.mode_of_a_bound)
    return Open(kind, "its log_prob is neither exact nor a bound: the best cell by it says nothing of p")


def posterior(model: Model, world: World) -> Cell:
    """p(x | y) for a likelihood of the user's."""
    return Held(Kind.NONE, _truth(model), held.posterior_by_cells) if world.discrete else Held(Kind.NONE, DRAWS, held.posterior_by_draws)


def mutual_information(model: Model, world: World) -> Cell:
    """I(x0; x1, x2)."""
    if model.density is not Kind.EXACT:
        return Open(Kind.NONE, "a difference of numbers that are not exact bounds nothing: the question is refused")
    if not world.discrete:
        return Open(Kind.NONE, "there is no second way to it over real numbers: its terms are held under `missing cells`")
    return Held(Kind.NONE, CELLS, held.information_by_cells)


def entropy(model: Model, world: World) -> Cell:
    """-E[log p(x)]; whether it is closed may hang on the laws that are learned, so the family's own is held where it turns out to be."""
    if model.density is not Kind.EXACT:
        return Open(Kind.NONE, "the mean of a log_prob that is not exact is the entropy of nothing")
    return Held(Kind.NONE, CELLS, held.entropy_by_cells) if world.discrete else Held(Kind.NONE, WEIGHTS, held.entropy_by_weights)


QUESTIONS: dict[str, Callable[[Model, World], Cell]] = {
    "log_prob": log_prob,
    "missing cells": missing_cells,
    "probability": probability,
    "evidence": evidence,
    "conditional": conditional,
    "complete": complete,
    "impute": impute,
    "expectation": expectation,
    "mode": mode,
    "posterior": posterior,
    "mutual information": mutual_information,
    "entropy": entropy,
}


def cells(config: FamilyConfig) -> Iterator[tuple[World, str, Cell]]:
    """Each world the family can learn in, each question, and its cell, as the model says before it learns."""
    for world in worlds(type(config)):
        model = blank(config, world.domain)
        for question, cell in QUESTIONS.items():
            yield world, question, cell(model, world)


def check_question(question: str, subject: Subject) -> Cell:
    """Ask a learned family one question, and hold the answer against what its cell says.

    Returns:
        the cell; one that is `Open` has tested nothing.

    Raises:
        AssertionError: two answers differ by more than 4.9 of their standard errors.
        OptionError: there is no such question.
    """
    if question not in QUESTIONS:
        raise OptionError(f"there is no question {question!r}: they are {', '.join(QUESTIONS)}")
    cell = QUESTIONS[question](subject.model, subject.world)
    if isinstance(cell, Held):
        cell.compare(subject, torch.Generator().manual_seed(11))
    return cell


def check_questions(config: FamilyConfig) -> list[Cell]:
    """Learn the family in each of its worlds and ask it everything; silent when all answers agree.

    Takes seconds to a minute, for `check_model` passes first. Failure rate: 10^-6 for each of the few hundred numbers.

    Args:
        config: the family's options.

    Raises:
        AssertionError: at the first answer that does not; one sentence says which.
    """
    subjects = (Subject(world.learned(config), world) for world in worlds(type(config)))
    return [check_question(question, subject) for subject in subjects for question in QUESTIONS]
