"""What a Markov chain sampler returns: draws of many chains, and what they say about themselves."""

from abc import ABC
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from pofx.samplers.diagnostics import bulk_ess, mean_error, rhat, tail_ess

PerProblem = Float[Tensor, "problems D"]


@dataclass(frozen=True)
class Chains(ABC):
    """Draws after warm-up, of chains that may belong to several problems.

    Args:
        draws: (steps, problems * chains, D).
        problems: chains are compared within a problem only.
    """

    draws: Float[Tensor, "steps chains D"]
    problems: int

    @property
    def by_problem(self) -> Float[Tensor, "steps chains problems D"]:
        """The draws with the problems apart."""
        return self.draws.unflatten(1, (self.problems, -1)).movedim(2, 1)

    @cached_property
    def rhat(self) -> PerProblem:
        """R-hat; over 1.01 the chains have not mixed."""
        return rhat(self.by_problem)

    @cached_property
    def ess(self) -> PerProblem:
        """The effective size of the bulk."""
        return bulk_ess(self.by_problem)

    @cached_property
    def tail_ess(self) -> PerProblem:
        """The effective size of the tails."""
        return tail_ess(self.by_problem)

    @property
    def mean(self) -> PerProblem:
        """E x over all steps and chains of a problem."""
        return self.by_problem.mean((0, 1))

    @cached_property
    def error(self) -> PerProblem:
        """The standard error of `mean`."""
        return mean_error(self.by_problem)
