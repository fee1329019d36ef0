"""Every variable alone, under the law that unseen rows like best: the baseline of every comparison."""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pofx.distributions.base import Law
from pofx.distributions.choose import candidates, choose
from pofx.distributions.columns import Columns
from pofx.domain import Domain
from pofx.errors import FileError, Unavailable
from pofx.events import Condition
from pofx.models.base import FamilyConfig, FullBatch, Model, Takes
from pofx.types import Context, Generator, Kind, Nats, Point, X


class Independent(Model, FullBatch):
    """p(x) = prod_d p_d(x_d), each p_d the best of the `candidates` for its kind, fitted by maximum likelihood.

    Best is the largest log-density of held-out rows, or of five folds in turn. Every answer is exact.

    Cost: O(N D) for each candidate; those without a closed form take some tens of Newton steps.

    Args:
        domain: what x is, variables of any kind.
    """

    missing = Kind.EXACT
    grows = frozenset({"theta"})

    choice: Tensor  # which of its candidates each variable has (D)
    theta: Tensor  # the parameters of all laws, as `Columns` orders them

    def __init__(self, domain: Domain) -> None:
        super().__init__(domain)
        self.register_buffer("choice", torch.zeros(len(domain), dtype=torch.long))
        self.columns = Columns([candidates(v)[0] for v in domain.variables])
        self.register_buffer("theta", torch.zeros(self.columns.width, dtype=torch.float64))

    @property
    def laws(self) -> tuple[Law, ...]:
        """The law of each variable."""
        return tuple(candidates(v)[i] for v, i in zip(self.domain.variables, self.choice.tolist(), strict=True))

    # -- learning ----------------------------------------------------------------------------------

    def steps(self, x: Tensor, *, holdout: Tensor | None = None, generator: Generator = None) -> Iterator[float]:
        """Choose, then fit: one step; yield the mean log-likelihood of x."""
        x = x.to(self.theta)
        chosen = choose(self.domain.variables, x, None if holdout is None else holdout.to(x), generator=generator)
        self.choice = torch.tensor(chosen, device=x.device)
        self.columns = Columns(self.laws)
        self.theta = self.columns.fit(x, x.new_ones(len(x), 1))[0]
        yield float(self._log_prob(x, None, None).mean())

    # -- state -------------------------------------------------------------------------------------

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take the state that `state_dict` gave; the laws follow from the choice.

        Raises:
            FileError: a name, type or shape is not the model's, or there is no such candidate.
        """
        super().load_tensors(tensors)
        for v, i in zip(self.domain.variables, self.choice.tolist(), strict=True):
            if not 0 <= i < len(candidates(v)):
                raise FileError(f"tensor 'choice': variable {v.name!r} has {len(candidates(v))} candidate laws, got number {i}")
        self.columns = Columns(self.laws)
        if len(self.theta) != self.columns.width:
            raise FileError(f"tensor 'theta': the laws have {self.columns.width} parameters, got {len(self.theta)}")

    # -- asking ------------------------------------------------------------------------------------

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self.columns.log_prob(self.theta, x.to(self.theta)).sum(-1)

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return self.columns.sample(self.theta.expand(n, -1), generator=generator)

    def _marginal(self, keep: Sequence[int]) -> "Independent":
        other = Independent(self.domain.select(keep))
        other.choice = self.choice[list(keep)]
        other.columns, positions = self.columns.select(keep)
        other.theta = self.theta[positions.to(self.theta.device)]
        return other

    def _conditional(self, evidence: Point) -> "Independent":
        if bool(self._log_prob(evidence[None], None, None).isneginf()):
            raise Unavailable("conditional", type(self).__name__, "the evidence has probability 0")
        return self._marginal(evidence.isnan().nonzero()[:, 0].tolist())

    def _restrict(self, conditions: Mapping[int, Condition]) -> "tuple[Independent, float]":
        other = self._marginal(range(len(self.domain)))
        other.columns, positions = self.columns.restricted(conditions)
        other.theta = self.theta[positions.to(self.theta.device)]
        return other, float(self.columns.log_chance(self.theta, conditions).sum())

    def answers(self, question: str, seen: Sequence[int] = ()) -> Kind:
        """An entropy is closed where those of all laws are."""
        closed = question != "entropy" or all(law.has_entropy for law in self.columns.laws)
        return super().answers(question, seen) if closed else Kind.NONE

    def _log_expectation(self, factors: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        return self.columns.log_expectation(self.theta[None], factors)[:, 0].sum(-1)

    def _entropy(self) -> Tensor:
        return self.columns.entropy(self.theta).sum()

    def _mean(self) -> Point:
        return self.columns.mean(self.theta)

    def _mode(self, evidence: Point) -> Point:
        evidence = evidence.to(self.theta)
        return torch.where(evidence.isnan(), self.columns.mode(self.theta), evidence)

    def _impute(self, x: X, generator: Generator) -> X:
        x = x.to(self.theta)
        return torch.where(x.isnan(), self.columns.centre(self.theta), x)

    def _complete(self, x: X, generator: Generator) -> X:
        x = x.to(self.theta)
        return torch.where(x.isnan(), self._sample(len(x), None, generator), x)


class IndependentConfig(FamilyConfig):
    """Options of `independent`: none."""

    takes: ClassVar[Takes] = Takes.EVERYTHING

    def _build(self, domain: Domain, context: Domain | None) -> Independent:
        """The first candidate of every variable, untrained."""
        return Independent(domain)
