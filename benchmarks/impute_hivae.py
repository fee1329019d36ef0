"""HI-VAE's tables of mixed kinds with HI-VAE's masks: errors of the hidden cells by kind of column, in HI-VAE's measure.

    python benchmarks/impute_hivae.py [--sets breast wine spam adult] [--rates 20 50] [--rows N] [--budget S] [--data DIR]

Figures are means over the columns of a kind, of the cells that mask number 1 of that rate hides: of numbers (pos, count) the root mean
squared error over the column's range; of cat the share wrong; of ordinal the mean displacement over the number of levels. `pofx.impute`
chooses between gaussian, latent_class, gmm and vae by held-out likelihood; levels are declared, all else of the columns is inferred
from the rows with holes. Peers: column means, or the most frequent level; scikit-learn's IterativeImputer on codes, rounded to the nearest
level. --rows takes so many at random, --budget is seconds of learning a table. One thread. Prints a line a mask and, last, one JSON line.
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
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401, imported for its effect: it lets the next line work
from sklearn.impute import IterativeImputer

import pofx

LEVELLED = {"cat": "categorical", "ordinal": "ordinal"}


def table(data, name, rate, rows):
    """The table, the declared type of each column, how many levels it has, and what is hidden of what there is."""
    file = np.load(Path(data) / "hivae" / f"{name}.npz", allow_pickle=False)
    x = file["X"]
    mask = np.unpackbits(file[f"mask{rate}_packed"], count=x.size).reshape(x.shape).astype(bool)
    frame = pd.DataFrame(x, columns=[f"{kind}{d}" for d, kind in enumerate(file["type"])])
    some = np.sort(np.random.RandomState(0).permutation(len(x))[:rows])
    return frame.iloc[some], file["type"].tolist(), file["n_class"].tolist(), (mask & ~np.isnan(x))[some]


def errors(frame, filled, kinds, sizes, mask):
    """The mean over columns of each kind, of the error that its kind has."""
    found = {}
    for d, (kind, size) in enumerate(zip(kinds, sizes, strict=True)):
        hidden, column = mask[:, d], frame.iloc[:, d].to_numpy()
        if hidden.any():
            off = np.asarray(filled)[hidden, d] - column[hidden]
            found.setdefault(kind, []).append(error(kind, off, size, np.nanmax(column) - np.nanmin(column)))
    return {kind: round(float(np.mean(values)), 4) for kind, values in sorted(found.items())}


def error(kind, off, size, width):
    """Of a column."""
    if kind == "cat":
        return float((off != 0).mean())
    return float(np.abs(off).mean() / size) if kind == "ordinal" else float(np.sqrt(np.square(off).mean()) / width)


def plain(holes, kinds):
    """Column means, most frequent levels."""
    centres = {name: holes[name].mode()[0] if kind in LEVELLED else holes[name].mean() for name, kind in zip(holes, kinds, strict=True)}
    return holes.fillna(centres)


def chained(holes, kinds):
    """Chained equations on codes; levels are the nearest that were seen."""
    scale = holes.std().replace(0.0, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # they stop at their number of rounds, which is their setting
        filled = IterativeImputer(max_iter=20, random_state=0).fit_transform(holes / scale) * scale.to_numpy()
    for d, kind in enumerate(kinds):
        if kind in LEVELLED:
            levels = np.sort(holes.iloc[:, d].dropna().unique())
            filled[:, d] = levels[np.abs(filled[:, d, None] - levels).argmin(1)]
    return filled


def one(data, name, rate, options):
    """Every method on one mask."""
    frame, kinds, sizes, mask = table(data, name, rate, options.rows)
    holes = frame.mask(mask)
    schema = {column: LEVELLED[kind] for column, kind in zip(frame, kinds, strict=True) if kind in LEVELLED}
    start = time.process_time()
    imputed = pofx.impute(holes, schema=schema, budget=options.budget)
    seconds = round(time.process_time() - start, 1)
    print(f"    {imputed}", flush=True)
    found = {"pofx": imputed.filled, "plain": plain(holes, kinds), "chained": chained(holes, kinds)}
    by_method = {method: errors(frame, filled, kinds, sizes, mask) for method, filled in found.items()}
    return {"rows": len(frame), "chose": imputed.p.record.family, "pofx s": seconds} | by_method


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["breast", "wine", "spam", "adult"])
    parser.add_argument("--rates", nargs="+", type=int, default=[20, 50], help="per cent hidden: 10, 20, 30, 40, 50")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--budget", type=float)
    parser.add_argument("--data", default=os.environ.get("POFX_DATA", "data"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    for name in options.sets:
        for rate in options.rates:
            figures[f"{name} {rate} %"] = one(options.data, name, rate, options)
            print(f"{name} {rate} %", figures[f"{name} {rate} %"], flush=True)
    print(json.dumps(figures | {"scikit-learn": sklearn.__version__, "torch": torch.__version__, "threads": 1}))


if __name__ == "__main__":
    main()
