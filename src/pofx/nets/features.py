"""What a network sees of a row: numbers of size 1, one-hot levels, and which cells were observed."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pofx.domain import LEVELLED, Domain

Inputs = Float[Tensor, "*batch features"]


class Features(nn.Module):
    """x (*batch, D) -> (*batch, width): standardised numbers, one-hot levels, observed-or-not columns.

    NaN becomes 0 (the mean of a number, no level at all). With ``mask`` there is one more column per
    variable: 1 where it was observed, -1 where not; it stays 0 for variables that had no NaN in the rows
    of `fit`, so that weights that never saw a missing cell have no say. The width depends on the domain alone.

    Args:
        domain: what x is.
        mask: whether there are observed-or-not columns.
    """

    mean: Tensor
    scale: Tensor
    masked: Tensor
    numbers: Tensor
    levels: Tensor
    variable_of: Tensor
    code_of: Tensor

    def __init__(self, domain: Domain, *, mask: bool = True) -> None:
        super().__init__()
        numbers = [d for d, v in enumerate(domain.variables) if v.kind not in LEVELLED]
        coded = [(d, k) for d, v in enumerate(domain.variables) for k in range(len(v.levels))]
        self.mask = mask
        self.width = len(numbers) + len(coded) + mask * len(domain)
        self.register_buffer("mean", torch.zeros(len(numbers), dtype=torch.float64))
        self.register_buffer("scale", torch.ones(len(numbers), dtype=torch.float64))
        self.register_buffer("masked", torch.zeros(len(domain), dtype=torch.float64))
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.long), persistent=False)
        self.register_buffer("variable_of", torch.tensor([d for d, _ in coded], dtype=torch.long), persistent=False)
        self.register_buffer("code_of", torch.tensor([k for _, k in coded], dtype=torch.float64), persistent=False)

    def fit(self, x: Tensor) -> "Features":
        """Take means, scales and the variables with missing cells from rows (N, D)."""
        mean, scale = location_and_scale(x[:, self.numbers])
        self.mean.copy_(mean)
        self.scale.copy_(scale)
        self.masked.copy_(x.isnan().any(0))
        return self

    def forward(self, x: Float[Tensor, "*batch D"]) -> Inputs:
        """The columns a network is fed with, in the dtype of x."""
        # Indexing and isnan would cost more than all the rest of a step's inputs: without need, neither is done.
        numbers = x if len(self.numbers) == x.shape[-1] else x[..., self.numbers]
        standard = (numbers - self.mean.to(x.dtype)).div_(self.scale.to(x.dtype))
        parts = [standard.nan_to_num_(0.0, math.inf, -math.inf)]
        if len(self.variable_of):
            parts.append((x[..., self.variable_of] == self.code_of.to(x.dtype)).to(x.dtype))
        if self.mask:
            parts.append(torch.where(x.isnan(), -1.0, 1.0).to(x.dtype) * self.masked.to(x.dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def location_and_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column of x (N, D) over its finite cells.

    A column that is constant, or has no finite cell, gets scale 1: nothing is divided by rounding error.
    """
    seen = x.isfinite()
    count = seen.sum(0).clamp(min=1)
    mean = torch.where(seen, x, 0.0).sum(0) / count
    scale = (torch.where(seen, x - mean, 0.0).square().sum(0) / count).sqrt()
    varies = scale > 1e-10 * (1.0 + mean.abs())
    return mean, torch.where(varies, scale, 1.0)
