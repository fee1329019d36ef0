"""Breast cancer (569 x 30, standardised) with half its cells hidden at random: what each method fills in, and how fast.

    python benchmarks/missing_gaussian.py [--repeats 3] [--peers]

The figure is the mean squared error on the hidden cells, which no method sees. `gaussian` learns by EM on the rows
with holes, as `pofx.fit` has it: a tenth of the rows is held out to choose its prior. --peers adds scikit-learn's
IterativeImputer. One thread. Prints a table and, last, one JSON line.
"""

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import sklearn
import torch
from sklearn.datasets import load_breast_cancer

from pofx.domain import Domain
from pofx.models.classical.gaussian import GaussianConfig


def hidden_half(x):
    """The same rows with half of all cells NaN."""
    r = np.random.RandomState(1234)
    holes = x.flatten()
    holes[r.choice(x.size, x.size // 2, replace=False)] = np.nan
    return holes.reshape(x.shape)


def gaussian(holes, repeat):
    x = torch.tensor(holes)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(repeat))
    model = GaussianConfig().build(Domain.real(x.shape[1]))
    for _ in model.steps(x[order[len(x) // 10 :]], holdout=x[order[: len(x) // 10]]):
        pass
    return model.impute(x).numpy()


def column_means(holes, _repeat):
    return np.where(np.isnan(holes), np.nanmean(holes, 0), holes)


def iterative(holes, _repeat):
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401, imported for its effect: it lets the next line work
    from sklearn.impute import IterativeImputer

    return IterativeImputer(max_iter=20, random_state=0, tol=1e-12).fit_transform(holes)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = load_breast_cancer().data
    x = (x - x.mean(0)) / x.std(0)
    holes = hidden_half(x)
    methods = {"gaussian": gaussian, "column means": column_means} | ({"IterativeImputer": iterative} if options.peers else {})
    figures = {}
    print(f"{'':18s} {'MSE':>8s} {'worst':>8s} {'CPU s':>8s}")
    for name, method in methods.items():
        errors, seconds = [], []
        for repeat in range(options.repeats):
            start = time.process_time()
            filled = method(holes, repeat)
            seconds.append(time.process_time() - start)
            errors.append(float(np.square(filled - x)[np.isnan(holes)].mean()))
        error, second = statistics.median(errors), statistics.median(seconds)
        print(f"{name:18s} {error:8.4f} {max(errors):8.4f} {second:8.2f}")
        figures |= {f"{name} mse": round(error, 4), f"{name} s": round(second, 2)}
    print(json.dumps(figures | {"torch": torch.__version__, "scikit-learn": sklearn.__version__, "threads": 1}))


if __name__ == "__main__":
    main()
