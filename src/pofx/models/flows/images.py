"""Flows of images: scales that stand in each other, and Glow.

An image is squeezed, moved by the steps of its scale, half of it is factored out, and the rest is an image of half the sides, to which the
same is done again. What is factored out is first standardised given what goes on (the learned prior of Glow), so that the base stays one
density of all variables. Images whose sides can not be halved are moved as they are, by couplings over a checkerboard.
"""

import abc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field

from pofx.domain import Domain
from pofx.errors import OptionError
from pofx.models.flows.families import FlowConfig, Paced
from pofx.models.images import ImageConfig
from pofx.nets.convolutional import ResidualCNN
from pofx.transforms.base import Transform
from pofx.transforms.convolutional import ChannelCouplings, ChannelNorm, CheckerboardCouplings, InvertibleConvolution, NetMaker
from pofx.transforms.monotone import Affine, Monotone, RationalQuadratic, Shift
from pofx.transforms.spatial import FactorOut, Shape, Spatial, Squeeze, Tower

Steps = Callable[[Shape], Sequence[Spatial]]  # of one scale, on the way to the base
_LEAST_SIDE = 4  # of an image that is squeezed again


def scales_of(shape: Shape, scales: int | None) -> int:
    """How often the sides are halved: as asked, or down to sides below 4, once at least where they are even.

    Raises:
        OptionError: more often than they can be.
    """
    _, height, width = shape
    most = next(k for k in range(64) if (height >> k) % 2 or (width >> k) % 2)
    if scales is None:
        return min(most, max(1, (min(height, width) // _LEAST_SIDE).bit_length()))
    if scales > most:
        raise OptionError(f"{scales} scales halve the sides {scales} times, but {height} x {width} can be halved {most} times")
    return scales


def pyramid(shape: Shape, scales: int, steps: Steps, prior: Callable[[Shape], Spatial]) -> Spatial:
    """The tower of some scales.

    Args:
        shape: (C, H, W) at the data.
        scales: how often the sides are halved; all but the last time, half of the channels are factored out.
        steps: those of a scale.
        prior: what standardises the first half of the channels given the second.
    """
    squeezed: list[Spatial] = [Squeeze(shape)] if scales else []
    within = squeezed[0].base_shape if squeezed else shape
    parts = [*squeezed, *steps(within)]
    if scales > 1:
        parts += [prior(within), FactorOut(within, partial(pyramid, scales=scales - 1, steps=steps, prior=prior))]
    return Tower(*reversed(parts))


def prior(shape: Shape, *, context: int, net: NetMaker) -> Spatial:
    """Glow's: the half that goes on gives mean and scale of the half that is factored out."""
    return ChannelCouplings(shape, 1, Affine(), first=range(shape[0] // 2, shape[0]), context=context, net=net)


class Pictured(FlowConfig, ImageConfig, abc.ABC):
    """Flows that can take a row for an image."""

    scales: int | None = Field(
        None, ge=0, le=16, description="of images: how often the sides are halved; None: down to sides below 4, while they are even"
    )


class GlowConfig(Paced, Pictured):
    """Options of `glow`."""

    images: ClassVar[bool] = True
    cites: ClassVar[tuple[str, ...]] = (
        "@inproceedings{kingma2018glow, title={Glow: generative flow with invertible 1x1 convolutions}, "
        "author={Kingma, Diederik P. and Dhariwal, Prafulla}, booktitle={Advances in Neural Information Processing Systems}, year={2018}}",
    )
    space: ClassVar[dict[str, tuple[Any, ...]]] = {"layers": (2, 4, 8), "width": (16, 32, 64)}

    learning_rate: float = Field(2e-3, gt=0)
    final_rate: float = Field(0.02, gt=0, le=1, description="the last learning rate over the first; it falls geometrically over the run")
    layers: int = Field(3, ge=1, le=256, description="steps of a scale: a norm of channels, a convolution by 1 x 1, a coupling")
    width: int = Field(32, ge=1, le=2**12, description="channels of a conditioner")
    blocks: int = Field(0, ge=0, le=32, description="residual blocks of a conditioner")
    coupling: Literal["affine", "additive", "spline"] = Field("affine", description="how a coupling moves a pixel")
    bins: int = Field(8, ge=2, le=128, description="bins of a spline")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of hidden units dropped while training")

    def transform(self, domain: Domain, context: int) -> Transform:
        """Scales of steps."""
        shape, net = self.picture(domain), partial(ResidualCNN, width=self.width, blocks=self.blocks, dropout=self.dropout)
        steps = partial(self.of_scale, context=context, net=net)
        return pyramid(shape, scales_of(shape, self.scales), steps, partial(prior, context=context, net=net))

    def of_scale(self, shape: Shape, context: int, net: NetMaker) -> list[Spatial]:
        """The steps of a scale; one channel alone is coupled over a checkerboard, both ways."""
        parts: list[Spatial] = []
        for _ in range(self.layers):
            parts += [ChannelNorm(shape), InvertibleConvolution(shape)]
            if shape[0] > 1:
                parts += [ChannelCouplings(shape, 1, self.monotone, context=context, net=net)]
            else:
                parts += [CheckerboardCouplings(shape, 2, self.monotone, context=context, net=net)]
        return parts

    @property
    def monotone(self) -> Monotone:
        """What a coupling moves a pixel by."""
        return {"affine": Affine(), "additive": Shift(), "spline": RationalQuadratic(self.bins)}[self.coupling]
