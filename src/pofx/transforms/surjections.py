"""Layers that lose something on the way from base to data: all scores but which is the largest, some variables, a sign.

What was lost is drawn on the way back, from a q(y | x) that is a function of standard normal noise, so gradients reach q and y alike.
With x = S(y), log p(x) >= E_q [log p(y) - log q(y | x)], with equality where q(y | x) is the posterior p(y | x).

Source: Nielsen, Jaini, Hoogeboom, Winther and Welling, "SurVAE Flows", NeurIPS 2020, arXiv:2007.02731.
"""

import abc
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from pofx.errors import OptionError
from pofx.transforms.base import Surjection, Transform
from pofx.transforms.noise import Noise
from pofx.types import Generator, Latent, Nats, X

Draws = Float[Tensor, "*batch M"]  # the noise of a surjection


class Drawn(Surjection):
    """A surjection with y = place(x, epsilon), epsilon ~ N(0, 1)^m, for q(y | x).

    Args:
        noises: m.
    """

    def __init__(self, noises: int) -> None:
        super().__init__()
        self.noises = noises

    @abc.abstractmethod
    def place(self, x: X, epsilon: Draws) -> tuple[Latent, Nats]:
        """The y of the noise, and -log q(y | x); infinite where x is no value that y can lead to."""

    def lift(self, x: X, *, generator: Generator = None) -> tuple[Latent, Nats]:
        """Data to base: y ~ q(y | x) and -log q(y | x)."""
        epsilon = torch.randn(*x.shape[:-1], self.noises, generator=generator, dtype=x.dtype, device=x.device)
        return self.place(x, epsilon)

    def middle(self, x: X) -> Latent:
        """The y of no noise: what `encode` encodes."""
        return self.place(x, x.new_zeros(*x.shape[:-1], self.noises))[0]


class Slice(Drawn):
    """x = the first D of y = (x, e), with e ~ q(e | x): an augmented flow, whose extra variables give the others room to pass each other.

    The bound is exact where e given x follows q, whatever x is.

    Source: Huang, Dinh and Courville, "Augmented normalizing flows", arXiv:2002.07101.

    Args:
        dim: D.
        extra: number of variables beside them.
        layers: couplings of q(e | x); 0: a standard normal, so that the flow alone joins e to x.
        width: hidden units of their nets.

    Raises:
        OptionError: nothing is added.
    """

    def __init__(self, dim: int, extra: int, *, layers: int = 0, width: int = 32) -> None:
        super().__init__(extra)
        if extra < 1:
            raise OptionError(f"a slice leaves away 1 variable or more, got {extra}")
        self.dim = dim
        self.noise = Noise(extra, dim, layers=layers, width=width)

    def forward(self, y: Latent) -> X:
        """Base to data: the first D."""
        return y[..., : self.dim]

    def place(self, x: X, epsilon: Draws) -> tuple[Latent, Nats]:
        """(x, e) and -log q(e | x)."""
        e, log_q = self.noise(epsilon, x)
        return torch.cat((x, e), -1), -log_q


class Absolute(Drawn):
    """x = |y| for each of D variables, the sign drawn evenly: -log q = D log 2.

    Exact where p(y) is the same for every choice of signs; else what p(y) puts on one side is paid for. A negative x has density 0.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.dim = dim

    def forward(self, y: Latent) -> X:
        """Base to data: |y|."""
        return y.abs()

    def place(self, x: X, epsilon: Draws) -> tuple[Latent, Nats]:
        """The sign of the noise, and D log 2."""
        y = torch.where(x < 0, math.inf, torch.where(epsilon < 0, -x, x))
        return y, x.new_full(x.shape[:-1], self.dim * math.log(2))


class Argmax(Drawn):
    """x_v = argmax_k y_vk: V categories of K_v levels each, from K_v reals each.

    With u ~ q(u | x) on all reals and T = u_x that of the level chosen, y_x = T and the others are pushed below it:

        y_k = T - softplus(T - u_k),    -log q(y | x) = -log q(u | x) + sum_k!=x log sigmoid(T - u_k).

    Source: Hoogeboom, Nielsen, Jaini, Forre and Welling, "Argmax flows and multinomial diffusion", NeurIPS 2021, arXiv:2102.05379.

    Args:
        sizes: K_v of each variable.
        layers: couplings of q(u | x).
        width: hidden units of their nets.

    Raises:
        OptionError: a variable has under 2 levels.
    """

    owner: Tensor
    level: Tensor
    first: Tensor
    last: Tensor

    def __init__(self, sizes: Sequence[int], *, layers: int = 4, width: int = 32) -> None:
        super().__init__(sum(sizes))
        if min(sizes, default=0) < 2:
            raise OptionError(f"a category has 2 levels or more, got {list(sizes)}")
        self.sizes = tuple(sizes)
        self.noise = Noise(self.noises, self.noises, layers=layers, width=width)
        pairs = [(v, k) for v, size in enumerate(sizes) for k in range(size)]
        for name, values in (
            ("owner", [v for v, _ in pairs]),  # the variable that each real belongs to, and its level
            ("level", [k for _, k in pairs]),
            ("first", [sum(self.sizes[:v]) for v in range(len(sizes))]),  # where the reals of a variable begin
            ("last", [size - 1 for size in sizes]),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.long), persistent=False)

    def forward(self, y: Latent) -> X:
        """Base to data: codes (*batch, V)."""
        return torch.stack([scores.argmax(-1) for scores in y.split(self.sizes, -1)], -1).to(y.dtype)

    def place(self, x: X, epsilon: Draws) -> tuple[Latent, Nats]:
        """Scores (*batch, sum K) and -log q; infinite where x is no code."""
        valid = (x >= 0) & (x <= self.last) & (x == x.round())
        code = torch.where(valid, x, 0.0).long()
        hot = code.index_select(-1, self.owner) == self.level
        u, log_q = self.noise(epsilon, hot.to(epsilon.dtype))
        top = u.gather(-1, self.first + code).index_select(-1, self.owner)
        below = torch.minimum(top - softplus(top - u), torch.nextafter(top.detach(), top.new_tensor(-math.inf)))  # no tie by rounding
        log_slope = torch.where(hot, 0.0, logsigmoid(top - u)).sum(-1)
        y = torch.where(hot, u, below)
        return torch.where(valid.index_select(-1, self.owner), y, math.inf), log_slope - log_q


class Chain(Drawn):
    """S = S_K o ... o S_1 of surjections and bijections, in the order given; what they say about q adds up.

    Args:
        *parts: S_1, ..., S_K; that of the base first.
    """

    def __init__(self, *parts: "Drawn | Transform") -> None:
        super().__init__(sum(map(_noises, parts)))
        self.parts: Sequence[Drawn | Transform] = nn.ModuleList(parts)  # type: ignore[assignment]

    def forward(self, y: Latent) -> X:
        """Base to data: S_1 first."""
        for part in self.parts:
            y = part(y)[0] if isinstance(part, Transform) else part(y)
        return y

    def place(self, x: X, epsilon: Draws) -> tuple[Latent, Nats]:
        """S_K undone first."""
        log_weight = x.new_zeros(x.shape[:-1])
        for part, own in zip(reversed(self.parts), epsilon.split([_noises(p) for p in reversed(self.parts)], -1), strict=True):
            x, log_own = part.inverse(x) if isinstance(part, Transform) else part.place(x, own)
            log_weight = log_weight + log_own
        return x, log_weight


def _noises(part: Drawn | Transform) -> int:
    return part.noises if isinstance(part, Drawn) else 0
