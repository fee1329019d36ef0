"""Triangular affine maps: what whitens, learned on."""

import torch
from torch import Tensor, nn

from pofx.transforms.base import Transform
from pofx.types import Context, Nats, X


class Triangular(Transform):
    """x = mean + L u with L lower triangular and positive on its diagonal; log|det J| = sum log L_dd.

    Args:
        dim: number D of variables.
    """

    keep: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(dim))
        self.lower = nn.Parameter(torch.zeros(dim, dim))  # below the diagonal; the rest is never read
        self.log_diagonal = nn.Parameter(torch.zeros(dim))

    @torch.no_grad()
    def whiten(self, x: Tensor, shrink: float) -> None:
        """Start where u has the mean 0 and covariance 1 on rows x (N, D).

        L L^T = (N S + a diag S) / (N + a) with a = shrink D pseudo-rows whose variables are uncorrelated.
        """
        x = x.double()
        n, dim = x.shape
        covariance = x.T.cov(correction=0).reshape(dim, dim)
        diagonal = covariance.diagonal().clamp(min=1e-6)
        a = shrink * dim
        shrunk = (n * covariance + (a + 1e-6 * n) * diagonal.diag()) / (n + a + 1e-6 * n)
        L = torch.linalg.cholesky(shrunk)
        self.mean.copy_(x.mean(0))
        self.lower.copy_(L.tril(-1))
        self.log_diagonal.copy_(L.diagonal().log())

    def forward(self, u: X, c: Context | None = None) -> tuple[X, Nats]:
        """Base to data."""
        return self.mean + u @ self._factor.T, self._log_det(u)

    def inverse(self, x: X, c: Context | None = None) -> tuple[X, Nats]:
        """Data to base, by substitution."""
        rows = (x - self.mean).reshape(-1, x.shape[-1])
        u = torch.linalg.solve_triangular(self._factor.T, rows, upper=True, left=False)
        return u.reshape(x.shape), -self._log_det(x)

    @property
    def _factor(self) -> Tensor:
        return self.lower.tril(-1) + self.log_diagonal.exp().diag()

    def _log_det(self, v: Tensor) -> Tensor:
        return self.log_diagonal.sum().expand(v.shape[:-1])
