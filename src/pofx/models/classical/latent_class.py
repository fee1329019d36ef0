"""A mixture of products of per-variable laws: mixed kinds and missing cells natively, every question in closed form."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from pofx.distributions.choose import candidates
from pofx.distributions.columns import Columns
from pofx.domain import LEVELLED, Domain
from pofx.errors import FileError, Unavailable
from pofx.models.base import FamilyConfig, FullBatch, Model, Takes, labelled
from pofx.models.classical.latent_class_em import Mixture, expectation_maximisation, log_joint, seeded
from pofx.types import Context, Generator, Kind, Latent, Nats, Point, X

_CLASSES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
_ROWS_A_CLASS = 5  # that a tried number of classes leaves to each
_USUAL, _LOOSER, _FIRMER = 10.0, (3.0, 1.0, 0.3), (30.0, 100.0, 300.0)  # rows of smoothing a class
_PATIENCE = 2  # numbers of classes without a better held-out score before their search stops
_HELD_SHARE, _HELD_FROM = 0.2, 10  # of the rows, where none are given and there are enough
_CLIMBS = 50  # steps towards a mode


@dataclass
class _Best:
    """The attempt that the held-out rows liked best."""

    score: float = -math.inf
    classes: int = 1
    smoothing: float = _USUAL


class LatentClass(Model, FullBatch):
    """p(x) = sum_k pi_k prod_d p_d(x_d | theta_kd): given its class, the variables are independent.

    Learned by EM on a penalised likelihood (see `expectation_maximisation`): every class sees all rows once more, as
    if they weighed `smoothing` rows together. A class of few rows is so drawn to the marginals, whatever the laws and
    their units, and cannot collapse onto one row. A missing cell has factor 1. A code is p(k | x), (K,). `mode` climbs
    from the mode of every class, so that its log p is a lower bound on the maximum; all other answers are exact.

    Cost: O(N K D) a step, in float64.

    Source: Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm", Journal of the
    Royal Statistical Society B 39(1), 1977. The smoothing is ours.

    Args:
        domain: what x is, variables of any kind.
        config: the options.
    """

    missing = Kind.EXACT
    grows = frozenset({"log_pi", "theta"})

    log_pi: Tensor
    theta: Tensor

    def __init__(self, domain: Domain, config: "LatentClassConfig") -> None:
        super().__init__(domain)
        self.config = config
        self.columns = Columns([candidates(v)[0] for v in domain.variables])
        self.register_buffer("log_pi", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("theta", torch.zeros(1, self.columns.width, dtype=torch.float64))

    @property
    def mixture(self) -> Mixture:
        """The parameters."""
        return Mixture(self.log_pi, self.theta)

    # -- learning ----------------------------------------------------------------------------------

    def steps(self, x: Tensor, *, holdout: Tensor | None = None, generator: Generator = None) -> Iterator[float]:
        """EM from many starts; yield the mean log-likelihood of x after each step.

        The number of classes and the smoothing, where not given, and the start are those of the best held-out score.
        Without held-out rows a share of x is held out for that, and the winner goes on to learn from all of x.
        """
        x, best = x.to(self.theta), _Best()
        if holdout is not None and len(holdout):
            yield from self._search(x, holdout.to(x), best, generator)
            return
        order = torch.randperm(len(x), generator=generator, device=x.device)
        held = math.ceil(_HELD_SHARE * len(x)) if len(x) >= _HELD_FROM and self.config.open else 0
        yield from self._search(x[order[held:]], x[order[:held]], best, generator)
        for mixture, log_likelihood, _ in self._em(x, self.mixture, best.smoothing):
            self.log_pi, self.theta = mixture
            yield log_likelihood

    def _search(self, x: Tensor, held: Tensor, best: _Best, generator: Generator) -> Iterator[float]:
        """The number of classes first, under the usual smoothing; then a firmer smoothing, or else a looser one."""
        given = self.config.smoothing
        smoothing = _USUAL if given is None else given
        yield from self._walk([(k, smoothing) for k in self._numbers_of_classes(x, held)], x, held, best, generator, _PATIENCE)
        if given is None and len(held):
            classes = best.classes
            for path in (_FIRMER, _LOOSER):
                if best.smoothing == smoothing:
                    yield from self._walk([(classes, a) for a in path], x, held, best, generator, 1)

    def _numbers_of_classes(self, x: Tensor, held: Tensor) -> Sequence[int]:
        if self.config.components is not None:
            return (self.config.components,)
        return [k for k in _CLASSES if k == 1 or (len(held) and k * _ROWS_A_CLASS <= len(x))]

    def _walk(
        self, path: Sequence[tuple[int, float]], x: Tensor, held: Tensor, best: _Best, generator: Generator, patience: int
    ) -> Iterator[float]:
        """Attempts along a path of (classes, smoothing) until as many as `patience` of them have brought nothing."""
        idle = 0
        for classes, smoothing in path:
            before = best.score
            for _ in range(self.config.restarts if classes > 1 else 1):
                yield from self._attempt(classes, smoothing, x, held, best, generator)
            idle = 0 if best.score > before else idle + 1
            if idle == patience:
                return

    def _attempt(self, classes: int, smoothing: float, x: Tensor, held: Tensor, best: _Best, generator: Generator) -> Iterator[float]:
        """EM from one random start, kept where it scores better than all before; until then the model stays as it is."""
        first = best.score == -math.inf
        for mixture, log_likelihood, _ in self._em(x, seeded(self.columns, x, classes, smoothing, generator), smoothing):
            if first:
                self.log_pi, self.theta = mixture
            yield log_likelihood
        score = float(log_joint(self.columns, mixture, held if len(held) else x).logsumexp(-1).mean())
        if first or score > best.score:
            best.score, best.classes, best.smoothing = score, classes, smoothing
            self.log_pi, self.theta = mixture

    def _em(self, x: Tensor, start: Mixture, smoothing: float) -> Iterator[tuple[Mixture, float, float]]:
        return expectation_maximisation(self.columns, x, start, smoothing, steps=self.config.steps, tolerance=self.config.tolerance)

    # -- state -------------------------------------------------------------------------------------

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take the state that `state_dict` gave.

        Raises:
            FileError: a name, type or shape is not the model's.
        """
        super().load_tensors(tensors)
        if not len(self.log_pi) or self.theta.shape != (len(self.log_pi), self.columns.width):
            expected = f"{len(self.log_pi)} classes of {self.columns.width} parameters"
            raise FileError(f"tensor 'theta': expected {expected}, got shape {tuple(self.theta.shape)}")

    # -- asking ------------------------------------------------------------------------------------

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return log_joint(self.columns, self.mixture, x.to(self.theta)).logsumexp(-1)

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return self._draw(self.log_pi.expand(n, -1), generator)

    def _draw(self, log_weight: Tensor, generator: Generator) -> Tensor:
        """One x for each row of log-weights of the classes (N, K)."""
        if not len(log_weight):
            return self.theta.new_zeros(0, len(self.domain))
        k = torch.multinomial(log_weight.softmax(-1), 1, replacement=True, generator=generator)[:, 0]
        return self.columns.sample(self.theta[k], generator=generator)

    def _posterior(self, x: Tensor) -> Tensor:
        """log p(k | x): (N, K)."""
        return log_joint(self.columns, self.mixture, x).log_softmax(-1)

    def _sub(self, keep: Sequence[int], log_pi: Tensor) -> "LatentClass":
        """The mixture of some variables under other weights."""
        other = LatentClass(self.domain.select(keep), self.config)
        positions = self.columns.select(keep)[1].to(self.theta.device)
        other.log_pi, other.theta = log_pi.clone(), self.theta[:, positions]
        return other

    def _marginal(self, keep: tuple[int, ...]) -> "LatentClass":
        return self._sub(keep, self.log_pi)

    def _conditional(self, evidence: Point) -> "LatentClass":
        joint = log_joint(self.columns, self.mixture, evidence.to(self.theta)[None])[0]
        if bool(joint.isneginf().all()):
            raise Unavailable("conditional", type(self).__name__, "the evidence has probability 0")
        return self._sub(evidence.isnan().nonzero()[:, 0].tolist(), joint.log_softmax(0))

    def _mean(self) -> Point:
        return self.log_pi.exp() @ self.columns.mean(self.theta)

    @labelled(Kind.BOUND)
    def _mode(self, evidence: Point) -> Point:
        """Climb by EM over x: given p(k | x), each variable takes the best of the classes' own modes.

        No step lowers log p(x), as every variable's present value is among those tried.
        """
        modes = self.columns.mode(self.theta)  # (K, D), what a variable may take
        given = evidence.to(modes)
        log_p = self.columns.log_prob(self.theta, modes[:, None])  # (value, class, D)
        x = torch.where(given.isnan(), modes, given)
        for _ in range(_CLIMBS):
            gain = torch.einsum("sk,vkd->svd", self._posterior(x).exp(), log_p.clamp_min(-1e30))
            step = modes.gather(0, gain.argmax(1))
            step = torch.where(given.isnan(), step, given)
            if torch.equal(step, x):
                break
            x = step
        return x[self._log_prob(x, None, None).argmax()]

    def _impute(self, x: X, generator: Generator) -> X:
        x = x.to(self.theta)
        weight = self._posterior(x).exp()
        filled = weight @ self.columns.mean(self.theta)
        for d, v in enumerate(self.domain.variables):
            if v.kind in LEVELLED:
                filled[:, d] = (weight @ self._level_probabilities(d)).argmax(-1).to(filled)
        return torch.where(x.isnan(), filled, x)

    def _level_probabilities(self, d: int) -> Tensor:
        """p_d(level | k): (K, levels)."""
        law, positions = self.columns.select([d])
        codes = torch.arange(len(self.domain.variables[d].levels)).to(self.theta)
        return law.log_prob(self.theta[:, None, positions], codes[:, None])[..., 0].exp()

    def _complete(self, x: X, generator: Generator) -> X:
        x = x.to(self.theta)
        return torch.where(x.isnan(), self._draw(self._posterior(x), generator), x)

    def _encode(self, x: X, c: Context | None) -> Latent:
        return self._posterior(x.to(self.theta)).exp()


class LatentClassConfig(FamilyConfig):
    """Options of `latent_class`."""

    takes: ClassVar[Takes] = Takes.EVERYTHING
    model: ClassVar[type[Model]] = LatentClass
    cites: ClassVar[tuple[str, ...]] = (
        "@article{dempster1977maximum, title={Maximum likelihood from incomplete data via the {EM} algorithm}, "
        "author={Dempster, Arthur P. and Laird, Nan M. and Rubin, Donald B.}, "
        "journal={Journal of the Royal Statistical Society: Series B}, volume={39}, number={1}, pages={1--38}, year={1977}}",
    )
    space: ClassVar[dict[str, tuple[Any, ...]]] = {
        "components": (None, 2, 4, 8, 16, 32, 64, 128),
        "smoothing": (None, 1.0, 3.0, 10.0, 30.0, 100.0),
    }

    components: int | None = Field(None, ge=1, description="number of classes; None: chosen by held-out score")
    smoothing: float | None = Field(
        None, ge=0, description="how many rows all the data weigh together in every class; None: chosen by held-out score"
    )
    restarts: int = Field(2, ge=1, description="random starts of each attempt")
    steps: int = Field(200, ge=1, description="EM steps of an attempt at most")
    tolerance: float = Field(1e-3, ge=0, description="EM stops when a step gains less, in nats a row")

    @property
    def open(self) -> bool:
        """Whether anything is left to choose."""
        return self.components is None or self.smoothing is None or self.restarts > 1

    def build(self, domain: Domain, context: Domain | None = None) -> LatentClass:
        """One class of laws with all parameters 0, untrained."""
        if context is not None:
            raise Unavailable("p(x | c)", "latent_class", "it learns the joint law", instead="fit all columns and ask `conditional`")
        return LatentClass(domain, self)
