"""Priors p(z): what the latent is before anything was observed."""

import abc
import math

import torch
from torch import Tensor, nn

from pofx.types import Generator, Latent, Nats


class Prior(nn.Module, abc.ABC):
    """p(z) on R^L.

    Args:
        latents: L.
    """

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.latents = latents

    @abc.abstractmethod
    def log_prob(self, z: Latent) -> Nats:
        """log p(z)."""

    @abc.abstractmethod
    def sample(self, shape: tuple[int, ...], *, like: Tensor, generator: Generator = None) -> Tensor:
        """Draws (*shape, L), of the dtype and on the device of `like`."""

    def kl_from(self, mean: Latent, scale: Latent, log_scale: Latent) -> Nats | None:
        """KL(N(mean, diag scale^2) || p) where it has a closed form, else None: the bound then uses the draws."""
        return None


class StandardNormal(Prior):
    """p(z) = N(0, I)."""

    def log_prob(self, z: Latent) -> Nats:
        """-(|z|^2 + L log 2 pi) / 2."""
        return -0.5 * (z.square().sum(-1) + self.latents * math.log(2 * math.pi))

    def sample(self, shape: tuple[int, ...], *, like: Tensor, generator: Generator = None) -> Tensor:
        """Draws (*shape, L)."""
        return torch.randn(*shape, self.latents, generator=generator, dtype=like.dtype, device=like.device)

    def kl_from(self, mean: Latent, scale: Latent, log_scale: Latent) -> Nats:
        """sum_l (m_l^2 + s_l^2 - 1) / 2 - log s_l."""
        # In few operations: in a training step each costs more than its arithmetic.
        half = torch.addcmul(-0.5 - log_scale, mean, mean, value=0.5)
        return torch.addcmul(half, scale, scale, value=0.5).sum(-1)
