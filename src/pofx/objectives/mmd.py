"""Maximum mean discrepancy between draws, with gradients: what learning descends where `measure` only tells.

MMD^2(q, p) = E k(z, z') + E k(y, y') - 2 E k(z, y), z, z' ~ q and y, y' ~ p independent: zero only when q = p.

A kernel is a function of |a - b|^2 in units of what two draws of N(0, I) are apart: h = |a - b|^2 / (2 L).
"""

from collections.abc import Callable

import torch
from torch import Tensor

Kernel = Callable[[Tensor], Tensor]


def rbf(h: Tensor) -> Tensor:
    """exp(-h): a normal density's shape of variance L; its gradient ends where draws are far apart."""
    return torch.exp(-h)


def imq(h: Tensor) -> Tensor:
    """1 / (1 + h), the inverse multiquadratic: heavy tails, which call back draws from afar.

    Source: Tolstikhin, Bousquet, Gelly and Schoelkopf, "Wasserstein auto-encoders", ICLR 2018, arXiv:1711.01558.
    """
    return 1 / (1 + h)


KERNELS: dict[str, Kernel] = {"rbf": rbf, "imq": imq}


def mmd2(z: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """The unbiased estimate of MMD^2 from z, y (..., N, L), one of each of `...`; it may fall below 0.

    A lone row has no partner: what it lacks then counts 0. Cost: three kernel matrices of N x N.

    Source: Gretton et al., "A kernel two-sample test", JMLR 13, 2012.
    """
    return _among(z, kernel) + _among(y, kernel) - 2 * kernel(_apart(z, y)).mean((-2, -1))


def _among(z: Tensor, kernel: Kernel) -> Tensor:
    """The mean of k over pairs of distinct rows."""
    n = z.shape[-2]
    k = kernel(_apart(z, z))
    return (k.sum((-2, -1)) - k.diagonal(dim1=-2, dim2=-1).sum(-1)) / max(n * (n - 1), 1)


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """h of every row of a with every row of b, by products: the square root of a distance has no gradient at 0."""
    squares = a.square().sum(-1)[..., :, None] + b.square().sum(-1)[..., None, :]
    return (squares - 2 * a @ b.mT).clamp_min(0) / (2 * a.shape[-1])
