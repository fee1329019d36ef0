"""Triangular affine maps: what whitens, learned on."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pofx.transforms.base import Transform, Upright, Variables
from pofx.types import Context, Nats, X


class Triangular(Transform):
    """x = mean + L u with L lower triangular and positive on its diagonal; log|det J| = sum log L_dd.

    It starts where it whitens the rows; see `whiten`.

    Args:
        dim: number D of variables.
        shrink: rows, per variable, that the start believes uncorrelated.
    """

    def __init__(self, dim: int, shrink: float = 0.1) -> None:
        super().__init__()
        self.shrink = shrink
        self.mean = nn.Parameter(torch.zeros(dim))
        self.lower = nn.Parameter(torch.zeros(dim, dim))  # below the diagonal; the rest is never read
        self.log_diagonal = nn.Parameter(torch.zeros(dim))

    def start(self, x: X, c: Context | None = None) -> None:
        """Whiten the rows."""
        self.whiten(x, self.shrink)

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

    def behind(self, keep: Variables) -> Variables | None:
        """The same variables, where they are the first."""
        return keep if list(keep) == list(range(len(keep))) else None

    def select(self, keep: Sequence[int]) -> "Triangular":
        """The corner of L."""
        if self.behind(keep) is None:
            return cast("Triangular", super().select(keep))
        k, part = len(keep), Triangular(len(keep), self.shrink)
        corner = (t.detach() for t in (self.mean[:k], self.lower[:k, :k], self.log_diagonal[:k]))
        part.mean, part.lower, part.log_diagonal = map(nn.Parameter, corner)
        return part

    @property
    def _factor(self) -> Tensor:
        return self.lower.tril(-1) + self.log_diagonal.exp().diag()

    def _log_det(self, v: Tensor) -> Tensor:
        return self.log_diagonal.sum().expand(v.shape[:-1])


class LU(Upright):
    """u = L U x + b on the way to the base, L unit lower, U upper triangular; log|det| = sum log U_dd. Starts as the identity.

    Sums run over all variables, so that couplings after it see them all; a matrix of learned signs and order is this after a
    permutation. Source: Kingma and Dhariwal, "Glow", NeurIPS 2018, arXiv:1807.03039, equation 10.

    Args:
        dim: number D of variables.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(dim, dim))  # L below the diagonal, U above it
        self.log_diagonal = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def to_base(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Two products."""
        lower, upper = self._factors
        return torch.addmm(self.bias[:, None], lower @ upper, x), self.log_diagonal.sum().expand(x.shape[1])

    def to_data(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Two substitutions."""
        lower, upper = self._factors
        v = torch.linalg.solve_triangular(lower, u - self.bias[:, None], upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, v, upper=True), -self.log_diagonal.sum().expand(u.shape[1])

    @property
    def _factors(self) -> tuple[Tensor, Tensor]:
        eye = torch.eye(len(self.bias), dtype=self.bias.dtype, device=self.bias.device)
        return self.matrix.tril(-1) + eye, self.matrix.triu(1) + self.log_diagonal.exp().diag()


class Orthogonal(Upright):
    """u = H_1 ... H_K x, H_k = 1 - 2 v_k v_k^T / |v_k|^2 (Householder reflections); |det| = 1.

    Source: Tomczak and Welling, "Improving variational auto-encoders using Householder flow", arXiv:1611.09630.

    Args:
        dim: number D of variables.
        reflections: K; D of them reach every orthogonal matrix of their determinant. Made in pairs of equal vectors, they start as the
            identity where K is even.
    """

    def __init__(self, dim: int, reflections: int | None = None) -> None:
        super().__init__()
        pairs = -(-(dim if reflections is None else reflections) // 2)
        vectors = torch.randn(pairs, dim).repeat_interleave(2, 0)
        self.vectors = nn.Parameter(vectors[: dim if reflections is None else reflections])

    def to_base(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """The last reflection first."""
        return self._reflected(x, self.vectors.flip(0))

    def to_data(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """The first reflection first."""
        return self._reflected(u, self.vectors)

    def _reflected(self, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        for v in vectors / vectors.norm(dim=1, keepdim=True):
            x = x - 2 * torch.outer(v, v @ x)
        return x, x.new_zeros(x.shape[1])
