"""Variational inference by flows against densities whose moments are known, with one set of defaults for all.

    python benchmarks/variational.py [--seeds 3] [--targets gaussian banana funnel "eight schools"] [--family iaf] [--set steps=3500]

Targets: a correlated normal (10-D), a banana (2-D), Neal's funnel (10-D) and the posterior of eight schools as it is written down, not
re-parameterised (10-D). z: how many standard errors the importance-corrected means and standard deviations lie from the exact ones, the
largest, and the root of the mean square over all of them; the largest of 20 is over 2 half of the time where all is right.
CPU seconds of one run of `pofx.approximate`, on one thread. Prints a table and, last, one JSON line.
"""

import argparse
import json
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import pofx
from pofx.testing.targets import TARGETS


def z_scores(answer, target):
    exact = torch.tensor(list(target.exact.values()), dtype=torch.float64)
    f = target.features(answer.weighted.x)
    mean, error = answer.weighted.expectation(f)
    variance, its_error = answer.weighted.expectation((f - mean).square())
    return torch.cat(((mean - exact[:, 0]) / error, (variance.sqrt() - exact[:, 1]) / (its_error / (2 * variance.sqrt()))))


def one(name, seed, family, options):
    target = TARGETS[name]()
    start = time.process_time()
    answer = pofx.approximate(target.log_density, target.space, family, seed=seed, progress=False, **options)
    seconds = time.process_time() - start
    z = z_scores(answer, target)
    return {
        "target": name,
        "seed": seed,
        "cpu_s": round(seconds, 1),
        "ess_share": round(answer.ess / len(answer.weighted.x), 3),
        "k_hat": round(answer.k_hat, 2),
        "largest_z": round(float(z.abs().max()), 2),
        "rms_z": round(float(z.square().mean().sqrt()), 2),
        "log_z_error": round(float(answer.log_evidence) - target.log_z, 4),
        "log_z_z": round((float(answer.log_evidence) - target.log_z) / float(answer.log_evidence.error), 2),
        "elbo_gap": round(target.log_z - float(answer.elbo), 4),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--family", default="iaf")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = {name: json.loads(value) for name, value in (item.split("=", 1) for item in arguments.set)}
    rows = []
    for name in arguments.targets:
        for seed in range(arguments.seeds):
            rows.append(one(name, seed, arguments.family, options))
            if len(rows) == 1:
                print("  ".join(f"{key:>13s}" for key in rows[0]))
            print("  ".join(f"{value!s:>13s}" for value in rows[-1].values()), flush=True)
    print(json.dumps({"family": arguments.family, "torch": torch.__version__, "threads": 1, "runs": rows}))


if __name__ == "__main__":
    main()
