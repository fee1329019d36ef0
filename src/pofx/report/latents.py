"""The picture of codes beside the prior they are meant for."""

from typing import TYPE_CHECKING

import numpy as np

from pofx.models.latent.diagnostics import Plane
from pofx.report.figures import tinted
from pofx.report.svg import CLASSES, DATA_POINTS, SAMPLE_POINTS, canvas, inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HOLE, BEYOND = CLASSES[6], CLASSES[4]
SIZE = (5.4, 2.7)  # inches


def beside(plane: Plane, name: str) -> str:
    """Prior and codes on the same axes, holes hatched, as an <svg> element."""
    with canvas(*SIZE) as figure:
        draw(figure, plane)
        return inline(figure, name)


def draw(figure: "Figure", plane: Plane) -> None:
    """The prior left, the codes right: one scale, one window."""
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    mass = {
        "prior p(z)": (plane.prior, SAMPLE_POINTS, f"{plane.holes:.1%} of it in holes (hatched)"),
        "codes q(z)": (plane.codes, DATA_POINTS, f"{plane.beyond:.1%} of them beyond the prior (dotted)"),
    }
    top = max(plane.prior.max(), plane.codes.max())
    for axes, (name, (cells, colour, says)) in zip(panels, mass.items(), strict=True):
        (_on_plane if len(plane.edges) == 2 else _on_line)(axes, plane, cells / top, colour)
        axes.set_title(f"{name}\n{says}", fontsize=7.5)
        axes.set_xlabel(f"first axis of the codes ({plane.shares[0]:.0%} of their variance)")
    if len(plane.edges) == 2:
        panels[0].set_ylabel(f"second axis ({plane.shares[1]:.0%})")


def _on_plane(axes: "Axes", plane: Plane, cells: np.ndarray, colour: str) -> None:
    from matplotlib.patches import Rectangle

    first, second = plane.edges
    extent = (first[0], first[-1], second[0], second[-1])
    axes.imshow(tinted(cells.T, colour), origin="lower", extent=extent, aspect="auto", interpolation="nearest")
    for marked, edge, hatch in _marks(plane):
        for i, j in np.argwhere(marked):
            size = first[i + 1] - first[i], second[j + 1] - second[j]
            axes.add_patch(Rectangle((first[i], second[j]), *size, fill=False, hatch=hatch, edgecolor=edge, linewidth=0))


def _on_line(axes: "Axes", plane: Plane, cells: np.ndarray, colour: str) -> None:
    (edges,) = plane.edges
    axes.stairs(cells, edges, fill=True, color=colour)
    for marked, edge, hatch in _marks(plane):
        for i in np.flatnonzero(marked):
            axes.axvspan(edges[i], edges[i + 1], fill=False, hatch=hatch, edgecolor=edge, linewidth=0)
    axes.set_yticks([])


def _marks(plane: Plane) -> tuple[tuple[np.ndarray, str, str], ...]:
    """Which cells are marked, in which colour, how."""
    return (plane.in_holes, HOLE, "////"), (plane.is_beyond, BEYOND, "....")
