"""What must hold before any training starts, and the one split."""

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.domain import Domain, Variable
from pofx.errors import DataError, OptionError
from pofx.types import Generator

Rows = Float[Tensor, "N D"]


def check_training(x: Rows, domain: Domain) -> None:
    """Refuse rows that nothing can be learned from; one sentence, before any training starts.

    Raises:
        DataError: there are fewer than two rows, an entry is infinite, or a column is empty or (in a table, continuous)
            constant in these rows.
    """
    if x.shape[1] != len(domain):
        raise DataError(f"rows of {len(domain)} columns were expected, got {x.shape[1]}")
    if len(x) < 2:
        raise DataError(f"there {'is 1 row' if len(x) else 'are no rows'} to learn from, at least 2 are needed")
    if x.isinf().any():
        row, d = x.isinf().nonzero()[0].tolist()
        raise DataError(f"column {domain.names[d]!r} is infinite in row {row}: put a number there, or leave the cell empty (NaN)")
    seen = ~x.isnan()
    for d in (~seen.any(0)).nonzero().flatten().tolist():
        raise DataError(f"column {domain.names[d]!r} is empty in all {len(x)} training rows: drop it, or give rows that have it")
    if domain.is_table:
        _refuse_constants(x, seen, domain.variables)


def _refuse_constants(x: Rows, seen: Tensor, variables: tuple[Variable, ...]) -> None:
    """The density of a constant real number has no maximum; a constant level or count has probability 1, which is fine."""
    least, most = x.where(seen, torch.inf).amin(0), x.where(seen, -torch.inf).amax(0)
    for d in (least == most).nonzero().flatten().tolist():
        if variables[d].continuous:
            name, value = variables[d].name, float(least[d])
            raise DataError(f"column {name!r} holds one value, {value:g}, in all {len(x)} training rows: drop it, or give rows that differ")


def check_weights(weights: Tensor | None, rows: int) -> None:
    """One finite number from 0 up a row, not all 0.

    Raises:
        DataError: they are not.
    """
    if weights is None:
        return
    if weights.shape != (rows,):
        raise DataError(f"every row needs one weight: got {rows} rows and weights of shape {tuple(weights.shape)}")
    bad = (~(weights.isfinite() & (weights >= 0))).nonzero()
    if len(bad):
        raise DataError(f"the weight of row {int(bad[0])} is {float(weights[bad[0]]):g}: a weight is a finite number from 0 up")
    if not bool((weights > 0).any()):
        raise DataError(f"the weights of all {rows} rows are 0: nothing is left to learn from")


def split(x: Tensor, share: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Two parts of the rows, drawn without replacement: (1 - share) of them and share of them, at least one row each.

    Raises:
        DataError: there are fewer than two rows.
        OptionError: the share is not inside (0, 1).
    """
    if not 0.0 < share < 1.0:
        raise OptionError(f"the share of rows to hold out lies between 0 and 1, got {share}")
    if len(x) < 2:
        raise DataError(f"{len(x)} row can not be split in two: give held-out rows, or more rows")
    aside = min(max(round(share * len(x)), 1), len(x) - 1)
    order = torch.randperm(len(x), generator=generator).to(x.device)
    return x[order[aside:].sort().values], x[order[:aside].sort().values]
