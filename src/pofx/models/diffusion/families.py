"""The diffusion family: which parts it is made of, and by what options."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from pofx.domain import Domain
from pofx.errors import OptionError
from pofx.models.base import Takes, Widths
from pofx.models.diffusion.diffusion import Asking, Diffusion, Learning
from pofx.models.diffusion.heads import Heads
from pofx.models.diffusion.levels import AlongPath, Even, LevelLaw, LogNormal, Weight
from pofx.models.diffusion.path import Prediction, Target, path_of
from pofx.models.diffusion.views import PictureNet, TableNet, VariableNet
from pofx.models.images import ImageConfig
from pofx.nets.timed import TimedMLP
from pofx.nets.transformer import PatchTransformer, VariableTransformer
from pofx.nets.unet import UNet
from pofx.nets.waves import Waves
from pofx.samplers.denoising import SOLVERS

_LEAST_SIDE = 4  # of an image that is looked at by convolutions
_MOST_SIDE = 14  # of what is left when pixels are taken together in squares
_MLP_WIDTH, _TRANSFORMER_WIDTH, _MLP_BLOCKS, _TRANSFORMER_BLOCKS = 128, 64, 2, 4
_OF_PICTURES = {"batch_size": 64, "learning_rate": 3e-3, "masked": 0.25}  # where not given
_MANY = 3000  # rows, from which on no units are dropped
_LEAST_STEPS, _MOST_STEPS = 2000, 30_000


class DiffusionConfig(ImageConfig):
    """Options of `diffusion`."""

    takes = Takes.FINITE
    conditional = True
    cites = (
        "@inproceedings{ho2020denoising, title={Denoising diffusion probabilistic models}, "
        "author={Ho, Jonathan and Jain, Ajay and Abbeel, Pieter}, "
        "booktitle={Advances in Neural Information Processing Systems}, year={2020}}",
        "@inproceedings{song2021score, title={Score-based generative modeling through stochastic differential equations}, "
        "author={Song, Yang and Sohl-Dickstein, Jascha and Kingma, Diederik P. and Kumar, Abhishek and Ermon, Stefano and Poole, Ben}, "
        "booktitle={International Conference on Learning Representations}, year={2021}}",
        "@inproceedings{kingma2021variational, title={Variational diffusion models}, "
        "author={Kingma, Diederik P. and Salimans, Tim and Poole, Ben and Ho, Jonathan}, "
        "booktitle={Advances in Neural Information Processing Systems}, year={2021}}",
        "@inproceedings{karras2022elucidating, title={Elucidating the design space of diffusion-based generative models}, "
        "author={Karras, Tero and Aittala, Miika and Aila, Timo and Laine, Samuli}, "
        "booktitle={Advances in Neural Information Processing Systems}, year={2022}}",
    )
    space: ClassVar[dict[str, tuple[Any, ...]]] = {"width": (64, 128, 256), "blocks": (2, 4), "dropout": (0.0, 0.1, 0.3)}

    net: Literal["auto", "mlp", "unet", "transformer"] = Field(
        "auto",
        description="mlp of rows, unet of images, transformer of variables or patches; auto: unet where pixels are alike",
    )
    width: int | None = Field(None, ge=1, le=2**14, description="hidden units of an mlp or transformer; None: 128 and 64")
    attention_heads: int = Field(4, ge=1, le=256, description="of a transformer")
    channels: Widths = Field((32, 64), description="of a unet: those of each scale, the finest first")
    patch: int | None = Field(
        None, ge=1, le=64, description="of a unet: side of the squares of pixels taken as one; None: so that 14 are left"
    )
    blocks: int | None = Field(None, ge=1, le=64, description="residual blocks, of a unet at each scale; None: 2, 4 and 1")
    waves: int = Field(0, ge=0, le=12, description="of an mlp: sines and cosines of what it sees, an octave each: for sharp edges")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of units dropped while training; where not given, 0 from 3,000 rows on")
    path: Literal["vp", "cosine", "linear", "ve", "edm"] = Field(
        "vp", description="x_t = alpha x_0 + sigma eps: what v, flow and levels=path mean"
    )
    predict: Target = Field(Target.EDM, description="what the network says of a real variable")
    levels: Literal["adaptive", "even", "normal", "path"] = Field(
        "adaptive",
        description="ln s that are learned: as the parts of the loss are large, evenly, log-normally (EDM), at even times of the path",
    )
    weight: Weight = Field(Weight.BALANCED, description="what a level counts; held-out rows are judged by the bound, whatever is learned")
    s_min: float | None = Field(None, gt=0, description="the least noise, in deviations; None: from the data")
    s_max: float | None = Field(None, gt=0, description="the greatest noise; None: forgetting a row costs 0.01 nats")
    masked: float = Field(
        0.5, ge=0, le=1, description="share of training rows that show and hide cells, for conditionals; where not given, 0.25 of images"
    )
    dropped: float = Field(0.1, ge=0, lt=1, description="share of training rows without their condition, for guidance")
    solver: Literal[
        "dpm2m", "dpm2m-sde", "ddim", "ancestral", "euler-maruyama", "heun", "adams", "rk4", "predictor-corrector", "adaptive"
    ] = Field("dpm2m", description="the way from noise to a draw")
    steps: int = Field(20, ge=1, le=10_000, description="of the solver")
    guidance: float = Field(0.0, ge=0, le=100, description="w of D_c + w (D_c - D_0): draws follow the condition more than p does")
    likelihood: Literal["bound", "ode"] = Field("bound", description="log_prob: the bound, or that of the probability-flow ODE (reals)")
    draws: int = Field(64, ge=2, le=2**16, description="levels of a row's bound")
    bounded: int | None = Field(None, ge=1, le=10**6, description="steps of the ancestral sampler that is bounded; None: continuous")
    probes: int = Field(8, ge=2, le=4096, description="of the ODE's trace, where there are many coordinates")
    ode_steps: int = Field(32, ge=1, le=10_000, description="of order 4 along the ODE, for its likelihood and for codes")
    learning_rate: float = Field(6e-3, gt=0, description="where not given, 0.003 of images")
    batch_size: int = Field(256, ge=1, description="where not given, 64 of images")
    ema: float | None = Field(0.99, gt=0, lt=1, description="decay of the weights' moving average; None: no average")
    clip_norm: float | None = Field(50.0, gt=0, description="gradients are scaled down to this norm; None: never")
    final_rate: float = Field(0.02, gt=0, le=1, description="the last learning rate over the first; it falls geometrically over the run")
    max_epochs: int = Field(200, ge=1, description="where not given, 200 but for few rows (2,000 steps at least) and many (30,000 at most)")
    patience: int = Field(60, ge=1, description="epochs without a better held-out loss before stopping")

    @property
    def surrogate(self) -> bool:
        """One level a row is learned, and the bound judges."""
        return True

    def for_domain(self, domain: Domain) -> "DiffusionConfig":
        """Images are learned slowly, from few rows at a time."""
        chosen = _OF_PICTURES if self._is_of_pictures(self.shape_of(domain)) else {}
        return self.model_copy(update={name: value for name, value in chosen.items() if name not in self.model_fields_set})

    def for_rows(self, n: int) -> "DiffusionConfig":
        """How long it learns, and whether units are dropped, where that was not given."""
        passes = -(-n // self.batch_size)
        chosen: dict[str, Any] = {"max_epochs": -(-max(_LEAST_STEPS, min(200 * passes, _MOST_STEPS)) // passes)}
        if n >= _MANY:
            chosen["dropout"] = 0.0
        return self.model_copy(update={name: value for name, value in chosen.items() if name not in self.model_fields_set})

    def _build(self, domain: Domain, context: Domain | None) -> Diffusion:
        """The untrained model."""
        heads = Heads(domain, Prediction(self.predict, path_of(self.path)))
        if self.likelihood == "ode" and not heads.real:
            raise OptionError("likelihood='ode' is of real variables: these have levels or counts, whose likelihood is the bound")
        if self.s_min and self.s_max and self.s_min >= self.s_max:
            raise OptionError(f"noise goes from s_min up to s_max, got {self.s_min} and {self.s_max}")
        net = self._net(domain, heads, 0 if context is None else len(context) + 1)
        return Diffusion(domain, context, heads, net, self._learning(net), self._asking(), (self.s_min, self.s_max))

    def _is_of_pictures(self, shape: tuple[int, ...]) -> bool:
        """Whether rows are looked at as images where that can be chosen."""
        return self.net != "mlp" and len(shape) in (2, 3) and min(shape[-2:]) >= _LEAST_SIDE

    def _net(self, domain: Domain, heads: Heads, context: int) -> nn.Module:
        """As said; by the shape where nothing is said."""
        shape = self.shape_of(domain)
        alike = len(shape) in (2, 3) and heads.width == len(domain) and len(heads.parts) == 1
        if self.net == "unet" and not alike:
            raise OptionError(f"net='unet' is for images of pixels that are alike, got shape {shape}: take 'mlp'")
        if self.net == "unet" or (alike and self.net == "auto" and self._is_of_pictures(shape)):
            return self._of_pictures(partial(UNet, widths=self.channels, blocks=self.blocks or 1), self.picture(domain), heads, context)
        if self.net == "transformer" and alike:
            return self._of_pictures(partial(PatchTransformer, **self._transformer), self.picture(domain), heads, context)
        if self.net == "transformer":
            outputs = [w for part in heads.parts for w in [part.outputs // len(part.at)] * len(part.at)]
            widths = [2 * w for part in heads.parts for w in part.widths]
            return VariableNet(VariableTransformer(widths, outputs, context, dropout=self.dropout, **self._transformer), heads.order)
        told, waves = context + 2 * len(domain), Waves(self.waves)
        width, blocks = self.width or _MLP_WIDTH, self.blocks or _MLP_BLOCKS
        return TableNet(TimedMLP(2 * heads.width, sum(heads.outputs), told, width=width, blocks=blocks, dropout=self.dropout, waves=waves))

    @property
    def _transformer(self) -> dict[str, Any]:
        return {"width": self.width or _TRANSFORMER_WIDTH, "blocks": self.blocks or _TRANSFORMER_BLOCKS, "heads": self.attention_heads}

    def _of_pictures(self, net: Callable[..., nn.Module], shape: tuple[int, int, int], heads: Heads, context: int) -> PictureNet:
        """A network that sees pixels twice, noised or given, and two flags of each."""
        channels, *sides = shape
        outputs, patch = sum(heads.outputs) // math.prod(sides), self.patch or -(-max(sides) // _MOST_SIDE)
        return PictureNet(net(4 * channels, outputs, tuple(sides), context, patch=patch, dropout=self.dropout), shape)

    def _learning(self, net: nn.Module) -> Learning:
        return Learning(self._law(), self.weight, self.masked, self.dropped, net.shape if isinstance(net, PictureNet) else None)

    def _law(self) -> LevelLaw | None:
        match self.levels:
            case "adaptive":
                return None
            case "even":
                return Even()
            case "normal":
                return LogNormal()
            case "path":
                return AlongPath(path_of(self.path))

    def _asking(self) -> Asking:
        ode = self.likelihood == "ode"
        return Asking(SOLVERS[self.solver], self.steps, self.draws, self.bounded, ode, self.probes, self.ode_steps, self.guidance)
