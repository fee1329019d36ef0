"""Kernel density log_prob, 20,000 kernels x 1,000 queries, D = 2 and 10: pofx beside scikit-learn, and both beside brute force.

    python benchmarks/kde.py [--repeats 5]

One thread each. Half the queries are rows of another law, ten of them moved a hundred times as far. Runs alternate;
figures are medians of CPU seconds of scoring (scikit-learn's tree is built beforehand, not counted). The brute force
is a float64 log-sum-exp, one subtraction at a time. Prints a table and, last, one JSON line.
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
from sklearn.neighbors import KernelDensity

from pofx.domain import Domain
from pofx.models.classical.kde import KernelDensityConfig

KERNELS, QUERIES, BANDWIDTH = 20_000, 1_000, 0.5


def clusters(n, d, seed):
    """Rows of ten clusters whose places the seed decides."""
    r = np.random.default_rng(seed)
    centre, mixing = 3 * r.standard_normal((10, d)), np.eye(d) + 0.3 * r.standard_normal((10, d, d))
    which = r.integers(10, size=n)
    return centre[which] + np.einsum("nij,nj->ni", mixing[which], r.standard_normal((n, d)))


def brute_force(x, q):
    exponents = np.stack([-0.5 * np.square((row - x) / BANDWIDTH).sum(1) for row in q])
    top = exponents.max(1)
    total = np.log(np.exp(exponents - top[:, None]).sum(1)) + top
    return total - np.log(len(x)) - x.shape[1] * (np.log(BANDWIDTH) + 0.5 * np.log(2 * np.pi))


def timed(score, q):
    start = time.process_time()
    value = score(q)
    return time.process_time() - start, np.asarray(value)


def measure(d, repeats):
    same = clusters(KERNELS + QUERIES // 2, d, 1)
    x, q = same[:KERNELS], np.concatenate((same[KERNELS:], clusters(QUERIES // 2, d, 2)))
    q[-10:] *= 100
    model = KernelDensityConfig(bandwidth="silverman").build(Domain.real(d))
    list(model.steps(torch.tensor(x)))
    model.bandwidth = torch.full((d,), BANDWIDTH, dtype=torch.float64)
    peer = KernelDensity(bandwidth=BANDWIDTH).fit(x)
    runs = {"pofx": lambda rows: model.log_prob(torch.from_numpy(rows)), "scikit-learn": peer.score_samples}
    for run in runs.values():
        run(q[:50])
    times = {name: [] for name in runs}
    truth, error = brute_force(x, q), {}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds, value = timed(run, q)
            times[name].append(seconds)
            error[name] = float(np.abs(value - truth).max())
    return {name: statistics.median(t) for name, t in times.items()}, error, float(truth.min())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    figures = {}
    print(f"{'D':>3s} {'':13s} {'CPU s':>8s} {'worst error, nats':>18s} {'lowest log-density':>19s}")
    for d in (2, 10):
        seconds, error, lowest = measure(d, repeats)
        for name in seconds:
            print(f"{d:3d} {name:13s} {seconds[name]:8.3f} {error[name]:18.2g} {lowest:19.0f}")
        figures[f"times_faster_d{d}"] = round(seconds["scikit-learn"] / seconds["pofx"], 2)
        figures[f"worst_error_d{d}"] = error["pofx"]
        figures[f"scikit_learn_worst_error_d{d}"] = round(error["scikit-learn"], 2)
    print(json.dumps(figures | {"torch": torch.__version__, "scikit-learn": sklearn.__version__, "threads": 1}))


if __name__ == "__main__":
    main()
