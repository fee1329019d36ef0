"""What a diagnosis looks like: panels of a page, or a file of its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from pofx.domain import Domain
from pofx.errors import FileError, OptionError
from pofx.learn import write_atomically
from pofx.models.base import Diagnosis
from pofx.models.diffusion.diagnostics import NoiseDiagnostics
from pofx.models.latent.diagnostics import LatentDiagnostics
from pofx.report import latents, noise
from pofx.report.svg import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".svg", ".png", ".html")
STYLE = (
    ":root{--ink-soft:#55606e;--data:#8b929c;--accent:#1668b8;--second:#b3541e}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#1d232b;background:#fff}"
    "pre{overflow-x:auto;font-size:.82rem}svg{width:100%;height:auto}img{min-width:18rem;image-rendering:pixelated}"
    "@media(prefers-color-scheme:dark){:root{--ink-soft:#a9b3bf;--data:#8b929c;--accent:#6db3f2;--second:#f0a070}"
    "body{color:#e6e9ed;background:#14181d}}"
)


@dataclass(frozen=True)
class Panel:
    """One picture with its name.

    Args:
        title: above it.
        picture: an <svg> element or the source of an image.
        note: below it.
        is_image: whether the picture is a source.
    """

    title: str
    picture: str
    note: str = ""
    is_image: bool = False


def of_latents(found: LatentDiagnostics, name: str) -> Panel:
    """Codes beside the prior."""
    return Panel(name, latents.beside(found.plane, f"latents-{name}"), ". Warning: ".join((found.sentence(), *found.warnings)) + ".")


def of_noise(found: NoiseDiagnostics, name: str, domain: Domain) -> Iterator[Panel]:
    """Where the bound is paid, and the way of some draws."""
    yield Panel(f"{name}: what each level costs", noise.paid(found, f"noise-{name}"), f"{found.sentence()}.")
    strip = noise.strip(found, domain, f"way-{name}")
    if strip is not None:
        picture, is_image = strip
        yield Panel(f"{name}: from noise to draws", picture, "the first draws, not chosen", is_image=is_image)
    film = noise.film(found, domain)
    if film is not None:
        yield Panel(f"{name}: the same in motion", film, is_image=True)
    if found.field is not None:
        yield Panel(f"{name}: the score", noise.arrows(found.field, f"score-{name}"), "arrows go half the way to E[x given y]")


def write_picture(found: Diagnosis, place: Path, domain: Domain) -> None:
    """Write what there is to see: one picture as SVG or PNG, or all of them with the table as a page.

    Raises:
        OptionError: the name ends otherwise, or what was found has no picture.
        FileError: the file can not be written.
    """
    check_picture(place)
    if not isinstance(found, LatentDiagnostics | NoiseDiagnostics):
        raise OptionError(f"there is no picture of {type(found).__name__}")
    content = _page(found, domain).encode() if place.suffix == ".html" else _file(found, place.suffix[1:])
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


def _file(found: LatentDiagnostics | NoiseDiagnostics, ending: str) -> bytes:
    buffer = BytesIO()
    with canvas(*(latents.SIZE if isinstance(found, LatentDiagnostics) else noise.SIZE)) as figure:
        _draw(figure, found)
        metadata = {"Date": None} if ending == "svg" else None
        figure.savefig(buffer, format=ending, dpi=160, facecolor="white", metadata=metadata)
    return buffer.getvalue()


def _draw(figure: "Figure", found: LatentDiagnostics | NoiseDiagnostics) -> None:
    if isinstance(found, LatentDiagnostics):
        latents.draw(figure, found.plane)
    else:
        noise.draw(figure, found)


def _page(found: LatentDiagnostics | NoiseDiagnostics, domain: Domain) -> str:
    if isinstance(found, LatentDiagnostics):
        title, panels = "Prior and codes", [of_latents(found, "codes")]
    else:
        title, panels = "From noise", list(of_noise(found, "p", domain))
    shown = [f'<h2>{p.title}</h2><img src="{p.picture}" alt="">' if p.is_image else f"<h2>{p.title}</h2>{p.picture}" for p in panels]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f"{head}<h1>{title}</h1>{''.join(shown)}<pre>{escape(str(found))}</pre></html>\n"
