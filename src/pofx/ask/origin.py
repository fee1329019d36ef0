"""Where a learned p(x) comes from: what a file keeps beside the tensors."""

from dataclasses import dataclass

from pofx.domain import Domain
from pofx.learn import Record
from pofx.models.base import FamilyConfig


@dataclass(frozen=True)
class Origin:
    """How a learned p(x) came about, enough to rebuild it from a file.

    Args:
        family: its name in the registry.
        config: its options.
        table: the domain of whole rows: the variables of x and, among them, those given.
        record: how it was learned.
        incomplete: whether training rows had missing cells.
    """

    family: str
    config: FamilyConfig
    table: Domain
    record: Record
    incomplete: bool
