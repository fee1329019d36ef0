"""The comparison as the user holds it: findings that print themselves."""

from dataclasses import dataclass

from pofx.comparison.findings import Findings
from pofx.comparison.terminal import text


@dataclass(frozen=True)
class Comparison(Findings):
    """Every family on one task. Printed, it is the table; `save` writes results.json; `comparison["vae"]` is a family's row."""

    def __str__(self) -> str:
        return text(self)
