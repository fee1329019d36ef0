"""open: from a file to a PofX."""

from os import PathLike

from pofx.ask.files import read
from pofx.ask.pofx import PofX


def open_(path: str | PathLike[str], device: str = "cpu") -> PofX:
    """Read a p(x) that `PofX.save` wrote; nothing in the file is executed.

    Args:
        path: the file.
        device: where the model is put.

    Raises:
        FileError: the file is missing, damaged, foreign, or made by a later version.
    """
    opened = read(path, device)
    return PofX(opened.model, opened.container, seed=opened.seed, origin=opened.origin)
