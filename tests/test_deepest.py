"""The deepest test: for every family and question, the exact answer lies inside the error bar of the generic estimate.

`pofx.testing.matrix` says of each family, world and question what the answer is and what it is held against, or why it is
not; docs/questions.md shows it. Here every family of the registry learns for a moment in its worlds and is asked.

Comparisons are at 4.9 standard errors: each number fails in 10^-6 of runs, were errors normal and known. NUMBERS of them
are compared, so that a run of other seeds fails in at most NUMBERS 10^-6; the seeds are fixed.
"""

from functools import cache

import pytest
import torch

from pofx.models.registry import families, family
from pofx.testing.matrix import QUESTIONS, Held, check_question
from pofx.testing.matrix import cells as cells_of
from pofx.testing.subject import Subject
from pofx.testing.worlds import worlds

NUMBERS = 5000
ROWS = [(name, world.name) for name in families() for world in worlds(family(name).config)]
compared: dict[tuple[str, str, str], int] = {}


@cache
def subject(name: str, where: str) -> Subject:
    world = next(w for w in worlds(family(name).config) if w.name == where)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Subject(world.learned(family(name).configure({})), world)


@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(("name", "where"), ROWS)
def test_the_generic_answer_is_the_exact_one(name, where, question):
    asked = subject(name, where)
    before = asked.compared
    cell = check_question(question, asked)
    declared = {(w.name, q): c for w, q, c in cells_of(family(name).configure({}))}
    assert cell == declared[where, question], "a learned family answers otherwise than the table says"
    compared[name, where, question] = asked.compared - before
    assert (compared[name, where, question] > 0) is isinstance(cell, Held)
    assert sum(compared.values()) <= NUMBERS
