"""M2: a VAE with one more latent, a class y, which some rows show and others do not."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from pofx.distributions.choose import default_law
from pofx.distributions.columns import Columns
from pofx.distributions.discrete import Categorical
from pofx.domain import Domain
from pofx.errors import DataError, OptionError
from pofx.models.base import GradientConfig, Model, Takes, Widths, labelled
from pofx.models.latent.inference import FARTHEST, proposed_terms
from pofx.models.latent.predictive import Predictive, centre, predictive
from pofx.models.latent.vae import VAE, VAEConfig
from pofx.nets.features import Features
from pofx.nets.mlp import MLP
from pofx.objectives.elbo import log_weights
from pofx.types import Context, Generator, Kind, Latent, Nats, Point, X

LogClasses = Float[Tensor, "N K"]
Bound = Callable[[Tensor, Tensor], Tensor]  # of pairs (row, class)

TAUGHT = 128  # rows that show y, of each step


class Classifier(nn.Module):
    """q(y | x) of K classes: one network that sees x standardised, and which cells it lacks.

    Args:
        domain: what x is.
        classes: K.
        widths: hidden widths.
        dropout: share of hidden units dropped while training.
    """

    def __init__(self, domain: Domain, classes: int, *, widths: tuple[int, ...] = (256, 256), dropout: float = 0.0) -> None:
        super().__init__()
        self.features = Features(domain).to(torch.get_default_dtype())
        self.net = MLP(self.features.width, classes, widths, dropout=dropout)
        self.register_buffer("at", torch.arange(len(domain)), persistent=False)  # of a marginal: where its variables stand

    def forward(self, x: Tensor) -> Tensor:
        """log q(y | x) of rows (N, D), (N, K)."""
        whole = x.new_full((len(x), len(self.features.masked)), torch.nan).index_copy(1, self.get_buffer("at"), x)
        logits: Tensor = self.net(self.features(whole).clamp_(-FARTHEST, FARTHEST))
        return logits.log_softmax(-1)

    def marginal(self, keep: Sequence[int]) -> "Classifier":
        """The same network, fed with NaN for every variable but those."""
        part = Classifier.__new__(Classifier)
        nn.Module.__init__(part)
        part.features, part.net = self.features, self.net
        part.register_buffer("at", self.get_buffer("at")[list(keep)], persistent=False)
        return part


class M2(Model):
    """p(x, y) = p(y) p(x | y), p(x | y) = integral of p(x | z, y) p(z) dz: y is a column of the table, NaN where it is not known.

        row with y       climbs  log p(y) + ELBO(x | y)
        row without y    climbs  sum_y q(y | x) (log p(y) + ELBO(x | y) - log q(y | x))
        every row        climbs  alpha mean log q(y | x) over the training rows that show y

    The sum over y is taken in full, all classes in one pass of the networks. The last line is what labels teach the classifier: in all,
    alpha N / N_y times log q(y | x) of each of N_y rows, as in the source; but every step takes 128 of those rows at most, whatever
    its batch shows, so that few labels are no rare and huge steps. Held-out rows are judged by the first two: a true bound on log p
    of what they show. p(y) is learned, from the frequencies of the rows that show it on.

    log_prob is log p(y) plus the importance-weighted bound of the inner model, or the log of its sum over classes. What is
    missing in x is integrated out as the inner model does it; p(y | x), imputations and conditionals weigh classes and draws of z by
    p(x, y, z) / q(z | x, y). `classify` of y is q(y | x), which labels teach directly and which costs one pass of one network. A wide z can
    say what y should: for classes, take few latents. The code of a row
    is the mean of z and q(y | x), or the y that it shows, one-hot: z decoded beside another y keeps the manner and changes the class.

    A table without levels has one class, which no column shows; then this is its VAE.

    Costs: K times those of a VAE for rows without y.

    Source: Kingma, Rezende, Mohamed and Welling, "Semi-supervised learning with deep generative models", NeurIPS 2014,
    arXiv:1406.5298, Eqs. 6 to 9.

    Args:
        inner: p(x | y), y one-hot.
        classifier: q(y | x).
        domain: what x and y are.
        label: where y stands; the number of variables: nowhere.
        alpha: the weight of log q(y | x).
    """

    density = Kind.BOUND
    missing = Kind.BOUND
    rows_at_once = 512  # each of which may be as many pairs as there are classes

    taught: Tensor  # the training rows that show y

    def __init__(self, inner: VAE, classifier: Classifier, domain: Domain, label: int, *, alpha: float = 1.0) -> None:
        super().__init__(domain)
        classes = 0 if inner.context is None else len(inner.context)
        self.inner, self.classifier, self.label, self.alpha = inner, classifier, label, alpha
        self.rest = [d for d in range(len(domain)) if d != label]
        self.logits = nn.Parameter(torch.zeros(classes))
        self.columns = Columns([Categorical(classes) if d == label else default_law(v) for d, v in enumerate(domain.variables)])
        self.register_buffer("taught", torch.zeros(0, len(domain)), persistent=False)

    @property
    def one_hot(self) -> Float[Tensor, "K K"]:
        """Each class as the condition of the inner model, in the dtype of the weights."""
        return torch.eye(len(self.logits)).to(self.logits)

    # -- learning ----------------------------------------------------------------------------------

    def initialise(self, x: X, c: Context | None = None) -> None:
        """p(y) at the frequencies of its levels, one row added to each; the inner model as it does."""
        rest, y = self._parts(x)
        known = y[~y.isnan()]
        if not len(known) and self.label < len(self.domain):
            raise DataError(f"no training row shows {self.domain.names[self.label]!r}: the label of m2 must be known somewhere")
        with torch.no_grad():
            counts = torch.bincount(known.long(), minlength=len(self.logits)) + 1
            self.logits.copy_(counts.to(self.logits).log())
        self.taught = x[~y.isnan()].to(self.logits.dtype)
        self.classifier.features.fit(rest.to(self.logits))
        self.inner.initialise(rest)

    def loss(self, x: X, c: Context | None = None, *, generator: Generator = None) -> Nats:
        """In training what is descended; else minus the true bound."""
        rest, y = self._parts(x.to(self.logits.dtype))
        bounds = self._each(rest, y, lambda row, k: -self.inner.loss(rest[row], self.one_hot[k], generator=generator))
        log_q = self.classifier(rest)
        known = y.isfinite()
        w = torch.where(known[:, None], self._shown(y), log_q.exp())
        # A class that a row rules out has no bound, and weight 0.
        bound = (w * bounds.where(bounds.isfinite(), 0.0)).sum(-1)
        entropy = torch.where(known, 0.0, -(log_q.exp() * log_q).sum(-1))
        return -(bound + entropy + (self.alpha * self._labels(generator) if self.training else 0.0))

    def _labels(self, generator: Generator) -> Tensor:
        """Mean log q(y | x) of rows that show y, ()."""
        if not len(self.taught):
            return self.logits.new_zeros(())
        some = torch.randperm(len(self.taught), generator=generator, device=self.taught.device)[:TAUGHT]
        rest, y = self._parts(self.taught[some])
        return self.classifier(rest).gather(1, y.long()[:, None]).mean()

    # -- density -----------------------------------------------------------------------------------

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self._log_prob_and_error(x, c, generator)[0]

    def _log_prob_and_error(self, x: X, c: Context | None, generator: Generator) -> tuple[Nats, Nats]:
        """log sum_k p(y = k) p(x | y = k) over the classes that y allows; the error of a sum of independent estimates."""
        joint, errors = self._log_joint(*self._parts(x), generator)
        share = joint.softmax(-1).nan_to_num(0.0)  # where every class is ruled out
        return joint.logsumexp(-1), (share * errors).square().sum(-1).sqrt()

    def _log_joint(self, rest: Tensor, y: Tensor, generator: Generator) -> tuple[LogClasses, LogClasses]:
        """log p(x, y = k), -inf for classes that y rules out, and its error."""
        errors = self.logits.new_zeros(len(rest), len(self.logits))

        def bound(row: Tensor, k: Tensor) -> Tensor:
            value, errors[row, k] = self.inner.log_prob_and_error(rest[row].to(errors), self.one_hot[k], generator=generator)
            return value

        return self._each(rest, y, bound), errors

    def _each(self, rest: Tensor, y: Tensor, bound: Bound) -> LogClasses:
        """log p(y = k) + bound on log p(x | y = k), (N, K), from one call with all pairs (row, k) that y allows; -inf elsewhere."""
        row, k = self._allowed(y).nonzero(as_tuple=True)
        log_joint = bound(row, k) + self.logits.log_softmax(0)[k]
        return log_joint.new_full((len(rest), len(self.logits)), -math.inf).index_put((row, k), log_joint)

    def _allowed(self, y: Tensor) -> Tensor:
        """Which classes y allows, (N, K)."""
        return y.isnan()[:, None] | (self._shown(y) > 0)

    def _shown(self, y: Tensor) -> Tensor:
        """y one-hot, (N, K); zeros where it is NaN or no class."""
        return (y[:, None] == torch.arange(len(self.logits), device=y.device)).to(self.logits)

    # -- draws and codes ---------------------------------------------------------------------------

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        p = self.logits.softmax(0).expand(max(n, 1), -1)
        y = torch.multinomial(p, 1, generator=generator)[:n, 0]
        return self._joined(self.inner._sample(n, self.one_hot[y], generator), y)

    @labelled(Kind.ESTIMATE)
    def _classify(self, x: X, d: int, generator: Generator) -> Tensor:
        """q(y | x); of another variable, by the bounds."""
        if d != self.label:
            return super()._classify(x, d, generator)
        return self.classifier(self._parts(x.to(self.logits.dtype))[0]).exp()

    @labelled(Kind.ESTIMATE)
    def _encode(self, x: X, c: Context | None) -> Latent:
        """The mean of q(z | x, y), averaged over q(y | x) where y is not shown, and the weights of that average."""
        rest, y = self._parts(x.to(self.logits.dtype))
        w = torch.where(y.isnan()[:, None], self.classifier(rest).exp(), self._shown(y))
        means = [self.inner._encode(rest, k.expand(len(rest), -1)) for k in self.one_hot]
        return torch.cat((torch.einsum("nk,knl->nl", w, torch.stack(means)), w), dim=-1)

    def _decode(self, z: Latent, c: Context | None) -> X:
        """The centre of p(x | z, y) at the likeliest y."""
        of_z, w = z.to(self.logits).split([z.shape[-1] - len(self.logits), len(self.logits)], dim=-1)
        y = w.argmax(-1)
        return self._joined(self.inner._decode(of_z, self.one_hot[y]), y)

    # -- the posterior -----------------------------------------------------------------------------

    @labelled(Kind.BOUND)
    def _marginal(self, keep: tuple[int, ...]) -> Model:
        within = [self.rest.index(d) for d in keep if d != self.label]
        domain = self.domain.select(keep)
        if not within:
            return Predictive(domain, Columns([Categorical(len(self.logits))]), self.logits.detach()[None], self.logits.new_zeros(1))
        label = keep.index(self.label) if self.label in keep else len(keep)
        part = M2(self.inner.marginal(within), self.classifier.marginal(within), domain, label, alpha=self.alpha)  # type: ignore[arg-type]
        part.logits = self.logits
        return part.train(self.training)

    @labelled(Kind.ESTIMATE)
    def _conditional(self, evidence: Point) -> Predictive:
        with torch.no_grad():
            log_w, parameters = self._weighed_draws(evidence[None], max(1, self.inner.posterior_draws // len(self.logits)), None)
        return predictive(self.domain, self.columns, parameters[:, 0], log_w[:, 0], evidence.to(parameters))

    @labelled(Kind.ESTIMATE)
    def _impute(self, x: X, generator: Generator) -> X:
        filled = [centre(self.columns, self.domain, parameters, log_w.softmax(0)) for log_w, parameters in self._posteriors(x, generator)]
        return torch.where(x.isnan(), torch.cat(filled).to(x), x)

    @labelled(Kind.ESTIMATE)
    def _complete(self, x: X, generator: Generator) -> X:
        drawn = []
        for log_w, parameters in self._posteriors(x, generator):
            chosen = torch.multinomial(log_w.softmax(0).T, 1, generator=generator)[:, 0]
            one_each = parameters[chosen, torch.arange(len(chosen), device=chosen.device)]
            drawn.append(self.columns.sample(one_each, generator=generator))
        return torch.where(x.isnan(), torch.cat(drawn).to(x), x)

    def _posteriors(self, x: Tensor, generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """`_weighed_draws` of a few rows at a time."""
        draws = max(1, self.inner.draws // len(self.logits))
        size = max(1, self.inner.values_at_once // (draws * len(self.logits) * max(1, self.columns.width)))
        for rows in x.split(size):
            yield self._weighed_draws(rows, draws, generator)

    def _weighed_draws(self, x: Tensor, draws: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draws of (y, z) for each of N rows, S = classes x draws: log-weights (S, N), and the parameters of x and y (S, N, P)."""
        rest, y = self._parts(x.to(self.logits.dtype))
        n, classes = len(x), len(self.logits)
        k = torch.arange(classes, device=x.device).repeat_interleave(n)  # all rows under one class, then under the next
        c = self.one_hot[k]
        terms = proposed_terms(self.inner.generative, self.inner.inference, rest.repeat(classes, 1), c, draws, generator=generator)
        possible = torch.where(self._allowed(y), 0.0, -math.inf) + self.logits.log_softmax(0)
        log_w = log_weights(terms) + possible.T.flatten()
        of_x = self.inner.generative.parameters_at(terms.latents, c)
        parameters = of_x.new_zeros(*of_x.shape[:-1], self.columns.width)
        _, at_x = self.columns.select(self.rest)
        _, at_y = self.columns.select([d for d in range(len(self.domain)) if d == self.label])
        parameters[..., at_x] = of_x
        parameters[..., at_y] = c.log()[:, : len(at_y)]  # a y that stands nowhere takes none
        return log_w.view(-1, n), parameters.view(draws * classes, n, -1)

    # -- columns -----------------------------------------------------------------------------------

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x without y, and y (N,), NaN where it stands nowhere."""
        y = torch.cat((x, x.new_full((len(x), 1), math.nan)), dim=1)[:, self.label]
        return x[:, self.rest], y

    def _joined(self, rest: Tensor, y: Tensor) -> Tensor:
        """x and y in the order of the domain."""
        x = rest.new_zeros(*rest.shape[:-1], len(self.domain) + 1)
        x[..., self.rest] = rest
        x[..., self.label] = y.to(x)
        return x[..., : len(self.domain)]


class M2Config(GradientConfig):
    """Options of M2."""

    takes = Takes.SCALED
    cites = (
        "@inproceedings{kingma2014semi, title={Semi-supervised learning with deep generative models}, "
        "author={Kingma, Diederik P. and Rezende, Danilo J. and Mohamed, Shakir and Welling, Max}, "
        "booktitle={Advances in Neural Information Processing Systems}, year={2014}}",
    )
    space: ClassVar = {
        "latents": (2, 4, 8, 16, 32),
        "widths": ((64,), (64, 64), (256, 256), (512, 512)),
        "dropout": (0.0, 0.1, 0.2, 0.3),
        "alpha": (0.01, 0.1, 1.0),
    }

    label: str | None = Field(None, description="the column of levels that is y, empty where not known; None: the last one of levels")
    alpha: float = Field(1.0, ge=0, le=1e6, description="weight of -log q(y | x), of the rows that show y in the mean")
    latents: int | None = Field(None, ge=1, le=2**14, description="width of z; None: 2 sqrt(D)")
    widths: Widths = Field((256, 256), description="hidden widths of encoder and classifier; the decoder's are the same, reversed")
    draws: int = Field(128, ge=1, description="draws of q behind a log_prob of each class, and, over all classes, of an imputation")
    dropout: float = Field(0.2, ge=0, lt=1, description="share of hidden units dropped while training")
    learning_rate: float = Field(2e-3, gt=0)
    batch_size: int = Field(64, ge=1)
    patience: int = Field(50, ge=1, description="epochs without a better held-out loss before stopping")
    ema: float | None = Field(0.99, gt=0, lt=1, description="decay of the weights' moving average; None: no average")

    @property
    def surrogate(self) -> bool:
        """Rows that show y teach the classifier as well."""
        return self.alpha > 0

    def _build(self, domain: Domain, context: Domain | None) -> M2:
        """The untrained model."""
        label = self._place(domain)
        classes = (*(len(v.levels) for v in domain.variables), 1)[label]
        rest = domain.select([d for d in range(len(domain)) if d != label])
        inner = VAEConfig(latents=self.latents, widths=self.widths, draws=self.draws, dropout=self.dropout, gates=True)
        classifier = Classifier(rest, classes, widths=self.widths, dropout=self.dropout)
        return M2(inner._build(rest, Domain.real(classes)), classifier, domain, label, alpha=self.alpha)

    def _place(self, domain: Domain) -> int:
        """Where y stands; after the last variable: nowhere.

        Raises:
            OptionError: the column is unknown or has no levels, or nothing stands beside it.
        """
        levelled = [d for d, v in enumerate(domain.variables) if v.levels]
        if self.label is None:
            return levelled[-1] if levelled and len(domain) > 1 else len(domain)
        label = domain.index(self.label)
        if label not in levelled:
            raise OptionError(f"the label of m2 is a column of levels, but {self.label!r} is {domain.variables[label].kind}")
        if len(domain) == 1:
            raise OptionError(f"the label {self.label!r} stands alone: m2 learns what the other columns are given it")
        return label
