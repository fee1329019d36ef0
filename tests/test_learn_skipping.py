"""Steps that are skipped for their gradients: a spike is, a lasting change is followed, and nothing can stop learning for good."""

import math

import pytest
import torch
from torch import nn

from pofx.domain import Domain
from pofx.errors import TrainingError
from pofx.learn import run
from pofx.learn.record import Record
from pofx.learn.skipping import LONGEST, WINDOW, Norms
from pofx.models.base import GradientConfig, Model

STEPS = 200


def admitted(norms, values, above=5.0):
    return [norms.admit(value, above) for value in values]


def usual():
    norms = Norms()
    admitted(norms, [1.0 + 0.1 * math.sin(i) for i in range(WINDOW)])
    assert norms.skipped == 0
    return norms


def test_a_spike_is_skipped_and_forgotten():
    norms = usual()
    assert admitted(norms, [100.0, 1.0, 1.0]) == [False, True, True]
    assert (norms.skipped, norms.in_a_row) == (1, 0)


def test_what_is_at_most_so_many_times_the_median_is_taken():
    assert admitted(Norms([1.0, 2.0, 9.0]), [10.0], above=5.0) == [True]
    assert admitted(Norms([1.0, 2.0, 9.0]), [10.1], above=5.0) == [False]


def test_a_lasting_jump_is_followed_for_good():
    norms = usual()
    steps = admitted(norms, [1000.0] * STEPS)
    assert steps == [False] * LONGEST + [True] * (STEPS - LONGEST)
    assert admitted(norms, [1e5]) == [False]  # and what is far from the new scale is skipped again


@pytest.mark.parametrize("growth", [1.5, 10.0])
def test_norms_that_never_stop_growing_are_not_skipped_for_good(growth):
    steps = admitted(usual(), [growth**i for i in range(STEPS)])
    runs = "".join("+" if step else "-" for step in steps).split("+")
    assert max(map(len, runs)) <= LONGEST


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_no_number_is_skipped_but_not_for_ever(broken):
    assert admitted(usual(), [broken, 1.0]) == [False, True]
    assert admitted(usual(), [broken] * (LONGEST + 1)) == [False] * LONGEST + [True]


class Jumpy(Model):
    """Its loss is |w - x|^2 times a factor that depends on the step."""

    def __init__(self, factor):
        super().__init__(Domain.real(1))
        self.w, self.factor, self.step = nn.Parameter(torch.zeros(1)), factor, 0

    def loss(self, x, c=None, *, generator=None):
        self.step += self.training
        return self.factor(self.step) * (x - self.w).square().sum(-1)

    def _log_prob(self, x, c, generator):
        return -(x - self.w).square().sum(-1)

    def _sample(self, n, c, generator):
        return torch.zeros(n, 1)


class Config(GradientConfig):
    batch_size: int = 10
    max_epochs: int = STEPS
    learning_rate: float = 0.05
    skip_above: float | None = 5.0
    clip_norm: float | None = None

    def _build(self, domain, context=None):
        raise NotImplementedError


def learned(factor, config=None):
    model = Jumpy(factor)
    x = torch.tensor([[3.0], [5.0]]).repeat(5, 1)  # |w - x|^2 never comes to rest below its noise
    return model, run(model, x, config=config or Config())


def spiky(step):
    return 1e4 if step == 60 else 1.0


def test_a_spike_in_a_run_moves_nothing_and_is_counted():
    model, record = learned(spiky)
    assert [row["skipped"] for row in record.history] == [int(row["step"] >= 60) for row in record.history]
    assert "1 step was skipped for gradients far above the usual" in record.summary()
    assert Record.from_json(record.to_json()).history == record.history
    torch.testing.assert_close(model.w.detach(), torch.tensor([4.0]), rtol=0, atol=0.05)


def test_a_lasting_jump_in_a_run_stops_it_for_a_while_only():
    model, record = learned(lambda step: 1e4 if step > 20 else 1.0)
    assert record.history[-1]["skipped"] <= LONGEST
    assert record.history[30]["skipped"] > 0
    torch.testing.assert_close(model.w.detach(), torch.tensor([4.0]), rtol=0, atol=0.2)


def test_gradients_that_stay_infinite_end_the_run_with_a_sentence():
    model = Jumpy(lambda step: 1.0)
    model.w.register_hook(lambda slope: slope * (math.inf if model.step > 50 else 1.0))
    with pytest.raises(TrainingError, match="step"):
        run(model, torch.ones(10, 1), config=Config())
    assert 50 + LONGEST <= model.step < STEPS


def test_without_the_option_nothing_is_counted():
    _, record = learned(spiky, Config(skip_above=None))
    assert "skipped" not in record.history[-1]
    assert "skipped" not in record.summary()
