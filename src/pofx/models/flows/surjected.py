"""A model behind a surjection: p(x) of what is left of y ~ p(y), x = S(y)."""

import torch

from pofx.domain import Domain
from pofx.models.base import Model
from pofx.objectives.bounds import bound_and_error
from pofx.transforms.surjections import Drawn
from pofx.types import Context, Generator, Kind, Latent, Nats, X


class Surjected(Model):
    """log p(x | c) = log of the integral of p(y | c) over S^-1(x) >= E_q(y|x) [log p(y | c) - log q(y | x)], for x = S(y).

    log_prob is the bound's mean over some draws, with a standard error; the loss is the bound at one draw. Sampling is as exact as the
    base's: draw y, take S(y).

    Args:
        domain: what x is.
        surjection: S, with its q(y | x), learned with the base.
        base: p(y | c).
        draws: of y, a row and log_prob.
        tight: whether log_prob is the log of the draws' mean weight, not the mean of their logs.
    """

    def __init__(self, domain: Domain, surjection: Drawn, base: Model, *, draws: int = 8, tight: bool = False) -> None:
        super().__init__(domain, base.context)
        self.surjection, self.base, self.draws, self.tight = surjection, base, draws, tight
        self.density, self.sampling = base.density.worst(Kind.BOUND), base.sampling

    @property
    def noun(self) -> str:
        """The base's."""
        return self.base.noun

    def initialise(self, x: X, c: Context | None = None) -> None:
        """Let the base see one y of every row."""
        with torch.no_grad():
            self.base.initialise(self.surjection.lift(x)[0], c)

    def loss(self, x: X, c: Context | None = None, *, generator: Generator = None) -> Nats:
        """Minus the bound at one draw."""
        y, log_weight = self.surjection.lift(x, generator=generator)
        return self.base.loss(y, c, generator=generator) - log_weight

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self._log_prob_and_error(x, c, generator)[0]

    def _log_prob_and_error(self, x: X, c: Context | None, generator: Generator) -> tuple[Nats, Nats]:
        def at_one() -> tuple[Nats, Nats]:
            y, log_weight = self.surjection.lift(x, generator=generator)
            value, error = self.base._log_prob_and_error(y, c, generator)
            return value + log_weight, error

        return bound_and_error(at_one, self.draws, tight=self.tight)

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return self.surjection(self.base._sample(n, c, generator))

    def _encode(self, x: X, c: Context | None) -> Latent:
        return self.base._encode(self.surjection.middle(x), c)

    def _decode(self, z: Latent, c: Context | None) -> X:
        return self.surjection(self.base._decode(z, c))
