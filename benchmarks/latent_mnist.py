"""MNIST, a fixed binarisation: nats of a VAE with one level or two, learned within a budget of time.

    python benchmarks/latent_mnist.py [one|two] [--budget 1200] [--set NAME=VALUE ...] [--data DIR] [--save FILE]

`one`: one level, a standard normal prior; `two`: two levels, a VampPrior at the top. Pixels are drawn once, on with the probability of
their grey (numpy's PCG64(20090101), the training images, then the test images), and never drawn anew; it is not Larochelle's file:
figures on that are near, not equal. Learns 50,000 images, stops and chooses by 10,000 others, and scores the
first 1,000 test images by 500 weighted draws. Prints the history and, last, one JSON line.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch

import pofx
from pofx.domain import Domain
from pofx.models.registry import plain

PIXELS = Domain.counts((28, 28), 2)
COMMON = {
    "widths": (300, 300),
    "dropout": 0.0,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "final_rate": 0.1,
    "beta_warmup": 0.1,
    "max_epochs": 400,
    "ema": 0.999,
    "draws": 500,
}
SETTINGS = {
    "one": COMMON | {"latents": 40},
    "two": COMMON | {"latents": 40, "higher_latents": (40,), "prior": "vamp", "prior_components": 250, "batch_size": 200},
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=SETTINGS, default="two", nargs="?")
    parser.add_argument("--budget", type=float, default=1200)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--data", default=os.environ.get("POFX_DATA", "data"))
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--save")
    return parser.parse_args()


def binarised(folder):
    """Training and test images, drawn once."""
    chance = np.random.Generator(np.random.PCG64(20090101))
    with np.load(Path(folder) / "mnist" / "mnist.npz") as file:
        grey = [file[name].reshape(-1, 28, 28).astype(np.float32) / np.float32(255) for name in ("x_train", "x_test")]
    return [(chance.random(part.shape, dtype=np.float32) < part).astype(np.uint8) for part in grey]


def main():
    options = arguments()
    given = {name: plain(text) for name, _, text in (word.partition("=") for word in options.set)}
    train, test = binarised(options.data)
    start = time.perf_counter()
    settings = SETTINGS[options.which] | given
    p = pofx.fit(train[:50_000], "vae", holdout=train[50_000:], schema=PIXELS, budget=options.budget, **settings)
    seconds = time.perf_counter() - start
    for row in p.record.history:
        print({key: round(value, 3) for key, value in row.items() if value is not None}, flush=True)
    if options.save:
        p.save(options.save)
    answer = p.score(test[: options.test])
    figures = {"nats": round(-float(answer), 2), "error": round(float(answer.error), 2), "seconds": round(seconds)}
    run = {"epochs": len(p.record.history), "threads": torch.get_num_threads(), "record": p.record.summary()}
    print(json.dumps({"levels": options.which, "settings": {k: str(v) for k, v in settings.items()}} | figures | run))


if __name__ == "__main__":
    main()
