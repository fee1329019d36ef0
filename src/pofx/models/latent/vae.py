"""The variational auto-encoder: a generative model and an inference that learn together."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from pofx.distributions.choose import default_law
from pofx.distributions.columns import Columns
from pofx.domain import Domain
from pofx.errors import OptionError, PofxError, Unavailable
from pofx.models.base import Diagnosis, GradientConfig, Model, Scheduled, Takes, Widths, labelled
from pofx.models.latent.continuous import Flow, Full, StudentT
from pofx.models.latent.decoder import Decoder
from pofx.models.latent.diagnostics import diagnose
from pofx.models.latent.discrete import Categorical, CategoricalPrior
from pofx.models.latent.encoder_free import Climb, FromPrior, Hamiltonian, Table
from pofx.models.latent.generative import Generative, Link, beside
from pofx.models.latent.inference import Encoder, Inference, Path, proposed_terms
from pofx.models.latent.laws import Diagonal, LatentLaw
from pofx.models.latent.learning import Elbo, Joint, Learning, ObjectiveConfig
from pofx.models.latent.posterior import Chain, Posterior, Weighted
from pofx.models.latent.predictive import Predictive, centre, predictive
from pofx.models.latent.priors import Mixture, ModelPrior, NormalMixture, Prior, StandardNormal, Vamp
from pofx.models.registry import family
from pofx.objectives.elbo import Levels, iwae, iwae_error, log_weights
from pofx.types import Context, Generator, Kind, Latent, Nats, Point, X

PLAIN = Elbo()
_PRIORS = ("normal", "mixture", "vamp", "categorical")  # or the name of a family


class VAE(Model, Scheduled):
    """p(x | c) = integral of p(x | z, c) p(z) dz, learned by the ELBO, asked by importance sampling from q(z | x, c).

    log_prob is the importance-weighted bound on the observed cells with `draws` draws; NaN cells are integrated out
    exactly, because variables are independent given z. Samples are ancestral, so exact. Questions about the
    posterior (impute, complete, conditional) weigh the draws of q by w = p(x, z) / q(z | x).

    A marginal is exact as a model, but its bound is looser: q saw whole rows when it learned.

    A prior that is a mixture makes clusters: p(k | x) = E[p(k | z) | x], by the same weighted draws.

    Costs: a training row one pass through both networks, a row of log_prob `draws` passes through the decoder, in
    pieces of at most `values_at_once` numbers.

    Source: Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014, arXiv:1312.6114.

    Args:
        generative: prior, decoder and laws.
        inference: q.
        domain: what x is.
        context: what c is.
        draws: K of log_prob, impute and complete.
        objective: what is learned by.
        loss_draws: K of the loss.
        posterior: where missing cells are filled from; None: `draws` of q, weighted.
    """

    density = Kind.BOUND
    missing = Kind.BOUND
    values_at_once = 2**21
    posterior_draws = 2048  # behind a conditional, which is drawn once and asked often

    def __init__(
        self,
        generative: Generative,
        inference: Inference,
        domain: Domain,
        context: Domain | None = None,
        *,
        draws: int = 128,
        objective: Learning = PLAIN,
        loss_draws: int = 1,
        posterior: Posterior | None = None,
    ) -> None:
        super().__init__(domain, context)
        self.generative = generative
        self.inference = inference
        self.draws = draws
        self.objective = objective
        self.loss_draws = loss_draws
        self.posterior = posterior
        self._done = torch.ones(())  # a tensor, so that a compiled loss need not be compiled anew at every step
        self._inside = False  # whether the rows that learning sees are known to be whole and inside the support

    # -- learning ----------------------------------------------------------------------------------

    def initialise(self, x: X, c: Context | None = None) -> None:
        """Scale the inputs, fit each law alone: learning begins at the independent model."""
        heads = self.generative.decoder.heads
        heads.initialise(x)
        self.inference.initialise(x)
        self.generative.prior.initialise(*self._inputs(x, c))
        log_p = torch.cat([heads.columns.log_prob(heads.bias.detach(), rows.to(heads.bias)) for rows in x.split(self.rows_at_once)])
        self._inside = bool(log_p.isfinite().all()) and not bool(x.isnan().any())

    def passed(self, done: float, rows: Tensor) -> None:
        """Keep the share for the next loss."""
        self._done = torch.tensor(done)

    def loss(self, x: X, c: Context | None = None, *, generator: Generator = None) -> Nats:
        """In training what the objective descends; else what it judges by, for held-out rows: minus a true bound, but of an autoencoder."""
        x, c = self._inputs(x, c)
        if self.training:
            draw, inside = self.objective.table, self._inside
            terms = draw(self.generative, self.inference, x, c, self.loss_draws, generator=generator, inside=inside)
            return -self.objective.climbed(terms, self._done)
        terms = self.objective.judges_table(self.generative, self.inference, x, c, self.loss_draws, generator=generator)
        return -self.objective.judged(terms)

    # -- density -----------------------------------------------------------------------------------

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return iwae(self._log_weights(x, c, generator))

    def _log_prob_and_error(self, x: X, c: Context | None, generator: Generator) -> tuple[Nats, Nats]:
        log_w = self._log_weights(x, c, generator)
        return iwae(log_w), iwae_error(log_w)

    def _log_weights(self, x: X, c: Context | None, generator: Generator) -> Tensor:
        """(K, N), a piece of the rows and of the draws at a time."""
        x, c = self._inputs(x, c)
        at_once = max(1, min(self.draws, self.values_at_once // self._values_per_draw))
        sizes = [min(at_once, self.draws - k) for k in range(0, self.draws, at_once)]
        pieces = [
            torch.cat([log_weights(proposed_terms(self.generative, self.inference, rows, cs, k, generator=generator)) for k in sizes])
            for rows, cs in self._pieces(x, c, at_once)
        ]
        return torch.cat(pieces, dim=1)

    @property
    def _values_per_draw(self) -> int:
        return self.generative.decoder.values

    def _pieces(self, x: Tensor, c: Tensor | None, draws: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        size = max(1, self.values_at_once // (draws * self._values_per_draw))
        for begin in range(0, len(x), size):
            yield x[begin : begin + size], None if c is None else c[begin : begin + size]

    # -- draws -------------------------------------------------------------------------------------

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        like = self.generative.decoder.heads.bias
        parts = [like.new_zeros(0, len(self.domain))]
        for begin in range(0, n, self.rows_at_once):
            rows = min(self.rows_at_once, n - begin)
            cs = None if c is None else c[begin : begin + rows].to(like)
            latents = self.generative.draw_latents((rows,), like=like, generator=generator)
            parts.append(self.generative.sample(latents, cs, generator=generator))
        return torch.cat(parts)

    # -- the posterior -----------------------------------------------------------------------------

    @labelled(Kind.BOUND)
    def _marginal(self, keep: tuple[int, ...]) -> "VAE":
        part = VAE(
            self.generative.marginal(keep),
            self.inference.marginal(keep),
            self.domain.select(keep),
            self.context,
            draws=self.draws,
            objective=self.objective,
            loss_draws=self.loss_draws,
            posterior=self.posterior,
        )
        return part.train(self.training)

    @labelled(Kind.ESTIMATE)
    def _conditional(self, evidence: Point) -> Predictive:
        x, _ = self._inputs(evidence[None], None)
        with torch.no_grad():
            terms = proposed_terms(self.generative, self.inference, x, None, self.posterior_draws)
            parameters = self.generative.parameters_at(terms.latents)[:, 0]
        return predictive(self.domain, self.generative.decoder.columns, parameters, log_weights(terms)[:, 0], x[0])

    @labelled(Kind.ESTIMATE)
    def _over_latents(self) -> Predictive:
        like, nothing = self.generative.decoder.heads.bias, torch.full((len(self.domain),), torch.nan)
        parameters = self.generative.parameters_at(self.generative.draw_latents((self.posterior_draws,), like=like))
        log_w = like.new_zeros(self.posterior_draws)
        return predictive(self.domain, self.generative.decoder.columns, parameters, log_w, nothing.to(like))

    @labelled(Kind.ESTIMATE)
    def _impute(self, x: X, generator: Generator) -> X:
        def fill(latents: Levels, w: Tensor) -> Tensor:
            return centre(self.generative.decoder.columns, self.domain, self.generative.parameters_at(latents), w)

        return self._filled(x, fill, generator)

    @labelled(Kind.ESTIMATE)
    def _complete(self, x: X, generator: Generator) -> X:
        def fill(latents: Levels, w: Tensor) -> Tensor:
            k = torch.multinomial(w.T, 1, generator=generator)[:, 0]
            chosen = tuple(z[k, torch.arange(len(k), device=k.device)] for z in latents)
            return self.generative.sample(chosen, generator=generator)

        return self._filled(x, fill, generator)

    def answers(self, question: str, seen: Sequence[int] = ()) -> Kind:
        """Clusters are those of a prior that has some."""
        single = question == "cluster" and not isinstance(self.generative.prior, NormalMixture)
        return Kind.NONE if single else super().answers(question, seen)

    @labelled(Kind.ESTIMATE)
    def _cluster(self, x: X, c: Context | None, generator: Generator) -> Tensor:
        prior = self.generative.prior
        if not isinstance(prior, NormalMixture):
            raise Unavailable("cluster", self.noun, "its prior is no mixture", families=self.clustering_families, instead="prior=mixture")
        x, c = self._inputs(x, c)
        parts = [x.new_zeros(0, len(prior.log_pi))]
        for rows, cs in self._pieces(x, c, self.draws):
            terms = proposed_terms(self.generative, self.inference, rows, cs, self.draws, generator=generator)
            w = log_weights(terms).softmax(0)
            parts.append(torch.einsum("kn,knj->nj", w, prior.responsibilities(terms.latents[-1])))
        return torch.cat(parts)

    @labelled(Kind.ESTIMATE)
    def _diagnose(self, x: X, c: Context | None, generator: Generator) -> Diagnosis:
        weigh = partial(self._log_weights, generator=generator)
        return diagnose(self.generative, self.inference, *self._inputs(x, c), weigh=weigh, generator=generator)

    def _filled(self, x: Tensor, fill: Callable[[Levels, Tensor], Tensor], generator: Generator) -> Tensor:
        """x with its NaN taken from what `fill` makes of the posterior's draws of each piece of rows."""
        posterior = self.posterior or Weighted(self.draws)
        parts = [
            fill(*posterior(self.generative, self.inference, piece, generator=generator))
            for piece, _ in self._pieces(self._inputs(x, None)[0], None, posterior.draws)
        ]
        return torch.where(x.isnan(), torch.cat(parts).to(x), x)

    @labelled(Kind.ESTIMATE)
    def _encode(self, x: X, c: Context | None) -> Latent:
        """The centres of q(z | x, c), all levels side by side."""
        return beside(self.inference.mean(self.generative, *self._inputs(x, c)))

    def _decode(self, z: Latent, c: Context | None) -> X:
        """The centre of p(x | z, c): the mean of numbers, the most probable level."""
        z, c = self._inputs(z, c)
        return self.generative.decoder.columns.centre(self.generative.parameters_at((z,), c))

    def _inputs(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """In the dtype of the weights."""
        like = self.generative.decoder.heads.bias
        return x.to(like.dtype), None if c is None else c.to(like.dtype)


PARTS = (  # an option, and what another one must be where it is read
    ("posterior_steps", "posterior", ("flow",)),
    ("categories", "prior", ("categorical",)),
    ("temperature", "prior", ("categorical",)),
    ("temperature", "gradient", ("plain",)),
    ("path", "inference", ("encoder",)),
    ("posterior", "inference", ("encoder",)),
    ("move_steps", "inference", ("table", "hmc")),
)


class VAEConfig(ObjectiveConfig):
    """Options of the variational auto-encoder."""

    takes = Takes.SCALED
    conditional = True
    cites = (
        "@inproceedings{kingma2014auto, title={Auto-encoding variational {B}ayes}, author={Kingma, Diederik P. and Welling, Max}, "
        "booktitle={International Conference on Learning Representations}, year={2014}}",
        "@inproceedings{burda2016importance, title={Importance weighted autoencoders}, "
        "author={Burda, Yuri and Grosse, Roger and Salakhutdinov, Ruslan}, "
        "booktitle={International Conference on Learning Representations}, year={2016}}",
        "@inproceedings{tomczak2018vae, title={{VAE} with a {V}amp{P}rior}, author={Tomczak, Jakub M. and Welling, Max}, "
        "booktitle={International Conference on Artificial Intelligence and Statistics}, year={2018}}",
        "@inproceedings{kingma2016improved, title={Improved variational inference with inverse autoregressive flow}, "
        "author={Kingma, Diederik P. and Salimans, Tim and Jozefowicz, Rafal and Chen, Xi and Sutskever, Ilya and Welling, Max}, "
        "booktitle={Advances in Neural Information Processing Systems}, year={2016}}",
        "@inproceedings{jang2017categorical, title={Categorical reparameterization with {G}umbel-softmax}, "
        "author={Jang, Eric and Gu, Shixiang and Poole, Ben}, "
        "booktitle={International Conference on Learning Representations}, year={2017}}",
    )
    space: ClassVar = {
        "latents": (2, 4, 8, 16, 32),
        "widths": ((64,), (64, 64), (256, 256), (512, 512)),
        "dropout": (0.0, 0.1, 0.2, 0.3),
        "learning_rate": (3e-4, 1e-3, 3e-3),
    }

    latents: int | None = Field(None, ge=1, le=2**14, description="width of z; None: 2 sqrt(D)")
    higher_latents: Widths = Field(
        (), description="widths of further levels above z, bottom first: p(z_l | z_>l) are networks; () is one level"
    )
    inference: Literal["encoder", "table", "hmc", "prior"] = Field(
        "encoder",
        description="where z of a row comes from: encoder is a network; the others have none, climb log p(x, z) for each row that is "
        "asked about, and learn by a table of modes, by a chain for each row (Hamiltonian Monte Carlo), or by draws of the prior",
    )
    move_steps: int = Field(5, ge=1, le=2**10, description="of a row's latents before each step: up for a table, leapfrogs of hmc")
    path: Path = Field(Path.TOP_DOWN, description="order in which q draws several levels: top-down, ladder or bottom-up")
    prior: str = Field(
        "normal",
        description="p(z), of the top level: normal, mixture, vamp, categorical (`latents` variables, one-hot side by side in z), "
        "or a family that learns by gradients, such as realnvp or nsf:layers=2",
    )
    prior_components: int = Field(16, ge=1, le=2**16, description="of a mixture, or pseudo-inputs of a VampPrior")
    pseudo_inputs: Literal["learned", "kept"] = Field("learned", description="of a VampPrior: whether they move, or stay training rows")
    categories: int = Field(10, ge=2, le=2**14, description="of each variable of a categorical prior")
    temperature: float = Field(
        1.0,
        gt=0,
        le=1e3,
        description="of the slope of a categorical draw (Gumbel-softmax, straight through); low: less bias, more noise",
    )
    posterior: Literal["diagonal", "full", "student", "flow"] = Field(
        "diagonal",
        description="q of each level: normal with independent or with coupled units, Student's t, inverse autoregressive flow",
    )
    posterior_steps: int = Field(2, ge=1, le=2**6, description="transforms of a posterior that is a flow")
    widths: Widths = Field((256, 256), description="hidden widths of the encoder; the decoder's are the same, reversed")
    imputation: Literal["importance", "gibbs", "pseudo-gibbs"] = Field(
        "importance",
        description="missing cells by weighted draws of q, or a chain of twice as many steps that corrects q or, pseudo-gibbs, trusts it",
    )
    dropout: float = Field(0.2, ge=0, lt=1, description="share of hidden units dropped while training")
    tilts: int = Field(4, ge=0, description="cosines that tilt a count's probabilities; 0: a free logit for every value")
    gates: bool = Field(False, description="whether conditions scale what z does in the decoder, or only shift it")
    learning_rate: float = Field(2e-3, gt=0)
    batch_size: int = Field(64, ge=1)
    patience: int = Field(50, ge=1, description="epochs without a better held-out loss before stopping")
    ema: float | None = Field(0.99, gt=0, lt=1, description="decay of the weights' moving average; None: no average")

    @property
    def surrogate(self) -> bool:
        """Latents that are kept for each row are climbed, and no bound."""
        return self.inference in ("table", "hmc") or super().surrogate

    @property
    def compiles(self) -> bool:
        """Not with latents that are looked up and moved."""
        return self.inference in ("encoder", "prior") and super().compiles

    def _build(self, domain: Domain, context: Domain | None) -> VAE:
        """The untrained model."""
        if self.path is not Path.TOP_DOWN and not self.higher_latents:
            raise OptionError(f"path={self.path.value!r} orders several levels: give higher_latents, the widths of those above z")
        if self.gates and context is None:
            raise OptionError("gates=True scales what z does by conditions: give given, the columns that are")
        self._refuse_parts_that_do_not_fit()
        *lower, top = (self.latents or max(2, round(2 * len(domain) ** 0.5)), *self.higher_latents)
        laws = [*map(self._law, lower), self._top_law(top)]
        sizes = [law.latents for law in laws]
        width = 0 if context is None else len(context)
        columns = Columns([default_law(v) for v in domain.variables])
        widths = self.widths[::-1]
        decoder = Decoder(sum(sizes), columns, context=width, widths=widths, dropout=self.dropout, tilts=self.tilts, gated=self.gates)
        links = [Link(sum(sizes[level + 1 :]), size, widths, self.dropout) for level, size in enumerate(sizes[:-1])]
        inference = self._inference(domain, laws, width)
        generative = Generative(self._prior(sizes[-1], inference), decoder, links)
        posterior = Weighted(self.draws) if self.imputation == "importance" else Chain(self.draws, self.imputation == "gibbs")
        by, k = self._learning(), self.loss_draws
        return VAE(generative, inference, domain, context, draws=self.draws, objective=by, loss_draws=k, posterior=posterior)

    def _refuse_parts_that_do_not_fit(self) -> None:
        """Raises OptionError."""
        for name, part, chosen in PARTS:
            value, default = getattr(self, name), self._default(name)
            if value != default and getattr(self, part) not in chosen:
                fits = " or ".join(f"{part}={one!r}" for one in chosen)
                raise OptionError(f"{name}={value!r} is for {fits}: {part}={getattr(self, part)!r} takes {default!r}")
        if self.inference != "encoder":
            self._refuse_what_needs_an_encoder()
        if self.posterior != "diagonal":
            if self.path is Path.LADDER:
                raise OptionError(f"a ladder multiplies normal laws with independent units: posterior='diagonal', not {self.posterior!r}")
            if self.prior == "vamp":
                raise OptionError(f"prior='vamp' mixes normal laws with independent units: posterior='diagonal', not {self.posterior!r}")
            if self.prior == "categorical" and not self.higher_latents:
                raise OptionError(f"posterior={self.posterior!r} is of continuous latents: prior='categorical' of one level has none")
        if self.prior == "categorical" and self.gradient == "dreg":
            raise OptionError("gradient='dreg' follows draws that move smoothly: prior='categorical' takes 'plain'")

    def _refuse_what_needs_an_encoder(self) -> None:
        """Raises OptionError."""
        if self.prior in ("vamp", "categorical"):
            why = "asks q about its pseudo-inputs" if self.prior == "vamp" else "has no slope to climb"
            raise OptionError(f"prior={self.prior!r} {why}: inference='encoder', not {self.inference!r}")
        if self.inference == "prior" and (self.objective, self.gradient) != ("iwae", "plain"):
            raise OptionError("inference='prior' has weights that only objective='iwae' climbs, and loss_draws of them, many")
        if self.inference != "prior" and (super()._learning(), self.loss_draws) != (PLAIN, 1):
            raise OptionError(f"inference={self.inference!r} climbs log p(x, z) at one z a row: objective and its options stay as they are")

    def _learning(self) -> Learning:
        """log p(x, z) where latents are kept for each row."""
        return Joint() if self.inference in ("table", "hmc") else super()._learning()

    def _inference(self, domain: Domain, laws: list[LatentLaw], context: int) -> Inference:
        """q, untrained."""
        latents = sum(law.latents for law in laws)
        match self.inference:
            case "encoder":
                return Encoder(domain, laws, context=context, widths=self.widths, dropout=self.dropout, path=self.path)
            case "table":
                return Table(latents, Climb(self.move_steps))
            case "hmc":
                return Table(latents, Hamiltonian(self.move_steps))
            case "prior":
                return FromPrior()

    def _law(self, latents: int) -> LatentLaw:
        """q of a level."""
        match self.posterior:
            case "diagonal":
                return Diagonal(latents)
            case "full":
                return Full(latents)
            case "student":
                return StudentT(latents)
            case "flow":
                return Flow(latents, steps=self.posterior_steps)

    def _top_law(self, latents: int) -> LatentLaw:
        """q of the top level: of the prior's make."""
        if self.prior == "categorical":
            return Categorical(latents, self.categories, temperature=self.temperature)
        return self._law(latents)

    def _prior(self, latents: int, inference: Inference) -> Prior:
        """The untrained prior."""
        if self.prior == "categorical":
            return CategoricalPrior(latents // self.categories, self.categories)
        if self.prior == "normal":
            return StandardNormal(latents)
        if self.prior == "mixture":
            return Mixture(latents, self.prior_components)
        if isinstance(inference, Encoder) and self.prior == "vamp":
            if self.path is Path.BOTTOM_UP and self.higher_latents:
                raise OptionError(
                    "prior='vamp' asks q for the top level alone: path='bottom-up' draws the others first, take path='top-down'"
                )
            return Vamp(latents, self.prior_components, inference, learned=self.pseudo_inputs == "learned")
        return ModelPrior(_by_gradients(self.prior).build(Domain.real(latents)))

    @field_validator("prior")
    @classmethod
    def _is_a_prior(cls, name: str) -> str:
        if name not in _PRIORS:
            _by_gradients(name)
        return name


def _by_gradients(name: str) -> GradientConfig:
    """The options of a family that can be learned with the rest.

    Raises:
        ValueError: there is no such family, or it is none of real variables that learns by gradients.
    """
    try:
        config = family(name).configure({})
    except PofxError as error:
        raise ValueError(f"a prior is {', '.join(_PRIORS)} or a family: {error}") from None
    if not isinstance(config, GradientConfig) or config.takes is not Takes.REALS or config.images:
        raise ValueError(f"{name!r} does not learn a law of real vectors by gradients, with the decoder: take mixture, or a flow")
    return config
