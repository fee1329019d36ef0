"""Tables and arrays to files: CSV, Parquet, NPY, by the name's ending."""

from pathlib import Path
from typing import IO, Any

import numpy as np

from pofx.errors import DataError


def write(table: Any, target: Path | IO[str]) -> None:  # noqa: ANN401
    """Write rows to a file, or as CSV to an open stream.

    Raises:
        DataError: the ending is none of .csv, .csv.gz, .tsv, .parquet, .npy.
    """
    if isinstance(target, Path) and target.suffix == ".npy":
        np.save(target, np.asarray(table), allow_pickle=False)
    elif isinstance(target, Path) and target.suffix == ".parquet":
        _frame(table).to_parquet(target, index=False)
    elif not isinstance(target, Path) or target.name.endswith((".csv", ".csv.gz", ".tsv")):
        _frame(table).to_csv(target, index=False, sep="\t" if isinstance(target, Path) and target.suffix == ".tsv" else ",")
    else:
        raise DataError(f"{target} has an unknown ending: use .csv, .csv.gz, .tsv, .parquet or .npy")


def _frame(table: Any) -> Any:  # noqa: ANN401
    import narwhals as nw
    import pandas as pd

    if isinstance(table, pd.DataFrame):
        return table
    try:
        return nw.from_native(table, eager_only=True).to_pandas()
    except TypeError:
        flat = np.asarray(table).reshape(len(table), -1)
        return pd.DataFrame(flat, columns=[f"x{d}" for d in range(flat.shape[1])])
