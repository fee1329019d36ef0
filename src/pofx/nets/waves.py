"""Sines and cosines of what a net is given."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pofx.errors import OptionError


@dataclass(frozen=True)
class Waves:
    """w(v) = (v, g_k sin(a_k), g_k cos(a_k); k = 0 ... K-1), a_k = 2^k pi v / B with v clamped to [-B, B], and g_k = 2^(-k/2).

    A net of ReLUs learns slow functions of v first, and sharp ones (what an edge of a density wants) hardly at all; of waves it learns
    both. The shortest wave is 2^(2-K) B long: of the rows' noise, too, it learns more.

    Source: Mildenhall et al., "NeRF: representing scenes as neural radiance fields for view synthesis", ECCV 2020, arXiv:2003.08934,
    equation 4, with g = 1; why it helps: Tancik et al., "Fourier features let networks learn high frequency functions in low
    dimensional domains", NeurIPS 2020, arXiv:2006.10739. The clamp is ours: values far out are not folded onto near ones. So is g:
    without it, short waves make learning run away.

    Args:
        count: K; with 0, w(v) = v.
        bound: B.

    Raises:
        OptionError: a count below 0, or a bound that is not positive.
    """

    count: int = 0
    bound: float = 5.0

    def __post_init__(self) -> None:
        if self.count < 0 or not 0 < self.bound < math.inf:
            raise OptionError(f"waves have a count of 0 or more and a positive bound, got {self.count} and {self.bound}")

    @property
    def width(self) -> int:
        """Of w(v), for each v."""
        return 1 + 2 * self.count

    def __call__(self, v: Tensor) -> Tensor:
        """(d, N) -> (d width, N): all of the first variable's, then the second's."""
        if not self.count:
            return v
        octave = torch.exp2(torch.arange(self.count, device=v.device, dtype=v.dtype)).view(-1, 1)
        angle = octave * (math.pi / self.bound) * v[:, None].clamp(-self.bound, self.bound)
        return torch.cat((v[:, None], octave.rsqrt() * angle.sin(), octave.rsqrt() * angle.cos()), 1).flatten(0, 1)
