"""What a latent-variable model predicts for some variables once others are known: a mixture over draws of z."""

import torch
from torch import Tensor

from pofx.distributions.columns import Columns
from pofx.domain import Domain
from pofx.errors import Unavailable
from pofx.models.base import Model, labelled
from pofx.types import Context, Generator, Kind, Nats, Point, X


class Predictive(Model):
    """p^(x) = sum_k w_k prod_d p_d(x_d | z_k): the integral over p(z | evidence) as a sum over weighted draws.

    Everything a mixture of products answers is answered in closed form *of the mixture*; the mixture estimates the
    model's conditional, so all of it is labelled an estimate. `log_prob_and_error` gives the error of
    self-normalised importance weights by the delta method, sqrt(sum_k w_k^2 (p_k / p^ - 1)^2).

    Args:
        domain: the variables left open.
        columns: their laws.
        parameters: of the laws at each z_k, (K, P).
        log_w: log-weights of the draws, (K,), not yet normalised.
    """

    density = Kind.ESTIMATE
    sampling = Kind.ESTIMATE
    missing = Kind.ESTIMATE
    rows_at_once = 256

    parameters_at: Tensor
    log_w: Tensor

    def __init__(self, domain: Domain, columns: Columns, parameters: Tensor, log_w: Tensor) -> None:
        super().__init__(domain)
        self.columns = columns
        self.register_buffer("parameters_at", parameters)
        self.register_buffer("log_w", log_w.log_softmax(0))

    def effective_draws(self) -> float:
        """1 / sum w^2: how many equally weighted draws the weighted ones are worth."""
        return float(1 / self.log_w.exp().square().sum())

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self._log_prob_and_error(x, c, generator)[0]

    def _log_prob_and_error(self, x: X, c: Context | None, generator: Generator) -> tuple[Nats, Nats]:
        log_p = self._log_p(x)
        value = (self.log_w + log_p).logsumexp(-1)
        off = torch.exp(log_p - value[:, None]) - 1
        return value, torch.where(value == -torch.inf, 0.0, (self.log_w.exp() * off).square().sum(-1).sqrt())

    def _log_p(self, x: Tensor) -> Tensor:
        """log p(x_n | z_k), (N, K)."""
        return self.columns.log_prob(self.parameters_at, x.to(self.log_w)[:, None]).sum(-1)

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return self._drawn(self.log_w.exp().expand(n, -1), generator) if n else self.log_w.new_zeros(0, len(self.domain))

    def _drawn(self, w: Tensor, generator: Generator) -> Tensor:
        """One x for each row of weights w (N, K)."""
        k = torch.multinomial(w, 1, generator=generator)[:, 0]
        return self.columns.sample(self.parameters_at[k], generator=generator)

    @labelled(Kind.ESTIMATE)
    def _marginal(self, keep: tuple[int, ...]) -> "Predictive":
        columns, positions = self.columns.select(keep)
        return Predictive(self.domain.select(keep), columns, self.parameters_at[:, positions], self.log_w)

    @labelled(Kind.ESTIMATE)
    def _conditional(self, evidence: Point) -> "Predictive":
        log_w = self.log_w + self._log_p(evidence[None])[0]
        return predictive(self.domain, self.columns, self.parameters_at, log_w, evidence)

    @labelled(Kind.ESTIMATE)
    def _mean(self) -> Point:
        return self.log_w.exp() @ self.columns.mean(self.parameters_at)

    @labelled(Kind.ESTIMATE)
    def _impute(self, x: X, generator: Generator) -> X:
        w = (self.log_w + self._log_p(x)).softmax(-1).T
        parameters = self.parameters_at[:, None].expand(-1, len(x), -1)
        return torch.where(x.isnan(), centre(self.columns, self.domain, parameters, w).to(x), x)

    @labelled(Kind.ESTIMATE)
    def _complete(self, x: X, generator: Generator) -> X:
        w = (self.log_w + self._log_p(x)).softmax(-1)
        return torch.where(x.isnan(), self._drawn(w, generator).to(x), x)


def predictive(domain: Domain, columns: Columns, parameters: Tensor, log_w: Tensor, evidence: Point) -> Predictive:
    """The mixture over draws with those log-weights, of the variables that are NaN in the evidence.

    Raises:
        Unavailable: no draw gives the evidence any probability.
    """
    if not bool((log_w > -torch.inf).any()):
        raise Unavailable("conditional", "the model", "the evidence has probability 0")
    open_ = evidence.isnan().nonzero()[:, 0].tolist()
    chosen, positions = columns.select(open_)
    return Predictive(domain.select(open_), chosen, parameters[:, positions], log_w)


def centre(columns: Columns, domain: Domain, parameters: Tensor, w: Tensor) -> Tensor:
    """Of sum_k w_k p(x | z_k): the mean of numbers and the most probable level, (N, D).

    Args:
        columns: the laws.
        domain: what x is.
        parameters: (K, N, P).
        w: weights that sum to 1 over K, (K, N).
    """
    filled = (w[..., None] * columns.mean(parameters)).sum(0)
    levelled = [d for d, law in enumerate(columns.laws) if not law.numbers]
    if levelled:
        some, positions = columns.select(levelled)
        values = range(max(domain.variables[d].cardinality or 0 for d in levelled))
        at = [some.log_prob(parameters[..., positions], filled.new_full((len(levelled),), v)).exp() for v in values]
        filled[:, levelled] = torch.stack([(w[..., None] * p).sum(0) for p in at]).argmax(0).to(filled)
    return filled
