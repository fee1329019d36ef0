"""MNIST, 8 bits a pixel: bits/dim of a circuit with a free probability for each of 256 values, learned within a budget of time.

    python benchmarks/circuits_mnist.py [--family quad_tree] [--units 64] [--budget 1800] [--data DIR] [--save FILE]

Learns 55,000 of the 60,000 training images, stops and chooses by the other 5,000, and scores the 10,000 test images once.
Prints the history and, last, one JSON line.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch

import pofx
from pofx.domain import Domain, Variable, VariableKind

PIXELS = Domain(tuple(Variable(f"x{d}", VariableKind.COUNT, lower=0.0, upper=255.0, dtype="uint8") for d in range(784)), (28, 28))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="quad_tree")
    parser.add_argument("--units", type=int, default=64)
    parser.add_argument("--budget", type=float, default=1800)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--learning", default="adam")
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--data", default=os.environ.get("POFX_DATA", "data"))
    parser.add_argument("--save")
    return parser.parse_args()


def learned(train, options):
    settings = {"units": options.units, "learning": options.learning, "learning_rate": options.rate}
    settings |= {"batch_size": options.batch, "max_epochs": options.epochs}
    held = {"holdout": train[55_000:], "schema": PIXELS, "budget": options.budget}
    return pofx.fit(train[:55_000], options.family, **held, **settings)


def figures(p, test, seconds, told):
    nats = float(p.score(test).value)
    return told | {
        "bits_per_dim": round(-nats / 784 / math.log(2), 4),
        "nats": round(nats, 2),
        "seconds": round(seconds),
        "epochs": len(p.record.history),
        "parameters": sum(t.numel() for t in p.model.parameters()),
        "threads": torch.get_num_threads(),
    }


def timed(options, learn):
    """What learning gives of the training images, the test images, and the seconds it took; its history printed, and saved as asked."""
    held = np.load(Path(options.data) / "mnist" / "mnist.npz")
    train, test = (held[name].reshape(-1, 28, 28) for name in ("x_train", "x_test"))
    start = time.perf_counter()
    p = learn(train)
    seconds = time.perf_counter() - start
    for row in p.record.history:
        print({key: round(value, 3) for key, value in row.items() if value is not None}, flush=True)
    if options.save:
        p.save(options.save)
    return p, test, seconds


def main():
    options = arguments()
    told = {"family": options.family, "units": options.units, "learning": options.learning}
    p, test, seconds = timed(options, lambda train: learned(train, options))
    print(json.dumps(figures(p, test, seconds, told)))


if __name__ == "__main__":
    main()
