"""A normalizing flow: a base density, carried to the data by a transform."""

import math

import torch

from pofx.domain import Domain
from pofx.models.base import Model
from pofx.transforms.base import Transform
from pofx.types import Context, Generator, Latent, Nats, X


class Flow(Model):
    """log p(x | c) = log p_base(T^-1(x; c)) + log|det J_T^-1(x; c)|.

    Answers log_prob, sample, encode and decode exactly; the other questions go through the generic engine. A row with an infinite
    entry has density 0. Fails where the support is torn into pieces that a continuous T can not separate: thin bridges of density
    remain between them.

    Source: Papamakarios, Nalisnick, Rezende, Mohamed and Lakshminarayanan, "Normalizing flows for probabilistic modeling and
    inference", JMLR 22(57), 2021, equation 6.

    Args:
        domain: what x is, real variables.
        transform: T.
        base: p_base, of as many real variables.
        context: what c is, real variables, or None.
        name: what it is called in sentences.
    """

    def __init__(
        self, domain: Domain, transform: Transform, base: Model, context: Domain | None = None, name: str = "normalizing flow"
    ) -> None:
        super().__init__(domain, context)
        self.transform, self.base, self.name = transform, base, name
        self.density, self.sampling = base.density, base.sampling

    @property
    def noun(self) -> str:
        """Its family's."""
        return self.name

    def initialise(self, x: X, c: Context | None = None) -> None:
        """Let the transform see the rows, and the base what it makes of them."""
        self.transform.start(x, c)
        with torch.no_grad():
            few = slice(None, None, -(-len(x) // self.rows_at_once))  # evenly apart, enough for a start
            self.base.initialise(self.transform.inverse(x[few], c if c is None else c[few])[0])

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        finite = x.isfinite()
        u, log_det = self.transform.inverse(torch.where(finite, x, 0.0), c)
        return torch.where(finite.all(-1), self.base._log_prob(u, None, generator) + log_det, -math.inf)

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return self.transform(self.base.sample(n, generator=generator), c)[0]

    def _encode(self, x: X, c: Context | None) -> Latent:
        return self.transform.inverse(x, c)[0]

    def _decode(self, z: Latent, c: Context | None) -> X:
        like = next(self.parameters())
        return self.transform(z.to(like), c)[0]
