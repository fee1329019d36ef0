"""A mixture of normals: questions in closed form, learned by regularised EM from rows with holes."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pofx.distributions.drawing import draw, draw_per_row
from pofx.distributions.gaussian import DiagonalGaussians, Gaussians, LogWeights, Moments, Normals, Prior, data_variance, normals
from pofx.domain import Domain
from pofx.errors import DataError
from pofx.events import Condition
from pofx.models.base import FamilyConfig, FullBatch, Model, labelled
from pofx.models.classical.gaussian_em import Mixture, QuadraticEStep, expectation_maximisation
from pofx.models.classical.kmeans import partition
from pofx.types import Context, Generator, Kind, Latent, Nats, Point, X

Shape = Literal["full", "tied", "diagonal", "spherical"]

_LADDER = (1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200)  # numbers of components, tried upwards
_MOST_VARIABLES_IN_QUADRATIC_FORM = 32
_MOST_VARIABLES_FOR_FULL = 128  # "auto" tries no K matrices of D x D above


class GaussianMixture(Model, FullBatch):
    """p(x) = Σ_k π_k N(x | μ_k, Σ_k).

    Marginals and conditionals are mixtures of normals again. With missing entries EM uses the exact conditional
    moments, valid when they are missing at random. A code is the responsibilities p(k | x). The mode is the best
    of one ascent from each component, so its density is a lower bound on the maximum.

    Cost: O(N K D²) an EM step for full covariances, O(N K D) for diagonal ones.

    Source: Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm", Journal of the
    Royal Statistical Society B 39(1), 1977.

    Args:
        domain: what x is, real variables.
        config: the options.
    """

    missing = Kind.EXACT
    grows = frozenset({"log_weight", "mu", "spread"})

    def __init__(self, domain: Domain, config: "GaussianMixtureConfig") -> None:
        super().__init__(domain)
        self.config = config
        d = len(domain)
        self.register_buffer("log_weight", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("mu", torch.zeros(1, d, dtype=torch.float64))
        self.register_buffer("spread", torch.ones(1, 1, 1, dtype=torch.float64))

    @property
    def components(self) -> Normals:
        """The normals."""
        return normals(self.mu, self.spread)

    # -- learning ----------------------------------------------------------------------------------

    def steps(self, x: Tensor, *, holdout: Tensor | None = None, generator: Generator = None) -> Iterator[float]:
        """EM for one candidate after another; yield the mean log-likelihood of x after each step.

        What the options leave open is searched a dimension at a time: for each shape of covariance the number of
        components, from one up, until two in a row score no better; then the rows of the prior. The score is the
        held-out log-likelihood, or BIC. Between candidates the model holds the best so far.

        Raises:
            DataError: there are fewer rows than components.
        """
        x, config = x.to(self.mu), self.config
        if (config.components or 1) > len(x):
            raise DataError(f"gmm with components={config.components} needs at least as many rows, got {len(x)}")
        scored = holdout is not None and len(holdout) > 0 and config.criterion == "holdout"
        search = _Search(self._hold, _Training(x, config, generator), holdout.to(x) if scored and holdout is not None else None)
        for shape in config.shapes(len(self.domain)):
            usual, *others = config.firmness(shape, len(self.domain))
            yield from search.walk([_Candidate(shape, k, usual[0]) for k in config.ladder(len(x))], patience=2)
            for path in others if scored else ():
                yield from search.refine(shape, path)

    def _hold(self, mixture: Mixture) -> None:
        self.log_weight, self.mu, self.spread = mixture.log_weight, mixture.components.mean, mixture.components.spread

    # -- asking ------------------------------------------------------------------------------------

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self._joint(x).logsumexp(-1)

    def _joint(self, x: X) -> Tensor:
        """log π_k + log N(x | μ_k, Σ_k), (N, K)."""
        return self.log_weight + self.components.log_prob(x.to(self.mu))

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        which = draw(self.log_weight.exp(), n, generator=generator)
        return self.components.sample(which, generator=generator)

    def _sub(self, keep: Sequence[int], components: Normals, log_weight: Tensor) -> "GaussianMixture":
        other = GaussianMixture(self.domain.select(keep), self.config)
        other._hold(Mixture(components, log_weight))
        return other

    def _marginal(self, keep: tuple[int, ...]) -> "GaussianMixture":
        return self._sub(keep, self.components.marginal(keep), self.log_weight)

    def _conditional(self, evidence: Point) -> "GaussianMixture":
        evidence = evidence.to(self.mu)
        weight = self._joint(evidence[None])[0].log_softmax(-1)
        return self._sub(evidence.isnan().nonzero()[:, 0].tolist(), self.components.conditional(evidence), weight)

    def answers(self, question: str, seen: Sequence[int] = ()) -> Kind:
        """The probability of intervals is closed for one variable, or where the components are diagonal."""
        open_ = question == "log_chance" and not self.components.sums_over(seen)
        return Kind.NONE if open_ else super().answers(question, seen)

    def _log_chance(self, conditions: Mapping[int, Condition]) -> float:
        return float((self.log_weight.log_softmax(-1) + self.components.log_chance(conditions)).logsumexp(-1))

    def _mean(self) -> Point:
        return self.log_weight.softmax(-1) @ self.mu

    @labelled(Kind.BOUND)
    def _mode(self, evidence: Point) -> Point:
        missing = evidence.isnan()
        if not missing.any():
            return evidence.to(self.mu)
        law = self if missing.all() else self._conditional(evidence)
        x = evidence.to(self.mu).clone()
        x[missing] = law._climb()
        return x

    def _climb(self) -> Point:
        """The highest of the points that fixed-point steps reach from each component's mean."""
        x = self.mu
        for _ in range(self.config.mode_steps):
            before, x = x, self.components.uphill(self._joint(x).softmax(-1))
            if torch.allclose(x, before, rtol=1e-10, atol=1e-12):
                break
        return x[self._joint(x).logsumexp(-1).argmax()]

    def _impute(self, x: X, generator: Generator) -> X:
        return self.components.fill(x.to(self.mu), self.log_weight)

    def _complete(self, x: X, generator: Generator) -> X:
        which = draw_per_row(self._joint(x).softmax(-1), generator=generator)
        return self.components.complete(x.to(self.mu), which, generator=generator)

    def _encode(self, x: X, c: Context | None) -> Latent:
        return self._joint(x).softmax(-1)

    def _cluster(self, x: X, c: Context | None, generator: Generator) -> Tensor:
        return self._encode(x, c)


class GaussianMixtureConfig(FamilyConfig):
    """Options of `gmm`."""

    cites: ClassVar[tuple[str, ...]] = (
        "@article{dempster1977maximum, title={Maximum likelihood from incomplete data via the {EM} algorithm}, "
        "author={Dempster, Arthur P. and Laird, Nan M. and Rubin, Donald B.}, "
        "journal={Journal of the Royal Statistical Society: Series B}, volume={39}, number={1}, pages={1--38}, year={1977}}",
        "@article{fraley2007bayesian, title={Bayesian regularization for normal mixture estimation and model-based clustering}, "
        "author={Fraley, Chris and Raftery, Adrian E.}, journal={Journal of Classification}, volume={24}, pages={155--181}, year={2007}}",
    )
    space: ClassVar[dict[str, tuple[Any, ...]]] = {
        "components": (1, 2, 5, 10, 20, 50),
        "covariance": ("spherical", "diagonal", "tied", "full"),
        "prior_rows": (0.1, 1.0, 10.0),
    }

    components: int | None = Field(None, ge=1, description="K; None: chosen by the criterion")
    covariance: Literal["auto", "full", "tied", "diagonal", "spherical"] = Field(
        "auto", description="shape of the Σ_k; auto: full or diagonal, by the criterion"
    )
    criterion: Literal["holdout", "bic"] = Field("holdout", description="what chooses; bic where no rows are held out")
    prior_rows: float | None = Field(
        None, ge=0, description="rows of independent variables that each component's prior counts for; None: by held-out score"
    )
    restarts: int = Field(5, ge=1, description="seedings by k-means++ of which the best starts EM")
    steps: int = Field(100, ge=1, description="EM steps at most, a candidate")
    tolerance: float = Field(1e-3, ge=0, description="EM stops when a step gains less, in nats a row")
    precision: Literal["float64", "float32"] = Field("float64", description="of EM's large products on complete rows; the rest is float64")
    mode_steps: int = Field(500, ge=1, description="fixed-point steps at most towards the mode")

    def _build(self, domain: Domain, context: Domain | None) -> GaussianMixture:
        """One standard normal, untrained."""
        return GaussianMixture(domain, self)

    def shapes(self, dim: int) -> tuple[Shape, ...]:
        """The shapes of covariance to try."""
        if self.covariance != "auto":
            return (self.covariance,)
        return ("full", "diagonal") if dim <= _MOST_VARIABLES_FOR_FULL else ("diagonal",)

    def ladder(self, rows: int) -> tuple[int, ...]:
        """The numbers of components to try."""
        return (self.components,) if self.components is not None else tuple(k for k in _LADDER if k == 1 or 2 * k <= rows)

    def firmness(self, shape: Shape, dim: int) -> tuple[tuple[float, ...], ...]:
        """Rows of the prior: the usual, then looser and looser ones, then firmer ones."""
        if self.prior_rows is not None:
            return ((self.prior_rows,),)
        if shape in ("diagonal", "spherical"):  # one number to learn a variable, however many variables there are
            return (1.0,), (0.3, 0.1), (3.0, 10.0)
        return (0.3 * dim,), (0.1 * dim, 0.03 * dim, 0.01 * dim), (dim, 3.0 * dim)


# -- learning one candidate, and choosing among them -----------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    shape: Shape
    components: int
    prior_rows: float

    def free_numbers(self, dim: int) -> int:
        """How many numbers are learned: the p of BIC."""
        covariances = {"full": self.components * dim * (dim + 1) // 2, "tied": dim * (dim + 1) // 2, "diagonal": self.components * dim}
        return self.components - 1 + self.components * dim + covariances.get(self.shape, self.components)


class _Training:
    """The rows, and what every candidate's EM on them shares."""

    def __init__(self, x: Tensor, config: GaussianMixtureConfig, generator: Generator) -> None:
        self.x, self.config, self.generator = x, config, generator
        self.variance = data_variance(x)
        self.filled = _filled(x, self.variance)
        self._parts: dict[int, Tensor] = {}

    @cached_property
    def _e_step(self) -> Callable[[Normals, LogWeights], Moments]:
        if self.x.shape[1] > _MOST_VARIABLES_IN_QUADRATIC_FORM or bool(self.x.isnan().any()):
            return lambda components, log_weight: components.expect(self.x, log_weight)
        return QuadraticEStep(self.x, torch.float32 if self.config.precision == "float32" else torch.float64)

    def learn(self, candidate: _Candidate) -> Iterator[Mixture]:
        """EM from the best of several partitions of the rows."""
        n, k = len(self.x), candidate.components
        blank, part = _blank(candidate.shape, self.filled.mean(0), k), self._part(k)
        prior = Prior(max(candidate.prior_rows, 1e-9 * n), self._within(part, k))
        moments = self._partitioned(blank, part)
        start = Mixture(blank.maximise(moments, prior), moments.log_weight)
        return expectation_maximisation(start, n, self._e_step, prior, steps=self.config.steps, tolerance=self.config.tolerance)

    def _partitioned(self, blank: Normals, part: Tensor) -> Moments:
        """The moments of a hard partition of the rows, about the means of the blank components."""
        k = len(blank.mean)
        centred = self.filled - blank.mean[0]
        first = torch.zeros_like(blank.mean).index_add_(0, part, centred)
        if isinstance(blank, Gaussians):
            second = torch.stack([centred[part == j].T @ centred[part == j] for j in range(k)])
        else:
            second = torch.zeros_like(blank.mean).index_add_(0, part, centred.square())[..., None]
        return Moments(torch.bincount(part, minlength=k).to(first), first, second, -math.inf)

    def _within(self, part: Tensor, k: int) -> Tensor:
        """The variance of each variable inside the parts, what the prior expects of a component; of the data at least 1/1000."""
        total = self.x.new_zeros(k, self.x.shape[1]).index_add_(0, part, self.filled)
        means = total / torch.bincount(part, minlength=k).clamp_min(1)[:, None]
        return torch.maximum((self.filled - means[part]).square().mean(0), 1e-3 * self.variance)

    def _part(self, k: int) -> Tensor:
        if k not in self._parts:  # shapes and priors are compared from the same partition
            scaled = self.filled / self.variance.sqrt()
            self._parts[k] = partition(scaled, k, restarts=self.config.restarts, generator=self.generator)
        return self._parts[k]


class _Search:
    """Walks along candidates and holds the best.

    Args:
        hold: takes the best mixture so far.
        training: learns a candidate.
        holdout: rows that score it; None: BIC does.
    """

    def __init__(self, hold: Callable[[Mixture], None], training: _Training, holdout: Tensor | None) -> None:
        self.hold, self.training, self.holdout = hold, training, holdout
        self.best, self.score = _Candidate("full", 0, 0.0), -math.inf

    def walk(self, candidates: Iterable[_Candidate], *, patience: int, above: float = -math.inf) -> Iterator[float]:
        """Learn one after another until `patience` in a row are below the walk's best; yield log-likelihoods on the way."""
        worse = 0
        for candidate in candidates:
            for mixture in self.training.learn(candidate):
                if self.score == -math.inf:
                    self.hold(mixture)
                yield mixture.log_likelihood
            score = self._score(candidate, mixture)
            worse, above = (0, score) if score > above else (worse + 1, above)
            if score > self.score:
                self.best, self.score = candidate, score
                self.hold(mixture)
            if worse == patience:
                return

    def refine(self, shape: Shape, path: Sequence[float]) -> Iterator[float]:
        """Walk along priors from the best candidate, if it is of this shape."""
        if self.best.shape == shape:
            yield from self.walk([replace(self.best, prior_rows=rows) for rows in path], patience=1, above=self.score)

    def _score(self, candidate: _Candidate, mixture: Mixture) -> float:
        """Mean held-out nats a row, or -BIC / 2N."""
        if self.holdout is not None:
            return float(mixture.log_prob(self.holdout).mean())
        n, d = self.training.x.shape
        return mixture.log_likelihood - candidate.free_numbers(d) * math.log(n) / (2 * n)


def _blank(shape: Shape, centre: Tensor, components: int) -> Normals:
    """Unit normals of a shape, all at one point."""
    mean = centre.expand(components, -1)
    d = len(centre)
    if shape in ("diagonal", "spherical"):
        return DiagonalGaussians(mean, mean.new_ones(components, d if shape == "diagonal" else 1))
    eye = torch.eye(d, dtype=mean.dtype, device=mean.device)
    return Gaussians(mean, eye.expand(components if shape == "full" else 1, -1, -1))


def _filled(x: Tensor, variance: Tensor) -> Tensor:
    """The rows with missing entries filled for the partition's sake: by one normal, or by means where that is dear."""
    if not bool(x.isnan().any()):
        return x
    alone, law = x.new_zeros(1), Gaussians(x.nanmean(0, keepdim=True).nan_to_num(), variance.diag()[None])
    for _ in range(5 if x.shape[1] <= _MOST_VARIABLES_FOR_FULL else 0):
        law = law.maximise(law.expect(x, alone), Prior(0.1 * x.shape[1], variance))
    return law.fill(x, alone)
