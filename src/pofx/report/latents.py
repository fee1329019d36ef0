"""The picture of codes beside the prior they are meant for, in a page or as a file of its own."""

from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pofx.errors import FileError, OptionError
from pofx.learn import write_atomically
from pofx.models.base import Diagnosis
from pofx.models.latent.diagnostics import LatentDiagnostics, Plane
from pofx.report.figures import tinted
from pofx.report.svg import CLASSES, DATA_POINTS, SAMPLE_POINTS, canvas, inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".svg", ".png", ".html")
HOLE, BEYOND = CLASSES[6], CLASSES[4]
SIZE = (5.4, 2.7)  # inches
STYLE = (
    ":root{--ink-soft:#55606e;--data:#8b929c;--accent:#1668b8;--second:#b3541e}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#1d232b;background:#fff}"
    "pre{overflow-x:auto;font-size:.82rem}svg{width:100%;height:auto}"
    "@media(prefers-color-scheme:dark){:root{--ink-soft:#a9b3bf;--data:#8b929c;--accent:#6db3f2;--second:#f0a070}"
    "body{color:#e6e9ed;background:#14181d}}"
)


def beside(plane: Plane, name: str) -> str:
    """Prior and codes on the same axes, holes hatched, as an <svg> element."""
    with canvas(*SIZE) as figure:
        _draw(figure, plane)
        return inline(figure, name)


def write_picture(found: Diagnosis, place: Path) -> None:
    """Write the picture as SVG or PNG, or with the table as a page.

    Raises:
        OptionError: the name ends otherwise, or what was found has no picture.
        FileError: the file can not be written.
    """
    check_picture(place)
    if not isinstance(found, LatentDiagnostics):
        raise OptionError(f"there is no picture of {type(found).__name__}")
    content = _page(found).encode() if place.suffix == ".html" else _file(found.plane, place.suffix[1:])
    try:
        write_atomically(place, content)
    except OSError as error:
        raise FileError(f"can not write to {place}: {error.strerror or error}") from error


def check_picture(place: Path | None) -> None:
    """Whether a picture can be written under that name.

    Raises:
        OptionError: it can not.
    """
    if place is not None and place.suffix not in ENDINGS:
        raise OptionError(f"a picture ends in {', '.join(ENDINGS)}, got {place.name!r}")


def _file(plane: Plane, ending: str) -> bytes:
    buffer = BytesIO()
    with canvas(*SIZE) as figure:
        _draw(figure, plane)
        metadata = {"Date": None} if ending == "svg" else None
        figure.savefig(buffer, format=ending, dpi=160, facecolor="white", metadata=metadata)
    return buffer.getvalue()


def _page(found: LatentDiagnostics) -> str:
    picture = beside(found.plane, "prior-and-codes")
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Latents</title><style>{STYLE}</style>'
    return f"{head}<h1>Prior and codes</h1>{picture}<pre>{escape(str(found))}</pre></html>\n"


# -- the drawing -------------------------------------------------------------------------------------------------------


def _draw(figure: "Figure", plane: Plane) -> None:
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
