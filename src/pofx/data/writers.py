"""Tables and arrays to files: CSV, Parquet, NPY, by the name's ending."""

from pathlib import Path
from typing import Any

import numpy as np

from pofx.errors import DataError


def write(table: object, path: Path) -> None:
    """Write rows to a file.

    Raises:
        DataError: the ending is none of .csv, .csv.gz, .tsv, .parquet, .npy.
    """
    if path.suffix == ".npy":
        np.save(path, np.asarray(table), allow_pickle=False)
    elif path.suffix == ".parquet":
        _frame(table).to_parquet(path, index=False)
    elif path.name.endswith((".csv", ".csv.gz", ".tsv")):
        _frame(table).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    else:
        raise DataError(f"{path} has an unknown ending: use .csv, .csv.gz, .tsv, .parquet or .npy")


def as_csv(table: object) -> str:
    """Rows as the text of a CSV file."""
    return str(_frame(table).to_csv(index=False))


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
