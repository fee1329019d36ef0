"""Bounds on log p(x) when a latent z is integrated out, as functions of one table of log-terms.

For z_1 ... z_K ~ q(z | x) the table holds log p(x | z_k), log p(z_k) and log q(z_k | x); a hierarchy of
latents has one entry of the prior, of q and of their divergence a level, the bottom level first. Every
objective and every question about the posterior is a function of that table, whatever prior and
whatever q it came from.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.types import Nats

LogWeights = Float[Tensor, "K N"]


class LogTerms(NamedTuple):
    """What K draws for each of N rows say.

    Args:
        log_likelihood: log p(x | z), (K, N).
        log_prior: log p(z) of each level, (K, N).
        log_q: log q(z | x) of each level, (K, N).
        kl: KL(q(z | x) || p(z)) of each level, (N,), or None where it has no closed form.
        latents: z of each level, (K, N, L).
    """

    log_likelihood: Tensor
    log_prior: tuple[Tensor, ...]
    log_q: tuple[Tensor, ...]
    kl: tuple[Tensor | None, ...]
    latents: tuple[Tensor, ...]


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
    bound = terms.log_likelihood.mean(0)
    for log_p, log_q, kl in zip(terms.log_prior, terms.log_q, terms.kl, strict=True):
        bound = bound - ((log_q - log_p).mean(0) if kl is None else kl)
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
