"""A training step of the VAE against the leanest hand-written PyTorch loop of the same arithmetic.

784 binary pixels -> 2x256 -> 16 latents and back, SiLU, batch 128, one thread, float32, fused Adam, rows indexed in memory.
"lean" is what one writes by hand for the same function of the same weights: inputs standardised and clipped, Bernoulli
logits through `binary_cross_entropy_with_logits`, the KL in closed form, one sum. "raw" is lean with raw pixels as inputs:
other, lesser arithmetic, for comparison. "pofx" is the library's model: `VAE.loss`, its mean, backward, step; it asks at
every step whether cells are missing or outside the support. With --draws K > 1 both climb the importance-weighted bound of K draws, in one
call of the decoder. Blocks alternate in one process, in random order, and every
figure is the median over blocks; a ratio is the median of the paired ratios, so that noise of the machine hits all.

    python benchmarks/vae_step.py [--blocks 60] [--steps 20] [--draws 1]
"""

import argparse
import json
import math
import os
import platform
import random
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pofx.domain import Domain
from pofx.models.latent.vae import VAEConfig

N, D, H, L, BATCH = 10_000, 784, 256, 16, 128


def by_hand(x, standardised, draws):
    encoder = nn.Sequential(nn.Linear(D, H), nn.SiLU(), nn.Linear(H, H), nn.SiLU(), nn.Linear(H, 2 * L))
    decoder = nn.Sequential(nn.Linear(L, H), nn.SiLU(), nn.Linear(H, H), nn.SiLU(), nn.Linear(H, D))
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)
    mean, scale = x.mean(0), x.std(0)

    def step(index):
        rows = x[index]
        inputs = ((rows - mean) / scale).clamp(-3, 3) if standardised else rows
        m, log_v = encoder(inputs).chunk(2, -1)
        eps = torch.randn(draws, *m.shape, generator=generator)
        z = m + eps * (0.5 * log_v).exp()
        logits = decoder(z.view(-1, L))
        if draws == 1:
            reconstruction = binary_cross_entropy_with_logits(logits, rows, reduction="sum")
            loss = (reconstruction + 0.5 * (m * m + log_v.exp() - 1 - log_v).sum()) / len(rows)
        else:
            each = binary_cross_entropy_with_logits(logits.view(draws, *rows.shape), rows.expand(draws, -1, -1), reduction="none").sum(-1)
            log_w = 0.5 * (eps * eps - z * z + log_v).sum(-1) - each
            loss = (math.log(draws) - log_w.logsumexp(0)).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()

    return step


def pofx(x, draws):
    objective = "elbo" if draws == 1 else "iwae"
    model = VAEConfig(latents=L, widths=(H, H), dropout=0.0, objective=objective, loss_draws=draws).build(Domain.counts((28, 28), 2))
    model.initialise(x)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)

    def step(index):
        loss = model.loss(x[index], generator=generator).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()

    return step


def seconds(step, indices):
    wall, cpu = time.perf_counter(), time.process_time()
    for index in indices:
        step(index)
    return time.perf_counter() - wall, time.process_time() - cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=60)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--draws", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = (torch.randn(N, 8) @ torch.randn(8, D) - 2).sigmoid().bernoulli()
    k = options.draws
    steps = {"lean": by_hand(x, True, k), "raw": by_hand(x, False, k), "pofx": pofx(x, k)}
    times = {name: [] for name in steps}
    for _ in range(options.blocks + 2):  # the first two warm up
        indices = [torch.randint(N, (BATCH,)) for _ in range(options.steps)]
        for name in random.sample(list(steps), len(steps)):
            times[name].append(seconds(steps[name], indices))
    ours = times["pofx"][2:]
    print(f"{'':6s}{'ms/step wall':>14s}{'CPU':>8s}{'pofx/it wall':>14s}{'CPU':>8s}")
    ratios = {}
    for name, values in times.items():
        wall, cpu = (statistics.median(column) / options.steps * 1e3 for column in zip(*values[2:], strict=True))
        paired = [[p / q for p, q in zip(our, their, strict=True)] for our, their in zip(ours, values[2:], strict=True)]
        ratios[name] = [round(statistics.median(column), 4) for column in zip(*paired, strict=True)]
        print(f"{name:6s}{wall:14.3f}{cpu:8.3f}{ratios[name][0]:14.3f}{ratios[name][1]:8.3f}")
    versions = {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}
    figures = {f"ratio_{name}_{clock}": r for name in ("lean", "raw") for clock, r in zip(("wall", "cpu"), ratios[name], strict=True)}
    print(json.dumps(figures | {"draws": k, "bar": 1.1} | versions))


if __name__ == "__main__":
    main()
