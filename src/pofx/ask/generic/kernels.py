"""A proposal for what an event leaves open: a mixture of kernels on centres, learned from weighted draws.

    q(x) = sum_k w_k q_c(x_c | k) prod_d q_d(x_d | k)

q_c is one kernel for all smooth variables, u = c_k + s_k L e with independent logistic e and L the Cholesky factor of
the centres' covariance; a variable on a grid has the logistic kernel of its cells; one with a list of values keeps its
centre's but for a share that follows the frequencies; one with a spike has the atom and a kernel beside it. Every
value of the domain is within reach of every kernel, so that importance weights are what they should be.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pofx.ask.generic.space import Coordinate, Unconstrained, at_spike
from pofx.types import Generator

_UNIT = math.sqrt(3) / math.pi  # scale of a logistic law of variance 1
_AT_ONCE = 1 << 22  # numbers of a table, rows by centres
_LEAVES = 0.2  # the probability that a listed value is drawn from the frequencies, not from the centre

Rows = Float[Tensor, "N D"]
Widths = Float[Tensor, " K"]


@runtime_checkable
class Kernel(Protocol):
    """Draws and log-densities of some columns, given the centre."""

    def draw(self, x: Rows, which: Tensor, generator: Generator) -> Rows:
        """The rows with its columns drawn about centres `which`."""

    def table(self, x: Rows) -> Float[Tensor, "N K"]:
        """log q of its columns at each row under each centre."""


@dataclass(frozen=True)
class Smooth:
    """u = c_k + s_k L e for all smooth columns together.

    Args:
        columns: where they stand.
        centres: c, (K, C) in unconstrained coordinates.
        factor: L, (C, C), lower triangular.
        widths: s, (K,).
    """

    columns: list[int]
    centres: Float[Tensor, "K C"]
    factor: Float[Tensor, "C C"]
    widths: Widths

    def draw(self, x: Rows, which: Tensor, generator: Generator) -> Rows:
        """In unconstrained coordinates."""
        e = _UNIT * _logistic(self.centres[which], generator)
        drawn = x.clone()
        drawn[:, self.columns] = self.centres[which] + self.widths[which, None] * (e @ self.factor.T)
        return drawn

    def table(self, x: Rows) -> Float[Tensor, "N K"]:
        """sum log of the logistic density of L^-1 (u - c_k) / s_k, less log|s_k L|."""
        rows, centres = (torch.linalg.solve_triangular(self.factor, v.T, upper=False).T for v in (x[:, self.columns], self.centres))
        e = (rows[:, None] - centres) / (_UNIT * self.widths[:, None])
        slope = self.factor.diagonal().log().sum() + len(self.factor) * (_UNIT * self.widths).log()
        return (functional.logsigmoid(e) + functional.logsigmoid(-e)).sum(-1) - slope


@dataclass(frozen=True)
class Stepped:
    """A grid or count: the logistic law of scale s_k about c_k, summed over cells of width r.

    Args:
        column: where it stands.
        centres: c, (K,), on the grid.
        widths: standard deviations, (K,).
        step: r.
        per: what a density is relative to: r for a rounded variable, 1 for a count.
    """

    column: int
    centres: Float[Tensor, " K"]
    widths: Widths
    step: float
    per: float

    def draw(self, x: Rows, which: Tensor, generator: Generator) -> Rows:
        """The centre and a whole number of steps."""
        away = _UNIT * self.widths[which] * _logistic(self.centres[which], generator)
        drawn = x.clone()
        drawn[:, self.column] = self.centres[which] + self.step * (away / self.step).round()
        return drawn

    def table(self, x: Rows) -> Float[Tensor, "N K"]:
        """log of (F(x + r/2) - F(x - r/2)) / r."""
        away, s = x[:, self.column, None] - self.centres, _UNIT * self.widths
        a, b = (away - self.step / 2) / s, (away + self.step / 2) / s
        return functional.logsigmoid(b) + functional.logsigmoid(-a) + torch.log(-torch.expm1(a - b)) - math.log(self.per)


@dataclass(frozen=True)
class Listed:
    """The centre's value, or with probability e_k one drawn from the frequencies.

    Args:
        column: where it stands.
        values: the values it may take, (V,), in ascending order.
        centres: positions among the values, (K,); -1 where the centre's is none of them.
        leaves: e, (K,).
        share: frequencies of the values, (V,), all positive.
        log_per: log of the measure of each value, (V,): the width of a grid's cell, 1 for levels, counts and atoms.
    """

    column: int
    values: Float[Tensor, " V"]
    centres: Tensor
    leaves: Widths
    share: Float[Tensor, " V"]
    log_per: Float[Tensor, " V"]

    def draw(self, x: Rows, which: Tensor, generator: Generator) -> Rows:
        """Stay or leave."""
        other = torch.multinomial(self.share, len(which), replacement=True, generator=generator)
        leaves = _uniform(self.share, len(which), generator) < self.leaves[which]
        drawn = x.clone()
        drawn[:, self.column] = self.values[torch.where(leaves, other, self.centres[which])]
        return drawn

    def table(self, x: Rows) -> Float[Tensor, "N K"]:
        """log((1 - e_k) [x = c_k] + e_k share(x)), less the log of the value's measure."""
        at = torch.searchsorted(self.values, x[:, self.column].contiguous()).clamp_max(len(self.values) - 1)
        known = self.values[at] == x[:, self.column]
        share = torch.where(known, self.share[at], 0.0)
        stays = (1 - self.leaves) * (known[:, None] & (at[:, None] == self.centres))
        return (self.leaves * share[:, None] + stays).log() - self.log_per[at, None]


@dataclass(frozen=True)
class Spiked:
    """The atom with probability a_k, else the kernel beside it.

    Args:
        column: where it stands.
        spike: the atom's value.
        chance: a, (K,).
        beside: the kernel of the other values.
    """

    column: int
    spike: float
    chance: Widths
    beside: Smooth | Stepped

    def draw(self, x: Rows, which: Tensor, generator: Generator) -> Rows:
        """The atom or beside it."""
        drawn = self.beside.draw(x, which, generator)
        stays = _uniform(self.chance, len(which), generator) < self.chance[which]
        drawn[:, self.column] = torch.where(stays, self.spike, drawn[:, self.column])
        return drawn

    def table(self, x: Rows) -> Float[Tensor, "N K"]:
        """At the atom a probability, elsewhere a density."""
        beside = self.beside.table(x) + torch.log1p(-self.chance)
        if isinstance(self.beside, Stepped):  # its cell at the atom falls on the atom, as a probability
            at_atom = torch.logaddexp(self.chance.log(), beside + math.log(self.beside.per))
        else:
            at_atom = self.chance.log().expand_as(beside)
        return torch.where(at_spike(x[:, self.column], self.spike)[:, None], at_atom, beside)


@dataclass(frozen=True)
class Mixture:
    """The proposal over full rows; what the event fixes is held.

    Args:
        kernels: of the columns that move, together all of them.
        log_w: log-weights of the centres, (K,), normalised.
        map: to and from unconstrained coordinates.
        row: a row whose fixed columns have their values, (D,).
    """

    kernels: Sequence[Kernel]
    log_w: Widths
    map: Unconstrained
    row: Float[Tensor, " D"]

    def draw(self, n: int, generator: Generator) -> Rows:
        """n rows in the user's coordinates."""
        which = torch.multinomial(self.log_w.exp(), n, replacement=True, generator=generator)
        u = self.row.expand(n, -1)
        for kernel in self.kernels:
            u = kernel.draw(u, which, generator)
        return self.map(u)[0]

    def log_prob(self, x: Rows) -> Float[Tensor, " N"]:
        """log q of rows in the user's coordinates."""
        return torch.cat([self._log_prob(part) for part in x.split(max(1, _AT_ONCE // (len(self.log_w) * x.shape[1])))])

    def _log_prob(self, x: Rows) -> Float[Tensor, " N"]:
        u = self.map.inverse(x)
        total = self.log_w + sum(kernel.table(u) for kernel in self.kernels)
        return total.logsumexp(-1) - self.map(u)[1]


# -- learning --------------------------------------------------------------------------------------


def learn(moving: Sequence[Coordinate], near: Float[Tensor, "K D"], far: Float[Tensor, "J D"], row: Float[Tensor, " D"]) -> Mixture:
    """A mixture on centres near the target, and one in ten in number far from it with twice the width.

    Args:
        moving: the columns that move.
        near: rows about where the target is, (K, D), of equal weight.
        far: draws of the joint, wide of the target, (J, D).
        row: the fixed columns' values.
    """
    unconstrained = Unconstrained(moving)
    far = far[: max(1, len(near) // 5)]
    u, wide = unconstrained.inverse(near), unconstrained.inverse(far)
    centres, is_far = torch.cat((u, wide)), torch.arange(len(u) + len(wide), device=u.device) >= len(u)
    log_w = torch.where(is_far, math.log(0.1 / len(wide)), math.log(0.9 / len(u)))
    makers = _Maker(u, wide, centres, is_far)
    smooth = [m.index for m in moving if m.smooth]
    kernels: list[Kernel] = [makers.smooth(smooth)] if smooth else []
    kernels += [makers.single(m) for m in moving if not m.smooth]
    return Mixture(kernels, log_w, unconstrained, row.to(u))


@dataclass(frozen=True)
class _Maker:
    """What the kernels are learned from.

    Args:
        near: rows in unconstrained coordinates.
        wide: those of the joint.
        centres: both.
        is_far: which of the centres are of the joint.
    """

    near: Tensor
    wide: Tensor
    centres: Tensor
    is_far: Tensor

    def smooth(self, columns: list[int]) -> Smooth:
        """The covariance of the near rows, narrowed by Scott's factor; the far ones as wide as all draws are, at least."""
        u, k = self.near[:, columns], len(self.near)
        covariance = torch.cov(u.T).reshape(len(columns), len(columns)) if k > 1 else torch.zeros(len(columns), len(columns)).to(u)
        spread = self._spread(columns)
        # a little of the joint's spread, so that repeated centres keep a width
        covariance = covariance + torch.diag((0.02 * spread).square())
        scott = k ** (-1 / (len(columns) + 4))
        far = 2 * (spread / covariance.diagonal().sqrt()).max().clamp_min(1.0).clamp_max(50.0)
        widths = torch.where(self.is_far, far, 1.1 * scott)
        return Smooth(columns, self.centres[:, columns], torch.linalg.cholesky(covariance), widths)

    def single(self, m: Coordinate) -> Kernel:
        """The kernel of one column that is not smooth."""
        if m.values is not None:
            return self._listed(m, m.values.to(self.near))
        centres = self.centres[:, m.index]
        if m.spike is None:
            return self._beside(m, centres)
        atoms = at_spike(centres, m.spike)
        others = centres[~atoms] if bool((~atoms).any()) else centres[:1] + 1.0
        filled = others[torch.arange(len(centres), device=centres.device) % len(others)]
        chance = torch.where(atoms, 1 - _LEAVES, _LEAVES)
        return Spiked(m.index, m.spike, chance, self._beside(m, torch.where(atoms, filled, centres)))

    def _beside(self, m: Coordinate, centres: Tensor) -> Smooth | Stepped:
        inside = centres.clamp(m.lower, m.upper)
        spread = torch.cat((inside[self.is_far], inside[~self.is_far])).std(correction=0).clamp_min(1e-6 * (1 + inside.abs().max()))
        near = inside[~self.is_far].std(correction=0).clamp_min(0.1 * spread)
        widths = torch.where(self.is_far, 2 * spread, near).clamp_min(m.step / 2)
        if m.step:
            return Stepped(m.index, inside, widths, m.step, m.per)
        return Smooth([m.index], inside[:, None], torch.ones(1, 1).to(inside), widths)

    def _listed(self, m: Coordinate, values: Tensor) -> Listed:
        values = values.sort().values
        at = torch.searchsorted(values, self.centres[:, m.index].contiguous()).clamp_max(len(values) - 1)
        known = values[at] == self.centres[:, m.index]
        counts = torch.bincount(at[known], minlength=len(values)).to(values) + max(1.0, 0.02 * len(at))
        leaves = torch.where(known, torch.where(self.is_far, 0.5, _LEAVES), 1.0)
        return Listed(m.index, values, at, leaves, counts / counts.sum(), m.log_per(values))

    def _spread(self, columns: list[int]) -> Tensor:
        rows = torch.cat((self.near, self.wide))[:, columns]
        spread = rows.std(0, correction=0)
        return torch.where(spread > 0, spread, 1e-3 * (1 + rows.abs().amax(0)))


def _logistic(like: Tensor, generator: Generator) -> Tensor:
    u = torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    return u.clamp(1e-15, 1 - 1e-15).logit()


def _uniform(like: Tensor, n: int, generator: Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=like.dtype, device=like.device)
