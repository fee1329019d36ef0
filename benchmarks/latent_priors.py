"""Priors of the VAE on digits: test nats a row by importance sampling, and how far the prior is from the codes.

    python benchmarks/latent_priors.py [--latents L] [--seeds S] [--set NAME=VALUE] [--picture FILE] PRIOR ...

Each prior learns with the built-in split of the 8 x 8 digits (17 greys), everything else at its default but for --set; its test rows are
scored with 500 draws. "gap" is KL(q(z) || p(z)) of the training rows' aggregated posterior, "purity" the share of the test rows
whose digit is the commonest among the training rows of their cluster, for priors that have clusters.
With --latents 2, --picture draws each prior beside the aggregated posterior of the training rows, of the first seed.
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


def codes_of(p, rows):
    """The aggregated posterior."""
    return aggregated_posterior(p.model.inference, torch.as_tensor(rows).flatten(1).to(p.model.generative.decoder.heads.bias))


def codes_gap(p, rows):
    """KL(aggregated posterior || prior) and its standard error."""
    like = p.model.generative.decoder.heads.bias
    return gap(codes_of(p, rows), p.model.generative.prior, draws=4000, like=like, generator=torch.Generator().manual_seed(0))


def drawn(learned, rows, file):
    """A column for each prior: its density above, that of the aggregated posterior below; colours go by the root of the density."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(learned), 5.6), layout="constrained")
    for axes, (prior, p) in zip(figure.subplots(2, len(learned), squeeze=False).T, learned.items(), strict=True):
        codes, like = codes_of(p, rows), p.model.generative.decoder.heads.bias
        reach = float(codes.sample((4000,), like=like, generator=torch.Generator().manual_seed(0)).abs().quantile(0.999)) + 0.5
        ticks = torch.linspace(-reach, reach, 161, dtype=like.dtype)
        z = torch.cartesian_prod(ticks, ticks)
        with torch.no_grad():
            heights = [law.log_prob(z).exp().view(161, 161).T for law in (p.model.generative.prior, codes)]
        top = float(torch.stack(heights).quantile(0.999))
        for axis, height, name in zip(axes, heights, (f"p(z): {prior}", "q(z), its rows"), strict=True):
            axis.pcolormesh(ticks, ticks, height, norm=PowerNorm(0.5, 0, top), cmap="magma", rasterized=True)
            axis.set(aspect="equal", title=name, xticks=(), yticks=())
    figure.savefig(file, dpi=110)


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
    parser.add_argument("--picture")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {name: plain(value) for name, _, value in (text.partition("=") for text in options.set)}
    digits, figures, learned = load("digits"), {}, {}
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
            learned.setdefault(prior, p)
            figures[f"{prior}_{seed}"] = round(-float(score), 2)
    if options.picture:
        drawn(learned, digits.train, options.picture)
    print(json.dumps(figures | {"latents": options.latents, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
