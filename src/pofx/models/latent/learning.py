"""What a latent-variable model learns by: which table of log-terms is drawn, what is climbed on it, and what held-out rows are judged by.

               climbed                                                          judged by
    elbo       E log p(x | z) - beta max(KL, free)                              the same with beta 1 and nothing free
    iwae       log mean w                                                       the same
    infovae    E log p(x | z) - beta max(KL, free) - weight MMD^2(q(z), p(z))   the ELBO
    autoencoder    log p(x | z = E_q[z])                                        the same
    joint      log p(x, z), z kept for each row                                 the ELBO

Who claims a density is judged by a true bound on log p(x), whatever was climbed. An autoencoder claims none while it learns.
"""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from pofx.errors import OptionError
from pofx.models.base import GradientConfig
from pofx.models.latent.inference import held_terms, log_terms, mean_terms, score_terms
from pofx.objectives.elbo import LogTerms, elbo, iwae, log_weights
from pofx.objectives.mmd import KERNELS, Kernel, imq, mmd2
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


@dataclass(frozen=True)
class Joint(Learning):
    """log p(x, z) at latents that inference keeps for each training row: drawn from p(z | x), or its modes."""

    def climbed(self, terms: LogTerms, done: Tensor) -> Nats:
        """Its mean over the draws."""
        return torch.stack((terms.log_likelihood, *terms.log_prior)).sum(0).mean(0)


WEIGHED = frozenset({"loss_draws", "beta", "beta_warmup", "free_bits"})
READS: Mapping[str, frozenset[str]] = {  # the options of learning that each objective reads, or a value of one
    "elbo": WEIGHED | {"gradient='score'"},
    "iwae": frozenset({"loss_draws", "gradient='dreg'"}),
    "infovae": WEIGHED | {"kernel", "mmd_weight"},
    "autoencoder": frozenset(),
}


class ObjectiveConfig(GradientConfig, abc.ABC):
    """Options of what families with latents learn by, and of how much they draw."""

    draws: int = Field(128, ge=1, description="draws of q behind a log_prob, an imputation or a completion")
    objective: Literal["elbo", "iwae", "infovae", "autoencoder"] = Field(
        "elbo", description="what is learned by; held-out rows are judged by a true bound, those of an autoencoder by their reconstruction"
    )
    loss_draws: int = Field(1, ge=1, description="draws of q behind the loss")
    beta: float = Field(1.0, ge=0, le=1e6, description="weight of KL(q || prior) in elbo and infovae")
    beta_warmup: float = Field(0.0, ge=0, le=1, description="share of the run over which beta rises from 0; patience counts from its end")
    free_bits: float = Field(0.0, ge=0, le=1e6, description="nats of the mean KL of each level of latents that cost nothing more")
    gradient: Literal["plain", "dreg", "score"] = Field(
        "plain", description="q's; plain: through the draws; dreg, of iwae: doubly reparameterised; score, of elbo: the score function's"
    )
    kernel: Literal["rbf", "imq"] = Field("imq", description="of the MMD in infovae")
    mmd_weight: float = Field(10.0, ge=0, le=1e6, description="weight of MMD^2(q(z), prior) in infovae: alpha + lambda - 1 of the paper")

    @property
    def surrogate(self) -> bool:
        """Whether learning descends something else than minus the bound."""
        return self.objective == "infovae" or (self.beta, self.beta_warmup, self.free_bits) != (1, 0, 0)

    @property
    def compiles(self) -> bool:
        """Not with the doubly reparameterised gradient, whose slopes are weighed on their way back."""
        return self.gradient != "dreg"

    @property
    def settles(self) -> float:
        """The end of the warm-up."""
        return self.beta_warmup

    def _learning(self) -> Learning:
        """What is learned by.

        Raises:
            OptionError: an option is set that the objective does not read.
        """
        if self.objective == "infovae" and self.batch_size < 2:
            raise OptionError("objective 'infovae' compares the codes of a batch with draws of the prior: batch_size is 2 or more, got 1")
        for name in sorted({option.partition("=")[0] for option in set().union(*READS.values())}):
            if (value := getattr(self, name)) == (default := self._default(name)):
                continue
            readers = [objective for objective, options in READS.items() if options & {name, f"{name}={value!r}"}]
            if self.objective not in readers:
                of = " or ".join(map(repr, readers))
                raise OptionError(f"{name}={value!r} is for objective {of}: objective {self.objective!r} takes {default!r}")
        if self.gradient == "score" and self.loss_draws < 2:
            raise OptionError("gradient='score' compares each draw with the others of its row: loss_draws is 2 or more, got 1")
        within = Elbo(self.beta, self.beta_warmup, self.free_bits, self.gradient == "score")
        return {
            "elbo": within,
            "iwae": Iwae(self.gradient == "dreg"),
            "infovae": InfoVAE(within, self.mmd_weight, KERNELS[self.kernel]),
            "autoencoder": Autoencoder(),
        }[self.objective]

    def _default(self, name: str) -> Any:  # noqa: ANN401
        return type(self).model_fields[name].default
