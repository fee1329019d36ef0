"""Imputation of real tables: a fifth of the observed cells is hidden, and each method says what stood there.

    python benchmarks/impute.py [--sets penguins adult] [--rows 10000] [--families hclt ...] [--data DIR]

Every method learns from the rows with holes and sees no hidden cell. Of each hidden cell:
    log-score   log p(cell | observed cells of its row), nats, by log_prob with the cell minus log_prob without it (mean; higher is better;
                density in the column's own units, so it compares methods on one table only)
    error       of numbers: root mean squared error over the column's deviation, mean over columns; of levels: share wrong
    coverage    of central 90 % intervals of numbers, from 100 draws, ties broken at random
scikit-learn's IterativeImputer sees levels as codes and is rounded to the nearest; it has no log-score. A family whose draws
are an estimate (vae) has no coverage here: 100 draws of it take minutes. Prints tables and, last, one JSON line.
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
from pofx.types import Kind

FAMILIES = ("independent", "gaussian", "gmm", "latent_class", "chow_liu", "hclt", "vae")
DROPPED = {"adult": ("education", "split"), "penguins": ()}
DRAWS = 100


def table(data, name, rows):
    """A set as a frame, and every column's kind."""
    folder = Path(data) / "tables"
    file = next(folder.glob(f"{name}.csv*"))
    kinds = json.loads((folder / f"{name}.json").read_text())["columns"]
    frame = pd.read_csv(file).drop(columns=list(DROPPED.get(name, ())), errors="ignore")
    frame = frame.sample(min(rows, len(frame)), random_state=0).reset_index(drop=True)
    return frame, {column: kinds[column] for column in frame.columns} if isinstance(kinds, dict) else {}


def hidden(frame, share=0.2):
    """The frame with a share of its observed cells hidden, and which they are."""
    random = np.random.default_rng(0)
    mask = (random.random(frame.shape) < share) & frame.notna().to_numpy()
    return frame.mask(mask), mask


def judged(p, holes, frame, mask):
    """Log-score, errors and coverage of a learned p."""
    x, truth = encode(holes, p.domain), encode(frame, p.domain)
    filled = p.model.impute(x)
    row = errors(p.domain, filled.numpy(), truth.numpy(), mask)
    scores = []
    with torch.no_grad():
        for d in range(x.shape[1]):
            rows = torch.tensor(mask[:, d])
            if rows.any() and p.model.missing is not Kind.NONE:
                whole = x[rows].clone()
                whole[:, d] = truth[rows, d]
                g = torch.Generator().manual_seed(0)
                scores.append(p.model.log_prob(whole, generator=g) - p.model.log_prob(x[rows], generator=g))
    row["log-score"] = round(float(torch.cat(scores).mean()), 4)
    row["kind"] = str(p.model.missing)
    return row | ({} if p.questions["complete"] is Kind.ESTIMATE else {"coverage": coverage(p, x, truth, mask)})


def errors(domain, filled, truth, mask):
    numbers, levels = [], []
    for d, v in enumerate(domain.variables):
        at = mask[:, d]
        if at.any() and v.kind in LEVELLED:
            levels.append(float((filled[at, d] != truth[at, d]).mean()))
        elif at.any():
            numbers.append(float(np.sqrt(np.mean((filled[at, d] - truth[at, d]) ** 2)) / np.nanstd(truth[:, d])))
    return {"numbers": round(float(np.mean(numbers)), 4), "levels": round(float(np.mean(levels)), 4)}


def coverage(p, x, truth, mask, rows=1000):
    """Share of hidden numbers inside their central 90 % interval, by the randomised rank among draws."""
    g = torch.Generator().manual_seed(0)
    x, truth, mask = x[:rows], truth[:rows], torch.tensor(mask[:rows])
    draws = torch.stack([p.model.complete(x, generator=g) for _ in range(DRAWS)])
    below, equal = (draws < truth).sum(0), (draws == truth).sum(0)
    rank = (below + torch.rand(equal.shape, generator=g) * (equal + 1)) / (DRAWS + 1)
    numbers = torch.tensor([v.kind not in LEVELLED for v in p.domain.variables])
    inside = ((rank > 0.05) & (rank < 0.95))[mask & numbers]
    return round(float(inside.double().mean()), 4)


def iterative(domain, holes, frame, mask):
    """scikit-learn's chained regressions on codes."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401, imported for its effect: it lets the next line work
    from sklearn.impute import IterativeImputer

    x, truth = encode(holes, domain).numpy(), encode(frame, domain).numpy()
    scale = np.nanstd(x, 0)
    filled = IterativeImputer(random_state=0, max_iter=20, tol=1e-2).fit_transform(x / scale) * scale
    for d, v in enumerate(domain.variables):
        if v.kind in LEVELLED:
            filled[:, d] = filled[:, d].round().clip(0, len(v.levels) - 1)
    return errors(domain, filled, truth, mask)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["penguins", "adult"])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--data", default=os.environ.get("POFX_DATA", "data"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    for name in options.sets:
        frame, _ = table(options.data, name, options.rows)
        holes, mask = hidden(frame)
        domain = pofx.infer_domain(frame)
        found = {}
        for family in options.families:
            start = time.process_time()
            p = pofx.fit(holes, family, schema=domain)
            seconds = time.process_time() - start
            found[family] = judged(p, holes, frame, mask) | {"CPU s": round(seconds, 1)}
            print(f"{name:10}{family:14}", found[family], flush=True)
        start = time.process_time()
        found["IterativeImputer"] = iterative(domain, holes, frame, mask) | {"CPU s": round(time.process_time() - start, 1)}
        print(f"{name:10}IterativeImputer", found["IterativeImputer"], flush=True)
        figures[name] = found
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
