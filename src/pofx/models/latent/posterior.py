"""Draws of p(z | x_observed) of each row, that missing cells are filled from: by importance weights, or by a chain."""

import abc
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.errors import Unavailable
from pofx.models.latent.generative import Generative
from pofx.models.latent.inference import Draws, Inference, proposed_terms
from pofx.objectives.elbo import Levels, log_weights
from pofx.types import Generator


class Posterior(abc.ABC):
    """Draws of z given the observed cells of rows.

    Args:
        draws: K, how many for each row.
    """

    draws: int

    @abc.abstractmethod
    def __call__(self, model: Generative, inference: Inference, x: Tensor, *, generator: Generator = None) -> tuple[Levels, Tensor]:
        """z of each level (K, N, L) and the weights of the draws (K, N), which sum to 1 over K."""


@dataclass(frozen=True)
class Weighted(Posterior):
    """K draws of q, weighted by w = p(x, z) / q(z | x), which are normalised: biased by O(1 / K).

    Args:
        draws: K.
    """

    draws: int

    def __call__(self, model: Generative, inference: Inference, x: Tensor, *, generator: Generator = None) -> tuple[Levels, Tensor]:
        """Proposals and their shares."""
        terms = proposed_terms(model, inference, x, None, self.draws, generator=generator)
        return terms.latents, log_weights(terms).softmax(0)


@dataclass(frozen=True)
class Chain(Posterior):
    """The last K of 2 K states of a chain, equally weighted; see `gibbs`.

    Args:
        draws: K.
        corrected: whether a step may be refused.
    """

    draws: int
    corrected: bool = True

    def __call__(self, model: Generative, inference: Inference, x: Tensor, *, generator: Generator = None) -> tuple[Levels, Tensor]:
        """The second half of the chain."""
        states = list(gibbs(model, inference, x, 2 * self.draws, corrected=self.corrected, generator=generator))[self.draws :]
        latents = tuple(torch.stack(level) for level in zip(*states, strict=True))
        return latents, latents[0].new_full(latents[0].shape[:2], 1 / self.draws)


def gibbs(
    model: Generative, inference: Inference, x: Tensor, steps: int, *, corrected: bool = True, generator: Generator = None
) -> Iterator[Levels]:
    """The latents of each step of a chain for every row, (N, L) a level.

        z' ~ q(z | x_observed, x_missing)
        corrected: z' is taken with probability min(1, w(z') / w(z)), w(z) = p(x, z) / q(z | x); else always
        x_missing ~ p(x_missing | z)

    Corrected, it is Metropolis within Gibbs: in the long run its states are of p(z, x_missing | x_observed) whatever q is. Without, it is
    pseudo-Gibbs, which is so only where q is the posterior. It begins at a draw of q given the observed cells alone.

    Cost: a step a pass through both networks.

    Source: pseudo-Gibbs: Rezende, Mohamed and Wierstra, "Stochastic backpropagation and approximate inference in deep generative models",
    ICML 2014, arXiv:1401.4082; corrected: Mattei and Frellsen, "Leveraging the exact likelihood of deep latent variable models",
    NeurIPS 2018, arXiv:1802.04826.

    Args:
        model: prior and decoder.
        inference: q.
        x: rows (N, D), NaN = missing.
        steps: of the chain.
        corrected: whether a step may be refused.
        generator: of all draws.

    Raises:
        Unavailable: corrected, and q does not say its density at any z.
    """
    latents = _first(inference.propose(model, x, None, 1, generator=generator).latents)
    for _ in range(steps):
        whole = torch.where(x.isnan(), model.sample(latents, generator=generator).to(x), x)
        drawn = inference.draw(model, whole, None, 1, generator=generator)
        proposed = _first(drawn.latents)
        if corrected:
            gain = _log_weight(model, drawn, proposed, whole) - _log_weight(model, drawn, latents, whole)
            taken = torch.rand(gain.shape, generator=generator, dtype=gain.dtype, device=gain.device).log() < gain
            proposed = tuple(torch.where(taken[:, None], new, old) for new, old in zip(proposed, latents, strict=True))
        latents = proposed
        yield latents


def _log_weight(model: Generative, drawn: Draws, latents: Levels, x: Tensor) -> Tensor:
    """log p(x, z) - log q(z | x), (N,)."""
    if drawn.density is None:
        raise Unavailable(
            "Metropolis within Gibbs", "this inference", "it says log q only where it drew", instead="imputation='pseudo-gibbs'"
        )
    at = tuple(z[None] for z in latents)
    log_p = torch.stack((model.log_likelihood(at, x)[0], *(level[0] for level in model.log_prior(at)))).sum(0)
    return log_p - torch.stack([level[0] for level in drawn.density(at)]).sum(0)


def _first(latents: Levels) -> Levels:
    return tuple(z[0] for z in latents)
