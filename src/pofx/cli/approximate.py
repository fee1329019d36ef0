"""A density in the user's own Python file, and the words in which its variables are given."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pofx.domain import did_you_mean
from pofx.errors import FileError, OptionError

Space = int | dict[str, str | tuple[float, float]]


def density(where: str) -> Callable[[Any], Any]:
    """The function FILE.py:NAME; the file is run.

    Raises:
        OptionError: where is not FILE.py:NAME, or the file has no function of that name.
        FileError: there is no such file, or it fails.
    """
    path, _, name = where.rpartition(":")
    if not path.endswith(".py") or not name:
        raise OptionError(f"a density is FILE.py:FUNCTION, got {where!r}")
    if not Path(path).is_file():
        raise FileError(f"there is no file {path!r}")
    try:
        found = runpy.run_path(path)
    except Exception as error:
        raise FileError(f"{path} fails: {type(error).__name__}: {error}") from error
    if not callable(found.get(name)):
        functions = [key for key, value in found.items() if callable(value) and not key.startswith("_")]
        raise OptionError(f"{path} has no function {name!r}{did_you_mean(name, functions)}")
    function: Callable[[Any], Any] = found[name]
    return function


def space(dim: int | None, variables: list[str] | None) -> Space:
    """The number of reals, or names with kinds: mu=real, tau=positive, rho=0:1.

    Raises:
        OptionError: neither is given, or both, or a variable is not NAME=KIND.
    """
    if (dim is None) == (not variables):
        raise OptionError("give --dim, for reals, or a --variable NAME=KIND for each variable in order, and not both")
    return dim if dim is not None else dict(_variable(item) for item in variables or [])


def _variable(item: str) -> tuple[str, str | tuple[float, float]]:
    name, _, kind = item.partition("=")
    lower, colon, upper = kind.partition(":")
    try:
        return name, (float(lower), float(upper)) if colon else kind
    except ValueError:
        raise OptionError(f"--variable is NAME=real, NAME=positive or NAME=LOWER:UPPER, got {item!r}") from None
