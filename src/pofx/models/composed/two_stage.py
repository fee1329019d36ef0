"""Two stages: an autoencoder, then any family of the registry, learned on its codes."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import BeforeValidator, Field, field_validator
from torch import Tensor

from pofx.domain import Domain, Variable, VariableKind
from pofx.errors import OptionError, PofxError, Unavailable
from pofx.models.base import FamilyConfig, FullBatch, GradientConfig, Model, Staged, Takes, labelled
from pofx.models.composed.prepared import Levels, dtype_of
from pofx.models.latent.generative import beside
from pofx.models.latent.inference import proposed_terms
from pofx.models.latent.predictive import centre
from pofx.models.latent.vae import VAE, VAEConfig
from pofx.models.registry import family
from pofx.nets.features import location_and_scale
from pofx.objectives.elbo import LogTerms, iwae, iwae_error
from pofx.types import Context, Generator, Kind, Latent, Nats, X

See = Callable[[X, Generator], X]


class TwoStage(Model, Staged):
    """p(x, v) = integral of p(x | z) p(z, v) dz: the decoder of a VAE under a law of its codes that was learned after it.

    v are the variables that stand beside the codes as they are: those that the autoencoder does not see. With a label there and an
    `m2` for p(z, v) this is M1+M2.

    The second stage learns from the codes that the first climbed on: draws of q(z | x), drawn anew at every step of a gradient, for
    the bound depends on the prior through E_q[log p(z)] alone, which a law of their means does not climb; of an autoencoder, which
    knows no draws, the means. They are standardised on the way. With `means` they are the means whatever was climbed on:
    the law of them is not the best prior, though any gives a bound, but classes stand further apart where draws blur them.

    log_prob is the importance-weighted bound with the new p(z, v), where that has an exact density or a bound, else refused. q(z | x)
    is as it was. Imputations weigh draws of q by p(x | z) p(z, v) / q(z | x). Under a diffusion model, whose bound on log p(z, v)
    is noisy and no weight, log_prob is the average over draws of log p(x | z) p(z, v) / q(z | x), the evidence lower bound, and draws of
    q count alike. `classify` of a variable beside is the mean of p(v | z) over draws of q(z | x), or p(v | z) at the mean.

    Costs: those of a VAE, and `draws` densities of p(z, v) a row of log_prob.

    Source: Kingma, Rezende, Mohamed and Welling, "Semi-supervised learning with deep generative models", NeurIPS 2014,
    arXiv:1406.5298, section 3.1, for M1+M2.

    Args:
        vae: the first stage; its own prior stays in the proposals for rows with missing cells.
        prior: p(z, v), codes first, in standardised units.
        domain: what x and v are.
        beside: where v stands.
        learning: the options by which each stage learns.
        means: whether the second stage learns from means of q(z | x).
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        vae: VAE,
        prior: Model,
        domain: Domain,
        beside: Sequence[int] = (),
        *,
        learning: tuple[FamilyConfig, FamilyConfig],
        means: bool = False,
    ) -> None:
        super().__init__(domain)
        self.vae, self.prior, self.beside, self.learning, self.means = vae, prior, list(beside), learning, means
        self.within = [d for d in range(len(domain)) if d not in self.beside]
        latents = len(prior.domain) - len(self.beside)
        self.density = Kind.BOUND if prior.density in (Kind.EXACT, Kind.BOUND) else Kind.NONE
        self.missing = self.density if prior.missing is not Kind.NONE or not self.beside else Kind.NONE
        self.sampling, self.logs_average = prior.sampling, prior.logs_average
        self.rows_at_once, self.draws = vae.rows_at_once, min(vae.draws, _AVERAGED) if prior.logs_average else vae.draws
        self.register_buffer("centre", torch.zeros(latents))
        self.register_buffer("spread", torch.ones(latents))

    @property
    def noun(self) -> str:
        """Both stages."""
        return f"{self.vae.noun} with a prior of {self.prior.noun}"

    # -- learning ----------------------------------------------------------------------------------

    def stages(self) -> Iterator[tuple[Model, FamilyConfig]]:
        """The autoencoder of what it sees, then the law of the codes and of what stands beside them."""
        parts = ((self.vae, lambda x, _: x[:, self.within]), (self.prior, self.coded))
        for (part, see), config in zip(parts, self.learning, strict=True):
            if part is self.prior:
                self.vae.eval()  # it is no part of the second stage, which would not tell it
            yield (FullBatchStage if isinstance(part, FullBatch) else Stage)(self, part, see), config

    def begin(self, x: X) -> None:
        """Take the units of the codes from training rows."""
        m, s = location_and_scale(self._codes(x, torch.Generator(x.device).manual_seed(0)))
        self.centre.copy_(m)
        self.spread.copy_(s)

    def coded(self, x: X, generator: Generator) -> Tensor:
        """A standardised code of each row, and v: (N, L + V)."""
        u = (self._codes(x, generator) - self.centre) / self.spread
        return self._beside_codes(u, x[:, self.beside])

    @torch.no_grad()
    def _codes(self, x: X, generator: Generator) -> Tensor:
        """What the first stage climbed on, for one draw of each row; or the means of q(z | x)."""
        return torch.cat([self._code(self.vae._inputs(rows[:, self.within], None)[0], generator) for rows in x.split(self.rows_at_once)])

    def _code(self, x: Tensor, generator: Generator) -> Tensor:
        if self.means:
            return beside(self.vae.inference.mean(self.vae.generative, x, None))
        terms = self.vae.objective.table(self.vae.generative, self.vae.inference, x, None, 1, generator=generator)
        return beside(terms.latents)[0]

    def _beside_codes(self, u: Tensor, v: Tensor) -> Tensor:
        return torch.cat((u, v.to(u).expand(*u.shape[:-1], len(self.beside))), dim=-1).to(dtype_of(self.prior))

    # -- density -----------------------------------------------------------------------------------

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self._log_prob_and_error(x, c, generator)[0]

    def _log_prob_and_error(self, x: X, c: Context | None, generator: Generator) -> tuple[Nats, Nats]:
        log_w = torch.cat([w for _, _, w in self._proposals(x, generator)], dim=1)
        if self.logs_average:
            return log_w.mean(0), log_w.std(0) / math.sqrt(len(log_w))
        return iwae(log_w), iwae_error(log_w)

    def _weights(self, log_w: Tensor) -> Tensor:
        """Of draws of q(z | x), (K, N): w / sum w, or evenly where log p(z) is noisy and no weight."""
        return torch.full_like(log_w, 1 / len(log_w)) if self.logs_average else log_w.softmax(0)

    def _proposals(self, x: Tensor, generator: Generator) -> Iterator[tuple[LogTerms, Tensor, Tensor]]:
        """Of a few rows at a time: K draws of q, the same standardised and beside v, (K, N, L + V), and their log-weights, (K, N)."""
        if self.density is Kind.NONE:
            why = f"its prior, {self.prior.noun}, has no density"
            raise Unavailable("log_prob", self.noun, why, families=("vae", "gmm"), instead="sample it")
        for rows, _ in self.vae._pieces(x, None, self.draws):
            seen, _ = self.vae._inputs(rows[:, self.within], None)
            terms = proposed_terms(self.vae.generative, self.vae.inference, seen, None, self.draws, generator=generator)
            codes = self._beside_codes((beside(terms.latents) - self.centre) / self.spread, rows[:, self.beside])
            log_p = self.prior.log_prob(codes, generator=generator).to(seen) - self.spread.log().sum()
            yield terms, codes, terms.log_likelihood + log_p - torch.stack(terms.log_q).sum(0)

    # -- draws and codes ---------------------------------------------------------------------------

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return self._drawn(self.prior._sample(n, None, generator), generator)

    def _drawn(self, codes: Tensor, generator: Generator) -> X:
        """x ~ p(x | z) beside v."""
        z, v = self._uncoded(codes)
        pieces = z.split(self.rows_at_once) if len(z) else ()
        parts = [z.new_zeros(0, len(self.within)), *(self.vae.generative.sample((piece,), generator=generator) for piece in pieces)]
        return self._joined(torch.cat(parts), v)

    def _uncoded(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """z in the units of the decoder, and v."""
        u, v = codes.split([len(self.centre), len(self.beside)], dim=-1)
        return self.centre + self.spread * u.to(self.centre), v

    def _joined(self, x: Tensor, v: Tensor) -> Tensor:
        """x and v in the order of the domain."""
        whole = x.new_zeros(*x.shape[:-1], len(self.domain))
        whole[..., self.within] = x
        whole[..., self.beside] = v.to(x)
        return whole

    @labelled(Kind.ESTIMATE)
    def _encode(self, x: X, c: Context | None) -> Latent:
        """The mean of q(z | x)."""
        return self.vae._encode(x[:, self.within], None)

    def _decode(self, z: Latent, c: Context | None) -> X:
        """The centre of p(x | z), beside the v that the prior fills in."""
        z, _ = self.vae._inputs(z, None)
        codes = self._beside_codes((z - self.centre) / self.spread, z.new_full((len(self.beside),), torch.nan))
        filled = self.prior.impute(codes) if self.beside else codes
        return self._joined(self.vae._decode(z, None), self._uncoded(filled)[1])

    # -- the posterior -----------------------------------------------------------------------------

    def answers(self, question: str, seen: Sequence[int] = ()) -> Kind:
        """What is weighed needs a density, and clusters are the prior's."""
        own = super().answers(question, seen)
        if question == "cluster":
            own = own.worst(self.prior.answers(question))
        return Kind.NONE if question in ("impute", "complete", "cluster") and self.density is Kind.NONE else own

    @labelled(Kind.ESTIMATE)
    def _classify(self, x: X, d: int, generator: Generator) -> Tensor:
        """E_q(z | x)[p(v_d | z, the rest of v)], or that at the mean; of a variable that the autoencoder sees, by the bounds."""
        if d not in self.beside:
            return super()._classify(x, d, generator)
        at = len(self.centre) + self.beside.index(d)
        each = [self.prior.classify(self.coded(x, generator), at, generator=generator) for _ in range(1 if self.means else CLASSIFYING)]
        return torch.stack(each).mean(0)

    @labelled(Kind.ESTIMATE)
    def _cluster(self, x: X, c: Context | None, generator: Generator) -> Tensor:
        """E[p(k | z, v) | x]."""
        return torch.cat(
            [
                torch.einsum("kn,knj->nj", self._weights(log_w).to(codes), self.prior.cluster(codes, generator=generator).to(codes))
                for _, codes, log_w in self._proposals(x, generator)
            ]
        )

    @labelled(Kind.ESTIMATE)
    def _impute(self, x: X, generator: Generator) -> X:
        columns, seen = self.vae.generative.decoder.columns, self.domain.select(self.within)
        filled = []
        for terms, codes, log_w in self._proposals(x, generator):
            w = self._weights(log_w)
            mean = centre(columns, seen, self.vae.generative.parameters_at(terms.latents), w)
            filled.append(self._joined(mean, self._mean_beside(codes, w, generator)))
        return torch.where(x.isnan(), torch.cat(filled).to(x), x)

    def _mean_beside(self, codes: Tensor, w: Tensor, generator: Generator) -> Tensor:
        """The weighted mean of completions of v, and the level with the most weight."""
        levels = Levels(self.prior.domain, codes.device)
        whole = self.prior.complete(codes, generator=generator) if bool(codes.isnan().any()) else codes
        votes = levels.with_votes(whole.flatten(0, 1).double()).view(*whole.shape[:2], -1)
        return levels.elected((w[..., None] * votes).sum(0))[:, len(self.centre) :]

    @labelled(Kind.ESTIMATE)
    def _complete(self, x: X, generator: Generator) -> X:
        drawn = []
        for _, codes, log_w in self._proposals(x, generator):
            k = torch.multinomial(self._weights(log_w).T, 1, generator=generator)[:, 0]
            chosen = codes[k, torch.arange(len(k), device=k.device)]
            whole = self.prior.complete(chosen, generator=generator) if bool(chosen.isnan().any()) else chosen
            drawn.append(self._drawn(whole, generator))
        return torch.where(x.isnan(), torch.cat(drawn).to(x), x)


_AVERAGED = 8  # draws of q(z | x) where log p(z) is noisy: each is an average of its own
CLASSIFYING = 16  # draws of q(z | x) that a classification is the mean over


class Stage(Model):
    """The whole, of which one part learns: it answers as the whole does, and its loss is the part's, on what that sees of the rows.

    Args:
        whole: a model of two stages.
        part: what learns.
        see: what it sees of rows.
    """

    def __init__(self, whole: TwoStage, part: Model, see: See) -> None:
        super().__init__(whole.domain)
        self._whole = (whole,)  # in a tuple, or every part would learn
        self.part, self.see = part, see
        self.density, self.missing, self.sampling = whole.density, whole.missing, whole.sampling

    def initialise(self, x: X, c: Context | None = None) -> None:
        """Show the part what it sees of the rows."""
        self.part.initialise(self._begun(x))

    def loss(self, x: X, c: Context | None = None, *, generator: Generator = None) -> Nats:
        """The part's."""
        return self.part.loss(self.see(x, generator), generator=generator)

    def _begun(self, x: X) -> Tensor:
        if self.part is self._whole[0].prior:
            self._whole[0].begin(x)
        return self.see(x, torch.Generator(x.device).manual_seed(0))

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self._whole[0]._log_prob(x, c, generator)

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return self._whole[0]._sample(n, c, generator)


class FullBatchStage(Stage, FullBatch):
    """The same of a part that learns from all rows at once: from one code of each."""

    def steps(self, x: Tensor, *, holdout: Tensor | None = None, generator: Generator = None) -> Iterator[float]:
        """The part's."""
        held = None if holdout is None else self.see(holdout, generator)
        return cast("FullBatch", self.part).steps(self._begun(x), holdout=held, generator=generator)


Names = Annotated[tuple[str, ...], BeforeValidator(lambda names: (names,) if isinstance(names, str) else names)]


class LatentConfig(FamilyConfig):
    """Options of the two stages."""

    takes = Takes.SCALED
    cites = (
        "@inproceedings{kingma2014semi, title={Semi-supervised learning with deep generative models}, "
        "author={Kingma, Diederik P. and Rezende, Danilo J. and Mohamed, Shakir and Welling, Max}, "
        "booktitle={Advances in Neural Information Processing Systems}, year={2014}}",
    )
    space: ClassVar = {"prior": ("gaussian", "gmm", "realnvp")}

    autoencoder: str = Field("vae", description="the first stage, vae with its options, such as vae:latents=8:objective=autoencoder")
    prior: str = Field("gmm", description="the second: any family of real columns, such as realnvp or gmm:components=8")
    codes: Literal["draws", "means"] = Field(
        "draws", description="what the second stage learns from: draws of q(z | x), for the best bound, or its means, for classes"
    )
    beside: Names = Field((), description="columns that stand beside the codes in the second stage; with prior=m2 the label: M1+M2")
    max_epochs: int | None = Field(None, ge=1, description="of each stage that learns by gradients; None: its own")

    def _build(self, domain: Domain, context: Domain | None) -> TwoStage:
        """The untrained model."""
        first, second = self._part(self.autoencoder), self._part(self.prior)
        beside = [domain.index(name) for name in self.beside]
        within = [d for d in range(len(domain)) if d not in beside]
        if not within:
            raise OptionError("every column stands beside the codes: nothing is left to encode")
        vae = cast("VAE", first.build(domain.select(within)))
        columns = [Variable(f"code {k + 1}", VariableKind.REAL) for k in range(sum(vae.generative.sizes))]
        law = self._law(second, columns, [domain.variables[d] for d in beside])
        return TwoStage(vae, law, domain, beside, learning=(first, second), means=self.codes == "means")

    def _law(self, config: FamilyConfig, codes: list[Variable], beside: Sequence[Variable]) -> Model:
        """The untrained p(z, v).

        Raises:
            OptionError: the family does not take the variables beside the codes as they are.
        """
        native = {Takes.REALS: ("real",), Takes.DISCRETE: ("real", "count", "ordinal", "categorical", "binary")}.get(config.takes)
        for variable in beside:
            if native and variable.kind not in native:
                what = f"{variable.name!r}, which is {variable.kind},"
                raise OptionError(f"prior {self.prior!r} does not take {what} as it is: it can not stand beside the codes")
        return config.build(Domain((*codes, *beside)))

    def _part(self, name: str) -> FamilyConfig:
        """The options of a stage."""
        config = family(name).configure({})
        limit: dict[str, Any] = {"max_epochs": self.max_epochs}
        return config.model_copy(update=limit) if self.max_epochs and isinstance(config, GradientConfig) else config

    @field_validator("autoencoder", "prior")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            config = family(name).configure({})
        except PofxError as error:
            raise ValueError(str(error)) from None
        if config.images:
            raise ValueError(f"{name!r} learns images, and codes are none")
        if isinstance(config, LatentConfig):
            raise ValueError(f"{name!r} is of two stages itself")
        return name

    @field_validator("autoencoder")
    @classmethod
    def _encodes(cls, name: str) -> str:
        if not issubclass(family(name).config, VAEConfig):
            raise ValueError(f"the first stage is a vae with its options, not {name!r}")
        return name
