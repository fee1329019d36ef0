"""Six tables of numbers, half their cells hidden at random: the family that held-out likelihood chooses, beside scikit-learn's imputers.

    python benchmarks/impute_uci.py [--sets breast_cancer wine ...] [--seeds 0 1 2] [--each] [--budget S] [--data DIR]

Figures are mean squared errors of the hidden cells, in standard deviations of the whole column. No method sees a hidden cell: `pofx.impute`
chooses between gaussian, latent_class, gmm and vae by the likelihood of observed cells in rows left out of learning. --each also
fills by every one of the four, which says what the choice was worth. --budget is seconds a table, of all the learning behind one
`pofx.impute`. breast_cancer and wine are scikit-learn's, the others of DIR/tables, without columns of classes. Peers: chained equations
(IterativeImputer, Bayesian ridge), the same with trees in the manner of missForest (50 extra trees, depth 8), five nearest neighbours,
column means. One thread. Prints a line a table and seed and, last, one JSON line; bar: at most the better of the two chained
imputers, on the mean of the seeds, on 4 of the 6 tables.
"""

import argparse
import json
import os
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import sklearn
import torch
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401, imported for its effect: it lets the next line work
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

import pofx
from pofx.comparison.imputing import FAMILIES

SETS = ("breast_cancer", "wine", "banknote", "concrete", "yeast", "wine_quality")
CLASSES = {"banknote": ["forged"], "yeast": ["site"], "wine_quality": ["colour", "color"]}
PEERS = {
    "chained": lambda: IterativeImputer(max_iter=20, random_state=0),
    "trees": lambda: IterativeImputer(ExtraTreesRegressor(50, max_depth=8, random_state=0), max_iter=5, random_state=0),
    "neighbours": lambda: KNNImputer(n_neighbors=5),
    "means": SimpleImputer,
}


def table(data, name):
    """The columns of numbers."""
    if name in {"breast_cancer", "wine"}:
        return {"breast_cancer": load_breast_cancer, "wine": load_wine}[name](as_frame=True).data
    frame = pd.read_csv(next((Path(data) / "tables").glob(f"{name}.csv*")))
    return frame.drop(columns=CLASSES.get(name, ()), errors="ignore").select_dtypes("number")


def hidden_half(shape, seed):
    """Exactly half of all cells, at random."""
    mask = np.zeros(shape[0] * shape[1], bool)
    mask[np.random.RandomState(seed).choice(mask.size, mask.size // 2, replace=False)] = True
    return mask.reshape(shape)


def one(frame, seed, families, budget):
    """Every method on one choice of hidden cells: errors, CPU seconds, and the sentence of the choice."""
    mask = hidden_half(frame.shape, seed)
    holes, mean, deviation = frame.mask(mask), frame.mean(), frame.std(ddof=0)
    truth = ((frame - mean) / deviation).to_numpy()
    scaled = ((holes - mean) / deviation).to_numpy()

    def figure(filled):
        return round(float(np.square(filled - truth)[mask].mean()), 4)

    start = time.process_time()
    imputed = pofx.impute(holes, seed=seed, budget=budget)
    row = {"pofx": figure(((imputed.filled - mean) / deviation).to_numpy()), "chose": imputed.p.record.family}
    row["pofx s"] = round(time.process_time() - start, 1)
    print(f"    {imputed}", flush=True)
    for family in families:
        filled = pofx.impute(holes, family, seed=seed).filled
        row[family] = figure(((filled - mean) / deviation).to_numpy())
    for name, peer in PEERS.items():
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # they stop at their number of rounds, which is their setting
            row[name] = figure(peer().fit_transform(scaled))
        row[f"{name} s"] = round(time.process_time() - start, 1)
    return row


def averaged(rows):
    """Means over the seeds; what was chosen, in order."""
    return {k: [r[k] for r in rows] if k == "chose" else round(float(np.mean([r[k] for r in rows])), 4) for k in rows[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--each", action="store_true")
    parser.add_argument("--budget", type=float)
    parser.add_argument("--data", default=os.environ.get("POFX_DATA", "data"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    for name in options.sets:
        frame = table(options.data, name)
        rows = []
        for seed in options.seeds:
            rows.append(one(frame, seed, FAMILIES if options.each else (), options.budget))
            print(f"{name:14}seed {seed} {frame.shape}", rows[-1], flush=True)
        figures[name] = averaged(rows)
        print(f"{name:14}mean  ", figures[name], flush=True)
    won = [name for name, row in figures.items() if row["pofx"] <= min(row["chained"], row["trees"])]
    print(f"at most the better chained imputer on {len(won)} of {len(figures)}: {', '.join(won)}")
    print(json.dumps(figures | {"won": won, "scikit-learn": sklearn.__version__, "torch": torch.__version__, "threads": 1}))


if __name__ == "__main__":
    main()
