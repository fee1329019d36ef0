"""One full-covariance normal: every question in closed form, learned exactly from rows with holes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from pofx.distributions.gaussian import Gaussians, Normals, Prior, data_variance
from pofx.domain import Domain
from pofx.events import Condition
from pofx.models.base import FamilyConfig, FullBatch, Model
from pofx.models.classical.gaussian_em import Mixture, expectation_maximisation
from pofx.types import Context, Generator, Kind, Latent, Nats, Point, X

_USUAL, _LOOSER, _FIRMER = 0.1, (0.03, 0.01), (0.3, 1.0)  # rows of the prior, per variable


class Gaussian(Model, FullBatch):
    """p(x) = N(x | μ, Σ).

    Complete rows: μ is the mean and Σ = ((N S + a V) / (N + a)), S the sample covariance, V its diagonal, a the
    prior's rows. Rows with missing entries: EM with the exact conditional moments, valid when entries are missing
    at random. Every answer is exact. A code is the whitened row z = L⁻¹ (x - μ), L Lᵀ = Σ; of a row with missing
    entries it is the mean code.

    Cost: O(N D² + P D³) a step, P the number of distinct patterns of missing entries; one step suffices without any.

    Source: Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm", Journal of the
    Royal Statistical Society B 39(1), 1977.

    Args:
        domain: what x is, real variables.
        config: the options.
    """

    missing = Kind.EXACT

    def __init__(self, domain: Domain, config: "GaussianConfig") -> None:
        super().__init__(domain)
        self.config = config
        self.register_buffer("mu", torch.zeros(len(domain), dtype=torch.float64))
        self.register_buffer("covariance", torch.eye(len(domain), dtype=torch.float64))

    @property
    def gaussians(self) -> Gaussians:
        """The law, as a batch of one."""
        return Gaussians(self.mu[None], self.covariance[None])

    # -- learning ----------------------------------------------------------------------------------

    def steps(self, x: Tensor, *, holdout: Tensor | None = None, generator: Generator = None) -> Iterator[float]:
        """Closed form, or EM where entries are missing; yield the mean log-likelihood of x after each step.

        When the prior's rows are not given, the usual firmness is left for a looser or a firmer one, and that for the
        next, only while held-out rows gain more than twice the standard error of their gain: otherwise a few rows that
        no normal describes would decide.
        """
        x = x.to(self.mu)
        self._hold(Gaussians(x.nanmean(0, keepdim=True).nan_to_num(), data_variance(x).diag()[None]))
        for law, log_likelihood in self._em(x, _USUAL):
            self._hold(law)
            yield log_likelihood
        if self.config.prior_rows is None and holdout is not None and len(holdout) > 1:
            usual = self.mu
            yield from self._walk(x, holdout.to(x), _LOOSER)
            if self.mu is usual:
                yield from self._walk(x, holdout.to(x), _FIRMER)

    def _walk(self, x: Tensor, holdout: Tensor, path: tuple[float, ...]) -> Iterator[float]:
        """Try the priors of a path, each from the law before it, while held-out rows clearly gain."""
        for rows_per_variable in path:
            law: Normals = self.gaussians
            for law, log_likelihood in self._em(x, rows_per_variable):  # noqa: B007
                yield log_likelihood
            gain = law.log_prob(holdout) - self.gaussians.log_prob(holdout)
            if gain.mean() <= 2 * gain.std() / math.sqrt(len(gain)):
                return
            self._hold(law)

    def _em(self, x: Tensor, rows_per_variable: float) -> Iterator[tuple[Normals, float]]:
        """Closed form or EM under one prior, from the law held."""
        variance, given = data_variance(x), self.config.prior_rows
        strength = rows_per_variable * len(self.domain) if given is None else given
        path = expectation_maximisation(
            Mixture(self.gaussians, x.new_zeros(1)),
            len(x),
            lambda law, weight: law.expect(x, weight),
            Prior(max(strength, 1e-9 * len(x)), variance),
            steps=self.config.steps if bool(x.isnan().any()) else 1,
            tolerance=self.config.tolerance,
        )
        return ((point.components, point.log_likelihood) for point in path)

    def _hold(self, law: Normals) -> None:
        self.mu, self.covariance = law.mean[0], law.spread[0]

    def _sub(self, domain: Domain, law: Normals) -> "Gaussian":
        other = Gaussian(domain, self.config)
        other._hold(law)
        return other

    # -- asking ------------------------------------------------------------------------------------

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self.gaussians.log_prob(x.to(self.mu))[:, 0]

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return self.gaussians.sample(self._first(n), generator=generator)

    def _marginal(self, keep: tuple[int, ...]) -> "Gaussian":
        return self._sub(self.domain.select(keep), self.gaussians.marginal(keep))

    def _conditional(self, evidence: Point) -> "Gaussian":
        free = evidence.isnan().nonzero()[:, 0].tolist()
        return self._sub(self.domain.select(free), self.gaussians.conditional(evidence.to(self.mu)))

    def _mean(self) -> Point:
        return self.mu.clone()

    def answers(self, question: str, seen: Sequence[int] = ()) -> Kind:
        """The probability of an interval is closed for one variable at a time."""
        return Kind.NONE if question == "log_chance" and len(seen) > 1 else super().answers(question, seen)

    def _log_chance(self, conditions: Mapping[int, Condition]) -> float:
        return float(self.gaussians.log_chance(conditions)[0])

    def _entropy(self) -> torch.Tensor:
        return self.gaussians.entropy()[0]

    def _mode(self, evidence: Point) -> Point:
        return self._impute(evidence[None], None)[0]  # the conditional's mode is its mean

    def _impute(self, x: X, generator: Generator) -> X:
        return self.gaussians.fill(x.to(self.mu), self.mu.new_zeros(1))

    def _complete(self, x: X, generator: Generator) -> X:
        return self.gaussians.complete(x.to(self.mu), self._first(len(x)), generator=generator)

    def _encode(self, x: X, c: Context | None) -> Latent:
        centred = self._impute(x, None) - self.mu
        return torch.linalg.solve_triangular(self.gaussians.factor[0], centred.T, upper=False).T

    def _decode(self, z: Latent, c: Context | None) -> X:
        return self.mu + z.to(self.mu) @ self.gaussians.factor[0].T

    def _first(self, n: int) -> Tensor:
        return torch.zeros(n, dtype=torch.long, device=self.mu.device)


class GaussianConfig(FamilyConfig):
    """Options of `gaussian`."""

    cites: ClassVar[tuple[str, ...]] = (
        "@article{dempster1977maximum, title={Maximum likelihood from incomplete data via the {EM} algorithm}, "
        "author={Dempster, Arthur P. and Laird, Nan M. and Rubin, Donald B.}, "
        "journal={Journal of the Royal Statistical Society: Series B}, volume={39}, number={1}, pages={1--38}, year={1977}}",
    )
    space: ClassVar[dict[str, tuple[Any, ...]]] = {"prior_rows": (None, 0.0, 1.0, 10.0)}

    prior_rows: float | None = Field(
        None, ge=0, description="rows of independent variables that the prior counts for; None: chosen by held-out score"
    )
    steps: int = Field(200, ge=1, description="EM steps at most, where entries are missing")
    tolerance: float = Field(1e-4, ge=0, description="EM stops when a step gains less, in nats a row")

    def _build(self, domain: Domain, context: Domain | None) -> Gaussian:
        """The standard normal, untrained."""
        return Gaussian(domain, self)
