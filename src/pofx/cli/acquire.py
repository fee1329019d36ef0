"""What to measure next, of every row of a file."""

import pandas as pd

from pofx.ask import PofX
from pofx.ask.generic import Acquisition
from pofx.data import encode, read
from pofx.errors import OptionError


def of_rows(p: PofX, data: str, target: list[str], budget: int, seed: int) -> list[Acquisition]:
    """The answer to each row.

    Raises:
        OptionError: what is wrong with the first row that can not be asked about.
    """
    source = read(data)
    n = len(encode(source, p.domain, partial=True))
    return [_of_row(p, source[i : i + 1], i, target, budget, seed) for i in range(n)]


def _of_row(p: PofX, row: object, i: int, target: list[str], budget: int, seed: int) -> Acquisition:
    try:
        return p.acquire(row, target, budget, seed=seed)
    except OptionError as error:
        raise OptionError(f"row {i}: {error}") from None


def table(answers: list[Acquisition]) -> pd.DataFrame:
    """All answers under one another, the row's number in the first column."""
    return pd.concat([answer.frame().reset_index() for answer in answers], keys=range(len(answers)), names=["row"]).reset_index("row")


def told(answers: list[Acquisition]) -> str:
    """The same as text, and what the numbers are."""
    return "\n\n".join(f"row {i}: {answer}" for i, answer in enumerate(answers))
