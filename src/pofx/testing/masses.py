"""Checks that probability is neither lost nor made, and that draws follow the density."""

import math

import torch
from torch import Tensor

from pofx.domain import LEVELLED, Variable, VariableKind
from pofx.models.base import Model
from pofx.models.classical.histogram import Histogram
from pofx.testing.case import DELTA, Case, answered, require, require_inside
from pofx.types import Kind

POINTS = {1: 20_000, 2: 300}  # an axis of an integral over one variable, and over two
POINTS_OF_BOUND = {1: 1000, 2: 40}  # a bound's value may cost a hundred times an exact one's
FEW = 6  # variables whose single marginals are integrated


def draws_lie_in_the_domain(case: Case) -> None:
    """n draws are n rows of values of the domain, with a density above 0; no draws are no rows."""
    s = case.sample(500)
    require(s.shape == (500, len(case.domain)), f"500 draws have shape {tuple(s.shape)}")
    require_inside(case.domain, s, "draws")
    require(case.sample(0).shape == (0, len(case.domain)), "no draws must have shape (0, D)")
    if case.scored:
        value = case.log_prob(s)
        require(value > -math.inf, f"a draw has density 0: {s[value.argmin()].tolist()[:8]}")


def equal_generators_give_equal_draws(case: Case) -> None:
    """The generator alone decides what is drawn, and it does decide."""
    c = None if case.c is None else case.c[:1]
    first, again, other = (case.model.sample(50, c, generator=torch.Generator(case.x.device).manual_seed(k)) for k in (4, 4, 5))
    require(torch.equal(first, again), "equal generators give different draws")
    constant = bool((case.sample(200) == first[0]).all())
    require(constant or not torch.equal(first, other), "different generators give equal draws")


def mass_is_one(case: Case) -> None:
    """Single marginals and one of a pair integrate and sum to 1; bounds to at most 1."""
    if not (case.scored and case.unconditional):
        return
    n = len(case.domain)
    for keep in [(d,) for d in range(min(n, FEW))] + ([(0, n - 1)] if n > 1 else []):
        part = case.model if n == len(keep) else answered(case.model.marginal, keep)
        if part is None or part.density not in (Kind.EXACT, Kind.BOUND):
            continue
        total, noise = _mass(part, case)
        slack = 6 * noise + (0.01 if len(keep) == 1 else 0.05)
        names = case.domain.select(keep).names
        require(total <= 1 + slack, f"p over {names} has mass {total:.4f}, more than 1")
        require(part.density is Kind.BOUND or total >= 1 - slack, f"p over {names} has mass {total:.4f}, less than 1")


def draws_follow_the_density(case: Case) -> None:
    """E_p[q / (p + q)] = E_q[p / (p + q)] for a reference q, here a histogram of each variable; at least, for a bound.

    Both are the integral of p q / (p + q). A density that is too large or small by a factor, or a sampler of
    another law, breaks the equation wherever p and q overlap. Both sides lie in [0, 1], so an empirical Bernstein
    bound (Maurer and Pontil 2009) holds at a failure rate known exactly.
    """
    if not case.scored or case.model.sampling is not Kind.EXACT:
        return
    q = Histogram(case.domain)
    learned_from = case.x if case.c is None else case.sample(max(200, len(case.x)))
    for _ in q.steps(learned_from.double()):
        pass
    left, from_q = case.sample(case.draws).double(), q.sample(case.draws, generator=case.generator)
    over_p = torch.sigmoid(q.log_prob(left) - case.log_prob(left))
    over_q = torch.sigmoid(case.log_prob(from_q) - q.log_prob(from_q))
    off, allowed = float(over_p.mean() - over_q.mean()), _bernstein(over_p) + _bernstein(over_q)
    require(off >= -allowed, f"the density is larger than the draws say: E_p[q/(p+q)] - E_q[p/(p+q)] = {off:.4f}, allowed {allowed:.4f}")
    require(not case.exact or off <= allowed, f"the density is smaller than the draws say: the same difference is {off:.4f}")


def _bernstein(values: Tensor) -> float:
    """How far the mean of numbers in [0, 1] may lie from its expectation, but for one time in 1 / DELTA."""
    log_term, n = math.log(4 / DELTA), len(values)
    return math.sqrt(2 * float(values.var()) * log_term / n) + 7 * log_term / (3 * (n - 1))


def _mass(part: Model, case: Case) -> tuple[float, float]:
    """The integral of p over all values of its variables, and the standard error that a bound's draws give it."""
    s = part.sample(1000, generator=case.generator).double()
    points = (POINTS if part.density is Kind.EXACT else POINTS_OF_BOUND)[len(part.domain)]
    axes = [_values(v, s[:, d], points) for d, v in enumerate(part.domain.variables)]
    x = torch.cartesian_prod(*[a for a, _ in axes]).reshape(-1, len(axes))
    weight = torch.cartesian_prod(*[w for _, w in axes]).reshape(-1, len(axes)).prod(1)
    with torch.no_grad():
        log_p, error = part.log_prob_and_error(x, generator=case.generator)
    mass = log_p.double().exp() * weight
    return float(mass.nansum()), float((mass * error.expm1()).square().nansum().sqrt())


def _values(variable: Variable, s: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Values that cover the variable, about its draws s, and the measure of each."""
    if variable.kind in LEVELLED or variable.kind is VariableKind.COUNT:
        last = (variable.cardinality or 10**9) - 1
        first = 0.0 if variable.levels else variable.lower
        x = first + torch.arange(min(last, int(4 * (s.max() - first)) + points) + 1, dtype=s.dtype, device=s.device)
        return x, torch.ones_like(x)
    slab = s if variable.spike is None or bool((s == variable.spike).all()) else s[s != variable.spike]
    x, weight = _cells(variable.resolution, slab, points) if variable.resolution else _line(variable, slab, points)
    if variable.spike is None:
        return x, weight
    off = (x - variable.spike).abs() > (variable.resolution or 0) / 2
    return torch.cat((x[off], x.new_tensor([variable.spike]))), torch.cat((weight[off], weight.new_ones(1)))


def _cells(r: float, s: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """The grid's points about the draws, each standing for its cell."""
    half = min(int(4 * (s.max() - s.min()) / r) + 10, 10 * points)
    x = ((s.median() / r).round() + torch.arange(-half, half + 1, dtype=s.dtype, device=s.device)) * r
    return x, torch.full_like(x, r)


def _line(variable: Variable, s: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Midpoints of a substitution that reaches every x of the variable's support and is dense about the draws."""
    u = (torch.arange(points, dtype=s.dtype, device=s.device) + 0.5) / points
    if variable.kind is VariableKind.INTERVAL:
        width = variable.upper - variable.lower
        return variable.lower + width * u * u * (3 - 2 * u), width * 6 * u * (1 - u) / points
    y = s.log() if variable.kind is VariableKind.POSITIVE else s
    low, middle, high = y.quantile(y.new_tensor([0.1, 0.5, 0.9])).tolist()
    scale = max(high - low, 1e-9 * (1 + abs(middle)))
    x = middle + scale * torch.tan(math.pi * (u - 0.5)) / 2
    weight = scale * math.pi / 2 / torch.cos(math.pi * (u - 0.5)).square() / points
    if variable.kind is VariableKind.POSITIVE:
        keep = x.abs() < 600
        return x[keep].exp(), weight[keep] * x[keep].exp()
    return x, weight
