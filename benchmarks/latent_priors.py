"""Priors of the VAE on digits: test nats a row by importance sampling, and how far the prior is from the codes.

    python benchmarks/latent_priors.py [--latents L] [--seeds S] [--set NAME=VALUE] PRIOR ...

Each prior learns with the built-in split of the 8 x 8 digits (17 greys), everything else at its default but for --set; its test rows are
scored with 500 draws. "gap" is KL(q(z) || p(z)) of the training rows' aggregated posterior, "purity" the share of the test rows
whose digit is the commonest among the training rows of their cluster, for priors that have clusters.
Prints a table and, last, one JSON line.
"""

import argparse
import json
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import pofx
from pofx.data import load
from pofx.errors import Unavailable
from pofx.models.latent.aggregated import aggregated_posterior, gap
from pofx.models.registry import plain

PRIORS = ("normal", "mixture", "vamp", "realnvp")


def codes_gap(p, rows):
    """KL(aggregated posterior || prior) and its standard error."""
    vae = p.model
    like = vae.generative.decoder.heads.bias
    aggregated = aggregated_posterior(vae.inference, torch.as_tensor(rows).flatten(1).to(like))
    return gap(aggregated, vae.generative.prior, draws=4000, like=like, generator=torch.Generator().manual_seed(0))


def purity(p, digits):
    """Share of test rows whose digit is the commonest of their cluster's training rows; None without clusters."""
    try:
        train, test = (np.argmax(p.cluster(rows), 1) for rows in (digits.train, digits.test))
    except Unavailable:
        return None
    votes = np.zeros((train.max() + 1, 10))
    np.add.at(votes, (train, digits.labels["train"]), 1)
    known = test < len(votes)
    return float((votes[test[known]].argmax(1) == digits.labels["test"][known]).sum() / len(test))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("priors", nargs="*", default=PRIORS)
    parser.add_argument("--latents", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {name: plain(value) for name, _, value in (text.partition("=") for text in options.set)}
    digits, figures = load("digits"), {}
    print(f"{'prior':10s} seed  test nats       gap            purity  seconds")
    for prior in options.priors:
        for seed in range(options.seeds):
            start = time.perf_counter()
            p = pofx.fit(
                digits.train, "vae", holdout=digits.holdout, schema=digits.domain, seed=seed, progress=False,
                prior=prior, latents=options.latents, draws=500, **settings,
            )  # fmt: skip
            seconds = time.perf_counter() - start
            score, apart, share = p.score(digits.test), codes_gap(p, digits.train), purity(p, digits)
            print(
                f"{prior:10s} {seed:4d}  {-float(score):6.2f} ± {float(score.error):.2f}  {apart.value:6.3f} ± {apart.error:.3f}  "
                f"{'-' if share is None else f'{share:.3f}':>6s}  {seconds:7.1f}",
                flush=True,
            )
            figures[f"{prior}_{seed}"] = round(-float(score), 2)
    print(json.dumps(figures | {"latents": options.latents, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
