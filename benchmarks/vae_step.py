"""A training step of the VAE against the leanest hand-written PyTorch loop of the same arithmetic.

784 binary pixels -> 2x256 -> 16 latents and back, SiLU, batch 128, one thread, float32, fused Adam, rows indexed in memory.
"lean" is what one writes by hand: Bernoulli logits through `binary_cross_entropy_with_logits`, the KL in closed form.
"pofx" is the library's model: `VAE.loss`, its mean, backward, step; it also standardises its inputs, asks whether cells
are missing, and keeps the log-terms of prior and encoder. Blocks of both alternate in one process, and every figure is
the median over blocks; the ratio is the median of the paired ratios, so that noise of the machine hits both.

    python benchmarks/vae_step.py [--blocks 60] [--steps 20]
"""

import argparse
import json
import os
import platform
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pofx.domain import Domain
from pofx.models.latent.vae import VAEConfig

N, D, H, L, BATCH = 10_000, 784, 256, 16, 128


def lean(x):
    encoder = nn.Sequential(nn.Linear(D, H), nn.SiLU(), nn.Linear(H, H), nn.SiLU(), nn.Linear(H, 2 * L))
    decoder = nn.Sequential(nn.Linear(L, H), nn.SiLU(), nn.Linear(H, H), nn.SiLU(), nn.Linear(H, D))
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)

    def step(index):
        rows = x[index]
        m, log_v = encoder(rows).chunk(2, -1)
        z = m + torch.randn(m.shape, generator=generator) * (0.5 * log_v).exp()
        reconstruction = binary_cross_entropy_with_logits(decoder(z), rows, reduction="sum")
        loss = (reconstruction + 0.5 * (m * m + log_v.exp() - 1 - log_v).sum()) / len(rows)
        adam.zero_grad()
        loss.backward()
        adam.step()

    return step


def pofx(x):
    model = VAEConfig(latents=L, widths=(H, H), dropout=0.0).build(Domain.counts((28, 28), 2))
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
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = (torch.rand(N, D) < 0.2).float()
    steps = {"lean": lean(x), "pofx": pofx(x)}
    times = {name: [] for name in steps}
    for block in range(options.blocks + 2):  # the first two warm up
        indices = [torch.randint(N, (BATCH,)) for _ in range(options.steps)]
        for name in sorted(steps, reverse=block % 2 == 1):
            times[name].append(seconds(steps[name], indices))
    times = {name: values[2:] for name, values in times.items()}
    ratios = [[p / q for p, q in zip(ours, theirs, strict=True)] for ours, theirs in zip(times["pofx"], times["lean"], strict=True)]
    wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"{'':6s}{'ms/step wall':>14s}{'ms/step CPU':>14s}")
    for name, values in times.items():
        medians = [statistics.median(column) / options.steps * 1e3 for column in zip(*values, strict=True)]
        print(f"{name:6s}{medians[0]:14.3f}{medians[1]:14.3f}")
    print(f"ratio {wall:14.3f}{cpu:14.3f}   (bar 1.05)")
    versions = {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}
    print(json.dumps({"ratio_wall": round(wall, 4), "ratio_cpu": round(cpu, 4), **versions}))


if __name__ == "__main__":
    main()
