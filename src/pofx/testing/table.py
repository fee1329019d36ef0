"""The deepest test as a table: what each family answers in each world, and what that is held against."""

from collections.abc import Iterator, Mapping

from pofx.models.base import FamilyConfig
from pofx.models.registry import families, family
from pofx.testing.matrix import QUESTIONS, Cell, Held, cells
from pofx.testing.worlds import World
from pofx.types import Kind


def table(configs: Mapping[str, FamilyConfig] | None = None) -> str:
    """Markdown: a table for each world, a row a family, a column a question; then the reasons of what is not tested.

    Nothing is learned: a cell follows from what an untrained model says of its answers.

    Args:
        configs: name to options; None: every family of the registry.
    """
    configs = {name: family(name).configure({}) for name in families()} if configs is None else configs
    rows: dict[World, dict[str, dict[str, Cell]]] = {}
    for name, config in configs.items():
        for world, question, cell in cells(config):
            rows.setdefault(world, {}).setdefault(name, {})[question] = cell
    notes: dict[str, int] = {}
    return "\n\n".join([*(_world(world, rows[world], notes) for world in rows), *_footnotes(notes)])


def _world(world: World, rows: dict[str, dict[str, Cell]], notes: dict[str, int]) -> str:
    head = "| " + " | ".join(("family", *QUESTIONS)) + " |"
    body = ["| " + " | ".join((name, *(_mark(answers[q], notes) for q in QUESTIONS))) + " |" for name, answers in rows.items()]
    return "\n".join((f"**{world.name}**: {world.says}.", "", head, "|" + "---|" * (1 + len(QUESTIONS)), *body))


def _mark(cell: Cell, notes: dict[str, int]) -> str:
    kind = "-" if cell.kind is Kind.NONE else str(cell.kind)
    if isinstance(cell, Held):
        return f"{kind}: {cell.against}"
    return f"{kind} [{notes.setdefault(cell.why, len(notes) + 1)}]"


def _footnotes(notes: dict[str, int]) -> Iterator[str]:
    if notes:
        yield "\n".join(f"{number}. {why[0].upper()}{why[1:]}." for why, number in notes.items())
