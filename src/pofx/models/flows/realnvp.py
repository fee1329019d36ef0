"""Real NVP: a standard normal, bent by affine couplings.

Couplings come in pairs, so that every variable is moved once and steers once, with a riffle of the variables between the pairs.
Untrained it is the normal with the data's mean and shrunken covariance: learning starts from the best linear flow and adds what
is not Gaussian. Cost: one pass of `layers` nets a row, both ways.
"""

from typing import Any, ClassVar

from pydantic import Field

from pofx.models.flows.families import FlowConfig
from pofx.transforms.base import Transform
from pofx.transforms.coupling import AffineCoupling
from pofx.transforms.permutation import Permutation

FEW = 8


class RealNVPConfig(FlowConfig):
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
    depth: int = Field(2, ge=1, le=32, description="hidden layers of a coupling's net")
    dropout: float | None = Field(
        None, ge=0, lt=1, description=f"share of hidden units dropped while training; None: 0.2 above {FEW} variables, 0 below"
    )

    def steps(self, dim: int, context: int) -> list[Transform]:
        """Couplings, and riffles between their pairs."""
        parts: list[Transform] = []
        widths, dropout = (self.width,) * self.depth, self.share_dropped(dim)
        for pair in range(self.layers // 2):
            parts += [Permutation.riffle(dim)] if pair else []
            parts += [AffineCoupling(dim, swap=swap, context=context, widths=widths, dropout=dropout) for swap in (False, True)]
        return parts

    def share_dropped(self, dim: int) -> float:
        """The dropout of a flow over D variables: with few of them a net underfits long before it overfits."""
        if self.dropout is not None:
            return self.dropout
        return 0.2 if dim > FEW else 0.0
