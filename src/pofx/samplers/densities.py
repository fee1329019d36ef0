"""What every sampler is given: a log-density of rows, in nats, with or without its constant.

A log-density maps rows (R, D) to (R,). Rows belong to chains: row i to chain i mod chains, so a sampler that tries
several values a chain tiles them, and a density whose condition differs between chains takes the condition of
row i from there. Chains of several problems come problem by problem: (problems * chains, D).

Where a log-density is not finite, a sampler does not go: -inf, NaN and +inf are refused alike, as is a row that
overflows. So NaN, which a model takes for an unobserved cell, never reaches a density unless the start holds it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pofx.errors import DataError, OptionError

LogDensity = Callable[[Tensor], Tensor]
Rows = Float[Tensor, "R D"]
RowNats = Float[Tensor, " R"]


@dataclass(frozen=True)
class Point:
    """Where each chain stands.

    Args:
        x: (R, D).
        log_p: log-density there; -inf where it is not finite.
        grad: its gradient; 0 where log-density or gradient are not finite.
        good: whether both are.
    """

    x: Rows
    log_p: RowNats
    grad: Rows
    good: Bool[Tensor, " R"]

    def where(self, accept: Bool[Tensor, " R"], other: "Point") -> "Point":
        """Its own rows where accepted, those of the other elsewhere."""
        column = accept[:, None]
        return Point(
            torch.where(column, self.x, other.x),
            torch.where(accept, self.log_p, other.log_p),
            torch.where(column, self.grad, other.grad),
            torch.where(accept, self.good, other.good),
        )


def value(log_p: LogDensity, x: Rows) -> RowNats:
    """log p(x), and -inf where it is not finite; no gradient.

    Raises:
        OptionError: the log-density does not give one number a row.
    """
    with torch.no_grad():
        return _finite(_asked(log_p, x))


def value_and_grad(log_p: LogDensity, x: Rows) -> Point:
    """log p(x) and its gradient, by one backward pass of the sum over rows: no row may depend on another.

    Raises:
        OptionError: the log-density does not give one number a row, or no gradient.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        log = _asked(log_p, x)
        if not log.requires_grad:
            raise OptionError("a log-density with a gradient is needed, but it does not depend on x through torch's autograd")
        (grad,) = torch.autograd.grad(log.sum(), x)
    log = _finite(log.detach())
    good = (log > -torch.inf) & grad.isfinite().all(-1)
    return Point(x.detach(), log, torch.where(good[:, None], grad, 0.0), good)


def differentiable(log_p: LogDensity, x: Rows) -> bool:
    """Whether the log-density of these rows has a gradient; it may be useless, as of a density of codes."""
    with torch.enable_grad():
        return _asked(log_p, x.detach().requires_grad_()).requires_grad


def restricted(log_p: LogDensity, x: Rows, columns: Int[Tensor, " C"]) -> LogDensity:
    """The log-density of some columns given the other columns of x, one row of x a chain."""

    def given_the_rest(z: Tensor) -> Tensor:
        return log_p(x.repeat(len(z) // len(x), 1).index_copy(1, columns, z))

    return given_the_rest


def spread_across(x: Rows, problems: int) -> Float[Tensor, " D"]:
    """Standard deviation of each coordinate across the chains of a problem; 1 where they all stand at one place, or at NaN."""
    spread = x.unflatten(0, (problems, -1)).var(1, correction=0).mean(0).sqrt()
    return torch.where(spread > 0, spread, 1.0)


def check_start(log_p: RowNats) -> None:
    """Every chain starts where the density is positive.

    Raises:
        DataError: one does not.
    """
    bad = (log_p == -torch.inf).nonzero()
    if len(bad):
        raise DataError(f"chain {int(bad[0])} starts where the log-density is not finite: start every chain inside the support")


def check_chains(x: Rows, problems: int) -> None:
    """Rows (problems * chains, D), at least one chain a problem.

    Raises:
        DataError: they are not.
    """
    if problems < 1 or not x.numel() or len(x) % problems:
        raise DataError(f"starts need shape (problems * chains, D), got {tuple(x.shape)} for problems={problems}")


def check_count(name: str, count: int, least: int) -> None:
    """A whole number, not under the least.

    Raises:
        OptionError: it is less.
    """
    if count < least:
        raise OptionError(f"{name} is at least {least}, got {count}")


def _asked(log_p: LogDensity, x: Tensor) -> Tensor:
    log = log_p(x)
    if log.shape != x.shape[:1]:
        raise OptionError(f"a log-density gives one number a row, shape {tuple(x.shape[:1])}, got {tuple(log.shape)}")
    return log


def _finite(log: Tensor) -> Tensor:
    return torch.where(log.isfinite(), log, -torch.inf)
