"""A normalizing flow: a base density, carried to the data by a transform, and by surjections where there are some."""

import math

import torch

from pofx.domain import Domain
from pofx.models.base import Model
from pofx.objectives.bounds import bound_and_error
from pofx.transforms.base import Transform
from pofx.transforms.surjections import Drawn
from pofx.types import Context, Generator, Kind, Latent, Nats, X


class Flow(Model):
    """log p(x | c) = log p_base(T^-1(x; c)) + log|det J_T^-1(x; c)|.

    With a surjection x = S(y) at the end, y = T(u; c) has that density, and p(x | c) the bound E_q(y|x) [log p(y | c) - log q(y | x)] on
    its log: log_prob is its mean over some draws, with a standard error, the loss one draw; sampling stays exact.

    Answers log_prob, sample, encode and decode exactly; the other questions go through the generic engine. A row with an infinite
    entry has density 0. Fails where the support is torn into pieces that a continuous T can not separate: thin bridges of density
    remain between them.

    Source: Papamakarios, Nalisnick, Rezende, Mohamed and Lakshminarayanan, "Normalizing flows for probabilistic modeling and
    inference", JMLR 22(57), 2021, equation 6.

    Args:
        domain: what x is, real variables where no surjection makes codes of them.
        transform: T.
        base: p_base, of as many real variables.
        context: what c is, real variables, or None.
        name: what it is called in sentences.
        surjection: S, or None.
        draws: of the surjection, a row and log_prob.
        tight: whether log_prob is the log of the draws' mean weight, not the mean of their logs.
    """

    def __init__(
        self,
        domain: Domain,
        transform: Transform,
        base: Model,
        context: Domain | None = None,
        name: str = "normalizing flow",
        *,
        surjection: Drawn | None = None,
        draws: int = 8,
        tight: bool = False,
    ) -> None:
        super().__init__(domain, context)
        self.transform, self.base, self.name = transform, base, name
        self.surjection, self.draws, self.tight = surjection, draws, tight
        self.density = base.density.worst(Kind.EXACT if surjection is None else Kind.BOUND)
        self.sampling = base.sampling

    @property
    def noun(self) -> str:
        """Its family's."""
        return self.name

    def initialise(self, x: X, c: Context | None = None) -> None:
        """Let the transform see the rows, and the base what it makes of them."""
        y = x if self.surjection is None else self.surjection.lift(x)[0].detach()
        self.transform.start(y, c)
        with torch.no_grad():
            self.base.initialise(self.transform.inverse(y, c)[0])

    def loss(self, x: X, c: Context | None = None, *, generator: Generator = None) -> Nats:
        """-log p(x | c), or its bound at one draw."""
        return -self._at_one(x, c, generator)

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self._log_prob_and_error(x, c, generator)[0]

    def _log_prob_and_error(self, x: X, c: Context | None, generator: Generator) -> tuple[Nats, Nats]:
        def draw() -> tuple[Nats, Nats]:
            value = self._at_one(x, c, generator)
            return value, torch.zeros_like(value)

        return draw() if self.surjection is None else bound_and_error(draw, self.draws, tight=self.tight)

    def _at_one(self, x: X, c: Context | None, generator: Generator) -> Nats:
        """log p(y | c) - log q(y | x) at one y; without a surjection y is x."""
        y, log_weight = (x, 0.0) if self.surjection is None else self.surjection.lift(x, generator=generator)
        finite = y.isfinite()
        u, log_det = self.transform.inverse(torch.where(finite, y, 0.0), c)
        return torch.where(finite.all(-1), self.base._log_prob(u, None, generator) + log_det + log_weight, -math.inf)

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return self._to_data(self.base.sample(n, generator=generator), c)

    def _encode(self, x: X, c: Context | None) -> Latent:
        return self.transform.inverse(x if self.surjection is None else self.surjection.middle(x), c)[0]

    def _decode(self, z: Latent, c: Context | None) -> X:
        like = next(self.parameters())
        return self._to_data(z.to(like), c)

    def _to_data(self, u: Latent, c: Context | None) -> X:
        y = self.transform(u, c)[0]
        return y if self.surjection is None else self.surjection(y)
