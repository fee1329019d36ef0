"""What the loop adds to a training step, and what clipping and averaging add to that.

A VAE of 784 -> 2x256 -> 16 latents and back, batch 128, one thread, float32, AdamW fused, rows indexed in memory.
"bare" is the leanest loop one writes by hand around the same loss; "loop" is `pofx.learn.run` with clipping and
averaging off; "fit" is what `pofx.fit` makes of the same model and rows, float64 in memory as fit holds them. Blocks
of both alternate inside one process, the bare one within the tracker call at the end of each epoch of the loop, so
that noise of the machine hits both; the figures are medians over blocks of the CPU time of a step, and the
difference is the median of the paired differences. The same with a batch of 1 shows the loop's cost without the
arithmetic's noise.

    python benchmarks/learn_step.py [--blocks 60] [--steps 20]
"""

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

import pofx.learn
from pofx.ask.fitting import gather
from pofx.data.preparation import prepare
from pofx.domain import Domain
from pofx.models.base import GradientConfig, Model, Takes
from pofx.models.composed import assemble

D, H, L = 784, 256, 16


class LeanVAE(Model):
    """ELBO with a closed KL and Bernoulli logits: as little arithmetic as there is."""

    def __init__(self, domain):
        super().__init__(domain)
        self.encoder = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, H), nn.ReLU(), nn.Linear(H, 2 * L))
        self.decoder = nn.Sequential(nn.Linear(L, H), nn.ReLU(), nn.Linear(H, H), nn.ReLU(), nn.Linear(H, D))

    def loss(self, x, c=None, *, generator=None):
        x = x.float()
        m, log_v = self.encoder(x).chunk(2, -1)
        z = m + torch.randn(m.shape, generator=generator) * (0.5 * log_v).exp()
        reconstruction = binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(-1)
        return reconstruction + 0.5 * (m * m + log_v.exp() - 1 - log_v).sum(-1)

    def _log_prob(self, x, c, generator):
        return -self.loss(x, generator=generator)

    def _sample(self, n, c, generator):
        return self.decoder(torch.randn(n, L, generator=generator)).sigmoid().bernoulli(generator=generator)


class Config(GradientConfig):
    takes = Takes.EVERYTHING
    clip_norm: float | None = None

    def _build(self, domain, context=None):
        return LeanVAE(domain)


class Bare:
    """The loop one writes by hand."""

    def __init__(self, x, batch):
        self.x, self.batch, self.model = x, batch, model()
        self.adam = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self):
        for index in torch.randperm(len(self.x)).split(self.batch):
            loss = self.model.loss(self.x[index], generator=self.generator).mean()
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()


def model():
    with pofx.learn.isolated(0):
        return LeanVAE(DOMAIN)


def looped(x, config, tracker):
    pofx.learn.run(model(), x, config=config, tracker=tracker, device="cpu")


def fitted(x, config, tracker):
    """The assembly of `pofx.fit`, on the array and schema a user would hand over."""
    rows = gather(x, schema=DOMAIN, holdout=x[:1])
    with pofx.learn.isolated(0):
        whole = assemble(config, rows.domain, rows.train, prepare(rows.domain, rows.train, config.takes))
    pofx.learn.run(whole, rows.train, config=config, tracker=tracker, device="cpu")


def paired(learn, x, batch, blocks, **options):
    """CPU seconds a step of the loop and of the bare one, block by block."""
    steps, bare, pairs = len(x) // batch, Bare(x, batch), []
    clock = time.process_time()

    def end_of_epoch(row):
        nonlocal clock
        between = time.process_time()
        bare()
        after = time.process_time()
        pairs.append(((between - clock) / steps, (after - between) / steps))
        clock = time.process_time()

    learn(x, Config(batch_size=batch, max_epochs=blocks + 3, **options), end_of_epoch)
    return pairs[3:]


def figures(pairs):
    loop, bare = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    return loop, bare, 1e6 * statistics.median(a - b for a, b in pairs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=60)
    parser.add_argument("--steps", type=int, default=20, help="a block")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    DOMAIN = Domain.counts((28, 28), 2)
    results = {}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, {arguments.blocks} blocks of {arguments.steps} steps, CPU time")
    print(f"{'batch':>5}  {'loop with':24}{'ms/step':>9}{'bare':>9}{'adds µs':>9}{'ratio':>8}")
    for batch in (128, 1):
        x = (torch.rand(batch * arguments.steps, D, generator=torch.Generator().manual_seed(0)) < 0.2).float()
        for name, learn, options in (
            ("nothing", looped, {}),
            ("fit", fitted, {}),
            ("clipping", looped, {"clip_norm": 10.0}),
            ("averaging", looped, {"ema": 0.999}),
            ("clipping and averaging", looped, {"clip_norm": 10.0, "ema": 0.999}),
        ):
            loop, bare, added = figures(paired(learn, x, batch, arguments.blocks, **options))
            results[f"{name}, batch {batch}"] = {"ms": loop, "bare_ms": bare, "added_us": added, "ratio": loop / bare}
            print(f"{batch:5}  {name:24}{loop:9.3f}{bare:9.3f}{added:9.0f}{loop / bare:8.3f}")
    print(json.dumps({name: {k: round(v, 4) for k, v in row.items()} for name, row in results.items()}))
