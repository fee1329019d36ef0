"""Few labels: M1+M2 (and M2 alone) against k nearest neighbours and logistic regression on the same labels.

    python benchmarks/semi_supervised.py digits [--seeds S] [--labels N] [--family m1m2|m2] [--set NAME=VALUE]
    python benchmarks/semi_supervised.py mnist --data DIR [--seeds S] [--labels N]

Errors of the built-in split's test rows (digits, 8 x 8, 17 greys) or of the 10,000 test images (MNIST, pixels above 127 are on). As many
labels of each class are drawn by the seed among the training rows; the other training rows are learned from without theirs. A tenth
of the rows without labels is held out, and decides when to stop; no test row decides anything. The peers are scikit-learn's, on grey
pixels of the labelled rows: 1 and 3 nearest neighbours, the better of which is counted, and logistic regression whose penalty
5-fold cross-validation chooses. --set gives options of the family. Prints a row for each seed and, last, one JSON line.
"""

import argparse
import json
import os
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import sklearn
import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.neighbors import KNeighborsClassifier

import pofx
from pofx.domain import Domain, Variable
from pofx.models.registry import plain

DIGIT = Variable("digit", "categorical", levels=tuple(range(10)))
SETTINGS = {
    ("digits", "m1m2"): {
        "autoencoder": "vae:latents=16:widths=[]:dropout=0:beta=0.3:max_epochs=60:learning_rate=0.005",
        "prior": "m2:alpha=3:latents=8:widths=[48]:dropout=0:draws=4:max_epochs=300:patience=100:batch_size=128:learning_rate=0.005",
    },
    ("digits", "m2"): {"latents": 4, "max_epochs": 120, "batch_size": 128},
    ("mnist", "m1m2"): {
        "autoencoder": "vae:latents=16:widths=[400,400]:dropout=0:beta=0.3:batch_size=128:max_epochs=30",
        "codes": "means",
        "prior": "m2:latents=8:widths=[128]:dropout=0:draws=4:batch_size=250:max_epochs=180:learning_rate=0.005",
    },
    ("mnist", "m2"): {"latents": 50, "batch_size": 256, "max_epochs": 20},
}


def digits(_):
    """Grey training and test rows in 0 ... 16, their labels, and the variables."""
    data = pofx.load("digits")
    parts = ("train", "holdout", "test")
    x = [np.asarray(getattr(data, part)).reshape(len(data.labels[part]), -1).astype(float) for part in parts]
    y = [np.asarray(data.labels[part]) for part in parts]
    return np.concatenate(x[:2]), np.concatenate(y[:2]), x[2], y[2], data.domain.variables


def mnist(folder):
    """Binary pixels."""
    with np.load(Path(folder) / "mnist.npz") as file:
        x, y, test, truth = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    on = [(rows.reshape(len(rows), -1) > 127).astype(float) for rows in (x, test)]
    return on[0], y, on[1], truth, tuple(Variable(f"x{d}", "binary", levels=(0, 1)) for d in range(784))


def peers(x, y, test, truth):
    """Errors of the peers, learned from the labelled rows alone."""
    nearest = [np.mean(KNeighborsClassifier(k).fit(x, y).predict(test) != truth) for k in (1, 3)]
    scale = x.max()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logistic = LogisticRegressionCV(Cs=6, cv=5, max_iter=2000).fit(x / scale, y)
    return float(min(nearest)), float(np.mean(logistic.predict(test / scale) != truth))


def ours(family, settings, rows, labels, chosen, test, truth, variables, seed):
    """Error of the family, its seconds, and its held-out loss."""
    domain = Domain((*variables, DIGIT))
    shown = np.where(chosen, labels, np.nan)
    held = ~chosen & (np.random.default_rng(seed).random(len(rows)) < 0.1)
    table = np.c_[rows, shown]
    begin = time.perf_counter()
    name, where = ("latent", {"beside": "digit"}) if family == "m1m2" else ("m2", {"label": "digit"})
    p = pofx.fit(table[~held], name, schema=domain, holdout=table[held], seed=seed, **where, **settings)
    seconds = time.perf_counter() - begin
    guess = p.classify(np.c_[test, np.full(len(test), np.nan)], "digit").value.argmax(1)
    return float(np.mean(guess != truth)), seconds, p.record.history[-1]["holdout"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set_of", choices=("digits", "mnist"))
    parser.add_argument("--data", default=os.environ.get("POFX_DATA"))
    parser.add_argument("--family", choices=("m1m2", "m2"), default="m1m2")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.set_of == "mnist" and not (options.data and (Path(options.data) / "mnist.npz").exists()):
        print("mnist: no mnist.npz in --data, skipped")
        return
    rows, labels, test, truth, variables = {"digits": digits, "mnist": mnist}[options.set_of](options.data)
    settings = SETTINGS[options.set_of, options.family] | {name: plain(v) for name, _, v in (text.partition("=") for text in options.set)}
    errors = []
    print(f"seed  {options.family:6s} neighbours  logistic  seconds  held-out")
    for seed in range(options.seeds):
        chooser = np.random.default_rng(seed)
        at = np.concatenate([chooser.permutation(np.flatnonzero(labels == k))[: options.labels // 10] for k in range(10)])
        chosen = np.isin(np.arange(len(rows)), at)
        error, seconds, held = ours(options.family, settings, rows, labels, chosen, test, truth, variables, seed)
        errors.append((error, *peers(rows[chosen], labels[chosen], test, truth)))
        print(f"{seed:4d}  {error:6.3f} {errors[-1][1]:10.3f}  {errors[-1][2]:8.3f}  {seconds:7.0f}  {held:8.3f}", flush=True)
    mean = np.mean(errors, 0).round(4).tolist()
    figures = dict(zip((options.family, "neighbours", "logistic"), mean, strict=True))
    print(
        json.dumps({"set": options.set_of, "labels": options.labels, "seeds": options.seeds} | figures | {"sklearn": sklearn.__version__})
    )


if __name__ == "__main__":
    main()
