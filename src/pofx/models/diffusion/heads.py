"""Where noise is added: the coordinates of each variable, and what a network's outputs say about them.

A real variable is a coordinate. One of finitely many values has, for each value v, a place V_v among the coordinates: on a line where
values are ordered, at the corners of a simplex where they are not. Given y = V_x + s eps its law is known up to what else the row says:
with network outputs a_v,

    p(x = v | y) proportional to exp(a_v + b_v - |y - V_v|^2 / (2 s^2)),   D = sum_v p(x = v | y) V_v,

exact in the noise of its own coordinates, whatever the network has learned. So a network of zeros with b_v = log p(x = v) is the law of
independent variables, and its bound is their entropy.

Of many ordered values, as the 256 of a pixel, a_v = sum_k o_k T_k(z_v) with polynomials of Chebyshev and z_v from -1 to 1: 32 outputs for
256, and the first and the last value, where data often are, still stand alone.

Source: Kingma, Salimans, Poole and Ho, "Variational diffusion models", NeurIPS 2021, arXiv:2107.00630, for values as places on a line.
"""

import abc
import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pofx.domain import Domain, Variable, VariableKind
from pofx.models.diffusion.path import Prediction
from pofx.nets.features import location_and_scale
from pofx.types import NatsPerVariable, X

Coordinates = Float[Tensor, "*batch E"]
_APART = 6.0  # deviations of noise between two values that are told apart
_NARROWEST = 8.0  # times the deviation of values on a line, at least, is their range: a column that hardly varies is not stretched
_SMOOTHING = 0.5  # rows that every value is believed to have had
_KEPT = 2**20  # numbers of a piece
_FREE = 32  # ordered values with an output each; more of them share as many


class Head(nn.Module, abc.ABC):
    """Variables of a sort.

    Args:
        at: which they are.
        widths: coordinates of each.
        outputs: of the network for all of them.
    """

    def __init__(self, at: Sequence[int], widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.at, self.widths, self.outputs = list(at), list(widths), outputs
        together = self.at == list(range(at[0], at[0] + len(at)))
        self.columns = slice(at[0], at[0] + len(at)) if together else self.at  # a slice copies nothing

    @property
    def width(self) -> int:
        """Coordinates of all."""
        return sum(self.widths)

    @abc.abstractmethod
    def initialise(self, x: X) -> None:
        """Take units and frequencies from rows (N, n), NaN = unobserved."""

    @abc.abstractmethod
    def finest(self, x_0: Coordinates) -> float:
        """The level of noise below which nothing more is to be learned, for rows of its coordinates."""

    @abc.abstractmethod
    def embed(self, x: X) -> Coordinates:
        """x_0 (N, width) of rows (N, n); any finite numbers where x is NaN."""

    @abc.abstractmethod
    def denoised(self, out: Tensor, y: Coordinates, s: Tensor) -> Coordinates:
        """D(y, s) of the network's outputs (N, outputs)."""

    @abc.abstractmethod
    def log_prob(self, out: Tensor, y: Coordinates, s: Tensor, x: X) -> NatsPerVariable:
        """log p(x | y) of the decoder at the last level, (N, n); its mean over the noise where that is known."""

    @abc.abstractmethod
    def log_seen(self, out: Tensor, y: Coordinates, s: Tensor, x: X) -> NatsPerVariable:
        """log p(x | y) at any level, as the network has it, (N, n)."""

    @abc.abstractmethod
    def read(self, x_0: Coordinates) -> X:
        """The x nearest to x_0, (N, n)."""


class Reals(Head):
    """x_0 = (x - mean) / deviation; the decoder is N(x_0; y, s^2).

    Args:
        at: which variables.
        prediction: what the network predicts.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, at: Sequence[int], prediction: Prediction) -> None:
        super().__init__(at, [1] * len(at), len(at))
        self.prediction = prediction
        self.register_buffer("mean", torch.zeros(len(at)))
        self.register_buffer("scale", torch.ones(len(at)))

    def initialise(self, x: X) -> None:  # noqa: D102
        mean, scale = location_and_scale(x)
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def finest(self, x_0: Coordinates) -> float:
        """A share of the median distance from a row to its nearest neighbour, for each coordinate."""
        return nearest(x_0)

    def embed(self, x: X) -> Coordinates:  # noqa: D102
        return (x - self.mean) / self.scale

    def denoised(self, out: Tensor, y: Coordinates, s: Tensor) -> Coordinates:  # noqa: D102
        return self.prediction.denoised(out, y, s)

    def log_prob(self, out: Tensor, y: Coordinates, s: Tensor, x: X) -> NatsPerVariable:
        """E log N(x_0; y, s^2) = -(ln 2 pi s^2 + 1) / 2, in the units of x."""
        return (-0.5 * (2 * math.pi * s.square()).log() - 0.5 - self.scale.log()).expand(x.shape)

    def log_seen(self, out: Tensor, y: Coordinates, s: Tensor, x: X) -> NatsPerVariable:
        """log N(x_0; D, s^2 / (1 + s^2)), in the units of x: what is left of unit variance where all is normal."""
        variance = s.square() / (1 + s.square())
        missed = self.embed(x) - self.denoised(out, y, s)
        return -0.5 * (missed.square() / variance + (2 * math.pi * variance).log()) - self.scale.log()

    def read(self, x_0: Coordinates) -> X:  # noqa: D102
        return x_0 * self.scale + self.mean


class Finite(Head):
    """What variables of finitely many values share: a (N, n, K), padded to the greatest K, and b.

    Args:
        at: which variables.
        variables: they themselves.
        widths: coordinates of each.
        free: outputs for each at most: beyond, a is a polynomial of the value. None: as many as values.
    """

    first: Tensor
    bias: Tensor
    absent: Tensor
    basis: Tensor | None

    def __init__(self, at: Sequence[int], variables: Sequence[Variable], widths: Sequence[int], free: int | None = None) -> None:
        counts = [v.cardinality or 0 for v in variables]
        values = max(counts)
        outputs = min(values, free or values)
        super().__init__(at, widths, len(at) * outputs)
        self.values = values
        self.register_buffer("basis", chebyshev(values, outputs) if outputs < values else None, persistent=False)
        first = [v.lower if v.kind is VariableKind.COUNT else 0.0 for v in variables]
        self.register_buffer("first", torch.tensor(first), persistent=False)
        self.register_buffer("absent", torch.arange(self.values) >= torch.tensor(counts)[:, None], persistent=False)
        self.bias = nn.Parameter(torch.zeros(len(at), self.values))

    def initialise(self, x: X) -> None:
        """b = log of the frequencies."""
        counts = torch.stack([(x == self.first + v).sum(0) for v in range(self.values)], 1) + _SMOOTHING
        counts = counts.masked_fill(self.absent, 0.0)
        with torch.no_grad():
            self.bias.copy_((counts / counts.sum(1, keepdim=True)).clamp_min(1e-12).log())

    def odds(self, out: Tensor, y: Coordinates, s: Tensor) -> Tensor:
        """log p(x = v | y) up to what all values share, (N, n, K)."""
        a = out.unflatten(-1, (len(self.at), -1))
        a = a if self.basis is None else a @ self.basis
        return self.heard(a + self.bias.masked_fill(self.absent, -math.inf), y, s)

    def log_prob(self, out: Tensor, y: Coordinates, s: Tensor, x: X) -> NatsPerVariable:
        """log p(x = v | y)."""
        code = (x - self.first).nan_to_num(0.0)
        inside = (code >= 0) & (code < (~self.absent).sum(1)) & (code == code.round())
        at = torch.where(inside, code, 0.0).long()[..., None]
        return torch.where(inside, self.odds(out, y, s).log_softmax(-1).gather(-1, at)[..., 0], -math.inf)

    def log_seen(self, out: Tensor, y: Coordinates, s: Tensor, x: X) -> NatsPerVariable:
        """log p(x = v | y)."""
        return self.log_prob(out, y, s, x)

    @abc.abstractmethod
    def heard(self, a: Tensor, y: Coordinates, s: Tensor) -> Tensor:
        """a - |y - V_v|^2 / (2 s^2), up to what all values share, (N, n, K)."""


class Ordered(Finite):
    """Values in order, at places on a line: V_v = (v - mean) / scale.

    Args:
        at: which variables.
        variables: they themselves.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, at: Sequence[int], variables: Sequence[Variable]) -> None:
        super().__init__(at, variables, [1] * len(at), _FREE)
        self.register_buffer("mean", torch.zeros(len(at)))
        self.register_buffer("scale", torch.ones(len(at)))

    def initialise(self, x: X) -> None:  # noqa: D102
        super().initialise(x)
        mean, scale = location_and_scale(x)
        most = (~self.absent).sum(1) - 1.0
        self.mean.copy_(mean)
        self.scale.copy_(scale.to(self.mean).maximum(most.clamp_min(1.0) / _NARROWEST))

    def finest(self, x_0: Coordinates) -> float:
        """At which neighbours are told apart."""
        return float((1 / self.scale).min()) / _APART

    def embed(self, x: X) -> Coordinates:  # noqa: D102
        return (x - self.mean) / self.scale

    @property
    def places(self) -> Tensor:
        """V, (n, K)."""
        value = self.first[:, None] + torch.arange(self.values, device=self.first.device)
        return (value - self.mean[:, None]) / self.scale[:, None]

    def heard(self, a: Tensor, y: Coordinates, s: Tensor) -> Tensor:
        """See `Finite`: -(y - V_v)^2 / (2 s^2) is added."""
        z = (y[..., None] - self.places) * (1 / s[..., None])
        return torch.addcmul(a, z, z, value=-0.5)

    def denoised(self, out: Tensor, y: Coordinates, s: Tensor) -> Coordinates:
        """Few rows at once on a CPU: numbers of each value of each pixel in pieces that its allocator keeps from step to step."""
        rows = max(1, _KEPT // self.bias.numel() if y.device.type == "cpu" else len(y))
        pieces = [part.split(rows) for part in (out, y, s.expand(len(y), 1))]
        return torch.cat([self._denoised(*piece) for piece in zip(*pieces, strict=True)])

    def _denoised(self, out: Tensor, y: Coordinates, s: Tensor) -> Coordinates:
        return torch.einsum("...nk,nk->...n", self.odds(out, y, s).softmax(-1), self.places)

    def read(self, x_0: Coordinates) -> X:  # noqa: D102
        last = self.first + (~self.absent).sum(1) - 1
        return (x_0 * self.scale + self.mean).round().maximum(self.first).minimum(last)


class Unordered(Finite):
    """Levels, at the corners of a simplex: V_v = sqrt(K) (e_v - frequencies), K coordinates each.

    Args:
        at: which variables.
        variables: they themselves.
    """

    centre: Tensor
    position: Tensor
    size: Tensor

    def __init__(self, at: Sequence[int], variables: Sequence[Variable]) -> None:
        counts = [v.cardinality or 0 for v in variables]
        super().__init__(at, variables, counts)
        owner = [(i, v) for i, k in enumerate(counts) for v in range(k)]
        self.register_buffer("position", torch.tensor([i * self.values + v for i, v in owner]), persistent=False)
        self.register_buffer("size", torch.tensor([math.sqrt(k) for k in counts]), persistent=False)
        self.register_buffer("centre", torch.zeros(len(at), self.values))

    def initialise(self, x: X) -> None:  # noqa: D102
        super().initialise(x)
        self.centre.copy_(self.bias.detach().softmax(-1).masked_fill(self.absent, 0.0))

    def finest(self, x_0: Coordinates) -> float:
        """At which two corners are told apart."""
        return float(self.size.min()) * math.sqrt(2) / _APART

    def embed(self, x: X) -> Coordinates:  # noqa: D102
        corner = (x[..., None] == torch.arange(self.values, device=x.device)).to(self.centre)
        return self._flat(self.size[:, None] * (corner - self.centre))

    def heard(self, a: Tensor, y: Coordinates, s: Tensor) -> Tensor:
        """See `Finite`: (sqrt(K) y_v + K frequency_v) / s^2 is added, which is what of the square is not shared."""
        return a + self.size[:, None] * (self._square(y) + self.size[:, None] * self.centre) / s[..., None].square()

    def denoised(self, out: Tensor, y: Coordinates, s: Tensor) -> Coordinates:  # noqa: D102
        return self._flat(self.size[:, None] * (self.odds(out, y, s).softmax(-1) - self.centre))

    def read(self, x_0: Coordinates) -> X:  # noqa: D102
        corner = self._square(x_0) + self.size[:, None] * self.centre
        return corner.masked_fill(self.absent, -math.inf).argmax(-1).to(x_0)

    def _flat(self, square: Tensor) -> Tensor:
        return square.flatten(-2)[..., self.position]

    def _square(self, flat: Tensor) -> Tensor:
        whole = flat.new_zeros(*flat.shape[:-1], self.absent.numel())
        whole[..., self.position] = flat
        return whole.view(*flat.shape[:-1], *self.absent.shape)


class Heads(nn.Module):
    """All variables of a domain: reals, ordered and unordered ones, each sort at once.

    Coordinates stand sort by sort, and so do the network's outputs.

    Args:
        domain: what x is.
        prediction: what the network predicts of reals.
    """

    order: Tensor
    place: Tensor
    owner: Tensor

    def __init__(self, domain: Domain, prediction: Prediction) -> None:
        super().__init__()
        sorts: dict[str, list[int]] = {"reals": [], "ordered": [], "unordered": []}
        for d, v in enumerate(domain.variables):
            sorts["reals" if v.cardinality is None else "unordered" if v.kind is VariableKind.CATEGORICAL else "ordered"].append(d)
        chosen = {sort: [domain.variables[d] for d in at] for sort, at in sorts.items()}
        parts: list[Head] = [Reals(sorts["reals"], prediction)] if sorts["reals"] else []
        parts += [Ordered(sorts["ordered"], chosen["ordered"])] if sorts["ordered"] else []
        parts += [Unordered(sorts["unordered"], chosen["unordered"])] if sorts["unordered"] else []
        self.parts: list[Head] = nn.ModuleList(parts)  # type: ignore[assignment]
        self.outputs, self.width = [p.outputs for p in parts], sum(p.width for p in parts)
        order = [d for part in parts for d in part.at]
        owner = [d for part in parts for d, w in zip(part.at, part.widths, strict=True) for _ in range(w)]
        self.plain = owner == list(range(len(domain)))  # a coordinate for each variable, in their order
        self.register_buffer("order", torch.tensor(order), persistent=False)  # the variable of each column of the parts
        self.register_buffer("place", torch.tensor(order).argsort(), persistent=False)  # and the other way round
        self.register_buffer("owner", torch.tensor(owner), persistent=False)  # the variable of each coordinate

    def initialise(self, x: X) -> None:
        """Take units and frequencies from rows (N, D)."""
        for part in self.parts:
            part.initialise(x[:, part.columns])

    def finest(self, x_0: Coordinates) -> float:
        """The least level that any part needs."""
        pieces = x_0.split([p.width for p in self.parts], -1)
        return min(part.finest(piece) for part, piece in zip(self.parts, pieces, strict=True))

    def embed(self, x: X) -> Coordinates:
        """x_0 (N, E); 0 where x is NaN."""
        flat = torch.cat([part.embed(x[..., part.columns]) for part in self.parts], -1)
        return torch.where(self.of_coordinates(x.isnan()), 0.0, flat)

    def of_coordinates(self, flags: Tensor) -> Tensor:
        """(..., E) of flags of variables (..., D)."""
        return flags if self.plain else flags[..., self.owner]

    def _of_variables(self, sorted_: Tensor) -> Tensor:
        """(..., D) in the order of the domain, of columns sort by sort."""
        return sorted_ if self.plain else sorted_[..., self.place]

    def denoised(self, out: Tensor, y: Coordinates, s: Tensor) -> Coordinates:
        """D(y, s), (N, E)."""
        return torch.cat([part.denoised(a, own, s) for part, a, own in self._pieces(out, y)], -1)

    def log_prob(self, out: Tensor, y: Coordinates, s: Tensor, x: X) -> NatsPerVariable:
        """log p(x_d | y) of the decoder, (N, D)."""
        return self._of_variables(torch.cat([part.log_prob(a, own, s, x[..., part.columns]) for part, a, own in self._pieces(out, y)], -1))

    def log_seen(self, out: Tensor, y: Coordinates, s: Tensor, x: X) -> NatsPerVariable:
        """log p(x_d | y) at any level, (N, D)."""
        return self._of_variables(torch.cat([part.log_seen(a, own, s, x[..., part.columns]) for part, a, own in self._pieces(out, y)], -1))

    def _pieces(self, out: Tensor, y: Coordinates) -> Iterator[tuple[Head, Tensor, Tensor]]:
        """Each part with its outputs and coordinates."""
        return zip(self.parts, out.split(self.outputs, -1), y.split([p.width for p in self.parts], -1), strict=True)

    def read(self, x_0: Coordinates) -> X:
        """x (N, D)."""
        pieces = zip(self.parts, x_0.split([p.width for p in self.parts], -1), strict=True)
        return self._of_variables(torch.cat([part.read(piece) for part, piece in pieces], -1))

    @property
    def real(self) -> bool:
        """Whether every variable is real."""
        return all(isinstance(part, Reals) for part in self.parts)


def chebyshev(values: int, count: int) -> Tensor:
    """T_1 ... T_count of places evenly from -1 to 1, (count, values): T_k(cos t) = cos k t, finest at both ends."""
    angle = torch.linspace(-1, 1, values).acos()
    return (torch.arange(1, count + 1)[:, None] * angle).cos()


_SHARE, _MOST_ROWS = 0.2, 2000
_FINEST, _COARSEST = 2e-3, 5e-2


def nearest(x_0: Coordinates) -> float:
    """A fifth of the median distance from a row to its nearest neighbour, for each coordinate; between 0.002 and 0.05 deviations.

    Below it there is one row in reach, and what could be learned is that row. Rows that stand twice are no neighbours.
    """
    some = x_0[:: -(-len(x_0) // _MOST_ROWS)]
    distance = torch.cdist(some, some)
    distance = distance.masked_fill_(distance < 1e-6, math.inf).min(1).values * (len(some) / len(x_0)) ** (1 / x_0.shape[1])
    distance = distance[distance.isfinite()]
    typical = float(distance.median()) / math.sqrt(x_0.shape[1]) if len(distance) else 1.0
    return min(_COARSEST, max(_FINEST, _SHARE * typical))
