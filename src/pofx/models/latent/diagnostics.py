"""Whether latents are used, and whether the prior has its mass where rows are encoded to.

Every number comes from draws of q(z | x) and of p(z), which any inference and any prior give: nothing here knows how they are made.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pofx.errors import DataError
from pofx.models.base import Diagnosis
from pofx.models.latent.generative import Generative
from pofx.models.latent.inference import Draws, Inference
from pofx.objectives.elbo import Levels, LogTerms, LogWeights, divergence, effective_draws
from pofx.samplers.diagnostics import pareto_k
from pofx.types import Context, Generator, X

Codes = Float[Tensor, "K N L"]
PerUnit = Float[Tensor, " L"]
Floats = NDArray[np.float64]

ACTIVE = 0.01  # Var_x(E_q[z | x]) above which a unit is active
FEW = 1 / 20  # a density over another one below which there is almost nothing
COLLAPSED = 0.1  # nats of KL a row under which nothing is encoded
IDLE = 0.01  # nats under which one level of several is
WIDE = 0.1  # of the prior's mass: holes worth a word
POOR = 0.1  # of the draws: an effective size that is low
HEAVY = 0.7  # k-hat over which a weighted mean is not to be trusted
RESOLVED = 1.0  # nats that I_q(x; z) must stay below log N, or the codes of N rows are islands

_VALUES_AT_ONCE = 2**22
_FEWEST, _DRAWS = 8, 64  # draws of q, a row: the second as far as memory goes
_MIXED = 2000  # rows that the aggregated posterior is made of
_POINTS = 1000  # at which it is compared with the prior
_SCATTERED = 2**15  # draws of each, at most, that cells of the plane are filled with
_CELLS = 20  # along each axis
_SEEN = 20  # draws in a cell that make it one to judge
_WEIGHED = 100  # rows whose weights are looked at
_SHOWN = 24  # units in the table


@dataclass(frozen=True)
class Level:
    """One level of latents.

    Args:
        kl: mean over the rows of KL(q(z | x) || p(z)) in nats: in closed form where there is one, else by draws.
        error: its standard error over the rows; inf for a single one.
        activity: Var_x(E_q[z_l | x]) of each unit, as `activity`.
        unit_kl: of each unit, in nats, as `unit_kl`.
    """

    kl: float
    error: float
    activity: tuple[float, ...]
    unit_kl: tuple[float, ...]

    @property
    def idle(self) -> list[int]:
        """The units, counted from 1, that tell no row from another."""
        return [k for k, a in enumerate(self.activity, 1) if not a > ACTIVE]

    @property
    def active(self) -> int:
        """How many do."""
        return len(self.activity) - len(self.idle)


@dataclass(frozen=True)
class Overlap:
    """The aggregated posterior q(z) = 1/N sum_n q(z | x_n) against the prior p(z), of all levels together.

    Args:
        gap: KL(q(z) || p(z)) in nats.
        error: its standard error.
        holes: P_p(q(z) / p(z) < 1/20), the mass of the prior where almost no row is encoded.
        beyond: P_q(p(z) / q(z) < 1/20), the mass of the codes where the prior has almost none.
        information: I_q(x; z) = E log q(z | x) / q(z) = mean KL(q(z | x) || p(z)) - gap in nats, at most log N.
        rows: N.
    """

    gap: float
    error: float
    holes: float
    beyond: float
    information: float
    rows: int

    @property
    def resolved(self) -> bool:
        """Whether the codes of so many rows run into one another; else gap and holes are those between islands, less with more rows."""
        return self.information < math.log(self.rows) - RESOLVED


@dataclass(frozen=True)
class Plane:
    """Draws of q(z) and of p(z) in cells of the plane in which the codes vary most; a line where z is one number.

    Args:
        edges: of the cells, along each axis.
        prior: the share of the draws of p in each cell; the first axis first.
        codes: the share of the draws of q.
        draws: how many draws of p.
        shares: of the variance of q(z), along each axis.
    """

    edges: tuple[Floats, ...]
    prior: Floats
    codes: Floats
    draws: int
    shares: tuple[float, ...]

    @property
    def in_holes(self) -> NDArray[np.bool_]:
        """The cells where the prior has mass and the codes have almost none."""
        return (self.prior * self.draws >= _SEEN) & (self.codes < FEW * self.prior)

    @property
    def is_beyond(self) -> NDArray[np.bool_]:
        """The cells where the codes have mass and the prior has almost none."""
        return (self.codes * self.draws >= _SEEN) & (self.prior < FEW * self.codes)

    @property
    def holes(self) -> float:
        """The mass of the prior in holes."""
        return float(self.prior[self.in_holes].sum())

    @property
    def beyond(self) -> float:
        """The mass of the codes that is beyond the prior."""
        return float(self.codes[self.is_beyond].sum())


@dataclass(frozen=True)
class Weights:
    """How even the importance weights behind log_prob are.

    Args:
        draws: K.
        median: of the rows' effective sizes, from 1 to K.
        poor: share of the rows whose effective size is under a tenth of K.
        heavy: share of the rows of which less than half of the draws count and k-hat is over 0.7: their estimates have no finite error.
    """

    draws: int
    median: float
    poor: float
    heavy: float


@dataclass(frozen=True)
class LatentDiagnostics(Diagnosis):
    """What the latents of some rows look like.

    Args:
        rows: how many.
        levels: of the latents, the bottom first.
        overlap: of codes and prior in all of z; None where q does not say its density at any z.
        plane: of codes and prior.
        weights: behind log_prob.
    """

    rows: int
    levels: tuple[Level, ...]
    overlap: Overlap | None
    plane: Plane
    weights: Weights

    @property
    def kl(self) -> float:
        """Of all levels, in nats a row."""
        return sum(level.kl for level in self.levels)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with them, a sentence each without a full stop."""
        return tuple(_warnings(self))

    def numbers(self) -> dict[str, Any]:
        """Plain data, one entry a level where there are levels."""
        overlap = self.overlap
        return {
            "rows": self.rows,
            "units": [len(level.activity) for level in self.levels],
            "active": [level.active for level in self.levels],
            "kl": [level.kl for level in self.levels],
            "kl_error": [level.error for level in self.levels],
            "unit_kl": [list(level.unit_kl) for level in self.levels],
            "gap": None if overlap is None or not overlap.resolved else overlap.gap,
            "holes": self.plane.holes,
            "beyond": self.plane.beyond,
            "draws": self.weights.draws,
            "effective_draws": self.weights.median,
        }

    def sentence(self) -> str:
        """Active units and KL in a clause."""
        return "; ".join(
            f"{_of_level(self, k)}{level.active} of {_units(level)} active, KL {level.kl:.2f} nats" for k, level in _each(self)
        )

    def __str__(self) -> str:
        return "\n".join((*_lines(self), *(f"Warning: {warning}." for warning in self.warnings)))


# -- the numbers -------------------------------------------------------------------------------------------------------


def activity(z: Codes) -> PerUnit:
    """Var_x(E_q[z_l | x]) over N rows, from K draws for each: Var_n(mean_k z) - (1 - 1/N) E_n[Var_k z] / K, without bias.

    Near 0 a unit says the same of every row; an estimate of 0 may fall below it.

    Source: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", ICLR 2016, arXiv:1509.00519: active above 0.01.
    """
    draws, rows = z.shape[:2]
    return z.mean(0).var(0, correction=0) - (1 - 1 / rows) * z.var(0).mean(0) / draws


def unit_kl(z: Codes, prior: Float[Tensor, "M L"]) -> PerUnit:
    """E_x KL(N(m, v) || N(m_p, v_p)), m and v the moments of q(z_l | x) and m_p, v_p those of p(z_l), each unit alone.

        KL = ((m - m_p)^2 + v) / (2 v_p) + (log v_p - log v - 1) / 2

    Where q and the prior are normal and independent over units, as in the plain VAE, they are the units' own KL, and their sum is that of
    the level. Elsewhere a joint KL does not split by unit: they are then what normals of the same moments would pay.

    The K draws of a row have sample moments M and V, and where q is normal M^2 - V / K and log V - psi((K - 1) / 2) + log((K - 1) / 2)
    have the means m^2 and log v: no bias at any K from 3 on, but for the 1 / M of the prior's draws.
    """
    half = torch.tensor((len(z) - 1) / 2, dtype=z.dtype, device=z.device)
    v, v_p = z.var(0), prior.var(0)
    square = (z.mean(0) - prior.mean(0)).square() - v / len(z)
    log_v = v.log() - torch.digamma(half) + half.log()
    return 0.5 * ((square + v) / v_p + v_p.log() - log_v - 1).mean(0)


@torch.no_grad()
def overlap(
    model: Generative, inference: Inference, x: X, c: Context | None = None, *, points: int = _POINTS, generator: Generator = None
) -> Overlap | None:
    """The aggregated posterior of rows against the prior, by draws from both; None where q does not say its density at any z.

    Cost: O(points N L).

    Args:
        model: the prior's.
        inference: q.
        x: rows (N, D).
        c: their conditions.
        points: draws of each, at least.
        generator: of the draws.
    """
    drawn = inference.draw(model, x, c, -(-points // len(x)), generator=generator)
    if drawn.density is None:
        return None
    codes, own = tuple(z.flatten(0, 1) for z in drawn.latents), _total(drawn.density(drawn.latents)).flatten()
    dreams = model.draw_latents((points,), like=codes[0], generator=generator)
    log_q, log_q_of_dreams = (_log_aggregated(drawn.density, len(x), z) for z in (codes, dreams))
    ratio, ratio_of_dreams = log_q - _total(model.log_prior(codes)), log_q_of_dreams - _total(model.log_prior(dreams))
    holes, beyond = (float((r < math.log(FEW)).double().mean()) for r in (ratio_of_dreams, -ratio))
    error = float(ratio.std() / math.sqrt(len(ratio)))
    return Overlap(float(ratio.mean()), error, holes, beyond, float((own - log_q).mean()), len(x))


def _log_aggregated(density: Callable[[Levels], Levels], rows: int, points: Levels) -> Tensor:
    """log 1/N sum_n q(z | x_n) at points z (P, L) of each level: (P,)."""
    size = max(1, _VALUES_AT_ONCE // (rows * sum(z.shape[-1] for z in points)))
    pieces = zip(*(z[:, None].split(size) for z in points), strict=True)
    return torch.cat([_total(density(piece)).logsumexp(-1) for piece in pieces]) - math.log(rows)


def _total(levels: Levels) -> Tensor:
    """The sum over levels, in double precision."""
    return torch.stack([level.double() for level in levels]).sum(0)


def plane(codes: Float[Tensor, "Q L"], prior: Float[Tensor, "P L"]) -> Plane:
    """Draws of q(z) and p(z) on the principal axes of q(z), counted in cells.

    The window holds all but the outermost thousandth of both together on each side; what is farther out is not counted.

    Args:
        codes: draws of q(z).
        prior: draws of p(z).
    """
    centre = codes.mean(0)
    _, spread, axes = torch.linalg.svd(codes - centre, full_matrices=False)
    q, p = (((z - centre) @ axes[:2].T).cpu().numpy() for z in (codes, prior))
    ends = [np.quantile(np.concatenate((q[:, k], p[:, k])), (0.001, 0.999)) for k in range(q.shape[1])]
    edges = tuple(np.linspace(low, high, _CELLS + 1) for low, high in ends)
    shares = (spread[:2].square() / spread.square().sum()).tolist()
    return Plane(edges, _counted(p, edges), _counted(q, edges), len(p), tuple(shares))


def _counted(z: Floats, edges: tuple[Floats, ...]) -> Floats:
    """The share of rows (P, 1 or 2) in each cell."""
    return np.histogramdd(z, bins=edges)[0] / len(z)


def weights(log_w: LogWeights) -> Weights:
    """Effective sizes and k-hat of the rows' weights."""
    ess, k = effective_draws(log_w).double(), pareto_k(log_w.double())
    uneven = ess < len(log_w) / 2  # the tail of weights that are equal but for rounding has a k-hat, too
    poor, heavy = (float(bad.double().mean()) for bad in (ess < POOR * len(log_w), uneven & (k > HEAVY)))
    return Weights(len(log_w), float(ess.median()), poor, heavy)


@torch.no_grad()
def diagnose(
    model: Generative,
    inference: Inference,
    x: X,
    c: Context | None = None,
    *,
    weigh: Callable[[Tensor, Tensor | None], Tensor],
    generator: Generator = None,
) -> LatentDiagnostics:
    """All of it, of rows (N, D) and their conditions. NaN = unobserved.

    Cost: some passes of up to 2000 rows through the encoder, `weigh` for 100 of them, and O(1000 N L) for the aggregated posterior.

    Args:
        model: prior and decoder.
        inference: q.
        x: rows.
        c: their conditions.
        weigh: gives log-weights (K, N) of rows and their conditions, those of log_prob.
        generator: of all draws.

    Raises:
        DataError: there are no rows.
    """
    if not len(x):
        raise DataError("a diagnosis of latents needs one or more rows, got 0")
    dream = model.draw_latents((1,), like=x, generator=generator)
    at_once = max(_DRAWS, _VALUES_AT_ONCE // sum(z.shape[-1] for z in dream))
    some, some_c = thinned(x, c, min(_MIXED, at_once // _FEWEST))
    scattered = min(_SCATTERED, at_once)
    draws = max(-(-scattered // len(some)), min(_DRAWS, at_once // len(some)))
    drawn = inference.draw(model, some, some_c, draws, generator=generator)
    prior = model.draw_latents((scattered,), like=x, generator=generator)
    levels = tuple(_levels(model, drawn, prior))
    found = overlap(model, inference, some, some_c, generator=generator)
    flat = plane(*(torch.cat(z, dim=-1).flatten(0, -2).double() for z in (drawn.latents, prior)))
    return LatentDiagnostics(len(x), levels, found, flat, weights(weigh(*thinned(x, c, _WEIGHED))))


def thinned(x: Tensor, c: Tensor | None, rows: int) -> tuple[Tensor, Tensor | None]:
    """At most so many rows, evenly apart, and their conditions."""
    kept = torch.arange(min(rows, len(x)), device=x.device) * len(x) // min(rows, len(x))
    return x[kept], None if c is None else c[kept]


def _levels(model: Generative, drawn: Draws, prior: Levels) -> Iterator[Level]:
    nothing = drawn.latents[0].new_zeros(drawn.latents[0].shape[:-1])
    terms = LogTerms(drawn.latents, nothing, lambda: model.log_prior(drawn.latents), drawn.log_q, drawn.kl)
    for k, (z, p) in enumerate(zip(drawn.latents, prior, strict=True)):
        kl = divergence(terms, k).double()
        error = float(kl.std()) / math.sqrt(len(kl)) if len(kl) > 1 else math.inf
        z = z.double()
        yield Level(float(kl.mean()), error, tuple(activity(z).tolist()), tuple(unit_kl(z, p.double()).tolist()))


# -- the words ---------------------------------------------------------------------------------------------------------


def _warnings(found: LatentDiagnostics) -> Iterator[str]:
    if found.kl < COLLAPSED:
        yield (
            f"the posterior has collapsed: KL {found.kl:.2g} nats a row, so the decoder ignores z; try beta_warmup=0.2 or free_bits=0.5 "
            "(columns that have nothing to do with one another leave nothing to encode)"
        )
        return
    for k, level in _each(found):
        if level.kl < IDLE:
            yield f"{_of_level(found, k)}the posterior has collapsed: KL {level.kl:.2g} nats a row, so the level below ignores it"
        elif level.idle:
            which = ", ".join(map(str, level.idle[:8])) + (", ..." if len(level.idle) > 8 else "")
            yield f"{_of_level(found, k)}{len(level.idle)} of {_units(level)} carry nothing: {which}; latents={level.active} would do"
    if found.plane.holes > WIDE:
        yield (
            f"{found.plane.holes:.0%} of the prior's mass lies in holes of the plane where almost no row is encoded: samples from there "
            "are like no row; try prior=mixture, prior=vamp or a flow"
        )
    if found.weights.heavy > 0.5:
        yield (
            f"log_prob rests on few of its draws: of {found.weights.draws}, {found.weights.median:.1f} count in a usual row; more draws, "
            "or objective=iwae, would tighten it"
        )


def _lines(found: LatentDiagnostics) -> Iterator[str]:
    yield f"{found.rows:,} rows: {found.sentence()}"
    yield from ("", f"{'unit':>6}  {'KL':>6}  Var E[z|x]")
    units = [(f"{k}.{u}" if len(found.levels) > 1 else f"{u}", kl, a) for k, level in _each(found) for u, kl, a in _sorted(level)]
    for name, kl, a in units[:_SHOWN]:
        yield f"{name:>6}  {kl:6.3f}  {a:10.3f}{'' if a > ACTIVE else '  idle'}"
    if len(units) > _SHOWN:
        yield f"{'...':>6}  and {len(units) - _SHOWN} more"
    yield ""
    for k, level in _each(found):
        yield f"{_of_level(found, k)}KL(q(z|x) || p(z)) = {level.kl:.3f} ± {level.error:.2g} nats a row"
    yield _overlap_line(found.overlap)
    where = "of a plane" if len(found.plane.edges) == 2 else "of the line"
    shown = f"{sum(found.plane.shares):.0%} of the codes' variance"
    yield f"holes {where} ({shown}): {found.plane.holes:.1%} of the prior has no codes, {found.plane.beyond:.1%} of the codes no prior"
    w = found.weights
    yield (
        f"weights of log_prob: {w.median:.1f} of {w.draws} draws count in the median row; "
        f"under a tenth in {w.poor:.0%} of the rows, k-hat over {HEAVY} in {w.heavy:.0%}"
    )


def _overlap_line(found: Overlap | None) -> str:
    if found is None:
        return "gap KL(q(z) || p(z)): unknown, q says its density only where it drew"
    if not found.resolved:
        most = math.log(found.rows)
        return (
            f"gap KL(q(z) || p(z)) and holes of all of z: not to be told from {found.rows:,} rows, whose codes are islands "
            f"(I(x; z) is {found.information:.2f} of at most log N = {most:.2f} nats)"
        )
    return (
        f"gap KL(q(z) || p(z)) = {found.gap:.3f} ± {found.error:.2g} nats; holes of all of z: {found.holes:.1%} of the prior has no codes, "
        f"{found.beyond:.1%} of the codes no prior"
    )


def _each(found: LatentDiagnostics) -> Iterator[tuple[int, Level]]:
    """Levels, counted from 1 at the bottom."""
    yield from enumerate(found.levels, 1)


def _sorted(level: Level) -> list[tuple[int, float, float]]:
    """Units, counted from 1, those that say most first."""
    units = [(k, kl, a) for k, (kl, a) in enumerate(zip(level.unit_kl, level.activity, strict=True), 1)]
    return sorted(units, key=lambda unit: -unit[1])


def _of_level(found: LatentDiagnostics, k: int) -> str:
    return f"level {k} of {len(found.levels)}: " if len(found.levels) > 1 else ""


def _units(level: Level) -> str:
    n = len(level.activity)
    return "1 unit" if n == 1 else f"{n} units"
