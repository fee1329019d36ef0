"""Full-covariance and diagonal normals, K at once, in closed form, with any entries of x missing.

For a normal N(μ, Σ) on R^D with observed entries o and missing entries m,

    log p(x_o)     = -½ |L⁻¹ (x_o - μ_o)|² - Σ_i log L_ii - ½ |o| log 2π,          L Lᵀ = Σ_oo
    E[x_m | x_o]   = μ_m + Σ_mo Σ_oo⁻¹ (x_o - μ_o)
    Cov[x_m | x_o] = Σ_mm - Σ_mo Σ_oo⁻¹ Σ_om

Rows that lack the same entries share L. Embedding Σ_oo in the identity gives every pattern the shape
(D, D), so that all patterns go through one batched Cholesky factorisation and one batched triangular
solve; there is no loop over rows or patterns, only over chunks that bound memory.

Cost of a pass over N rows with P patterns: O(K (P D³ + N D²)). Everything is in the dtype of the
parameters; the families keep float64.
"""

import abc
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pofx.distributions.base import inverse_positive
from pofx.distributions.continuous import Normal
from pofx.errors import Unavailable
from pofx.events import Condition
from pofx.types import Generator, Point

Rows = Float[Tensor, "N D"]  # NaN = unobserved
LogDensities = Float[Tensor, "N K"]
LogWeights = Float[Tensor, " K"]
LOG_2PI = math.log(2 * math.pi)
NEGLIGIBLE = 1e-12  # a responsibility that adds nothing to a sum in float64
ELEMENTS_AT_ONCE = 2**22  # of a chunk's largest tensor: 32 MB in float64


# -- rows by pattern -------------------------------------------------------------------------------


class Block(NamedTuple):
    """B groups of H rows; the rows of a group lack the same entries, and the last of them may be padding."""

    x: Float[Tensor, "B H D"]  # 0 where unobserved
    observed: Bool[Tensor, "B D"]
    real: Bool[Tensor, "B H"]  # False: padding


class Patterns:
    """Rows sorted by which entries they lack and cut into groups of equal height.

    The height is near the mean number of rows a pattern, so at most half of the groups and half of the
    cells are padding, whether all rows are complete or all patterns are distinct.

    Args:
        x: rows (N, D), NaN = unobserved.
    """

    highest = 1024

    def __init__(self, x: Rows) -> None:
        self.x, observed = x.nan_to_num(), ~x.isnan()
        self.patterns, which, count = _distinct(observed)
        self.height = min(max(1, len(x) // max(1, len(count))), self.highest)
        groups = -(-count // self.height)
        self.order = which.argsort(stable=True)
        rank = torch.arange(len(x), device=x.device) - (count.cumsum(0) - count)[which[self.order]]
        group = (groups.cumsum(0) - groups)[which[self.order]] + rank // self.height
        self.pattern = torch.repeat_interleave(torch.arange(len(count), device=x.device), groups)
        self.rows = torch.full((len(self.pattern), self.height), -1, device=x.device)
        self.rows[group, rank % self.height] = self.order

    def blocks(self, cost: int) -> Iterator[Block]:
        """The groups in chunks, `cost` numbers a group and a chunk of about `ELEMENTS_AT_ONCE` numbers."""
        for rows, pattern in zip(*(t.split(max(1, ELEMENTS_AT_ONCE // cost)) for t in (self.rows, self.pattern)), strict=True):
            yield Block(self.x[rows.clamp_min(0)], self.patterns[pattern], rows >= 0)

    def restore(self, parts: Sequence[Tensor]) -> Tensor:
        """One value a row, (B, H, *) a chunk, back in the order of x: (N, *)."""
        flat = torch.cat([part.flatten(0, 1) for part in parts])
        return flat[(self.rows.flatten() >= 0)][self.order.argsort()]


def _distinct(observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct rows of a mask, which of them each row is, and how often each occurs."""
    if bool(observed.all()):  # the usual case needs no sort
        n = len(observed)
        zeros = torch.zeros(n, dtype=torch.long, device=observed.device)
        return observed[:1], zeros, torch.full((min(1, n),), n, device=observed.device)
    patterns, which, count = observed.unique(dim=0, return_inverse=True, return_counts=True)
    return patterns, which, count


# -- what EM needs ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prior:
    """What regularised EM believes before it sees rows: `strength` rows of covariance diag(variance).

    The M-step becomes Σ_k = (S_k + strength · diag(variance)) / (n_k + strength), which maximises the
    log-likelihood plus -½ strength Σ_k (log|Σ_k| + tr(diag(variance) Σ_k⁻¹)): EM never lowers that sum, and a
    component on duplicated rows, or on fewer rows than variables, keeps a positive definite Σ_k.

    Source: Fraley and Raftery, "Bayesian regularization for normal mixture estimation and model-based
    clustering", Journal of Classification 24, 2007 (an inverse Wishart prior; the count of its rows is ours).
    """

    strength: float
    variance: Float[Tensor, " D"]

    def penalty(self, normals: "Normals") -> Tensor:
        """What is added to the sum of log-likelihoods: what EM maximises is their sum."""
        return -0.5 * self.strength * (normals.log_determinant + normals.trace_of_inverse_times(self.variance)).sum()


@dataclass(frozen=True)
class Moments:
    """Expected sufficient statistics of K components, about the means they were computed with."""

    count: Float[Tensor, " K"]  # Σ_n r_nk
    first: Float[Tensor, "K D"]  # Σ_n r_nk E[x_n - μ_k]
    second: Float[Tensor, "K D W"]  # Σ_n r_nk E[(x_n - μ_k)(x_n - μ_k)ᵀ]; W = D, or W = 1 for its diagonal
    log_likelihood: float  # mean over rows

    @property
    def log_weight(self) -> LogWeights:
        """log of the mixture's weights, n_k / N; a component that lost every row keeps a weight of e^-700."""
        return (self.count / self.count.sum()).log().clamp_min(-700.0)

    def shift(self) -> Tensor:
        """How far each mean moves, (K, D)."""
        return self.first / self.count.clamp_min(torch.finfo(self.count.dtype).tiny)[:, None]


def data_variance(x: Rows) -> Float[Tensor, " D"]:
    """Variance of each variable's observed entries; 1 where they do not vary, which keeps a prior proper."""
    seen = ~x.isnan()
    n = seen.sum(0).clamp_min(1)
    mean = x.nan_to_num().sum(0) / n
    variance = torch.where(seen, x - mean, 0.0).square().sum(0) / n
    return torch.where(variance > 1e-20 * (1 + mean.square()), variance, 1.0)


# -- normals ---------------------------------------------------------------------------------------


class Normals(abc.ABC):
    """K normals on R^D: what a mixture asks of its components. Rows x are (N, D), NaN = unobserved."""

    mean: Float[Tensor, "K D"]

    @property
    @abc.abstractmethod
    def spread(self) -> Float[Tensor, "C V W"]:
        """Σ in the one shape that files keep: (K, D, D), (1, D, D) shared, (K, D, 1) diagonal, (K, 1, 1) spherical."""

    @property
    @abc.abstractmethod
    def log_determinant(self) -> Tensor:
        """log|Σ_k|, one number each, or one shared."""

    @abc.abstractmethod
    def trace_of_inverse_times(self, variance: Tensor) -> Tensor:
        """tr(diag(variance) Σ_k⁻¹), one number each, or one shared."""

    @abc.abstractmethod
    def log_prob(self, x: Rows) -> LogDensities:
        """log N(x | μ_k, Σ_k), marginalised over the entries that are NaN."""

    @abc.abstractmethod
    def sample(self, which: Int[Tensor, " n"], *, generator: Generator = None) -> Float[Tensor, "n D"]:
        """One draw from component which[i], for each i."""

    @abc.abstractmethod
    def marginal(self, keep: Sequence[int]) -> "Normals":
        """The normals of some of the variables, in the order given."""

    @abc.abstractmethod
    def conditional(self, evidence: Point) -> "Normals":
        """The normals of the variables that are NaN in the evidence, given the others."""

    def sums_over(self, variables: Sequence[int]) -> bool:
        """Whether the probability of a condition on each of them is in closed form: they are independent, or one."""
        return len(variables) <= 1 or self.spread.shape[-1] == 1

    def log_chance(self, conditions: Mapping[int, Condition]) -> Float[Tensor, " K"]:
        """log P_k(conditions), one a variable.

        Raises:
            Unavailable: several variables that are not independent.
        """
        if not self.sums_over(list(conditions)):
            raise Unavailable("the probability of several intervals", "a full-covariance normal", "no closed form", instead="draws")
        total = self.mean.new_zeros(len(self.mean))
        for d, condition in conditions.items():
            scale = self.marginal([d]).spread.flatten().sqrt().expand(len(total))
            total = total + Normal().log_chance(torch.stack((self.mean[:, d], inverse_positive(scale)), -1), condition)
        return total

    @abc.abstractmethod
    def fill(self, x: Rows, log_weight: LogWeights) -> Rows:
        """E[x | x_o] under the mixture Σ_k exp(log_weight_k) N_k: missing entries filled, observed ones kept."""

    @abc.abstractmethod
    def complete(self, x: Rows, which: Int[Tensor, " N"], *, generator: Generator = None) -> Rows:
        """One joint draw of each row's missing entries given its observed ones, under component which[n]."""

    @abc.abstractmethod
    def uphill(self, r: Float[Tensor, "S K"]) -> Float[Tensor, "S D"]:
        """(Σ_k r_k Σ_k⁻¹)⁻¹ Σ_k r_k Σ_k⁻¹ μ_k: with r = p(k | x), a step from x that never lowers the mixture's density."""

    @abc.abstractmethod
    def expect(self, x: Rows, log_weight: LogWeights) -> Moments:
        """The E-step of the mixture Σ_k exp(log_weight_k) N_k."""

    @abc.abstractmethod
    def maximise(self, moments: Moments, prior: Prior) -> "Normals":
        """The M-step: means, and regularised covariances, pooled where they are shared."""


@dataclass(frozen=True)
class Gaussians(Normals):
    """K normals N(μ_k, Σ_k) on R^D; see the module's docstring for the formulas.

    Args:
        mean: μ, (K, D).
        covariance: Σ, (K, D, D), or (1, D, D) shared by all; positive definite.
    """

    mean: Float[Tensor, "K D"]
    covariance: Float[Tensor, "C D D"]

    @property
    def spread(self) -> Float[Tensor, "C V W"]:
        """Σ."""
        return self.covariance

    @cached_property
    def factor(self) -> Tensor:
        """L, lower triangular, L Lᵀ = Σ."""
        return torch.linalg.cholesky(self.covariance)

    @property
    def log_determinant(self) -> Tensor:
        """log|Σ_k|, one number each, or one shared."""
        return 2 * self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def trace_of_inverse_times(self, variance: Tensor) -> Tensor:
        """tr(diag(variance) Σ_k⁻¹)."""
        root = torch.linalg.solve_triangular(self.factor, variance.sqrt().diag_embed(), upper=False)
        return root.square().sum((-2, -1))

    def log_prob(self, x: Rows) -> LogDensities:
        """log N(x | μ_k, Σ_k), marginalised over the entries that are NaN."""
        patterns = Patterns(x)
        if not len(x):
            return x.new_zeros(0, len(self.mean))
        return patterns.restore([self._regress(block).log_prob for block in patterns.blocks(self._cost(patterns))])

    def entropy(self) -> Float[Tensor, " K"]:
        """½ log|2πe Σ_k|, in nats."""
        return (0.5 * (self.log_determinant + self.mean.shape[1] * (LOG_2PI + 1))).expand(len(self.mean))

    def kl(self, other: "Gaussians") -> Float[Tensor, " K"]:
        """KL(N_k | other_k) = ½ (tr(Σ₂⁻¹ Σ₁) + |L₂⁻¹ (μ₁ - μ₂)|² - D + log|Σ₂| - log|Σ₁|)."""
        apart = (self.mean - other.mean)[..., None]
        gain = torch.linalg.solve_triangular(other.factor, torch.cat((self.factor.expand(len(apart), -1, -1), apart), -1), upper=False)
        return 0.5 * (gain.square().sum((-2, -1)) - self.mean.shape[1] + other.log_determinant - self.log_determinant)

    def sample(self, which: Int[Tensor, " n"], *, generator: Generator = None) -> Float[Tensor, "n D"]:
        """One draw x = μ + L ε from component which[i], for each i."""
        noise = torch.randn(len(which), self.mean.shape[1], generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        scaled = torch.empty_like(noise)
        for k, factor in enumerate(self.factor):  # a GEMM a component beats gathering n factors
            rows = slice(None) if len(self.factor) == 1 else which == k
            scaled[rows] = noise[rows] @ factor.T
        return self.mean[which] + scaled

    def marginal(self, keep: Sequence[int]) -> "Gaussians":
        """The normals of some of the variables, in the order given."""
        keep = list(keep)
        return type(self)(self.mean[:, keep], self.covariance[:, keep][:, :, keep])

    def conditional(self, evidence: Point) -> "Gaussians":
        """The normals of the variables that are NaN in the evidence, given the others."""
        block = next(Patterns(evidence[None]).blocks(1))
        missing = evidence.isnan().nonzero()[:, 0]
        given = self._regress(block)
        mean = self.mean + given.deviation[0, :, :, 0]
        return type(self)(mean[:, missing], given.covariance()[0][:, missing][:, :, missing])

    def fill(self, x: Rows, log_weight: LogWeights) -> Rows:
        """E[x | x_o] under the mixture Σ_k exp(log_weight_k) N_k: missing entries filled, observed ones kept."""
        patterns, parts = Patterns(x), []
        for block in patterns.blocks(self._cost(patterns)):
            given = self._regress(block)
            r = (log_weight + given.log_prob).softmax(-1)
            parts.append(r @ self.mean + torch.einsum("bhk,bkdh->bhd", r, given.deviation))
        return torch.where(x.isnan(), patterns.restore(parts), x) if parts else x

    def complete(self, x: Rows, which: Int[Tensor, " N"], *, generator: Generator = None) -> Rows:
        """One joint draw of each row's missing entries given its observed ones, under component which[n].

        A draw x' ~ N(μ, Σ) corrected by Σ_mo Σ_oo⁻¹ (x_o - x'_o) has the conditional law (Matheron's rule),
        so no conditional covariance is factorised.
        """
        draw = self.sample(which, generator=generator)
        step = torch.empty_like(draw)
        for k in which.unique().tolist():
            rows = which == k
            centred = Gaussians(torch.zeros_like(self.mean[:1]), self.covariance[k % len(self.covariance), None])
            step[rows] = centred.fill((x - draw)[rows], self.mean.new_zeros(1))
        return torch.where(x.isnan(), draw + step, x)

    def uphill(self, r: Float[Tensor, "S K"]) -> Float[Tensor, "S D"]:
        """See `Normals`."""
        precision = torch.cholesky_inverse(self.factor).expand(len(self.mean), -1, -1)
        weighted = (precision @ self.mean[..., None])[..., 0]
        return torch.linalg.solve((r @ precision.flatten(1)).unflatten(1, precision.shape[1:]), r @ weighted)

    def expect(self, x: Rows, log_weight: LogWeights) -> Moments:
        """The E-step of the mixture Σ_k exp(log_weight_k) N_k on rows with missing entries."""
        patterns = Patterns(x)
        k, d = self.mean.shape
        count, first, second = self.mean.new_zeros(k), self.mean.new_zeros(k, d), self.mean.new_zeros(k, d, d)
        total = self.mean.new_zeros(())
        for block in patterns.blocks(self._cost(patterns)):
            given = self._regress(block)
            joint = log_weight + given.log_prob
            evidence = joint.logsumexp(-1, keepdim=True)
            r = (joint - evidence).exp() * block.real[..., None]  # (B, H, K)
            total += evidence[..., 0][block.real].sum()
            count += r.sum((0, 1))
            # Most groups belong to few components; the conditional moments, the dear part, are for those alone.
            group, component = (r.amax(1) > NEGLIGIBLE).nonzero(as_tuple=True)
            given, weight = given.only(group, component), r[group, :, component]
            deviation = given.deviation[:, 0]  # (pairs, D, H)
            weighted = deviation * weight[:, None]
            first.index_add_(0, component, weighted.sum(-1))
            second.index_add_(0, component, weight.sum(1)[:, None, None] * given.covariance()[:, 0] + weighted @ deviation.mT)
        return Moments(count, first, second, float(total) / len(x))

    def maximise(self, moments: Moments, prior: Prior) -> "Gaussians":
        """The M-step: means, and regularised covariances (pooled where they are shared)."""
        shift = moments.shift()
        scatter = moments.second - moments.count[:, None, None] * shift[:, :, None] * shift[:, None]
        count = moments.count
        if len(self.covariance) < len(self.mean):
            scatter, count = scatter.sum(0, keepdim=True), count.sum(0, keepdim=True)
        covariance = (scatter + prior.strength * prior.variance.diag()) / (count + prior.strength)[:, None, None]
        return type(self)(self.mean + shift, 0.5 * (covariance + covariance.mT))

    def _cost(self, patterns: Patterns) -> int:
        k, d = self.mean.shape
        return k * d * (d + patterns.height)

    def _regress(self, block: Block) -> "Regression":
        """Whiten what is observed, for each group of rows and each component."""
        o = block.observed[:, None, :]  # (B, 1, D)
        both = o[..., None] & o[..., None, :]
        inside = torch.where(both, self.covariance, torch.eye(o.shape[-1], dtype=self.mean.dtype, device=self.mean.device))
        factor = torch.linalg.cholesky(inside)  # (B, C, D, D)
        residual = torch.where(o[..., None], block.x.mT[:, None] - self.mean[..., None], 0.0)  # (B, K, D, H)
        return Regression(self.covariance, o, factor, residual)


@dataclass(frozen=True)
class Regression:
    """Missing on observed: w = L⁻¹ (x_o - μ_o) and V = L⁻¹ Σ_o·, from which all conditional moments follow."""

    sigma: Float[Tensor, "*groups C D D"]
    observed: Bool[Tensor, "B 1 D"]
    factor: Float[Tensor, "B C D D"]
    residual: Float[Tensor, "B K D H"]

    def only(self, group: Tensor, component: Tensor) -> "Regression":
        """Some pairs of a group and a component, as groups of one component each."""
        own = component % self.factor.shape[1]  # a shared covariance is every component's
        factor, residual = self.factor[group, own][:, None], self.residual[group, component][:, None]
        return Regression(self.sigma[own, None], self.observed[group], factor, residual)

    @cached_property
    def _w(self) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, self.residual, upper=False)

    @cached_property
    def _v(self) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, self.sigma * self.observed[..., None], upper=False)

    @property
    def log_prob(self) -> Float[Tensor, "B H K"]:
        """log N(x_o)."""
        # Where an entry is missing the factor has a 1 on its diagonal and w a 0: neither counts.
        log_det = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = log_det + 0.5 * LOG_2PI * self.observed.sum(-1).to(log_det)
        return (-0.5 * self._w.square().sum(-2) - constant[..., None]).mT

    @cached_property
    def deviation(self) -> Float[Tensor, "B K D H"]:
        """E[x | x_o] - μ."""
        if bool(self.observed.all()):
            return self.residual
        return torch.where(self.observed[..., None], self.residual, self._v.mT @ self._w)

    def covariance(self) -> Float[Tensor, "B C D D"]:
        """Cov[x | x_o], 0 where an entry is observed."""
        missing = ~self.observed
        if not bool(missing.any()):
            return torch.zeros_like(self.factor)
        return torch.where(missing[..., None] & missing[..., None, :], self.sigma - self._v.mT @ self._v, 0.0)


@dataclass(frozen=True)
class DiagonalGaussians(Normals):
    """K normals on R^D whose variables are independent within each: N(μ_k, diag(σ²_k)).

    The same questions as `Gaussians`, at O(N K D): with o = 1 where x is observed, the log-density is linear in
    (o, x, x²), one matrix product for all rows and components.

    Args:
        mean: μ, (K, D).
        variance: σ², (K, D), or (K, 1): one for all variables.
    """

    mean: Float[Tensor, "K D"]
    variance: Float[Tensor, "K W"]

    @property
    def spread(self) -> Float[Tensor, "C V W"]:
        """σ², its last axis of length 1."""
        return self.variance[..., None]

    @property
    def log_determinant(self) -> Tensor:
        """log|Σ_k|."""
        return self.variance.expand_as(self.mean).log().sum(-1)

    def trace_of_inverse_times(self, variance: Tensor) -> Tensor:
        """tr(diag(variance) Σ_k⁻¹)."""
        return (variance / self.variance).sum(-1)

    def log_prob(self, x: Rows) -> LogDensities:
        """log N(x | μ_k, σ²_k), marginalised over the entries that are NaN."""
        precision = 1 / self.variance.expand_as(self.mean)
        constant = LOG_2PI - precision.log() + self.mean.square() * precision
        return -0.5 * (_powers(x) @ torch.cat((constant, -2 * self.mean * precision, precision), -1).T)

    def entropy(self) -> Float[Tensor, " K"]:
        """½ log|2πe Σ_k|, in nats."""
        return 0.5 * (self.log_determinant + self.mean.shape[1] * (LOG_2PI + 1))

    def sample(self, which: Int[Tensor, " n"], *, generator: Generator = None) -> Float[Tensor, "n D"]:
        """One draw from component which[i], for each i."""
        noise = torch.randn(len(which), self.mean.shape[1], generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean[which] + self.variance.sqrt()[which] * noise

    def marginal(self, keep: Sequence[int]) -> "DiagonalGaussians":
        """The normals of some of the variables, in the order given."""
        keep = list(keep)
        return type(self)(self.mean[:, keep], self.variance.expand_as(self.mean)[:, keep])

    def conditional(self, evidence: Point) -> "DiagonalGaussians":
        """The normals of the variables that are NaN in the evidence: within a component the others say nothing of them."""
        return self.marginal(evidence.isnan().nonzero()[:, 0].tolist())

    def fill(self, x: Rows, log_weight: LogWeights) -> Rows:
        """E[x | x_o] under the mixture Σ_k exp(log_weight_k) N_k: missing entries filled, observed ones kept."""
        return torch.where(x.isnan(), (log_weight + self.log_prob(x)).softmax(-1) @ self.mean, x)

    def complete(self, x: Rows, which: Int[Tensor, " N"], *, generator: Generator = None) -> Rows:
        """One joint draw of each row's missing entries given its observed ones, under component which[n]."""
        return torch.where(x.isnan(), self.sample(which, generator=generator), x)

    def uphill(self, r: Float[Tensor, "S K"]) -> Float[Tensor, "S D"]:
        """See `Normals`."""
        precision = 1 / self.variance.expand_as(self.mean)
        return (r @ (precision * self.mean)) / (r @ precision)

    def expect(self, x: Rows, log_weight: LogWeights) -> Moments:
        """The E-step of the mixture Σ_k exp(log_weight_k) N_k on rows with missing entries."""
        k, d = self.mean.shape
        total, count, sums = self.mean.new_zeros(()), self.mean.new_zeros(k), self.mean.new_zeros(k, 3 * d)
        for rows in x.split(max(1, ELEMENTS_AT_ONCE // (k + 3 * d))):
            joint = log_weight + self.log_prob(rows)
            total += joint.logsumexp(-1).sum()
            r = joint.softmax(-1)
            count += r.sum(0)
            sums += r.T @ _powers(rows)
        seen, linear, square = sums.split(d, dim=-1)
        unseen = (count[:, None] - seen) * self.variance
        second = square - 2 * self.mean * linear + self.mean.square() * seen + unseen
        return Moments(count, linear - self.mean * seen, second[..., None], float(total) / len(x))

    def maximise(self, moments: Moments, prior: Prior) -> "DiagonalGaussians":
        """The M-step: means, and regularised variances (pooled where a component's variables share theirs)."""
        shift = moments.shift()
        scatter = (moments.second[..., 0] - moments.count[:, None] * shift.square()).clamp_min(0)
        variance = (scatter + prior.strength * prior.variance) / (moments.count + prior.strength)[:, None]
        shared = self.variance.shape[1] < variance.shape[1]
        return type(self)(self.mean + shift, variance.mean(1, keepdim=True) if shared else variance)


def normals(mean: Float[Tensor, "K D"], spread: Float[Tensor, "C V W"]) -> Normals:
    """The normals with these means and this `Normals.spread`."""
    if spread.shape[-1] < mean.shape[-1]:
        return DiagonalGaussians(mean, spread[..., 0])
    return Gaussians(mean, spread)


def _powers(x: Rows) -> Float[Tensor, "N E"]:
    """(1, x, x²) of each observed entry, (0, 0, 0) of a missing one."""
    value = x.nan_to_num()
    return torch.cat((x.isnan().logical_not().to(x.dtype), value, value.square()), -1)
