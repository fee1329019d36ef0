"""Pictures of a diffusion model: the way of its draws from noise, the score in the plane, and where along the noise its bound is paid."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pofx.domain import Domain
from pofx.models.diffusion.diagnostics import Field, NoiseDiagnostics
from pofx.report.images import is_picture, laid_out, moving
from pofx.report.svg import ACCENT, FAINT, SAMPLE_POINTS, bare, canvas, inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
SIZE = (4.6, 2.3)  # inches
PICTURES, PLANES = 11, 6  # frames of a strip
SIDE = 320  # pixels of a plane in motion
PLANE = 1.1  # inches of one in a strip


def paid(found: NoiseDiagnostics, name: str) -> str:
    """Nats of the bound a unit of ln s against s, as an <svg> element."""
    with canvas(*SIZE) as figure:
        draw(figure, found)
        return inline(figure, name)


def draw(figure: "Figure", found: NoiseDiagnostics) -> None:
    """The same, with two standard errors."""
    edges, nats, error = (np.asarray(part) for part in (found.levels, found.nats, found.error))
    axes = figure.subplots()
    axes.stairs(nats, edges, color=ACCENT, linewidth=1.4, baseline=None)
    axes.vlines(np.sqrt(edges[1:] * edges[:-1]), nats - 2 * error, nats + 2 * error, color=FAINT, linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("noise s, in deviations")
    axes.set_ylabel("nats a unit of ln s")


def strip(found: NoiseDiagnostics, domain: Domain, name: str) -> tuple[str, bool] | None:
    """Draws on their way, noise first: pictures a row each, or points of the plane; and whether it is a source. None of other rows."""
    way, at = _some(found, PICTURES if is_picture(domain) else PLANES)
    if is_picture(domain):
        rows = way.transpose(1, 0, 2).reshape(-1, way.shape[2])
        return moving([laid_out(rows, domain, len(way), way.shape[1])]), True
    return (_planes(way, at, name), False) if _is_plane(domain) else None


def film(found: NoiseDiagnostics, domain: Domain) -> str | None:
    """The same in motion: the source of an animated picture."""
    way = found.way.cpu().double().numpy()
    if is_picture(domain):
        return moving([laid_out(frame, domain, 3, -(-way.shape[1] // 3)) for frame in way])
    return moving([_dotted(frame, way) for frame in way]) if _is_plane(domain) else None


def arrows(field: Field, name: str) -> str:
    """Where the score points, at a few levels, as an <svg> element."""
    tails = field.tails.cpu().double().numpy()
    with canvas(2.2 * len(field.levels), 2.2) as figure:
        panels = np.atleast_1d(figure.subplots(1, len(field.levels)))
        for axes, s, tips in zip(panels, field.levels, field.tips.cpu().double().numpy(), strict=True):
            axes.quiver(*tails.T, *(tips - tails).T, color=SAMPLE_POINTS, angles="xy", scale_units="xy", scale=2, width=0.006)
            axes.set_title(f"s = {s:g}", fontsize=7.5)
            bare(axes)
        return inline(figure, name)


def _is_plane(domain: Domain) -> bool:
    return len(domain) == 2 and all(v.cardinality is None for v in domain.variables)


def _some(found: NoiseDiagnostics, count: int) -> tuple[Floats, list[float]]:
    """So many frames, evenly, both ends among them."""
    way = found.way.cpu().double().numpy()
    chosen = np.unique(np.linspace(0, len(way) - 1, min(count, len(way))).round().astype(int))
    return way[chosen], [found.at[k] for k in chosen]


def _planes(way: Floats, at: list[float], name: str) -> str:
    with canvas(PLANE * len(way), PLANE + 0.2) as figure:
        panels = np.atleast_1d(figure.subplots(1, len(way), sharex=True, sharey=True))
        for axes, frame, s in zip(panels, way, at, strict=True):
            _dots(axes, frame)
            axes.set_title(f"s = {s:.2g}", fontsize=7)
        return inline(figure, name)


def _dots(axes: "Axes", x: Floats) -> None:
    axes.scatter(x[:, 0], x[:, 1], s=1.2, color=SAMPLE_POINTS, linewidths=0, rasterized=True)
    bare(axes)


def _dotted(x: Floats, way: Floats) -> NDArray[np.uint8]:
    """Points as dots of 3 x 3 pixels on nothing, in the window of the whole way."""
    low, high = np.nanquantile(way, 0.002, axis=(0, 1)), np.nanquantile(way, 0.998, axis=(0, 1))
    place = ((x - low) / np.maximum(high - low, 1e-12) * (SIDE - 3)).round().astype(int)
    inside = place[((place >= 0) & (place <= SIDE - 3)).all(1)]
    image = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)
    colour = [int(SAMPLE_POINTS[k : k + 2], 16) for k in (1, 3, 5)]
    for i in range(3):
        for j in range(3):
            image[SIDE - 1 - inside[:, 1] - i, inside[:, 0] + j] = (*colour, 255)
    return image
