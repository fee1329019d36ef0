"""Write a comparison to a folder."""

from os import PathLike
from pathlib import Path

from pofx.comparison import Comparison
from pofx.errors import FileError
from pofx.learn import write_atomically


def write(comparison: Comparison, folder: str | PathLike[str]) -> Path:
    """Write report.html, report.md and results.json, each atomically; the folder is made when it is not there.

    Returns:
        Where report.html is.

    Raises:
        FileError: the folder can not be written to.
    """
    from pofx.report.markdown import markdown
    from pofx.report.page import page

    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        comparison.save(place / "results.json")
        write_atomically(place / "report.md", markdown(comparison).encode())
        write_atomically(place / "report.html", page(comparison).encode())
    except OSError as error:
        raise FileError(f"can not write to {place}: {error.strerror or error}") from error
    return place / "report.html"
