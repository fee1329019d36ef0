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
    """

    def __init__(
        self, latents: Levels, log_likelihood: Tensor, log_prior: Callable[[], Levels], log_q: Callable[[], Levels], kl: Divergences
    ) -> None:
        self.latents = latents
        self.log_likelihood = log_likelihood
        self.kl = kl
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


def elbo(terms: LogTerms) -> Nats:
    """E_q[log p(x | z)] - KL(q(z | x) || p(z)) <= log p(x), with the closed form of the KL where there is one.

    The gap is KL(q(z | x) || p(z | x)).

    Source: Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014, arXiv:1312.6114.
    """
    likelihood = terms.log_likelihood
    bound = likelihood.squeeze(0) if len(likelihood) == 1 else likelihood.mean(0)
    for level, kl in enumerate(terms.kl):
        bound = bound - ((terms.log_q[level] - terms.log_prior[level]).mean(0) if kl is None else kl)
    return bound


def iwae(log_w: LogWeights) -> Nats:
    """log (1/K) sum_k w_k, whose mean lies below log p(x), above the ELBO, and rises with K.

    With NaN cells marginalised in log p(x | z) this is the bound on the observed cells that MIWAE climbs.

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
