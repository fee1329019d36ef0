"""Everything a gradient run is at a step boundary, so that it can be saved there and go on as if never stopped."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pofx.errors import FileError, TrainingError
from pofx.learn.distributed import Ranks
from pofx.learn.record import Row
from pofx.learn.skipping import Norms
from pofx.learn.streams import Streams
from pofx.models.base import GradientConfig

Tensors = dict[str, Tensor]
ADAM = ("step", "exp_avg", "exp_avg_sq")  # what Adam remembers of each parameter


@dataclass
class Position:
    """Where the run is, in plain numbers.

    Args:
        step: batches learned from so far.
        epoch: whole passes over the rows so far.
        batch: batches of the pass under way.
        rows: rows of the pass under way.
        loss: summed over those rows.
        kept_step: the step whose weights are kept as the best so far.
        kept_epoch: and its epoch.
        kept_loss: and their held-out loss.
        seconds: how long the run took, stretches before a resume included.
        history: one row per epoch.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    rows: int = 0
    loss: float = 0.0
    kept_step: int = 0
    kept_epoch: int = 0
    kept_loss: float = math.inf
    seconds: float = 0.0
    history: list[Row] = field(default_factory=list)


class State:
    """Players, their optimisers and averages, the randomness, the position, and the weights kept.

    Args:
        players: who learns, by name.
        config: the optimiser, and the decay of the average.
        rows: how many there are to learn from.
        streams: the randomness of this process.
        ranks: the processes that learn together.

    Raises:
        TrainingError: a player has no parameters to learn.
    """

    def __init__(self, players: Mapping[str, nn.Module], config: GradientConfig, rows: int, streams: Streams, ranks: Ranks) -> None:
        self.players = players
        self.parameters = {name: [p for p in player.parameters() if p.requires_grad] for name, player in players.items()}
        for name, parameters in self.parameters.items():
            if not parameters:
                raise TrainingError(f"player {name!r} ({type(players[name]).__name__}) has no parameters that gradients could move")
        self.optimisers = {name: config.optimiser(players[name], parameters, rows) for name, parameters in self.parameters.items()}
        self.norms = {name: Norms() for name in players}
        self.decay = config.ema
        self.averages = {name: [p.detach().clone() for p in ps] for name, ps in self.parameters.items()} if config.ema else {}
        self.streams, self.ranks = streams, ranks
        self.pass_start = streams.shuffle.get_state()  # the shuffle's state before the pass under way
        self.position = Position()
        self.kept = self._weights()

    def set_learning_rate(self, rate: float) -> None:
        """The step size of every player's next step."""
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = rate

    def admits(self, player: str, above: float) -> bool:
        """Whether |g| is no more than so many times the usual one; looking at it waits for the device."""
        return self.norms[player].admit(self._norm(player).item(), above)

    def clip(self, player: str, most: float) -> None:
        """g ← g min(1, most / |g|)."""
        parameters, norm = self.parameters[player], self._norm(player)
        # Elsewhere than on a CPU, looking at the norm would wait for the device; here it mostly spares a pass over g.
        if norm.device.type != "cpu" or norm > most:
            clip_grads_with_norm_(parameters, most, norm)

    def _norm(self, player: str) -> Tensor:
        """|g| over all gradients of the player."""
        return get_total_norm([p.grad for p in self.parameters[player] if p.grad is not None])

    def average(self, player: str) -> None:
        """θ̄ ← d θ̄ + (1 - d) θ with d = min(decay, (1 + t) / (10 + t)): a young average forgets its untrained start soon."""
        if self.decay is not None:
            t = self.position.step
            get_ema_multi_avg_fn(min(self.decay, (1 + t) / (10 + t)))(self.averages[player], self.parameters[player], None)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within: the players have their averaged weights, where averages are kept."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, averages in self.averages.items():
            for i, parameter in enumerate(self.parameters[name]):
                averages[i], parameter.data = parameter.data, averages[i]

    def finite(self) -> bool:
        """Whether every weight is a finite number."""
        return all(math.isfinite(get_total_norm(parameters).item()) for parameters in self.parameters.values())

    def keep(self, loss: float | None) -> None:
        """Take the weights the players have now as the best so far."""
        at = self.position
        at.kept_step, at.kept_epoch, at.kept_loss = at.step, at.history[-1]["epoch"], math.inf if loss is None else loss
        self.kept = self._weights()

    def give_back(self) -> None:
        """Leave the players with the weights kept."""
        for name, player in self.players.items():
            player.load_state_dict(self.kept[name])

    def _weights(self) -> dict[str, Tensors]:
        return {name: {k: v.detach().clone() for k, v in player.state_dict().items()} for name, player in self.players.items()}

    # -- saved and restored ------------------------------------------------------------------------

    def tensors(self) -> Tensors:
        """The state's tensors under dotted names. Every rank takes part: the file holds the generators of all."""
        named = {f"stream.{name}": self.ranks.stacked(state) for name, state in self.streams.state().items()}
        named["shuffle"] = self.pass_start
        for name, player in self.players.items():
            named |= {f"player.{name}.{k}": v for k, v in player.state_dict().items()}
            named |= {f"kept.{name}.{k}": v for k, v in self.kept[name].items()}
            named |= {f"average.{name}.{i}": v for i, v in enumerate(self.averages.get(name, ()))}
            moments = self.optimisers[name].state_dict()["state"]
            named |= {f"optimiser.{name}.{i}.{k}": v for i, of_one in moments.items() for k, v in of_one.items()}
        return named

    def facts(self) -> dict[str, Any]:
        """The position and the norms, as plain data."""
        return asdict(self.position) | {"norms": {name: asdict(norms) for name, norms in self.norms.items()}}

    def restore(self, tensors: Tensors, facts: Mapping[str, Any]) -> None:
        """Go on from what `tensors` and `facts` gave.

        Raises:
            FileError: they are not those of a run of these players.
        """
        try:
            self.position = Position(**{f.name: facts[f.name] for f in fields(Position)})
            self.norms = {name: Norms(**facts["norms"][name]) for name in self.players}
            self.pass_start = tensors["shuffle"]
            # Clones: a generator reads its state from the start of the storage, whatever row of it it is given.
            self.streams.restore({name: states[self.ranks.rank].clone() for name, states in _below("stream.", tensors).items()})
            for name in self.players:
                self._restore_player(name, tensors)
        except (KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise FileError(f"the checkpoint is not one of this run: {error!r}") from error

    def _restore_player(self, name: str, tensors: Tensors) -> None:
        player, optimiser = self.players[name], self.optimisers[name]
        player.load_state_dict(_below(f"player.{name}.", tensors))
        for key, weight in self.kept[name].items():
            weight.copy_(tensors[f"kept.{name}.{key}"])
        for i, average in enumerate(self.averages.get(name, ())):
            average.copy_(tensors[f"average.{name}.{i}"])
        of_each = {i: _below(f"optimiser.{name}.{i}.", tensors) for i in range(len(self.parameters[name]))}
        moments = {i: {leaf: found[leaf] for leaf in ADAM} for i, found in of_each.items() if found}
        optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})


def _below(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
