"""Transformers that are told the time, or the level of noise: over the patches of an image, and over the variables of a table."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, layer_norm, pad, pixel_shuffle, pixel_unshuffle, scaled_dot_product_attention, silu

from pofx.errors import OptionError
from pofx.nets.timed import Told

_WIDER = 4  # inner units of a block for each of its width
_APART = 0.5  # deviation of what tells places and variables apart, in the beginning


def attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None, *, fused: bool) -> Tensor:
    """softmax(q k^T / sqrt(E)) v over the tokens that are seen; (N, heads, T, E) each, seen (N, T), all when not given.

    Args:
        q: what each token asks for.
        k: what each token offers.
        v: what it gives.
        seen: which tokens are looked at; one at least in each row.
        fused: by torch's kernel, which holds no T x T numbers, but has no second derivatives, none forward, and none batched, which a
            density along an ODE asks for.
    """
    mask = None if seen is None else seen[:, None, None]
    if fused:
        return scaled_dot_product_attention(q, k, v, mask)
    logits = (q / math.sqrt(q.shape[-1])) @ k.mT
    return (logits if mask is None else logits.masked_fill(~mask, -math.inf)).softmax(-1) @ v


def exacting(net: nn.Module) -> bool:
    """Whether more than first derivatives may be asked of a pass: those that are recorded while the net does not train."""
    return not net.training and torch.is_grad_enabled()


class TransformerBlock(nn.Module):
    """h + g_1 W attention(Q m_1, K m_1, V m_1), and of this h + g_2 B silu(A m_2), m_i = (1 + a_i) norm(h) + b_i, norm over the width.

    a, b and g are linear in e and start at zero: a block starts as the identity.

    Cost: of T tokens, T (12 width^2 + 2 T width) products and 6 width^2 of e, one way.

    Source: Peebles and Xie, "Scalable diffusion models with transformers", ICCV 2023, arXiv:2212.09748, the block adaLN-Zero.

    Args:
        width: of a token, and of e.
        heads: of attention; they divide the width.
        dropout: share of the inner units dropped while training.

    Raises:
        OptionError: heads that do not divide the width.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise OptionError(f"heads must divide the width, got {heads} heads and a width of {width}")
        self.heads, self.dropout = heads, dropout
        self.time = _zero(nn.Linear(width, 6 * width))
        self.into, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, _WIDER * width), nn.Linear(_WIDER * width, width)

    def forward(self, h: Tensor, e: Tensor, seen: Tensor | None = None) -> Tensor:
        """h (N, T, width), e (N, width), seen (N, T): which tokens are looked at, all when not given -> (N, T, width)."""
        a_1, b_1, g_1, a_2, b_2, g_2 = self.time(e)[:, None].chunk(6, -1)
        h = torch.addcmul(h, g_1, self.out(self._attention(_modulated(h, a_1, b_1), seen)))
        within = silu(self.inner(_modulated(h, a_2, b_2)))
        return torch.addcmul(h, g_2, self.outer(dropout(within, self.dropout, self.training)))

    def _attention(self, m: Tensor, seen: Tensor | None) -> Tensor:
        q, k, v = self.into(m).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()  # (N, heads, T, width / heads)
        return attention(q, k, v, seen, fused=not exacting(self)).transpose(1, 2).flatten(2)


class Trunk(nn.Module):
    """e = silu(e(u) + C c), h_k = block_k(h_k-1, e), and the result (1 + a(e)) norm(h_K) + b(e).

    Args:
        context: width of c; 0 for none.
        width: of a token.
        blocks: K.
        heads: of attention; they divide the width.
        dropout: share of a block's inner units dropped while training.

    Raises:
        OptionError: heads that do not divide the width.
    """

    def __init__(self, context: int, width: int, blocks: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.told = Told(width, context)
        self.blocks: list[TransformerBlock] = nn.ModuleList(  # type: ignore[assignment]
            TransformerBlock(width, heads, dropout) for _ in range(blocks)
        )
        self.end = _zero(nn.Linear(width, 2 * width))

    def forward(self, h: Tensor, u: Tensor, c: Tensor | None, seen: Tensor | None = None) -> Tensor:
        """h (N, T, width), u (N, 1), c (N, context), seen (N, T) -> (N, T, width)."""
        e = self.told(u, c)
        for block in self.blocks:
            h = block(h, e, seen)
        return _modulated(h, *self.end(e)[:, None].chunk(2, -1))


class PatchTransformer(nn.Module):
    """Squares of `patch` x `patch` pixels are tokens: each sees those beside it once, then looks at all others in every block.

    The first layer is a convolution by 3 x 3 squares, to which each square's learned place is added. The last one looks at each square
    alone, and starts at zero. Sides that the patch does not divide are filled up with zeros on the right and below.

    Cost: a pass costs H W / patch^2 tokens of a `TransformerBlock` for each block. The width holds all that is said of a patch: one much
    narrower than the outputs of a patch, outputs patch^2, holds back what the net knows. Of few images, or in short training, a `UNet`
    learns more.

    Source: Peebles and Xie, "Scalable diffusion models with transformers", ICCV 2023, arXiv:2212.09748; the convolution is ours.

    Args:
        inputs: channels of v.
        outputs: channels of the result.
        sides: height H and width W, in pixels.
        context: width of c; 0 for none.
        patch: side of the squares, in pixels.
        width: of a token.
        blocks: how many.
        heads: of attention; they divide the width.
        dropout: share of a block's inner units dropped while training.

    Raises:
        OptionError: heads that do not divide the width, or a patch below 1.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        sides: tuple[int, int],
        context: int = 0,
        *,
        patch: int = 2,
        width: int = 128,
        blocks: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if patch < 1:
            raise OptionError(f"a patch has a side of 1 or more, got {patch}")
        self.patch, self.sides = patch, sides
        self.padding = tuple(-side % patch for side in sides)
        self.squares = [-(-side // patch) for side in sides]
        self.first = nn.Conv2d(inputs * patch**2, width, 3, padding=1)
        self.place = nn.Parameter(_APART * torch.randn(self.squares[0] * self.squares[1], width))
        self.trunk = Trunk(context, width, blocks, heads, dropout)
        self.last = _zero(nn.Linear(width, outputs * patch**2))

    def forward(self, v: Tensor, u: Tensor, c: Tensor | None = None) -> Tensor:
        """v (N, inputs, H, W), u (N, 1), c (N, context) -> (N, outputs, H, W)."""
        squares = pixel_unshuffle(pad(v, (0, self.padding[1], 0, self.padding[0])), self.patch)
        h = self.trunk(self.first(squares).flatten(2).transpose(1, 2) + self.place, u, c)
        out = self.last(h).transpose(1, 2).unflatten(2, self.squares)
        return pixel_shuffle(out, self.patch)[..., : self.sides[0], : self.sides[1]]


class VariableTransformer(nn.Module):
    """Variables are tokens: h_d = A_d v_d + i_d + (g if given) + (m if absent), then blocks, then out_d = B_d h_d + b_d.

    A_d, i_d, B_d and b_d are each variable's own; B and b start at zero. The blocks are the same for all. A variable is noised, given as it
    is, or absent. What is absent is not looked at, not even by itself: its coordinates may hold anything, and its outputs say what the
    others know of it. So one net answers p(any part | any other part), of parameters and data of a simulator also.

    Cost: a pass costs D tokens of a `TransformerBlock` for each block. A_d and B_d are filled up to the widest variable: among a hundred
    numbers, one variable of a thousand levels makes it cost what a hundred of them would.

    Source: Gloeckler et al., "All-in-one simulation-based inference", ICML 2024, arXiv:2404.09636. Here every token looks at all that are
    not absent, whatever is known of which variable depends on which; that the absent are told apart, and answer, is ours.

    Args:
        widths: coordinates of each variable.
        outputs: numbers out of each variable.
        context: width of c; 0 for none.
        width: of a token.
        blocks: how many.
        heads: of attention; they divide the width.
        dropout: share of a block's inner units dropped while training.

    Raises:
        OptionError: heads that do not divide the width, or widths and outputs that are not as many, none, or below 1.
    """

    taken: Tensor
    put: Tensor

    def __init__(
        self,
        widths: Sequence[int],
        outputs: Sequence[int],
        context: int = 0,
        *,
        width: int = 64,
        blocks: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not widths or len(widths) != len(outputs) or min(*widths, *outputs) < 1:
            raise OptionError(f"each variable has one coordinate and one output or more, got {list(widths)} and {list(outputs)}")
        count, most = len(widths), max(widths)
        self.register_buffer("taken", _squared(widths, sum(widths)), persistent=False)
        put = [d * max(outputs) + k for d, size in enumerate(outputs) for k in range(size)]  # as numbers: files are opened on no device
        self.register_buffer("put", torch.tensor(put), persistent=False)
        scale = torch.tensor(widths, dtype=torch.get_default_dtype()).rsqrt()[:, None, None]
        self.into = nn.Parameter(scale * torch.randn(count, most, width))
        self.identity = nn.Parameter(_APART * torch.randn(count, width))
        self.state = nn.Parameter(_APART * torch.randn(2, width))
        self.trunk = Trunk(context, width, blocks, heads, dropout)
        self.out = nn.Parameter(torch.zeros(count, width, max(outputs)))
        self.bias = nn.Parameter(torch.zeros(sum(outputs)))

    def forward(self, v: Tensor, given: Tensor, absent: Tensor, u: Tensor, c: Tensor | None = None) -> Tensor:
        """v (N, sum of widths), given and absent (N, D) of 0 and 1, u (N, 1), c (N, context) -> (N, sum of outputs).

        Coordinates and outputs stand variable by variable.
        """
        seen = absent == 0
        own = pad(v, (0, 1))[:, self.taken].masked_fill(~seen[..., None], 0.0)  # (N, D, most)
        states = torch.stack((given, absent), -1).to(v) @ self.state
        h = torch.einsum("ndk,dkw->ndw", own, self.into) + self.identity + states
        h = self.trunk(h, u, c, seen | ~seen.any(1, keepdim=True))  # where all are absent, attention needs something to look at
        return torch.einsum("ndw,dwk->ndk", h, self.out).flatten(1)[:, self.put] + self.bias


def _modulated(h: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(1 + a) norm(h) + b."""
    return torch.addcmul(b, layer_norm(h, h.shape[-1:]), 1 + a)


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _squared(sizes: Sequence[int], filler: int) -> Tensor:
    """Where the numbers of each variable stand in a row of all, (D, most); the filler where it has no more."""
    row = torch.full((len(sizes), max(sizes)), filler)
    start = 0
    for d, size in enumerate(sizes):
        row[d, :size] = torch.arange(start, start + size)
        start += size
    return row
