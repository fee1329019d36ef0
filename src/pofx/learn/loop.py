"""The one gradient loop. It knows no family: an objective names players and their losses, the loop steps them.

    for each pass over the rows, shuffled:
        for each batch:
            for each turn (player, loss):  θ_player ← Adam(∇ mean loss), clipped, or skipped; θ̄_player ← average
        held-out loss → keep the weights if it is the least so far; stop after `patience` passes without

Losses stay on the device until the run looks up (`Watch`, a few times a second), so no step waits for the device.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from pofx.errors import TrainingError
from pofx.learn.record import Outcome, Row
from pofx.learn.rows import Rows
from pofx.learn.state import State
from pofx.learn.streams import Stream, Streams, isolated, seed_of
from pofx.learn.watch import Watch
from pofx.models.base import GradientConfig
from pofx.objectives import Objective

Autocast = Callable[[], AbstractContextManager[None]]
HOLDOUT_BATCHES = 4  # held-out rows are judged this many training batches at a time


def descend(
    objective: Objective, train: Rows, holdout: Rows | None, config: GradientConfig, seed: int, watch: Watch, autocast: Autocast
) -> Outcome:
    """Descend from the start, or from the watch's checkpoint when there is one; the players end with the weights kept.

    Args:
        objective: the players and their turns.
        train: rows to learn from.
        holdout: rows to judge by; without them there is no early stopping and the last weights are kept.
        config: learning rate, batch size, clipping, patience, ...
        seed: of shuffling, of the objective's draws, and of dropout.
        watch: time, checkpoints, news, and the processes that learn together.
        autocast: a context for the forward computation, entered at every turn.

    Raises:
        TrainingError: a loss or weight is no longer a finite number; the players have the weights kept, too.
    """
    device, rank = train.x.device, watch.ranks.rank
    with isolated(seed_of(seed, Stream.TORCH, rank), device):
        state = State(objective.players, config, len(train), Streams(seed, rank, device), watch.ranks)
        saved = watch.checkpoint.load() if watch.checkpoint else None
        if saved is not None:
            state.restore(*saved)
        stopped = _Descent(objective, train, holdout, config, state, watch, autocast).run()
    return Outcome(state.position.history, stopped, state.position.kept_step)


@dataclass
class _Descent:
    objective: Objective
    train: Rows
    holdout: Rows | None
    config: GradientConfig
    state: State
    watch: Watch
    autocast: Autocast

    def __post_init__(self) -> None:
        self.at, self.ranks = self.state.position, self.watch.ranks
        self.averaging = {name: self.ranks.averaging(parameters) for name, parameters in self.state.parameters.items()}
        self.steps = self.config.max_epochs * -(-len(self.train) // self.config.batch_size)
        self.losses: list[tuple[Tensor, int]] = []  # of the steps since the last look, with their numbers of rows
        self.recent = math.nan  # their mean at the last look that found some

    def run(self) -> str:
        """Descend until there is a reason to stop: the reason, a clause."""
        self.watch.starts_after(self.at.seconds)
        self._train_mode(True)
        while (why := self._finished() or self._pass()) is None:
            pass
        self._save()
        if self.at.rows:  # stopped within a pass; after saving, so that a longer budget goes on from here unmoved
            self._judge()
        self.state.give_back()
        self._train_mode(False)
        return why

    def _finished(self) -> str | None:
        if self.at.epoch >= self.config.max_epochs:
            return f"all {self.config.max_epochs} epochs are done"
        since = max(self.at.kept_epoch, self.config.settles * self.config.max_epochs)
        if self.holdout is not None and self.at.epoch - since >= self.config.patience:
            return f"no better held-out loss for {self.config.patience} epochs"
        return None

    def _pass(self) -> str | None:
        """The rest of a pass over the rows; the reason if the run is to stop within it."""
        shuffle = self.state.streams.shuffle
        shuffle.set_state(self.state.pass_start)
        order = torch.randperm(len(self.train), generator=shuffle).to(self.train.x.device)
        for batch in order.split(self.config.batch_size)[self.at.batch :]:
            if self.watch.due() and (why := self._look()):
                return why
            self._step(batch)
        self._collect_losses()
        self.at.epoch, self.at.batch = self.at.epoch + 1, 0
        self.state.pass_start = shuffle.get_state()
        self._judge()
        self.at.rows, self.at.loss = 0, 0.0
        return None

    def _step(self, batch: Tensor) -> None:
        self.watch.done = max(self.at.step / self.steps, self.watch.share)
        if self.config.scheduled:
            self.state.set_learning_rate(self._learning_rate())
        own = self.watch.rows = self.ranks.part(batch)
        for turn, (player, loss) in enumerate(self._turns(*self.train.at(own))):
            value = self.train.weighed(loss, own).sum() * (self.ranks.size / len(batch))
            self.state.optimisers[player].zero_grad()
            self.averaging[player](value).backward()
            if self.config.skip_above is None or self.state.admits(player, self.config.skip_above):
                self._move(player)
            if turn == 0:
                self.losses.append((value.detach(), len(batch)))
        self.at.step += 1
        self.at.batch += 1

    def _move(self, player: str) -> None:
        if self.config.clip_norm is not None:
            self.state.clip(player, self.config.clip_norm)
        self.state.optimisers[player].step()
        self.state.average(player)

    def _learning_rate(self) -> float:
        """Up over the warm-up, down geometrically over the whole run: its steps, or its budget of time if that ends first."""
        rise = min(1.0, (self.at.step + 1) / (self.config.warmup * self.steps)) if self.config.warmup else 1.0
        return self.config.learning_rate * rise * self.config.final_rate**self.watch.done

    def _turns(self, x: Tensor, c: Tensor | None) -> Iterator[tuple[str, Tensor]]:
        turns = self.objective(x, c, self.state.streams.noise)
        while True:
            with self.autocast():  # around the loss alone: its backward takes the types its forward took
                turn = next(turns, None)
            if turn is None:
                return
            yield turn

    # -- looking up --------------------------------------------------------------------------------

    def _look(self) -> str | None:
        self._collect_losses()
        self.watch.progress(self.at.step, self._news())
        stop, save = self.watch.look()
        if save and stop is None:
            self._save()
        return stop

    def _news(self) -> str:
        loss = f"  {'surrogate' if self.config.surrogate else 'loss'} {self.recent:.4g}" if math.isfinite(self.recent) else ""
        judge = "held-out bound" if self.config.surrogate else "held-out"
        held = f"  best {judge} {self.at.kept_loss:.4g}" if math.isfinite(self.at.kept_loss) else ""
        skipped = f"  skipped {self._skipped} steps" if self._skipped else ""
        return f"epoch {self.at.epoch + 1}{loss}{held}{skipped}"

    @property
    def _skipped(self) -> int:
        return sum(norms.skipped for norms in self.state.norms.values())

    def _collect_losses(self) -> None:
        """Bring the steps' losses in from the device; the one place where a run waits for it."""
        values = torch.stack([loss for loss, _ in self.losses]).tolist() if self.losses else []
        first = self.at.step - len(values) + 1
        wrong = next((first + i for i, value in enumerate(values) if not math.isfinite(value)), math.inf)
        agreed = self.ranks.least([float(wrong)])[0]
        if agreed < math.inf:
            what = values[int(wrong) - first] if wrong == agreed else "not finite on another rank"
            raise self._failure(f"the loss of step {agreed:.0f} (epoch {self.at.epoch + 1}) is {what}")
        for value, (_, rows) in zip(values, self.losses, strict=True):  # one by one: when looks come must not show in the sum
            self.at.loss += value * rows
            self.at.rows += rows
        self.recent = fmean(values) if values else self.recent
        self.losses.clear()

    def _judge(self) -> None:
        """Hold the weights against the held-out rows, and keep them if they are the best so far."""
        self._check_weights()
        with self.state.averaged():
            holdout = self._holdout_loss()
            self.at.history.append(self._row(holdout))
            if holdout is None or holdout < self.at.kept_loss or (holdout == math.inf and self.at.kept_step == 0):
                self.state.keep(holdout)
        if holdout is not None and math.isnan(holdout):
            raise self._failure(f"the held-out loss after step {self.at.step} is nan")
        self.watch.tell(self.at.history[-1])

    def _row(self, holdout: float | None) -> Row:
        train = self.ranks.mean(self.at.loss) / self.at.rows
        row = Row(step=self.at.step, epoch=self.at.epoch + (self.at.batch > 0), train=train, holdout=holdout, seconds=self.watch.seconds)
        return row if self.config.skip_above is None else {**row, "skipped": self._skipped}

    def _holdout_loss(self) -> float | None:
        """The mean loss of the held-out rows, with the same draws every time and in full precision."""
        if self.holdout is None:
            return None
        self._train_mode(False)
        generator, total = self.state.streams.for_holdout(), 0.0
        with torch.no_grad():
            for index in torch.arange(len(self.holdout), device=self.holdout.x.device).split(HOLDOUT_BATCHES * self.config.batch_size):
                _, loss = next(self.objective(*self.holdout.at(index), generator))
                total += self.holdout.weighed(loss, index).sum(dtype=torch.float64).item()
        self._train_mode(True)
        return self.ranks.least([total / len(self.holdout)])[0]

    def _train_mode(self, on: bool) -> None:
        for player in self.state.players.values():
            player.train(on)

    # -- saving and failing ------------------------------------------------------------------------

    def _save(self) -> None:
        if self.watch.checkpoint is None:
            return
        self._check_weights()
        self.at.seconds = self.watch.seconds
        tensors = self.state.tensors()  # every rank's generators: all of them take part
        if self.ranks.first:
            self.watch.checkpoint.save(tensors, self.state.facts())
        self.watch.saved()

    def _check_weights(self) -> None:
        if not self.state.finite():
            raise self._failure(f"the weights after step {self.at.step} are not finite, though its loss is")

    def _failure(self, what: str) -> TrainingError:
        self.state.give_back()
        self._train_mode(False)
        weights = f"those of step {self.at.kept_step}" if self.at.kept_step else "the initial ones"
        file = self.watch.checkpoint.path if self.watch.checkpoint else None
        saved = f", the last good state of the run is in {file}" if file and file.exists() else ""
        return TrainingError(f"{what}: the model's weights are {weights} again{saved}; a smaller learning_rate may help")
