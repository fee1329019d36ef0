"""Real NVP: a standard normal, bent by affine couplings."""

import math
from typing import Any, ClassVar, cast

import torch
from pydantic import Field

from pofx.domain import Domain
from pofx.models.base import GradientConfig, Model
from pofx.transforms.base import Compose, Transform
from pofx.transforms.coupling import AffineCoupling
from pofx.transforms.linear import Triangular
from pofx.transforms.permutation import Permutation
from pofx.types import Context, Generator, Latent, Nats, X

FEW = 8


class RealNVP(Model):
    """log p(x | c) = log N(T^-1(x; c); 0, 1) + log|det J_T^-1(x; c)|, T = whitening^-1 o couplings.

    Couplings come in pairs, so that every variable is moved once and steers once, with a riffle of the variables
    between the pairs. Untrained it is the normal with the data's mean and shrunken covariance: learning starts
    from the best linear flow and adds what is not Gaussian. Answers log_prob, sample, encode and decode exactly.

    Cost: one pass of `layers` nets a row, both ways. Fails where the support is torn into pieces that a
    continuous T can not separate: thin bridges of density remain between them.

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP", ICLR 2017, arXiv:1605.08803;
    Papamakarios et al., "Normalizing flows for probabilistic modeling and inference", JMLR 22(57), 2021.
    The whitening start is ours.

    Args:
        domain: what x is, real variables.
        config: the options.
        context: what c is, real variables, or None.
    """

    def __init__(self, domain: Domain, config: "RealNVPConfig", context: Domain | None = None) -> None:
        super().__init__(domain, context)
        self.shrink = config.shrink
        couplings = _couplings(len(domain), 0 if context is None else len(context), config)
        self.transform = Compose(*couplings, Triangular(len(domain)))

    @property
    def whitening(self) -> Triangular:
        """The last part of T."""
        return cast("Triangular", self.transform.parts[-1])

    def initialise(self, x: X, c: Context | None = None) -> None:
        """Start as the normal of the rows' mean and covariance."""
        self.whitening.whiten(x, self.shrink)

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        finite = x.isfinite()
        u, log_det = self.transform.inverse(torch.where(finite, x, 0.0), c)
        log_p = -0.5 * (u.square() + math.log(2 * math.pi)).sum(-1) + log_det
        return torch.where(finite.all(-1), log_p, -math.inf)

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        w = self.whitening.mean  # the model's own device and dtype
        u = torch.randn(n, len(self.domain), generator=generator, device=w.device, dtype=w.dtype)
        return self.transform(u, c)[0]

    def _encode(self, x: X, c: Context | None) -> Latent:
        return self.transform.inverse(x, c)[0]

    def _decode(self, z: Latent, c: Context | None) -> X:
        return self.transform(z.to(self.whitening.mean), c)[0]


class RealNVPConfig(GradientConfig):
    """Options of `realnvp`."""

    conditional: ClassVar[bool] = True
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
    ema: float | None = Field(0.99, gt=0, lt=1, description="decay of the weights' moving average; None: no average")
    layers: int = Field(16, ge=2, le=256, multiple_of=2, description="couplings; in pairs, so that each variable is moved as often")
    width: int = Field(64, ge=1, le=2**14, description="hidden units of each of a net's layers")
    depth: int = Field(2, ge=1, le=32, description="hidden layers of a coupling's net")
    dropout: float | None = Field(
        None, ge=0, lt=1, description=f"share of hidden units dropped while training; None: 0.2 above {FEW} variables, 0 below"
    )
    shrink: float = Field(0.1, ge=0, description="rows, per variable, that the whitening's start believes uncorrelated")

    def _build(self, domain: Domain, context: Domain | None) -> RealNVP:
        """The untrained flow."""
        return RealNVP(domain, self, context)

    def share_dropped(self, dim: int) -> float:
        """The dropout of a flow over D variables: with few of them a net underfits long before it overfits."""
        if self.dropout is not None:
            return self.dropout
        return 0.2 if dim > FEW else 0.0


def _couplings(dim: int, context: int, config: RealNVPConfig) -> list[Transform]:
    parts: list[Transform] = []
    widths, dropout = (config.width,) * config.depth, config.share_dropped(dim)
    for pair in range(config.layers // 2):
        parts += [Permutation.riffle(dim)] if pair else []
        for swap in (False, True):
            parts.append(AffineCoupling(dim, swap=swap, context=context, widths=widths, dropout=dropout))
    return parts
