"""One Hamiltonian transition of many chains: momentum, leapfrog steps, accept or reject.

With momentum v ~ N(0, I) and energy H(x, v) = -log p(x) + |v|^2 / 2, in coordinates x / spread, a leapfrog step is
v += (eps / 2) grad, x += eps v, v += (eps / 2) grad; it keeps volume and comes back when v is turned round, so
accepting with probability min(1, e^-dH) leaves p unchanged.

Source: Neal, "MCMC using Hamiltonian dynamics", Handbook of Markov Chain Monte Carlo, 2011, arXiv:1206.1901.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pofx.samplers.densities import LogDensity, Point, RowNats, Rows, value_and_grad
from pofx.types import Generator

DIVERGENT = 1000.0  # nats of energy error past which a trajectory has left the flow, whatever comes after (Stan's bound)


@dataclass(frozen=True)
class Trajectory:
    """What one transition did.

    Args:
        point: where each chain stands now.
        proposal: where its trajectory ended.
        v: the velocity there, in units of spread.
        acceptance: the probability that it was accepted.
        divergent: whether its energy error was over `DIVERGENT`, or the density not finite on the way.
    """

    point: Point
    proposal: Rows
    v: Rows
    acceptance: RowNats
    divergent: Bool[Tensor, " R"]


def trajectory(log_p: LogDensity, start: Point, scale: Float[Tensor, "#R D"], leapfrogs: int, *, generator: Generator) -> Trajectory:
    """One transition of every chain.

    Args:
        log_p: log-density with a gradient.
        start: where the chains stand.
        scale: eps times the spread of each coordinate.
        leapfrogs: how many steps; each costs one gradient of every chain.
        generator: of velocities and acceptances.
    """
    v = torch.randn(start.x.shape, generator=generator, dtype=start.x.dtype, device=start.x.device)
    end, v_end = _flow(log_p, start, v, scale, leapfrogs)
    error = (start.log_p - end.log_p) + 0.5 * (v_end.square().sum(-1) - v.square().sum(-1))
    error = torch.where(end.good & ~error.isnan(), error, torch.inf)
    acceptance = (-error).exp().clamp_max(1)
    u = torch.rand(acceptance.shape, generator=generator, dtype=acceptance.dtype, device=acceptance.device)
    return Trajectory(end.where(u < acceptance, start), end.x, v_end, acceptance, error > DIVERGENT)


def _flow(log_p: LogDensity, start: Point, v: Tensor, scale: Tensor, leapfrogs: int) -> tuple[Point, Tensor]:
    point = start
    for _ in range(leapfrogs):
        v = v + 0.5 * scale * point.grad
        x = point.x + scale * v
        # a chain that has met an infinity stays there: its x would be NaN, which a model takes for an unobserved cell
        going = point.good & x.isfinite().all(-1)
        after = value_and_grad(log_p, torch.where(going[:, None], x, point.x))
        point = Point(after.x, after.log_p, after.grad, after.good & going)
        v = v + 0.5 * scale * point.grad
    return point, v
