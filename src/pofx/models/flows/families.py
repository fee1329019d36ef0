"""The flow families: of which transforms each is made."""

import abc
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field

from pofx.distributions.continuous import Normal, StudentT
from pofx.domain import Domain
from pofx.errors import OptionError
from pofx.models.base import GradientConfig, Lifting, Model
from pofx.models.flows.bases import LawBase, StandardNormal
from pofx.models.flows.flow import Flow
from pofx.models.flows.surjected import Surjected
from pofx.nets.mlp import MLP
from pofx.nets.residual import ResidualMLP
from pofx.nets.waves import Waves
from pofx.transforms.autoregressive import Autoregressive
from pofx.transforms.base import Compose, Inverse, Stack, Transform, Upright
from pofx.transforms.coupling import Couplings
from pofx.transforms.linear import LU, Triangular
from pofx.transforms.monotone import Affine, RationalQuadratic, Shift
from pofx.transforms.permutation import Permutation
from pofx.transforms.pointwise import Pointwise
from pofx.transforms.surjections import Slice

_LEAST_STEPS, _MOST_STEPS = 600, 10_000
_MANY = 20_000  # rows of which a net of the usual size learns nothing by heart
_DROPPED = "share of hidden units dropped while training; where not given, 0.1 but for many rows (20,000 and more)"
_BOUND = 5.0  # of splines, in deviations of whitened variables


class FlowConfig(GradientConfig, abc.ABC):
    """Options that all flows share: T, on a base."""

    conditional: ClassVar[bool] = True
    approximates: ClassVar[bool] = True  # draws with their densities cost a pass or two, so that a density can be descended by them

    base: Literal["normal", "student", "mixture"] = Field("normal", description="what is bent; the last two are learned, too")
    components: int = Field(8, ge=1, le=1024, description="of a mixture base")
    ema: float | None = Field(0.99, gt=0, lt=1, description="decay of the weights' moving average; None: no average")
    dequantise: Literal["scores", "uniform"] = Field("scores", description="cells of codes: of equal mass under a normal, or of width 1")
    noise: Literal["uniform", "variational"] = Field("uniform", description="where in its cell a value is put; variational: learned")
    augment: int = Field(0, ge=0, le=4096, description="noise variables beside those of x: log_prob is then a bound")
    draws: int = Field(8, ge=2, le=4096, description="of the noise, a row and log_prob")
    tight: bool = Field(False, description="log_prob is the log of the draws' mean weight, not the mean of their logs: a tighter bound")
    refine: int = Field(0, ge=0, le=10_000, description="steps of ascent that fit the learned noise to each row before its log_prob")

    @property
    def lifting(self) -> Lifting:
        """As the options say."""
        return Lifting(self.dequantise, self.noise == "variational", self.draws, self.tight, self.refine)

    def _build(self, domain: Domain, context: Domain | None) -> Model:
        """The untrained flow; with noise variables beside those of x, behind the surjection that leaves them away."""
        if not self.augment:
            return self.flow(domain, context)
        noise = Domain.real(self.augment).variables
        seen = Domain((*domain.variables, *(replace(v, name=f"noise {v.name}") for v in noise)))
        return Surjected(domain, Slice(len(domain), self.augment), self.flow(seen, context), draws=self.draws, tight=self.tight)

    def flow(self, domain: Domain, context: Domain | None) -> Model:
        """The untrained flow of real variables."""
        name = f"{type(self).__name__.removesuffix('Config')} flow"
        return Flow(domain, self.transform(domain, 0 if context is None else len(context)), self.base_of(len(domain)), context, name)

    def base_of(self, dim: int) -> Model:
        """The base density."""
        if self.base == "normal":
            return StandardNormal(dim)
        law, components = (StudentT(), 1) if self.base == "student" else (Normal(), self.components)
        return LawBase(dim, law, components=components, learned=True)

    @abc.abstractmethod
    def transform(self, domain: Domain, context: int) -> Transform:
        """T of a domain, with a condition of some width."""


class WhitenedConfig(FlowConfig, abc.ABC):
    """Flows that start as the best linear one: T = whitening o steps."""

    shrink: float = Field(0.1, ge=0, description="rows, per variable, that the whitening's start believes uncorrelated")

    def transform(self, domain: Domain, context: int) -> Transform:
        """The whitening stands at the data."""
        return Compose(*self.steps(len(domain), context), *self.last(domain))

    def last(self, domain: Domain) -> list[Transform]:
        """What stands before the data: whitening."""
        return [Triangular(len(domain), self.shrink)]

    @abc.abstractmethod
    def steps(self, dim: int, context: int) -> list[Transform]:
        """What stands between base and whitening, base first."""


class Paced(FlowConfig, abc.ABC):
    """Flows whose rows decide how long they learn; their weights are averaged, so that the learning rate need not fall."""

    learning_rate: float = Field(1e-3, gt=0)
    max_epochs: int = Field(75, ge=1, description="where not given, 75 but for few rows (600 steps at least) and many (10,000 at most)")

    def for_rows(self, n: int) -> GradientConfig:
        """What the number of rows decides where it was not given: the length of the run, and whether units are dropped."""
        steps = -(-n // self.batch_size)  # a pass
        chosen: dict[str, Any] = {"max_epochs": -(-max(_LEAST_STEPS, min(75 * steps, _MOST_STEPS)) // steps)}
        if "dropout" in type(self).model_fields and n >= _MANY:
            chosen["dropout"] = 0.0
        return self.model_copy(update={name: value for name, value in chosen.items() if name not in self.model_fields_set})


class PacedConfig(Paced, WhitenedConfig, abc.ABC):
    """Flows that start as the best linear one, and whose rows decide how long they learn."""


class AdditiveConfig(PacedConfig):
    """Options of `nice`."""

    cites: ClassVar[tuple[str, ...]] = (
        "@article{dinh2014nice, title={{NICE}: non-linear independent components estimation}, "
        "author={Dinh, Laurent and Krueger, David and Bengio, Yoshua}, journal={arXiv preprint arXiv:1410.8516}, year={2014}}",
    )
    space: ClassVar[dict[str, tuple[Any, ...]]] = {"layers": (2, 4, 8), "width": (32, 64, 128)}

    layers: int = Field(4, ge=1, le=256, description="additive couplings")
    width: int = Field(128, ge=1, le=2**14, description="hidden units of each of a net's layers")
    depth: int = Field(2, ge=1, le=32, description="hidden layers of a conditioner")
    dropout: float = Field(0.1, ge=0, lt=1, description=_DROPPED)

    def steps(self, dim: int, context: int) -> list[Transform]:
        """Shifts, and a scale of each variable at the base."""
        net = partial(MLP, widths=(self.width,) * self.depth, dropout=self.dropout)
        return [Stack(Pointwise(dim, Affine()), Couplings(dim, self.layers, Shift(), context=context, net=net))]


class NeuralSplineConfig(PacedConfig):
    """Options of `nsf`."""

    cites: ClassVar[tuple[str, ...]] = (
        "@inproceedings{durkan2019neural, title={Neural spline flows}, "
        "author={Durkan, Conor and Bekasov, Artur and Murray, Iain and Papamakarios, George}, "
        "booktitle={Advances in Neural Information Processing Systems}, year={2019}}",
    )
    space: ClassVar[dict[str, tuple[Any, ...]]] = {"layers": (2, 4, 8), "width": (32, 64, 128), "dropout": (0.0, 0.1, 0.3)}

    layers: int = Field(4, ge=1, le=256, description="steps: each couples both halves, and mixes all variables linearly")
    width: int = Field(64, ge=1, le=2**14, description="hidden units of a conditioner")
    blocks: int = Field(2, ge=1, le=32, description="residual blocks of a conditioner")
    bins: int = Field(8, ge=2, le=128, description="bins of a spline")
    waves: int = Field(0, ge=0, le=12, description="sines and cosines of what steers, an octave each: for densities with sharp edges")
    dropout: float = Field(0.1, ge=0, lt=1, description=_DROPPED)

    def steps(self, dim: int, context: int) -> list[Transform]:
        """Spline couplings and LU layers."""
        net = partial(ResidualMLP, width=self.width, blocks=self.blocks, dropout=self.dropout, waves=Waves(self.waves, _BOUND))
        spline = RationalQuadratic(self.bins, _BOUND)
        parts: list[Upright] = []
        for _ in range(self.layers):
            parts += [LU(dim), Couplings(dim, 2, spline, context=context, net=net)]
        return [Stack(*parts)]


class AutoregressiveConfig(PacedConfig, abc.ABC):
    """Options of the flows that go variable by variable."""

    layers: int = Field(5, ge=1, le=256, description="autoregressive steps")
    width: int = Field(128, ge=1, le=2**14, description="hidden units of each of a net's layers")
    order: Literal["alternating", "columns"] | tuple[str, ...] = Field(
        "alternating",
        description="of the variables: every other step backwards; or in all steps that of the columns, or the columns named here "
        "first: then p of those that come first, and p given them, are exact",
    )

    def last(self, domain: Domain) -> list[Transform]:
        """Whitening, and the columns from their places in the order."""
        names = () if isinstance(self.order, str) else self.order
        first = [domain.index(name) for name in names]
        if len(set(first)) < len(first):
            raise OptionError(f"an order names a column once, got {', '.join(names)}")
        order = [*first, *(d for d in range(len(domain)) if d not in first)]
        return [*super().last(domain), *([Permutation([order.index(d) for d in range(len(domain))])] if first else [])]

    def _autoregressive(self, dim: int, context: int, **options: Any) -> list[Autoregressive]:  # noqa: ANN401
        turning = self.order == "alternating"
        return [Autoregressive(dim, context=context, backwards=turning and k % 2 == 1, **options) for k in range(self.layers)]


class MaskedAutoregressiveConfig(AutoregressiveConfig):
    """Options of `maf`."""

    cites: ClassVar[tuple[str, ...]] = (
        "@inproceedings{papamakarios2017masked, title={Masked autoregressive flow for density estimation}, "
        "author={Papamakarios, George and Pavlakou, Theo and Murray, Iain}, "
        "booktitle={Advances in Neural Information Processing Systems}, year={2017}}",
    )
    space: ClassVar[dict[str, tuple[Any, ...]]] = {"layers": (3, 5, 10), "width": (64, 128, 256)}

    def steps(self, dim: int, context: int) -> list[Transform]:
        """Affine maps."""
        return [Stack(*self._autoregressive(dim, context, widths=(self.width,) * 2))]


class InverseAutoregressiveConfig(AutoregressiveConfig):
    """Options of `iaf`: sampling, and the density of what was sampled, cost one pass; the density of data costs D, in learning too."""

    cites: ClassVar[tuple[str, ...]] = (
        "@inproceedings{kingma2016improving, title={Improved variational inference with inverse autoregressive flow}, "
        "author={Kingma, Diederik P. and Salimans, Tim and Jozefowicz, Rafal and Chen, Xi and Sutskever, Ilya and Welling, Max}, "
        "booktitle={Advances in Neural Information Processing Systems}, year={2016}}",
    )
    space: ClassVar[dict[str, tuple[Any, ...]]] = {"layers": (1, 2, 4), "width": (32, 64, 128)}

    layers: int = Field(2, ge=1, le=256, description="autoregressive steps")
    width: int = Field(64, ge=1, le=2**14, description="hidden units of each of a net's layers")

    def steps(self, dim: int, context: int) -> list[Transform]:
        """Affine maps, turned round."""
        return [Inverse(part) for part in self._autoregressive(dim, context, widths=(self.width,) * 2)]


class NeuralSplineAutoregressiveConfig(AutoregressiveConfig):
    """Options of `nsf-ar`."""

    cites: ClassVar[tuple[str, ...]] = NeuralSplineConfig.cites
    space: ClassVar[dict[str, tuple[Any, ...]]] = {"layers": (2, 3, 5), "width": (64, 128, 256)}

    layers: int = Field(3, ge=1, le=256, description="autoregressive steps")
    bins: int = Field(8, ge=2, le=128, description="bins of a spline")
    blocks: int = Field(1, ge=0, le=32, description="residual blocks of a net")

    def steps(self, dim: int, context: int) -> list[Transform]:
        """Splines, residual nets."""
        widths = (self.width,) * (1 + 2 * self.blocks)
        return [Stack(*self._autoregressive(dim, context, monotone=RationalQuadratic(self.bins, _BOUND), widths=widths, residual=True))]
