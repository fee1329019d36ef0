"""Laws of a latent z on R^L beyond independent normals: coupled units, heavy tails, and any shape that a flow can bend a normal to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from pofx.models.latent.laws import HALF_LOG_2PI, DiagonalNormal, Drawn, LatentLaw, Moments, Steered
from pofx.transforms.autoregressive import Autoregressive
from pofx.transforms.base import Inverse, Stack, Transform
from pofx.types import Generator, Nats

_LEAST_DF = 2.1  # below 2 there is no variance
_FIRST_DF = 10.0  # near a normal, with tails that are seen


class Full(LatentLaw):
    """N(m, F F^T), steered by m, the logs of the diagonal of F and what stands below it. It begins diagonal.

    Cost: L (L + 3) / 2 numbers a row, L^2 for each draw.

    Args:
        latents: L.
    """

    def __init__(self, latents: int) -> None:
        below = latents * (latents - 1) // 2
        super().__init__(latents, 2 * latents + below, late=below)

    def forward(self, a: Tensor) -> "FullNormal":
        """a = (m, log of the diagonal, below it row by row)."""
        m, log_d, below = a.split([self.latents, self.latents, self.late], dim=-1)
        i, j = torch.tril_indices(self.latents, self.latents, -1, device=a.device)
        factor = torch.diag_embed(log_d.exp())
        factor[..., i, j] = below
        return FullNormal(m, log_d, factor)


@dataclass(frozen=True)
class FullNormal(Steered):
    """N(m, F F^T).

    Args:
        m: (*batch, L).
        log_d: the logs of the diagonal of F, (*batch, L).
        factor: F, lower triangular, (*batch, L, L).
    """

    m: Tensor
    log_d: Tensor
    factor: Tensor

    def draw(self, shape: tuple[int, ...], *, generator: Generator = None) -> Drawn:
        """z = m + F eps with eps ~ N(0, I)."""
        eps = torch.randn(*shape, self.m.shape[-1], generator=generator, dtype=self.m.dtype, device=self.m.device)
        return Drawn(self.m + torch.einsum("...ij,...j->...i", self.factor, eps), lambda: self._log_prob(eps))

    def log_prob(self, z: Tensor) -> Tensor:
        """-|eps|^2 / 2 - sum_l log F_ll + log(2 pi) / 2, F eps = z - m."""
        return self._log_prob(torch.linalg.solve_triangular(self.factor, (z - self.m)[..., None], upper=False)[..., 0])

    def _log_prob(self, eps: Tensor) -> Tensor:
        return -(0.5 * eps.square() + HALF_LOG_2PI).sum(-1) - self.log_d.sum(-1)

    @property
    def mean(self) -> Tensor:
        """m."""
        return self.m

    @property
    def moments(self) -> Moments:
        """m and the diagonal of F F^T."""
        return Moments(self.m, self.factor.square().sum(-1))

    @property
    def entropy(self) -> Nats:
        """sum_l log F_ll + (1 + log 2 pi) / 2."""
        return self.log_d.sum(-1) + self.m.shape[-1] * (0.5 + HALF_LOG_2PI)


class StudentT(LatentLaw):
    """Independent units z_l = m_l + s_l t_l, t_l of Student's t with nu_l > 2 degrees of freedom, steered by m, log s and nu.

    It begins near a normal, with nu = 10. Its tails fall as a power of z: where log p(x | z) falls faster, as it does where a decoder
    steers the deviation of a real x, rare draws far out rule the bound, which may have no variance.

    Args:
        latents: L.
    """

    def __init__(self, latents: int) -> None:
        super().__init__(latents, 3 * latents, late=latents)

    def forward(self, a: Tensor) -> "Students":
        """a = (m, log s, d), nu = 2.1 + softplus(d + 7.9): about 10 where d is 0."""
        m, log_s, d = a.chunk(3, dim=-1)
        return Students(m, log_s, _LEAST_DF + functional.softplus(d + (_FIRST_DF - _LEAST_DF)))


@dataclass(frozen=True)
class Students(Steered):
    """Location-scale laws of Student's t, independent units.

    Source of the draw's slope in nu: Figurnov, Mohamed and Mnih, "Implicit reparameterization gradients", NeurIPS 2018, arXiv:1805.08498.

    Args:
        m: (*batch, L).
        log_s: (*batch, L).
        nu: degrees of freedom, above 2, (*batch, L).
    """

    m: Tensor
    log_s: Tensor
    nu: Tensor

    @cached_property
    def s(self) -> Tensor:
        """The scales."""
        return self.log_s.exp()

    def draw(self, shape: tuple[int, ...], *, generator: Generator = None) -> Drawn:
        """z = m + s t, t = eps sqrt((nu / 2) / g) with eps ~ N(0, 1) and g ~ Gamma(nu / 2), which has an implicit slope in nu."""
        half = (0.5 * self.nu).expand(*shape, self.nu.shape[-1])
        eps = torch.randn(half.shape, generator=generator, dtype=half.dtype, device=half.device)
        t = eps * (half / torch._standard_gamma(half, generator=generator)).sqrt()
        return Drawn(torch.addcmul(self.m, self.s, t), lambda: self._log_prob(t))

    def log_prob(self, z: Tensor) -> Tensor:
        """sum_l -log B(nu_l / 2, 1/2) - log(nu_l) / 2 - log s_l - (nu_l + 1) / 2 log(1 + t_l^2 / nu_l), t_l = (z_l - m_l) / s_l."""
        return self._log_prob((z - self.m) / self.s)

    def _log_prob(self, t: Tensor) -> Tensor:
        return -(0.5 * (self.nu + 1) * torch.log1p(t.square() / self.nu)).sum(-1) - self._log_constant.sum(-1)

    @property
    def _log_constant(self) -> Tensor:
        """log(B(nu / 2, 1/2) sqrt(nu) s)."""
        log_beta = torch.lgamma(0.5 * self.nu) + 0.5 * math.log(math.pi) - torch.lgamma(0.5 * (self.nu + 1))
        return log_beta + 0.5 * self.nu.log() + self.log_s

    @property
    def mean(self) -> Tensor:
        """m."""
        return self.m

    @property
    def moments(self) -> Moments:
        """m and s^2 nu / (nu - 2)."""
        return Moments(self.m, self.s.square() * self.nu / (self.nu - 2))

    @property
    def entropy(self) -> Nats:
        """sum_l (nu_l + 1) / 2 (psi((nu_l + 1) / 2) - psi(nu_l / 2)) + log(B(nu_l / 2, 1/2) sqrt(nu_l) s_l)."""
        above = 0.5 * (self.nu + 1)
        return (above * (above.digamma() - (0.5 * self.nu).digamma()) + self._log_constant).sum(-1)


class Flow(LatentLaw):
    """z = T_K o ... o T_1(u; c), u ~ N(m, diag s^2): inverse autoregressive flow, steered by m, log s and numbers c that each T_k sees.

    T_k moves u_i by an affine map that the units before it steer, or those after it, in turn. A draw and its density cost a pass of
    each net; the density at any z unrolls them, for about the same. It begins as the normal: each T_k is the identity then.

    The divergence from a prior has no closed form: the bound uses the draws.

    Source: Kingma et al., "Improved variational inference with inverse autoregressive flow", NeurIPS 2016, arXiv:1606.04934.

    Args:
        latents: L.
        steps: K.
        context: width of c.
        widths: hidden widths of the net of each step.
    """

    def __init__(self, latents: int, *, steps: int = 2, context: int = 16, widths: Sequence[int] = (64, 64)) -> None:
        super().__init__(latents, 2 * latents + context)
        parts = [Autoregressive(latents, widths=widths, context=context, backwards=step % 2 == 0) for step in range(steps)]
        self.transform = Inverse(Stack(*parts))
        self.context = context

    def forward(self, a: Tensor) -> "Flowed":
        """a = (m, log s, c)."""
        m, log_s, c = a.split([self.latents, self.latents, self.context], dim=-1)
        return Flowed(DiagonalNormal(m, log_s), self.transform, c)


@dataclass(frozen=True)
class Flowed(Steered):
    """z = T(u; c), u of a normal law.

    Args:
        base: of u.
        transform: T.
        c: (*batch, C).
    """

    base: DiagonalNormal
    transform: Transform
    c: Tensor

    def draw(self, shape: tuple[int, ...], *, generator: Generator = None) -> Drawn:
        """u, then T(u; c)."""
        u = self.base.draw(shape, generator=generator)
        z, log_det = self.transform(u.z, self.c.expand(*u.z.shape[:-1], -1))
        return Drawn(z, lambda: u.log_prob() - log_det)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(u) - log|det J_T|, u = T^-1(z; c)."""
        batch = torch.broadcast_shapes(z.shape[:-1], self.c.shape[:-1])
        u, log_det = self.transform.inverse(z.expand(*batch, -1), self.c.expand(*batch, -1))
        return self.base.log_prob(u) + log_det

    @property
    def mean(self) -> Tensor:
        """T(m; c): the centre."""
        z: Tensor = self.transform(self.base.m, self.c)[0]
        return z
