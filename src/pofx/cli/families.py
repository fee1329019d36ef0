"""The table family × question, as a model on real columns answers; and one family's options, read off its config."""

from pofx.ask.questions import QUESTIONS, kinds
from pofx.domain import Domain
from pofx.models.composed import blank
from pofx.models.registry import families, family
from pofx.testing.table import table as proofs
from pofx.types import Kind

__all__ = ["options", "proofs", "table"]


def table(*, markdown: bool = False) -> str:
    """Rows are families, columns questions, cells the kind of the answer ("-": refused)."""
    rows = [("family", *QUESTIONS), *((name, *_answers(name)) for name in families())]
    return _markdown(rows) if markdown else _aligned(rows)


def options(name: str) -> str:
    """What the family is, and each of its options with its default."""
    one = family(name)
    fields = one.config.model_fields.items()
    lines = [f"  {option} = {field.default!r}{'  # ' + field.description if field.description else ''}" for option, field in fields]
    return "\n".join((f"{name}: {one.says}", f"takes {one.config.takes} variables as they are", *lines))


def _answers(name: str) -> list[str]:
    config = family(name).configure({})
    reals = Domain.real(4)
    model = blank(config, Domain(reals.variables, (2, 2)) if config.images else reals)
    return ["-" if kind is Kind.NONE else str(kind) for kind in kinds(model).values()]


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _markdown(rows: list[tuple[str, ...]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join((head, "|" + "---|" * len(rows[0]), *body))
