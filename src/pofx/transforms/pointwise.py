"""One monotone map a variable, its numbers learned: scales, splines, angles, whatever `monotone` has."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pofx.transforms.base import Upright, Variables
from pofx.transforms.monotone import Monotone


class Pointwise(Upright):
    """u_d = f(x_d; raw_d), raw learned. Starts as the identity.

    Args:
        dim: number D of variables.
        monotone: f.
    """

    def __init__(self, dim: int, monotone: Monotone) -> None:
        super().__init__()
        self.monotone = monotone
        self.raw = nn.Parameter(torch.tensor(monotone.identity)[:, None].repeat(1, dim))

    def behind(self, keep: Variables) -> Variables:
        """The same variables."""
        return keep

    def select(self, keep: Sequence[int]) -> "Pointwise":
        """The maps of some variables."""
        part = Pointwise(len(keep), self.monotone)
        part.raw = nn.Parameter(self.raw.detach()[:, list(keep)])
        return part

    def to_base(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Every variable by itself."""
        u, log_slope = self.monotone.to_base(x, self._raw(x))
        return u, log_slope.sum(0)

    def to_data(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Every variable by itself."""
        x, log_slope = self.monotone.to_data(u, self._raw(u))
        return x, log_slope.sum(0)

    def _raw(self, v: Tensor) -> Tensor:
        return self.raw[..., None].expand(-1, -1, v.shape[1])


class ActNorm(Upright):
    """u_d = (x_d - shift_d) exp(-log_scale_d), which starts where the rows have mean 0 and deviation 1.

    Source: Kingma and Dhariwal, "Glow: generative flow with invertible 1x1 convolutions", NeurIPS 2018, arXiv:1807.03039.

    Args:
        dim: number D of variables.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.shift, self.log_scale = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    @torch.no_grad()
    def start(self, x: Tensor, c: Tensor | None = None) -> None:
        """Take mean and deviation from rows x (N, D); a constant variable keeps its scale."""
        self.shift.copy_(x.mean(0))
        deviation = x.std(0, correction=0)
        self.log_scale.copy_(torch.where(deviation > 1e-6, deviation, 1.0).log())

    def behind(self, keep: Variables) -> Variables:
        """The same variables."""
        return keep

    def select(self, keep: Sequence[int]) -> "ActNorm":
        """The scales of some variables."""
        part = ActNorm(len(keep))
        part.shift, part.log_scale = (nn.Parameter(t.detach()[list(keep)]) for t in (self.shift, self.log_scale))
        return part

    def to_base(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Standardise."""
        u = (x - self.shift[:, None]) * (-self.log_scale).exp()[:, None]
        return u, -self.log_scale.sum().expand(x.shape[1])

    def to_data(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Give back the scale."""
        return torch.addcmul(self.shift[:, None], u, self.log_scale.exp()[:, None]), self.log_scale.sum().expand(u.shape[1])
