"""Convolutional nets over images, (N, channels, H, W)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, relu


class ResidualCNN(nn.Module):
    """h_0 = W_0 * v + E c + P, h_k = h_k-1 + B_k relu(A_k * relu(h_k-1)), out = W * relu(h_K); the last layer starts at zero.

    * is a convolution by 3 x 3, B_k one by 1 x 1, each with a bias. P has a number for each pixel and channel of h: a net that is the same
    everywhere can not know that the middle of an image differs from its rim. The condition is the same for every pixel.

    Args:
        inputs: channels of v.
        outputs: channels of the result.
        sides: height and width.
        context: width of c; 0 for none.
        width: channels of h.
        blocks: K.
        dropout: share of a block's inner units dropped while training.
    """

    def __init__(
        self, inputs: int, outputs: int, sides: tuple[int, int], context: int = 0, *, width: int = 32, blocks: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(inputs, width, 3, padding=1), nn.Conv2d(width, outputs, 3, padding=1)
        self.place = nn.Parameter(torch.zeros(width, *sides))
        self.embed = nn.Linear(context, width, bias=False) if context else None
        self.blocks: list[tuple[nn.Conv2d, nn.Conv2d]] = nn.ModuleList(  # type: ignore[assignment]
            nn.ModuleList((nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1))) for _ in range(blocks)
        )
        self.dropout = dropout
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, v: Tensor, c: Tensor | None = None) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        h = self.first(v) + self.place
        if self.embed is not None and c is not None:
            h = h + self.embed(c)[..., None, None]
        for inner, outer in self.blocks:
            h = h + outer(dropout(relu(inner(relu(h))), self.dropout, self.training))
        return self.last(relu(h))


class Bottleneck(nn.Module):
    """C_4 g(C_3 g(C_2 g(C_1 g(v)))): 1 x 1 squeezes the channels, 3 x 3 looks around twice, 1 x 1 widens again; g = gelu.

    On sides of 1 or 2 there is little to look at: all four are by 1 x 1.

    Args:
        inputs: channels of v.
        inner: channels of the middle.
        outputs: channels of the result.
        sides: height and width.
        scale: deviation of the result in the beginning, over that of g(v): weights start as He's, so that inner units keep theirs.
        dropout: share of the last inner units dropped while training.
    """

    def __init__(self, inputs: int, inner: int, outputs: int, sides: tuple[int, int], scale: float = 1.0, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        size = 3 if max(sides) > 2 else 1
        self.squeeze, self.widen = nn.Conv2d(inputs, inner, 1), nn.Conv2d(inner, outputs, 1)
        self.look: list[nn.Conv2d] = nn.ModuleList(  # type: ignore[assignment]
            nn.Conv2d(inner, inner, size, padding=size // 2) for _ in range(2)
        )
        for layer in (self.squeeze, *self.look, self.widen):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.widen.weight.mul_(scale)

    def forward(self, v: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        h = self.squeeze(gelu(v))
        for look in self.look:
            h = look(gelu(h))
        return self.widen(dropout(gelu(h), self.dropout, self.training))
