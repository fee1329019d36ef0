"""Change of variables: x = T(u), forward = base -> data everywhere, with log|det J|.

A `Transform` is a bijection. A `Surjection` loses something on the way from base to data (a
fraction, an order); the way back is a random draw, and the density that comes out is a bound:

    log p(x) >= E_q(y|x) [log p(y) - log q(y | x)],   q(y | x) supported on {y : T(y) = x}.

Source: Nielsen, Jaini, Hoogeboom, Winther and Welling, "SurVAE Flows", NeurIPS 2020, arXiv:2007.02731.
"""

import abc
from collections.abc import Sequence

from torch import nn

from pofx.types import Context, Generator, Nats, X


class Transform(nn.Module, abc.ABC):
    """A bijection x = T(u; c) with log|det J_T|."""

    @abc.abstractmethod
    def forward(self, u: X, c: Context | None = None) -> tuple[X, Nats]:
        """Base to data: x = T(u) and log|det J_T(u)|."""

    @abc.abstractmethod
    def inverse(self, x: X, c: Context | None = None) -> tuple[X, Nats]:
        """Data to base: u = T^-1(x) and log|det J_T^-1(x)|."""


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


class Compose(Transform):
    """T = T_K o ... o T_1, in the order given; the log-determinants add up.

    Args:
        *parts: T_1, ..., T_K.
    """

    def __init__(self, *parts: Transform) -> None:
        super().__init__()
        self.parts: Sequence[Transform] = nn.ModuleList(parts)  # type: ignore[assignment]

    def forward(self, u: X, c: Context | None = None) -> tuple[X, Nats]:
        """Base to data: T_1 first."""
        log_det = u.new_zeros(u.shape[:-1])
        for part in self.parts:
            u, own = part(u, c)
            log_det = log_det + own
        return u, log_det

    def inverse(self, x: X, c: Context | None = None) -> tuple[X, Nats]:
        """Data to base: T_K undone first."""
        log_det = x.new_zeros(x.shape[:-1])
        for part in reversed(self.parts):
            x, own = part.inverse(x, c)
            log_det = log_det + own
        return x, log_det
