"""Laws made of laws."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pofx.distributions.base import Law, OfLaw, Parameters, Pieces, Truths, Values, inverse_positive, nearest, total, weighted_sums
from pofx.distributions.continuous import HiddenNormal
from pofx.distributions.newton import NewtonFit, distinct
from pofx.errors import OptionError
from pofx.events import Among, Between, Condition
from pofx.types import Generator

_FIRST_EM_STEPS = 3  # over the unrounded value
_LEAST_RAW = -40.0  # of a scale: its slope e^-40 is above 0
_EM_STEPS = 100  # from scratch
_MORE_EM_STEPS = 1  # from a start that is already good, as inside an outer EM
_SPIKE_STEPS = 30
_CLOSER, _MODE_STEPS = 16, 12  # a mixture's mode: how much closer the points of a step stand, and steps
_EM_SETTLED = 1e-5  # gain in nats a row below which EM stops


@dataclass(frozen=True)
class PointMass(Law):
    """P(x = at) = 1; no parameters.

    Args:
        at: the one value.
    """

    at: float
    width = 0
    continuous = False

    @property
    def stand_in(self) -> float:
        """The one value."""
        return self.at

    @property
    def support(self) -> tuple[float, float]:  # type: ignore[override]
        """The one value, twice."""
        return self.at, self.at

    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        nothing = parameters.new_zeros(parameters.shape[:-1])
        return torch.where(_same(x, self.at), nothing, -torch.inf)

    def log_chance(self, parameters: Parameters, condition: Condition) -> Values:  # noqa: D102
        return parameters.new_full(parameters.shape[:-1], 0.0 if _meets(condition, self.at) else -math.inf)

    def sample_within(self, parameters: Parameters, condition: Condition, *, generator: Generator = None) -> Values:  # noqa: D102
        return self.mean(parameters)

    def mode_within(self, parameters: Parameters, condition: Condition) -> Values:  # noqa: D102
        return self.mean(parameters)

    def _moments_within(self, parameters: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        return self.mean(parameters), self.variance(parameters)

    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:  # noqa: D102
        return self.mean(parameters)

    def mean(self, parameters: Parameters) -> Values:  # noqa: D102
        return parameters.new_full(parameters.shape[:-1], self.at)

    def variance(self, parameters: Parameters) -> Values:
        """0."""
        return parameters.new_zeros(parameters.shape[:-1])

    def mode(self, parameters: Parameters) -> Values:  # noqa: D102
        return self.mean(parameters)

    def cdf(self, parameters: Parameters, x: Values) -> Values:  # noqa: D102
        return (x >= self.mean(parameters)).to(x)

    def entropy(self, parameters: Parameters) -> Values:
        """0."""
        return parameters.new_zeros(parameters.shape[:-1])

    def _fit(self, x: Tensor, seen: Tensor, weights: Tensor, start: Tensor | None) -> Tensor:
        return x.new_zeros(x.shape[1], weights.shape[-1], 0)


_SLACK = 1e-3  # of a cell, by which a value may miss the support: the rounding error of its number type


@dataclass(frozen=True)
class Gridded(NewtonFit):
    """p(x) = P(x - r/2 < X <= x + r/2) / r with X of the continuous law: the density of a value rounded to a grid.

    The masses of all cells sum to 1, and no parameter makes the density exceed 1 / r: a law that hits the grid is
    not rewarded for it. The law inside wants a floor of some share of r, so that cell / scale stays moderate.

    Args:
        law: of the value before rounding.
        resolution: r, the width of a cell.
        origin: a point of the grid, to which draws are rounded; None where it is not known (draws are then the law's own).
    """

    law: Law
    resolution: float
    origin: float | None = None

    @property
    def width(self) -> int:
        """That of the law."""
        return self.law.width

    @property
    def stand_in(self) -> float:
        """That of the law."""
        return self.law.stand_in

    @property
    def support(self) -> tuple[float, float]:  # type: ignore[override]
        """That of the law, its ends included: a value rounded from inside may lie on them, not beyond."""
        return self.law.support

    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        log_p = self.law.log_mass(parameters, x, self.resolution) - math.log(self.resolution)
        lower, upper = self.law.support
        if math.isinf(lower) and math.isinf(upper):
            return log_p
        # The cell of an end reaches beyond it, but a value rounded from inside does not.
        slack = _SLACK * self.resolution
        return torch.where((x < lower - slack) | (x > upper + slack), -torch.inf, log_p)

    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:  # noqa: D102
        return self._rounded(self.law.sample(parameters, generator=generator))

    def mean(self, parameters: Parameters) -> Values:
        """That of the law; rounding moves it by less than half a cell, and hardly at all where the scale exceeds the cell."""
        return self.law.mean(parameters)

    def variance(self, parameters: Parameters) -> Values:
        """The law's and r^2 / 12 for the rounding (Sheppard's correction), good where the scale is not far below the cell."""
        return self.law.variance(parameters) + self.resolution**2 / 12

    def mode(self, parameters: Parameters) -> Values:
        """That of the law, rounded."""
        return self._rounded(self.law.mode(parameters))

    def log_between(self, parameters: Parameters, a: Values, b: Values) -> Values:
        """Of the value before rounding."""
        return self.law.log_between(parameters, a, b)

    def pieces(self, condition: Condition) -> Pieces:
        """The cells of the grid's points that meet it, as intervals of the value before rounding.

        Where no point of the grid is known, an interval's ends have to be edges of cells already.
        """
        return cells_of(condition, self.resolution, self.origin)

    def holds(self, condition: Condition, x: Values) -> Truths:
        """Which values lie in those cells."""
        inside = [(x > a) & (x < b) for a, b in self.pieces(condition)]
        return torch.stack(inside).any(0) if inside else torch.zeros_like(x, dtype=torch.bool)

    def sample_within(self, parameters: Parameters, condition: Condition, *, generator: Generator = None) -> Values:  # noqa: D102
        return self._rounded(super().sample_within(parameters, condition, generator=generator))

    def variance_within(self, parameters: Parameters, condition: Condition) -> Values:
        """The law's and r^2 / 12 for the rounding, as `variance` has it."""
        return super().variance_within(parameters, condition) + self.resolution**2 / 12

    def mode_within(self, parameters: Parameters, condition: Condition) -> Values:  # noqa: D102
        a, b = self._ends(parameters, condition)
        tried = nearest(self.law.mode(parameters)[..., None].double(), a, b, self.resolution / 2)
        return self._best(parameters, self._rounded(tried), condition)

    def cdf(self, parameters: Parameters, x: Values) -> Values:
        """P(X <= upper edge of the cell of x)."""
        return self.law.cdf(parameters, x + self.resolution / 2)

    def _fit(self, x: Tensor, seen: Tensor, weights: Tensor, start: Tensor | None) -> Tensor:
        """Newton's method; a step of EM, which is quicker, from a start that is already good."""
        if start is None or not isinstance(self.law, HiddenNormal):
            return super()._fit(x, seen, weights, start)
        return self._em_step(self.law, *distinct(x, seen, weights), start)

    def _start(self, x: Tensor, seen: Tensor, weights: Tensor) -> Tensor:
        """The law's fit, and some steps of EM, which settle all but the coarsest grids."""
        lower, upper = self.law.support
        quarter = self.resolution / 4  # a value rounded onto the edge of the support is moved inside
        theta = self.law._fit(x.clamp(lower + quarter, upper - quarter), seen, weights, None)
        if isinstance(self.law, HiddenNormal):
            values, w = distinct(x, seen, weights)
            for _ in range(_FIRST_EM_STEPS):
                theta = self._em_step(self.law, values, w, theta)
        return theta

    def _bounds(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.law, NewtonFit):
            return self.law._bounds(x, seen)
        least, greatest = super()._bounds(x, seen)
        least[..., 1] = _LEAST_RAW
        return least, greatest

    def _em_step(self, law: HiddenNormal, values: Tensor, w: Tensor, theta: Tensor) -> Tensor:
        """The normal of the expected first two moments of the unrounded y, given the cells.

        They are read off the gradient g of sum_n w_n log P(cell n): E[y] - m = s^2 g_m and E[(y - m)^2] = s^2 + s^3 g_s.
        """
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            log_mass = law.log_mass(theta[:, :, None], values[:, None], self.resolution)
            (g,) = torch.autograd.grad((w * log_mass).sum(), theta)
        m, s = law.loc_scale(theta.detach())
        total = w.sum(-1).clamp_min(torch.finfo(w.dtype).tiny)
        shift = s.square() * g[..., 0] / total
        variance = s.square() + s.pow(3) * g[..., 1] / theta.detach()[..., 1].sigmoid() / total - shift.square()
        raw = inverse_positive(variance.clamp_min(0.0).sqrt(), law.floor).clamp_min(_LEAST_RAW)
        return torch.stack((m + shift, raw), dim=-1)

    def _rounded(self, x: Tensor) -> Tensor:
        if self.origin is None:
            return x
        return ((x - self.origin) / self.resolution).round() * self.resolution + self.origin


@dataclass(frozen=True)
class MixtureLaw(OfLaw):
    """p(x) = sum_c pi_c p_c(x), every p_c of the same law; parameters: the logits of pi, then those of each component.

    Args:
        law: of the components.
        components: how many.

    Raises:
        OptionError: fewer than one component.
    """

    law: Law
    components: int

    def __post_init__(self) -> None:
        if self.components < 1:
            raise OptionError(f"a mixture needs 1 or more components, got {self.components}")

    @property
    def width(self) -> int:
        """A logit and the law's parameters for each component."""
        return self.components * (1 + self.law.width)

    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        return self._joint(parameters, x).logsumexp(-1)

    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:  # noqa: D102
        log_pi, own = self._parts(parameters)
        pi = log_pi.exp()
        c = torch.multinomial(pi.reshape(-1, self.components), 1, replacement=True, generator=generator).reshape(*pi.shape[:-1], 1)
        return self.law.sample(own, generator=generator).gather(-1, c)[..., 0]

    def mean(self, parameters: Parameters) -> Values:  # noqa: D102
        log_pi, own = self._parts(parameters)
        return (log_pi.exp() * self.law.mean(own)).sum(-1)

    def variance(self, parameters: Parameters) -> Values:
        """The mean of the components' variances and the variance of their means."""
        log_pi, own = self._parts(parameters)
        off = self.law.mean(own) - self.mean(parameters)[..., None]
        return (log_pi.exp() * (self.law.variance(own) + off.square())).sum(-1)

    def mode(self, parameters: Parameters) -> Values:
        """The highest point between the least and the greatest of the components' modes: beyond them every component falls.

        The best of them and of 33 points, then of 33 about that one, each time 16 times as close.
        """
        tried = self.law.mode(self._parts(parameters)[1])
        low, high = tried.amin(-1, keepdim=True), tried.amax(-1, keepdim=True)
        share = torch.linspace(0, 1, 2 * _CLOSER + 1).to(tried)
        for _ in range(_MODE_STEPS):
            tried = torch.cat((tried, low + (high - low) * share), -1)
            top = self._log_prob(parameters[..., None, :], tried).argmax(-1, keepdim=True)
            tried, step = tried.gather(-1, top), (high - low) / (2 * _CLOSER)
            low, high = tried - step, tried + step
        return tried[..., 0]

    def cdf(self, parameters: Parameters, x: Values) -> Values:  # noqa: D102
        log_pi, own = self._parts(parameters)
        return (log_pi.exp() * self.law.cdf(own, x[..., None])).sum(-1)

    def pieces(self, condition: Condition) -> Pieces:
        """Those of the law."""
        return self.law.pieces(condition)

    def holds(self, condition: Condition, x: Values) -> Truths:  # noqa: D102
        return self.law.holds(condition, x)

    def log_chance(self, parameters: Parameters, condition: Condition) -> Values:  # noqa: D102
        return self._log_chances(parameters, condition).logsumexp(-1)

    def sample_within(self, parameters: Parameters, condition: Condition, *, generator: Generator = None) -> Values:
        """The component first, by its posterior probability."""
        share = self._shares(parameters, condition)
        c = torch.multinomial(share.reshape(-1, self.components), 1, replacement=True, generator=generator).reshape(*share.shape[:-1], 1)
        return self.law.sample_within(self._parts(parameters)[1], condition, generator=generator).gather(-1, c)[..., 0]

    def mode_within(self, parameters: Parameters, condition: Condition) -> Values:  # noqa: D102
        return self._best(parameters, self.law.mode_within(self._parts(parameters)[1], condition).double(), condition)

    def mean_within(self, parameters: Parameters, condition: Condition) -> Values:  # noqa: D102
        own = self._parts(parameters)[1]
        return (self._shares(parameters, condition) * self.law.mean_within(own, condition)).sum(-1)

    def variance_within(self, parameters: Parameters, condition: Condition) -> Values:  # noqa: D102
        own = self._parts(parameters)[1]
        each = self.law.mean_within(own, condition), self.law.variance_within(own, condition)
        return total(self._shares(parameters, condition), *each)[1]

    def _log_chances(self, parameters: Tensor, condition: Condition) -> Tensor:
        """log pi_c P_c(condition), (*batch, C)."""
        log_pi, own = self._parts(parameters)
        return log_pi + self.law.log_chance(own, condition)

    def _shares(self, parameters: Tensor, condition: Condition) -> Tensor:
        """P(c | condition); pi where that has probability 0."""
        log_p = self._log_chances(parameters, condition)
        possible = (log_p > -math.inf).any(-1, keepdim=True)
        return torch.where(possible, log_p, self._parts(parameters)[0]).softmax(-1)

    def log_mass(self, parameters: Parameters, x: Values, cell: float) -> Values:  # noqa: D102
        log_pi, own = self._parts(parameters)
        return (log_pi + self.law.log_mass(own, x[..., None], cell)).logsumexp(-1)

    def log_prior(self, parameters: Parameters) -> Values:  # noqa: D102
        return self.law.log_prior(self._parts(parameters)[1]).sum(-1)

    def _parts(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """log pi (*batch, C) and the components' parameters (*batch, C, width of the law)."""
        logits, own = parameters[..., : self.components], parameters[..., self.components :]
        return logits.log_softmax(-1), own.unflatten(-1, (self.components, self.law.width))

    def _joint(self, parameters: Tensor, x: Tensor) -> Tensor:
        """log pi_c p_c(x): (*batch, C)."""
        log_pi, own = self._parts(parameters)
        return log_pi + self.law._log_prob(own, x[..., None])

    def _fit(self, x: Tensor, seen: Tensor, weights: Tensor, start: Tensor | None) -> Tensor:
        """EM; each column and weighting is a problem of its own."""
        values, w = distinct(x, seen, weights)
        values, order = values.mT.sort(dim=0)  # (U, D)
        w = w.permute(2, 0, 1).gather(0, order[..., None].expand(-1, -1, w.shape[1]))  # (U, D, K)
        steps = _MORE_EM_STEPS if start is not None else _EM_STEPS
        parameters = self._m_step(values, w, self._slices(w), None) if start is None else start
        last = torch.full_like(w[0], -torch.inf)
        for _ in range(steps):
            joint = self._joint(parameters, values[..., None])  # (U, D, K, C)
            log_p = joint.logsumexp(-1)
            score = (w * log_p).sum(0) + self.log_prior(parameters)
            if not (score - last > _EM_SETTLED * w.sum(0)).any():
                break
            last, parameters = score, self._m_step(values, w, (joint - log_p[..., None]).exp(), parameters)
        return parameters

    def _m_step(self, x: Tensor, w: Tensor, r: Tensor, parameters: Tensor | None) -> Tensor:
        """The parameters (D, K, width) that are best for responsibilities r (U, D, K, C)."""
        owned = w[..., None] * r
        pi = owned.sum(0) + torch.finfo(w.dtype).eps
        start = None if parameters is None else self._parts(parameters)[1].flatten(1, 2)
        own = self.law._fit(x, torch.ones_like(x), owned.flatten(2), start)
        return torch.cat((pi.log().log_softmax(-1), own.unflatten(1, pi.shape[1:]).flatten(2)), dim=-1)

    def _slices(self, w: Tensor) -> Tensor:
        """First responsibilities (U, D, K, C): component c has the c-th share of the sorted values, softened."""
        total = w.sum(0).clamp_min(torch.finfo(w.dtype).tiny)
        rank = (w.cumsum(0) - w / 2) / total
        c = torch.arange(self.components, dtype=w.dtype, device=w.device)
        return (-2 * (rank[..., None] * self.components - 0.5 - c).square()).softmax(-1)


@dataclass(frozen=True)
class SpikeAndSlab(Law):
    """p(at) = pi (a probability), p(x) = (1 - pi) slab(x) elsewhere (a density); parameters: the logit of pi, then the slab's.

    A slab on a grid reaches the spike as well: its mass there is added to pi.

    Args:
        law: the slab's, continuous.
        at: the spike.
    """

    law: Law
    at: float

    @property
    def width(self) -> int:
        """One more than the slab's."""
        return 1 + self.law.width

    @property
    def stand_in(self) -> float:
        """The spike."""
        return self.at

    @property
    def support(self) -> tuple[float, float]:  # type: ignore[override]
        """The slab's, and the spike."""
        lower, upper = self.law.support
        return min(lower, self.at), max(upper, self.at)

    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        spike = _same(x, self.at)
        slab = self.law._log_prob(parameters[..., 1:], torch.where(spike, self.law.stand_in, x))
        elsewhere = functional.logsigmoid(-parameters[..., 0]) + slab
        return torch.where(spike, self._log_spike(parameters), elsewhere)

    def _log_spike(self, parameters: Tensor) -> Tensor:
        """log P(x = at)."""
        log_pi = functional.logsigmoid(parameters[..., 0])
        if not isinstance(self.law, Gridded):
            return log_pi
        at = parameters.new_full(parameters.shape[:-1], self.at)
        slab = self.law._log_prob(parameters[..., 1:], at) + math.log(self.law.resolution)
        return torch.logaddexp(log_pi, functional.logsigmoid(-parameters[..., 0]) + slab)

    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:  # noqa: D102
        spike = torch.bernoulli(parameters[..., 0].sigmoid(), generator=generator) == 1
        slab = self.law.sample(parameters[..., 1:], generator=generator)
        return torch.where(spike, self.at, slab)

    def mean(self, parameters: Parameters) -> Values:
        """pi at + (1 - pi) E[slab]."""
        pi = parameters[..., 0].sigmoid()
        return pi * self.at + (1 - pi) * self.law.mean(parameters[..., 1:])

    def variance(self, parameters: Parameters) -> Values:
        """(1 - pi) (Var[slab] + pi (E[slab] - at)^2)."""
        pi, own = parameters[..., 0].sigmoid(), parameters[..., 1:]
        return (1 - pi) * (self.law.variance(own) + pi * (self.law.mean(own) - self.at).square())

    def mode(self, parameters: Parameters) -> Values:
        """The spike or the slab's mode, whichever has the larger log_prob (a probability is set against a density)."""
        slab = self.law.mode(parameters[..., 1:])
        return torch.where(self._log_prob(parameters, slab) > self._log_spike(parameters), slab, self.at)

    def cdf(self, parameters: Parameters, x: Values) -> Values:  # noqa: D102
        pi = parameters[..., 0].sigmoid()
        return pi * (x >= self.at).to(pi) + (1 - pi) * self.law.cdf(parameters[..., 1:], x)

    def holds(self, condition: Condition, x: Values) -> Truths:
        """Whether the slab's cell, or point, meets it; of the spike, whether it does itself."""
        return torch.where(_same(x, self.at), self._spike_meets(condition), self.law.holds(condition, x))

    def _spike_meets(self, condition: Condition) -> bool:
        cell = isinstance(self.law, Gridded)
        return bool(self.law.holds(condition, torch.tensor(self.at, dtype=torch.float64))) if cell else _meets(condition, self.at)

    def _log_sides(self, parameters: Tensor, condition: Condition) -> Tensor:
        """log P of the spike and the condition, and of the slab and the condition, (*batch, 2)."""
        a = parameters[..., 0]
        spike = functional.logsigmoid(a) if self._spike_meets(condition) else torch.full_like(a, -math.inf)
        slab = functional.logsigmoid(-a) + self.law.log_chance(parameters[..., 1:], condition)
        return torch.stack((spike, slab), dim=-1)

    def _shares(self, parameters: Tensor, condition: Condition) -> Tensor:
        """P of the spike and of the slab given the condition; even where that has probability 0."""
        log_p = self._log_sides(parameters, condition)
        return torch.where((log_p > -math.inf).any(-1, keepdim=True), log_p, 0.0).softmax(-1)

    def log_chance(self, parameters: Parameters, condition: Condition) -> Values:  # noqa: D102
        return self._log_sides(parameters, condition).logsumexp(-1)

    def sample_within(self, parameters: Parameters, condition: Condition, *, generator: Generator = None) -> Values:  # noqa: D102
        spike = torch.bernoulli(self._shares(parameters, condition)[..., 0], generator=generator) == 1
        return torch.where(spike, self.at, self.law.sample_within(parameters[..., 1:], condition, generator=generator))

    def mode_within(self, parameters: Parameters, condition: Condition) -> Values:  # noqa: D102
        slab = self.law.mode_within(parameters[..., 1:], condition)
        if not self._spike_meets(condition):
            return slab
        slab_wins = (self._log_prob(parameters, slab) > self._log_spike(parameters)) & self.law.holds(condition, slab)
        return torch.where(slab_wins, slab, self.at)

    def _moments_within(self, parameters: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        own = parameters[..., 1:]
        mean, variance = self.law.mean_within(own, condition), self.law.variance_within(own, condition)
        at = torch.full_like(mean, self.at)
        sides = torch.stack((at, mean), dim=-1), torch.stack((torch.zeros_like(at), variance), dim=-1)
        return total(self._shares(parameters, condition), *sides)

    @property
    def has_entropy(self) -> bool:
        """Whether the slab's has."""
        return self.law.has_entropy

    def entropy(self, parameters: Parameters) -> Values:
        """-pi log pi - (1 - pi) log(1 - pi) + (1 - pi) H[slab]; where the slab's is closed."""
        a = parameters[..., 0]
        return functional.softplus(a) - a * a.sigmoid() + (-a).sigmoid() * self.law.entropy(parameters[..., 1:])

    def log_prior(self, parameters: Parameters) -> Values:
        """That of half a row on either side, so that neither is impossible, and the slab's."""
        a = parameters[..., 0]
        return 0.5 * (functional.logsigmoid(a) + functional.logsigmoid(-a)) + self.law.log_prior(parameters[..., 1:])

    def _fit(self, x: Tensor, seen: Tensor, weights: Tensor, start: Tensor | None) -> Tensor:
        """Closed but for the slab; where that is on a grid, EM, for a row on the spike may be the slab's."""
        spike = _same(x, self.at).to(x)
        on, off = weighted_sums(seen * spike, weights), weighted_sums(seen * (1 - spike), weights)
        own = None if start is None else start[..., 1:]
        slab = self.law._fit(torch.where(spike == 1, self.law.stand_in, x), seen * (1 - spike), weights, own)
        if not isinstance(self.law, Gridded):
            return _joined(on, off, slab)
        parameters = _joined(on, off, slab) if start is None else start
        each = weights[:, None] if weights.ndim == 2 else weights
        for _ in range(_SPIKE_STEPS if start is None else _MORE_EM_STEPS):
            atom = (functional.logsigmoid(parameters[..., 0]) - self._log_spike(parameters)).exp()
            slab = self.law._fit(x, seen, each * (1 - atom * spike[..., None]), parameters[..., 1:])
            parameters = _joined(on * atom, off + on * (1 - atom), slab)
        return parameters


def _joined(on: Tensor, off: Tensor, slab: Tensor) -> Tensor:
    """Parameters of a spike that has `on` of the rows; half a row is added on either side."""
    return torch.cat((((on + 0.5) / (off + 0.5)).log()[..., None], slab), dim=-1)


def _meets(condition: Condition, value: float) -> bool:
    """Whether an atom meets a condition; one that is an open end does not, whatever rounding did to its last digit."""
    slack = 16 * torch.finfo(torch.float32).eps * abs(value)
    return bool(condition.contains(torch.tensor(value, dtype=torch.float64), slack))


def cells_of(condition: Condition, resolution: float, origin: float | None) -> Pieces:
    """The cells of a grid whose points meet a condition, as intervals (a, b]; without an origin an interval stays as it is."""
    if isinstance(condition, Between):
        if origin is None:
            return ((condition.lower, condition.upper),) if condition.lower < condition.upper else ()
        first = _step((condition.lower - origin) / resolution, condition.closed[0])
        last = -_step((origin - condition.upper) / resolution, condition.closed[1])
        return ((origin + (first - 0.5) * resolution, origin + (last + 0.5) * resolution),) if first <= last else ()
    values = condition.values if isinstance(condition, Among) else (condition.value,)
    if origin is not None:
        values = tuple(origin + round((v - origin) / resolution) * resolution for v in values)
    return tuple((v - resolution / 2, v + resolution / 2) for v in values)


def _step(place: float, closed: bool) -> float:
    """The first whole number from a place on, the place itself where it is one (but for rounding) and belongs to it."""
    if math.isinf(place):
        return place
    near = round(place)
    return near + (not closed) if abs(place - near) < _SLACK**2 else math.ceil(place)


def _same(x: Tensor, value: float) -> Tensor:
    """Whether x is the value, but for the rounding of a change of units."""
    return (x - value).abs() <= 16 * torch.finfo(x.dtype).eps * abs(value)
