"""Images on their way: transforms that keep the sides apart from the channels, and how scales stand on each other.

On the way to the base an image (C, H, W) is squeezed to (4 C, H/2, W/2), half of its channels are factored out, and the rest is squeezed
again: a `Tower` of parts for each scale, the next one inside its `FactorOut`. At the base all of it is one row again.
"""

import abc
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from pofx.errors import OptionError
from pofx.transforms.base import Transform
from pofx.types import Context, Nats, X

Shape = tuple[int, int, int]  # channels, height, width
Pass = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
_AT_ONCE = 2048  # images that go through together
_SEEN = 1024  # rows that a start looks at: deviations of channels, for what is a moment's work


class Spatial(Transform):
    """A bijection that computes on images (N, C, H, W) and conditions (N, K); outside, images are rows (*batch, C H W), channels first.

    Args:
        shape: (C, H, W) at the data.
        base_shape: at the base; the same when not given.
    """

    def __init__(self, shape: Shape, base_shape: Shape | None = None) -> None:
        super().__init__()
        self.shape, self.base_shape = shape, base_shape or shape

    @abc.abstractmethod
    def to_data(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) and log|det J_T|, (N,)."""

    @abc.abstractmethod
    def to_base(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """u (N, C', H', W') and log|det J_T^-1|, (N,)."""

    def forward(self, u: X, c: Context | None = None) -> tuple[X, Nats]:
        """Base to data."""
        return _pictured(self.to_data, u, c, self.base_shape)

    def inverse(self, x: X, c: Context | None = None) -> tuple[X, Nats]:
        """Data to base."""
        return _pictured(self.to_base, x, c, self.shape)


def _pictured(ask: Pass, v: Tensor, c: Tensor | None, shape: Shape) -> tuple[Tensor, Tensor]:
    """The answer for rows (*batch, C H W), a few at a time: what nets hold of many images would not fit into the cache, or memory."""
    batch, parts = v.shape[:-1], v.reshape(-1, *shape).split(_AT_ONCE)
    conditions: Sequence[Tensor | None] = [None] * len(parts)
    if c is not None:
        conditions = c.expand(*batch, c.shape[-1]).reshape(-1, c.shape[-1]).split(_AT_ONCE)
    out, log_det = zip(*map(ask, parts, conditions), strict=True)
    return torch.cat(out).reshape(v.shape), torch.cat(log_det).reshape(batch)


class Tower(Spatial):
    """T = T_K o ... o T_1 of spatial parts, in the order given: base first.

    Args:
        *parts: T_1, ..., T_K.

    Raises:
        OptionError: a part does not take the shape that the part after it leaves.
    """

    def __init__(self, *parts: Spatial) -> None:
        for inner, outer in pairwise(parts):
            if inner.shape != outer.base_shape:
                raise OptionError(f"a part over images {inner.shape} can not follow one that leaves {outer.base_shape}")
        super().__init__(parts[-1].shape, parts[0].base_shape)
        self.parts: Sequence[Spatial] = nn.ModuleList(parts)  # type: ignore[assignment]

    @torch.no_grad()
    def start(self, x: X, c: Context | None = None) -> None:
        """Every part, from what the parts after it make of some of the rows, evenly apart."""
        few = slice(None, None, -(-len(x) // _SEEN))
        x, c = x[few], c if c is None else c[few]
        for part in reversed(self.parts):
            part.start(x, c)
            x = part.inverse(x, c)[0]

    def to_data(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """T_1 first."""
        log_det = u.new_zeros(len(u))
        for part in self.parts:
            u, own = part.to_data(u, c)
            log_det = log_det + own
        return u, log_det

    def to_base(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """T_K undone first."""
        log_det = x.new_zeros(len(x))
        for part in reversed(self.parts):
            x, own = part.to_base(x, c)
            log_det = log_det + own
        return x, log_det


class Squeeze(Spatial):
    """Space to depth: u_(4c + 2i + j, h, w) = x_(c, 2h + i, 2w + j); |det J| = 1.

    Of the four channels of one, the first and the last are one colour of the checkerboard of x, the others the other.

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP", ICLR 2017, arXiv:1605.08803, section 3.6.

    Args:
        shape: (C, H, W).

    Raises:
        OptionError: a side is odd.
    """

    def __init__(self, shape: Shape) -> None:
        channels, height, width = shape
        if height % 2 or width % 2:
            raise OptionError(f"a squeeze takes images of even sides, got {height} x {width}")
        super().__init__(shape, (4 * channels, height // 2, width // 2))

    def to_data(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Depth to space."""
        return pixel_shuffle(u, 2), u.new_zeros(len(u))

    def to_base(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Space to depth."""
        return pixel_unshuffle(x, 2), x.new_zeros(len(x))


class FactorOut(Spatial):
    """u = (x_1, T^-1(x_2)): the first half of the channels goes to the base as it is, the second through a transform of its own.

    The base sees a row: u is (C H W, 1, 1).

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP", ICLR 2017, arXiv:1605.08803, equations 13 to 16.

    Args:
        shape: (C, H, W).
        rest: makes T of the shape of x_2, (C - C // 2, H, W).

    Raises:
        OptionError: there is one channel only.
    """

    def __init__(self, shape: Shape, rest: Callable[[Shape], Spatial]) -> None:
        channels, height, width = shape
        if channels < 2:
            raise OptionError(f"factoring out halves the channels, got {channels}")
        super().__init__(shape, (math.prod(shape), 1, 1))
        self.sizes = (channels // 2, channels - channels // 2)
        self.rest = rest((self.sizes[1], height, width))

    @torch.no_grad()
    def start(self, x: X, c: Context | None = None) -> None:
        """What goes on."""
        self.rest.start(x[:, -math.prod(self.rest.shape) :], c)

    def to_data(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """The rest comes back, and the halves join."""
        out, on = u.split([math.prod(self.shape) - math.prod(self.rest.shape), math.prod(self.rest.shape)], dim=1)
        on, log_det = self.rest.to_data(on.reshape(-1, *self.rest.base_shape), c)
        return torch.cat((out.reshape(-1, self.sizes[0], *self.shape[1:]), on), 1), log_det

    def to_base(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Half stays, the rest goes on."""
        out, on = x.split(self.sizes, dim=1)
        on, log_det = self.rest.to_base(on, c)
        return torch.cat((out.flatten(1), on.flatten(1)), 1)[..., None, None], log_det
