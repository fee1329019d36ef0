"""A weighted mixture of models: what an average over draws of the evidence leaves."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pofx.models.base import Model
from pofx.models.composed.weighted import WeightedMean
from pofx.types import Context, Generator, Kind, Nats, Point, X


class MixtureOfModels(Model):
    """p(x) = sum_s w_s p_s(x), for p_s over one domain and w normalised from log-weights.

    As an approximation to an integral over s it is an estimate; `approximation` says how many of the
    models carry it (effective sample size, (sum w)^2 / sum w^2).

    Args:
        models: p_1, ..., p_S.
        log_weights: log w_s up to a constant, (S,).
    """

    density = Kind.ESTIMATE
    sampling = Kind.ESTIMATE

    log_weights: Tensor

    def __init__(self, models: Sequence[Model], log_weights: Tensor) -> None:
        super().__init__(models[0].domain)
        self.models: Sequence[Model] = torch.nn.ModuleList(models)  # type: ignore[assignment]
        self.register_buffer("log_weights", log_weights.detach().double().log_softmax(0))
        self.missing = models[0].missing

    @property
    def noun(self) -> str:
        """That of its parts."""
        return self.models[0].noun

    def answers(self, question: str, seen: Sequence[int] = ()) -> Kind:
        """An average of the parts' answers: an estimate where all is well."""
        return super().answers(question, seen).worst(self.models[0].answers(question, seen)).worst(Kind.ESTIMATE)

    @property
    def approximation(self) -> str:
        """How the mixture stands for the integral, in one sentence."""
        size = float(1 / (2 * self.log_weights).exp().sum())
        points = f"{len(self.models)} points of its cell, effective sample size {size:.1f}"
        return f"evidence on a lifted variable is an event: averaged over {points}"

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return torch.logsumexp(self._joint(x, generator), dim=0)

    def _joint(self, x: Tensor, generator: Generator = None) -> Tensor:
        """log w_s + log p_s(x), (S, N)."""
        each = torch.stack([model.log_prob(x, generator=generator) for model in self.models])
        return each + self.log_weights[:, None]

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        chosen = torch.multinomial(self.log_weights.exp(), max(n, 1), replacement=True, generator=generator)[:n]
        counts = chosen.bincount(minlength=len(self.models)).tolist()
        rows = torch.cat([model.sample(k, generator=generator) for model, k in zip(self.models, counts, strict=True)])
        return rows[chosen.argsort().argsort()]

    def _marginal(self, keep: tuple[int, ...]) -> Model:
        return MixtureOfModels([model.marginal(keep) for model in self.models], self.log_weights)

    def _conditional(self, evidence: Point) -> Model:
        seen = (~evidence.isnan()).nonzero().flatten().tolist()
        likelihood = torch.stack([model.marginal(seen).log_prob(evidence[seen]) for model in self.models])
        return MixtureOfModels([model.conditional(evidence) for model in self.models], self.log_weights + likelihood)

    def _mean(self) -> Point:
        return torch.einsum("s,sd->d", self.log_weights.exp(), torch.stack([model.mean().double() for model in self.models]))

    def _impute(self, x: X, generator: Generator) -> X:
        mean = WeightedMean()
        for model, log_weight in zip(self.models, self._joint(x, generator), strict=True):
            mean.add(model.impute(x, generator=generator), log_weight)
        return mean.value

    def _complete(self, x: X, generator: Generator) -> X:
        chosen = torch.multinomial(self._joint(x, generator).softmax(0).T, 1, generator=generator)
        each = torch.stack([model.complete(x, generator=generator) for model in self.models])
        return each[chosen[:, 0], torch.arange(len(x), device=x.device)]
