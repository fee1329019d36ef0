"""Two traps of real columns: values rounded to a grid, and one value repeated in many rows.

A density that may be as high as it likes on the points where rounded data lie scores without bound and means
nothing. So a column of which many rows share their value with another row is asked for its grid: the largest step

    r in {1, 2, 2.5, 5} x 10^k   with   x / r whole in at least 99 % of the rows.

Every such grid goes through 0. A column whose values hardly ever meet needs none, whatever its decimals; and where they
meet although the step is far too fine to make them, they lie on something else than decimals (levels on another scale,
say), for which there is no resolution.
"""

import math

import numpy as np
from numpy.typing import NDArray

MANTISSAS = (5.0, 2.5, 2.0, 1.0)
ON_GRID = 0.99  # share of rows: some cells of a rounded column are means of others, or typed with a slip
FINEST = 0.1  # a step below this times (spread / rows) would hardly ever make two rows meet
TIED = 0.5  # share of rows that meet another row's value
SPIKE_SHARE, SPIKE_LEAD = 0.05, 3.0


def resolution(x: NDArray[np.float64], *, precision: float = 2.0**-52, least: float = 0.0) -> float | None:
    """The step of the grid that rounded values lie on, or None.

    Args:
        x: the values, none missing.
        precision: the spacing of the type they were stored in, relative to them (float32: 2^-23).
        least: the smallest step looked for (1 for integers).
    """
    points, rows = np.unique(x, return_counts=True)
    largest = float(np.abs(points).max())
    if largest == 0.0:
        return None
    finest = max(least, FINEST * float(np.quantile(x, 0.9) - np.quantile(x, 0.1)) / len(x))
    for step in _steps(largest):
        blur = 4.0 * precision * largest / step  # how far from whole a point of the grid may look
        if blur > 0.01 or step < finest:
            return None
        whole = np.abs(points / step - np.rint(points / step)) <= blur
        if rows[whole].sum() >= ON_GRID * len(x):
            return step
    return None


def _steps(largest: float) -> list[float]:
    """Candidate steps from the widest down over 13 decades; a power of ten below 1 is divided by, so that 0.1 is 0.1."""
    top = math.floor(math.log10(largest))
    decades = range(top, top - 13, -1)
    return [float(f"{mantissa:g}e{k}") for k in decades for mantissa in MANTISSAS]


def tied_share(x: NDArray[np.float64]) -> float:
    """The share of rows whose value another row has too."""
    rows = np.unique(x, return_counts=True)[1]
    return float(rows[rows > 1].sum() / len(x))


def spike(x: NDArray[np.float64]) -> float | None:
    """The value of at least 5 % of the rows, and at least 3 times as many as the next, of a column of many values; or None."""
    points, rows = np.unique(x, return_counts=True)
    if len(points) < 3:
        return None
    second, first = np.partition(rows, -2)[-2:]
    if first < max(SPIKE_SHARE * len(x), SPIKE_LEAD * second, 3):
        return None
    return float(points[rows.argmax()])
