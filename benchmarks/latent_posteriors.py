"""Families of posteriors and discrete latents side by side: `vae` as it stands on digits (8 x 8, 17 levels), as many steps of each.

    python benchmarks/latent_posteriors.py [--epochs 150] [--seeds 1] [--only full flow]

Runs and columns are those of `latent_objectives.py`: every run takes all its steps, the weights with the best held-out bound are kept;
test nats by 128 weighted draws, minus the bound, KL(q || p), the time of a step over that of the first line. Last, one JSON line.
"""

import argparse
import json

import torch
from latent_objectives import measured

import pofx

CATEGORICAL = {"prior": "categorical"}
WAYS = {
    "diagonal": {},
    "full": {"posterior": "full"},
    "student": {"posterior": "student"},
    "flow, 2 steps": {"posterior": "flow"},
    "flow, 4 steps": {"posterior": "flow", "posterior_steps": 4},
    "16 of 10 categories, straight through": CATEGORICAL,
    "the same, 4 draws": {**CATEGORICAL, "loss_draws": 4},
    "the same, temperature 0.5": {**CATEGORICAL, "loss_draws": 4, "temperature": 0.5},
    "16 of 10 categories, score function, 4 draws": {**CATEGORICAL, "loss_draws": 4, "gradient": "score"},
}
COLUMNS = ("nats", "elbo", "kl", "step", "kept")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(WAYS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    test, found, first = pofx.load("digits").test, {}, None
    measured(test, 1, 0, {})  # what is imported and warmed at the first run is no part of a step
    print(f"{'':46s}" + "".join(f"{column:>9s}" for column in COLUMNS))
    for name in options.only:
        runs = [measured(test, options.epochs, seed, WAYS[name]) for seed in range(options.seeds)]
        found[name] = {column: sum(run[column] for run in runs) / len(runs) for column in COLUMNS}
        first = first or found[name]["step"]
        found[name]["step"] /= first
        print(f"{name:46s}" + "".join(f"{found[name][column]:9.2f}" for column in COLUMNS), flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
