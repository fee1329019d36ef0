"""Change of variables: x = T(u), forward = base -> data everywhere, with log|det J|.

A `Transform` is a bijection. A `Surjection` loses something on the way from base to data (a
fraction, an order); the way back is a random draw, and the density that comes out is a bound:

    log p(x) >= E_q(y|x) [log p(y) - log q(y | x)],   q(y | x) supported on {y : T(y) = x}.

Source: Nielsen, Jaini, Hoogeboom, Winther and Welling, "SurVAE Flows", NeurIPS 2020, arXiv:2007.02731.
"""

import abc
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from pofx.errors import Unavailable
from pofx.types import Context, Generator, Kind, Nats, X

Variables = Sequence[int]


class Transform(nn.Module, abc.ABC):
    """A bijection x = T(u; c) with log|det J_T|."""

    @property
    def kind(self) -> Kind:
        """What the log-determinant is: exact, or an estimate."""
        return Kind.EXACT

    @abc.abstractmethod
    def forward(self, u: X, c: Context | None = None) -> tuple[X, Nats]:
        """Base to data: x = T(u) and log|det J_T(u)|."""

    @abc.abstractmethod
    def inverse(self, x: X, c: Context | None = None) -> tuple[X, Nats]:
        """Data to base: u = T^-1(x) and log|det J_T^-1(x)|."""

    def estimated(self, x: X, c: Context | None = None, *, generator: Generator = None) -> tuple[X, Nats, Nats]:
        """Data to base, and the standard error of the log-determinant: 0 where it is exact."""
        u, log_det = self.inverse(x, c)
        return u, log_det, torch.zeros_like(log_det)

    def start(self, x: X, c: Context | None = None) -> None:
        """Set what depends on the data, from rows x (N, D) as they arrive here on their way to the base."""

    def behind(self, keep: Variables) -> Variables | None:
        """The variables of u that x_keep is a bijection of by itself, both in ascending order; None where there are none."""
        return None

    def select(self, keep: Sequence[int]) -> "Transform":
        """That bijection, x_keep = T'(u_behind(keep); c), with the numbers of this one.

        Raises:
            Unavailable: there is none.
        """
        raise Unavailable("map of some variables alone", type(self).__name__, "the others steer them")


Pass = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


class Upright(Transform):
    """A bijection that computes on upright tensors: variables first, the batch last, (D, N) and conditions (C, N).

    So what belongs to a variable lies in one piece of memory, halves of the variables are views, and sums over bins or weights run
    along whole rows. Parts that follow each other stand in one `Stack`, which turns the tensors once, not at every part.
    """

    @abc.abstractmethod
    def to_data(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (D, N) and log|det J_T|, (N,)."""

    @abc.abstractmethod
    def to_base(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """u (D, N) and log|det J_T^-1|, (N,)."""

    def forward(self, u: X, c: Context | None = None) -> tuple[X, Nats]:
        """Base to data."""
        return _upright(self.to_data, u, c)

    def inverse(self, x: X, c: Context | None = None) -> tuple[X, Nats]:
        """Data to base."""
        return _upright(self.to_base, x, c)


def _upright(ask: Pass, v: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
    """The answer for rows (*batch, D)."""
    batch = v.shape[:-1]
    if c is not None:
        c = c.expand(*batch, c.shape[-1]).reshape(-1, c.shape[-1]).T.contiguous()
    out, log_det = ask(v.reshape(-1, v.shape[-1]).T.contiguous(), c)
    return out.T.reshape(v.shape), log_det.reshape(batch)


class PerVariable(nn.Module, abc.ABC):
    """A map that treats each variable alone, so that a question about some passes through it.

    NaN stays NaN and counts 0 in every sum.
    """

    @abc.abstractmethod
    def select(self, keep: Sequence[int]) -> "PerVariable":
        """The map of some of the variables, in the order given."""


class Surjection(nn.Module, abc.ABC):
    """x = T(y), many y to one x; the way back is drawn from q(y | x)."""

    @abc.abstractmethod
    def forward(self, y: X) -> X:
        """Base to data: x = T(y)."""

    @abc.abstractmethod
    def lift(self, x: X, *, generator: Generator = None) -> tuple[X, Nats]:
        """Data to base: y ~ q(y | x) and -log q(y | x)."""


class Composition(Transform, abc.ABC):
    """T = T_K o ... o T_1, in the order given; the log-determinants add up.

    Args:
        *parts: T_1, ..., T_K.
    """

    def __init__(self, *parts: Transform) -> None:
        super().__init__()
        self.parts: Sequence[Any] = nn.ModuleList(parts)  # type: ignore[assignment]

    @property
    def kind(self) -> Kind:
        """The worst of the parts'."""
        return reduce(Kind.worst, (part.kind for part in self.parts), Kind.EXACT)

    @torch.no_grad()
    def start(self, x: X, c: Context | None = None) -> None:
        """Every part, from what the parts after it make of the rows."""
        for part in reversed(self.parts):
            part.start(x, c)
            x = part.inverse(x, c)[0]

    def behind(self, keep: Variables) -> Variables | None:
        """What the first part needs for what the second needs for ..."""
        needed: Variables | None = keep
        for part in reversed(self.parts):
            needed = None if needed is None else part.behind(needed)
        return needed

    def select(self, keep: Sequence[int]) -> "Composition":
        """Of every part what the parts after it need."""
        found: list[Transform] = []
        for part in reversed(self.parts):
            found.insert(0, part.select(keep))
            keep = part.behind(keep) or ()
        return type(self)(*found)


class Compose(Composition):
    """A composition of any parts."""

    def forward(self, u: X, c: Context | None = None) -> tuple[X, Nats]:
        """Base to data: T_1 first."""
        return _through(self.parts, u, c)

    def inverse(self, x: X, c: Context | None = None) -> tuple[X, Nats]:
        """Data to base: T_K undone first."""
        return _through((part.inverse for part in reversed(self.parts)), x, c)

    def estimated(self, x: X, c: Context | None = None, *, generator: Generator = None) -> tuple[X, Nats, Nats]:
        """The parts' errors are independent, but for their starts."""
        log_det = error = x.new_zeros(x.shape[:-1])
        for part in reversed(self.parts):
            x, own, its_error = part.estimated(x, c, generator=generator)
            log_det, error = log_det + own, torch.hypot(error, its_error)
        return x, log_det, error


class Stack(Composition, Upright):
    """A composition of upright parts, whose tensors are turned once."""

    def __init__(self, *parts: Upright) -> None:
        super().__init__(*parts)

    def to_data(self, u: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """T_1 first."""
        return _through((part.to_data for part in self.parts), u, c, upright=True)

    def to_base(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """T_K undone first."""
        return _through((part.to_base for part in reversed(self.parts)), x, c, upright=True)


def _through(passes: Iterable[Pass], v: Tensor, c: Tensor | None, *, upright: bool = False) -> tuple[Tensor, Tensor]:
    log_det = v.new_zeros(v.shape[1:] if upright else v.shape[:-1])
    for one in passes:
        v, own = one(v, c)
        log_det = log_det + own
    return v, log_det


class Inverse(Transform):
    """The other way round: inverse autoregressive flow is the `Inverse` of a masked autoregressive one.

    Args:
        transform: what is turned round.
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    @property
    def kind(self) -> Kind:
        """That of what is turned round."""
        return self.transform.kind

    def behind(self, keep: Variables) -> Variables | None:
        """The same variables, where it keeps them together."""
        return keep if list(self.transform.behind(keep) or ()) == list(keep) else None

    def select(self, keep: Sequence[int]) -> "Inverse":
        """What is turned round, of some variables."""
        return Inverse(self.transform.select(keep))

    def forward(self, u: X, c: Context | None = None) -> tuple[X, Nats]:
        """Base to data: its way to the base."""
        return self.transform.inverse(u, c)

    def inverse(self, x: X, c: Context | None = None) -> tuple[X, Nats]:
        """Data to base: its way to the data."""
        u, log_det = self.transform(x, c)
        return u, log_det
