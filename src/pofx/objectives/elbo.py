"""Bounds on log p(x) when a latent z is integrated out, as functions of one table of log-terms.

For z_1 ... z_K ~ q(z | x) the table holds log p(x | z_k), log p(z_k) and log q(z_k | x); a hierarchy of
latents has one entry of the prior, of q and of their divergence a level, the bottom level first. Every
objective and every question about the posterior is a function of that table, whatever prior and
whatever q it came from.
"""

import math
from collections.abc import Callable
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.types import Nats

LogWeights = Float[Tensor, "K N"]
Levels = tuple[Tensor, ...]
Divergences = tuple[Tensor | None, ...]


class LogTerms:
    """What K draws for each of N rows say; one entry for each level of the latents.

    The densities are computed when first read: an ELBO whose KL has a closed form never does.

    Args:
        latents: z of each level, (K, N, L).
        log_likelihood: log p(x | z), (K, N).
        log_prior: gives log p(z) of each level, (K, N).
        log_q: gives log q(z | x) of each level, (K, N).
        kl: KL(q(z | x) || p(z)) of each level, (N,), or None where it has no closed form.
        prior_draws: gives z ~ p(z) of each level, shaped like the latents: what the draws of all rows together are compared with.
    """

    def __init__(
        self,
        latents: Levels,
        log_likelihood: Tensor,
        log_prior: Callable[[], Levels],
        log_q: Callable[[], Levels],
        kl: Divergences,
        prior_draws: Callable[[], Levels] = tuple,
    ) -> None:
        self.latents = latents
        self.log_likelihood = log_likelihood
        self.kl = kl
        self.prior_draws = prior_draws
        self._log_prior = log_prior
        self._log_q = log_q

    @cached_property
    def log_prior(self) -> Levels:
        """log p(z)."""
        return self._log_prior()

    @cached_property
    def log_q(self) -> Levels:
        """log q(z | x)."""
        return self._log_q()


def log_weights(terms: LogTerms) -> LogWeights:
    """log w_k = log p(x | z_k) + log p(z_k) - log q(z_k | x): the mean of w_k estimates p(x) without bias."""
    log_w = terms.log_likelihood
    for log_p, log_q in zip(terms.log_prior, terms.log_q, strict=True):
        log_w = log_w + (log_p - log_q)
    return log_w


def elbo(terms: LogTerms, *, beta: float | Tensor = 1.0, free: float = 0.0) -> Nats:
    """E_q[log p(x | z)] - beta sum_j max(KL_j, free), KL_j = KL(q(z_j | x) || p(z_j)) in closed form where it has one, else by the draws.

    With beta 1 and nothing free it is the bound <= log p(x) whose gap is KL(q(z | x) || p(z | x)); else it is a surrogate.

    The maximum is of the mean KL_j over the rows, as in the source: a level that costs less than `free` nats a row on average is not
    pressed, another one wholly. Free are nats of a level, not of its units: where the prior couples the units, none has a KL of its own.

    Source: Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014, arXiv:1312.6114; beta: Higgins et al., "beta-VAE", ICLR 2017;
    free bits: Kingma et al., "Improved variational inference with inverse autoregressive flow", NeurIPS 2016, arXiv:1606.04934.

    Args:
        terms: the table.
        beta: weight of the divergences.
        free: nats of each level that cost nothing more.
    """
    likelihood = terms.log_likelihood
    bound = likelihood.squeeze(0) if len(likelihood) == 1 else likelihood.mean(0)
    for level in range(len(terms.kl)):
        kl = divergence(terms, level)
        bound = bound - beta * (_freed(kl, free) if free else kl)
    return bound


def divergence(terms: LogTerms, level: int) -> Nats:
    """KL(q(z | x) || p(z)) of a level: in closed form where there is one, else the mean of log q - log p over the draws."""
    kl = terms.kl[level]
    return (terms.log_q[level] - terms.log_prior[level]).mean(0) if kl is None else kl


def _freed(kl: Nats, free: float) -> Nats:
    """Rows whose mean is max(mean KL, free)."""
    return torch.where(kl.mean() > free, kl, free)


def iwae(log_w: LogWeights) -> Nats:
    """log (1/K) sum_k w_k, whose mean lies below log p(x), above the ELBO, and rises with K.

    With NaN cells marginalised in log p(x | z) this is the bound on the observed cells that Mattei and Frellsen's MIWAE climbs. Another
    paper of that name means something else: Rainforth et al., "Tighter variational bounds are not necessarily better", ICML 2018,
    arXiv:1802.04537, average several such bounds of few draws each, for the sake of q's gradients; those are what DReG mends.

    Source: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", ICLR 2016, arXiv:1509.00519;
    Mattei and Frellsen, "MIWAE", ICML 2019, arXiv:1812.02633.
    """
    return log_w.logsumexp(0) - math.log(len(log_w))


def iwae_error(log_w: LogWeights) -> Nats:
    """The standard error of `iwae` by the delta method: sd(w) / (mean(w) sqrt(K)).

    One draw says nothing about its own spread: its error is infinite.
    """
    if len(log_w) < 2:
        return torch.full_like(log_w[0], torch.inf)
    share = log_w.softmax(0)  # w_k / sum w
    return share.std(0) * math.sqrt(len(log_w))


def effective_draws(log_w: LogWeights) -> Float[Tensor, " N"]:
    """(sum w)^2 / sum w^2, between 1 and K: how many draws of p(z | x) itself the weighted ones are worth."""
    return 1 / log_w.softmax(0).square().sum(0)
