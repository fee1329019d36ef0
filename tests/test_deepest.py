"""The deepest test: for every family and question, the exact answer lies inside the error bar of the generic estimate.

`pofx.testing.matrix` says of each family, world and question what the answer is and what it is held against, or why it is
not; docs/questions.md shows it. Here every family of the registry learns for a moment in its worlds and is asked.

Comparisons are at 4.9 standard errors: each number fails in 10^-6 of runs, were errors normal and known. NUMBERS of them
are compared, so that a run of other seeds fails in at most NUMBERS 10^-6; the seeds are fixed.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch

from pofx.errors import OptionError
from pofx.models.base import FamilyConfig, Model
from pofx.models.composed import blank
from pofx.models.registry import families, family
from pofx.testing import check_questions, held, table
from pofx.testing.matrix import QUESTIONS, Held, check_question
from pofx.testing.matrix import cells as cells_of
from pofx.testing.subject import Subject
from pofx.testing.worlds import REALS, worlds

# The question is put to few layers and draws as it is to many: what costs is how often a family is asked.
QUICK = {"layers": 2, "width": 16, "units": 8, "draws": 8, "waves": 0, "tolerance": 1e-2}
ROWS = [(name, world.name) for name in families() for world in worlds(family(name).config)]
NUMBERS = 100 * len(ROWS)
compared: dict[tuple[str, str, str], int] = {}


def quick(name: str) -> FamilyConfig:
    known = family(name).config.model_fields
    return family(name).configure({option: value for option, value in QUICK.items() if option in known})


@cache
def subject(name: str, where: str) -> Subject:
    world = next(w for w in worlds(family(name).config) if w.name == where)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Subject(world.learned(quick(name)), world)


@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(("name", "where"), ROWS)
def test_the_generic_answer_is_the_exact_one(name, where, question):
    asked = subject(name, where)
    before = asked.compared
    cell = check_question(question, asked)
    declared = {(w.name, q): c for w, q, c in cells_of(quick(name))}
    assert cell == declared[where, question], "a learned family answers otherwise than the table says"
    compared[name, where, question] = asked.compared - before
    assert (compared[name, where, question] > 0) is isinstance(cell, Held)
    assert sum(compared.values()) <= NUMBERS


# -- every comparison can fail ---------------------------------------------------------------------


class Changed(Model):
    """A model with some of its answers replaced.

    Args:
        base: the model.
        by: method to what is made of its answer and its arguments.
    """

    def __init__(self, base: Model, **by) -> None:
        super().__init__(base.domain)
        self.base, self.density, self.sampling, self.missing = base, base.density, base.sampling, base.missing
        for name, change in by.items():
            method = getattr(base, name)
            setattr(self, name, lambda *args, change=change, method=method, **options: change(method(*args, **options), *args))
        for name in {"marginal", "conditional", "complete", "impute", "mode", "mean", "sample", "log_prob_and_error"} - by.keys():
            setattr(self, name, getattr(base, name))

    def answers(self, question, seen=()):
        return self.base.answers(question, seen)

    def _log_prob(self, x, c, generator):
        raise AssertionError

    _sample = _log_prob


def deaf(model: Model) -> dict:
    """Answers that do not look at the evidence."""
    draws = torch.Generator().manual_seed(7)

    def instead(x: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        return torch.where(x.isnan(), of, x)

    return {
        "complete": lambda _, x: instead(x, model.sample(len(x), generator=draws).to(x)),
        "impute": lambda _, x: instead(x, model.sample(4000, generator=draws).to(x).mean(0).round()),
        "conditional": lambda _, evidence: model.marginal(evidence.isnan().nonzero()[:, 0].tolist()),
    }


def louder(by: float, whole: bool = True) -> dict:
    """log p too large, of all rows or of those with holes."""
    return {"log_prob_and_error": lambda pair, x, *_: (pair[0] + by * (1.0 if whole else x.isnan().any(1)), pair[1])}


def shuffled(model: Model) -> dict:
    """Draws of each variable alone."""
    return {"sample": lambda x, n: torch.stack([column[torch.randperm(n)] for column in x.unbind(1)], 1)}


def level_shifted(model: Model) -> dict:
    return {"mean": lambda mean: mean + 0.3, "mode": lambda x, *_: x + 1.0}


FAULTS = [
    ("gaussian", "reals", "missing cells", lambda m: louder(0.2, whole=False)),
    ("gaussian", "reals", "log_prob", lambda m: louder(0.2)),
    ("gaussian", "reals", "conditional", deaf),
    ("gaussian", "reals", "complete", deaf),
    ("gaussian", "reals", "impute", deaf),
    ("gaussian", "reals", "expectation", shuffled),
    ("gaussian", "reals", "expectation", level_shifted),
    ("gaussian", "reals", "mode", level_shifted),
    ("latent_class", "levels", "log_prob", lambda m: louder(0.05)),
    ("latent_class", "levels", "log_prob", shuffled),
    ("latent_class", "levels", "conditional", deaf),
    ("latent_class", "levels", "impute", deaf),
    ("vae", "reals", "complete", deaf),
    ("vae", "reals", "impute", deaf),
    ("gaussian", "levels", "log_prob", lambda m: louder(1.0)),
    ("gaussian", "levels", "missing cells", lambda m: louder(1.0, whole=False)),
    ("gaussian", "levels", "evidence", lambda m: louder(1.0, whole=False)),
    ("gaussian", "levels", "mode", lambda m: louder(1.5)),
    ("vae", "levels", "complete", deaf),
    ("vae", "levels", "impute", deaf),
    ("gmm", "levels", "conditional", deaf),
    ("gmm", "levels", "complete", deaf),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "where", "question", "fault"), FAULTS, ids=lambda v: v if isinstance(v, str) else "")
def test_the_deepest_test_can_fail(name, where, question, fault):
    """A conditional that does not look at the evidence, a density or a bound that is too large, draws of another law."""
    honest = subject(name, where)
    broken = Subject(Changed(honest.model, **fault(honest.model)), honest.world)
    with pytest.raises(AssertionError, match="standard errors"):
        check_question(question, broken)


@pytest.mark.slow
def test_a_mode_that_is_not_the_best_is_found(monkeypatch):
    """The second best cell of a bound, a nat below."""
    honest = subject("gaussian", "levels")
    right = held.mode(honest.model, generator=torch.Generator().manual_seed(11))
    monkeypatch.setattr(held, "mode", lambda model, generator: replace(right, log_p=right.log_p - 1.0))
    with pytest.raises(AssertionError, match="the best cell's bound over the mode's"):
        check_question("mode", honest)


@pytest.mark.slow
def test_the_mode_of_a_vae_is_its_likeliest_cell():
    """The cell that most of 60 000 draws fall in, or one that as many do."""
    asked = subject("vae", "levels")
    found = held.mode(asked.model, generator=torch.Generator().manual_seed(11))
    share, error = asked.cells.total((asked.cells.x == found.x).all(1).double())
    best = asked.cells.p.max()
    assert float(best) > 0.02
    asked.below("the largest share over the mode's", (best, (best / asked.cells.draws).sqrt()), (share, error))


# -- the table -------------------------------------------------------------------------------------


def test_a_family_of_ones_own_has_its_row():
    written = table({"mine": family("vae").configure({"latents": 2})})
    assert written.count("\n| mine |") == 2
    assert "estimate: rows drawn anew" in written
    assert "A difference of numbers that are not exact bounds nothing" in written


def test_every_question_that_is_not_asked_has_a_reason():
    for name in families():
        for world, question, cell in cells_of(family(name).configure({})):
            assert isinstance(cell, Held) or len(cell.why) > 20, (name, world.name, question)


def test_unknown_questions_are_refused():
    model = blank(family("gaussian").configure({}), REALS.domain)
    with pytest.raises(OptionError, match="there is no question 'colour': they are log_prob, missing cells"):
        check_question("colour", Subject(model, REALS))


@pytest.mark.slow
def test_a_family_is_asked_everything_at_once():
    cells = check_questions(family("independent").configure({}))
    assert len(cells) == 2 * len(QUESTIONS)
