"""MNIST, 8 bits a pixel: the bound of a diffusion model learned within a budget of time, and its draws by the number of evaluations.

    python benchmarks/diffusion_mnist.py [--budget 1200] [--set NAME=VALUE ...] [--data DIR] [--sheet FILE.png] [--save FILE]

Learns 55,000 of the 60,000 training images, stops and chooses by 1,000 others, and bounds every fifth test image by 16 levels each.
Draws: C2ST of 1,000 against as many test images, and the Frechet distance of 1,000 from the test images in the 64 features of a small
classifier, learned here on the labels, beside that of 1,000 training images: what so few real ones have. With --open, all that of a saved
model. Prints the history and, last, one JSON line; writes a sheet.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from circuits_mnist import PIXELS, figures, timed
from flows_mnist import draw_sheet
from torch import nn

import pofx
from pofx.measure.c2st import c2st
from pofx.measure.rows import features
from pofx.models.registry import plain

SOLVERS = {"dpm2m": (5, 10, 20, 40), "adams": (5, 10, 20, 40), "heun": (5, 10), "ddim": (20,), "ancestral": (40,)}
DRAWN, TESTED = 1000, 2000


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=1200)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--data", default=os.environ.get("POFX_DATA", "data"))
    parser.add_argument("--sheet", default="diffusion_mnist.png")
    parser.add_argument("--save")
    parser.add_argument("--open")
    return parser.parse_args()


def classifier(images, labels):
    """A small net of images, in two passes; what it computes before its last layer are the features."""
    torch.manual_seed(0)
    body = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(32 * 49, 64), nn.SiLU())
    )
    net = nn.Sequential(body, nn.Linear(64, 10))
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for at in [*torch.randperm(len(images)).split(128), *torch.randperm(len(images)).split(128)]:
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(images[at]), labels[at]).backward()
        optimiser.step()
    return net.eval(), body


def frechet(a, b):
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2)."""
    s, t = torch.cov(a.T), torch.cov(b.T)
    common = torch.linalg.eigvals(s @ t).real.clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + s.trace() + t.trace() - 2 * common)


@torch.no_grad()
def by_evaluations(p, see, test):
    """Frechet distance by solver and steps; Heun's asks twice a step but the last."""
    rows = {}
    for solver, counts in SOLVERS.items():
        for steps in counts:
            start = time.perf_counter()
            drawn = see(np.asarray(p.using(solver=solver, steps=steps).sample(DRAWN, seed=1)))
            asked = 2 * steps - 1 if solver == "heun" else steps
            rows[f"{solver}, {asked}"] = {"frechet": round(frechet(drawn, test), 3), "s": round(time.perf_counter() - start, 1)}
            print(f"{solver}, {asked} evaluations", rows[f"{solver}, {asked}"], flush=True)
    return rows


def main():
    options = arguments()
    settings = {name: plain(text) for name, _, text in (word.partition("=") for word in options.set)}

    def learned(train):
        if options.open:
            return pofx.open(options.open)
        return pofx.fit(train[:55_000], "diffusion", holdout=train[55_000:56_000], schema=PIXELS, budget=options.budget, **settings)

    p, test, seconds = timed(options, learned)
    draw_sheet(p, options.sheet)
    with np.load(Path(options.data) / "mnist" / "mnist.npz") as held:
        train, labels, test_labels = held["x_train"], torch.tensor(held["y_train"]).long(), torch.tensor(held["y_test"]).long()

    def images(x):
        return torch.tensor(np.asarray(x, dtype=np.float32) / 255)[:, None]

    net, body = classifier(images(train), labels)
    with torch.no_grad():
        right = float((net(images(test)).argmax(1) == test_labels).double().mean())
        near = body(images(test))
        floor = frechet(body(images(train[:: len(train) // DRAWN][:DRAWN])), near)
    flat = [
        torch.tensor(np.asarray(part, dtype=np.float64).reshape(-1, 784)) for part in (p.sample(1000, seed=2), test[-1000:], train[:5000])
    ]
    apart = c2st(*(features(part, PIXELS, flat[2]) for part in flat[:2]), generator=torch.Generator().manual_seed(0))
    told = {"classifier": round(right, 4), "frechet_of_training_images": round(floor, 3), "settings": settings}
    told |= {"c2st": round(float(apart), 3), "steps": p.record.history[-1]["step"]}
    told |= {"draws": by_evaluations(p, lambda x: body(images(x)), near)}
    print(json.dumps(figures(p.using(draws=16), test[:: len(test) // TESTED], seconds, told)))


if __name__ == "__main__":
    main()
