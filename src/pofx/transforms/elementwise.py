"""One monotone map per variable: identity, log or logit, then standardise."""

import math
from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pofx.transforms.base import PerVariable, Transform, Variables
from pofx.types import Context, Nats, X

EDGE = 1e-15  # how near a bound a draw may come, as a share of the interval: nearer ones would round onto it
MAX_LOG = 700.0  # exp of it is still finite


class Scale(StrEnum):
    """The scale on which a variable is standardised."""

    IDENTITY = "identity"
    LOG = "log"
    LOGIT = "logit"


class Elementwise(PerVariable, Transform):
    """x_d = lower_d + width_d g_d(shift_d + scale_d u_d) with g = identity, exp or the logistic function.

    log|det J| is the sum of its variables' log-slopes. NaN stays NaN and counts 0. An x outside the
    support goes to an infinite u and counts 0 too: its log-density is then the base's at infinity, -inf.
    At an atom (a value with a probability, not a density) there is no slope to count.

    The numbers live in float64 buffers, whatever the dtype of the nets behind: preparation must not cost digits.

    Args:
        scales: g of each variable.
        atoms: the value that is an atom, or None, of each variable; none when not given.
    """

    lower: Tensor
    width: Tensor
    shift: Tensor
    scale: Tensor
    is_log: Tensor
    is_logit: Tensor
    atom: Tensor

    def __init__(self, scales: Sequence[Scale], atoms: Sequence[float | None] = ()) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.atoms = tuple(atoms) or (None,) * len(self.scales)
        for name, value in (("lower", 0.0), ("width", 1.0), ("shift", 0.0), ("scale", 1.0)):
            self.register_buffer(name, torch.full((len(self.scales),), value, dtype=torch.float64))
        self.register_buffer("is_log", torch.tensor([s is Scale.LOG for s in self.scales]), persistent=False)
        self.register_buffer("is_logit", torch.tensor([s is Scale.LOGIT for s in self.scales]), persistent=False)
        atom = torch.tensor([math.nan if a is None else a for a in self.atoms], dtype=torch.float64)
        self.register_buffer("atom", atom, persistent=False)

    @classmethod
    def blank(cls, dim: int) -> "Elementwise":
        """The identity of D variables."""
        return cls((Scale.IDENTITY,) * dim)

    @property
    def affine(self) -> tuple[bool, ...]:
        """Which variables are mapped by an affine map."""
        return tuple(s is Scale.IDENTITY for s in self.scales)

    def forward(self, u: X, c: Context | None = None) -> tuple[X, Nats]:
        """Base to data: x and log|det J|."""
        v = self.shift + self.scale * u
        z, slope = self._g(v)
        x = self.lower + self.width * z
        return x, self._counted(x, slope)

    def inverse(self, x: X, c: Context | None = None) -> tuple[X, Nats]:
        """Data to base: u and log|det J| of the way back."""
        v, slope = self._g_inverse((x - self.lower) / self.width)
        return (v - self.shift) / self.scale, -self._counted(x, slope)

    def behind(self, keep: Variables) -> Variables:
        """The same variables: each has its own map."""
        return keep

    def select(self, keep: Sequence[int]) -> "Elementwise":
        """The map of some of the variables, in the order given."""
        part = Elementwise([self.scales[d] for d in keep], [self.atoms[d] for d in keep]).to(self.shift.device)
        for name in ("lower", "width", "shift", "scale"):
            getattr(part, name).copy_(getattr(self, name)[list(keep)])
        return part

    def _counted(self, x: Tensor, slope: Tensor) -> Tensor:
        """Sum of log|dx_d/du_d| over the variables that have one."""
        whole = slope + (self.width * self.scale).log()
        counts = (x != self.atom) & x.isfinite() & whole.isfinite()  # neither missing nor off the support
        return torch.where(counts, whole, 0.0).sum(-1)

    def _g(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """g(v) and log g'(v)."""
        z, slope = v, torch.zeros_like(v)
        if Scale.LOG in self.scales:
            bounded = v.clamp(-MAX_LOG, MAX_LOG)
            z, slope = torch.where(self.is_log, bounded.exp(), z), torch.where(self.is_log, v, slope)
        if Scale.LOGIT in self.scales:
            share = v.sigmoid().clamp(EDGE, 1 - EDGE)
            z, slope = torch.where(self.is_logit, share, z), torch.where(self.is_logit, logsigmoid(v) + logsigmoid(-v), slope)
        return z, slope

    def _g_inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """v with g(v) = z, and log g'(v); v is -inf below the support, inf above it."""
        v, slope = z, torch.zeros_like(z)
        if Scale.LOG in self.scales:
            log = z.clamp(min=0).log()
            v, slope = torch.where(self.is_log, log, v), torch.where(self.is_log, log, slope)
        if Scale.LOGIT in self.scales:
            log, log_rest = z.clamp(0, 1).log(), (1 - z).clamp(0, 1).log()
            v, slope = torch.where(self.is_logit, log - log_rest, v), torch.where(self.is_logit, log + log_rest, slope)
        return v, slope
