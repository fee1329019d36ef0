"""Draws that say what they are, and the mean of a function over them with the error that their origin gives it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.errors import DataError
from pofx.samplers import Weighted, bulk_ess, log_mean, mean_error, rhat, weight_ess
from pofx.samplers.importance import from_islands
from pofx.types import Generator, Kind

Rows = Float[Tensor, "N D"]
Function = Callable[[Tensor], Tensor]
Pair = tuple[Tensor, Tensor]  # a value and its standard error


@runtime_checkable
class Source(Protocol):
    """Where draws come from: it knows the error of a mean over them."""

    def mean(self, f: Function) -> Pair:
        """E f(x), of rows (N, D) to (N, *event), and its standard error."""


@dataclass(frozen=True)
class Independent:
    """Draws that do not depend on one another: the error is sd / sqrt n.

    Args:
        x: (N, D).
    """

    x: Rows

    def mean(self, f: Function) -> Pair:
        """The plain mean; with a single draw its error is infinite."""
        values = f(self.x)
        error = values.std(0) / len(values) ** 0.5 if len(values) > 1 else torch.full_like(values[0], torch.inf)
        return values.mean(0), error


@dataclass(frozen=True)
class Importance:
    """Weighted draws of another law.

    Args:
        weighted: draws and log-weights.
    """

    weighted: Weighted

    def mean(self, f: Function) -> Pair:
        """The self-normalised mean."""
        return self.weighted.expectation(f(self.weighted.x))


@dataclass(frozen=True)
class Chains:
    """Markov chains: the error is sd / sqrt(effective size).

    Args:
        x: (steps, chains, D).
    """

    x: Float[Tensor, "steps chains D"]

    def mean(self, f: Function) -> Pair:
        """The mean of all steps and chains."""
        values = f(self.x.flatten(0, 1)).unflatten(0, self.x.shape[:2])
        return values.mean((0, 1)), mean_error(values)

    def moved(self) -> list[int]:
        """Columns that are not constant."""
        flat = self.x.flatten(0, 1)
        return (flat != flat[:1]).any(0).nonzero()[:, 0].tolist()

    def ess(self) -> float:
        """The least effective size of the columns that move; all draws where none does."""
        moved = self.moved()
        return float(bulk_ess(self.x[..., moved]).min()) if moved else float(self.x.shape[0] * self.x.shape[1])

    def rhat(self) -> float:
        """The largest R-hat of the columns that move; 1 where none does."""
        moved = self.moved()
        return float(rhat(self.x[..., moved]).max()) if moved else 1.0


@dataclass(frozen=True)
class Islands:
    """Independent populations, each with its own estimate of the evidence.

    Args:
        x: (islands, particles, D).
        log_z: (islands,).
    """

    x: Float[Tensor, "islands particles D"]
    log_z: Float[Tensor, " islands"]

    def mean(self, f: Function) -> Pair:
        """The islands' means weighted by their evidence; the error is from their spread, as of a ratio."""
        means = f(self.x.flatten(0, 1)).unflatten(0, self.x.shape[:2]).mean(1)
        share = self.log_z.softmax(0).reshape(-1, *[1] * (means.ndim - 1))
        mean, n = (share * means).sum(0), len(self.log_z)
        return mean, ((share * (means - mean)).square().sum(0) * n / (n - 1)).sqrt()

    def evidence(self) -> Pair:
        """log of the islands' mean Z, and its standard error."""
        return log_mean(self.log_z)

    def sample(self, n: int, *, generator: Generator) -> Rows:
        """n particles in no order, each island as often as its Z says."""
        return from_islands(self.x, self.log_z, n, generator=generator)

    def ess(self) -> float:
        """Particles, times the share of islands that count."""
        return float(weight_ess(self.log_z)) * self.x.shape[1]

    def worth(self, columns: list[int]) -> float:
        """The least var / error^2 of the columns, as the islands' spread has it; at most all particles, all where none varies."""
        mean, error = self.mean(lambda x: x[:, columns])
        square, _ = self.mean(lambda x: (x[:, columns] - mean).square())
        varies = square > 0
        return min([float(len(self.log_z) * self.x.shape[1]), *(square[varies] / error[varies].square()).tolist()])


@dataclass(frozen=True)
class Draws:
    """Rows of p(x | event), and how far to trust them.

    Args:
        rows: (n, D), all variables, the evidence in place.
        kind: EXACT where each row is an independent draw of the conditional itself, else ESTIMATE.
        method: exact, rejection, sir, hmc, gibbs, smc, twisted or abc.
        ess: how many independent draws they are worth, for the worst variable.
        how: the method in one sentence, with its numbers.
        source: what the rows were taken from; means over it are sharper than over rows.
        rhat: of chains, the worst variable's; above 1.01 they have not mixed.
        log_evidence: log P(event) in nats, or log p where the event fixes continuous variables; None: not known.
        log_evidence_error: its standard error.
    """

    rows: Rows
    kind: Kind
    method: str
    ess: float
    how: str
    source: Source
    rhat: float | None = None
    log_evidence: float | None = None
    log_evidence_error: float | None = None

    def expectation(self, f: Function) -> Pair:
        """E[f(x) | event] and its standard error.

        Args:
            f: rows (N, D) to (N,) or (N, *event).

        Raises:
            DataError: f gives another number of values than rows, or NaN.
        """
        return self.source.mean(lambda x: checked(f, x))

    @property
    def k_hat(self) -> float:
        """Pareto's k-hat of weighted draws; -inf for others, whose weights are equal."""
        return float(self.source.weighted.k_hat) if isinstance(self.source, Importance) else -torch.inf

    @property
    def mean(self) -> Pair:
        """E[x | event] of all variables and its standard errors, (D,) each."""
        return self.expectation(lambda x: x)


def checked(f: Function, x: Tensor) -> Tensor:
    """f(x), a number or an array of numbers a row.

    Raises:
        DataError: f gives another number of values than rows, or NaN.
    """
    values = torch.as_tensor(f(x))
    if values.shape[:1] != x.shape[:1]:
        raise DataError(f"the function gives a number (or an array) for each of {len(x)} rows, got shape {tuple(values.shape)}")
    values = values.to(x.device, torch.float64).detach()
    bad = values.isnan().flatten(1).any(1) if values.ndim > 1 else values.isnan()
    if bool(bad.any()):
        raise DataError(f"the function is NaN at {int(bad.sum())} of {len(x)} rows drawn: it must be a number wherever p is positive")
    return values
