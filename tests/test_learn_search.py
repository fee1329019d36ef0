"""The search against exhaustive enumeration, and its promises: defaults first, nothing twice, failures are rows."""

import itertools
import sys
import time
from typing import ClassVar

import pytest

from pofx.domain import Domain
from pofx.errors import OptionError, TrainingError
from pofx.learn import search
from pofx.models.base import FamilyConfig


class Config(FamilyConfig):
    space: ClassVar = {"depth": (1, 2, 3, 4), "widths": ((64,), (64, 64), (128,)), "tied": (False, True), "rate": (None, 0.1, 0.2)}

    depth: int = 2
    widths: tuple[int, ...] = (64,)
    tied: bool = False
    rate: float | None = None
    other: int = 0

    def _build(self, domain: Domain, context=None):
        raise NotImplementedError


DEFAULTS = {"depth": 2, "widths": (64,), "tied": False, "rate": None}


def smooth(options):
    """A score with its maximum, 0, at depth 4, widths (64, 64), tied, rate 0.2."""
    width = {(64,): 1, (64, 64): 0, (128,): 2}[options["widths"]]
    return -abs(options["depth"] - 4) - width - (not options["tied"]) - 5 * abs((options["rate"] or 0) - 0.2)


def key(options):
    return tuple(sorted((k, str(v)) for k, v in options.items()))


def test_the_first_trial_is_the_defaults_and_nothing_is_tried_twice():
    found = search(Config, smooth, trials=40)
    assert found.attempts[0].options == DEFAULTS
    assert len({key(a.options) for a in found.attempts}) == len(found.attempts) == 40
    assert found.stopped == "all 40 trials are made"


def test_the_whole_space_is_enumerated_when_trials_allow():
    found = search(Config, smooth, trials=1000)
    every = [dict(zip(Config.space, values, strict=True)) for values in itertools.product(*Config.space.values())]
    assert {key(a.options) for a in found.attempts} == {key(options) for options in every}
    assert (found.options, found.score) == ({"depth": 4, "widths": (64, 64), "tied": True, "rate": 0.2}, 0.0)
    assert found.stopped == "every combination has been tried"


def test_the_best_is_the_best_of_the_table():
    found = search(Config, smooth, trials=12, seed=3)
    best = max(found.attempts, key=lambda attempt: attempt.score)
    assert (found.options, found.score) == (best.options, best.score)
    assert found.score >= smooth(DEFAULTS)


def test_the_same_seed_makes_the_same_trials():
    tables = [[a.options for a in search(Config, smooth, trials=15, seed=seed).attempts] for seed in (1, 1, 2)]
    assert tables[0] == tables[1] != tables[2]


def test_fixed_options_stay_in_every_trial():
    found = search(Config, smooth, trials=30, fixed={"depth": 3, "other": 7})
    assert all((a.options["depth"], a.options["other"]) == (3, 7) for a in found.attempts)
    assert len(found.attempts) == 18  # what is left of the space


def test_defaults_beside_the_space_are_tried_too():
    class Beside(Config):
        depth: int = 9

    found = search(Beside, lambda options: options["depth"], trials=500)
    assert found.attempts[0].options == DEFAULTS | {"depth": 9}
    assert len(found.attempts) == 1 + 72
    assert found.options["depth"] == 9


def test_a_family_without_a_space_is_tried_once():
    class Nothing(Config):
        space: ClassVar = {}

    found = search(Nothing, lambda options: 1.5)
    assert (found.options, found.score, len(found.attempts)) == ({}, 1.5, 1)


def test_a_trial_that_fails_is_a_row_with_its_reason():
    def score(options):
        if options["tied"]:
            raise TrainingError("the loss of step 3 is nan")
        return -float("inf") if options["depth"] == 1 else smooth(options)

    found = search(Config, score, trials=1000)
    reasons = [a.reason for a in found.attempts if a.score is None]
    assert set(reasons) == {"the loss of step 3 is nan", "its score is -inf"}
    assert len(reasons) == 36 + 9
    assert not found.options["tied"]


def test_when_every_trial_fails_the_first_reason_is_given():
    def score(options):
        raise TrainingError("too hot")

    with pytest.raises(TrainingError, match="none of 3 trials could be learned; the first: too hot"):
        search(Config, score, trials=3)


def test_no_trial_begins_after_the_timeout():
    found = search(Config, lambda options: time.sleep(0.05) or 0.0, trials=1000, timeout=0.2)
    assert found.stopped == "0.2 s are over"
    assert 1 <= len(found.attempts) <= 4


def test_mistakes_are_told_in_a_sentence(monkeypatch):
    with pytest.raises(OptionError, match=r"Config has no option 'dept'.*depth"):
        search(Config, smooth, fixed={"dept": 3})
    with pytest.raises(OptionError, match="a search makes 1 trial or more, got 0"):
        search(Config, smooth, trials=0)
    with pytest.raises(OptionError, match="there is no family 'gnm'"):
        search("gnm", smooth)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(OptionError, match=r"search needs Optuna: pip install 'pofx\[tune\]'"):
        search(Config, smooth)


def test_a_search_says_nothing_by_itself(capsys):
    search(Config, smooth, trials=2)
    assert capsys.readouterr() == ("", "")
