"""Digits 8 x 8 with and without an encoder: nats, seconds, and how many draws of the prior a row would need.

    python benchmarks/latent_encoder_free.py [--seeds 1] [--budget 60] [--latents 2 4 8 16] [--ways encoder table hmc prior]

Each way learns the same model within the same budget of seconds. Test rows are scored by 200 weighted draws; `needed` is the median
over 50 test rows of E[w^2] / E[w]^2 of the weights w = p(x | z), z ~ p(z), by weighted draws of q: about as many draws of the prior are
worth one of the posterior. `by prior` is minus the score that 10,000 draws of the prior give those rows, `by q` that of 2,000 of q.
One thread. Prints a table and, last, one JSON line.
"""

import argparse
import json
import math
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import pofx
from pofx.models.latent.encoder_free import FromPrior
from pofx.models.latent.inference import log_terms, proposed_terms
from pofx.models.latent.vae import VAE
from pofx.objectives.elbo import iwae, log_weights

OF_PRIOR = 10_000
FEW = 50  # rows


def prior_weights(p, x):
    """Of the first rows: log E[w^2] / E[w]^2, and scores by q and by draws of the prior, nats."""
    vae = next(part for part in p.model.modules() if isinstance(part, VAE))
    x, generator = torch.as_tensor(x[:FEW].reshape(FEW, -1), dtype=torch.float32), torch.Generator().manual_seed(0)
    with torch.no_grad():
        terms = proposed_terms(vae.generative, vae.inference, x, None, 2000, generator=generator)
        log_w = log_weights(terms)
        squares = iwae(log_w + terms.log_likelihood) - 2 * iwae(log_w)  # E_p[w^2] = E_q[(p / q) w^2], w = p(x | z)
        naive = [
            iwae(log_weights(log_terms(vae.generative, FromPrior().train(), row[None], None, OF_PRIOR, generator=generator))) for row in x
        ]
    return squares, -iwae(log_w).mean(), -torch.cat(naive).mean()


def one(way, latents, budget, seed, data):
    by = {"objective": "iwae", "loss_draws": 64} if way == "prior" else {}
    begin = time.perf_counter()
    train = np.asarray(data.train)
    p = pofx.fit(train, "vae", inference=way, latents=latents, draws=200, budget=budget, seed=seed, holdout=np.asarray(data.holdout), **by)
    seconds = time.perf_counter() - begin
    test = np.asarray(data.test)
    squares, by_q, by_prior = prior_weights(p, test)
    return {
        "way": way,
        "latents": latents,
        "seed": seed,
        "nats": round(-float(p.score(test)), 2),
        "seconds": round(seconds),
        "epochs": len(p.record.history),
        "needed": f"{math.exp(min(700.0, float(squares.median()))):.2g}",
        "by q": round(float(by_q), 2),
        "by prior": round(float(by_prior), 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--budget", type=float, default=60)
    parser.add_argument("--latents", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--ways", nargs="+", default=["encoder", "table", "hmc", "prior"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, rows = pofx.load("digits"), []
    for latents in options.latents:
        for way in options.ways:
            for seed in range(options.seeds):
                rows.append(one(way, latents, options.budget, seed, data))
                if len(rows) == 1:
                    print("  ".join(f"{key:>8s}" for key in rows[0]))
                print("  ".join(f"{value!s:>8s}" for value in rows[-1].values()), flush=True)
    print(json.dumps({"budget": options.budget, "torch": torch.__version__, "runs": rows}))


if __name__ == "__main__":
    main()
