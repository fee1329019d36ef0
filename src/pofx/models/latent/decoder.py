"""The decoder: from z to the parameters of one law a variable."""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pofx.distributions.base import Law
from pofx.distributions.columns import Columns
from pofx.distributions.discrete import Categorical
from pofx.nets.mlp import MLP


@dataclass(frozen=True)
class _Block:
    """The variables that share a law: which they are, and what each takes from the network."""

    law: Law
    at: tuple[int, ...]
    outputs: int  # fewer than law.width where the law is tilted

    @property
    def size(self) -> int:
        return len(self.at) * self.outputs

    @property
    def tilted(self) -> bool:
        return self.outputs < self.law.width


class Decoding(nn.Module, abc.ABC):
    """h(z, c): from z to the parameters of the laws, whatever the network; `heads` are its last layer."""

    heads: "LawHeads"

    @property
    @abc.abstractmethod
    def values(self) -> int:
        """How many numbers a z takes on its way, roughly: what decides how many are decoded at once."""

    @abc.abstractmethod
    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """The parameters of the laws, (*batch, P), for z (*batch, L) and conditions c (..., C)."""

    @abc.abstractmethod
    def marginal(self, keep: Sequence[int]) -> "Decoding":
        """The same network with the heads of some variables."""

    @property
    def columns(self) -> Columns:
        """The laws of x."""
        return self.heads.columns


class LawHeads(nn.Module, abc.ABC):
    """Parameters of the laws: b + T a(h), a linear in hidden units h.

    b starts at the weighted maximum likelihood of each law alone and a at zero, so that learning begins at
    the independent model, whatever the units and spread of the data are.

    T is the identity but for counts with many values. There a free logit for each value would have to learn
    that 4 is between 3 and 5; instead the base probabilities are *tilted* smoothly,
    log p(v | h) = b_v + sum_r a_r(h) cos(pi r (v + 1/2) / V) + const, r = 1 ... tilts:
    b keeps whatever shape the marginal has (spikes, gaps), and h moves mass along the scale.

    Args:
        columns: the laws.
        tilts: cosines for each count; 0: every value has a logit of its own.
    """

    def __init__(self, columns: Columns, tilts: int) -> None:
        super().__init__()
        self.columns = columns
        self.tilts = tilts
        self._blocks = _blocks(columns, tilts)
        self._tilted = any(block.tilted for block in self._blocks)
        self.bias = nn.Parameter(torch.zeros(columns.width))
        for i, block in enumerate(self._blocks):
            self.register_buffer(f"tilt{i}", _cosines(block) if block.tilted else None, persistent=False)

    def initialise(self, x: Tensor) -> None:
        """Fit each law alone to rows x (N, D)."""
        fitted = self.columns.fit(x, x.new_ones(len(x), 1))[0]
        with torch.no_grad():
            self.bias.copy_(fitted)

    def _tilt(self, i: int, outputs: Tensor) -> Tensor:
        cosines = getattr(self, f"tilt{i}")
        return outputs if cosines is None else (outputs.unflatten(-1, (-1, len(cosines))) @ cosines).flatten(-2)


class Heads(LawHeads):
    """a = W h, all variables from the same hidden units.

    Args:
        columns: the laws.
        inputs: how many hidden units.
        tilts: see `LawHeads`.
    """

    def __init__(self, columns: Columns, inputs: int, tilts: int = 4) -> None:
        super().__init__(columns, tilts)
        self.weight = nn.Parameter(torch.zeros(sum(b.size for b in self._blocks), inputs))

    def forward(self, h: Tensor) -> Tensor:
        """(*batch, inputs) -> (*batch, width of the columns)."""
        if not self._tilted:
            return functional.linear(h, self.weight, self.bias)
        outputs = functional.linear(h, self.weight).split([b.size for b in self._blocks], dim=-1)
        return torch.cat([self._tilt(i, o) for i, o in enumerate(outputs)], dim=-1) + self.bias

    def marginal(self, keep: Sequence[int]) -> "Heads":
        """The heads of some variables, in the order given; the numbers are copies."""
        columns, positions = self.columns.select(keep)
        heads = Heads(columns, self.weight.shape[1], self.tilts).to(self.weight)
        begins = _begins(self._blocks)
        rows = [begins[keep[i]] + j for b in heads._blocks for i in b.at for j in range(b.outputs)]
        with torch.no_grad():
            heads.bias.copy_(self.bias[positions])
            heads.weight.copy_(self.weight[rows])
        return heads


class PixelHeads(LawHeads):
    """a = W_c h_ij for the law of channel c at pixel (i, j): a convolution by 1 x 1, one for each law that pixels have.

    Args:
        columns: the laws.
        places: where in the image (C, H, W), flat, each of them stands.
        shape: (C, H, W).
        inputs: channels of h.
        tilts: see `LawHeads`.
    """

    def __init__(self, columns: Columns, places: Sequence[int], shape: tuple[int, int, int], inputs: int, tilts: int = 4) -> None:
        super().__init__(columns, tilts)
        self.places, self.shape = tuple(places), shape
        weights = (nn.Parameter(torch.zeros(shape[0], block.outputs, inputs)) for block in self._blocks)
        self.weights = nn.ParameterList(weights)
        for i, block in enumerate(self._blocks):
            self.register_buffer(f"at{i}", torch.tensor([places[d] for d in block.at], dtype=torch.long), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, width of the columns)."""
        each = (torch.einsum("nip,coi->ncpo", h.flatten(2), w).flatten(1, 2) for w in self.weights)
        own = (outputs.index_select(1, getattr(self, f"at{i}")).flatten(1) for i, outputs in enumerate(each))
        return torch.cat([self._tilt(i, outputs) for i, outputs in enumerate(own)], dim=-1) + self.bias

    def marginal(self, keep: Sequence[int]) -> "PixelHeads":
        """The heads of some variables, in the order given; the numbers are copies."""
        columns, positions = self.columns.select(keep)
        heads = PixelHeads(columns, [self.places[d] for d in keep], self.shape, self.weights[0].shape[-1], self.tilts).to(self.bias)
        own = {block.law: weight for block, weight in zip(self._blocks, self.weights, strict=True)}
        with torch.no_grad():
            heads.bias.copy_(self.bias[positions])
            for block, weight in zip(heads._blocks, heads.weights, strict=True):
                weight.copy_(own[block.law])
        return heads


class Decoder(Decoding):
    """h(z, c): an MLP whose last layer are the `Heads`.

    Args:
        latents: width of z.
        columns: the laws of x.
        context: width of c.
        widths: hidden widths; () makes the parameters affine in z.
        dropout: share of hidden units dropped while training.
        tilts: see `Heads`.
        gated: whether the conditions scale what z gives to the first hidden units, see `Gated`, or only shift them.
    """

    def __init__(
        self,
        latents: int,
        columns: Columns,
        *,
        context: int = 0,
        widths: tuple[int, ...] = (256, 256),
        dropout: float = 0.0,
        tilts: int = 4,
        gated: bool = False,
    ) -> None:
        super().__init__()
        inputs = latents + context
        layers = [*MLP(inputs, widths[-1], widths[:-1], zero_last=False, dropout=dropout), *activation(dropout)] if widths else []
        self.trunk = nn.Sequential(*layers)
        if gated and widths:
            self.trunk[0] = Gated(latents, context, widths[0])
        self.heads: Heads = Heads(columns, widths[-1] if widths else inputs, tilts)

    @property
    def values(self) -> int:
        """Hidden units and parameters."""
        return self.heads.columns.width + self.heads.weight.shape[1]

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """The parameters of the laws, (*batch, P), for z (*batch, L) and conditions c (..., C)."""
        v = conditioned(z, c)
        # As one matrix: on more dimensions every linear map would fold and unfold, and so would its gradient.
        parameters: Tensor = self.heads(self.trunk(v.reshape(-1, v.shape[-1])))
        return parameters.view(*v.shape[:-1], -1)

    def marginal(self, keep: Sequence[int]) -> "Decoder":
        """The same network with the heads of some variables."""
        part = Decoder.__new__(Decoder)
        nn.Module.__init__(part)
        part.trunk, part.heads = self.trunk, self.heads.marginal(keep)
        return part


class Gated(nn.Linear):
    """h(z, c) = (1 + G c) * W z + U c + b, * unit by unit, of z and c side by side: c scales what z does as well as shifting it.

    With c one-hot every class has its own spread of x around its own mean; an affine map of (z, c) gives all classes one spread.
    G starts at zero, where the two are the same.

    Source: Perez et al., "FiLM: visual reasoning with a general conditioning layer", AAAI 2018, arXiv:1709.07871, Eq. 2.

    Args:
        latents: width of z.
        context: width of c.
        outputs: width of h.
    """

    def __init__(self, latents: int, context: int, outputs: int) -> None:
        super().__init__(latents + context, outputs)
        self.latents = latents
        self.gain = nn.Parameter(torch.zeros(outputs, context))

    def forward(self, v: Tensor) -> Tensor:
        """(*batch, latents + context) -> (*batch, outputs)."""
        z, c = v[..., : self.latents], v[..., self.latents :]
        w_z = functional.linear(z, self.weight[:, : self.latents])
        return torch.addcmul(functional.linear(c, self.weight[:, self.latents :], self.bias) + w_z, functional.linear(c, self.gain), w_z)


def activation(dropout: float) -> list[nn.Module]:
    """What follows a hidden linear map."""
    return [nn.SiLU(), nn.Dropout(dropout)] if dropout else [nn.SiLU()]


def conditioned(v: Tensor, c: Tensor | None) -> Tensor:
    """The vectors v (*batch, V) with the conditions c (..., C) appended."""
    return v if c is None else torch.cat((v, c.expand(*v.shape[:-1], c.shape[-1])), dim=-1)


def _blocks(columns: Columns, tilts: int) -> list[_Block]:
    """In the order `Columns` gives parameters: equal laws together, as they first appear."""
    laws = columns.laws
    return [_Block(law, tuple(d for d, other in enumerate(laws) if other == law), _outputs(law, tilts)) for law in dict.fromkeys(laws)]


def _outputs(law: Law, tilts: int) -> int:
    ordered = isinstance(law, Categorical) and law.numbers
    return tilts if ordered and 0 < tilts < law.width - 1 else law.width


def _begins(blocks: list[_Block]) -> dict[int, int]:
    """Where the outputs of each variable begin."""
    order = [(d, b.outputs) for b in blocks for d in b.at]
    ends = torch.tensor([n for _, n in order]).cumsum(0).tolist()
    return {d: end - n for (d, n), end in zip(order, ends, strict=True)}


def _cosines(block: _Block) -> Tensor:
    """cos(pi r (v + 1/2) / V) of unit mean square, (tilts, V)."""
    r = torch.arange(1, block.outputs + 1)[:, None]
    v = torch.arange(block.law.width) + 0.5
    return math.sqrt(2.0) * torch.cos(math.pi * r * v / block.law.width)
