"""The gradient loop and full-batch driver against closed forms, a loop written out by hand, and failures on purpose."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from pofx.domain import Domain
from pofx.errors import DataError, OptionError, TrainingError
from pofx.learn import Record, choose_device, isolated, run
from pofx.learn.distributed import Ranks
from pofx.learn.loop import descend
from pofx.learn.rows import Rows
from pofx.learn.streams import Stream, seed_of
from pofx.learn.watch import Watch
from pofx.models.base import FamilyConfig, FullBatch, GradientConfig, Model


class Normal(Model):
    """p(x) = prod_d N(x_d | mu_d, exp(log_sigma_d)^2)."""

    def __init__(self, domain, context=None):
        super().__init__(domain, context)
        self.mu = nn.Parameter(torch.zeros(len(domain)))
        self.log_sigma = nn.Parameter(torch.zeros(len(domain)))

    def _log_prob(self, x, c, generator):
        u = (x - self.mu - (0 if c is None else c)) / self.log_sigma.exp()
        return (-0.5 * u.square() - self.log_sigma - 0.5 * math.log(2 * math.pi)).sum(-1)

    def _sample(self, n, c, generator):
        return self.mu + self.log_sigma.exp() * torch.randn(n, len(self.domain), generator=generator)


class Noisy(Normal):
    """A loss that draws from its generator and, through dropout, from torch's own."""

    def __init__(self, domain):
        super().__init__(domain)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.3), nn.Linear(8, 2))

    def loss(self, x, c=None, *, generator=None):
        noise = 0.1 * torch.randn(x.shape, generator=generator)
        return -self._log_prob(x + noise + self.net(x), c, generator)


class Breaks(Normal):
    """Its loss is NaN from the step `at` on."""

    def __init__(self, domain, at):
        super().__init__(domain)
        self.at, self.seen = at, 0

    def loss(self, x, c=None, *, generator=None):
        if self.training:
            self.seen += 1
        return super().loss(x, c) * (math.nan if self.training and self.seen >= self.at else 1.0)


class Config(GradientConfig):
    clip_norm: float | None = None

    def _build(self, domain, context=None):
        return Normal(domain, context)


@pytest.fixture
def x():
    return torch.tensor([1.0, -2.0]) + torch.tensor([0.5, 2.0]) * torch.randn(100, 2)


def normal():
    return Normal(Domain.real(2))


def noisy():
    with isolated(3):
        return Noisy(Domain.real(2))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_maximum_likelihood_is_the_closed_form(x):
    model = normal()
    for rate in (0.1, 0.01, 1e-3, 1e-5):  # full batches: each stage ends nearer than the last
        run(model, x, config=Config(batch_size=100, max_epochs=150, learning_rate=rate))
    torch.testing.assert_close(model.mu.detach(), x.mean(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(model.log_sigma.detach().exp(), x.std(0, correction=0), rtol=0, atol=1e-5)


def by_hand(model, x, config, seed=0):
    """The loop in its plainest form: the same draws, steps, clipping and average."""
    shuffle = torch.Generator().manual_seed(seed_of(seed, Stream.SHUFFLE))
    noise = torch.Generator().manual_seed(seed_of(seed, Stream.NOISE))
    adam = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    average = [p.detach().clone() for p in model.parameters()]
    steps = config.max_epochs * math.ceil(len(x) / config.batch_size)
    t = 0
    torch.manual_seed(seed_of(seed, Stream.TORCH))
    for _ in range(config.max_epochs):
        for index in torch.randperm(len(x), generator=shuffle).split(config.batch_size):
            rise = (t + 1) / (config.warmup * steps) if config.warmup else 1.0
            adam.param_groups[0]["lr"] = config.learning_rate * min(1.0, rise)
            adam.zero_grad()
            model.loss(x[index], generator=noise).mean().backward()
            if config.clip_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            adam.step()
            d = min(config.ema or 0, (1 + t) / (10 + t))
            average = [d * a + (1 - d) * p.detach() for a, p in zip(average, model.parameters(), strict=True)]
            t += 1
    return torch.cat([a.flatten() for a in average])


@pytest.mark.parametrize(
    "options",
    [{}, {"clip_norm": 0.5}, {"ema": 0.9}, {"warmup": 0.5}, {"weight_decay": 0.3}, {"clip_norm": 1.0, "ema": 0.99, "warmup": 0.1}],
    ids=str,
)
def test_the_loop_is_the_one_written_out_by_hand(x, options):
    config = Config(batch_size=32, max_epochs=4, learning_rate=0.03, **options)
    model, other = noisy(), noisy()
    run(model, x, config=config)
    torch.testing.assert_close(weights(model), by_hand(other, x, config), rtol=1e-12, atol=1e-12)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(x):
    config = Config(batch_size=16, max_epochs=3, ema=0.9)
    first, second, other = noisy(), noisy(), noisy()
    run(first, x, config=config, holdout=x[:20], seed=5)
    torch.rand(7)  # the caller's own draws make no difference
    run(second, x, config=config, holdout=x[:20], seed=5)
    run(other, x, config=config, holdout=x[:20], seed=6)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


def test_torchs_own_generator_is_left_as_it_was(x):
    before = torch.get_rng_state()
    run(noisy(), x, config=Config(max_epochs=2))
    with pytest.raises(TrainingError):
        run(Breaks(Domain.real(2), at=2), x, config=Config(max_epochs=3))
    assert torch.equal(torch.get_rng_state(), before)


def test_held_out_numbers_of_the_same_weights_are_equal(x):
    record = run(noisy(), x, config=Config(max_epochs=3, learning_rate=1e-300), holdout=x[:30])
    losses = [row["holdout"] for row in record.history]
    assert losses[0] == losses[1] == losses[2]


def test_early_stopping_keeps_the_best_weights(x):
    model, seen = normal(), {}
    holdout = x + torch.tensor([2.0, 0.0])  # the best on the way: learning goes past it

    record = run(
        model,
        x,
        config=Config(learning_rate=0.05, patience=4, max_epochs=500, batch_size=100),
        holdout=holdout,
        tracker=lambda row: seen.update({row["step"]: weights(model).clone()}),
    )
    losses = {row["step"]: row["holdout"] for row in record.history}
    best = min(losses, key=losses.get)
    assert record.kept == best
    assert max(losses) - best == 4
    assert torch.equal(weights(model), seen[best])
    assert model.loss(holdout).mean().item() == pytest.approx(losses[best], rel=1e-12)
    assert record.stopped == "no better held-out loss for 4 epochs"
    assert f"the weights of step {best} (epoch {best} of {best + 4}) are kept, held-out loss" in record.summary()


def test_without_held_out_rows_the_last_weights_are_kept(x):
    record = run(normal(), x, config=Config(max_epochs=3, patience=1))
    assert record.kept == record.history[-1]["step"] == 3
    assert record.stopped == "all 3 epochs are done"


def test_the_budget_is_kept_and_within_a_pass_too(x):
    class Slow(Normal):
        def loss(self, x, c=None, *, generator=None):
            time.sleep(0.01)
            return super().loss(x, c)

    start = time.monotonic()
    record = run(Slow(Domain.real(2)), x, config=Config(batch_size=1, max_epochs=100), holdout=x[:5], budget=0.5)
    assert record.stopped == "its budget of 0.5 s is spent"
    assert 0.4 < time.monotonic() - start < 5  # how much a loaded machine may add is not ours to say
    assert 0 < record.kept == record.history[-1]["step"]  # the weights at the stop were judged, and were the best


def test_training_losses_are_means_over_the_rows(x):
    record = run(normal(), x, config=Config(batch_size=33, max_epochs=1, learning_rate=1e-300))
    assert record.history[0]["train"] == pytest.approx(normal().loss(x).mean().item(), rel=1e-12)


@pytest.mark.parametrize("at", [1, 3, 8, 13])
def test_a_loss_that_breaks_names_the_step_and_leaves_good_weights(x, at):
    model, seen = Breaks(Domain.real(2), at), {0: torch.zeros(4)}  # 4 steps an epoch
    with pytest.raises(TrainingError, match=rf"the loss of step {at} \(epoch {(at + 3) // 4}\) is nan") as caught:
        run(
            model,
            x,
            config=Config(batch_size=25, learning_rate=0.01),
            holdout=x,
            tracker=lambda row: seen.update({row["step"]: weights(model).clone()}),
        )
    kept = 4 * ((at - 1) // 4)
    assert torch.equal(weights(model), seen[kept])
    assert (f"those of step {kept} again" if kept else "the initial ones again") in str(caught.value)


def test_a_gradient_that_breaks_at_the_last_step_is_found(x):
    class Root(Normal):
        def loss(self, x, c=None, *, generator=None):
            return super().loss(x, c) + (self.mu * 0).sum().sqrt()  # 0, with an infinite slope times 0

    model = Root(Domain.real(2))
    with pytest.raises(TrainingError, match="the weights after step 1 are not finite, though its loss is"):
        run(model, x, config=Config(batch_size=100, max_epochs=1))
    assert torch.equal(weights(model), torch.zeros(4))


def test_an_average_survives_a_held_out_loss_that_breaks(x):
    class Fragile(Normal):
        def loss(self, x, c=None, *, generator=None):
            return super().loss(x, c) * (1.0 if self.training else math.nan)

    model = Fragile(Domain.real(2))
    with pytest.raises(TrainingError, match="the held-out loss after step 1 is nan: the model's weights are the initial ones again"):
        run(model, x, config=Config(ema=0.5), holdout=x)
    assert torch.equal(weights(model), torch.zeros(4))


def test_an_infinite_held_out_loss_is_only_worse(x):
    class Impossible(Normal):
        def loss(self, x, c=None, *, generator=None):
            return super().loss(x, c) + (0.0 if self.training else math.inf)

    record = run(Impossible(Domain.real(2)), x, config=Config(patience=2), holdout=x)
    assert (record.kept, len(record.history)) == (1, 3)


def test_conditions_go_with_their_rows():
    c = torch.randn(200, 2)
    x = c + 3 + 0.1 * torch.randn(200, 2)
    model = Normal(Domain.real(2), Domain.real(2))
    run(model, x, c, config=Config(batch_size=50, max_epochs=150, learning_rate=0.05), holdout=x[:50], holdout_c=c[:50])
    torch.testing.assert_close(model.mu.detach(), torch.full((2,), 3.0), rtol=0, atol=0.05)
    assert (model.log_sigma < math.log(0.2)).all()


def test_bfloat16_learns_the_same_to_its_precision(x):
    exact, rough = noisy().float(), noisy().float()
    run(exact, x.float(), config=Config(max_epochs=1))
    run(rough, x.float(), config=Config(max_epochs=1), precision="bf16")
    assert weights(rough).dtype is torch.float32
    assert not torch.equal(weights(exact), weights(rough))
    torch.testing.assert_close(weights(exact), weights(rough), rtol=0, atol=3e-3)  # one step of Adam at 1e-3


def test_news_reach_the_tracker_and_the_lines(x, capsys, monkeypatch):
    monkeypatch.setattr("pofx.learn.progress.EVERY", 0.0)
    rows = []
    record = run(normal(), x, config=Config(max_epochs=3), holdout=x, progress=True, tracker=rows.append)
    assert rows == record.history
    assert "step 1/3  epoch 2  loss" in capsys.readouterr().err
    run(normal(), x, config=Config(max_epochs=3), progress=None)
    assert capsys.readouterr().err == ""


def test_a_record_survives_json(x):
    record = run(normal(), x, config=Config(max_epochs=2), holdout=x)
    assert Record.from_json(record.to_json()) == record
    assert record.versions.keys() == {"python", "pofx", "torch"}
    assert record.options["max_epochs"] == 2
    with pytest.raises(ValueError, match="does not describe how a model was learned"):
        Record.from_json({"family": "x"})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.zeros(0, 2)}, "one or more rows"),
        ({"x": torch.zeros(3)}, "one or more rows"),
        ({"holdout": torch.zeros(0, 2)}, "held-out rows are one or more of 2 variables"),
        ({"holdout": torch.zeros(5, 3)}, "held-out rows are one or more of 2 variables"),
        ({"c": torch.zeros(7, 1)}, "every training row needs its condition: got 10 rows and 7 conditions"),
        ({"holdout_c": torch.zeros(7, 1)}, "every held-out row needs its condition: got none rows and 7 conditions"),
        ({"c": torch.zeros(10, 1), "holdout": torch.zeros(5, 2)}, "have conditions both, or neither"),
        ({"budget": 0.0}, "a budget is a positive number of seconds, got 0.0"),
        ({"seed": -1}, "a seed is an integer from 0 up, got -1"),
        ({"device": "gpu"}, "there is no device 'gpu' here"),
        ({"precision": "half"}, "precision is 'full' or 'bf16', got 'half'"),
        ({"config": FamilyConfig}, "takes a GradientConfig, got Plain"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_mistakes_are_told_in_a_sentence(change, sentence):
    class Plain(FamilyConfig):
        def _build(self, domain, context=None):
            return normal()

    if "config" in change:
        change = {"config": Plain()}
    arguments = {"x": torch.randn(10, 2), "config": Config(max_epochs=1)} | change
    with pytest.raises((DataError, OptionError), match=sentence):
        run(normal(), **arguments)


def test_a_model_without_parameters_is_refused(x):
    model = normal().requires_grad_(False)
    with pytest.raises(TrainingError, match="has no parameters that gradients could move"):
        run(model, x, config=Config())


def test_the_device_is_this_machines():
    assert choose_device("cpu").type == "cpu"
    assert choose_device().type == choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_bar_is_shown_on_a_terminal(x, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    run(normal(), x, config=Config(max_epochs=30), holdout=x, progress=None)
    assert re.search(r"/30.*epoch \d+  loss [\d.]+  best held-out [\d.]+", capsys.readouterr().err)
    run(normal(), x, config=Config(max_epochs=2), progress=False)
    assert capsys.readouterr().err == ""


class Chase:
    """Two players: a descends (a - x)^2, then b descends (b - a)^2 and sees where a went."""

    def __init__(self):
        self.players = {name: nn.ParameterList([nn.Parameter(torch.zeros(1))]) for name in "ab"}

    def __call__(self, x, c, generator):
        a, b = self.players["a"][0], self.players["b"][0]
        yield "a", (a - x).square().sum(-1)
        yield "b", (b - a).square().expand(len(x))


def test_each_player_takes_its_own_turn():
    x = torch.full((1, 1), 3.0)
    chase, hand = Chase(), Chase()
    rate, (a, b) = 0.1, (hand.players[name][0] for name in "ab")
    adam_a, adam_b = (torch.optim.AdamW([p], lr=rate, weight_decay=0.0) for p in (a, b))
    for _ in range(5):
        a.grad = 2 * (a.detach() - 3.0)
        adam_a.step()
        b.grad = 2 * (b.detach() - a.detach())
        adam_b.step()
    watch = Watch(Ranks(), lambda: False, lambda done, says: None)
    outcome = descend(chase, Rows(x), None, Config(max_epochs=5, learning_rate=rate), 0, watch, nullcontext)
    torch.testing.assert_close(chase.players["a"][0], a)
    torch.testing.assert_close(chase.players["b"][0], b)
    assert outcome.history[0]["train"] == 9.0  # the first turn's loss


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_a_compiled_loss_learns_the_same():
    """In a process of its own: what checks the shapes under pytest can not be compiled."""
    subprocess.run([sys.executable, __file__], check=True)


# -- all rows at once ------------------------------------------------------------------------------


class Halving(Normal, FullBatch):
    """mu goes half of the way to the mean at every step, `total` times."""

    def __init__(self, total, after=lambda: None):
        super().__init__(Domain.real(2))
        self.total, self.after = total, after
        self.whole = True

    def steps(self, x, *, holdout=None, generator=None):
        for _ in range(self.total):
            self.whole = False
            self.after()
            self.mu.data += 0.5 * (x.mean(0) - self.mu.data)
            self.whole = True
            yield self.log_prob(x).mean().item()


class HalvingConfig(FamilyConfig):
    def _build(self, domain, context=None):
        return Halving(10)


def test_full_batch_steps_are_the_familys_own(x):
    model = Halving(10)
    record = run(model, x, config=HalvingConfig())
    torch.testing.assert_close(model.mu.detach(), x.mean(0) * (1 - 0.5**10))
    assert [row["step"] for row in record.history] == list(range(1, 11))
    assert record.history[-1]["train"] == pytest.approx(-model.log_prob(x).mean().item())
    assert record.stopped == "its own criterion is met after 10 steps"
    assert run(Halving(1), x, config=HalvingConfig()).stopped == "its closed form is reached"


def test_full_batch_steps_keep_the_budget(x):
    record = run(Halving(1000, after=lambda: time.sleep(0.02)), x, config=HalvingConfig(), budget=0.2)
    assert record.stopped == "its budget of 0.2 s is spent"
    assert 0 < len(record.history) < 20


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_waits_for_the_step_to_be_whole(x):
    handler = signal.getsignal(signal.SIGINT)
    model = Halving(10, after=interrupt)
    record = run(model, x, config=HalvingConfig())
    assert model.whole
    assert (record.stopped, record.kept) == ("interrupted", 1)
    torch.testing.assert_close(model.mu.detach(), x.mean(0) / 2)
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_interrupt_of_the_gradient_loop_keeps_the_best_so_far(x):
    model = normal()
    record = run(model, x, config=Config(batch_size=10), holdout=x, tracker=lambda row: row["epoch"] == 3 and interrupt())
    assert record.stopped == "interrupted"
    assert record.kept >= 30
    assert torch.equal(weights(model), weights(model).nan_to_num())


def test_a_second_interrupt_stops_at_once(x):
    def twice():
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        run(Halving(10, after=twice), x, config=HalvingConfig())


def test_a_full_batch_that_breaks_names_its_step(x):
    model = Halving(10)
    model.after = lambda: setattr(model.log_sigma, "data", torch.full((2,), math.nan))
    with pytest.raises(TrainingError, match="after step 1 is nan"):
        run(model, x, config=HalvingConfig())


def compare_compiled():
    torch.set_default_dtype(torch.float64)
    x = torch.randn(100, 2)
    plain, compiled = normal(), normal()
    run(plain, x, config=Config(max_epochs=3), holdout=x)
    run(compiled, x, config=Config(max_epochs=3), holdout=x, compile=True)
    torch.testing.assert_close(weights(plain), weights(compiled))


if __name__ == "__main__":
    compare_compiled()
