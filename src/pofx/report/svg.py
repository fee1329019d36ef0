"""From a matplotlib figure to SVG that lives inside a page: its colours and fonts are the page's own.

A figure is drawn in stand-in colours that become CSS variables, so that one picture serves light and
dark. It is made through the object interface: nothing global in matplotlib is touched but its settings,
within a context.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, ACCENT, SECOND = "#010203", "#040506", "#070809", "#0a0b0c"  # stand-ins
VARIABLES = {INK: "var(--ink-soft)", FAINT: "var(--data)", ACCENT: "var(--accent)", SECOND: "var(--second)"}

# Points are drawn as a picture within the SVG, in colours that hold on white and on black.
DATA_POINTS, SAMPLE_POINTS = "#8b929c", "#2f86d6"
CLASSES = (  # Matthew Petroff's ten colours, ordered and chosen for every kind of colour vision
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 7.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def canvas(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Iterator["Figure"]:
    """A figure of a size in inches, under the page's settings; laid out by matplotlib unless told not to."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        yield Figure(figsize=(width, height), layout=layout)


def bare(axes: "Axes") -> None:
    """Leave the points alone: no frame, no ticks."""
    axes.set_axis_off()


def inline(figure: "Figure", name: str) -> str:
    """The figure as an <svg> element; call it inside the `canvas`.

    Args:
        figure: what to draw.
        name: distinct on the page, so that the elements' ids are; also what a screen reader says.
    """
    import matplotlib

    buffer = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", dpi=160, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    return _themed(_lean(text[text.index("<svg") :], name))


def _lean(svg: str, name: str) -> str:
    """Without what a page does not need: metadata, namespaces, a fixed size, names of groups, fonts of this machine."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg {box.group(0) if box else ""} role="img" aria-label="{name.replace("-", " ")}">'
    svg = re.sub(r"<svg[^>]*>", head, svg, count=1)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    return re.sub(r'<g id="[^"]*"', "<g", svg)


def _themed(svg: str) -> str:
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    return svg
