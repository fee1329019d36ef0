"""Maximum likelihood: the model descends its own loss."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

from pofx.types import Generator, Nats

PLAYER = "model"


class Likelihood:
    """min_θ mean_n loss_θ(x_n | c_n), the loss being -log p_θ or the family's bound on it.

    As the rows grow many, the mean tends to KL(data || p_θ) plus the entropy of the data, which θ does not move.

    Args:
        model: the one player.
        loss: its loss per datum, called as loss(x, c, generator=generator): `model.loss`, or that compiled.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Nats]) -> None:
        self.players: Mapping[str, nn.Module] = {PLAYER: model}
        self._loss = loss

    def __call__(self, x: Tensor, c: Tensor | None, generator: Generator) -> Iterator[tuple[str, Nats]]:
        """One turn: the model's."""
        yield PLAYER, self._loss(x, c, generator=generator)
