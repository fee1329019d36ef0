"""Learned noise: what a surjection adds on the way from data to base, steered by what it is added to.

The noise has a density q(z | h) that starts as a standard normal and learns with the flow behind it, because the gradient of the
bound E_q [log p(y) - log q] goes through the draw.

Source: Ho, Chen, Srinivas, Duan and Abbeel, "Flow++", ICML 2019, arXiv:1902.00275, section 3.1, for noise in the cells of codes.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.special import ndtr

from pofx.nets.mlp import MLP
from pofx.transforms.base import Inverse
from pofx.transforms.coupling import FAR, Couplings
from pofx.transforms.dequantise import INSIDE
from pofx.transforms.monotone import RationalQuadratic
from pofx.types import Context, Generator, Nats, X

_RATE = 0.1  # of the steps that fit noise to a row, in deviations


class Noise(nn.Module):
    """z = T(epsilon; h) with epsilon ~ N(0, 1)^D and T spline couplings: log q(z | h) = log N(epsilon) - log|det J_T(epsilon; h)|.

    Starts as the standard normal, whatever h is. Cost: `layers` nets a row.

    Args:
        dim: D.
        context: width C of h.
        layers: couplings.
        width: hidden units of each of a net's two layers.
    """

    def __init__(self, dim: int, context: int, *, layers: int = 4, width: int = 32) -> None:
        super().__init__()
        self.dim = dim
        net = partial(MLP, widths=(width, width))
        couplings = Couplings(dim, layers, RationalQuadratic(), context=context, net=net)
        self.transform = Inverse(couplings)  # what is drawn goes the cheap way

    def forward(self, epsilon: X, h: Context) -> tuple[X, Nats]:
        """The z of epsilon, and log q(z | h); an h that is missing counts as 0."""
        z, log_det = self.transform(epsilon, h.nan_to_num(0.0, FAR, -FAR).clamp(-FAR, FAR))
        return z, log_normal(epsilon) - log_det


class Shares(nn.Module):
    """q(share | h) on (0, 1)^D: share = Phi(z) with z ~ q(z | h), so that -log q(share | h) = log N(z) - log q(z | h).

    Starts uniform. A share that a missing cell does not look at is noise under a uniform law of its own, and the bound stays one.

    Args:
        dim: number of variables.
        lifted: those whose share is learned; the others, which have no cell, are given 1/2.
        context: width C of h.
    """

    lifted: Tensor

    def __init__(self, dim: int, lifted: Sequence[int], context: int) -> None:
        super().__init__()
        self.dim = dim
        self.noise = Noise(len(lifted), context)
        self.register_buffer("lifted", torch.tensor(lifted, dtype=torch.long), persistent=False)

    def forward(self, h: Context, own: "Own | None" = None, *, generator: Generator = None) -> tuple[X, Nats]:
        """Shares (*batch, D) in float64, and -log q(share | h); of noise that `own` moves, when given."""
        epsilon = torch.randn(*h.shape[:-1], self.noise.dim, generator=generator, dtype=h.dtype, device=h.device)
        z, log_q = self.noise(epsilon, h)
        z = z.double()  # in single precision a share near 1 would be 1
        if own is not None:
            z, log_q = z * own.a.exp() + own.b, log_q - own.a.sum(-1)
        share = z.new_full((*z.shape[:-1], self.dim), 0.5)
        return share.index_copy(-1, self.lifted, ndtr(z).clamp(INSIDE, 1 - INSIDE)), log_normal(z) - log_q


class Own(NamedTuple):
    """Of each row, what its noise is moved by: z exp(a) + b in the place of z.

    Args:
        a: (N, D).
        b: (N, D).
    """

    a: Tensor
    b: Tensor


def refined(bound: Callable[[Own], Nats], rows: int, dim: int, steps: int, device: torch.device) -> Own:
    """What climbs a bound (N,), drawn anew at each step, from a = b = 0: by Adam, whose rate falls to 0.

    The bound at fresh draws is a bound still: what a row's noise was fitted with is not what it is asked with.

    Source: Kim, Wiseman, Miller, Sontag and Rush, "Semi-amortized variational autoencoders", ICML 2018, arXiv:1802.02550.
    """
    own = Own(*(torch.zeros(rows, dim, dtype=torch.float64, device=device, requires_grad=True) for _ in range(2)))
    adam = torch.optim.Adam(own)
    for step in range(steps):
        adam.param_groups[0]["lr"] = _RATE * (1 - step / steps)
        with torch.enable_grad():
            grads = torch.autograd.grad(-bound(own).sum(), own)
        for numbers, grad in zip(own, grads, strict=True):
            numbers.grad = grad
        adam.step()
    return Own(*(numbers.detach() for numbers in own))


def log_normal(z: X) -> Nats:
    """log N(z; 0, 1), summed over the variables."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
