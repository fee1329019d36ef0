"""The page: what goes where. Numbers come from `compare`, pictures from `figures`, looks from the template."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pofx.comparison import Comparison, Result, Task
from pofx.comparison.ranking import shown
from pofx.comparison.remarks import remarks
from pofx.comparison.surface import is_plane
from pofx.comparison.terminal import COLUMNS, answers, asked, cells, headline, plus_minus
from pofx.comparison.words import NOTHING, duration, listed
from pofx.domain import LEVELLED
from pofx.models.diffusion.diagnostics import NoiseDiagnostics
from pofx.models.latent.diagnostics import LatentDiagnostics
from pofx.models.registry import family as registered
from pofx.report import figures
from pofx.report.data import columns
from pofx.report.diagnoses import Panel, of_latents, of_noise
from pofx.report.dots import axis_of, axis_of_answers
from pofx.report.images import is_picture, sheet
from pofx.report.svg import CLASSES, DATA_POINTS

BEHIND = COLUMNS[3]
MARGINALS = 40  # columns; a wider table of distances would not be read
LOOKS = 4  # at learning; a shorter curve shows nothing


def page(comparison: Comparison) -> str:
    """The whole page as HTML: style, pictures and all, nothing to fetch."""
    from jinja2 import Environment, StrictUndefined

    template = files("pofx.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(content(comparison))


def content(comparison: Comparison) -> dict[str, Any]:
    """What the template fills in."""
    task, setting = comparison.task, comparison.setting
    names, lines = cells(comparison)
    classes = colouring(task)
    return {
        "name": task.name,
        "families": len(comparison),
        "headline": headline(comparison),
        "answer": answer(comparison),
        "best": comparison.best,
        "wins": comparison.wins,
        "header": [name for name in names if name != BEHIND],
        "rows": [_row(result, names, line) for result, line in zip(comparison.ranked, lines[-len(comparison) :], strict=True)],
        "truth": None if task.truth is None else plus_minus(task.truth, sign=-1),
        "dots": axis_of(comparison),
        "failures": [r for r in comparison.ranked if r.reason],
        "remarks": remarks(comparison),
        "asked": asked(comparison),
        "answers": answer_table(comparison),
        "answer_dots": axis_of_answers(comparison),
        "calibrations": calibrations(comparison),
        "samples": samples(comparison),
        "surfaces": surfaces(comparison),
        "pairs": pairs(comparison),
        "marginals": marginals(comparison),
        "curves": [Panel(r.family, figures.learning_curve(r), _stopped(r)) for r in comparison.ranked if _learned_in_steps(r)],
        "codes": codes(comparison, classes),
        "latents": latents(comparison),
        "noise": noise(comparison),
        "classes": [(name, CLASSES[k % len(CLASSES)]) for k, name in enumerate(classes.names)],
        "coloured": classes.says,
        "task": task,
        "columns": columns(task),
        "configured": [(r.family, _options(r), r.learning.stopped if r.learning else "") for r in comparison.results],
        "bibtex": bibtex(comparison),
        "setting": setting,
        "took": duration(setting.seconds),
        "written": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def answer(comparison: Comparison) -> str:
    """The page in one sentence."""
    best = comparison.best
    if best is None or best.likelihood is None:
        return "No family gives every test row a probability: see why below."
    win = comparison.wins[0]
    level = f", level with {listed(win.level)}" if win.level else ""
    return f"{best.family} explains the test rows best{level}: −log p {win.value}."


def bibtex(comparison: Comparison) -> str:
    """What the measured families are built on."""
    entries = (entry.strip() for r in comparison if not r.failed for entry in registered(r.family).config.cites)
    return "\n\n".join(dict.fromkeys(entries))


# -- the table -------------------------------------------------------------------------------------


def _row(result: Result, names: list[str], line: list[str]) -> dict[str, Any]:
    texts = dict(zip(names, line, strict=True))
    gap = texts.pop(BEHIND, NOTHING)
    _, kind, score, *others = texts.values()
    return {"result": result, "score": score, "gap": "" if gap == NOTHING else gap, "cells": others, "kind": kind}


def answer_table(comparison: Comparison) -> dict[str, Any] | None:
    """The table of hidden cells; None where nobody was asked."""
    if not comparison.answering:
        return None
    names, lines = answers(comparison)
    rows = [_row(result, names, line) for result, line in zip(comparison.answering, lines, strict=True)]
    return {"header": [name for name in names if name != BEHIND], "rows": rows}


# -- pictures --------------------------------------------------------------------------------------


def samples(comparison: Comparison) -> list[Panel]:
    """The data, then the samples of each family, as images or as points of the plane; other tables have pair plots."""
    task = comparison.task
    drawn = [r for r in comparison.ranked if r.sampling is not None]
    if is_picture(task.domain):
        sheets = [Panel(r.family, sheet(r.sampling.x, task.domain), is_image=True) for r in drawn if r.sampling]
        return [Panel("data", sheet(task.test.numpy(), task.domain), "test rows", is_image=True), *sheets]
    if len(task.domain) == 2:
        data = Panel("data", figures.points(task.test.numpy(), task, "points-data", DATA_POINTS), "test rows")
        return [data, *(Panel(r.family, figures.points(r.sampling.x, task, f"points-{r.family}")) for r in drawn if r.sampling)]
    return []


def surfaces(comparison: Comparison) -> list[Panel]:
    """The learned densities over the plane."""
    if not is_plane(comparison.task.domain):
        return []
    found = [r for r in comparison.ranked if r.surface is not None]
    return [Panel(r.family, figures.surface(r.surface, comparison.task, f"surface-{r.family}")) for r in found if r.surface is not None]


def pairs(comparison: Comparison) -> list[Panel]:
    """Samples over data, every pair of the variables that tell most."""
    task = comparison.task
    if not task.domain.is_table or len(task.domain) == 2:
        return []
    chosen = figures.telling(task)
    return [Panel(r.family, figures.pairs(r, task, chosen)) for r in comparison.ranked if r.sampling is not None]


def calibrations(comparison: Comparison) -> list[Panel]:
    """How often each family's intervals hold what was hidden."""
    found = [(r.family, r.answering.calibration) for r in comparison.answering if r.answering.calibration is not None]
    return [Panel(name, figures.calibration(c, f"calibration-{name}"), f"90 % hold {shown(c.coverage(), 1, 100)} %") for name, c in found]


def codes(comparison: Comparison, classes: "Colouring") -> list[Panel]:
    """The representations that have at least two numbers."""
    found = [r for r in comparison.ranked if r.code is not None and r.code.plane is not None]
    return [Panel(r.family, figures.code_plane(r, classes.of_rows), _code_note(r)) for r in found]


def latents(comparison: Comparison) -> list[Panel]:
    """Codes beside the prior, of the families that have one."""
    return [of_latents(r.latents, r.family) for r in comparison.ranked if isinstance(r.latents, LatentDiagnostics)]


def noise(comparison: Comparison) -> list[Panel]:
    """Where the bound is paid and the way of some draws, of the families that draw from noise."""
    found = [(r.latents, r.family) for r in comparison.ranked if isinstance(r.latents, NoiseDiagnostics)]
    return [panel for d, name in found for panel in of_noise(d, name, comparison.task.domain)]


@dataclass(frozen=True)
class Colouring:
    """What colours the test rows' codes.

    Args:
        of_rows: a class each, -1 where missing; None: one colour.
        names: of the classes.
        says: what they are, a clause.
    """

    of_rows: NDArray[np.int64] | None
    names: tuple[str, ...]
    says: str


def colouring(task: Task) -> Colouring:
    """By the label; for want of one by the first column of a few levels."""
    if task.labels is not None:
        labels = task.labels[1].numpy()
        return Colouring(labels, tuple(map(str, range(int(labels.max()) + 1))), ", coloured by a label that no family has seen")
    for d, v in enumerate(task.domain.variables):
        if v.kind in LEVELLED and len(v.levels) <= len(CLASSES):
            of_rows = task.test[:, d].nan_to_num(-1).long().numpy()
            return Colouring(of_rows, tuple(map(str, v.levels)), f", coloured by {v.name} (a column that the families have seen)")
    return Colouring(None, (), "")


def _code_note(result: Result) -> str:
    code = result.code
    if code is None or code.shares is None:
        return ""
    accuracy = "" if code.accuracy is None else f"; neighbours find {float(code.accuracy):.1%} of the labels"
    return f"{code.width} numbers, {sum(code.shares):.0%} of their variance shown{accuracy}"


def _learned_in_steps(result: Result) -> bool:
    return result.learning is not None and len(result.learning.history) > LOOKS


def _stopped(result: Result) -> str:
    if result.learning is None:
        return ""
    judged = "training rows by the surrogate, held-out rows by the true bound; " if result.learning.surrogate else ""
    return f"{judged}stopped: {result.learning.stopped}"


def marginals(comparison: Comparison) -> dict[str, Any] | None:
    """Column x family: how far each marginal is from the data's."""
    drawn = [r for r in comparison.ranked if r.sampling is not None]
    if not (drawn and comparison.task.domain.is_table and len(comparison.task.domain) <= MARGINALS):
        return None
    values = np.array([r.sampling.marginals.value for r in drawn if r.sampling])
    shade: Callable[[float], int] = lambda v: 0 if math.isnan(v) else round(100 * min(v / 0.5, 1.0))  # noqa: E731
    lines = [(name, [(f"{v:.2f}", shade(v)) for v in values[:, d]]) for d, name in enumerate(comparison.task.domain.names)]
    return {"families": [r.family for r in drawn], "lines": lines}


def _options(result: Result) -> list[tuple[str, str]]:
    return [(name, f"{value:g}" if isinstance(value, float) else str(value)) for name, value in result.config.items()]
