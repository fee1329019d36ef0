"""The same in Markdown, without pictures: to paste into an issue, a README, a paper's appendix."""

from collections.abc import Iterable, Sequence

from pofx.comparison import Comparison, Result
from pofx.comparison.remarks import remarks
from pofx.comparison.terminal import answers, asked, cells, headline
from pofx.report.data import columns
from pofx.report.page import answer, bibtex


def markdown(comparison: Comparison) -> str:
    """The report as Markdown."""
    task, setting = comparison.task, comparison.setting
    parts = [f"# {len(comparison)} families on {task.name}", headline(comparison), f"**{answer(comparison)}**", _table(*cells(comparison))]
    parts += [_list(f"{r.family}: {r.reason}" for r in comparison.ranked if r.reason)]
    parts += ["## Which answers best", f"{asked(comparison)}.", _table(*answers(comparison))] if comparison.answering else []
    parts += ["## Which family wins on what", _wins(comparison), "## Why it came out like this", _list(remarks(comparison))]
    parts += ["## The data", task.source, task.licence, _columns(comparison)]
    parts += ["## How each was configured", _list(_configured(r) for r in comparison)]
    versions = ", ".join(f"{package} {version}" for package, version in setting.versions.items())
    parts += ["## How to do it again", f"```\n{setting.command}\n```", f"Seed {setting.seed}; {setting.machine}; {versions}."]
    parts += [f"```bibtex\n{bibtex(comparison)}\n```"] if bibtex(comparison) else []
    return "\n\n".join(part for part in parts if part) + "\n"


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"* {item}" for item in items)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    whole = (header, ["---"] * len(header), *lines)
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in whole)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _wins(comparison: Comparison) -> str:
    lines = [(w.question, w.family, w.value, ", ".join(w.level)) for w in comparison.wins]
    return _table(("question", "family", "number", "level with it"), lines)


def _columns(comparison: Comparison) -> str:
    lines = [(c.name, c.kind, c.observed, f"{c.missing:.1%}" if c.missing else "", c.reason) for c in columns(comparison.task)]
    return _table(("column", "kind", "in the training rows", "missing", "because"), lines)


def _configured(result: Result) -> str:
    options = f"`{', '.join(f'{name}={value}' for name, value in result.config.items())}`" if result.config else "no options"
    return f"**{result.family}**: {options}" + (f"; {result.learning.stopped}" if result.learning else "")
