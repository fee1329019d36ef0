"""The comparison as text: the same table on a terminal and in a pipe."""

import math
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pofx.comparison.findings import Findings
from pofx.comparison.ranking import behind, behind_in_answers, error_of, shown
from pofx.comparison.remarks import remarks
from pofx.comparison.result import Answering, Result
from pofx.comparison.words import NOTHING, at_most, count, duration
from pofx.types import Answer

WIDTH = 150


def text(comparison: Findings) -> str:
    """Table, winners, remarks and how to do it again, without colours."""
    console = Console(file=StringIO(), width=WIDTH, color_system=None, legacy_windows=False, soft_wrap=False)
    console.print(rendered(comparison))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines)


def rendered(comparison: Findings) -> RenderableType:
    """The same for a rich console."""
    parts: list[RenderableType] = [Text(headline(comparison)), table(*cells(comparison))]
    parts += [Text(f"{r.family} failed: {r.reason}") for r in comparison.ranked if r.failed]
    parts += [Text(f"{r.family}: {r.reason}") for r in comparison.ranked if r.reason and not r.failed]
    parts += [Text(f"\n{asked(comparison)}"), table(*answers(comparison))] if comparison.answering else []
    parts += [Text(""), winners(comparison), Text("")]
    parts += [Text(f"* {remark}") for remark in remarks(comparison)]
    return Group(*parts, Text(f"\nAgain: {comparison.setting.command}"))


def headline(comparison: Findings) -> str:
    """What was compared on what."""
    task = comparison.task
    rows = ", ".join(f"{n:,} {sort}" for sort, n in task.splits.items())
    holes = f", {task.missing:.1%} of the cells missing" if task.missing else ""
    return f"{task.name}: {len(task.domain)} variables; {rows} rows{holes}"


def asked(comparison: Findings) -> str:
    """What was asked about hidden cells."""
    hidden = comparison.task.hidden
    rows, distinct = len(hidden), len(hidden.row.unique())
    several = "" if rows < 1.5 * distinct else f", each about {rows / distinct:.0f} times with other cells hidden"
    return f"Answers about {int(hidden.mask.sum()):,} hidden cells of {distinct:,} test rows{several}"


def table(names: list[str], lines: list[list[str]]) -> Table:
    """Cells as a grid, words to the left and numbers to the right."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), expand=False)
    for name in names:
        grid.add_column(name, justify="left" if name in LEFT else "right", no_wrap=True)
    for line in lines:
        grid.add_row(*line)
    return grid


def cells(comparison: Findings) -> tuple[list[str], list[list[str]]]:
    """The table as text: names of columns, without those that no family fills, and a row for the truth and each family."""
    lines = [row(result, comparison.best) for result in comparison.ranked]
    filled = _filled(lines)
    truth = comparison.task.truth
    if truth is not None:
        lines.insert(0, ["the truth", "exact", plus_minus(truth, sign=-1), *[""] * (len(COLUMNS) - 3)])
    return [COLUMNS[k] for k in filled], [[line[k] for k in filled] for line in lines]


def answers(comparison: Findings) -> tuple[list[str], list[list[str]]]:
    """The table of hidden cells as text: names of columns, without those that no family fills, and a row for each family that was asked."""
    lines = [_answer(result, comparison.best_answerer) for result in comparison.answering]
    filled = _filled(lines)
    return [ANSWERS[k] for k in filled], [[line[k] for k in filled] for line in lines]


def _filled(lines: list[list[str]]) -> list[int]:
    return [k for k in range(len(lines[0]) if lines else 0) if k < ALWAYS or any(line[k] != NOTHING for line in lines)]


COLUMNS = (
    "family",
    "likelihood",
    "−log p ↓\nnats a row",
    "behind\nthe best",
    "bits ↓\na dim",
    "learn\ntime",
    "1,000\nsamples",
    "numbers\nlearned",
    "peak\nMB",
    "MMD² ↓\n×1000 (p)",
    "C2ST\n→ 0.5",
    "labels ↑\nby code",
)
ANSWERS = (
    "family",
    "score",
    "−log p ↓\nnats a cell",
    "behind\nthe best",
    "numbers ↓\noff, in sd",
    "levels ↓\nwrong, %",
    "90 % intervals\nhold % → 90",
    "width ↓\nin sd",
    "1,000\nscored",
    "1,000\nfilled",
    "1,000\ndrawn",
)
LEFT = (*COLUMNS[:2], *ANSWERS[:2])
ALWAYS = 3  # columns that stay when no family fills them


def row(result: Result, best: Result | None) -> list[str]:
    """The cells of one family."""
    if result.failed:
        return [result.family, "failed", *[NOTHING] * (len(COLUMNS) - 2)]
    return [result.family, str(result.kind), *_likelihood(result, best), *_cost(result), *_samples(result), _code(result)]


def _likelihood(result: Result, best: Result | None) -> list[str]:
    if result.likelihood is None:
        return [NOTHING] * 3
    gap = None if best is None or best is result else behind(result, best)
    return [nats(result), NOTHING if gap is None else plus_minus(gap), f"{result.likelihood.bits_per_dim:.3f}"]


def nats(result: Result) -> str:
    """-log p a row with its sign and error; infinite where a test row is impossible."""
    if result.likelihood is None:
        return NOTHING
    if not math.isfinite(result.nats):
        return "∞"
    return f"{at_most(result.kind)}{result.nats:.2f} ± {error_of(result.likelihood.score):.2f}"


def plus_minus(answer: Answer, *, sign: int = 1) -> str:
    """Value, or its negative, ± error."""
    return f"{sign * float(answer):.2f} ± {error_of(answer):.2f}"


def _cost(result: Result) -> list[str]:
    learning, sampling = result.learning, result.sampling
    if learning is None:
        return [NOTHING] * 4
    memory = NOTHING if learning.peak_memory_mb is None else f"{learning.peak_memory_mb:.0f}"
    drawn = NOTHING if sampling is None else duration(sampling.seconds_per_1000)
    return [duration(learning.seconds), drawn, count(learning.parameters), memory]


def _samples(result: Result) -> list[str]:
    if result.sampling is None:
        return [NOTHING] * 2
    mmd, c2st = result.sampling.mmd, result.sampling.c2st
    return [f"{1000 * float(mmd):.1f} ({p_value(mmd.p_value)})", f"{float(c2st):.2f} ± {error_of(c2st.distance):.2f}"]


def p_value(p: float) -> str:
    """Two digits, or that it is below a hundredth."""
    return f"{p:.2f}" if p >= 0.01 else "< .01"


def _code(result: Result) -> str:
    accuracy = None if result.code is None else result.code.accuracy
    return NOTHING if accuracy is None else f"{100 * float(accuracy):.1f} %"


def _answer(result: Result, best: Result | None) -> list[str]:
    part = result.answering
    gap = None if best is None or best is result else behind_in_answers(result, best)
    score = f"{at_most(part.kind)}{shown(part.score)}"
    filled = [shown(part.numbers), shown(part.levels, 1, 100)]
    return [result.family, str(part.kind), score, shown(gap), *filled, *_sure(part), *_pace(part)]


def _sure(part: Answering) -> list[str]:
    found = part.calibration
    return [NOTHING] * 2 if found is None else [shown(found.coverage(), 1, 100), shown(found.sharpness, 2)]


def _pace(part: Answering) -> list[str]:
    asked = (part.scored, part.filled, part.completed)
    return [NOTHING if question is None else duration(question.seconds_per_1000) for question in asked]


def winners(comparison: Findings) -> Table:
    """Which family wins on what."""
    grid = Table.grid(padding=(0, 2))
    for win in comparison.wins:
        level = f"; level with it: {', '.join(win.level)}" if win.level else ""
        grid.add_row(win.question, win.family, f"{win.value}{level}{'; ' + win.caveat if win.caveat else ''}")
    return grid
