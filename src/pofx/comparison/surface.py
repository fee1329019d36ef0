"""A density over the plane, for data of two real variables: the grid on which it is drawn."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pofx.domain import Domain, VariableKind

POINTS = 72  # along each axis
MARGIN = 0.08  # of the range of the data, on each side


def is_plane(domain: Domain) -> bool:
    """Whether a row is a point of the plane: two real variables without grid or spike."""
    return len(domain) == 2 and all(v.kind is VariableKind.REAL and v.resolution is None and v.spike is None for v in domain.variables)


def window(x: Tensor) -> tuple[tuple[float, float], tuple[float, float]]:
    """The rectangle to draw: the range of rows (N, 2), and a margin."""
    lower, upper = (np.nanmin(x.numpy(), axis=0), np.nanmax(x.numpy(), axis=0))
    margin = MARGIN * (upper - lower)
    (left, bottom), (right, top) = lower - margin, upper + margin
    return (float(left), float(right)), (float(bottom), float(top))


def axes(x: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The grid's ticks along each variable."""
    first, second = (np.linspace(*ends, POINTS) for ends in window(x))
    return first, second


def grid(x: Tensor) -> Tensor:
    """The grid's points, (POINTS^2, 2), the first variable moving fastest."""
    second, first = torch.meshgrid(*(torch.as_tensor(ticks) for ticks in reversed(axes(x))), indexing="ij")
    return torch.stack((first.flatten(), second.flatten()), dim=1)
