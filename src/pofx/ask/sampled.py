"""p(x) known by its draws: what the generic engine answers with, asked like any other p."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pofx.ask.generic import Draws, Event, drop, log_marginal
from pofx.domain import Domain
from pofx.errors import Unavailable
from pofx.models.base import Model, labelled
from pofx.types import Context, Generator, Kind, Nats, Point, X


class Sampled(Model):
    """p(x | event) of another model, as draws; log p(x | event) = log p(x, values) - log P(event) in it, where both terms are known.

    More rows than there are draws repeat them.

    Args:
        base: p of all variables, or None where only the draws are left.
        event: what is known.
        draws: of all variables, the evidence in place.
        keep: the variables that are left, in order.
    """

    sampling = Kind.ESTIMATE

    def __init__(self, base: Model | None, event: Event, draws: Draws, keep: Sequence[int]) -> None:
        super().__init__(event.domain.select(keep))
        self.base, self.event, self.draws, self.keep = base, event, draws, tuple(keep)
        scored = base is not None and draws.log_evidence is not None and len(keep) == len(self._free)
        self.density = base.density.worst(Kind.ESTIMATE) if scored and base is not None else Kind.NONE
        self.sampling = draws.kind
        self.register_buffer("rows", draws.rows[:, list(keep)], persistent=False)

    rows: Tensor

    @property
    def _free(self) -> list[int]:
        return [d for d in range(len(self.event.domain)) if d not in self.event.seen]

    @property
    def noun(self) -> str:
        """That of the model it was drawn from."""
        return "a sampled answer" if self.base is None else self.base.noun

    @property
    def approximation(self) -> str:
        """How the draws were made, with their effective size."""
        return self.draws.how

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self._log_prob_and_error(x, c, generator)[0]

    def _log_prob_and_error(self, x: X, c: Context | None, generator: Generator) -> tuple[Nats, Nats]:
        if self.density is Kind.NONE or self.base is None:
            raise Unavailable(
                "log_prob", self.noun, f"it is known by draws ({self.draws.method})", instead="a kde learned from its samples"
            )
        whole = self.event.values.to(x).expand(len(x), -1).clone()
        whole[:, list(self.keep)] = x
        value, error = self.base.log_prob_and_error(whole, generator=generator)
        evidence, its_error = self.draws.log_evidence or 0.0, self.draws.log_evidence_error or 0.0
        inside = self.event.holds(whole)
        error = (error.square() + its_error**2).sqrt()
        return torch.where(inside, value - evidence, -torch.inf), torch.where(inside, error, 0.0)

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        order = [torch.randperm(len(self.rows), generator=generator, device=self.rows.device) for _ in range(-(-n // len(self.rows)))]
        return self.rows[torch.cat([*order, torch.empty(0, dtype=torch.long, device=self.rows.device)])[:n]]

    def _marginal(self, keep: tuple[int, ...]) -> Model:
        return Sampled(None, self.event, self.draws, [self.keep[d] for d in keep])

    @labelled(Kind.ESTIMATE)
    def _mean(self) -> Point:
        return self.draws.mean[0][list(self.keep)]


class Dropped(Model):
    """p of some variables of a model that can not marginalise: draws without the others, log-densities by importance sampling.

    Args:
        base: p of all variables.
        keep: the variables that are left, in order.
    """

    def __init__(self, base: Model, keep: Sequence[int]) -> None:
        super().__init__(base.domain.select(keep))
        self.base, self.keep = base, tuple(keep)
        self.sampling = base.sampling
        self.density = base.density.worst(Kind.ESTIMATE)

    @property
    def noun(self) -> str:
        """The whole's."""
        return self.base.noun

    @property
    def approximation(self) -> str:
        """How a log-density is had."""
        return "samples without the other columns; log_prob by importance sampling over them"

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self._log_prob_and_error(x, c, generator)[0]

    def _log_prob_and_error(self, x: X, c: Context | None, generator: Generator) -> tuple[Nats, Nats]:
        whole = x.new_full((len(x), len(self.base.domain)), torch.nan)
        whole[:, list(self.keep)] = x
        answer = log_marginal(self.base, whole, generator=generator)
        error = torch.zeros(len(x)) if answer.error is None else torch.as_tensor(answer.error)
        return torch.as_tensor(answer.value).to(x.device), error.to(x.device)

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return drop(self.base, self.keep, n, generator=generator)


def given(model: Model, event: Event, draws: Draws) -> Sampled:
    """The draws as p of the variables that the event does not fix."""
    return Sampled(model, event, draws, [d for d in range(len(event.domain)) if d not in event.seen])


def known(domain: Domain, draws: Draws) -> Sampled:
    """The draws as p of all variables, with nothing known: a posterior."""
    return Sampled(None, Event(domain, {}), draws, range(len(domain)))
