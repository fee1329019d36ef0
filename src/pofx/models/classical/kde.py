"""Kernel density estimation: a normal kernel on every training row, every question in closed form."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pofx.distributions.base import inverse_positive, nearest
from pofx.distributions.continuous import Normal
from pofx.distributions.drawing import draw, draw_per_row
from pofx.distributions.gaussian import LOG_2PI
from pofx.domain import Domain
from pofx.errors import Unavailable
from pofx.events import Condition, both
from pofx.models.base import FamilyConfig, FullBatch, Model, labelled
from pofx.models.classical.gaussian import Gaussian, GaussianConfig
from pofx.types import Context, Generator, Kind, Nats, Point, X

# Multiples of Silverman's bandwidth, in octaves, then in quarters of one around the best. That the least is no smaller
# is the floor that keeps repeated rows from sending h to 0.
_OCTAVES = tuple(2.0**j for j in range(-4, 4))
_QUARTERS = tuple(2.0 ** (j / 4) for j in range(-3, 4))
_PAIRS_FOR_CHOICE = 2**23  # (row, kernel) pairs that score one bandwidth
_PAIRS_AT_ONCE = 2**19  # fits a core's cache: larger chunks are slower
_LEAST = -80.0  # e^-80 of the largest term counts for nothing, and denormals are slow
_MODE_STARTS = 16


class KernelDensity(Model, FullBatch):
    """p(x) = Σ_i w_i Π_d N(x_d | x_id, h_d²), the sum over the training rows x_i, w_i = 1/N.

    Marginals drop columns. A conditional weighs each kernel by its density at the evidence and drops the evidence's
    columns. The mode is the best of several mean-shift ascents, so its density is a lower bound on the maximum.
    An interval of a variable restricts that factor of every kernel, and weighs the kernel by its mass there.
    A missing entry of a training row is no kernel: it is completed once, by a draw from one normal fitted to all rows.

    Log-densities are float64 and exact to about 1e-10 nats, however far the row: a matrix product of the centred rows
    gives all exponents, the largest is taken out, and no term is skipped.

    Cost: O(N D) a row; the training rows are the model.

    Source: Silverman, "Density estimation for statistics and data analysis", Chapman and Hall, 1986.

    Args:
        domain: what x is, real variables.
        config: the options.
    """

    missing = Kind.EXACT
    grows = frozenset({"rows", "log_weight"})

    rows: Tensor
    log_weight: Tensor
    bandwidth: Tensor

    def __init__(self, domain: Domain, config: "KernelDensityConfig") -> None:
        super().__init__(domain)
        self.config = config
        self.register_buffer("rows", torch.zeros(1, len(domain), dtype=torch.float64))
        self.register_buffer("log_weight", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("bandwidth", torch.ones(len(domain), dtype=torch.float64))
        self.conditions: Mapping[int, Condition] = {}  # what the variables are restricted to

    # -- learning ----------------------------------------------------------------------------------

    def steps(self, x: Tensor, *, holdout: Tensor | None = None, generator: Generator = None) -> Iterator[float]:
        """Keep the rows and choose the bandwidth; yield their mean leave-one-out log-likelihood, once.

        h = c · Silverman's, and the rule "likelihood" takes the c under which held-out rows are likeliest;
        without such rows, each training row under the others. Large sets are scored on a random part.
        """
        x = _completed(x.to(self.rows), generator)
        self.rows, self.log_weight = x, x.new_full((len(x),), -math.log(len(x)))
        silverman = silverman_bandwidth(x)
        if self.config.bandwidth == "likelihood":
            unseen = None if holdout is None or not len(holdout) else holdout.to(x)
            queries = self._queries(unseen, generator)
            best = silverman
            for multiples in (_OCTAVES, _QUARTERS):
                best = max((best * c for c in multiples), key=lambda h: self._score(h, *queries))
            self.bandwidth = best
        else:
            self.bandwidth = silverman if self.config.bandwidth == "silverman" else scott_bandwidth(x)
        self.bandwidth = self.bandwidth * self.config.scale
        yield self._score(self.bandwidth, *self._queries(None, generator))

    def _queries(self, holdout: Tensor | None, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """Rows to score, and which kernel is each row's own: held-out rows have none."""
        source = self.rows if holdout is None else holdout
        n = max(2, _PAIRS_FOR_CHOICE // len(self.rows))
        part = torch.randperm(len(source), generator=generator, device=source.device)[:n]
        return source[part], part if holdout is None else None

    def _score(self, bandwidth: Tensor, queries: Tensor, own: Tensor | None) -> float:
        """Mean log-density of the queries, each one's own kernel left out."""
        alone = len(self.rows) == 1
        total, at = 0.0, 0
        for terms in _Kernels(self.rows, self.log_weight, bandwidth).terms(queries):
            if own is not None and not alone:
                terms.scatter_(1, own[at : at + len(terms), None], -torch.inf)
            total, at = total + float(_log_sum_exp(terms).sum()), at + len(terms)
        n = len(self.rows)
        return total / len(queries) + (0.0 if own is None or alone else math.log(n / (n - 1)))

    # -- asking ------------------------------------------------------------------------------------

    @property
    def _kernels(self) -> "_Kernels":
        return _Kernels(self.rows, self.log_weight, self.bandwidth, self._log_masses(self.conditions))

    @property
    def _theta(self) -> Tensor:
        """Of each factor of each kernel the parameters of `Normal`, (N, D, 2)."""
        return torch.stack((self.rows, inverse_positive(self.bandwidth).expand_as(self.rows)), dim=-1)

    def _log_masses(self, conditions: Mapping[int, Condition]) -> Tensor:
        """log of each kernel's mass under each variable's condition, 0 where there is none, (N, D)."""
        out, theta = torch.zeros_like(self.rows), self._theta if conditions else self.rows
        for d, condition in conditions.items():
            out[:, d] = Normal().log_chance(theta[:, d], condition)
        return out

    def _restrict(self, conditions: Mapping[int, Condition]) -> "tuple[KernelDensity, float]":
        met = {d: both(self.conditions[d], c) if d in self.conditions else c for d, c in conditions.items()}
        more = self._log_masses(met) - self._log_masses({d: c for d, c in self.conditions.items() if d in met})
        joint = self.log_weight + more.nan_to_num(-torch.inf).sum(-1)
        log_p = float(joint.logsumexp(0))
        other = self._sub(range(len(self.domain)), self.log_weight if log_p == -torch.inf else joint.log_softmax(0))
        other.conditions = {**self.conditions, **met}
        return other, log_p

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        x = x.to(self.rows)
        log_p = torch.cat([_log_sum_exp(terms) for terms in self._kernels.terms(x)])
        for d, condition in self.conditions.items():
            inside = x[:, d].isnan() | Normal().holds(condition, x[:, d])
            log_p = torch.where(inside, log_p, -torch.inf)
        return log_p

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return self._jitter(draw(self.log_weight.exp(), n, generator=generator), generator)

    def _jitter(self, which: Tensor, generator: Generator) -> Tensor:
        """A draw from each kernel named."""
        noise = torch.randn(len(which), len(self.domain), generator=generator, dtype=self.rows.dtype, device=self.rows.device)
        x = self.rows[which] + self.bandwidth * noise
        for d, condition in self.conditions.items():
            x[:, d] = Normal().sample_within(self._theta[which, d], condition, generator=generator)
        return x

    @property
    def _means(self) -> Tensor:
        """Of each kernel, (N, D)."""
        means = self.rows
        for d, condition in self.conditions.items():
            own = Normal().mean_within(self._theta[:, d], condition)
            means = means.index_copy(1, torch.tensor([d], device=means.device), own[:, None])
        return means

    def _sub(self, keep: Sequence[int], log_weight: Tensor) -> "KernelDensity":
        keep = list(keep)
        other = KernelDensity(self.domain.select(keep), self.config)
        other.rows, other.log_weight, other.bandwidth = self.rows[:, keep], log_weight, self.bandwidth[keep]
        other.conditions = {i: self.conditions[d] for i, d in enumerate(keep) if d in self.conditions}
        return other

    def _marginal(self, keep: tuple[int, ...]) -> "KernelDensity":
        return self._sub(keep, self.log_weight)

    def _conditional(self, evidence: Point) -> "KernelDensity":
        terms = next(self._kernels.terms(evidence.to(self.rows)[None]))
        if self.conditions and bool(self._log_prob(evidence[None], None, None).isneginf()):
            raise Unavailable("conditional", self.noun, "the evidence has probability 0")
        return self._sub(evidence.isnan().nonzero()[:, 0].tolist(), terms[0].log_softmax(-1))

    def _mean(self) -> Point:
        return self.log_weight.exp() @ self._means

    @labelled(Kind.BOUND)
    def _mode(self, evidence: Point) -> Point:
        x, missing = evidence.to(self.rows).clone(), evidence.isnan()
        if missing.any():
            x[missing] = (self if missing.all() else self._conditional(evidence))._climb()
        return x

    def _climb(self) -> Point:
        """The highest point that mean shift reaches from the rows of highest density among the heaviest thousand."""
        few = self._means[self.log_weight.topk(min(1000, len(self.rows))).indices]
        x = few[self._log_prob(few, None, None).topk(min(_MODE_STARTS, len(few))).indices]
        for _ in range(self.config.mode_steps):
            before, x = x, self._inside(self._mean_of_kernels(x, self.rows))
            if bool(((x - before).abs() <= 1e-8 * self.bandwidth).all()):
                break
        return x[self._log_prob(x, None, None).argmax()]

    def _inside(self, x: Tensor) -> Tensor:
        """The nearest points that meet the conditions: of a step of mean shift, so that it still goes up."""
        for d, condition in self.conditions.items():
            for a, b in Normal().pieces(condition):
                x[:, d] = nearest(x[:, d], x.new_tensor(a), x.new_tensor(b))
        return x

    def _mean_of_kernels(self, x: Tensor, means: Tensor) -> Tensor:
        """Σ_i p(i | x_o) of what is given of every kernel."""
        return torch.cat([terms.softmax(-1) @ means for terms in self._kernels.terms(x)])

    def _impute(self, x: X, generator: Generator) -> X:
        x = x.to(self.rows)
        return torch.where(x.isnan(), self._mean_of_kernels(x, self._means), x)

    def _complete(self, x: X, generator: Generator) -> X:
        x = x.to(self.rows)
        which = torch.cat([draw_per_row(terms.softmax(-1), generator=generator) for terms in self._kernels.terms(x)])
        return torch.where(x.isnan(), self._jitter(which, generator), x)


class _Kernels:
    """log w_i + log N(q_o | x_io, h_o²) of query rows under all kernels, by one matrix product a chunk.

    With z = (q - m) / h and y_i = (x_i - m) / h about the mean m of the rows, the exponent is z·y_i - ½|y_i|² - ½|z|².
    """

    def __init__(self, rows: Tensor, log_weight: Tensor, bandwidth: Tensor, log_chance: Tensor | None = None) -> None:
        self.centre, self.bandwidth, self.log_weight = rows.mean(0), bandwidth, log_weight
        self.y = (rows - self.centre) / bandwidth
        self.half = -0.5 * self.y.square()
        if log_chance is not None:  # a restricted factor is divided by its mass; a kernel that has none has weight 0
            self.half = self.half - torch.where(log_chance > -torch.inf, log_chance, 0.0)

    def terms(self, q: Tensor) -> Iterator[Tensor]:
        """(n, N) for each chunk of the rows q, NaN = unobserved."""
        z = (q - self.centre) / self.bandwidth
        seen = ~z.isnan()
        norm = (seen * (self.bandwidth.log() + 0.5 * LOG_2PI)).sum(-1, keepdim=True)
        z = z.nan_to_num()
        if bool(seen.all()):
            constant, left, right = self.log_weight + self.half.sum(-1), z, self.y.T.contiguous()
        else:  # the mask picks the coordinates of |y_i|² that count
            constant, left, right = self.log_weight, torch.cat((z, seen.to(z)), -1), torch.cat((self.y, self.half), -1).T
        norm = norm + 0.5 * z.square().sum(-1, keepdim=True)
        size = max(1, _PAIRS_AT_ONCE // len(self.y))
        for part, less in zip(left.split(size), norm.split(size), strict=True):
            yield torch.addmm(constant, part, right) - less


class KernelDensityConfig(FamilyConfig):
    """Options of `kde`."""

    cites: ClassVar[tuple[str, ...]] = (
        "@book{silverman1986density, title={Density Estimation for Statistics and Data Analysis}, author={Silverman, Bernard W.}, "
        "publisher={Chapman and Hall}, year={1986}}",
    )
    space: ClassVar[dict[str, tuple[Any, ...]]] = {"bandwidth": ("silverman", "scott", "likelihood"), "scale": (1.0, 0.5, 2.0)}

    bandwidth: Literal["likelihood", "silverman", "scott"] = Field("likelihood", description="how the bandwidth h is chosen")
    scale: float = Field(1.0, gt=0, description="multiplies the chosen bandwidth")
    mode_steps: int = Field(500, ge=1, description="mean-shift steps at most towards the mode")

    def _build(self, domain: Domain, context: Domain | None) -> KernelDensity:
        """One standard normal kernel, untrained."""
        return KernelDensity(domain, self)


def silverman_bandwidth(x: X) -> Point:
    """h_d = s_d (4 / (N (D + 2)))^(1 / (D + 4)), best where the density is normal; s_d as in `scale_of`."""
    n, d = x.shape
    return (4 / (n * (d + 2))) ** (1 / (d + 4)) * scale_of(x)


def scott_bandwidth(x: X) -> Point:
    """h_d = s_d N^(-1 / (D + 4)); s_d as in `scale_of`."""
    n, d = x.shape
    return n ** (-1 / (d + 4)) * scale_of(x)


def scale_of(x: X) -> Point:
    """s_d = min(sd, IQR / 1.34) of each variable; sd where the IQR is 0; 1 where the variable does not vary."""
    sd = x.std(0, correction=0)
    ordered = x.sort(0).values  # torch.quantile refuses more than 2^24 numbers
    quarter = (ordered[3 * (len(x) - 1) // 4] - ordered[(len(x) - 1) // 4]) / 1.34
    s = torch.where(quarter > 0, torch.minimum(sd, quarter), sd)
    return torch.where(s > 1e-10 * (1 + x.abs().amax(0)), s, 1.0)


def _completed(x: Tensor, generator: Generator) -> Tensor:
    if not bool(x.isnan().any()):
        return x
    normal = Gaussian(Domain.real(x.shape[1]), GaussianConfig())
    for _ in normal.steps(x):
        pass
    return normal.complete(x, generator=generator)


def _log_sum_exp(terms: Tensor) -> Tensor:
    top = terms.amax(-1, keepdim=True)
    return (terms - top).clamp_min(_LEAST).exp().sum(-1).log() + top[:, 0]
