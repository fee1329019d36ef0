"""Regularised EM for one normal or a mixture of them: the loop that `gaussian` and `gmm` share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.distributions.gaussian import LOG_2PI, Gaussians, LogWeights, Moments, Normals, Prior, data_variance

_LEAST = -80.0  # e^-80 counts for nothing, and no smaller number reaches the products as a slow denormal


@dataclass(frozen=True)
class Mixture:
    """Σ_k exp(log_weight_k) N_k, one point on EM's path.

    Args:
        components: the normals.
        log_weight: log of the mixture's weights, (K,).
        log_likelihood: mean over the training rows, nats.
        objective: the same plus the prior's share a row, which EM never lowers.
    """

    components: Normals
    log_weight: LogWeights
    log_likelihood: float = -float("inf")
    objective: float = -float("inf")

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) of each row."""
        return (self.components.log_prob(x) + self.log_weight).logsumexp(-1)


def expectation_maximisation(
    mixture: Mixture,
    rows: int,
    e_step: Callable[[Normals, LogWeights], Moments],
    prior: Prior,
    *,
    steps: int,
    tolerance: float,
) -> Iterator[Mixture]:
    """Alternate E and M; yield the mixture after each M-step, until a step gains less than `tolerance` nats a row."""
    components, last = mixture.components, mixture.objective
    moments = e_step(components, mixture.log_weight)
    for _ in range(steps):
        components, log_weight = components.maximise(moments, prior), moments.log_weight
        moments = e_step(components, log_weight)
        objective = moments.log_likelihood + float(prior.penalty(components)) / rows
        yield Mixture(components, log_weight, moments.log_likelihood, objective)
        if objective - last < tolerance:
            return
        last = objective


class QuadraticEStep:
    """The E-step of full normals on complete rows as two matrix products.

    With y the whitened row and φ(y) = (1, y_i, y_i y_j for i ≤ j), log π_k + log N(x | μ_k, Σ_k) = θ_k · φ(y) + const,
    and all sufficient statistics are Σ_n r_nk φ(y_n). No tensor has N K D entries. It wins where φ is short:
    (D + 1)(D + 2) / 2 numbers.

    A component much narrower than the data makes θ · φ a small difference of large terms. Where the bound on what
    rounding leaves exceeds `largest_error` nats, the step is done in float64, and failing that in the Cholesky form.

    Args:
        x: complete rows (N, D).
        dtype: of the products; sums over chunks are float64 all the same.
    """

    largest_error = 0.5  # of the bound, which the typical error stays a hundredfold below
    chunk = 2048

    def __init__(self, x: Tensor, dtype: torch.dtype) -> None:
        self.x, self.dtype, self.centre = x, dtype, x.mean(0)
        centred = x - self.centre
        self.root = torch.linalg.cholesky(centred.T @ centred / len(x) + 1e-6 * data_variance(x).diag())
        self.y = torch.linalg.solve_triangular(self.root, centred.T, upper=False)  # (D, N): rows of φ are contiguous
        self.upper = torch.triu_indices(x.shape[1], x.shape[1], device=x.device).unbind()

    def __call__(self, components: Normals, log_weight: LogWeights) -> Moments:
        """The moments of each component about its mean; diagonal components have a shorter φ of their own."""
        if not isinstance(components, Gaussians):
            return components.expect(self.x, log_weight)
        mean = torch.linalg.solve_triangular(self.root, (components.mean - self.centre).T, upper=False).T
        factor = torch.linalg.solve_triangular(self.root, components.factor, upper=False)
        inverse = torch.linalg.inv(factor)
        precision = inverse.mT @ inverse
        dtype = self._fine_enough(float(precision.abs().amax()))
        if dtype is None:
            return components.expect(self.x, log_weight)
        sums, total = self._accumulate(self._theta(mean, factor, precision, log_weight).to(dtype))
        return self._moments(sums, mean, total / len(self.x) - float(self.root.diagonal().log().sum()))

    def _fine_enough(self, largest_precision: float) -> torch.dtype | None:
        """The coarsest type, from the wanted one up, whose rounding these components bear."""
        terms = largest_precision * len(self.root)
        fine = (dtype for dtype in (self.dtype, torch.float64) if torch.finfo(dtype).eps * terms <= self.largest_error)
        return next(fine, None)

    def _theta(self, mean: Tensor, factor: Tensor, precision: Tensor, log_weight: Tensor) -> Tensor:
        linear = (precision @ mean[..., None])[..., 0]
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = log_weight - 0.5 * (len(self.root) * LOG_2PI + log_det + (mean * linear).sum(-1))
        twice = 2 * precision - precision.diagonal(dim1=-2, dim2=-1).diag_embed()  # i < j stands for j > i too
        quadratic = -0.5 * twice[:, self.upper[0], self.upper[1]].expand(len(mean), -1)
        return torch.cat((constant[:, None], linear, quadratic), 1)

    def _accumulate(self, theta: Tensor) -> tuple[Tensor, float]:
        """Σ_n r_nk φ(y_n), (K, F), and the sum of log-likelihoods of y."""
        sums, total = theta.new_zeros(theta.shape, dtype=torch.float64), 0.0
        for y in self.y.split(self.chunk, dim=1):
            phi = self._features(y.to(theta.dtype))
            r = theta @ phi
            top = r.amax(0)
            r.sub_(top).clamp_min_(_LEAST).exp_()
            scale = r.sum(0)
            total += float((scale.log() + top).sum(dtype=torch.float64))
            sums += r.div_(scale) @ phi.T
        return sums, total

    def _features(self, y: Tensor) -> Tensor:
        d, n = y.shape
        phi = y.new_empty(len(self.upper[0]) + d + 1, n)
        phi[0], phi[1 : d + 1] = 1, y
        row = d + 1
        for i in range(d):
            torch.mul(y[i], y[i:], out=phi[row : row + d - i])
            row += d - i
        return phi

    def _moments(self, sums: Tensor, mean: Tensor, log_likelihood: float) -> Moments:
        """From sums over whitened rows to moments of x about the components' means."""
        d = len(self.root)
        count, linear, upper = sums[:, 0], sums[:, 1 : d + 1], sums[:, d + 1 :]
        square = sums.new_zeros(len(sums), d, d)
        square[:, self.upper[0], self.upper[1]] = upper
        square[:, self.upper[1], self.upper[0]] = upper
        cross = mean[:, :, None] * linear[:, None, :]
        about = square - cross - cross.mT + count[:, None, None] * mean[:, :, None] * mean[:, None, :]
        first = (linear - count[:, None] * mean) @ self.root.T
        return Moments(count, first, self.root @ about @ self.root.T, log_likelihood)
