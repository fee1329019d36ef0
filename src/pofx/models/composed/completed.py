"""Rows with missing cells for a family that needs whole rows: integrate them out under a proposal."""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from pofx.models.base import FullBatch, Model, labelled
from pofx.models.composed.weighted import WeightedMean, WeightedPick
from pofx.objectives.bounds import log_mean_and_error
from pofx.types import Context, Generator, Kind, Latent, Nats, Point, X

ROWS = 256  # with missing cells, of one pass: each becomes as many rows of the base as there are draws


class Completed(Model):
    """log p(x_o) = log E_q(x_m | x_o) [p(x_o, x_m) / q(x_m | x_o)] for a base p that can not marginalise.

    Training descends on the bound E_q [log p - log q] with one fresh draw a step; log_prob is the tighter
    importance-weighted bound over `draws` draws, with a delta-method standard error. Rows without a
    missing cell are the base's own, exact where it is. Imputation is self-normalised importance sampling.

    Fails quietly where q is much narrower than p(x_m | x_o): the bound is then loose, never wrong.

    Source: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", ICLR 2016,
    arXiv:1509.00519, for the bound over several draws.

    Args:
        base: p, over real variables.
        proposal: a model of the same x in closed form: its `complete` draws x_m, and log q(x_m | x_o) is
            log q(x) - log q(x_o). Learned when the model is initialised.
        draws: for a row with missing cells, in log_prob, impute and complete.
    """

    missing = Kind.BOUND

    def __init__(self, base: Model, proposal: Model, *, draws: int = 16) -> None:
        super().__init__(base.domain, base.context)
        self.base, self.proposal, self.draws = base, proposal, draws
        self.density = base.density
        self.sampling = base.sampling

    @property
    def noun(self) -> str:
        """The base's."""
        return self.base.noun

    def answers(self, question: str, seen: Sequence[int] = ()) -> Kind:
        """Its own estimate of missing cells; the base's answer to the rest."""
        own = super().answers(question, seen)
        return own if own is Kind.ESTIMATE else own.worst(self.base.answers(question, seen))

    def initialise(self, x: X, c: Context | None = None) -> None:
        """Learn the proposal, and show the base the rows with their cells filled in."""
        self.propose(x)
        self.base.initialise(self.proposal.impute(x.double()).to(x.dtype) if bool(x.isnan().any()) else x, c)

    def propose(self, x: X) -> None:
        """Learn the proposal from rows like those whose cells will be missing."""
        for _ in cast("FullBatch", self.proposal).steps(x.double()):
            pass

    def loss(self, x: X, c: Context | None = None, *, generator: Generator = None) -> Nats:
        """The base's loss at one completion, plus log q of what was drawn."""
        if not bool(x.isnan().any()):
            return self.base.loss(x, c, generator=generator)
        whole, log_q = self._drawn(x, generator)
        return self.base.loss(whole, c, generator=generator) + log_q

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self._log_prob_and_error(x, c, generator)[0]

    def _log_prob_and_error(self, x: X, c: Context | None, generator: Generator) -> tuple[Nats, Nats]:
        if not bool(x.isnan().any()):
            return self.base._log_prob_and_error(x, c, generator)
        parts = [log_mean_and_error(self._candidates(rows, k, generator)[1]) for rows, k in _parts(x, c)]
        value, error = (torch.cat(column) for column in zip(*parts, strict=True))
        return value, error

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return self.base._sample(n, c, generator)

    @labelled(Kind.ESTIMATE)
    def _impute(self, x: X, generator: Generator) -> X:
        mean = torch.cat([self._averaged(rows, generator) for rows, _ in _parts(x, None)])
        return torch.where(x.isnan(), mean.to(x.dtype), x)

    @labelled(Kind.ESTIMATE)
    def _complete(self, x: X, generator: Generator) -> X:
        return torch.cat([self._picked(rows, generator) for rows, _ in _parts(x, None)])

    def _weighed(self, x: X, generator: Generator) -> tuple[X, X, Nats]:
        """One draw of the proposal: no row is weighed before it is weighed with its neighbours."""
        whole, log_q = self._drawn(x, generator)
        return whole, whole, self.base._log_prob(whole, None, generator).double() - log_q

    def _averaged(self, x: Tensor, generator: Generator) -> Tensor:
        mean = WeightedMean()
        for whole, log_weight in zip(*self._candidates(x, None, generator), strict=True):
            mean.add(whole, log_weight)
        return mean.value

    def _picked(self, x: Tensor, generator: Generator) -> Tensor:
        pick = WeightedPick(generator)
        for whole, log_weight in zip(*self._candidates(x, None, generator), strict=True):
            pick.add(whole, log_weight)
        return pick.value

    def _drawn(self, x: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Rows with x_m ~ q(x_m | x_o), and log q(x_m | x_o)."""
        with torch.no_grad():
            whole = self.proposal._complete(x.double(), generator)
            log_q = self.proposal._log_prob(whole, None, generator) - self.proposal._log_prob(x.double(), None, generator)
        return torch.where(x.isnan(), whole.to(x.dtype), x), torch.where(x.isnan().any(-1), log_q, 0.0)

    def _candidates(self, x: Tensor, c: Tensor | None, generator: Generator) -> tuple[Tensor, Tensor]:
        """Completed rows (S, N, D) and log p(x) - log q(x_m | x_o), (S, N), in one pass of the base."""
        whole, log_q = self._drawn(x.repeat(self.draws, 1), generator)
        log_p = self.base._log_prob(whole, None if c is None else c.repeat(self.draws, 1), generator)
        return whole.reshape(self.draws, *x.shape), (log_p.double() - log_q).reshape(self.draws, len(x))

    def _marginal(self, keep: tuple[int, ...]) -> "Completed":
        return Completed(self.base.marginal(keep), self.proposal.marginal(keep), draws=self.draws)

    def _conditional(self, evidence: Point) -> "Completed":
        return Completed(self.base.conditional(evidence), self.proposal.conditional(evidence.double()), draws=self.draws)

    def _encode(self, x: X, c: Context | None) -> Latent:
        return self.base._encode(self.proposal.impute(x.double()).to(x.dtype), c)

    def _decode(self, z: Latent, c: Context | None) -> X:
        return self.base._decode(z, c)


def _parts(x: Tensor, c: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """A few rows at a time, with their conditions."""
    for at in torch.arange(len(x), device=x.device).split(ROWS):
        yield x[at], None if c is None else c[at]
