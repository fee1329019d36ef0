"""Full-covariance mixtures, N = 100,000, D = 20, K = 50, 20 EM iterations: pofx beside scikit-learn, one thread each.

    python benchmarks/gmm.py [--rows 100000] [--repeats 3]

Every run takes exactly 20 iterations from its library's usual start (pofx: the best of five seedings by k-means++;
scikit-learn: one k-means run to its end), a new seed each repeat. Runs of the four contestants alternate; figures are
medians of CPU seconds of the whole fit, seeding included. Prints a table and, last, one JSON line.
"""

import argparse
import json
import os
import statistics
import time
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import sklearn
import torch
from sklearn.mixture import GaussianMixture

from pofx.domain import Domain
from pofx.models.classical.gmm import GaussianMixtureConfig

D, K, ITERATIONS = 20, 50, 20


def rows(n):
    """Rows of 50 clusters with full covariances of their own."""
    r = np.random.default_rng(0)
    centre, mixing = 3 * r.standard_normal((K, D)), np.eye(D) + 0.3 * r.standard_normal((K, D, D))
    which = r.integers(K, size=n)
    return centre[which] + np.einsum("nij,nj->ni", mixing[which], r.standard_normal((n, D)))


def ours(x, precision, seed):
    config = GaussianMixtureConfig(components=K, covariance="full", prior_rows=0.0, steps=ITERATIONS, tolerance=0.0, precision=precision)
    model = config.build(Domain.real(D))
    start = time.process_time()
    taken = sum(1 for _ in model.steps(x, generator=torch.Generator().manual_seed(seed)))
    return time.process_time() - start, taken, model.log_prob(x).mean().item()


def theirs(x, seed):
    model = GaussianMixture(K, max_iter=ITERATIONS, tol=0.0, random_state=seed)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it did not converge: it was not to
        model.fit(x)
    return time.process_time() - start, model.n_iter_, float(model.score(x))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = rows(options.rows)
    runs = {
        "pofx float64": lambda s: ours(torch.tensor(x), "float64", s),
        "pofx float32": lambda s: ours(torch.tensor(x), "float32", s),
        "scikit-learn float64": lambda s: theirs(x, s),
        "scikit-learn float32": lambda s: theirs(x.astype(np.float32), s),
    }
    results = {name: [] for name in runs}
    for repeat in range(options.repeats):
        for name, run in runs.items():
            results[name].append(run(repeat))
    seconds, iterations, nats = ({name: statistics.median(r[i] for r in rs) for name, rs in results.items()} for i in range(3))
    print(f"{'':22s} {'CPU s':>8s} {'iterations':>11s} {'mean log-likelihood':>20s}")
    for name in runs:
        print(f"{name:22s} {seconds[name]:8.2f} {iterations[name]:11.0f} {nats[name]:20.3f}")
    figures = {
        "float64_times_faster": seconds["scikit-learn float64"] / seconds["pofx float64"],
        "float32_times_faster": seconds["scikit-learn float32"] / seconds["pofx float32"],
        "float32_times_faster_than_default": seconds["scikit-learn float64"] / seconds["pofx float32"],
        "float64_nats_better": nats["pofx float64"] - nats["scikit-learn float64"],
        "float32_nats_better": nats["pofx float32"] - nats["scikit-learn float32"],
    }
    versions = {"torch": torch.__version__, "scikit-learn": sklearn.__version__, "threads": 1, "rows": options.rows}
    print(json.dumps({name: round(value, 3) for name, value in figures.items()} | versions))


if __name__ == "__main__":
    main()
