"""Laws made of laws."""

import math
from dataclasses import dataclass

from torch import Tensor

from pofx.distributions.base import Law, Parameters, Values
from pofx.types import Generator


@dataclass(frozen=True)
class Gridded(Law):
    """p(x) = P(x - r/2 < X <= x + r/2) / r with X of the continuous law: the density of a value rounded to a grid.

    The masses of all cells sum to 1, and no parameter makes the density exceed 1 / r, so a law that hits the grid is not rewarded for it.

    Args:
        law: of the value before rounding.
        resolution: r, the width of a cell.
        origin: a point of the grid, to which draws are rounded; None where it is not known (draws are then of the law itself).
    """

    law: Law
    resolution: float
    origin: float | None = None

    @property
    def width(self) -> int:
        """That of the law."""
        return self.law.width

    @property
    def stand_in(self) -> float:
        """That of the law."""
        return self.law.stand_in

    def _log_prob(self, parameters: Parameters, x: Values) -> Values:
        return self.law.log_mass(parameters, x, self.resolution) - math.log(self.resolution)

    def sample(self, parameters: Parameters, *, generator: Generator = None) -> Values:  # noqa: D102
        return self._rounded(self.law.sample(parameters, generator=generator))

    def mean(self, parameters: Parameters) -> Values:
        """That of the law: rounding moves it by far less than a cell."""
        return self.law.mean(parameters)

    def mode(self, parameters: Parameters) -> Values:
        """That of the law, rounded."""
        return self._rounded(self.law.mode(parameters))

    def cdf(self, parameters: Parameters, x: Values) -> Values:
        """P(X <= upper edge of the cell of x)."""
        return self.law.cdf(parameters, x + self.resolution / 2)

    def _fit(self, x: Tensor, seen: Tensor, weights: Tensor, start: Tensor | None) -> Tensor:
        return self.law._fit(x, seen, weights, start)

    def _rounded(self, x: Tensor) -> Tensor:
        if self.origin is None:
            return x
        return ((x - self.origin) / self.resolution).round() * self.resolution + self.origin
