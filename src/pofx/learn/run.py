"""run: from an untrained model and rows to a learned model and the record of how."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pofx.data.checks import check_weights
from pofx.errors import DataError, OptionError, Unavailable
from pofx.learn.checkpoint import Checkpoint, fingerprint
from pofx.learn.distributed import choose_device, joined
from pofx.learn.full_batch import learn_full_batch
from pofx.learn.interrupt import deferred_interrupt
from pofx.learn.loop import Autocast, descend
from pofx.learn.progress import shown
from pofx.learn.race import SHARE, race
from pofx.learn.record import Outcome, Record
from pofx.learn.rows import Rows
from pofx.learn.stages import in_stages
from pofx.learn.streams import Stream, Streams, isolated, seed_of
from pofx.learn.watch import Tracker, Watch
from pofx.models.base import FamilyConfig, FullBatch, GradientConfig, Model, Scheduled, Staged, evaluated
from pofx.models.registry import families, name_of
from pofx.objectives import Likelihood
from pofx.types import Generator, Kind, Nats

Loss = Callable[..., Nats]
PRECISIONS = ("full", "bf16")
DIAGNOSED = 1000  # rows


def run(
    model: Model,
    x: Tensor,
    c: Tensor | None = None,
    *,
    config: FamilyConfig,
    holdout: Tensor | None = None,
    holdout_c: Tensor | None = None,
    weights: Tensor | None = None,
    holdout_weights: Tensor | None = None,
    seed: int = 0,
    budget: float | None = None,
    device: str | torch.device | None = None,
    checkpoint: str | PathLike[str] | None = None,
    checkpoint_every: float = 30.0,
    progress: bool | None = False,
    tracker: Tracker | None = None,
    precision: str = "full",
    compile: bool = False,
) -> Record:
    """Learn the model's parameters from rows x (N, D), in place, and leave it on the device.

    A family that learns from all rows at once takes its own steps; every other one descends its loss
    by the gradient loop. The same seed gives the same weights, bit for bit on a CPU with the same number of
    threads, whatever state torch's global generators are in; they are left as they were.

    Args:
        model: what learns; under torchrun, equal on every process.
        x: training rows.
        c: their conditions.
        config: the family's options.
        holdout: rows that decide when to stop and which weights to keep.
        holdout_c: their conditions.
        weights: how often each training row counts, (N,), in any unit: the loss is sum w loss / sum w. Only the gradient loop takes them.
        holdout_weights: those of the held-out rows.
        seed: of shuffling, of the loss's draws and of dropout.
        budget: seconds, after which the best weights so far are kept.
        device: where to learn; None or "auto" takes a CUDA device when there is one.
        checkpoint: a file the gradient loop writes to, and goes on from when it exists (every process must see it);
            learning from all rows at once is not saved.
        checkpoint_every: seconds between two checkpoints.
        progress: None shows a bar on a terminal, True also plain lines where there is none, False nothing.
        tracker: called with every new row of the history.
        precision: "bf16" computes the loss under autocast; weights and held-out losses stay in full precision.
        compile: whether `torch.compile` makes the loss.

    Raises:
        DataError: there are no rows, the shapes do not fit, or a weight is negative or no number.
        Unavailable: there are weights, but the family learns from all rows at once.
        OptionError: an option is out of range, or the checkpoint is another run's.
        FileError: the checkpoint is damaged or can not be written.
        TrainingError: a loss or weight is no longer finite; the sentence says at which step, and which weights the model has.
    """
    _check_rows(x, c, holdout, holdout_c)
    _check_options(config, budget, precision, compile)
    check_weighable(config, weights)
    if isinstance(model, Staged):
        one = partial(run, x=x, c=c, holdout=holdout, holdout_c=holdout_c, seed=seed, device=device, checkpoint_every=checkpoint_every)
        every = partial(one, progress=progress, tracker=tracker, precision=precision, compile=compile)
        model.to(choose_device(device))
        return in_stages(model, config, every, budget, checkpoint)
    for w, rows in ((weights, x), (holdout_weights, holdout)):
        check_weights(w, 0 if rows is None else len(rows))
    where = choose_device(device)
    model.to(where)
    train = Rows.on(where, x, c, weights)
    held = None if holdout is None else Rows.on(where, holdout, holdout_c, holdout_weights)
    with joined(where) as ranks, deferred_interrupt() as interrupted, isolated(seed_of(seed, Stream.TORCH), where):
        saver = None
        if checkpoint is not None and not isinstance(model, FullBatch):
            saver = Checkpoint(Path(checkpoint), _identity(config, seed, precision, ranks.size, train, held), checkpoint_every)
        with shown(progress if ranks.first else False, _steps(config, len(x))) as bar:
            watch = Watch(ranks, interrupted, bar, budget=budget, checkpoint=saver, tracker=tracker)
            learner = _Learner(train, held, seed, compile, partial(_lowered, precision, where))
            config, outcome = learner.learn(watch, model, config)
    return _record(config, outcome, watch.seconds, seed, where, _diagnosis(model, held or train, seed))


def _record(config: FamilyConfig, outcome: Outcome, seconds: float, seed: int, where: torch.device, diagnosis: dict[str, Any]) -> Record:
    """What is kept of a run."""
    surrogate = isinstance(config, GradientConfig) and config.surrogate
    options = config.model_dump(mode="json")
    return Record(name_of(config), options, *outcome, seconds, seed, str(where), surrogate=surrogate, diagnosis=diagnosis)


def _diagnosis(model: Model, rows: Rows, seed: int) -> dict[str, Any]:
    """What a model with latents finds on the first rows, as a record keeps it; empty of a model without."""
    if model.answers("diagnose") is Kind.NONE:
        return {}
    generator, c = torch.Generator(rows.x.device).manual_seed(seed), rows.c
    with evaluated(model):
        found = model.diagnose(rows.x[:DIAGNOSED], None if c is None else c[:DIAGNOSED], generator=generator)
    return {"says": found.sentence(), "warnings": list(found.warnings), **found.numbers()}


@dataclass(frozen=True)
class _Learner:
    """What the runs of a race and the one that counts have in common."""

    train: Rows
    held: Rows | None
    seed: int
    compiled: bool
    autocast: Autocast

    def learn(self, watch: Watch, model: Model, config: FamilyConfig) -> tuple[FamilyConfig, Outcome]:
        """From all rows at once, or by gradients in the best of the family's ways; the options that were learned with."""
        if isinstance(model, FullBatch):
            rows = None if self.held is None else self.held.x
            return config, learn_full_batch(model, self.train.x, rows, Streams(self.seed, 0, self.train.x.device).noise, watch)
        ways = _gradient(config.for_rows(len(self.train))).rivals()
        run_aside = partial(self.aside, watch.part(SHARE))
        return race(model, ways if self.held else ways[:1], partial(self.descend, watch), run_aside)

    def descend(self, watch: Watch, model: Model, config: GradientConfig) -> Outcome:
        seen = self.train.alike(Streams(self.seed, 0, self.train.x.device).noise)
        model.initialise(seen.x, seen.c)
        objective = Likelihood(model, _told(model, torch.compile(model.loss) if self.compiled else model.loss, watch))
        return descend(objective, self.train, self.held, config, self.seed, watch, self.autocast)

    def aside(self, watch: Callable[[], Watch], model: Model, config: GradientConfig) -> Outcome:
        """A run that takes nothing from the randomness of the one after it."""
        with isolated(seed_of(self.seed, Stream.TORCH), self.train.x.device):
            return self.descend(watch(), model, config)


def _told(model: Model, loss: Loss, watch: Watch) -> Loss:
    """The loss, before which every part that depends on it hears where the run is."""
    parts = [part for part in model.modules() if isinstance(part, Scheduled)]

    def told(x: Tensor, c: Tensor | None, *, generator: Generator) -> Nats:
        for part in parts:
            part.passed(watch.done, watch.rows)
        return loss(x, c, generator=generator)

    return told if parts else loss


def _check_rows(x: Tensor, c: Tensor | None, holdout: Tensor | None, holdout_c: Tensor | None) -> None:
    if x.ndim != 2 or len(x) == 0:
        raise DataError(f"learning takes one or more rows (N, D), got shape {tuple(x.shape)}")
    if holdout is not None and (holdout.ndim != 2 or len(holdout) == 0 or holdout.shape[1] != x.shape[1]):
        raise DataError(f"held-out rows are one or more of {x.shape[1]} variables, got shape {tuple(holdout.shape)}")
    for rows, conditions, which in ((x, c, "training"), (holdout, holdout_c, "held-out")):
        if conditions is not None and (rows is None or len(conditions) != len(rows)):
            got = "none" if rows is None else str(len(rows))
            raise DataError(f"every {which} row needs its condition: got {got} rows and {len(conditions)} conditions")
    if holdout is not None and (c is None) != (holdout_c is None):
        raise DataError("training and held-out rows have conditions both, or neither")


def check_weighable(config: FamilyConfig, weights: Tensor | None) -> None:
    """Whether the family learns from rows that count unequally.

    Raises:
        Unavailable: it does not; those that do are named.
    """
    if weights is not None and not isinstance(config, GradientConfig):
        able = [name for name, one in families().items() if issubclass(one.config, GradientConfig)]
        why = "it learns from all rows at once, each counted once"
        raise Unavailable("learning from weighted rows", name_of(config), why, families=able, instead="resample the rows by weight")


def _check_options(config: FamilyConfig, budget: float | None, precision: str, compiled: bool) -> None:
    if budget is not None and not budget > 0:
        raise OptionError(f"a budget is a positive number of seconds, got {budget}")
    if precision not in PRECISIONS:
        raise OptionError(f"precision is 'full' or 'bf16', got {precision!r}")
    if compiled and isinstance(config, GradientConfig) and not config.compiles:
        raise OptionError(f"{name_of(config)} with these options learns by a gradient that torch.compile gets wrong: leave compile out")


def _gradient(config: FamilyConfig) -> GradientConfig:
    if not isinstance(config, GradientConfig):
        raise OptionError(f"a family that learns by gradients takes a GradientConfig, got {type(config).__name__}")
    return config


def _steps(config: FamilyConfig, rows: int) -> int | None:
    return config.max_epochs * -(-rows // config.batch_size) if isinstance(config, GradientConfig) else None


def _lowered(precision: str, device: torch.device) -> AbstractContextManager[None]:
    if precision == "full":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _identity(config: FamilyConfig, seed: int, precision: str, ranks: int, train: Rows, held: Rows | None) -> dict[str, Any]:
    """What two stretches of one run have in common. How long to go on is no part of it, unless the steps follow from it."""
    scheduled = isinstance(config, GradientConfig) and config.scheduled
    length = {"patience"} if scheduled else {"patience", "max_epochs"}
    tensors = [t for rows in (train, held) for t in ((None, None) if rows is None else (rows.x, rows.c))]
    tensors += [rows.w for rows in (train, held) if rows is not None and rows.w is not None]
    return {
        "family": name_of(config),
        "options": config.model_dump(mode="json", exclude=length),
        "seed": seed,
        "precision": precision,
        "processes": ranks,
        "data": fingerprint(*tensors),
    }
