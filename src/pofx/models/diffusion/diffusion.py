"""A diffusion model: a network that takes noise away, and what follows from it."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pofx.domain import Domain
from pofx.models.base import Model, labelled
from pofx.models.diffusion.heads import Coordinates, Heads
from pofx.models.diffusion.levels import LevelLaw, Weight
from pofx.types import Context, Generator, Kind, Latent, Nats, X

Denoise = Callable[[Tensor, Tensor], Tensor]
_GROUPS = 8  # independent estimates of a row's bound, whose spread is its error


class View(NamedTuple):
    """What a network is told of the cells of a row that are not noised.

    Args:
        x_0: their coordinates, (N, E).
        given: which variables it sees as they are, (N, D) of 0 and 1.
        absent: which it is to do without, (N, D) of 0 and 1.
    """

    x_0: Coordinates
    given: Tensor
    absent: Tensor

    @property
    def noised(self) -> Tensor:
        """The others, (N, D)."""
        return 1 - self.given - self.absent


class TableNet(nn.Module):
    """A network of rows: sees coordinates and which variables are given or absent side by side.

    Args:
        net: from E + 2 D numbers, the time and a condition to the outputs.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, v: Tensor, view: View, u: Tensor, c: Tensor | None) -> Tensor:
        """(N, E) -> (N, outputs)."""
        out: Tensor = self.net(torch.cat((v, view.given, view.absent), -1), u, c)
        return out


class PictureNet(nn.Module):
    """A network of images: the coordinates are pixels, and which are given or absent are channels beside them.

    Args:
        net: from 3 C channels, the time and a condition to C K channels, K outputs a pixel.
        shape: (C, H, W).
    """

    def __init__(self, net: nn.Module, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.net, self.shape = net, shape

    def forward(self, v: Tensor, view: View, u: Tensor, c: Tensor | None) -> Tensor:
        """(N, C H W) -> (N, C H W K)."""
        channels = torch.cat([part.view(-1, *self.shape) for part in (v, view.given, view.absent)], 1)
        return self.net(channels, u, c).unflatten(1, (self.shape[0], -1)).movedim(2, -1).flatten(1)


class Diffusion(Model):
    """p(x | c) = integral of N(x_0; y_0, s_min^2) p(y_0 | y_1, c) ... p(y_1), learned by taking noise away.

    In coordinates y = x_0 + s eps of the row (see `heads`), D(y, s) = E[x_0 | y] is all there is. log_prob is the bound of continuous time,

        -log p(x) <= KL(N(x_0, s_max^2) || prior) + E integral |x_0 - D(y, s)|^2 / s^2 d ln s - E log p(x | y at s_min),

    an average over `draws` levels a row, in groups whose spread is its standard error. The prior has mean and variance of the data's
    coordinates, s_max^2 added.

    Cost: a training row one pass of the network; a row of log_prob `draws` passes; a draw the solver's steps.

    Source: Kingma, Salimans, Poole and Ho, "Variational diffusion models", NeurIPS 2021, arXiv:2107.00630, in the coordinates of Karras et al.,
    NeurIPS 2022, arXiv:2206.00364.
    """

    density = Kind.BOUND
    sampling = Kind.ESTIMATE
    missing = Kind.BOUND

    ends: Tensor
    centre: Tensor
    variance: Tensor

    def __init__(
        self,
        domain: Domain,
        context: Domain | None,
        heads: Heads,
        net: nn.Module,
        *,
        law: LevelLaw,
        weight: Weight,
        span: tuple[float | None, float | None] = (None, None),
        draws: int = 64,
        masked: float = 0.0,
    ) -> None:
        super().__init__(domain, context)
        self.heads, self.net, self.law, self.weight = heads, net, law, weight
        self.span, self.draws, self.masked = span, draws, masked
        self.register_buffer("ends", torch.tensor([0.01, 80.0]).log())
        self.register_buffer("centre", torch.zeros(heads.width))
        self.register_buffer("variance", torch.ones(heads.width))

    # -- learning ----------------------------------------------------------------------------------

    def initialise(self, x: X, c: Context | None = None) -> None:
        """Take units, frequencies, levels and the prior from the rows."""
        x = x.to(self.centre)
        self.heads.initialise(x)
        x_0, seen = self.heads.embed(x), (~x.isnan()[:, self.heads.owner]).to(x)
        count = seen.sum(0).clamp_min(1)
        self.centre.copy_((x_0 * seen).sum(0) / count)
        self.variance.copy_(((x_0 - self.centre).square() * seen).sum(0) / count)
        low, high = self.span
        whole = x_0[~x.isnan().any(1)]
        low = low or self.heads.finest(whole if len(whole) > 1 else x_0)
        self.ends.copy_(torch.tensor([low, high or widest(self.heads.width)]).log())

    def loss(self, x: X, c: Context | None = None, *, generator: Generator = None) -> Nats:
        """The weighted error at one level a row while training; else minus the bound."""
        x = x.to(self.centre)
        view = self._view(x, generator)
        if not self.training:
            return -self._bound(x, view, c, 8, 1, generator).mean(0)
        u = (torch.arange(len(x), device=x.device) + self._uniform(x[0, 0], generator)) / len(x)
        log_s = self.law.place(u, self.ends)
        error = self._error(view, c, log_s, generator)
        self.law.see(log_s, error.detach(), self.ends)
        return self.weight.at(log_s, self.law.density(log_s, self.ends)) * error

    def _error(self, view: View, c: Context | None, log_s: Tensor, generator: Generator) -> Nats:
        """|x_0 - D|^2 / s^2 over the noised coordinates."""
        s = log_s.exp()[:, None]
        y = view.x_0 + s * self._normal(view.x_0, generator)
        error = ((view.x_0 - self.denoised(y, s, view, c)) / s).square()
        return (error * view.noised[:, self.heads.owner]).sum(1)

    def _view(self, x: Tensor, generator: Generator) -> View:
        absent = x.isnan().to(x)
        return View(self.heads.embed(x), torch.zeros_like(absent), absent)

    # -- the denoiser ------------------------------------------------------------------------------

    def denoised(self, y: Coordinates, s: Tensor, view: View, c: Context | None) -> Coordinates:
        """D(y, s), (N, E), of the noised coordinates."""
        return self.heads.denoised(self._out(y, s, view, c), y, s)

    def _out(self, y: Coordinates, s: Tensor, view: View, c: Context | None) -> Tensor:
        owner = self.heads.owner
        v = y * (1 + s.square()).rsqrt() * view.noised[:, owner] + view.x_0 * view.given[:, owner]
        out: Tensor = self.net(v, view, s.log(), None if c is None else c.to(v))
        return out

    def denoiser(self, view: View, c: Context | None) -> Denoise:
        """D as a function of y and s."""

        def denoise(y: Tensor, s: Tensor) -> Tensor:
            return self.denoised(y, s.expand(len(y), 1), view, c)

        return denoise

    # -- density -----------------------------------------------------------------------------------

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self._log_prob_and_error(x, c, generator)[0]

    def _log_prob_and_error(self, x: X, c: Context | None, generator: Generator) -> tuple[Nats, Nats]:
        x = x.to(self.centre)
        each = self._bound(x, self._view(x, generator), c, -(-self.draws // _GROUPS), _GROUPS, generator)
        return each.mean(0), each.std(0) / math.sqrt(_GROUPS)

    def _bound(self, x: Tensor, view: View, c: Context | None, levels: int, groups: int, generator: Generator) -> Tensor:
        """Estimates of the bound, (groups, N), each from so many levels."""
        return torch.stack([self._bound_once(x, view, c, levels, generator) for _ in range(groups)])

    def _bound_once(self, x: Tensor, view: View, c: Context | None, levels: int, generator: Generator) -> Nats:
        start = self._uniform(x[:, 0], generator)
        integral = x.new_zeros(len(x))
        for j in range(levels):
            log_s = self.law.place((j + start) / levels, self.ends)
            integral += self._error(view, c, log_s, generator) / self.law.density(log_s, self.ends) / levels
        return self._log_decoded(x, view, c, generator) - self._to_prior(view) - integral

    def _to_prior(self, view: View) -> Nats:
        """KL(N(x_0, s_max^2) || N(mean, variance + s_max^2)) of the noised coordinates."""
        s = (2 * self.ends[1]).exp()
        ratio = s / (self.variance + s)
        each = 0.5 * (ratio - 1 - ratio.log() + (view.x_0 - self.centre).square() / (self.variance + s))
        return (each * view.noised[:, self.heads.owner]).sum(1)

    def _log_decoded(self, x: Tensor, view: View, c: Context | None, generator: Generator) -> Nats:
        """log p(x | y) at the last level."""
        s = self.ends[0].exp().expand(len(x), 1)
        y = view.x_0 + s * self._normal(view.x_0, generator)
        each = self.heads.log_prob(self._out(y, s, view, c), y, s, x)
        return torch.where(view.noised > 0, each, 0.0).sum(1)

    # -- draws -------------------------------------------------------------------------------------

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        none = self.centre.new_zeros(n, len(self.domain))
        view = View(self.centre.new_zeros(n, self.heads.width), none, none)
        y = self.centre + (self.variance + (2 * self.ends[1]).exp()).sqrt() * self._normal(view.x_0, generator)
        y = dpm2m(self.denoiser(view, c), y, karras(20, *self.ends.exp().tolist()).to(y))
        return self.heads.read(y)

    # -- numbers -----------------------------------------------------------------------------------

    def _normal(self, like: Tensor, generator: Generator) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)

    def _uniform(self, like: Tensor, generator: Generator) -> Tensor:
        return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def widest(width: int) -> float:
    """The s_max at which forgetting the row costs about 0.01 nats: a coordinate of unit variance costs 1 / (2 s^2)."""
    return max(10.0, math.sqrt(50.0 * width))


def karras(steps, s_min, s_max, rho=7.0):
    i = torch.linspace(0, 1, steps)
    return torch.cat(((s_max ** (1 / rho) + i * (s_min ** (1 / rho) - s_max ** (1 / rho))) ** rho, torch.zeros(1)))


def dpm2m(D, y, g):
    old = None
    for i, (s, t) in enumerate(zip(g[:-1], g[1:])):
        d = D(y, s[None, None])
        if t == 0:
            return d
        h = (s / t).log()
        dd = d
        if old is not None:
            r = (g[i - 1] / s).log() / h
            dd = (1 + 1 / (2 * r)) * d - old / (2 * r)
        y = (t / s) * y - torch.expm1(-h) * dd
        old = d
    return y
