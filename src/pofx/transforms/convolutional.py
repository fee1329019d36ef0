"""Transforms of images: what moves pixels by nets that look around, mixes channels, and scales them."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from pofx.errors import OptionError
from pofx.nets.convolutional import ResidualCNN
from pofx.transforms.coupling import FAR, Bend
from pofx.transforms.monotone import Monotone
from pofx.transforms.spatial import Shape, Spatial
from pofx.types import Context, X

_STILL = 1e-6  # a channel that varies less than this keeps its scale


@runtime_checkable
class PictureNet(Protocol):
    """A net on images, whose last layer starts at zero."""

    @property
    def last(self) -> nn.Conv2d:
        """That layer."""

    def __call__(self, v: Tensor, c: Tensor | None = None) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W)."""


NetMaker = Callable[[int, int, tuple[int, int], int], PictureNet]  # from inputs, outputs, sides and the width of the condition


def _conditioner(make: NetMaker, inputs: int, moved: int, shape: Shape, context: int, monotone: Monotone) -> PictureNet:
    """A net whose raw numbers start at the identity's."""
    net = make(inputs, monotone.size * moved, shape[1:], context)
    with torch.no_grad():
        net.last.bias.copy_(torch.tensor(monotone.identity).repeat_interleave(moved))  # type: ignore[union-attr]
    return net


def _bent(bend: Bend, v: Tensor, raw: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Every pixel moved by its raw numbers (N, size C, H, W), and its log-slope; a map of the line takes (d, N)."""
    raw = raw.unflatten(1, (size, -1)).transpose(0, 1)
    out, log_slope = bend(v.flatten(1), raw.flatten(2))
    return out.view_as(v), log_slope


class ChannelCouplings(Spatial):
    """K couplings in a row: some channels steer how a monotone map moves the others, then the other way round.

    As `transforms.coupling.Couplings`, with a net that looks around. After a squeeze the halves may be the colours of a checkerboard, or
    rows, or columns, at a quarter of the cost of nets on the whole image. Starts as the identity.

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP", ICLR 2017, arXiv:1605.08803, section 3.4.

    Args:
        shape: (C, H, W).
        layers: K.
        monotone: what moves a pixel.
        first: the channels that steer first on the way to the base; the first half when not given.
        context: width of the condition c; 0 for none.
        net: makes a conditioner.

    Raises:
        OptionError: a half is empty.
    """

    order: Tensor
    back: Tensor

    def __init__(
        self,
        shape: Shape,
        layers: int,
        monotone: Monotone,
        *,
        first: Sequence[int] | None = None,
        context: int = 0,
        net: NetMaker = ResidualCNN,
    ) -> None:
        super().__init__(shape)
        a = list(range(shape[0] // 2)) if first is None else sorted(set(first))
        b = [k for k in range(shape[0]) if k not in a]
        if not (a and b):
            raise OptionError(f"a coupling of channels needs some on both sides, got {len(a)} and {len(b)}")
        self.monotone, self.sizes = monotone, (len(a), len(b))
        order = torch.tensor([*a, *b], dtype=torch.long)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        self.moving = [1 - k % 2 for k in range(layers)]
        make = partial(_conditioner, net, shape=shape, context=context, monotone=monotone)
        nets = (make(inputs=self.sizes[1 - moving], moved=self.sizes[moving]) for moving in self.moving)
        self.nets: Sequence[PictureNet] = nn.ModuleList(nets)  # type: ignore[assignment, arg-type]

    def to_base(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """The first coupling first."""
        return self._passed(x, c, self.monotone.to_base, list(zip(self.moving, self.nets, strict=True)))

    def to_data(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """The last coupling first."""
        return self._passed(u, c, self.monotone.to_data, list(zip(self.moving, self.nets, strict=True))[::-1])

    def _passed(self, v: Tensor, c: Tensor | None, bend: Bend, layers: list[tuple[int, PictureNet]]) -> tuple[Tensor, Tensor]:
        halves, log_det = list(v.index_select(1, self.order).split(self.sizes, dim=1)), v.new_zeros(len(v))
        for moving, net in layers:
            raw = net(halves[1 - moving].clamp(-FAR, FAR), c)
            halves[moving], log_slope = _bent(bend, halves[moving], raw, self.monotone.size)
            log_det = log_det + log_slope.sum(1)
        return torch.cat(halves, 1).index_select(1, self.back), log_det


def checkerboard(shape: Shape) -> Tensor:
    """Which pixels are of the first colour, (C, H, W): those whose channel, row and column add up to an even number."""
    channel, row, column = (torch.arange(size) for size in shape)
    return (channel[:, None, None] + row[:, None] + column) % 2 == 0


class CheckerboardCouplings(Spatial):
    """K couplings in a row: one colour of a checkerboard steers how a monotone map moves the other, then the other way round.

    For images of any sides. The net sees the whole image with 0 for the colour that moves, and half of what it says is not used: where
    the sides are even, a squeeze and `ChannelCouplings` over its first and last channels part the same pixels at a quarter of the cost.

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP", ICLR 2017, arXiv:1605.08803, section 3.4.

    Args:
        shape: (C, H, W).
        layers: K.
        monotone: what moves a pixel.
        context: width of the condition c; 0 for none.
        net: makes a conditioner.

    Raises:
        OptionError: a single number is of one colour.
    """

    first: Tensor

    def __init__(self, shape: Shape, layers: int, monotone: Monotone, *, context: int = 0, net: NetMaker = ResidualCNN) -> None:
        super().__init__(shape)
        if math.prod(shape) < 2:
            raise OptionError(f"a checkerboard has pixels of both colours, got an image of shape {shape}")
        self.monotone = monotone
        self.register_buffer("first", checkerboard(shape), persistent=False)
        make = partial(_conditioner, net, shape[0], shape[0], shape, context, monotone)
        self.nets: Sequence[PictureNet] = nn.ModuleList(make() for _ in range(layers))  # type: ignore[assignment, misc]

    def to_base(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """The first coupling first."""
        return self._passed(x, c, self.monotone.to_base, list(enumerate(self.nets)))

    def to_data(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """The last coupling first."""
        return self._passed(u, c, self.monotone.to_data, list(enumerate(self.nets))[::-1])

    def _passed(self, v: Tensor, c: Tensor | None, bend: Bend, layers: list[tuple[int, PictureNet]]) -> tuple[Tensor, Tensor]:
        log_det = v.new_zeros(len(v))
        for k, net in layers:
            steers = self.first if k % 2 == 0 else ~self.first
            raw = net(torch.where(steers, v.clamp(-FAR, FAR), 0.0), c)
            moved, log_slope = _bent(bend, v, raw, self.monotone.size)
            v = torch.where(steers, v, moved)
            log_det = log_det + torch.where(steers, 0.0, log_slope.view_as(v)).sum((1, 2, 3))
        return v, log_det


class InvertibleConvolution(Spatial):
    """u_hw = P L U x_hw at every pixel: a convolution by 1 x 1; log|det| = H W sum log|U_kk|. Starts as a random rotation.

    L is unit lower, U upper triangular; the permutation P and the signs of U's diagonal stay what they are at the start.

    Source: Kingma and Dhariwal, "Glow: generative flow with invertible 1x1 convolutions", NeurIPS 2018, arXiv:1807.03039, equations 9
    to 11.

    Args:
        shape: (C, H, W).
    """

    order: Tensor
    sign: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        channels, height, width = shape
        self.pixels = height * width
        P, L, U = torch.linalg.lu(torch.linalg.qr(torch.randn(channels, channels))[0])
        self.register_buffer("order", P.argmax(1))
        self.register_buffer("sign", U.diagonal().sign())
        self.matrix = nn.Parameter(L.tril(-1) + U.triu(1))
        self.log_diagonal = nn.Parameter(U.diagonal().abs().log())

    def to_base(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """One product a pixel."""
        lower, upper = self._factors
        return _mixed((lower @ upper).index_select(0, self.order), x), self._log_det(x)

    def to_data(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same by the inverse."""
        lower, upper = self._factors
        eye = torch.eye(len(self.order), dtype=u.dtype, device=u.device)
        unmixed = torch.linalg.solve_triangular(lower, eye.index_select(1, self.order), upper=False, unitriangular=True)
        return _mixed(torch.linalg.solve_triangular(upper, unmixed, upper=True), u), -self._log_det(u)

    @property
    def _factors(self) -> tuple[Tensor, Tensor]:
        eye = torch.eye(len(self.order), dtype=self.matrix.dtype, device=self.matrix.device)
        return self.matrix.tril(-1) + eye, self.matrix.triu(1) + (self.sign * self.log_diagonal.exp()).diag()

    def _log_det(self, v: Tensor) -> Tensor:
        return (self.pixels * self.log_diagonal.sum()).expand(len(v))


def _mixed(matrix: Tensor, v: Tensor) -> Tensor:
    return conv2d(v, matrix[:, :, None, None])


class ChannelNorm(Spatial):
    """u_k = (x_k - shift_k) exp(-log_scale_k) of every channel k, which starts where pixels have mean 0 and deviation 1.

    Source: Kingma and Dhariwal, "Glow: generative flow with invertible 1x1 convolutions", NeurIPS 2018, arXiv:1807.03039, section 3.1.

    Args:
        shape: (C, H, W).
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.pixels = shape[1] * shape[2]
        self.shift, self.log_scale = nn.Parameter(torch.zeros(shape[0], 1, 1)), nn.Parameter(torch.zeros(shape[0], 1, 1))

    @torch.no_grad()
    def start(self, x: X, c: Context | None = None) -> None:
        """Take mean and deviation of each channel from rows x (N, C H W)."""
        deviation, mean = torch.std_mean(x.reshape(-1, *self.shape), (0, 2, 3), correction=0)
        self.shift.copy_(mean[:, None, None])
        self.log_scale.copy_(torch.where(deviation > _STILL, deviation, 1.0).log()[:, None, None])

    def to_base(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Standardise."""
        return (x - self.shift) * (-self.log_scale).exp(), -self._log_det(x)

    def to_data(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Give back the scale."""
        return torch.addcmul(self.shift, u, self.log_scale.exp()), self._log_det(u)

    def _log_det(self, v: Tensor) -> Tensor:
        return (self.pixels * self.log_scale.sum()).expand(len(v))
