"""A diffusion model: a network that takes noise away, and what follows from it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from pofx.domain import Domain
from pofx.models.base import Model, Particles, labelled
from pofx.models.diffusion.diagnostics import NoiseDiagnostics, diagnose
from pofx.models.diffusion.heads import Coordinates, Heads, Reals
from pofx.models.diffusion.led import Seen
from pofx.models.diffusion.levels import LevelLaw, Met, Steps, Weight
from pofx.models.diffusion.views import View, some_hidden
from pofx.samplers.denoising import DPM2M, Denoise, Solver, last
from pofx.samplers.flow_ode import decode, encode, ode_log_prob
from pofx.samplers.guidance import ClassifierFree
from pofx.samplers.levels import Levels, log_uniform
from pofx.samplers.twisted import PlugIn, Twist, twisted, width_of
from pofx.transforms.ode import THREE_EIGHTHS, RungeKutta, Trace
from pofx.types import Context, Generator, Kind, Latent, Nats, Point, X

_GROUPS = 8  # independent estimates of a row's bound, whose spread is its error
_JUDGED = 3  # levels of a held-out row, at the same noise every time
_IMPUTED = 32  # draws behind a mean
_LED = 100  # levels of draws that are led to evidence
_AT_ONCE = 1024  # of them
_TRIED = 256  # draws that a likelihood's width is taken from
_WORK = 2**23  # outputs of the network at once, and rows by that
_EXACT_TRACE = 64  # coordinates; above, the trace of the ODE is estimated


@dataclass(frozen=True)
class Learning:
    """How the network learns.

    Args:
        law: q(ln s), which levels a row is met at; None: as the parts of the loss are large.
        weight: how much each counts.
        masked: share of the rows that show and hide some of their cells, so that conditionals are learned, too.
        dropped: share of the rows whose condition is left out, so that guidance has something to compare with.
        picture: (C, H, W) of rows that are pictures: rectangles of them are shown and hidden, too.
    """

    law: LevelLaw | None = None
    weight: Weight = Weight.BALANCED
    masked: float = 0.0
    dropped: float = 0.0
    picture: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Asking:
    """How questions are answered.

    Args:
        solver: the way from noise to a draw.
        steps: of it.
        draws: levels at which a row's bound is taken.
        steps_bounded: the bound is that of an ancestral sampler with so many steps; None: of continuous time.
        ode: whether log_prob is that of the probability-flow ODE, and no bound.
        probes: of the ODE's trace where it has many coordinates.
        ode_steps: of Kutta's method of order 4 along the ODE: a network in float32 is too rough for a step size by tolerance.
        guidance: w of D_c + w (D_c - D_0), what draws follow; 0: the law that was learned.
    """

    solver: Solver = field(default_factory=DPM2M)
    steps: int = 20
    draws: int = 64
    steps_bounded: int | None = None
    ode: bool = False
    probes: int = 8
    ode_steps: int = 32
    guidance: float = 0.0


class Diffusion(Model):
    """p(x | c): noise, from which a network takes away a little at a time.

    In coordinates y = x_0 + s eps of the row (see `heads`), D(y, s) = E[x_0 | y] is all there is. log_prob is the bound

        -log p(x) <= KL(N(x_0, s_max^2) || prior) + E integral |x_0 - D(y, s)|^2 / s^2 d ln s - E log p(x | y at s_min)

    on the law of the ancestral sampler in the limit of many steps, an average over `draws` levels a row, in groups whose spread is its
    standard error. Or, of real variables alone, it is that of the probability-flow ODE: another law of the same network, and an estimate.
    The prior has mean and variance of the data's coordinates, s_max^2 added. Missing cells are absent: the network has learned to do
    without them, and likewise conditionals are its own answers; neither is derived from its law of whole rows.

    Cost: a training row one pass of the network; a row of log_prob `draws` passes; a draw the solver's steps.

    Source: Kingma, Salimans, Poole and Ho, "Variational diffusion models", NeurIPS 2021, arXiv:2107.00630, in the coordinates of Karras et
    al., NeurIPS 2022, arXiv:2206.00364; the ODE: Song et al., ICLR 2021, arXiv:2011.13456.

    Args:
        domain: what x is.
        context: what c is, real variables, or None.
        heads: where noise is added, and what the network's outputs say.
        net: of views; see `views.Seeing`.
        learning: how it learns.
        asking: how it answers.
        span: the least and the greatest level; None: from the data.
    """

    density = Kind.BOUND
    sampling = Kind.ESTIMATE
    missing = Kind.ESTIMATE

    ends: Tensor
    location: Tensor
    variance: Tensor

    def __init__(
        self,
        domain: Domain,
        context: Domain | None,
        heads: Heads,
        net: nn.Module,
        learning: Learning,
        asking: Asking,
        span: tuple[float | None, float | None] = (None, None),
    ) -> None:
        super().__init__(domain, context)
        self.heads, self.net = heads, net
        self.met = Met()
        self.rows_at_once = max(16, min(type(self).rows_at_once, _WORK // sum(heads.outputs)))
        self.learning, self.asking, self.span = learning, asking, span
        self.density = Kind.ESTIMATE if asking.ode else Kind.BOUND
        self.logs_average = not asking.ode or heads.width > _EXACT_TRACE
        self.register_buffer("ends", torch.tensor([span[0] or 0.01, span[1] or widest(heads.width)]).log())
        self.register_buffer("location", torch.zeros(heads.width))
        self.register_buffer("variance", torch.ones(heads.width))

    @property
    def noun(self) -> str:
        """In sentences."""
        return "diffusion model"

    # -- learning ----------------------------------------------------------------------------------

    def initialise(self, x: X, c: Context | None = None) -> None:
        """Take units, frequencies, levels and the prior from the rows."""
        x = x.to(self.location)
        self.heads.initialise(x)
        x_0, seen = self.heads.embed(x), (~self.heads.of_coordinates(x.isnan())).to(x)
        count = seen.sum(0).clamp_min(1)
        self.location.copy_((x_0 * seen).sum(0) / count)
        self.variance.copy_(((x_0 - self.location).square() * seen).sum(0) / count)
        least = self.span[0] or self.heads.finest(x_0)
        self.ends.copy_(torch.tensor([least, self.span[1] or widest(self.heads.width)]).log())

    def loss(self, x: X, c: Context | None = None, *, generator: Generator = None) -> Nats:
        """w |x_0 - D|^2 / s^2 at a level a row while training; else minus the bound."""
        view = self._view(x)
        if not self.training:
            # At levels that nothing learned moves: at the same noise two networks differ by what they are, hardly by luck.
            return -self._bound(x, view, c, _JUDGED, generator, Met().to(self.location))
        view = some_hidden(view, self.learning.masked, generator, self.learning.picture)
        u = (torch.arange(len(x), device=x.device) + self._rand(1, generator)) / len(x)  # one level in each N-th of the law
        law = self.learning.law or self.met.law(self.ends, self.learning.weight)
        log_s, density = law.draw(u, self.ends)
        error = self._paired_error(view, self._dropped(c, generator), log_s, generator)
        whole = self.heads.width / self._coordinates(view.noised).sum(1).clamp_min(1)  # a part counts as much as a row
        return self.learning.weight.at(log_s, density) * whole * error

    def _paired_error(self, view: View, c: Context | None, log_s: Tensor, generator: Generator) -> Nats:
        """|x_0 - D|^2 / s^2, the mean of a noise and its opposite: near the data a gradient is nearly all noise, which the two cancel."""
        eps, twice, log_twice = self._randn(len(log_s), generator), View(*(part.repeat(2, 1) for part in view)), log_s.repeat(2)
        error, chance = self._error(twice, None if c is None else c.repeat(2, 1), log_twice, torch.cat((eps, -eps)))
        self.met.see(log_twice, error.detach(), chance, self.ends)
        return error.view(2, -1).mean(0)

    def _settle(self) -> None:
        """What no file holds has the precision of what it does."""
        for module in self.modules():
            for name in module._non_persistent_buffers_set:
                buffer = getattr(module, name)
                if buffer is not None and buffer.is_floating_point():
                    setattr(module, name, buffer.to(self.location.dtype))

    def _view(self, x: X) -> View:
        """Rows whose missing cells are absent."""
        absent = x.isnan().to(self.location)
        return View(self.heads.embed(x.to(self.location)), torch.zeros_like(absent), absent)

    def _dropped(self, c: Context | None, generator: Generator) -> Context | None:
        """Conditions, some of them left out: NaN."""
        if c is None or not self.learning.dropped:
            return c
        left_out = self._rand(len(c), generator) < self.learning.dropped
        return torch.where(left_out[:, None], torch.nan, c)

    def _error(self, view: View, c: Context | None, log_s: Tensor, eps: Coordinates) -> tuple[Nats, Tensor]:
        """|x_0 - D|^2 / s^2 over the noised coordinates, and |eps|^2 and x_0 . eps less their means, (2, N)."""
        s, noised = log_s.exp()[:, None], self._coordinates(view.noised)
        error = ((view.x_0 - self.denoised(view.x_0 + s * eps, s, view, c)) / s).square()
        chance = torch.stack((eps.square() - 1, (view.x_0 - self.location) * eps))
        return (error * noised).sum(1), (chance * noised).sum(2)

    # -- the denoiser ------------------------------------------------------------------------------

    def denoiser(self, view: View, c: Context | None = None) -> Denoise:
        """D(y, s) of rows, guided where that was asked for."""
        told = partial(self.denoised, view=view, c=c)
        if c is None or not self.asking.guidance:
            return told
        return ClassifierFree(told, partial(self.denoised, view=view, c=torch.full_like(c, torch.nan)), self.asking.guidance)

    def denoised(self, y: Coordinates, s: Tensor, view: View, c: Context | None = None) -> Coordinates:
        """D(y, s), (N, E) for levels (N, 1); of coordinates that are noised."""
        return self.heads.denoised(self.out(y, s, view, c), y, s)

    def out(self, y: Coordinates, s: Tensor, view: View, c: Context | None = None) -> Tensor:
        """The network's outputs; it sees y, with unit variance where x_0 has it, and what is given in a place of its own."""
        v = torch.stack((y * (1 + s.square()).rsqrt() * self._coordinates(view.noised), view.x_0 * self._coordinates(view.given)), -1)
        out: Tensor = self.net(v, view, s.log(), None if c is None else _told(c.to(v)))
        return out

    def _coordinates(self, flags: Tensor) -> Tensor:
        """Of each coordinate, (N, E), where those of variables are given."""
        return self.heads.of_coordinates(flags)

    # -- density -----------------------------------------------------------------------------------

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self._log_prob_and_error(x, c, generator)[0]

    def _log_prob_and_error(self, x: X, c: Context | None, generator: Generator) -> tuple[Nats, Nats]:
        return self.of_view(x, self._view(x), c, generator)

    def of_view(self, x: X, view: View, c: Context | None, generator: Generator) -> tuple[Nats, Nats]:
        """log p of the noised cells, given those that are given, and its standard error."""
        inside = (x.isfinite() | (view.noised == 0)).all(1)
        x = torch.where(x.isinf(), 0.0, x).to(self.location)
        view = view._replace(x_0=self.heads.embed(x))
        if self.asking.ode:
            value, error = self._ode(view, c, generator)
        else:
            groups = min(_GROUPS, self.asking.draws)
            levels = -(-self.asking.draws // groups)
            each = torch.stack([self._bound(x, view, c, levels, generator, self.met) for _ in range(groups)])
            value, error = each.mean(0), each.std(0) / math.sqrt(groups)
        return torch.where(inside, value, -math.inf), torch.where(inside & value.isfinite(), error, 0.0)

    def _bound(self, x: Tensor, view: View, c: Context | None, levels: int, generator: Generator, met: Met) -> Nats:
        """One estimate for each row, from so many levels, evenly apart in what was met."""
        start, integral = self._rand(len(x), generator), x.new_zeros(len(x)).to(self.location)
        for j in range(levels):
            log_s, weight = self._at((j + start) / levels, met)
            error, chance = self._error(view, c, log_s, self._randn(len(x), generator))
            integral = integral + weight / levels * (error - met.luck(log_s, chance, self.ends))
        return self._log_decoded(x, view, c, generator) - self._to_prior(view, c) - integral

    def _at(self, u: Tensor, met: Met) -> tuple[Tensor, Tensor]:
        """ln s at a share of the levels, and what it counts in the integral over ln s."""
        if self.asking.steps_bounded:
            return Steps(self.asking.steps_bounded).at(u, self.ends)
        log_s, density = met.law(self.ends).draw(u, self.ends)
        return log_s, 1 / density

    def _middle(self, view: View, c: Context | None) -> Coordinates:
        """The mean of the prior of y at s_max: of the data, or D(location, s_max) where some of the row is given or there is a condition.

        A draw's mean is off by the prior's times deviation / s_max, in deviations: of 0.8, 0.05 where s_max is 10.
        """
        told = view.given.any(-1, keepdim=True) if c is None else c.isfinite().all(1, keepdim=True)
        at = self.location.expand(len(view.given), -1)
        if not bool(told.any()):
            return at
        return torch.where(told, self.denoiser(view, c)(at, self.ends[1].exp().expand(len(at), 1)), at)

    def _to_prior(self, view: View, c: Context | None) -> Nats:
        """KL(N(x_0, s_max^2) || N(middle, variance + s_max^2)) of the noised coordinates."""
        s = (2 * self.ends[1]).exp()
        ratio = s / (self.variance + s)
        each = 0.5 * (ratio - 1 - ratio.log() + (view.x_0 - self._middle(view, c)).square() / (self.variance + s))
        return (each * self._coordinates(view.noised)).sum(1)

    def _log_decoded(self, x: Tensor, view: View, c: Context | None, generator: Generator) -> Nats:
        """log p(x | y) at the last level."""
        s = self.ends[0].exp().expand(len(x), 1)
        y = view.x_0 + s * self._randn(len(x), generator)
        # The decoder of reals does not ask the network.
        out = y.new_zeros(len(y), sum(self.heads.outputs)) if self.heads.real else self.out(y, s, view, c)
        each = self.heads.log_prob(out, y, s, x.to(self.location))
        return torch.where(view.noised > 0, each, 0.0).sum(1)

    def _ode(self, view: View, c: Context | None, generator: Generator) -> tuple[Nats, Nats]:
        """Of the probability-flow ODE, in the units of x; coordinates that are not noised stand still."""
        s_min, s_max = self.ends.exp().tolist()
        moving = self._coordinates(view.noised)
        variance, middle = self.variance + s_max**2, self._middle(view, c)

        def log_prior(y: Tensor) -> Tensor:
            each = -0.5 * ((y - middle).square() / variance + variance.log() + math.log(2 * math.pi))
            return (each * moving).sum(1)

        def denoise(y: Tensor, s: Tensor) -> Tensor:
            return torch.where(moving > 0, self.denoised(y, s, view, c), y)

        trace: Trace = "exact" if self.heads.width <= _EXACT_TRACE else self.asking.probes
        found = ode_log_prob(
            denoise, view.x_0, s_min=s_min, s_max=s_max, log_prior=log_prior, trace=trace, method=self._method, generator=generator
        )
        unit = torch.cat([-part.scale.log() for part in self.heads.parts if isinstance(part, Reals)])
        return (found.value + (unit * moving).sum(1)).detach(), found.error.detach()

    # -- draws -------------------------------------------------------------------------------------

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return self.drawn(self.free(n), c, generator)

    def free(self, n: int) -> View:
        """Rows of which nothing is known."""
        nothing = self.location.new_zeros(n, len(self.domain))
        return View(self.location.new_zeros(n, self.heads.width), nothing, nothing)

    def drawn(self, view: View, c: Context | None, generator: Generator) -> X:
        """A row (N, D) for each view: its noised cells are drawn; what stands at the others says nothing."""
        chunks = zip(*(part.split(self.rows_at_once) for part in view), strict=True)
        conditions = [None] * (1 + len(view.given) // self.rows_at_once) if c is None else c.split(self.rows_at_once)
        parts = [self._drawn(View(*chunk), k, generator) for chunk, k in zip(chunks, conditions, strict=False)]
        return torch.cat(parts) if parts else view.given

    def _drawn(self, view: View, c: Context | None, generator: Generator) -> X:
        with torch.no_grad():
            y = self._middle(view, c) + self._noise(len(view.given), generator)
            return self.heads.read(last(self.asking.solver(self.denoiser(view, c), y, self.levels, generator=generator)))

    @property
    def levels(self) -> Levels:
        """Those that a draw goes down by."""
        s_min, s_max = self.ends.exp().tolist()
        return self.asking.solver.grid(self.asking.steps, s_min, s_max)

    def _noise(self, n: int, generator: Generator) -> Coordinates:
        """y at the greatest level, less its mean."""
        return (self.variance + (2 * self.ends[1]).exp()).sqrt() * self._randn(n, generator)

    # -- other questions ---------------------------------------------------------------------------

    def answers(self, question: str, seen: Sequence[int] = ()) -> Kind:
        """Of parts of a row where the network has learned from masked rows."""
        parts = question in ("marginal", "conditional", "complete", "impute")
        return Kind.NONE if parts and not self.learning.masked else super().answers(question, seen)

    @labelled(Kind.ESTIMATE)
    def _complete(self, x: X, generator: Generator) -> X:
        seen = x.isnan().to(self.location)
        drawn = self.drawn(View(self.heads.embed(x.to(self.location)), 1 - seen, torch.zeros_like(seen)), None, generator)
        return torch.where(x.isnan(), drawn.to(x), x)

    @labelled(Kind.ESTIMATE)
    def _impute(self, x: X, generator: Generator) -> X:
        """The mean of draws, of levels the most frequent one."""
        draws = self._complete(x.repeat(_IMPUTED, 1), generator).unflatten(0, (_IMPUTED, -1))
        levels = torch.tensor([bool(v.levels) for v in self.domain.variables], device=x.device)
        return torch.where(levels, draws.mode(0).values, draws.mean(0))

    @labelled(Kind.ESTIMATE)
    def _marginal(self, keep: tuple[int, ...]) -> "Model":
        return Part(self, torch.full((len(self.domain),), torch.nan), keep)

    @labelled(Kind.ESTIMATE)
    def _conditional(self, evidence: Point) -> "Model":
        return Part(self, evidence, evidence.isnan().nonzero()[:, 0].tolist())

    def _particles(self, evidence: Point, each: int, islands: int, generator: Generator) -> Particles:
        found = self._twisted(Seen(self.heads, self._out_free, evidence.to(self.location)), each, islands, generator)
        return replace(found, x=torch.where(evidence.isnan(), found.x, evidence.to(found.x)))

    def _led(self, log_likelihood: Callable[[Tensor], Tensor], each: int, islands: int, generator: Generator) -> Particles:
        """What has a few values goes in as its nearest value, without a gradient."""

        def log_l(x_0: Tensor) -> Tensor:
            return log_likelihood(self.heads.read(x_0)).to(x_0)

        few = self.heads.embed(self._sample(_TRIED, None, generator))
        return self._twisted(PlugIn(log_l, width=width_of(log_l, few)), each, islands, generator)

    def _twisted(self, twist: Twist, each: int, islands: int, generator: Generator) -> Particles:
        """Down `_LED` levels, evenly apart in ln s."""

        def denoise(y: Tensor, s: Tensor) -> Tensor:
            return self.heads.denoised(self._out_free(y, s), y, s)

        start = self.location + self._noise(each * islands, generator)
        levels = log_uniform(_LED, *self.ends.exp().tolist())
        run = twisted(denoise, start, levels, twist, islands=islands, batch=_AT_ONCE, generator=generator)
        x = self.heads.read(run.x.flatten(0, 1)).unflatten(0, (islands, each))
        return Particles(x, run.log_z, float(run.ess.mean(1).min()))

    def _out_free(self, y: Tensor, s: Tensor) -> Tensor:
        """The network's outputs where nothing of the rows is known."""
        return self.out(y, s, self.free(len(y)))

    @labelled(Kind.ESTIMATE)
    def _diagnose(self, x: X, c: Context | None, generator: Generator) -> NoiseDiagnostics:
        """Where along the noise the bound is paid, and the way of some draws."""
        return diagnose(self, x, c, generator)

    def paid(self, x: X, c: Context | None, edges: Tensor, generator: Generator) -> tuple[Nats, Nats, Tensor]:
        """What rows pay of the bound: at the top, at the bottom, and a unit of ln s between these edges, (bands, N)."""
        view, u = self._view(x), self._rand(len(x), generator)
        each = [self._error(view, c, low + u * (high - low), self._randn(len(x), generator))[0] for low, high in pairwise(edges)]
        return self._to_prior(view, c), -self._log_decoded(x, view, c, generator), torch.stack(each)

    def way(self, n: int, c: Context | None, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draws at every level on their way, (steps + 1, n, D), with the spread of rows, and the levels."""
        c = None if c is None else c[:n]
        n = n if c is None else len(c)
        view, levels = self.free(n), self.levels
        y = self._middle(view, c) + self._noise(n, generator)
        frames = [y, *self.asking.solver(self.denoiser(view, c), y, levels, generator=generator)]
        scaled = [frame / (1 + s.square()).sqrt() for frame, s in zip(frames, levels.to(y), strict=True)]
        return torch.stack([self.heads.read(frame) for frame in scaled]), levels

    @labelled(Kind.ESTIMATE)
    def _encode(self, x: X, c: Context | None) -> Latent:
        """Where the probability-flow ODE carries x, in deviations of the prior: about N(0, I)."""
        s_min, s_max = self.ends.exp().tolist()
        view = self._view(x)
        y = encode(self.denoiser(view, c), view.x_0, s_min=s_min, s_max=s_max, method=self._method).y
        return (y - self._middle(view, c)) / (self.variance + s_max**2).sqrt()

    @labelled(Kind.ESTIMATE)
    def _decode(self, z: Latent, c: Context | None) -> X:
        s_min, s_max = self.ends.exp().tolist()
        view = self.free(len(z))
        y = self._middle(view, c) + (self.variance + s_max**2).sqrt() * z.to(self.location)
        return self.heads.read(decode(self.denoiser(view, c), y, s_min=s_min, s_max=s_max, method=self._method).y)

    @property
    def _method(self) -> RungeKutta:
        return RungeKutta(self.asking.ode_steps, THREE_EIGHTHS)

    # -- noise -------------------------------------------------------------------------------------

    def _randn(self, n: int, generator: Generator) -> Coordinates:
        like = self.location
        return torch.randn(n, len(like), generator=generator, dtype=like.dtype, device=like.device)

    def _rand(self, n: int, generator: Generator) -> Tensor:
        return torch.rand(n, generator=generator, dtype=self.location.dtype, device=self.location.device)


class Part(Model):
    """p(x_r | x_s) as the network has learned it, every other cell absent.

    Args:
        whole: the diffusion model.
        evidence: x_s, NaN elsewhere.
        keep: r.
    """

    sampling = Kind.ESTIMATE
    missing = Kind.ESTIMATE

    evidence: Tensor

    def __init__(self, whole: Diffusion, evidence: Point, keep: Sequence[int]) -> None:
        super().__init__(whole.domain.select(keep), whole.context)
        self.whole, self.keep = whole, list(keep)
        self.density, self.logs_average = Kind.ESTIMATE, whole.logs_average
        self.register_buffer("evidence", evidence.to(whole.location))

    @property
    def approximation(self) -> str:
        """How it is known, in one sentence."""
        return "as the network learned it from rows with hidden cells, not derived from its law of whole rows"

    @property
    def noun(self) -> str:
        """The diffusion model's."""
        return self.whole.noun

    def answers(self, question: str, seen: Sequence[int] = ()) -> Kind:
        """The whole's."""
        return self.whole.answers(question, seen) if question in ("marginal", "conditional") else super().answers(question, seen)

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self._log_prob_and_error(x, c, generator)[0]

    def _log_prob_and_error(self, x: X, c: Context | None, generator: Generator) -> tuple[Nats, Nats]:
        rows = self._rows(x)
        return self.whole.of_view(rows, self._view(rows), c, generator)

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return self.whole.drawn(self._view(self._rows(self.evidence.new_zeros(n, len(self.keep)))), c, generator)[:, self.keep]

    @labelled(Kind.ESTIMATE)
    def _marginal(self, keep: tuple[int, ...]) -> "Part":
        return Part(self.whole, self.evidence, [self.keep[d] for d in keep])

    @labelled(Kind.ESTIMATE)
    def _conditional(self, evidence: Point) -> "Part":
        known = ~evidence.isnan()
        return Part(self.whole, self._rows(evidence[None])[0], [d for d, seen in zip(self.keep, known.tolist(), strict=True) if not seen])

    def _rows(self, x: Tensor) -> Tensor:
        """Rows of the whole that have x where it stands, and the evidence."""
        rows = self.evidence.expand(len(x), -1).clone()
        rows[:, self.keep] = x.to(rows)
        return rows

    def _view(self, rows: Tensor) -> View:
        given, absent = (~self.evidence.isnan()).to(rows).expand_as(rows), rows.isnan().to(rows)
        return View(self.whole.heads.embed(rows), given, absent)


def _told(c: Tensor) -> Tensor:
    """Conditions and whether there are any, (N, C + 1)."""
    left_out = c.isnan().any(1, keepdim=True)
    return torch.cat((torch.where(left_out, 0.0, c), left_out.to(c)), 1)


def widest(width: int) -> float:
    """The s_max at which forgetting the row costs about 0.01 nats: a coordinate of unit variance costs 1 / (2 s^2)."""
    return max(10.0, math.sqrt(50.0 * width))
