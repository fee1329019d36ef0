"""Laws of a continuous variable."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pofx.distributions.base import NARROWEST, Law, Parameters, Values, inverse_positive, nearest, positive, weighted_sums
from pofx.distributions.newton import NewtonFit
from pofx.distributions.special import LOG_SQRT_2PI, log_beta_tails, normal_log_between, normal_log_mass
from pofx.events import Condition
from pofx.types import Generator


class HiddenNormal(Law):
    """A law of x = f(y), y ~ N(m, s^2), f increasing; parameters (m, raw) with s = floor + softplus(raw)."""

    floor: float
    width = 2

    def hidden(self, x: Values) -> Values:
        """y = f^-1(x), infinite at the ends of the support and beyond."""
        return x

    def log_between(self, parameters: Parameters, a: Values, b: Values) -> Values:
        """That of the normal, to rounding error in both tails."""
        m, s = self.loc_scale(parameters)
        return normal_log_between((self.hidden(a) - m) / s, (self.hidden(b) - m) / s)

    def loc_scale(self, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """m and s."""
        return parameters[..., 0], positive(parameters[..., 1], self.floor)


@dataclass(frozen=True)
class Normal(HiddenNormal):
    """p(x) = N(x; m, s^2), parameters (m, raw) with s = floor + softplus(raw).

    Args:
        floor: the least s, in the units of x.
    """

    floor: float = 0.0
    stand_in = 0.0

    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        m, s = self.loc_scale(parameters)
        return -0.5 * ((x - m) / s).square() - s.log() - LOG_SQRT_2PI

    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:  # noqa: D102
        m, s = self.loc_scale(parameters)
        return m + s * torch.randn(m.shape, generator=generator, dtype=m.dtype, device=m.device)

    def mean(self, parameters: Parameters) -> Values:  # noqa: D102
        return parameters[..., 0]

    def variance(self, parameters: Parameters) -> Values:  # noqa: D102
        return self.loc_scale(parameters)[1].square()

    def mode(self, parameters: Parameters) -> Values:  # noqa: D102
        return parameters[..., 0]

    def cdf(self, parameters: Parameters, x: Values) -> Values:  # noqa: D102
        m, s = self.loc_scale(parameters)
        return torch.special.ndtr((x - m) / s)

    def log_mass(self, parameters: Parameters, x: Values, cell: float) -> Values:  # noqa: D102
        m, s = self.loc_scale(parameters)
        return normal_log_mass((x - m) / s, cell / s)

    def entropy(self, parameters: Parameters) -> Values:
        """log s + log(2 pi e) / 2."""
        return self.loc_scale(parameters)[1].log() + LOG_SQRT_2PI + 0.5

    def log_mass_above(self, parameters: Parameters, start: Values, length: Values) -> Values:
        """log P(start < X <= start + length)."""
        m, s = self.loc_scale(parameters)
        return normal_log_mass((start + length / 2 - m) / s, length / s)

    def _fit(self, x: Tensor, seen: Tensor, weights: Tensor, start: Tensor | None) -> Tensor:
        m, s = weighted_moments(x, seen, weights)
        return torch.stack((m, inverse_positive(s, self.floor)), dim=-1)


@dataclass(frozen=True)
class StudentT(NewtonFit):
    """Student's t of location m, scale s and nu > 1 degrees of freedom (its mean exists): heavier tails than the normal's.

    p(x) = Gamma((nu + 1)/2) / (Gamma(nu/2) sqrt(nu pi) s) (1 + ((x - m)/s)^2 / nu)^(-(nu + 1)/2),
    parameters (m, raw, raw) with s = floor + softplus(raw), nu = 1 + softplus(raw).

    Args:
        floor: the least s, in the units of x.
    """

    floor: float = 0.0
    width = 3
    stand_in = 0.0

    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        return self._torch(parameters).log_prob(x)

    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:  # noqa: D102
        t = self._torch(parameters)
        z = torch.randn(t.loc.shape, generator=generator, dtype=t.loc.dtype, device=t.loc.device)
        return t.loc + t.scale * z * (t.df / (2 * torch._standard_gamma(t.df / 2, generator=generator))).sqrt()

    def mean(self, parameters: Parameters) -> Values:  # noqa: D102
        return parameters[..., 0]

    def variance(self, parameters: Parameters) -> Values:
        """S^2 nu / (nu - 2), inf up to nu = 2."""
        return self._torch(parameters).variance

    def mode(self, parameters: Parameters) -> Values:  # noqa: D102
        return parameters[..., 0]

    def entropy(self, parameters: Parameters) -> Values:  # noqa: D102
        return self._torch(parameters).entropy()

    def log_tails(self, parameters: Parameters, x: Values) -> tuple[Values, Values]:
        """P(T > t) = I_u(nu/2, 1/2) / 2 for t > 0, u = nu / (nu + t^2)."""
        m, raw, freedom = parameters.unbind(-1)
        nu, t2 = positive(freedom, 1.0), ((x - m) / positive(raw, self.floor)).square()
        u, v = 1 / (1 + t2 / nu), 1 / (1 + nu / t2)
        tail = log_beta_tails(nu / 2, torch.full_like(nu, 0.5), u, v)[0] - math.log(2.0)
        rest = torch.log1p(-tail.exp())
        return torch.where(x < m, tail, rest), torch.where(x < m, rest, tail)

    def _torch(self, parameters: Tensor) -> torch.distributions.StudentT:
        m, scale, freedom = parameters.unbind(-1)
        return torch.distributions.StudentT(positive(freedom, 1.0), m, positive(scale, self.floor), validate_args=False)

    def _start(self, x: Tensor, seen: Tensor, weights: Tensor) -> Tensor:
        m, s = weighted_moments(x, seen, weights)
        five = torch.full_like(m, 4.0)  # nu = 1 + softplus(4), about 5
        return torch.stack((m, inverse_positive(0.8 * s, self.floor), five), dim=-1)

    def _bounds(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        least, greatest = super()._bounds(x, seen)
        least[:, 0, 1] = inverse_positive(NARROWEST * centre_and_spread(x, seen)[1], self.floor)
        least[:, 0, 2], greatest[:, 0, 2] = -10.0, 1e3  # nearly Cauchy ... a normal to every purpose
        return least, greatest


@dataclass(frozen=True)
class LogNormal(HiddenNormal):
    """log x = y ~ N(m, s^2), so p(x) = N(log x; m, s^2) / x on (0, inf); parameters as `Normal`'s.

    Args:
        floor: the least s.
    """

    floor: float = 0.0
    stand_in = 1.0
    support = (0.0, math.inf)

    def hidden(self, x: Values) -> Values:
        """log x."""
        return x.clamp_min(0.0).log()

    @property
    def _normal(self) -> Normal:
        return Normal(self.floor)

    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        inside = x > 0
        y = torch.where(inside, x, 1.0).log()
        return torch.where(inside, self._normal._log_prob(parameters, y) - y, -torch.inf)

    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:  # noqa: D102
        return self._normal.sample(parameters, generator=generator).exp()

    def mean(self, parameters: Parameters) -> Values:
        """e^(m + s^2/2)."""
        m, s = self.loc_scale(parameters)
        return (m + s.square() / 2).exp()

    def variance(self, parameters: Parameters) -> Values:
        """(e^(s^2) - 1) e^(2 m + s^2)."""
        m, s = self.loc_scale(parameters)
        return s.square().expm1() * (2 * m + s.square()).exp()

    def mode(self, parameters: Parameters) -> Values:
        """e^(m - s^2)."""
        m, s = self.loc_scale(parameters)
        return (m - s.square()).exp()

    def cdf(self, parameters: Parameters, x: Values) -> Values:  # noqa: D102
        return self._normal.cdf(parameters, _log(x))

    def log_mass(self, parameters: Parameters, x: Values, cell: float) -> Values:  # noqa: D102
        inside = x + cell / 2 > 0
        low = torch.where(inside, x, 1.0) - cell / 2
        log_p = self._normal.log_mass_above(parameters, _log(low), _log_growth(low, cell))
        return torch.where(inside, log_p, -torch.inf)

    def entropy(self, parameters: Parameters) -> Values:
        """That of log x, plus m."""
        return self._normal.entropy(parameters) + parameters[..., 0]

    def _fit(self, x: Tensor, seen: Tensor, weights: Tensor, start: Tensor | None) -> Tensor:
        return self._normal._fit(_log(x), seen, weights, start)


@dataclass(frozen=True)
class LogitNormal(HiddenNormal):
    """y = log((x - lower) / (upper - x)) ~ N(m, s^2), x in (lower, upper); parameters as `Normal`'s.

    Args:
        lower: the end excluded below.
        upper: the end excluded above.
        floor: the least s.
    """

    lower: float = 0.0
    upper: float = 1.0
    floor: float = 0.0

    @property
    def stand_in(self) -> float:
        """The middle."""
        return (self.lower + self.upper) / 2

    @property
    def support(self) -> tuple[float, float]:  # type: ignore[override]
        """(lower, upper)."""
        return self.lower, self.upper

    def hidden(self, x: Values) -> Values:
        """The logit of where x lies between the ends."""
        return (x - self.lower).clamp_min(0.0).log() - (self.upper - x).clamp_min(0.0).log()

    def mode_within(self, parameters: Parameters, condition: Condition) -> Values:
        """The best of a fine grid and of the ends: such a law may have two peaks."""
        a, b = self._ends(parameters, condition)
        tried = nearest(self._from_logit(self._near_peaks(parameters)).double()[..., None], a, b)
        return self._best(parameters, tried.flatten(-2), condition)

    def _near_peaks(self, parameters: Tensor) -> Tensor:
        """The stationary points y = m + s^2 (2 sigmoid(y) - 1) are within s^2 of m: a fine grid there, (*batch, 1025)."""
        m, s = self.loc_scale(parameters)
        return m[..., None] + s[..., None].square() * torch.linspace(-1, 1, 1025, dtype=m.dtype, device=m.device)

    @property
    def _normal(self) -> Normal:
        return Normal(self.floor)

    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        inside = (x > self.lower) & (x < self.upper)
        x = torch.where(inside, x, self.stand_in)
        log_slope = math.log(self.upper - self.lower) - (x - self.lower).log() - (self.upper - x).log()  # dy/dx
        return torch.where(inside, self._normal._log_prob(parameters, self._logit(x)) + log_slope, -torch.inf)

    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:  # noqa: D102
        return self._from_logit(self._normal.sample(parameters, generator=generator))

    def mean(self, parameters: Parameters) -> Values:
        """By the trapezoidal rule over y, whose error falls exponentially: below 1e-8 of the interval for s < 10."""
        m, s = self.loc_scale(parameters)
        z = torch.linspace(-9, 9, 256, dtype=m.dtype, device=m.device)
        return self._from_logit(m[..., None] + s[..., None] * z) @ (-0.5 * z.square()).softmax(-1)

    def variance(self, parameters: Parameters) -> Values:
        """By the sum that gives the mean."""
        m, s = self.loc_scale(parameters)
        z = torch.linspace(-9, 9, 256, dtype=m.dtype, device=m.device)
        off = self._from_logit(m[..., None] + s[..., None] * z) - self.mean(parameters)[..., None]
        return off.square() @ (-0.5 * z.square()).softmax(-1)

    def mode(self, parameters: Parameters) -> Values:
        """The best of a fine grid."""
        m, s = self.loc_scale(parameters)
        y = self._near_peaks(parameters)
        log_p = -0.5 * ((y - m[..., None]) / s[..., None]).square() + _log_slope(y)
        return self._from_logit(y.gather(-1, log_p.argmax(-1, keepdim=True))[..., 0])

    def cdf(self, parameters: Parameters, x: Values) -> Values:  # noqa: D102
        return self._normal.cdf(parameters, self._logit(x))

    def log_mass(self, parameters: Parameters, x: Values, cell: float) -> Values:  # noqa: D102
        inside = (x + cell / 2 > self.lower) & (x - cell / 2 < self.upper)
        x = torch.where(inside, x, self.stand_in)
        low, left = x - cell / 2, self.upper - x - cell / 2
        length = _log_growth(low - self.lower, cell) + _log_growth(left, cell)
        log_p = self._normal.log_mass_above(parameters, self._logit(low), length)
        return torch.where(inside, log_p, -torch.inf)

    def _fit(self, x: Tensor, seen: Tensor, weights: Tensor, start: Tensor | None) -> Tensor:
        return self._normal._fit(self._logit(x), seen, weights, start)

    def _logit(self, x: Tensor) -> Tensor:
        return _log(x - self.lower) - _log(self.upper - x)

    def _from_logit(self, y: Tensor) -> Tensor:
        return self.lower + (self.upper - self.lower) * y.sigmoid()


@dataclass(frozen=True)
class Beta(NewtonFit):
    """p(x) ~ u^(a-1) (1 - u)^(b-1) with u = (x - lower) / (upper - lower); parameters raw, a and b their softplus.

    Args:
        lower: the end excluded below.
        upper: the end excluded above.
    """

    lower: float = 0.0
    upper: float = 1.0
    width = 2

    @property
    def stand_in(self) -> float:
        """The middle."""
        return (self.lower + self.upper) / 2

    @property
    def support(self) -> tuple[float, float]:  # type: ignore[override]
        """(lower, upper)."""
        return self.lower, self.upper

    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        a, b = positive(parameters).unbind(-1)
        inside = (x > self.lower) & (x < self.upper)
        x = torch.where(inside, x, self.stand_in)
        log_p = (a - 1) * (x - self.lower).log() + (b - 1) * (self.upper - x).log()
        log_z = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b) + (a + b - 1) * math.log(self._range)
        return torch.where(inside, log_p - log_z, -torch.inf)

    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:  # noqa: D102
        a, b = (torch._standard_gamma(shape, generator=generator) for shape in positive(parameters).unbind(-1))
        u = a / (a + b)
        inside = torch.finfo(u.dtype).eps
        return self.lower + self._range * u.clamp(inside, 1 - inside)

    def mean(self, parameters: Parameters) -> Values:
        """A / (a + b) of the way."""
        a, b = positive(parameters).unbind(-1)
        return self.lower + self._range * a / (a + b)

    def variance(self, parameters: Parameters) -> Values:
        """A b / ((a + b)^2 (a + b + 1)), times the range squared."""
        a, b = positive(parameters).unbind(-1)
        return self._range**2 * a * b / ((a + b).square() * (a + b + 1))

    def mode(self, parameters: Parameters) -> Values:
        """(a - 1) / (a + b - 2) of the way; where the density has no maximum, a point next to the end it rises to."""
        a, b = positive(parameters).unbind(-1)
        inner = (a - 1) / torch.where((a > 1) & (b > 1), a + b - 2, 1.0)
        u = torch.where((a > 1) & (b > 1), inner, (a > b).to(a))
        return self.lower + self._range * u.clamp(1e-6, 1 - 1e-6)

    def entropy(self, parameters: Parameters) -> Values:  # noqa: D102
        a, b = positive(parameters).unbind(-1)
        return torch.distributions.Beta(a, b, validate_args=False).entropy() + math.log(self._range)

    def log_tails(self, parameters: Parameters, x: Values) -> tuple[Values, Values]:
        """The regularised incomplete beta function."""
        a, b = positive(parameters).unbind(-1)
        u, v = (((x - self.lower) / self._range).clamp(0, 1), ((self.upper - x) / self._range).clamp(0, 1))
        return log_beta_tails(a, b, u, v)

    def mode_within(self, parameters: Parameters, condition: Condition) -> Values:
        """The nearest to the mode, or the better end where the density rises to both."""
        a, b = self._ends(parameters, condition)
        far = self.mode(parameters).double()[..., None, None]
        tried = torch.cat((far, torch.full_like(far, -math.inf), torch.full_like(far, math.inf)), dim=-2)
        return self._best(parameters, nearest(tried, a, b).flatten(-2), condition)

    @property
    def _range(self) -> float:
        return self.upper - self.lower

    def _start(self, x: Tensor, seen: Tensor, weights: Tensor) -> Tensor:
        m, s = weighted_moments((x - self.lower) / self._range, seen, weights)
        total = (m * (1 - m) / s.square() - 1).clamp_min(0.1)
        return inverse_positive(torch.stack((m * total, (1 - m) * total), dim=-1))

    def _bounds(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """A + b is bounded so that the standard deviation sqrt(m (1 - m) / (a + b + 1)) is."""
        least, greatest = super()._bounds(x, seen)
        m, s = centre_and_spread((x - self.lower) / self._range, seen)
        most = m * (1 - m) / (NARROWEST * s).square()
        least[:] = -10.0
        greatest[:, 0] = torch.stack((m * most, (1 - m) * most), dim=-1)
        return least, greatest


def centre_and_spread(x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D) of each column; a constant column's deviation is a share of its value."""
    count = seen.sum(0).clamp_min(1.0)
    centre = (seen * x).sum(0) / count
    spread = ((seen * (x - centre).square()).sum(0) / count).sqrt()
    varies = spread > 1e-12 * centre.abs()  # more than rounding
    return centre, torch.where(varies, spread, NARROWEST * torch.where(centre == 0, 1.0, centre.abs()))


def weighted_moments(x: Tensor, seen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D, K) of each column under each weighting.

    A deviation is never below NARROWEST of the whole column's: a duplicated row must not become a spike of
    infinite density. A weighting that has nothing to say (all zero) gets the whole column's moments.
    """
    centre, spread = centre_and_spread(x, seen)
    deviation = seen * (x - centre)  # centred first: E[x^2] - E[x]^2 cancels
    total = weighted_sums(seen, weights)
    told = total > 0
    total = torch.where(told, total, 1.0)
    mean, square = weighted_sums(deviation, weights) / total, weighted_sums(deviation.square(), weights) / total
    s = torch.where(told, (square - mean.square()).clamp_min(0.0).sqrt(), spread[:, None])
    return mean + centre[:, None], s.maximum(NARROWEST * spread[:, None])


def _log_slope(y: Tensor) -> Tensor:
    """-log(sigmoid(y) sigmoid(-y)): what the logit's slope adds to a log-density."""
    return -functional.logsigmoid(y) - functional.logsigmoid(-y)


def _log(x: Tensor) -> Tensor:
    """log x, of the least positive number where x is not positive: the end of a cell that reaches over the edge."""
    return x.clamp_min(torch.finfo(x.dtype).tiny).log()


def _log_growth(low: Tensor, cell: float) -> Tensor:
    """log((low + cell) / low), to rounding error where the cell is narrow; `low` is cut as in `_log`."""
    inner = low > 0
    return torch.where(inner, torch.log1p(cell / torch.where(inner, low, 1.0)), _log(low + cell) - _log(low))
