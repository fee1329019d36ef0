"""Inference: where draws of z given x come from. It serves a generative model and is no part of it."""

import abc
import copy
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from pofx.domain import Domain
from pofx.errors import OptionError, Unavailable
from pofx.models.latent.decoder import activation, conditioned
from pofx.models.latent.generative import Generative, beside
from pofx.models.latent.laws import Diagonal, Drawn, LatentLaw, Steered
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
        kl: KL(q(z | x) || p(z)) in closed form, (N,), its mean over the draws of other levels that it depends on; or None.
        held: gives log q at any z, (K, N), with q's own numbers held: its gradient passes through z alone. None: q does not say.
        density: gives log q at any z, (K, N). None: q does not say.
        log_prior: gives log p(z) of each level, (K, N), where drawing went the model's way and knows it; else None, and the model is asked.
        parameters: gives those of the laws of x at z, (K, N, P), in the same case.
    """

    latents: Levels
    log_q: Callable[[], Levels]
    kl: Divergences
    held: Callable[[Levels], Levels] | None = None
    density: Callable[[Levels], Levels] | None = None
    log_prior: Callable[[], Levels] | None = None
    parameters: Callable[[], Tensor] | None = None


class Inference(nn.Module, abc.ABC):
    """q(z | x): any way to draw z that knows the density it draws from. NaN in x = unobserved."""

    @abc.abstractmethod
    def draw(self, model: Generative, x: Tensor, c: Tensor | None, draws: int, *, generator: Generator = None) -> Draws:
        """K draws a row, differentiable in the parameters of q: what learning uses."""

    def propose(self, model: Generative, x: Tensor, c: Tensor | None, draws: int, *, generator: Generator = None) -> Draws:
        """K independent draws a row for importance sampling: what answers use."""
        return self.draw(model, x, c, draws, generator=generator)

    @abc.abstractmethod
    def mean(self, model: Generative, x: Tensor, c: Tensor | None) -> Levels:
        """The centre of each level, (N, L): E_q[z] of a single one; of several, each given the centres of those drawn before it."""

    @abc.abstractmethod
    def marginal(self, keep: Sequence[int]) -> "Inference":
        """The same q, shown some of the variables only."""

    def initialise(self, x: Tensor) -> None:
        """Set what depends on the rows x (N, D): scales of inputs, which cells can be missing."""


class Partial(Inference):
    """q, shown some of the variables only: it sees NaN for every other one.

    Args:
        whole: q.
        keep: the variables it is shown, in their order here.
        size: how many variables it knows.
    """

    at: Tensor

    def __init__(self, whole: Inference, keep: Sequence[int], size: int) -> None:
        super().__init__()
        self.whole, self.size = whole, size
        self.register_buffer("at", torch.tensor(list(keep), dtype=torch.long), persistent=False)

    def draw(self, model: Generative, x: Tensor, c: Tensor | None, draws: int, *, generator: Generator = None) -> Draws:
        """Its draws for the row with the others missing."""
        return self.whole.draw(model, self._whole(x), c, draws, generator=generator)

    def propose(self, model: Generative, x: Tensor, c: Tensor | None, draws: int, *, generator: Generator = None) -> Draws:
        """Its proposals for that row."""
        return self.whole.propose(model, self._whole(x), c, draws, generator=generator)

    def mean(self, model: Generative, x: Tensor, c: Tensor | None) -> Levels:
        """Its centres for that row."""
        return self.whole.mean(model, self._whole(x), c)

    def marginal(self, keep: Sequence[int]) -> Inference:
        """Shown fewer still."""
        return Partial(self, keep, len(self.at))

    def _whole(self, x: Tensor) -> Tensor:
        return x.new_full((len(x), self.size), torch.nan).index_copy(1, self.at, x)


class Path(StrEnum):
    """In which order q draws the levels, and what each sees beside the row.

    top-down    q(z_L | x) prod_l q(z_l | x, z_>l)
    ladder      the same with q(z_l | x, z_>l) proportional to N(z_l; m(x), s(x)^2) p(z_l | z_>l): the row corrects the prior's path
    bottom-up   q(z_1 | x) prod_l q(z_l | x, z_<l)

    Source: ladder: Soenderby et al., "Ladder variational autoencoders", NeurIPS 2016, arXiv:1602.02282.
    """

    TOP_DOWN = "top-down"
    LADDER = "ladder"
    BOTTOM_UP = "bottom-up"


class Encoder(Inference):
    """q(z | x, c): for each level of latents a law, steered by a network that sees x, which cells it lacks, and the levels drawn before.

    Numbers enter standardised and no further than 3 deviations out (one rare pixel or outlier must not drown the
    others), levels one-hot, missing cells as 0. The weights of "this cell is missing" are there
    only when some cell was missing in the rows of `initialise`.

    `propose` mixes in the prior: a row with a share u of its cells missing draws from (1 - u/2) q + (u/2) p. The fewer
    cells are seen, the nearer the posterior is to the prior and the less an encoder that was fed whole rows
    can be trusted; with the mixture no weight exceeds 2/u times p(x | z). A whole row draws from q alone.

    Args:
        domain: what x is.
        laws: of each level of z, bottom first.
        context: width of c.
        widths: hidden widths; () makes what steers a law affine in the features.
        dropout: share of hidden units dropped while training.
        path: the order of the levels.
    """

    at: Tensor | None

    def __init__(
        self,
        domain: Domain,
        laws: Sequence[LatentLaw],
        *,
        context: int = 0,
        widths: tuple[int, ...] = (256, 256),
        dropout: float = 0.0,
        path: Path = Path.TOP_DOWN,
    ) -> None:
        super().__init__()
        self.features = Features(domain, mask=False).to(torch.get_default_dtype())
        self.size = len(domain)
        self.inputs = self.features.width + context
        self.path = path
        self.laws: Sequence[LatentLaw] = nn.ModuleList(laws)  # type: ignore[assignment]
        before = [sum(laws[j].latents for j in self._drawn_before(level)) for level in range(len(laws))]
        self.nets: Sequence[LevelNet] = nn.ModuleList(  # type: ignore[assignment]
            LevelNet(self.inputs, len(domain), seen, law, widths, dropout) for seen, law in zip(before, laws, strict=True)
        )
        self.register_buffer("at", None, persistent=False)  # of a marginal: where its variables stand

    def initialise(self, x: Tensor) -> None:
        """Take scales and the missing cells from rows x (N, D)."""
        self.features.fit(x)
        if bool(x.isnan().any()):
            for net in self.nets:
                net.inlet.expect_missing()

    def draw(self, model: Generative, x: Tensor, c: Tensor | None, draws: int, *, generator: Generator = None) -> Draws:
        """Each level from its law, given those drawn before, and closed forms of the KL where the laws have them."""
        seen, shape = self.see(x, c), (draws, len(x))
        drawn: dict[int, Drawn] = {}
        laws: dict[int, Steered] = {}
        for level in self._order:
            laws[level] = self.law(level, seen, {j: d.z for j, d in drawn.items()}, model)
            drawn[level] = laws[level].draw(shape, generator=generator)
        latents = tuple(drawn[level].z for level in range(len(self.laws)))
        return Draws(
            latents,
            lambda: tuple(drawn[level].log_prob() for level in range(len(latents))),
            tuple(self._kl(level, laws[level], model, latents) for level in range(len(latents))),
            None if self.path is Path.LADDER else lambda z: self._held(seen, z, model),
            lambda z: self(seen, z, model),
        )

    def propose(self, model: Generative, x: Tensor, c: Tensor | None, draws: int, *, generator: Generator = None) -> Draws:
        """Draws from (1 - u/2) q + (u/2) p, u the share of missing cells of the row."""
        drawn = self.draw(model, x, c, draws, generator=generator)
        half_u = 0.5 - 0.5 * (~x.isnan()).sum(-1).to(x) / self.size
        return hedged(drawn, model, half_u, generator) if bool(half_u.any()) else drawn

    def forward(self, seen: "Seen", latents: Levels, model: Generative) -> Levels:
        """log q of each level at any z, (K, N)."""
        return tuple(self.law(level, seen, dict(enumerate(latents)), model).log_prob(z) for level, z in enumerate(latents))

    def mean(self, model: Generative, x: Tensor, c: Tensor | None) -> Levels:
        """The means of the laws, in the order of the path."""
        seen, means = self.see(x, c), dict[int, Tensor]()
        for level in self._order:
            means[level] = self.law(level, seen, means, model).mean
        return tuple(means[level] for level in range(len(self.laws)))

    def law(self, level: int, seen: "Seen", latents: Mapping[int, Tensor], model: Generative) -> Steered:
        """q of a level given what is seen of the rows and at least the levels drawn before."""
        before = tuple(latents[j] for j in self._drawn_before(level))
        law = self.laws[level](self.nets[level](*seen, beside(before) if before else None))
        if self.path is not Path.LADDER or level == len(self.laws) - 1:
            return law
        return law.times(model.links[level](tuple(latents[j] for j in range(level + 1, len(self.laws)))))

    def top(self, x: Tensor, c: Tensor | None) -> Steered:
        """q(z_L | x, c) of the top level.

        Raises:
            Unavailable: it sees other latents first.
        """
        return self.of_seen(*self.see(x, c))

    def see(self, x: Tensor, c: Tensor | None) -> "Seen":
        """What the networks see of rows (N, D) and their conditions."""
        x = self._whole(x)
        return Seen(conditioned(self.features(x).clamp_(-FARTHEST, FARTHEST), c), self.nets[0].inlet.lacking(x))

    def of_seen(self, f: Tensor, lacking: Tensor) -> Steered:
        """The law of the top level at what `see` gives."""
        top = len(self.laws) - 1
        if self._drawn_before(top):
            raise Unavailable("law of the top latents", "bottom-up inference", "it draws others first", instead="path='top-down'")
        return self.laws[top](self.nets[top](f, lacking, None))

    def marginal(self, keep: Sequence[int]) -> "Encoder":
        """The encoder fed with NaN for every variable but those."""
        part = copy.copy(self)
        part._buffers = dict(self._buffers)  # its own: the networks stay shared
        before = torch.arange(self.size) if self.at is None else self.at
        part.register_buffer("at", before[list(keep)], persistent=False)
        return part

    @property
    def _order(self) -> range:
        levels = range(len(self.laws))
        return levels if self.path is Path.BOTTOM_UP else levels[::-1]

    def _drawn_before(self, level: int) -> range:
        """The levels whose draws the network of a level sees."""
        if self.path is Path.LADDER:
            return range(0)
        return range(level) if self.path is Path.BOTTOM_UP else range(level + 1, len(self.laws))

    def _kl(self, level: int, law: Steered, model: Generative, latents: Levels) -> Tensor | None:
        """Of a bottom-up path in closed form at the top only: elsewhere p is given draws that have seen this level's."""
        if self.path is Path.BOTTOM_UP and level < len(self.laws) - 1:
            return None
        kl = law.kl(model.prior_of(level, latents))
        return kl if kl is None or kl.ndim == 1 else kl.mean(0)

    def _held(self, seen: "Seen", latents: Levels, model: Generative) -> Levels:
        numbers = {name: p.detach() for name, p in self.named_parameters()}
        held: Levels = functional_call(self, numbers, (Seen(*(v.detach() for v in seen)), latents, model))
        return held

    def _whole(self, x: Tensor) -> Tensor:
        return x if self.at is None else x.new_full((len(x), self.size), torch.nan).index_copy(1, self.at, x)


class GaussianEncoder(Encoder):
    """q(z | x, c) = N(m, diag s^2): one level.

    Args:
        domain: what x is.
        latents: L.
        context: width of c.
        widths: hidden widths.
        dropout: share of hidden units dropped while training.
    """

    def __init__(
        self, domain: Domain, latents: int, *, context: int = 0, widths: tuple[int, ...] = (256, 256), dropout: float = 0.0
    ) -> None:
        super().__init__(domain, [Diagonal(latents)], context=context, widths=widths, dropout=dropout)


class Seen(NamedTuple):
    """What a network sees of rows.

    Args:
        f: features of the observed cells and the conditions, (N, F).
        lacking: which cells are missing, (N, D); (N, 0) where none is expected to be.
    """

    f: Tensor
    lacking: Tensor


class LevelNet(nn.Module):
    """What steers the law of one level: r(W f + U lacking + V z + b), z the levels drawn before.

    What is seen of a row is taken in once, whatever the number of draws.

    Args:
        features: width of f.
        variables: how many cells x has.
        before: width of z.
        law: what is steered.
        widths: hidden widths.
        dropout: share of hidden units dropped while training.
    """

    def __init__(self, features: int, variables: int, before: int, law: LatentLaw, widths: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        first, *others = (*widths, law.outputs)
        self.inlet = Inlet(features, first, variables)
        self.before = nn.Linear(before, first, bias=False) if before else None
        layers = [*activation(dropout), *MLP(first, law.outputs, others[:-1], zero_last=False, dropout=dropout)] if widths else []
        self.rest = nn.Sequential(*layers)
        late = slice(law.outputs - law.late, None)
        with torch.no_grad():
            for p in (self.rest[-1] if widths else self).parameters():
                p[late] = 0

    def forward(self, f: Tensor, lacking: Tensor, z: Tensor | None) -> Tensor:
        """(N, F), what `Inlet.lacking` gives and (*batch, N, B) -> (*batch, N, outputs)."""
        h = self.inlet(f, lacking)
        a: Tensor = self.rest(h if self.before is None else h + self.before(z))
        return a.to(self.inlet.weight.dtype)  # under autocast nets have another, laws do not


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
    return _table(model, drawn, _log_likelihood(model, drawn, x, c, inside=inside), generator)


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
    at = drawn._replace(latents=latents, log_q=lambda: held(latents), kl=(None,) * len(latents), log_prior=None, parameters=None)
    terms = _table(model, at, model.log_likelihood(latents, x, c, inside=inside), generator)
    share = log_weights(terms).detach().softmax(0)[..., None]
    for z in latents:
        if z.requires_grad:
            z.register_hook(share.mul)
    return terms


def score_terms(
    model: Generative,
    inference: Inference,
    x: Tensor,
    c: Tensor | None = None,
    draws: int = 2,
    *,
    generator: Generator = None,
    inside: bool = False,
) -> LogTerms:
    """The table of `log_terms` whose `elbo` has the score function's gradient: same numbers, other slopes.

        d/d phi E_q[t(z)] ~ 1/K sum_k (t_k - b_k) d log q(z_k) / d phi + d t_k / d phi,   b_k = 1 / (K - 1) sum_j!=k t_j

    for each log-term t, z fixed: no slope passes through a draw, so z may be discrete. The mean b_k of the other draws is
    independent of z_k: it takes off variance and no truth. A closed form of the KL stays where it depends on no draw. `iwae` weighs
    its terms together, and has another gradient than this table gives.

    Cost: over `log_terms`, q's networks once more.

    Source: Williams, "Simple statistical gradient-following algorithms", Machine Learning 8, 1992; the control variate: Kool, van Hoof
    and Welling, "Buy 4 REINFORCE samples, get a baseline for free!", ICLR workshop on deep RL meets structured prediction, 2019.

    Args:
        model: prior and decoder.
        inference: q, which says its density at any z.
        x: rows.
        c: their conditions.
        draws: K, 2 or more.
        generator: of the draws.
        inside: whether x is known to be whole and inside the support.

    Raises:
        OptionError: there is one draw, which has no others to be compared with.
        Unavailable: q does not say its density at any z.
    """
    if draws < 2:
        raise OptionError(f"gradient='score' compares each draw with the others of its row: loss_draws is 2 or more, got {draws}")
    drawn = inference.draw(model, x, c, draws, generator=generator)
    if drawn.density is None:
        q, why = type(inference).__name__, "it says log q only where it drew"
        raise Unavailable("score function's gradient", q, why, instead="gradient='plain'")
    latents = tuple(z.detach() for z in drawn.latents)
    log_q = drawn.density(latents)
    score = sum(log_q[1:], log_q[0])
    score = score - score.detach()  # 0, with the slope of log q

    def scored(t: Tensor) -> Tensor:
        ahead = (t - t.mean(0)).detach() * (draws / (draws - 1))  # of the mean of the others
        return t + ahead * score

    return LogTerms(
        latents,
        scored(model.log_likelihood(latents, x, c, inside=inside)),
        lambda: tuple(map(scored, model.log_prior(latents))),
        lambda: tuple(map(scored, log_q)),
        drawn.kl if len(latents) == 1 else (None,) * len(latents),
    )


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
    latents = tuple(z[None] for z in inference.mean(model, x, c))
    return LogTerms(latents, model.log_likelihood(latents, x, c, inside=inside), lambda: model.log_prior(latents), tuple, ())


def proposed_terms(
    model: Generative, inference: Inference, x: Tensor, c: Tensor | None = None, draws: int = 1, *, generator: Generator = None
) -> LogTerms:
    """The table of log-terms for answering: K independent proposals for each of the rows x (N, D)."""
    drawn = inference.propose(model, x, c, draws, generator=generator)
    return _table(model, drawn, _log_likelihood(model, drawn, x, c), generator)


def _table(model: Generative, drawn: Draws, likelihood: Tensor, generator: Generator) -> LogTerms:
    def prior_draws() -> Levels:
        return model.draw_latents(tuple(likelihood.shape), like=likelihood, generator=generator)

    log_prior = drawn.log_prior or (lambda: model.log_prior(drawn.latents))
    return LogTerms(drawn.latents, likelihood, log_prior, drawn.log_q, drawn.kl, prior_draws)


def _log_likelihood(model: Generative, drawn: Draws, x: Tensor, c: Tensor | None, *, inside: bool = False) -> Tensor:
    parameters = drawn.parameters() if drawn.parameters else model.parameters_at(drawn.latents, c)
    return model.decoder.columns.log_prob(parameters, x, inside=inside).sum(-1)


def hedged(drawn: Draws, model: Generative, share: Tensor, generator: Generator) -> Draws:
    """Draws of (1 - share) q + share p, all levels together, from those of q.

    Args:
        drawn: draws of q, which says its density at any z.
        model: prior and decoder.
        share: of p, (N,).
        generator: of the draws.
    """
    density = drawn.density
    if density is None:
        raise TypeError("a mixture with the prior needs q's density at any z")
    like = drawn.latents[0]
    prior = model.draw_latents(tuple(like.shape[:2]), like=like, generator=generator)
    from_prior = torch.rand(like.shape[:2], generator=generator, dtype=like.dtype, device=like.device) < share
    latents = tuple(torch.where(from_prior[..., None], p, q) for p, q in zip(prior, drawn.latents, strict=True))

    def log_q() -> Levels:
        log_p = sum(model.log_prior(latents), torch.zeros_like(share))
        joint = torch.logaddexp(torch.log1p(-share) + sum(density(latents), torch.zeros_like(share)), share.log() + log_p)
        return (joint, *(torch.zeros_like(joint) for _ in latents[1:]))  # one mixture of all levels: it has no factors

    return Draws(latents, log_q, (None,) * len(latents))
