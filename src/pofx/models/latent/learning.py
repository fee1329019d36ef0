"""What a latent-variable model learns by: which table of log-terms is drawn, what is climbed on it, and what held-out rows are judged by.

               climbed                                                          judged by
    elbo       E log p(x | z) - beta max(KL, free)                              the same with beta 1 and nothing free
    iwae       log mean w                                                       the same
    infovae    E log p(x | z) - beta max(KL, free) - weight MMD^2(q(z), p(z))   the ELBO
    autoencoder    log p(x | z = E_q[z])                                        the same

Who claims a density is judged by a true bound on log p(x), whatever was climbed. An autoencoder claims none while it learns.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.models.latent.inference import held_terms, log_terms, mean_terms, score_terms
from pofx.objectives.elbo import LogTerms, elbo, iwae, log_weights
from pofx.objectives.mmd import Kernel, imq, mmd2
from pofx.types import Nats

Draw = Callable[..., LogTerms]


class Learning(abc.ABC):
    """A function of the table to climb, and another to judge by."""

    @property
    def table(self) -> Draw:
        """What draws the table that is climbed on."""
        return log_terms

    @property
    def judges_table(self) -> Draw:
        """What draws the table that is judged on."""
        return log_terms

    @abc.abstractmethod
    def climbed(self, terms: LogTerms, done: Tensor) -> Nats:
        """What learning climbs when the share `done` () of the run is over, (N,)."""

    def judged(self, terms: LogTerms) -> Nats:
        """What held-out rows are judged by, the higher the better: a lower bound on log p(x), (N,)."""
        return elbo(terms)


@dataclass(frozen=True)
class Elbo(Learning):
    """E_q[log p(x | z)] - b max(KL, free), b = beta min(1, done / warmup).

    Source: warm-up: Bowman et al., "Generating sentences from a continuous space", CoNLL 2016, arXiv:1511.06349; Soenderby et al., "Ladder
    variational autoencoders", NeurIPS 2016, arXiv:1602.02282.

    Args:
        beta: weight of the divergences.
        warmup: share of the run over which their weight rises evenly from 0.
        free: nats of each level that cost nothing more.
        score: whether q's gradient is the score function's; see `score_terms`.
    """

    beta: float = 1.0
    warmup: float = 0.0
    free: float = 0.0
    score: bool = False

    @property
    def table(self) -> Draw:
        """With the draws held for the score function's gradient."""
        return score_terms if self.score else log_terms

    def climbed(self, terms: LogTerms, done: Tensor) -> Nats:
        """The weighted bound."""
        beta = self.beta * (done / self.warmup).clamp(max=1) if self.warmup else self.beta
        return elbo(terms, beta=beta, free=self.free)


@dataclass(frozen=True)
class Iwae(Learning):
    """log (1/K) sum_k w_k.

    Args:
        dreg: whether q's gradient is the doubly reparameterised one; see `held_terms`.
    """

    dreg: bool = False

    @property
    def table(self) -> Draw:
        """With log q held for the doubly reparameterised gradient."""
        return held_terms if self.dreg else log_terms

    def climbed(self, terms: LogTerms, done: Tensor) -> Nats:
        """The bound itself."""
        return iwae(log_weights(terms))

    def judged(self, terms: LogTerms) -> Nats:
        """It again."""
        return iwae(log_weights(terms))


@dataclass(frozen=True)
class InfoVAE(Learning):
    """E_q[log p(x | z)] - b KL - weight MMD^2(q(z), p(z)), q(z) the mean of q(z | x) over the rows.

    The paper's (1 - alpha) is b, its alpha + lambda - 1 the weight. MMD^2 is estimated without bias from the batch and as many draws
    of the prior, all levels side by side; a share of it is every row's.

    Cost: over the ELBO's, kernel matrices of batch x batch, K times.

    Source: Zhao, Song and Ermon, "InfoVAE: balancing learning and inference in variational autoencoders", AAAI 2019, arXiv:1706.02262.

    Args:
        within: the first two terms.
        weight: of MMD^2.
        kernel: k.
    """

    within: Elbo
    weight: float
    kernel: Kernel = imq

    def climbed(self, terms: LogTerms, done: Tensor) -> Nats:
        """All three terms."""
        z, y = (torch.cat(levels, dim=-1) for levels in (terms.latents, terms.prior_draws()))
        return self.within.climbed(terms, done) - self.weight * mmd2(z, y, self.kernel).mean()


@dataclass(frozen=True)
class Autoencoder(Learning):
    """log p(x | z = E_q[z]): nothing holds the codes to the prior, and nothing teaches q how wide it is.

    p(x) is the mixture over the prior still, and q a law that weights can correct, so log_prob stays a bound: valid, and loose. It falls
    while the codes leave the prior, so weights kept by it would be those of an autoencoder that has hardly begun.
    """

    @property
    def table(self) -> Draw:
        """At the mean of q."""
        return mean_terms

    @property
    def judges_table(self) -> Draw:
        """The same."""
        return mean_terms

    def climbed(self, terms: LogTerms, done: Tensor) -> Nats:
        """The likelihood at the mean."""
        return terms.log_likelihood[0]

    def judged(self, terms: LogTerms) -> Nats:
        """It again."""
        return terms.log_likelihood[0]
