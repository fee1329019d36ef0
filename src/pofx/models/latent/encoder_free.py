"""Inference without an encoder: where p(x, z) is highest in z for a row, and a normal around there; no network sees x.

A row that is asked about costs an ascent of log p(x, z), where an encoder costs a pass. What differs between the three ways to learn is
where the z of a training row comes from, and so what the steps climb in theta, the numbers of prior and decoder:

    table    z_n <- a few steps up log p(x_n, z)                      log p(x_n, z_n): maximum a posteriori
    hmc      z_n <- a transition that leaves p(z | x_n) as it is      log p(x_n, z_n): its slope is that of log p(x_n) in the mean
    prior    z_1 ... z_K ~ p(z)                                       log 1/K sum_k p(x_n | z_k)
"""

import abc
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pofx.models.base import Scheduled, evaluated
from pofx.models.latent.continuous import FullNormal
from pofx.models.latent.generative import Generative
from pofx.models.latent.inference import Draws, Inference, hedged
from pofx.objectives.elbo import Levels
from pofx.samplers.climb import climb
from pofx.samplers.densities import LogDensity, value_and_grad
from pofx.samplers.leapfrog import trajectory
from pofx.types import Generator

_STARTS = 2  # of the ascents of a row that is asked about, drawn from the prior
_STEPS = 30  # of an ascent at most
_ENOUGH = 1e-4  # nats that are not worth another step
_APART = 0.02  # deviations of the prior between two slopes, whose difference is the curvature
_HEDGE = 0.1  # share of the prior in a proposal
_WIDEST = 0.8  # least eigenvalue of H in units of the prior: 1, but for the error of that unit
_PROBE = 512  # draws of the prior that say how wide it is
_ACCEPTED = 0.8  # of transitions; the step size follows
_GAIN = 0.05  # of its logarithm


class Laplace(Inference):
    """q(z | x) = N(z*, H^-1): z* the highest that ascents of log p(x, z) from a few places reach, H its curvature there.

    In units of the prior's deviation, H is taken from differences of slopes and no eigenvalue of it is under 0.8: a row narrows
    the prior and does not widen it. For a linear decoder of normal laws q is the posterior itself. All levels of z are drawn together, so
    log q stands with the bottom one.

    `propose` draws from 0.9 q + 0.1 p: no weight exceeds 10 p(x | z), so each has a variance.

    Cost: for each row some 30 slopes at each of 2 places, and 2 L for the curvature; a held-out row while learning is climbed for once.

    Source: Tierney and Kadane, "Accurate approximations for posterior moments and marginal densities", JASA 81, 1986; the ascent
    instead of an encoder: Schuster and Krogh, "The deep generative decoder", Bioinformatics 39, 2023, arXiv:2110.06672.
    """

    def draw(self, model: Generative, x: Tensor, c: Tensor | None, draws: int, *, generator: Generator = None) -> Draws:
        """Draws of the normal, about what one ascent reaches."""
        return _drawn(self.law(model, x, c), model, (draws, len(x)), generator)

    def propose(self, model: Generative, x: Tensor, c: Tensor | None, draws: int, *, generator: Generator = None) -> Draws:
        """Draws of 0.9 q + 0.1 p."""
        drawn = _drawn(self.law(model, x, c, _STARTS), model, (draws, len(x)), generator)
        return hedged(drawn, model, x.new_full((len(x),), _HEDGE), generator)

    def mean(self, model: Generative, x: Tensor, c: Tensor | None) -> Levels:
        """z*."""
        with evaluated(model):
            unit = _deviations(model)
            return model.levels_of(self._highest(_in_units(_joint(model, x, c), unit), model, (_STARTS, len(x)), unit) * unit)

    def marginal(self, keep: Sequence[int]) -> "Laplace":
        """Itself: what it knows of x it asks the model."""
        return Laplace()

    def law(self, model: Generative, x: Tensor, c: Tensor | None, starts: int = 1) -> FullNormal:
        """N(z*, H^-1) of each row, of all levels side by side, z* the best end of so many ascents."""
        with evaluated(model):
            unit = _deviations(model)
            log_p = _in_units(_joint(model, x, c), unit)
            u = self._highest(log_p, model, (starts, len(x)), unit)
            values, vectors = torch.linalg.eigh(_curvature(log_p, u))
        covariance = (vectors / values.clamp_min(_WIDEST)[:, None]) @ vectors.mT
        factor = unit[:, None] * cast("Tensor", torch.linalg.cholesky(covariance))
        return FullNormal(unit * u, factor.diagonal(dim1=-2, dim2=-1).log(), factor)

    def _highest(self, log_p: LogDensity, model: Generative, shape: tuple[int, int], unit: Tensor) -> Tensor:
        """The best end of the ascents of each row, (N, L), for a shape (starts, N)."""
        same = torch.Generator(unit.device).manual_seed(0)  # a row's answer depends on no other draw
        starts = torch.cat(model.draw_latents((shape[0], 1), like=unit, generator=same), dim=-1) / unit
        ends, heights, _ = climb(log_p, starts.expand(*shape, -1).flatten(0, 1), steps=_STEPS, tolerance=_ENOUGH)
        best = heights.view(shape).argmax(0)
        return ends.view(*shape, -1)[best, torch.arange(len(best), device=best.device)]


class FromPrior(Laplace):
    """While learning, q = p(z): the weights are p(x | z), whose variance explodes with what z says of x. Answers are `Laplace`'s.

    For a linear decoder of normal laws, in the directions l of z in which log p(x | z) = -a_l (z_l - m_l)^2 / 2 + ...,

        E[w^2] / E[w]^2 = prod_l (1 + a_l) / sqrt(1 + 2 a_l) exp(m_l^2 a_l^2 / ((1 + a_l) (1 + 2 a_l))):

    about the number of posteriors that fit into the prior, a factor for every unit, and as many draws are needed.
    """

    def draw(self, model: Generative, x: Tensor, c: Tensor | None, draws: int, *, generator: Generator = None) -> Draws:
        """Draws of the prior in training, else of the normal."""
        if not self.training:
            return super().draw(model, x, c, draws, generator=generator)
        latents = model.draw_latents((draws, len(x)), like=x, generator=generator)
        return Draws(latents, lambda: model.log_prior(latents), (None,) * len(latents), density=model.log_prior)


class Move(nn.Module, abc.ABC):
    """What is done to the latents of training rows before a step."""

    @abc.abstractmethod
    def forward(self, log_p: LogDensity, z: Tensor, generator: Generator) -> Tensor:
        """(N, L) -> (N, L)."""


class Climb(Move):
    """A few steps up log p(x, z).

    Args:
        steps: how many.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, log_p: LogDensity, z: Tensor, generator: Generator) -> Tensor:
        """Never below where it began."""
        return climb(log_p, z, steps=self.steps, tolerance=0.0)[0]


class Hamiltonian(Move):
    """A transition of Hamiltonian Monte Carlo, which leaves p(z | x) as it is; its step size follows the acceptance to 0.8.

    Args:
        steps: leapfrog steps of a transition.
    """

    log_step: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.register_buffer("log_step", torch.tensor(math.log(0.3)))

    def forward(self, log_p: LogDensity, z: Tensor, generator: Generator) -> Tensor:
        """Where each chain stands after it."""
        scale = self.log_step.exp().expand(1, z.shape[1])
        path = trajectory(log_p, value_and_grad(log_p, z), scale, self.steps, generator=generator)
        self.log_step += _GAIN * (path.acceptance.mean() - _ACCEPTED)
        return path.point.x


class Table(Laplace, Scheduled):
    """While learning, each training row has one z of its own, which moves before each step that is of the row. Answers are `Laplace`'s.

    With `Hamiltonian` the z are draws of p(z | x) that lag behind theta, and the slope of log p(x, z) at them is in the mean that of
    log p(x) (Fisher's identity). With `Climb` they are its modes: what is learned is the best table of latents, not the best p(x), and a
    narrow likelihood pays, because no width of z is felt.

    Cost: a step of learning, besides its own pass, as many slopes as the move has steps; memory for N L numbers, kept with the weights.

    Source: of a table of modes: Schuster and Krogh (as `Laplace`); of chains: Hoffman, "Learning deep latent Gaussian models with
    Markov chain Monte Carlo", ICML 2017; Han, Lu, Zhu and Wu, "Alternating back-propagation for generator network", AAAI 2017,
    arXiv:1606.08571.

    Args:
        latents: L of all levels together.
        move: how.
    """

    grows = frozenset({"z"})
    z: Tensor

    def __init__(self, latents: int, move: Move) -> None:
        super().__init__()
        self.move = move
        self.register_buffer("z", torch.zeros(0, latents))
        self.rows: Tensor | None = None  # of the table, that the next loss is of

    def initialise(self, x: Tensor) -> None:
        """A z for each of the rows: a standard normal draw."""
        self.z = self.z.new_empty(len(x), self.z.shape[1]).normal_()

    def passed(self, done: float, rows: Tensor) -> None:
        """Hear of which rows the next step is."""
        self.rows = rows

    def draw(self, model: Generative, x: Tensor, c: Tensor | None, draws: int, *, generator: Generator = None) -> Draws:
        """In training one z a row: that of the table, moved; else draws of the normal."""
        if not self.training or self.rows is None:
            return super().draw(model, x, c, draws, generator=generator)
        with evaluated(model):
            z = self.move(_joint(model, x, c), self.z[self.rows], generator).detach()
        self.z[self.rows] = z
        return Draws(model.levels_of(z[None]), tuple, ())  # points: they have neither log q nor divergence


def _drawn(law: FullNormal, model: Generative, shape: tuple[int, int], generator: Generator) -> Draws:
    drawn = law.draw(shape, generator=generator)
    kl = law.kl(model.prior) if len(model.sizes) == 1 else None
    return Draws(
        model.levels_of(drawn.z),
        lambda: _at_bottom(drawn.log_prob(), model),
        (kl, *(None for _ in model.sizes[1:])),
        density=lambda latents: _at_bottom(law.log_prob(torch.cat(latents, dim=-1)), model),
    )


def _joint(model: Generative, x: Tensor, c: Tensor | None) -> LogDensity:
    """log p(x, z | c) of z (R, L), all levels side by side: row i of z is of row i mod N of x."""

    def log_p(z: Tensor) -> Tensor:
        latents = model.levels_of(z.view(-1, len(x), z.shape[-1]))
        return torch.stack((model.log_likelihood(latents, x, c), *model.log_prior(latents))).sum(0).flatten()

    return log_p


def _in_units(log_p: LogDensity, unit: Tensor) -> LogDensity:
    return lambda u: log_p(unit * u)


def _deviations(model: Generative) -> Tensor:
    """Of each unit by the prior, (L,): one number for all levels, from the same draws each time."""
    like = model.decoder.heads.bias.detach()
    same = torch.Generator(like.device).manual_seed(0)
    return torch.cat(model.draw_latents((_PROBE,), like=like, generator=same), dim=-1).std(0).detach()


def _curvature(log_p: LogDensity, u: Tensor) -> Tensor:
    """Minus the second derivatives at each row of u, (N, L, L): central differences of slopes."""
    apart = _APART * torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
    falls = [value_and_grad(log_p, u - d).grad - value_and_grad(log_p, u + d).grad for d in apart]
    h = torch.stack(falls, dim=-1) / (2 * _APART)
    return 0.5 * (h + h.mT)


def _at_bottom(log_q: Tensor, model: Generative) -> Levels:
    """log q of all levels together, counted at the bottom one."""
    return (log_q, *(torch.zeros_like(log_q) for _ in model.sizes[1:]))
