"""Real NVP: a standard normal, bent by affine couplings.

Couplings come in pairs, so that every variable is moved once and steers once, with a riffle of the variables between the pairs.
Untrained it is the normal with the data's mean and shrunken covariance: learning starts from the best linear flow and adds what
is not Gaussian. Cost: one pass of `layers` nets a row, both ways.

With nets of convolutions the pairs part an image by a checkerboard, then by rows, at every scale; half of the variables are factored out
between two scales.
"""

from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from pofx.domain import Domain
from pofx.models.flows.families import WhitenedConfig
from pofx.models.flows.images import Pictured, prior, pyramid, scales_of
from pofx.nets.convolutional import ResidualCNN
from pofx.nets.mlp import MLP
from pofx.transforms.base import Stack, Transform, Upright
from pofx.transforms.convolutional import ChannelCouplings, ChannelNorm, CheckerboardCouplings, NetMaker
from pofx.transforms.coupling import Couplings
from pofx.transforms.monotone import Affine
from pofx.transforms.permutation import Permutation
from pofx.transforms.spatial import Shape, Spatial

FEW = 8
_MOST = 2.0  # nats that a coupling may stretch a variable
_COLOURS, _ROWS = (0, 3), (0, 1)  # of the four channels that a squeeze makes of one


class RealNVPConfig(WhitenedConfig, Pictured):
    """Options of `realnvp`."""

    cites: ClassVar[tuple[str, ...]] = (
        "@inproceedings{dinh2017density, title={Density estimation using {Real NVP}}, "
        "author={Dinh, Laurent and Sohl-Dickstein, Jascha and Bengio, Samy}, "
        "booktitle={International Conference on Learning Representations}, year={2017}}",
    )
    space: ClassVar[dict[str, tuple[Any, ...]]] = {
        "layers": (4, 8, 16),
        "width": (32, 64, 128),
        "dropout": (None, 0.0, 0.1, 0.3),
        "learning_rate": (5e-4, 1e-3, 2e-3),
        "weight_decay": (0.0, 1e-3, 1e-1),
    }

    learning_rate: float = Field(2e-3, gt=0)
    layers: int = Field(16, ge=2, le=256, multiple_of=2, description="couplings; in pairs, so that each variable is moved as often")
    width: int = Field(64, ge=1, le=2**14, description="hidden units of each of a net's layers")
    depth: int = Field(2, ge=1, le=32, description="hidden layers of a coupling's net; half as many residual blocks of one of convolutions")
    net: Literal["mlp", "conv"] = Field("mlp", description="what steers: a net of all variables, or, of images, one of convolutions")
    dropout: float | None = Field(
        None, ge=0, lt=1, description=f"share of hidden units dropped while training; None: 0.2 above {FEW} variables, 0 below"
    )

    def transform(self, domain: Domain, context: int) -> Transform:
        """Couplings of variables, or of pixels at several scales."""
        if self.net == "mlp":
            return super().transform(domain, context)
        shape, blocks = self.picture(domain), -(-self.depth // 2)
        net = partial(ResidualCNN, width=self.width, blocks=blocks, dropout=self.share_dropped(len(domain)))
        steps = partial(self.of_scale, context=context, net=net)
        return pyramid(shape, scales_of(shape, self.scales), steps, partial(prior, context=context, net=net))

    def of_scale(self, shape: Shape, context: int, net: NetMaker) -> list[Spatial]:
        """Pairs of couplings over a checkerboard, then as many over rows; without a squeeze, all over a checkerboard."""
        parts: list[Spatial] = []
        for pair in range(self.layers // 2):
            parts.append(ChannelNorm(shape))
            if shape[0] % 4:
                parts.append(CheckerboardCouplings(shape, 2, Affine(), context=context, net=net))
            else:
                pattern = _COLOURS if pair < self.layers // 4 else _ROWS
                first = [k for k in range(shape[0]) if k % 4 in pattern]
                parts.append(ChannelCouplings(shape, 2, Affine(), first=first, context=context, net=net))
        return parts

    def steps(self, dim: int, context: int) -> list[Transform]:
        """Couplings, and riffles between their pairs."""
        parts: list[Upright] = []
        net = partial(MLP, widths=(self.width,) * self.depth, activation=nn.GELU, dropout=self.share_dropped(dim))
        for pair in range(self.layers // 2):
            parts += [Permutation.riffle(dim)] if pair else []
            parts.append(Couplings(dim, 2, Affine(_MOST), first=range(dim // 2), context=context, net=net))
        return [Stack(*parts)]

    def share_dropped(self, dim: int) -> float:
        """The dropout of a flow over D variables: with few of them a net underfits long before it overfits."""
        if self.dropout is not None:
            return self.dropout
        return 0.2 if dim > FEW else 0.0
