"""The denoiser of a normal mixture in closed form: what a network would be if it had learned without error.

In y = x0 + s eps every noise level sees a normal mixture again, with covariances Sigma_k + s^2 I, so that density, score,
denoiser and the posterior of a linear measurement are all exact.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pofx.distributions.gaussian import LOG_2PI, Gaussians
from pofx.errors import OptionError
from pofx.types import Generator

Rows = Float[Tensor, "N E"]
Level = float | Float[Tensor, ""] | Float[Tensor, "N 1"]


@dataclass(frozen=True)
class ExactDenoiser:
    """D(y, s) = E[x0 | y] = sum_k r_k [mu_k + Sigma_k (Sigma_k + s^2 I)^-1 (y - mu_k)], r_k prop. to w_k N(y; mu_k, Sigma_k + s^2 I).

    The data are p(x) = sum_k w_k N(x; mu_k, Sigma_k), the noisy rows y = x0 + s eps. It is called as a network is, D(y, s),
    and costs O(N K E^2) after one eigendecomposition a component. Follows the dtype of its parameters, float64 best: far from
    the data the responsibilities compare squares of large distances.

    Args:
        weight: w, (K,), positive; normalised here.
        mean: mu, (K, E).
        covariance: Sigma, (K, E, E), symmetric. A singular one is allowed as long as no question is asked at s = 0.

    Raises:
        OptionError: shapes that do not belong together, a weight that is not positive, or a covariance that has a negative
            eigenvalue or is not symmetric.
    """

    weight: Float[Tensor, " K"]
    mean: Float[Tensor, "K E"]
    covariance: Float[Tensor, "K E E"]

    def __post_init__(self) -> None:
        check_mixture(self.weight, self.mean, self.covariance)

    @property
    def dim(self) -> int:
        """E."""
        return self.mean.shape[1]

    def __call__(self, y: Rows, s: Level) -> Rows:
        """E[x0 | y]: the mean of the data that could have become y by noise of standard deviation s.

        Args:
            y: (N, E).
            s: (N, 1), or one level for all rows.
        """
        u, variance = self._whitened(y, s)
        shrunk = (self._eigen[1] @ (u * self._eigen[0] / variance)[..., None])[..., 0]  # (N, K, E)
        return (self._responsibility(u, variance)[..., None] * (self.mean + shrunk)).sum(1)

    def log_prob(self, y: Rows, s: Level = 0.0) -> Float[Tensor, " N"]:
        """log p_s(y) = log sum_k w_k N(y; mu_k, Sigma_k + s^2 I), in nats; s = 0 is the density of the data."""
        return self._joint(*self._whitened(y, s)).logsumexp(-1)

    def score(self, y: Rows, s: Level) -> Rows:
        """grad log p_s(y) = (D(y, s) - y) / s^2, for s > 0."""
        return (self(y, s) - y) / s**2

    def sample(self, n: int, *, generator: Generator = None) -> Rows:
        """n independent rows of the data."""
        which = torch.multinomial(self.weight, n, True, generator=generator)
        values, vectors = self._eigen
        noise = torch.randn(n, self.dim, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean[which] + (vectors[which] @ (values[which].sqrt() * noise)[..., None])[..., 0]

    def component(self, y: Rows, s: Level = 0.0) -> Int[Tensor, " N"]:
        """The component that most probably made each row."""
        return self._joint(*self._whitened(y, s)).argmax(-1)

    def moments(self) -> tuple[Float[Tensor, " E"], Float[Tensor, "E E"]]:
        """Mean and covariance of the data: m = sum w_k mu_k, C = sum w_k (Sigma_k + (mu_k - m)(mu_k - m)^T)."""
        w = self._shares
        m = w @ self.mean
        away = self.mean - m
        return m, (w[:, None, None] * (self.covariance + away[:, :, None] * away[:, None])).sum(0)

    def condition(
        self, a: Float[Tensor, "M E"], y: Float[Tensor, " M"], noise: Float[Tensor, "M M"]
    ) -> tuple["ExactDenoiser", Float[Tensor, ""]]:
        """p(x | y) for the measurement y = A x + n, n ~ N(0, R), and log p(y).

        Component k becomes N(mu_k + K (y - A mu_k), (I - K A) Sigma_k (I - K A)^T + K R K^T) with
        K = Sigma_k A^T S^-1 and S = A Sigma_k A^T + R; its weight w_k N(y; A mu_k, S). Costs O(K (E^3 + M^3)).

        Args:
            a: A.
            y: what was measured.
            noise: R, symmetric; S must be positive definite.
        """
        cross = self.covariance @ a.mT  # (K, E, M)
        spread = a @ cross + noise
        gain = torch.linalg.solve(spread, cross.mT).mT
        left = y - self.mean @ a.mT  # (K, M)
        kept = torch.eye(self.dim, dtype=y.dtype, device=y.device) - gain @ a
        covariance = kept @ self.covariance @ kept.mT + gain @ noise @ gain.mT
        log_w = self._shares.log() + Gaussians(torch.zeros_like(left), spread).log_prob(left).diagonal()
        mean = self.mean + (gain @ left[..., None])[..., 0]
        # A component that the measurement has ruled out keeps the least weight there is: all weights are positive.
        weight = log_w.softmax(0).clamp_min(torch.finfo(log_w.dtype).tiny)
        return ExactDenoiser(weight, mean, 0.5 * (covariance + covariance.mT)), log_w.logsumexp(0)

    @cached_property
    def _shares(self) -> Tensor:
        return self.weight / self.weight.sum()

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (K, E) and vectors (K, E, E) of Sigma; a value below 0 is round-off."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return values.clamp_min(0.0), vectors

    def _whitened(self, y: Tensor, s: Level) -> tuple[Tensor, Tensor]:
        """y - mu_k along the axes of component k, and the variances there, both (N, K, E)."""
        values, vectors = self._eigen
        u = (vectors.mT @ (y[:, None] - self.mean)[..., None])[..., 0]
        level = s[..., None] if isinstance(s, Tensor) and s.ndim else s  # (N, 1, 1)
        return u, (values + level**2).expand_as(u)

    def _joint(self, u: Tensor, variance: Tensor) -> Tensor:
        """log w_k N(y; mu_k, Sigma_k + s^2 I), (N, K)."""
        return self._shares.log() - 0.5 * (u.square() / variance + variance.log() + LOG_2PI).sum(-1)

    def _responsibility(self, u: Tensor, variance: Tensor) -> Tensor:
        return self._joint(u, variance).softmax(-1)


def check_mixture(weight: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Positive weights (K,), means (K, E), and covariances (K, E, E) without a negative eigenvalue.

    Raises:
        OptionError: they are not.
    """
    k, e = mean.shape
    if weight.shape != (k,) or covariance.shape != (k, e, e):
        raise OptionError(
            f"a mixture has weights (K,), means (K, E) and covariances (K, E, E), got {tuple(weight.shape)}, {tuple(mean.shape)} and "
            f"{tuple(covariance.shape)}"
        )
    if not k or not bool(((weight > 0) & weight.isfinite()).all()):
        raise OptionError(f"the weights of a mixture are positive, got {weight.tolist()}")
    largest = covariance.abs().amax((1, 2)).clamp_min(torch.finfo(covariance.dtype).tiny)
    slack = 1e3 * torch.finfo(covariance.dtype).eps * largest
    skew, least = (covariance - covariance.mT).abs().amax((1, 2)), torch.linalg.eigvalsh(covariance)[:, 0]
    if bool(((skew > slack) | (least < -slack)).any()):
        raise OptionError("a covariance is symmetric and has no eigenvalue below 0")
