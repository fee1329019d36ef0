"""The built-in sets, and the domain of a set or file."""

from typing import Any

from pofx.ask.fitting import gather
from pofx.data import DATASETS, load, names_a_set


def listing() -> str:
    """One line a set: name, kind, rows, columns, licence, and what it is."""
    rows = [(s.name, s.kind, f"{s.rows} × {s.columns}", s.licence, s.says) for s in DATASETS.values()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join("  ".join((*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[4])) for row in rows)


def describe(name: str, kinds: dict[str, Any] | None) -> str:
    """The domain as a table, with the reason for each kind."""
    rows = gather(name, schema=kinds)
    held = f"{len(rows.train)} training and {len(rows.holdout)} held-out rows"
    source = _source(name) if names_a_set(name) else ""
    missing = float(rows.train.isnan().double().mean())
    return f"{name}: {held}{source}\nmissing cells: {missing:.1%}\n\n{rows.table}"


def _source(name: str) -> str:
    one = load(name)
    return f", {one.kind}, licence {one.licence}\nsource: {one.source}"
