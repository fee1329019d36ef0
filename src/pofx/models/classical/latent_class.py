"""A mixture of products of per-variable laws: mixed kinds and missing cells natively, every question in closed form."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from pofx.distributions.choose import candidates
from pofx.distributions.columns import Columns
from pofx.domain import LEVELLED, Domain
from pofx.errors import FileError, Unavailable
from pofx.events import Condition
from pofx.models.base import FamilyConfig, FullBatch, Model, Takes, labelled
from pofx.models.classical.latent_class_em import Mixture, expectation_maximisation, log_joint
from pofx.models.classical.latent_class_search import Options, Search
from pofx.types import Context, Generator, Kind, Latent, Nats, Point, X

_HELD_SHARE, _HELD_FROM = 0.2, 10  # of the rows, where none are given and there are enough
_CLIMBS = 50  # steps towards a mode


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
        x = x.to(self.theta)
        if holdout is not None and len(holdout):
            yield from self._search(Search(self.columns, x, holdout.to(x), self.config.options, generator))
            return
        order = torch.randperm(len(x), generator=generator, device=x.device)
        held = math.ceil(_HELD_SHARE * len(x)) if len(x) >= _HELD_FROM and self.config.open else 0
        search = Search(self.columns, x[order[held:]], x[order[:held]], self.config.options, generator)
        yield from self._search(search)
        path = expectation_maximisation(
            self.columns, x, self.mixture, search.smoothing, steps=self.config.steps, tolerance=self.config.tolerance
        )
        for mixture, log_likelihood, _ in path:
            self.log_pi, self.theta = mixture
            yield log_likelihood

    def _search(self, search: Search) -> Iterator[float]:
        """The steps of a search; the model is the best attempt so far."""
        for log_likelihood in search.steps():
            self._hold(search)
            yield log_likelihood
        self._hold(search)

    def _hold(self, search: Search) -> None:
        if search.best is not None:
            self.log_pi, self.theta = search.best

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
        other.columns, positions = self.columns.select(keep)
        other.log_pi, other.theta = log_pi.clone(), self.theta[:, positions.to(self.theta.device)]
        return other

    def _marginal(self, keep: tuple[int, ...]) -> "LatentClass":
        return self._sub(keep, self.log_pi)

    def _conditional(self, evidence: Point) -> "LatentClass":
        joint = log_joint(self.columns, self.mixture, evidence.to(self.theta)[None])[0]
        if bool(joint.isneginf().all()):
            raise Unavailable("conditional", type(self).__name__, "the evidence has probability 0")
        return self._sub(evidence.isnan().nonzero()[:, 0].tolist(), joint.log_softmax(0))

    def _restrict(self, conditions: Mapping[int, Condition]) -> "tuple[LatentClass, float]":
        joint = self.log_pi + self.columns.log_chance(self.theta, conditions).sum(-1)
        log_p = float(joint.logsumexp(0))
        other = self._sub(range(len(self.domain)), self.log_pi if log_p == -math.inf else joint.log_softmax(0))
        other.columns, positions = self.columns.restricted(conditions)
        other.theta = self.theta[:, positions.to(self.theta.device)]
        return other, log_p

    def _log_expectation(self, factors: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        return (self.log_pi + self.columns.log_expectation(self.theta, factors).sum(-1)).logsumexp(-1)

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

    def _cluster(self, x: X, c: Context | None, generator: Generator) -> Tensor:
        return self._encode(x, c)


class LatentClassConfig(FamilyConfig):
    """Options of `latent_class`."""

    takes: ClassVar[Takes] = Takes.EVERYTHING
    cites: ClassVar[tuple[str, ...]] = (
        "@article{dempster1977maximum, title={Maximum likelihood from incomplete data via the {EM} algorithm}, "
        "author={Dempster, Arthur P. and Laird, Nan M. and Rubin, Donald B.}, "
        "journal={Journal of the Royal Statistical Society: Series B}, volume={39}, number={1}, pages={1--38}, year={1977}}",
    )
    space: ClassVar[dict[str, tuple[Any, ...]]] = {
        "components": (None, 2, 4, 8, 16, 32, 64, 128),
        "smoothing": (None, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
    }

    components: int | None = Field(None, ge=1, description="number of classes; None: chosen by held-out score")
    smoothing: float | None = Field(
        None, ge=0, description="how many rows all the data weigh together in every class; None: chosen by held-out score"
    )
    restarts: int = Field(3, ge=1, description="random starts of each attempt")
    steps: int = Field(200, ge=1, description="EM steps of an attempt at most")
    tolerance: float = Field(1e-3, ge=0, description="EM stops when a step gains less, in nats a row")

    @property
    def options(self) -> Options:
        """What the search is told."""
        return Options(self.components, self.smoothing, self.restarts, self.steps, self.tolerance)

    @property
    def open(self) -> bool:
        """Whether anything is left to choose."""
        return self.components is None or self.smoothing is None or self.restarts > 1

    def _build(self, domain: Domain, context: Domain | None) -> LatentClass:
        """One class of laws with all parameters 0, untrained."""
        return LatentClass(domain, self)
