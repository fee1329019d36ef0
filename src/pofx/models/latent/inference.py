"""Inference: where draws of z given x come from. It serves a generative model and is no part of it."""

import abc
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pofx.domain import Domain
from pofx.errors import Unavailable
from pofx.models.latent.decoder import activation, conditioned
from pofx.models.latent.generative import Generative
from pofx.nets.features import Features
from pofx.nets.mlp import MLP
from pofx.objectives.elbo import Divergences, Levels, LogTerms, log_weights
from pofx.types import Generator

FARTHEST = 3.0  # standard deviations from the mean at which the encoder sees a number at most


class Draws(NamedTuple):
    """z_1 ... z_K for each of N rows, and what q says of them; one entry for each level of latents, bottom first.

    Args:
        latents: z, (K, N, L).
        log_q: gives log q(z | x), (K, N).
        kl: KL(q(z | x) || p(z)) in closed form, (N,), or None.
        held: gives log q at any z, (K, N), with q's own numbers held: its gradient passes through z alone. None: q does not say.
    """

    latents: Levels
    log_q: Callable[[], Levels]
    kl: Divergences
    held: Callable[[Levels], Levels] | None = None


class Inference(nn.Module, abc.ABC):
    """q(z | x): any way to draw z that knows the density it draws from. NaN in x = unobserved."""

    @abc.abstractmethod
    def draw(self, model: Generative, x: Tensor, c: Tensor | None, draws: int, *, generator: Generator = None) -> Draws:
        """K draws a row, differentiable in the parameters of q: what learning uses."""

    def propose(self, model: Generative, x: Tensor, c: Tensor | None, draws: int, *, generator: Generator = None) -> Draws:
        """K independent draws a row for importance sampling: what answers use."""
        return self.draw(model, x, c, draws, generator=generator)

    @abc.abstractmethod
    def mean(self, x: Tensor, c: Tensor | None) -> Tensor:
        """E_q[z] of the bottom level, (N, L)."""

    @abc.abstractmethod
    def marginal(self, keep: Sequence[int]) -> "Inference":
        """The same q, shown some of the variables only."""

    def initialise(self, x: Tensor) -> None:
        """Set what depends on the rows x (N, D): scales of inputs, which cells can be missing."""


class GaussianEncoder(Inference):
    """q(z | x, c) = N(m, diag s^2), with m and s from one network that sees x, and which cells it lacks.

    Numbers enter standardised and no further than 3 deviations out (one rare pixel or outlier must not drown the
    others), levels one-hot, missing cells as 0. The weights of "this cell is missing" are there
    only when some cell was missing in the rows of `initialise`.

    `propose` mixes in the prior: a row with a share u of its cells missing draws from (1 - u/2) q + (u/2) p. The fewer
    cells are seen, the nearer the posterior is to the prior and the less an encoder that was fed whole rows
    can be trusted; with the mixture no weight exceeds 2/u times p(x | z). A whole row draws from q alone.

    Args:
        domain: what x is.
        latents: L.
        context: width of c.
        widths: hidden widths; () makes m and log s affine in the features.
        dropout: share of hidden units dropped while training.
    """

    at: Tensor | None

    def __init__(
        self, domain: Domain, latents: int, *, context: int = 0, widths: tuple[int, ...] = (256, 256), dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.features = Features(domain, mask=False).to(torch.get_default_dtype())
        self.size = len(domain)
        self.inputs = self.features.width + context
        self.inlet = Inlet(self.inputs, (*widths, 2 * latents)[0], len(domain))
        self.rest = (
            nn.Sequential(*activation(dropout), *MLP(widths[0], 2 * latents, widths[1:], zero_last=False, dropout=dropout))
            if widths
            else nn.Sequential()
        )
        self.register_buffer("at", None, persistent=False)  # of a marginal: where its variables stand

    def initialise(self, x: Tensor) -> None:
        """Take scales and the missing cells from rows x (N, D)."""
        self.features.fit(x)
        if bool(x.isnan().any()):
            self.inlet.expect_missing()

    def draw(self, model: Generative, x: Tensor, c: Tensor | None, draws: int, *, generator: Generator = None) -> Draws:
        """z = m + s eps with eps ~ N(0, I), and the prior's closed form of the KL where it has one."""
        m, log_s = self.mean_and_log_scale(x, c)
        eps = torch.randn(draws, *m.shape, generator=generator, dtype=m.dtype, device=m.device)
        s = log_s.exp()
        z = torch.addcmul(m, s, eps)

        def held(latents: Levels) -> Levels:
            return (_log_normal((latents[0] - m.detach()) / s.detach(), log_s.detach()),)

        return Draws((z,), lambda: (_log_normal(eps, log_s),), (model.prior.kl_from(m, s, log_s),), held)

    def propose(self, model: Generative, x: Tensor, c: Tensor | None, draws: int, *, generator: Generator = None) -> Draws:
        """Draws from (1 - u/2) q + (u/2) p, u the share of missing cells of the row."""
        half_u = 0.5 - 0.5 * (~x.isnan()).sum(-1).to(x) / self.size
        if not bool(half_u.any()):
            return self.draw(model, x, c, draws, generator=generator)
        m, log_s = self.mean_and_log_scale(x, c)
        s, shape = log_s.exp(), (draws, len(x))
        eps = torch.randn(*shape, m.shape[-1], generator=generator, dtype=m.dtype, device=m.device)
        (prior,) = model.draw_latents(shape, like=m, generator=generator)
        from_prior = torch.rand(shape, generator=generator, dtype=m.dtype, device=m.device) < half_u
        z = torch.where(from_prior[..., None], prior, m + s * eps)

        def log_q() -> Levels:
            (prior_at,) = model.log_prior((z,))
            return (torch.logaddexp(torch.log1p(-half_u) + _log_normal((z - m) / s, log_s), half_u.log() + prior_at),)

        return Draws((z,), log_q, (None,))

    def mean(self, x: Tensor, c: Tensor | None) -> Tensor:
        """m."""
        return self.mean_and_log_scale(x, c)[0]

    def mean_and_log_scale(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """m and log s, (N, L) each."""
        return self.of_seen(*self.see(x, c))

    def see(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the network sees of rows (N, D) and their conditions, (N, F), and which cells are missing, as `Inlet` has it."""
        x = self._whole(x)
        return conditioned(self.features(x).clamp_(-FARTHEST, FARTHEST), c), self.inlet.lacking(x)

    def of_seen(self, f: Tensor, lacking: Tensor) -> tuple[Tensor, Tensor]:
        """m and log s of what `see` gives."""
        m, log_s = self.rest(self.inlet(f, lacking)).chunk(2, dim=-1)
        return m, log_s

    def marginal(self, keep: Sequence[int]) -> "GaussianEncoder":
        """The encoder fed with NaN for every variable but those."""
        part = GaussianEncoder.__new__(GaussianEncoder)
        nn.Module.__init__(part)
        part.features, part.inlet, part.rest, part.size, part.inputs = self.features, self.inlet, self.rest, self.size, self.inputs
        before = torch.arange(self.size) if self.at is None else self.at
        part.register_buffer("at", before[list(keep)], persistent=False)
        return part

    def _whole(self, x: Tensor) -> Tensor:
        return x if self.at is None else x.new_full((len(x), self.size), torch.nan).index_copy(1, self.at, x)


class Inlet(nn.Linear):
    """W f(x) + b + U [x is missing]: a first layer. U has no columns until missing cells are expected.

    Args:
        features: width of f.
        outputs: width of the result.
        variables: how many cells x has.
    """

    grows = frozenset({"missing"})

    def __init__(self, features: int, outputs: int, variables: int) -> None:
        super().__init__(features, outputs)
        self.variables = variables
        self.missing = nn.Parameter(torch.zeros(outputs, 0), requires_grad=False)

    def expect_missing(self) -> None:
        """Make room for U, at zero."""
        if not self.missing.shape[1]:
            self.missing = nn.Parameter(self.missing.new_zeros(self.out_features, self.variables))

    def lacking(self, x: Tensor) -> Tensor:
        """Which cells of x are missing, (N, variables); (N, 0) while none is expected to be."""
        return x.isnan() if self.missing.shape[1] else x[:, :0]

    def forward(self, f: Tensor, lacking: Tensor) -> Tensor:  # type: ignore[override]
        """(N, features) and what `lacking` gives -> (N, outputs)."""
        h = functional.linear(f, self.weight, self.bias)
        return h + functional.linear(lacking.to(h), self.missing) if self.missing.shape[1] else h


def log_terms(
    model: Generative,
    inference: Inference,
    x: Tensor,
    c: Tensor | None = None,
    draws: int = 1,
    *,
    generator: Generator = None,
    inside: bool = False,
) -> LogTerms:
    """The table of log-terms for learning: K differentiable draws for each of the rows x (N, D).

    Args:
        model: prior and decoder.
        inference: q.
        x: rows.
        c: their conditions.
        draws: K.
        generator: of the draws.
        inside: whether x is known to be whole and inside the support.
    """
    drawn = inference.draw(model, x, c, draws, generator=generator)
    return _table(model, drawn, model.log_likelihood(drawn.latents, x, c, inside=inside), generator)


def held_terms(
    model: Generative,
    inference: Inference,
    x: Tensor,
    c: Tensor | None = None,
    draws: int = 1,
    *,
    generator: Generator = None,
    inside: bool = False,
) -> LogTerms:
    """The table of `log_terms` whose `iwae` has the doubly reparameterised gradient: same numbers, other slopes.

        of q's parameters phi         sum_k v_k^2 (d log w_k / d z_k) (d z_k / d phi),   v = softmax(log w)
        of the model's parameters     sum_k v_k d log w_k / d theta,                     as ever

    log q is held, so phi moves log w by the path through z alone; and the slope at z, which the gradient of `iwae` has weighed by v_k
    already, is weighed by v_k once more where the table took z from q. A level that was drawn from another's z saw z
    itself, so no slope is weighed twice. The mean is that of the plain gradient, and the noise does not outgrow the slope as K grows.

    Source: Tucker, Lawson, Gu and Maddison, "Doubly reparameterized gradient estimators", ICLR 2019, arXiv:1810.04021.

    Args:
        model: prior and decoder.
        inference: q, which says its density at any z.
        x: rows.
        c: their conditions.
        draws: K.
        generator: of the draws.
        inside: whether x is known to be whole and inside the support.

    Raises:
        Unavailable: q does not say its density at any z.
    """
    drawn = inference.draw(model, x, c, draws, generator=generator)
    held = drawn.held
    if held is None:
        q, why = type(inference).__name__, "it says log q only where it drew"
        raise Unavailable("doubly reparameterised gradient", q, why, instead="gradient='plain'")
    latents = tuple(z.view_as(z) for z in drawn.latents)
    at = drawn._replace(latents=latents, log_q=lambda: held(latents), kl=(None,) * len(latents))
    terms = _table(model, at, model.log_likelihood(latents, x, c, inside=inside), generator)
    share = log_weights(terms).detach().softmax(0)[..., None]
    for z in latents:
        if z.requires_grad:
            z.register_hook(share.mul)
    return terms


def mean_terms(
    model: Generative,
    inference: Inference,
    x: Tensor,
    c: Tensor | None = None,
    draws: int = 1,
    *,
    generator: Generator = None,
    inside: bool = False,
) -> LogTerms:
    """The table of one z a row, the mean of q, whatever `draws` says: a point, so it has neither log q nor divergence."""
    latents = (inference.mean(x, c)[None],)
    return LogTerms(latents, model.log_likelihood(latents, x, c, inside=inside), lambda: model.log_prior(latents), tuple, ())


def proposed_terms(
    model: Generative, inference: Inference, x: Tensor, c: Tensor | None = None, draws: int = 1, *, generator: Generator = None
) -> LogTerms:
    """The table of log-terms for answering: K independent proposals for each of the rows x (N, D)."""
    drawn = inference.propose(model, x, c, draws, generator=generator)
    return _table(model, drawn, model.log_likelihood(drawn.latents, x, c), generator)


def _table(model: Generative, drawn: Draws, likelihood: Tensor, generator: Generator) -> LogTerms:
    def prior_draws() -> Levels:
        return model.draw_latents(tuple(likelihood.shape), like=likelihood, generator=generator)

    return LogTerms(drawn.latents, likelihood, lambda: model.log_prior(drawn.latents), drawn.log_q, drawn.kl, prior_draws)


def _log_normal(eps: Tensor, log_s: Tensor) -> Tensor:
    """log N(m + s eps; m, diag s^2)."""
    return -0.5 * (eps.square() + math.log(2 * math.pi)).sum(-1) - log_s.sum(-1)
