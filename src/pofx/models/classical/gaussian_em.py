"""Regularised EM for one normal or a mixture of them: the loop that `gaussian` and `gmm` share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from pofx.distributions.gaussian import DiagonalGaussians, Gaussians, LogWeights, Moments, Prior

Components = TypeVar("Components", Gaussians, DiagonalGaussians)


@dataclass(frozen=True)
class Mixture(Generic[Components]):
    """Σ_k exp(log_weight_k) N_k, one point on EM's path.

    Args:
        components: the normals.
        log_weight: log of the mixture's weights, (K,).
        log_likelihood: mean over the training rows, nats.
        objective: the same plus the prior's share a row, which EM never lowers.
    """

    components: Components
    log_weight: LogWeights
    log_likelihood: float = -float("inf")
    objective: float = -float("inf")

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) of each row."""
        return (self.components.log_prob(x) + self.log_weight).logsumexp(-1)


def expectation_maximisation(
    mixture: Mixture[Components],
    rows: int,
    e_step: Callable[[Components, LogWeights], Moments],
    prior: Prior,
    *,
    steps: int,
    tolerance: float,
) -> Iterator[Mixture[Components]]:
    """Alternate E and M; yield the mixture after each M-step, until a step gains less than `tolerance` nats a row."""
    components, last = mixture.components, mixture.objective
    moments = e_step(components, mixture.log_weight)
    for _ in range(steps):
        components, log_weight = components.maximise(moments, prior), moments.log_weight
        moments = e_step(components, log_weight)
        objective = moments.log_likelihood + float(prior.penalty(components)) / rows
        yield Mixture(components, log_weight, moments.log_likelihood, objective)
        if objective - last < tolerance:
            return
        last = objective
