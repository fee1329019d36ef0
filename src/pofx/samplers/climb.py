"""Climbing a smooth log-density: a limited-memory quasi-Newton method on many rows at once.

Source: Nocedal and Wright, "Numerical optimization", Springer, 2nd ed. 2006, chapters 3 (backtracking) and 7 (L-BFGS).
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from pofx.samplers.densities import LogDensity, Point, RowNats, Rows, value_and_grad

_MEMORY = 10  # pairs the curvature is read from
_SUFFICIENT = 1e-4  # Armijo's share of the gain the slope promises
_TRIALS = 30  # of a step, each a tenth to a half of the one before


def climb(log_p: LogDensity, start: Rows, *, steps: int, tolerance: float) -> tuple[Rows, RowNats, Bool[Tensor, " R"]]:
    """L-BFGS with backtracking on R^D, every row for itself, in coordinates of unit size.

    Returns the points, log p there, never below the start's, and whether each climb ended by itself.

    A row that gains no more than the tolerance along its quasi-Newton direction tries its gradient; if that gains no
    more either, it is done.

    Raises:
        OptionError: a log-density without gradient.
    """
    point, memory = value_and_grad(log_p, start), _Memory(start)
    usable, climbing = point.good, point.good
    for _ in range(steps):
        direction = memory.direction(point.grad)
        after = _search(log_p, point, direction, climbing, tolerance)
        idle = climbing & (after.log_p - point.log_p <= tolerance)
        climbing = climbing & ~(idle & memory.empty)
        memory.learn(point, after)
        memory.forget(idle)
        point = after
        if not bool(climbing.any()):
            break
    return point.x, point.log_p, usable & ~climbing


class _Memory:
    """What the last steps of each row say of its curvature: pairs s = x' - x and y = g - g', used where s . y > 0."""

    def __init__(self, x: Tensor) -> None:
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # s, y, 1 / s . y; the last is 0 for a pair not to be used
        self.gamma = torch.zeros_like(x[:, 0])  # s . y / y . y of the last pair; 0: nothing is known
        self.reach = torch.full_like(x[:, 0], 0.1)  # how far a step along the gradient is tried: small enough to stay in a basin

    @property
    def empty(self) -> Tensor:
        """Rows of which nothing is known: they follow their gradient."""
        return self.gamma == 0

    def direction(self, grad: Tensor) -> Tensor:
        """An ascent direction of each row, with the length of a full step (Nocedal and Wright, Algorithm 7.4)."""
        q, shares = grad, []
        for s, y, rho in reversed(self.pairs):
            shares.append(rho * (s * q).sum(-1))
            q = q - shares[-1][:, None] * y
        q = self.gamma[:, None] * q
        for (s, y, rho), share in zip(self.pairs, reversed(shares), strict=True):
            q = q + (share - rho * (y * q).sum(-1))[:, None] * s
        self.forget(~((q * grad).sum(-1) > 0))
        plain = (self.reach / grad.norm(dim=-1).clamp_min(torch.finfo(grad.dtype).tiny))[:, None] * grad
        return torch.where(self.empty[:, None], plain, q)

    def learn(self, before: Point, after: Point) -> None:
        """Take in a step; a row that has not moved, or whose slope did not fall, teaches nothing."""
        s, y = after.x - before.x, before.grad - after.grad
        curvature = (s * y).sum(-1)
        useful = curvature > 1e-10 * s.norm(dim=-1) * y.norm(dim=-1)
        rho = torch.where(useful, 1 / torch.where(useful, curvature, 1.0), 0.0)
        self.gamma = torch.where(useful, curvature / torch.where(useful, y.square().sum(-1), 1.0), self.gamma)
        self.pairs = [*self.pairs[-_MEMORY + 1 :], (s, y, rho)]
        self.reach = torch.maximum(self.reach, 2 * s.norm(dim=-1))

    def forget(self, rows: Tensor) -> None:
        """Drop what is known of some rows."""
        self.gamma = torch.where(rows, 0.0, self.gamma)
        self.pairs = [(s, y, torch.where(rows, 0.0, rho)) for s, y, rho in self.pairs]


def _search(log_p: LogDensity, start: Point, direction: Tensor, climbing: Tensor, tolerance: float) -> Point:
    """The first of shorter and shorter steps that gains its share of what the slope promises; else, or if that is too little, the start."""
    reached, pending, t = start, climbing, torch.ones_like(start.log_p)
    slope = (direction * start.grad).sum(-1)
    for _ in range(_TRIALS):
        x = start.x + t[:, None] * direction
        x = torch.where((pending & x.isfinite().all(-1))[:, None], x, reached.x)
        trial = value_and_grad(log_p, x)
        enough = pending & trial.good & (trial.log_p >= start.log_p + _SUFFICIENT * t * slope)
        reached, pending = trial.where(enough, reached), pending & ~enough
        # where the parabola through value, slope and trial has its top; a tenth where the trial is not finite
        top = t * slope / (2 * (slope - (trial.log_p - start.log_p) / t))
        t = torch.minimum(torch.maximum(top.nan_to_num(nan=0.0), 0.1 * t), 0.5 * t)
        pending = pending & (t * slope > tolerance)
        if not bool(pending.any()):
            break
    return reached
