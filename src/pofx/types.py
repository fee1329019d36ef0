"""Shapes and units, named once, and what an answer is.

D variables, C conditions, L latents; log-densities in nats (natural log) per datum.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

X = Float[Tensor, "*batch D"]  # data x, or the base variable u of a flow; NaN = unobserved
Context = Float[Tensor, "*batch C"]  # the c of p(x | c)
Latent = Float[Tensor, "*batch L"]  # z
Nats = Float[Tensor, "*batch"]  # log p, log|det J|: one number per datum
NatsPerVariable = Float[Tensor, "*batch D"]  # log p_d(x_d)
Mask = Bool[Tensor, " D"]
Codes = Int[Tensor, "*batch"]
Point = Float[Tensor, " D"]  # one datum, or evidence with NaN where unobserved
Generator = Any  # torch.Generator | None; beartype can not name it on every platform


class Kind(StrEnum):
    """What a number is. Ordered from best to worst; a sum of numbers is of its worst kind."""

    EXACT = "exact"
    BOUND = "bound"  # a lower bound on log p
    ESTIMATE = "estimate"  # carries its standard error
    UNNORMALISED = "unnormalised"
    NONE = "none"

    def worst(self, other: "Kind") -> "Kind":
        """The label of a number made of two.

        >>> Kind.EXACT.worst(Kind.BOUND)
        <Kind.BOUND: 'bound'>
        """
        order = list(Kind)
        return max(self, other, key=order.index)


@dataclass(frozen=True)
class Answer:
    """A value that says what it is: exact, a bound, or an estimate with its standard error.

    It converts to a NumPy array wherever one is expected, so ``np.mean(answer)`` and
    ``answer + 1`` mean what they say (the result is then a plain array, without a label).

    Args:
        value: the numbers, in the user's units (log-densities: nats).
        kind: what they are.
        error: one standard error per number, or None when the value is deterministic.
        how: the method, in one sentence.
    """

    value: NDArray[np.float64]
    kind: Kind
    error: NDArray[np.float64] | None = None
    how: str = ""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: ANN401
        return np.array(self.value, dtype=dtype, copy=copy)

    def __float__(self) -> float:
        return float(self.value)

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, key: Any) -> "Answer":  # noqa: ANN401
        error = None if self.error is None else self.error[key]
        return replace(self, value=self.value[key], error=error)

    def __add__(self, other: Any) -> NDArray[Any]:  # noqa: ANN401
        return np.asarray(self) + np.asarray(other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> NDArray[Any]:  # noqa: ANN401
        return np.asarray(self) - np.asarray(other)

    def __rsub__(self, other: Any) -> NDArray[Any]:  # noqa: ANN401
        return np.asarray(other) - np.asarray(self)

    def __repr__(self) -> str:
        value = np.array2string(np.asarray(self.value), precision=4, threshold=6)
        two_digits: Any = {"float_kind": _short}  # NumPy's own type for it is private
        error = "" if self.error is None else f" ± {np.array2string(np.asarray(self.error), formatter=two_digits, threshold=6)}"
        return f"{value}{error} ({self.kind}{': ' + self.how if self.how else ''})"


def _short(error: float) -> str:
    """Two digits, wherever the point is."""
    return f"{error:.2g}"
