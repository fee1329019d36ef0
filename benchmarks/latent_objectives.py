"""What a VAE is learned by, side by side: `vae` as it stands on digits (8 x 8, 17 levels), for as many steps by each objective.

    python benchmarks/latent_objectives.py [--epochs 150] [--seeds 2]

Every run takes all its steps (no early stopping); the weights with the best held-out bound are kept, as ever (of the autoencoder: with the
best held-out reconstruction). In nats a row of the test
set, means over the seeds:

    nats    -log p(x) by 128 weighted draws, what log_prob says: lower is better
    elbo    the plain bound, negated
    kl      KL(q(z | x) || p(z))
    codes   -log p(x | z = E_q[z]): how well a code tells its row
    mmd     MMD^2 of the codes' draws and the prior's, by the inverse multiquadratic kernel, times 1000

`step` is the wall time of a step over that of the first line's. One thread, float32. Last, one JSON line.
"""

import argparse
import json
import os
import statistics

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import pofx
from pofx.models.latent.inference import log_terms, mean_terms
from pofx.objectives.elbo import divergence, elbo
from pofx.objectives.mmd import imq, mmd2

WAYS = {
    "elbo": {},
    "elbo, beta 4": {"beta": 4.0},
    "elbo, beta 0.5": {"beta": 0.5},
    "elbo, warm-up 0.2": {"beta_warmup": 0.2},
    "elbo, 8 nats free": {"free_bits": 8.0},
    "iwae 8": {"objective": "iwae", "loss_draws": 8},
    "iwae 8, dreg": {"objective": "iwae", "loss_draws": 8, "gradient": "dreg"},
    "infovae, weight 10": {"objective": "infovae"},
    "infovae, beta 0, weight 1000": {"objective": "infovae", "beta": 0.0, "mmd_weight": 1000.0},
    "infovae, beta 0, weight 1000, rbf": {"objective": "infovae", "beta": 0.0, "mmd_weight": 1000.0, "kernel": "rbf"},
    "autoencoder": {"objective": "autoencoder"},
}
COLUMNS = ("nats", "elbo", "kl", "codes", "mmd", "step", "kept")


def measured(test, epochs, seed, options):
    p = pofx.fit("digits", "vae", seed=seed, progress=False, max_epochs=epochs, patience=epochs, **options)
    model, g = p.model, torch.Generator().manual_seed(0)
    x = torch.as_tensor(test, dtype=torch.float32).flatten(1)
    parts = (model.generative, model.inference, x)
    with torch.no_grad():
        drawn = log_terms(*parts, None, 16, generator=g)
        (z,), (y,) = drawn.latents, drawn.prior_draws()
        return {
            "nats": -float(p.log_prob(test).value.mean()),
            "elbo": -float(elbo(drawn).mean()),
            "kl": float(divergence(drawn, 0).mean()),
            "codes": -float(mean_terms(*parts).log_likelihood.mean()),
            "mmd": 1000 * float(mmd2(z, y, imq).mean()),
            "step": p.record.seconds / p.record.history[-1]["step"],
            "kept": next(row["epoch"] for row in p.record.history if row["step"] == p.record.kept),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(WAYS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    test, found, first = pofx.load("digits").test, {}, None
    measured(test, 1, 0, {})  # what is imported and warmed at the first run is no part of a step
    print(f"{'':34s}" + "".join(f"{column:>9s}" for column in COLUMNS))
    for name in options.only:
        runs = [measured(test, options.epochs, seed, WAYS[name]) for seed in range(options.seeds)]
        found[name] = {column: statistics.fmean(run[column] for run in runs) for column in COLUMNS}
        first = first or found[name]["step"]
        found[name]["step"] /= first
        print(f"{name:34s}" + "".join(f"{found[name][column]:9.2f}" for column in COLUMNS), flush=True)
    print(json.dumps({name: {k: round(v, 3) for k, v in row.items()} for name, row in found.items()} | {"torch": torch.__version__}))


if __name__ == "__main__":
    main()
