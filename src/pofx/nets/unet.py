"""The U-Net: an image is looked at from fine to coarse and back, told the time at every step."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, interpolate, pad, pixel_shuffle, pixel_unshuffle, silu

from pofx.nets.timed import Told
from pofx.nets.transformer import attention, exacting

_GROUPS = 8  # of channels that are normalised together
_HEAD = 32  # channels of an attention head


class UNet(nn.Module):
    """Residual blocks at each scale on the way down and on the way up, which hears what the way down saw at that scale.

    Pixels are first taken together in squares of `patch` x `patch` (space to depth): a patch of 2 makes it four times as fast. Each scale
    halves the sides; the coarsest has self-attention. A number for each channel and place is added at the start. The last layer looks at
    each place alone, and starts at zero.

    Source: Ronneberger, Fischer and Brox, "U-Net", MICCAI 2015, arXiv:1505.04597; with time and attention: Ho, Jain and Abbeel, "Denoising
    diffusion probabilistic models", NeurIPS 2020, arXiv:2006.11239.

    Args:
        inputs: channels of v.
        outputs: channels of the result.
        sides: height and width.
        context: width of c; 0 for none.
        widths: channels of each scale, the finest first.
        blocks: of a scale, each way.
        patch: side of the squares.
        dropout: share of a block's inner units dropped while training.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        sides: tuple[int, int],
        context: int = 0,
        *,
        widths: Sequence[int] = (32, 64),
        blocks: int = 1,
        patch: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch, self.sides = patch, sides
        self.padding = tuple(-side % patch for side in sides)
        squares = [-(-side // patch) for side in sides]
        told = 4 * widths[0]
        self.told = Told(told, context)
        self.first = nn.Conv2d(inputs * patch**2, widths[0], 3, padding=1)
        self.place = nn.Parameter(torch.zeros(widths[0], *squares))
        self.down: list[Stage] = nn.ModuleList(  # type: ignore[assignment]
            Stage(before, width, told, blocks, dropout) for before, width in zip((widths[0], *widths), widths, strict=False)
        )
        self.middle = Attention(widths[-1])
        self.up: list[Stage] = nn.ModuleList(  # type: ignore[assignment]
            Stage(after + width, width, told, blocks, dropout) for after, width in zip((*widths[1:], widths[-1]), widths, strict=True)
        )
        self.norm = _norm(widths[0])
        self.last = nn.Conv2d(widths[0], outputs * patch**2, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, v: Tensor, u: Tensor, c: Tensor | None = None) -> Tensor:
        """v (N, inputs, H, W), u (N, 1), c (N, context) -> (N, outputs, H, W)."""
        e = self.told(u, c)
        squares = pixel_unshuffle(pad(v, (0, self.padding[1], 0, self.padding[0])), self.patch)
        # Convolutions are quicker with channels last, of which torch's norms have no forward derivatives.
        h = self.first(squares if exacting(self) else squares.contiguous(memory_format=torch.channels_last)) + self.place
        seen = []
        for scale, stage in enumerate(self.down):
            h = stage(h if scale == 0 else _halved(h), e)
            seen.append(h)
        h = self.middle(h)
        for skip, stage in zip(reversed(seen), reversed(self.up), strict=True):
            h = h if h.shape[-2:] == skip.shape[-2:] else interpolate(h, skip.shape[-2:], mode="nearest")
            h = stage(torch.cat((h, skip), 1), e)
        return pixel_shuffle(self.last(silu(self.norm(h))), self.patch)[..., : self.sides[0], : self.sides[1]]


class Stage(nn.Module):
    """The blocks of a scale, the first of which changes the number of channels."""

    def __init__(self, inputs: int, width: int, told: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.blocks: list[TimedConvolutions] = nn.ModuleList(  # type: ignore[assignment]
            TimedConvolutions(inputs if k == 0 else width, width, told, dropout) for k in range(blocks)
        )

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, width, H, W)."""
        for block in self.blocks:
            h = block(h, e)
        return h


class TimedConvolutions(nn.Module):
    """S h + B * silu((1 + a(e)) norm(A * silu(norm(h))) + b(e)), * by 3 x 3; S is the identity where channels stay as many."""

    def __init__(self, inputs: int, width: int, told: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norms: list[nn.GroupNorm] = nn.ModuleList((_norm(inputs), _norm(width)))  # type: ignore[assignment]
        self.inner, self.outer = nn.Conv2d(inputs, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Identity() if inputs == width else nn.Conv2d(inputs, width, 1)
        self.time = nn.Linear(told, 2 * width)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """(N, inputs, H, W), (N, told) -> (N, width, H, W)."""
        scale, shift = self.time(e)[..., None, None].chunk(2, 1)
        within = torch.addcmul(shift, self.norms[1](self.inner(silu(self.norms[0](h)))), 1 + scale)
        after: Tensor = self.skip(h) + self.outer(dropout(silu(within), self.dropout, self.training))
        return after


class Attention(nn.Module):
    """h + W attention(Q n, K n, V n), n = norm(h), over places.

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(k for k in range(1, max(1, width // _HEAD) + 1) if width % k == 0)
        self.norm, self.into, self.out = _norm(width), nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, h: Tensor) -> Tensor:
        """(N, width, H, W) -> the same."""
        n, width, height, wide = h.shape
        parts = self.into(self.norm(h)).view(n, 3, self.heads, width // self.heads, height * wide).transpose(-1, -2)
        seen = attention(*parts.unbind(1), fused=not exacting(self)).transpose(-1, -2).reshape(h.shape)
        after: Tensor = h + self.out(seen)
        return after


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS if width % _GROUPS == 0 else 1, width)


def _halved(h: Tensor) -> Tensor:
    """Sides halved, rounded up."""
    return interpolate(h, [-(-side // 2) for side in h.shape[-2:]], mode="area")
