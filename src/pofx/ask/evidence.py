"""Evidence and rows: from the user's words to tensors of the domain."""

from collections.abc import Mapping
from typing import Any

import torch

from pofx.data import encode
from pofx.domain import Domain
from pofx.errors import OptionError
from pofx.types import Point


def point(domain: Domain, evidence: Mapping[str, Any]) -> Point:
    """One datum with NaN where the evidence says nothing.

    Raises:
        OptionError: a column is unknown, or a value is no single value.
        DataError: a value is outside its column's domain.
    """
    for name, value in evidence.items():
        domain.index(name)
        if isinstance(value, list | tuple | set | slice | Mapping):
            raise OptionError(f"evidence on {name!r} is one value, got {value!r}")
    x = torch.full((len(domain),), torch.nan, dtype=torch.float64)
    for name, value in evidence.items():
        x[domain.index(name)] = encode({name: [value]}, domain.select([domain.index(name)]))[0, 0]
    return x
