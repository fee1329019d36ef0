"""Imputation of real tables: a fifth of the observed cells is hidden, and each method says what stood there.

    python benchmarks/impute.py [--sets penguins adult] [--rows 10000] [--repeats 1] [--families hclt ...] [--data DIR]

Every method learns from the rows with holes and sees no hidden cell. `pofx.measure.hidden_cells` judges what it says of them:
    log-score   log p(hidden cells of a row | its observed cells) a hidden cell, nats: log_prob of the row less log_prob of it without them
                (higher is better; density in the columns' own units, so it compares methods on one table only)
    error       of numbers: root mean squared error in the columns' deviations, over all hidden ones; of levels: share wrong
    coverage    of central 90 % intervals of numbers, from draws, ties broken at random, and their width in deviations
Each with its standard error. scikit-learn's IterativeImputer sees levels as codes and is rounded to the nearest; it has no log-score.
`--drawn` rows are drawn from for the coverage; 0 leaves it out. `--repeats` hides and learns as often, and means are reported: a small
table has few cells to hide. Prints tables and, last, one JSON line.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch

import pofx
from pofx.data import encode
from pofx.domain import LEVELLED
from pofx.measure import HiddenCells, calibration, hide, scales, squared_error, surprise, wrong
from pofx.measure.hidden_cells import DRAWS
from pofx.types import Answer, Kind

FAMILIES = ("independent", "gaussian", "gmm", "latent_class", "chow_liu", "hclt", "vae")
DROPPED = {"adult": ("education", "split"), "penguins": ()}


def table(data, name, rows):
    """A set as a frame, and every column's kind."""
    folder = Path(data) / "tables"
    file = next(folder.glob(f"{name}.csv*"))
    kinds = json.loads((folder / f"{name}.json").read_text())["columns"]
    frame = pd.read_csv(file).drop(columns=list(DROPPED.get(name, ())), errors="ignore")
    frame = frame.sample(min(rows, len(frame)), random_state=0).reset_index(drop=True)
    return frame, {column: kinds[column] for column in frame.columns} if isinstance(kinds, dict) else {}


def holed(frame, domain, seed):
    """What is hidden of the encoded rows, and the frame without it."""
    hidden = hide(encode(frame, domain), asked=len(frame), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(frame.shape, dtype=torch.bool)
    mask[hidden.row] = hidden.mask
    return hidden, frame.mask(mask.numpy())


def judged(p, hidden, unit, drawn):
    """Log-score, errors, coverage and width of a learned p."""
    g = torch.Generator().manual_seed(0)
    row = errors(p.domain, p.model.impute(hidden.holes, generator=g), hidden, unit)
    if p.model.missing is not Kind.NONE:
        with torch.no_grad():
            whole, rest = (p.model.log_prob(x, generator=g) for x in (hidden.x, hidden.holes))
        nats = surprise(hidden, whole, rest, p.model.density.worst(p.model.missing)).answer
        row |= told("log-score", nats, sign=-1) | {"kind": str(nats.kind)}
    asked = hidden[:drawn]
    draws = [p.model.complete(asked.holes, generator=g) for _ in range(DRAWS)] if len(asked) else []
    found = calibration(asked, draws, unit, generator=g) if draws else None
    return row if found is None else row | told("coverage", found.coverage()) | told("width", found.sharpness)


def errors(domain, filled: torch.Tensor, hidden: HiddenCells, unit: torch.Tensor):
    """Of numbers and of levels, where there are some."""
    numbers, levels = squared_error(hidden, filled, unit), wrong(hidden, filled, domain)
    return ({} if numbers is None else told("numbers", numbers.root)) | ({} if levels is None else told("levels", levels.answer))


def told(name, answer: Answer, sign=1):
    """A number and its standard error."""
    return {name: round(sign * float(answer), 4), f"{name} se": round(float(answer.error), 4)}


def iterative(domain, holes, hidden, unit):
    """scikit-learn's chained regressions on codes."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401, imported for its effect: it lets the next line work
    from sklearn.impute import IterativeImputer

    x = encode(holes, domain).numpy()
    scale = np.nanstd(x, 0)
    filled = IterativeImputer(random_state=0, max_iter=20, tol=1e-2).fit_transform(x / scale) * scale
    for d, v in enumerate(domain.variables):
        if v.kind in LEVELLED:
            filled[:, d] = filled[:, d].round().clip(0, len(v.levels) - 1)
    return errors(domain, torch.as_tensor(filled)[hidden.row], hidden, unit)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["penguins", "adult"])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--drawn", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--data", default=os.environ.get("POFX_DATA", "data"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    for name in options.sets:
        frame, _ = table(options.data, name, options.rows)
        domain = pofx.infer_domain(frame)
        rounds = [one_round(frame, domain, options, seed) for seed in range(options.repeats)]
        figures[name] = {method: averaged([found[method] for found in rounds]) for method in rounds[0]}
        for method, row in figures[name].items():
            print(f"{name:10}{method:17}", row, flush=True)
    print(json.dumps(figures))


def one_round(frame, domain, options, seed):
    """Every method on one choice of hidden cells."""
    hidden, holes = holed(frame, domain, seed)
    unit = scales(encode(holes, domain), domain)
    found = {}
    for family in options.families:
        start = time.process_time()
        p = pofx.fit(holes, family, schema=domain)
        seconds = time.process_time() - start
        found[family] = judged(p, hidden, unit, options.drawn) | {"CPU s": round(seconds, 1)}
    start = time.process_time()
    found["IterativeImputer"] = iterative(domain, holes, hidden, unit) | {"CPU s": round(time.process_time() - start, 1)}
    return found


def averaged(rounds):
    """Means over the rounds; standard errors as of independent ones."""
    row = {}
    for key, first in rounds[0].items():
        values = [one[key] for one in rounds]
        if isinstance(first, str):
            row[key] = first
        else:
            row[key] = round(float(np.sqrt(np.mean(np.square(values)) / len(values)) if key.endswith(" se") else np.mean(values)), 4)
    return row


if __name__ == "__main__":
    main()
