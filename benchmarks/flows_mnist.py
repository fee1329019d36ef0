"""MNIST, 8 bits a pixel: bits/dim and samples of a flow of images, learned within a budget of time.

    python benchmarks/flows_mnist.py [--family glow] [--budget 1800] [--set width=64 ...] [--data DIR] [--sheet FILE.png] [--save FILE]

Learns 55,000 of the 60,000 training images, stops and chooses by the other 5,000, and scores the 10,000 test images once. The learning
rate falls over the budget. Prints the history and, last, one JSON line; writes a sheet of samples. Published after days on GPUs: Real NVP
1.06 bits/dim, Glow 1.05.
"""

import argparse
import base64
import json
import os
from pathlib import Path

import numpy as np
from circuits_mnist import PIXELS, figures, timed

import pofx
from pofx.models.registry import plain
from pofx.report.images import sheet

SETTINGS = {"glow": {"layers": 8, "blocks": 1}, "realnvp": {"net": "conv", "width": 32, "layers": 4, "final_rate": 0.02}}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="glow")
    parser.add_argument("--budget", type=float, default=1800)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--data", default=os.environ.get("POFX_DATA", "data"))
    parser.add_argument("--rows", type=int, default=55_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--sheet", default="flows_mnist.png")
    parser.add_argument("--save")
    return parser.parse_args()


def settings(options):
    given = (word.partition("=")[::2] for word in options.set)
    return {"max_epochs": 1000} | SETTINGS.get(options.family, {}) | {name: plain(text) for name, text in given}


def draw_sheet(p, path):
    draws = np.asarray(p.sample(60, seed=0), dtype=np.float64).reshape(60, -1)
    Path(path).write_bytes(base64.b64decode(sheet(draws, PIXELS).partition(",")[2]))


def main():
    options = arguments()

    def learned(train):
        watched = {"holdout": train[55_000:], "schema": PIXELS, "budget": options.budget}
        return pofx.fit(train[: options.rows], options.family, **watched, **settings(options))

    p, test, seconds = timed(options, learned)
    draw_sheet(p, options.sheet)
    told = {"family": options.family, "settings": settings(options)}
    print(json.dumps(figures(p, test[: options.test], seconds, told)))


if __name__ == "__main__":
    main()
