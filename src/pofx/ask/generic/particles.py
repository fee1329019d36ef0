"""Conditioning by particles: tempered sequential Monte Carlo from a reference that is easy to draw to p itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.ask.generic.draws import Draws, Islands
from pofx.ask.generic.kernels import Kernel as Columns
from pofx.ask.generic.kernels import Mixture, Rows
from pofx.ask.generic.resampling import FEWEST, POOL, first, impossible, too_few
from pofx.ask.generic.space import Coordinate, LogDensity, Unconstrained, coordinates, draws_of, repeatable, target
from pofx.errors import DataError, Unavailable
from pofx.events import Event
from pofx.models.base import Model
from pofx.samplers import Hamiltonian, Kernel, Moved, RandomWalk, smc
from pofx.samplers.densities import differentiable, restricted, value
from pofx.samplers.kernels import Scale, accepted
from pofx.types import Generator, Kind

ISLANDS = 20  # independent runs: the errors come from their spread
CENTRES = 40  # of the reference: it need be wide, not sharp, and is asked at every move
_MOVES = 4


def particles(model: Model, event: Event, draws: int, *, generator: Generator) -> Draws:
    """Particles from q to p on the event, through q^(1 - b) p^b with b from 0 to 1: `samplers.smc` with prior q and likelihood p / q.

    q is the first proposal of `sir`, kernels about draws of the joint nearest to the event, so points, sets and intervals over every
    kind of variable go the same way. Moves: the smooth variables together (Hamiltonian in unconstrained coordinates where the density has
    a gradient, else a random walk), every other alone (`Within`). Modes keep the weight that the evidence along the path gives them: no
    particle need pass from one to the other, which chains must. Fails where no particle comes near a mode (nothing says so), where
    variables that are not smooth are so tied that none can move alone, and slowly in many variables (as many temperatures as nats
    between q and p).

    20 islands run apart: errors and effective size come from their spread (which knows them to about a third), and Z is unbiased.

    Cost: as many log-densities and kernels of q a temperature as `posterior` takes, of max(2000, draws) particles.

    Args:
        model: p, whose log_prob is a function.
        event: what is known.
        draws: how many.
        generator: of all draws.

    Raises:
        Unavailable: the density is drawn anew at each call, the event has probability 0, or under 10 effective draws.
    """
    if not repeatable(model):
        why = f"its log_prob is of kind {model.density}, not a fixed function of x"
        raise Unavailable("conditional by smc", model.noun, why, instead="method='rejection', 'sir' or 'abc'")
    path = _Path.of(model, event, generator)
    each = max(100, -(-draws // ISLANDS))
    kernel = path.kernel
    try:
        run = smc(path.log_q, path.log_ratio, path.draw, particles=each, islands=ISLANDS, kernel=kernel, moves=_MOVES, generator=generator)
    except DataError as sentence:
        raise impossible(model, event, str(sentence)) from None
    x = path.map(run.x.flatten(0, 1))[0].unflatten(0, run.x.shape[:2])
    islands, (log_z, error) = Islands(x, run.log_z), run.log_evidence
    ess = islands.worth([m.index for m in path.moving])
    if ess < FEWEST:
        raise too_few("smc", model, ess, ISLANDS * each)
    rows = path.map(run.sample(draws, generator=generator))[0]
    how = f"{ISLANDS} runs of {each} particles through {len(run.b)} temperatures: effective size about {ess:.0f}"
    constant = model.density is not Kind.UNNORMALISED
    evidence = (float(log_z), float(error)) if constant else (None, None)
    return Draws(rows, Kind.ESTIMATE, "smc", ess, how, islands, None, *evidence)


@dataclass(frozen=True)
class _Path:
    """From q to p, in unconstrained coordinates.

    Args:
        q: the reference.
        log_p: log p where the event holds.
        moving: the variables left open.
        kernel: their moves.
    """

    q: Mixture
    log_p: LogDensity
    moving: list[Coordinate]
    kernel: Kernel

    @classmethod
    def of(cls, model: Model, event: Event, generator: Generator) -> "_Path":
        """Reference and moves."""
        moving, log_p = coordinates(event), target(model, event)
        q = first(event, moving, draws_of(model, POOL, generator=generator), generator, centres=CENTRES)
        path = cls(q, log_p, moving, RandomWalk())
        u = path.draw(2, generator)
        block: Kernel = Hamiltonian() if differentiable(path.log_q, u) and differentiable(path.log_ratio, u) else RandomWalk()
        return cls(q, log_p, moving, Within(q, moving, block))

    @property
    def map(self) -> Unconstrained:
        return self.q.map

    def draw(self, n: int, generator: Generator) -> Rows:
        return self.map.inverse(self.q.draw(n, generator))

    def log_q(self, u: Tensor) -> Tensor:
        return self.map.log_density(self.q.log_prob)(u)

    def log_ratio(self, u: Tensor) -> Tensor:
        """log p - log q of x; the Jacobian is in both."""
        x = self.map(u)[0]
        log = self.log_p(x) - self.q.log_prob(x)
        return torch.where(log.isfinite(), log, -torch.inf)


@dataclass(frozen=True)
class Within:
    """Metropolis within Gibbs: smooth variables together by a block, each of the others alone; a kernel, so `smc` takes it.

    A variable that is not smooth is proposed from its own kernels in q (any value of its domain, its atom too), and on a grid or
    count without a list also by steps about where it stands, whose scale is learned.

    Args:
        q: the reference.
        moving: the variables that move.
        block: moves all smooth ones together.
    """

    q: Mixture
    moving: Sequence[Coordinate]
    block: Kernel

    @property
    def target(self) -> float:
        """The block's."""
        return self.block.target

    def first_step(self, dim: int) -> float:
        """The block's, for the smooth variables alone."""
        return self.block.first_step(max(1, len(self.smooth)))

    @property
    def smooth(self) -> list[int]:
        """Columns that move together."""
        return [m.index for m in self.moving if m.smooth]

    def __call__(self, log_p: LogDensity, x: Rows, scale: Scale, *, generator: Generator) -> Moved:
        """Every variable once; acceptance NaN where no scale is learned."""
        acceptance = torch.full_like(scale, torch.nan)
        log = value(log_p, x)
        for m, kernel in self._singles():
            x, log = self._anywhere(log_p, x, log, kernel, generator)
            if m.step and m.values is None:
                x, log, acceptance[m.index] = _stepped(log_p, x, log, m, scale[m.index], generator)
        if not self.smooth:
            return Moved(x, acceptance)
        columns = torch.tensor(self.smooth, device=x.device)
        moved = self.block(restricted(log_p, x, columns), x[:, columns], scale[columns], generator=generator)
        return Moved(x.index_copy(1, columns, moved.x), acceptance.index_copy(0, columns, moved.acceptance.to(scale)))

    def _singles(self) -> list[tuple[Coordinate, Columns]]:
        rough = [m for m in self.moving if not m.smooth]
        return list(zip(rough, self.q.kernels[len(self.q.kernels) - len(rough) :], strict=True))

    def _anywhere(self, log_p: LogDensity, x: Rows, log: Tensor, kernel: Columns, generator: Generator) -> tuple[Rows, Tensor]:
        """x_d' ~ q_d, accepted with probability min(1, p(x') q_d(x_d) / (p(x) q_d(x_d')))."""
        which = torch.multinomial(self.q.log_w.exp(), len(x), replacement=True, generator=generator)
        proposal = kernel.draw(x, which, generator)
        after = value(log_p, proposal)
        log_q = [(self.q.log_w + kernel.table(rows)).logsumexp(-1) for rows in (x, proposal)]
        moves, _ = accepted(after - log + log_q[0] - log_q[1], generator=generator)
        return torch.where(moves[:, None], proposal, x), torch.where(moves, after, log)


def _stepped(log_p: LogDensity, x: Rows, log: Tensor, m: Coordinate, scale: Tensor, generator: Generator) -> tuple[Rows, Tensor, Tensor]:
    """A whole number of steps about where it stands, as likely there as back: densities count as probabilities of their cells."""
    away = (scale * torch.randn(len(x), generator=generator, dtype=x.dtype, device=x.device) / m.step).round()
    proposal = x.clone()
    proposal[:, m.index] += m.step * away
    after = value(log_p, proposal)
    moves, probability = accepted(after - log + m.log_per(proposal[:, m.index]) - m.log_per(x[:, m.index]), generator=generator)
    return torch.where(moves[:, None], proposal, x), torch.where(moves, after, log), probability.mean()
