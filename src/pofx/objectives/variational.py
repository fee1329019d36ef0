"""Variational inference: a density q_θ that can be sampled approaches an unnormalised density p, in either direction.

    reverse   KL(q || p) = E_q [log q(x) - log p(x)]         seeks the modes that q is near, and is cheap where p is
    forward   KL(p || q) = E_p [log p(x) - log q(x)]         covers p, by weights w = p / q of q's own draws

Both are known up to the constant log Z of p. Where q = p the reverse loss is -log Z at every draw.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from pofx.objectives.likelihood import PLAYER
from pofx.types import Generator, Nats

LogDensity = Callable[[Tensor], Tensor]
Draw = Callable[[int, Generator], tuple[Tensor, Tensor]]


def always() -> float:
    """The whole target: no tempering."""
    return 1.0


class ReverseKL:
    """min_θ E_u [log q_θ(x) - b log p(x)], x = T_θ(u): KL(q || p^b) up to a constant.

    The gradient is that along the path alone, (∂x/∂θ)ᵀ ∇_x [log q - b log p]: what is left of log q's, its score at fixed x, has the
    mean 0. Without the score every draw's gradient is 0 where q = p^b / Z; with it (`path=False`) noise stays when q is there.

    Cost: T there and back, and a gradient of log p; without the path, T there.

    Source: Roeder, Wu and Duvenaud, "Sticking the landing", NeurIPS 2017, arXiv:1703.09194; Vaitl, Nicoli, Nakajima and Kessel,
    "Gradients should stay on path", arXiv:2207.08219, for flows.

    Args:
        q: the one player.
        draw: n and a generator to x = T_θ(u), (n, D), and log q_θ(x), (n,), both differentiable in θ through T_θ.
        log_q: log q_θ of rows.
        log_p: log-density of rows (N, D), with or without its constant, with a gradient.
        path: whether the gradient is that along the path.
        power: b; asked anew every turn.
    """

    def __init__(
        self, q: nn.Module, draw: Draw, log_q: LogDensity, log_p: LogDensity, *, path: bool = True, power: Callable[[], float] = always
    ) -> None:
        self.players: Mapping[str, nn.Module] = {PLAYER: q}
        self._loss = self._along_path if path else self._whole
        self._draw, self._log_q, self._log_p, self._power = draw, log_q, log_p, power

    def __call__(self, x: Tensor, c: Tensor | None, generator: Generator) -> Iterator[tuple[str, Nats]]:
        """One turn: as many draws as there are rows x, which say nothing else."""
        yield PLAYER, self._loss(len(x), generator)

    def _whole(self, n: int, generator: Generator) -> Nats:
        x, log_q = self._draw(n, generator)
        return log_q - self._power() * self._log_p(x)

    def _along_path(self, n: int, generator: Generator) -> Nats:
        x, _ = self._draw(n, generator)
        with torch.enable_grad():
            here = x.detach().requires_grad_()
            value = self._log_q(here) - self._power() * self._log_p(here)
            (slope,) = torch.autograd.grad(value.sum(), here)
        # Its value is that of the loss; its gradient passes through x alone.
        return value.detach() + ((x - x.detach()) * slope).sum(-1)


class ForwardKL:
    """min_θ -sum_k W_k log q_θ(x_k), x_k ~ q, W = softmax(b log p - log q): KL(p || q) by importance sampling, without its constant.

    q grows wherever p is larger than it is, so it covers what it has once touched. The weights are normalised over the batch: a
    bias of O(1 / batch), and noise where few draws have all weight, so it begins well from a q that the reverse direction found.

    Source: Bugallo, Elvira, Martino, Luengo, Miguez and Djuric, "Adaptive importance sampling: the past, the present, and the future",
    IEEE Signal Processing Magazine 34(4), 2017.

    Args:
        q: the one player.
        draw: n and a generator to x = T_θ(u), (n, D), and log q_θ(x), (n,), both differentiable in θ through T_θ.
        log_q: log q_θ of rows.
        log_p: log-density of rows (N, D), with or without its constant; it needs no gradient.
        power: b; asked anew every turn.
    """

    def __init__(self, q: nn.Module, draw: Draw, log_q: LogDensity, log_p: LogDensity, *, power: Callable[[], float] = always) -> None:
        self.players: Mapping[str, nn.Module] = {PLAYER: q}
        self._draw, self._log_q, self._log_p, self._power = draw, log_q, log_p, power

    def __call__(self, x: Tensor, c: Tensor | None, generator: Generator) -> Iterator[tuple[str, Nats]]:
        """One turn: as many draws as there are rows x, which say nothing else."""
        with torch.no_grad():
            drawn, log_q = self._draw(len(x), generator)
            share = (self._power() * self._log_p(drawn) - log_q).softmax(0)
        yield PLAYER, -len(x) * share * self._log_q(drawn)
