"""Very deep variational auto-encoders of images: many levels of latents, coarse to fine, on one path of residual blocks.

What the model draws and what q draws walk down the same path, block by block: its state h after the blocks above is all that
p(z_l | z_>l) knows, and q(z_l | x, z_>l) sees it beside what a convolutional net made of the image at that resolution.
"""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from pofx.distributions.choose import default_law
from pofx.distributions.columns import Columns
from pofx.domain import Domain
from pofx.errors import OptionError
from pofx.models.base import SKIPS, Takes
from pofx.models.images import ImageConfig
from pofx.models.latent.decoder import Decoding, PixelHeads
from pofx.models.latent.generative import Generative, Links
from pofx.models.latent.inference import FARTHEST, Draws, Inference, Partial, hedged
from pofx.models.latent.laws import Diagonal, Drawn, Steered
from pofx.models.latent.learning import ObjectiveConfig
from pofx.models.latent.priors import Prior, StandardNormal
from pofx.models.latent.vae import VAE
from pofx.nets.convolutional import Bottleneck
from pofx.nets.features import location_and_scale
from pofx.objectives.elbo import Levels
from pofx.types import Generator

Sides = tuple[int, int]
Choose = Callable[[int, Tensor, Steered | None], Tensor]  # from a level, the state it sees and its law (None at the top) to its z
_GENTLE = 0.3  # deviation of q's means in the beginning: the row is heard through the noise, and the KL is small still
_SMALLEST = 4  # longer side of the last resolution before 1, where none are given


class Scale(NamedTuple):
    """Blocks at one resolution.

    Args:
        sides: (H, W) of the state.
        blocks: how many there are.
    """

    sides: Sides
    blocks: int


def scales_of(image: Sides, blocks: str | None) -> tuple[Scale, ...]:
    """What a string such as "28x2,14x3,7x3,4x2,1x1" says: resolution x number of levels, from the image's own resolution up to the top.

    A resolution is that of the longer side; the shorter one keeps the proportion, rounded up. Without a string the
    resolution is halved down to 4, and then 1; two levels each.

    Raises:
        OptionError: the first resolution is not the image's, or one is not smaller than that before it.
    """
    longer = max(image)
    counts = _usual(longer) if blocks is None else counts_of(blocks)
    if (first := counts[0][0]) != longer:
        raise OptionError(f"blocks={blocks!r} begin at resolution {first}, but the longer side of the image has {longer} pixels")
    for (below, _), (above, _) in pairwise(counts):
        if above >= below:
            raise OptionError(f"blocks={blocks!r} go from the image's resolution up to a coarser one each time, got {above} after {below}")
    return tuple(Scale((-(-image[0] * r // longer), -(-image[1] * r // longer)), n) for r, n in counts)


def counts_of(blocks: str) -> list[tuple[int, int]]:
    """The pairs (resolution, number of levels) of a string.

    Raises:
        ValueError: it is none.
    """
    parts = [re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,2})", part.strip()) for part in blocks.split(",")]
    for part, found in zip(blocks.split(","), parts, strict=True):
        if found is None:
            raise ValueError(f"{part!r} is not RESOLUTIONxLEVELS, two numbers of 1 and more as in 8x4")
    return [(int(found[1]), int(found[2])) for found in parts if found]


def _usual(longer: int) -> list[tuple[int, int]]:
    resolutions = [longer]
    while resolutions[-1] > _SMALLEST:
        resolutions.append(-(-resolutions[-1] // 2))
    return [(r, 2) for r in (*resolutions, *([1] if resolutions[-1] > 1 else []))]


class Law(Bottleneck):
    """What steers a normal law of z, and more channels f that nothing is steered by: v -> ((m, log s), f).

    Args:
        inputs: channels of v.
        inner: channels in the middle.
        latents: channels of z.
        sides: (H, W).
        more: channels of f.
        scale: of the last layer in the beginning.
        dropout: share of the last inner units dropped while training.
    """

    def __init__(
        self, inputs: int, inner: int, latents: int, sides: Sides, *, more: int = 0, scale: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__(inputs, inner, 2 * latents + more, sides, scale, dropout=dropout)
        self.split = (2 * latents, more)
        self.law = Diagonal(latents * math.prod(sides))

    def at(self, v: Tensor, shape: Sequence[int]) -> tuple[Steered, Tensor]:
        """The law, batched (*shape), and f, for v (prod(shape), inputs, H, W)."""
        steering, f = self(v).split(self.split, dim=1)
        return self.law(steering.reshape(*shape, -1)), f


class Block(nn.Module):
    """h' = h + V z, h'' = h' + R(h'): how a level's z is taken into the state h. The last layers are scaled by 1 / sqrt(number of blocks).

    Args:
        sides: (H, W) of h.
        width: channels of h.
        inner: channels in the middle of R.
        latents: channels of z.
        blocks: how many there are.
        dropout: share of R's last inner units dropped while training.
    """

    def __init__(self, sides: Sides, width: int, inner: int, latents: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.shape = (latents, *sides)
        self.enter = nn.Conv2d(latents, width, 1)
        self.rest = Bottleneck(width, inner, width, sides, blocks**-0.5, dropout=dropout)
        with torch.no_grad():
            self.enter.weight.mul_(blocks**-0.5)
        nn.init.zeros_(self.enter.bias)  # type: ignore[arg-type]

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """State (N, width, H, W) and z (*batch, L) of N numbers -> state."""
        h = h + self.enter(z.reshape(-1, *self.shape))
        after: Tensor = h + self.rest(h)
        return after


class TopDown(Links):
    """The path: a state h that starts at the top resolution, takes in one level after the other, and grows to the image's.

        p(z_l | z_>l) = N(m, diag s^2),   (m, log s), f = P_l(h)
        h <- h + f + V_l z_l,             h <- h + R_l(h)

    The last layer of each P_l is zero in the beginning: every level starts at N(0, I). h is enlarged by nearest neighbours, and
    a number for each channel and pixel is added on entering a resolution. As V and R are scaled by 1 / sqrt(blocks), the variance of h is
    that of a few blocks, however many there are.

    Source: Child, "Very deep VAEs generalize autoregressive models and can outperform them on images", ICLR 2021, arXiv:2011.10650.

    Args:
        scales: resolutions and their blocks, the image's first.
        width: channels of h.
        inner: channels in the middle of a net.
        latents: channels of each z.
        dropout: share of each net's last inner units dropped while training.
    """

    def __init__(self, scales: Sequence[Scale], width: int, inner: int, latents: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.scales, self.width, self.inner, self.latents, self.dropout = tuple(scales), width, inner, latents, dropout
        self.scale_of = [i for i, scale in enumerate(scales) for _ in range(scale.blocks)]  # of each level
        sides = [scales[i].sides for i in self.scale_of]
        self.priors: Sequence[Law] = nn.ModuleList(  # type: ignore[assignment]
            Law(width, inner, latents, at, more=width, scale=0.0, dropout=dropout) for at in sides[:-1]
        )
        self.blocks: Sequence[Block] = nn.ModuleList(  # type: ignore[assignment]
            Block(at, width, inner, latents, len(sides), dropout) for at in sides
        )
        self.places: Sequence[Tensor] = nn.ParameterList(  # type: ignore[assignment]
            nn.Parameter(torch.zeros(width, *scale.sides)) for scale in scales
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Width of every level but the top one."""
        return tuple(prior.law.latents for prior in self.priors)

    @property
    def top(self) -> int:
        """Width of the top level."""
        return math.prod(self.blocks[-1].shape)

    def walk(self, shape: Sequence[int], choose: Choose, *, down_to: int = 0) -> Tensor:
        """The state (prod(shape), width, H, W) after all blocks, or after that of a level, where `choose` gives each z (*shape, L)."""
        h = self.places[-1].expand(math.prod(shape), -1, -1, -1)
        for level in range(len(self.blocks) - 1, down_to - 1, -1):
            seen = self._entered(h, level)
            law, h = (None, seen) if level == len(self.priors) else self._law(level, seen, shape)
            h = self.blocks[level](h, choose(level, seen, law))
        return h

    def __getitem__(self, level: int) -> Callable[[Levels], Steered]:
        """From the levels above one to its law; costs the walk down to there."""

        def law(above: Levels) -> Steered:
            shape = above[0].shape[:-1]
            h = self.walk(shape, lambda at, seen, law: above[at - level - 1], down_to=level + 1)
            return self._law(level, self._entered(h, level), shape)[0]

        return law

    def laws(self, latents: Levels) -> tuple[Steered, ...]:
        """All on one walk."""
        found: dict[int, Steered] = {}

        def choose(level: int, seen: Tensor, law: Steered | None) -> Tensor:
            if law is not None:
                found[level] = law
            return latents[level]

        self.walk(latents[0].shape[:-1], choose)
        return tuple(found[level] for level in range(len(self.priors)))

    def draw(self, top: Tensor, *, generator: Generator = None) -> Levels:
        """All on one walk."""
        shape, drawn = tuple(top.shape[:-1]), dict[int, Tensor]()

        def choose(level: int, seen: Tensor, law: Steered | None) -> Tensor:
            drawn[level] = top if law is None else law.draw(shape, generator=generator).z
            return drawn[level]

        self.walk(shape, choose)
        return tuple(drawn[level] for level in range(len(self.blocks)))

    def _law(self, level: int, seen: Tensor, shape: Sequence[int]) -> tuple[Steered, Tensor]:
        """p(z | seen), and the state that z is added to."""
        law, f = self.priors[level].at(seen, shape)
        return law, seen + f

    def _entered(self, h: Tensor, level: int) -> Tensor:
        """The state at the resolution of a level."""
        scale = self.scale_of[level]
        if level == len(self.priors) or scale == self.scale_of[level + 1]:
            return h
        return interpolate(h, self.scales[scale].sides) + self.places[scale]


class DeepDecoder(Decoding):
    """The parameters of the pixels' laws from the state at the end of the path.

    Args:
        path: the path; it is a part of the links, and only walked here.
        heads: what reads the state.
    """

    def __init__(self, path: TopDown, heads: PixelHeads) -> None:
        super().__init__()
        self._path = (path,)  # in a tuple, or a module would become a part
        self.heads: PixelHeads = heads

    @property
    def values(self) -> int:
        """A few states of the image's size, and the parameters."""
        path = self._path[0]
        return 4 * path.width * math.prod(path.scales[0].sides) + self.columns.width

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """(*batch, L), all levels side by side, -> (*batch, P). There are no conditions."""
        path, shape = self._path[0], z.shape[:-1]
        latents = z.split((*path.sizes, path.top), dim=-1)
        parameters: Tensor = self.heads(path.walk(shape, lambda level, seen, law: latents[level]))
        return parameters.view(*shape, -1)

    def marginal(self, keep: Sequence[int]) -> "DeepDecoder":
        """The same path with the heads of some pixels."""
        return DeepDecoder(self._path[0], self.heads.marginal(keep))


class _Step(NamedTuple):
    """A level on the way down: what was drawn, from q, and the law p that it had by the model."""

    drawn: Drawn
    q: Steered
    p: Steered | Prior

    @property
    def kl(self) -> Tensor | None:
        """KL(q || p), (N,): the mean over the draws of the levels above."""
        kl = self.q.kl(self.p)
        return kl if kl is None else kl.mean(0)


class DeepEncoder(Inference):
    """q(z | x) = prod_l q(z_l | a(x), h_l), h_l the state of the model's own path when it comes to level l.

    a(x) are the states of a bottom-up net, one for each resolution: residual blocks, as many as there are levels, and means over cells on
    the way to the next. Numbers enter standardised and no further than 3 deviations out, levels by their codes, missing cells
    as 0 and marked in channels whose weights start at zero: they stay there until rows with missing cells are learned from.

    `propose` mixes in the prior where cells are missing, as `Encoder` does. log q shares the path with the model, so there
    is no doubly reparameterised gradient. Its `Draws` do not say log q elsewhere: a row at another one's draws costs a walk for each pair.

    Args:
        path: the model's.
        channels: of an image.
    """

    location: Tensor
    scale: Tensor

    def __init__(self, path: TopDown, channels: int) -> None:
        super().__init__()
        self._path = (path,)  # in a tuple, or a module would become a part
        width, inner, many = path.width, path.inner, len(path.blocks)
        self.shape = (channels, *path.scales[0].sides)
        self.register_buffer("location", torch.zeros(math.prod(self.shape)))
        self.register_buffer("scale", torch.ones(math.prod(self.shape)))
        self.first, self.lacking = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(channels, width, 3, padding=1, bias=False)
        nn.init.zeros_(self.lacking.weight)
        sides = [path.scales[i].sides for i in path.scale_of]
        self.up: Sequence[Bottleneck] = nn.ModuleList(  # type: ignore[assignment]
            Bottleneck(width, inner, width, at, many**-0.5, dropout=path.dropout) for at in sides
        )
        self.laws: Sequence[Law] = nn.ModuleList(
            Law(2 * width, inner, path.latents, at, scale=_GENTLE, dropout=path.dropout) for at in sides
        )  # type: ignore[assignment]

    def initialise(self, x: Tensor) -> None:
        """Take means and scales from rows x (N, D)."""
        mean, scale = location_and_scale(x)
        self.location.copy_(mean)
        self.scale.copy_(scale)

    def draw(self, model: Generative, x: Tensor, c: Tensor | None, draws: int, *, generator: Generator = None) -> Draws:
        """Each level given those above, on one walk, with the closed form of each KL given those above."""
        shape, seen = (draws, len(x)), self.see(x)
        steps: dict[int, _Step] = {}

        def choose(level: int, h: Tensor, p: Steered | None) -> Tensor:
            q = self._law(level, h, seen, shape)
            steps[level] = _Step(q.draw(shape, generator=generator), q, model.prior if p is None else p)
            return steps[level].drawn.z

        h = self._path[0].walk(shape, choose)
        levels = [steps[level] for level in range(len(steps))]
        return Draws(
            tuple(step.drawn.z for step in levels),
            log_q=lambda: tuple(step.drawn.log_prob() for step in levels),
            kl=tuple(step.kl for step in levels),
            log_prior=lambda: tuple(step.p.log_prob(step.drawn.z) for step in levels),
            parameters=lambda: model.decoder.heads(h).view(*shape, -1),
        )

    def propose(self, model: Generative, x: Tensor, c: Tensor | None, draws: int, *, generator: Generator = None) -> Draws:
        """Draws from (1 - u/2) q + (u/2) p, u the share of missing cells of the row."""
        drawn = self.draw(model, x, c, draws, generator=generator)
        half_u = 0.5 * x.isnan().to(x).mean(-1)
        if not bool(half_u.any()):
            return drawn
        return hedged(drawn._replace(density=partial(self.log_prob, self.see(x))), model, half_u, generator)

    def mean(self, model: Generative, x: Tensor, c: Tensor | None) -> Levels:
        """The mean of each level given those above, the top first."""
        seen, means = self.see(x), dict[int, Tensor]()

        def choose(level: int, h: Tensor, p: Steered | None) -> Tensor:
            means[level] = self._law(level, h, seen, (len(x),)).mean
            return means[level]

        self._path[0].walk((len(x),), choose)
        return tuple(means[level] for level in range(len(self.laws)))

    def log_prob(self, seen: Sequence[Tensor], latents: Levels) -> Levels:
        """log q of each level at any z, (K, N)."""
        shape, found = latents[0].shape[:-1], dict[int, Tensor]()

        def choose(level: int, h: Tensor, p: Steered | None) -> Tensor:
            found[level] = self._law(level, h, seen, shape).log_prob(latents[level])
            return latents[level]

        self._path[0].walk(shape, choose)
        return tuple(found[level] for level in range(len(latents)))

    def marginal(self, keep: Sequence[int]) -> Inference:
        """Shown NaN for every other pixel."""
        return Partial(self, keep, math.prod(self.shape))

    def see(self, x: Tensor) -> list[Tensor]:
        """What a(x) says of rows (N, D) at each resolution, the image's first: (N, width, H, W)."""
        lacking = x.isnan()
        standard = ((x - self.location) / self.scale).clamp(-FARTHEST, FARTHEST).masked_fill(lacking, 0.0)
        h = self.first(standard.view(-1, *self.shape)) + self.lacking(lacking.to(x).view(-1, *self.shape))
        path, states = self._path[0], list[Tensor]()
        for at, block in zip(path.scale_of, self.up, strict=True):
            if at == len(states):
                h = adaptive_avg_pool2d(h, path.scales[at].sides)
                states.append(h)
            states[at] = h = h + block(h)
        return states

    def _law(self, level: int, h: Tensor, seen: Sequence[Tensor], shape: Sequence[int]) -> Steered:
        a = seen[self._path[0].scale_of[level]]
        return self.laws[level].at(torch.cat((h, a.repeat(len(h) // max(1, len(a)), 1, 1, 1)), dim=1), shape)[0]


class DeepConfig(ObjectiveConfig, ImageConfig):
    """Options of the very deep variational auto-encoder."""

    takes = Takes.SCALED
    images: ClassVar[bool] = True
    cites: ClassVar[tuple[str, ...]] = (
        "@inproceedings{child2021very, title={Very deep {VAE}s generalize autoregressive models and can outperform them on images}, "
        "author={Child, Rewon}, booktitle={International Conference on Learning Representations}, year={2021}}",
    )
    space: ClassVar[dict[str, tuple[Any, ...]]] = {"width": (16, 32, 64), "latents": (2, 4, 8), "learning_rate": (1e-3, 3e-3, 5e-3)}

    blocks: str | None = Field(
        None,
        max_length=256,
        description="resolution x number of levels there, from the image's resolution up to the top, such as 28x2,14x3,7x3,4x2,1x1; "
        "None: halved down to 4, then 1, two levels each",
    )
    width: int = Field(32, ge=1, le=2**12, description="channels of the state")
    inner: int | None = Field(None, ge=1, le=2**12, description="channels in the middle of a residual block; None: half of width")
    latents: int = Field(4, ge=1, le=2**12, description="channels of z at each level")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of each net's last inner units dropped while training")
    tilts: int = Field(4, ge=0, description="cosines that tilt a count's probabilities; 0: a free logit for every value")
    draws: int = Field(64, ge=1, description="draws of q behind a log_prob, an imputation or a completion")
    learning_rate: float = Field(3e-3, gt=0)
    batch_size: int = Field(64, ge=1)
    max_epochs: int = Field(100, ge=1)
    patience: int = Field(30, ge=1, description="epochs without a better held-out loss before stopping")
    skip_above: float | None = Field(8.0, gt=1, description=SKIPS)
    ema: float | None = Field(0.99, gt=0, lt=1, description="decay of the weights' moving average; None: no average")

    @field_validator("blocks")
    @classmethod
    def _are_blocks(cls, blocks: str | None) -> str | None:
        if blocks is not None:
            counts_of(blocks)
        return blocks

    def _build(self, domain: Domain, context: Domain | None) -> VAE:
        """The untrained model."""
        channels, *sides = shape = self.picture(domain)
        scales, inner = scales_of((sides[0], sides[1]), self.blocks), self.inner or max(1, self.width // 2)
        path = TopDown(scales, self.width, inner, self.latents, dropout=self.dropout)
        columns = Columns([default_law(v) for v in domain.variables])
        decoder = DeepDecoder(path, PixelHeads(columns, range(len(domain)), shape, self.width, self.tilts))
        generative = Generative(StandardNormal(path.top), decoder, path)
        encoder = DeepEncoder(path, channels)
        return VAE(generative, encoder, domain, draws=self.draws, objective=self._learning(), loss_draws=self.loss_draws)
