"""Diffusion: what the bound says of digits, how near toys come by the ODE's likelihood, and conditioning of an exact mixture.

    python benchmarks/diffusion.py digits [--budget 60]
    python benchmarks/diffusion.py toys [--budget 60] [--sets moons checkerboard] [--family cnf]
    python benchmarks/diffusion.py conditioning
    python benchmarks/diffusion.py learned [--budget 60]
    python benchmarks/diffusion.py joint --budget 600
    python benchmarks/diffusion.py inpainting --budget 180

digits: the family as it stands, one thread; bits a pixel of the test rows, a bound, and seconds of 64 draws. toys: KL(truth || model) by
the exact density and that of the probability-flow ODE, and by the bound, on the first 2,000 test rows; agree: the mean of truth / model
over 2,000 draws of 20 evaluations, which is 1 where draws and density are one law that covers the truth. conditioning: four normals in the
plane, the first coordinate seen as 0.35; draws by twisted SMC and by heuristics against the exact posterior. learned: the same by a network
that saw 20,000 draws of both coordinates and the noisy observation: its own conditional, and its law of whole rows by twisted SMC. Prints
figures and, last, one JSON line.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

import pofx
from pofx.models.diffusion.diffusion import Diffusion
from pofx.models.diffusion.exact import ExactDenoiser
from pofx.samplers.denoising import SOLVERS, last
from pofx.samplers.guidance import DPS, MomentMatching, RePaint
from pofx.samplers.levels import karras, log_uniform
from pofx.samplers.twisted import Matched, observe_row, twisted

BARS = {"digits": 2.06, "toys": 0.05}
OF_TOYS = {
    "width": 64,
    "blocks": 3,
    "batch_size": 256,
    "masked": 0.0,
    "dropout": 0.0,
    "learning_rate": 6e-3,
    "max_epochs": 900,
    "patience": 900,
    "ema": 0.998,
}
OF_PAIRS = {
    "blocks": 4,
    "masked": 0.8,
    "dropout": 0.0,
    "width": 128,
    "batch_size": 256,
    "learning_rate": 4e-3,
    "max_epochs": 2000,
    "patience": 2000,
    "ema": 0.998,
}
SEEN, ISLANDS = 0.35, 16


def fitted(name, budget, family="diffusion", **options):
    start = time.process_time()
    p = pofx.fit(name, family, budget=budget, progress=False, **options)
    return p, {"cpu_s": round(time.process_time() - start, 1), "steps": p.record.history[-1]["step"]}


def digits(options):
    p, row = fitted("digits", options.budget)
    score = p.score(pofx.load("digits").test)
    start = time.perf_counter()
    p.sample(64)
    row |= {"nats": round(-float(score), 2), "error": round(float(score.error), 2), "draws_s": round(time.perf_counter() - start, 2)}
    row["bits_per_dim"] = round(float(score) / -64 / math.log(2), 3)
    return {"digits": row}


def toys(options):
    rows = {}
    for name in options.sets:
        settings = OF_TOYS | ({"waves": 4} if name == "checkerboard" else {}) if options.family == "diffusion" else {}
        p, row = fitted(name, options.budget, options.family, **settings | dict(options.set))
        data = pofx.load(name)
        x, truth = data.test[:2000], data.log_prob(data.test[:2000])
        q = p.using(likelihood="ode") if options.family == "diffusion" else p
        ode, own = truth - np.asarray(q.log_prob(x)), p.sample(2000, seed=1)
        ratio = np.exp(data.log_prob(own) - np.asarray(q.log_prob(own)))
        figures = {"kl_ode": ode, "agree": ratio} | ({"kl_bound": truth - np.asarray(p.log_prob(x))} if q is not p else {})
        row |= {kind: round(float(each.mean()), 4) for kind, each in figures.items()}
        rows[name] = row | {f"{kind}_error": round(float(each.std() / len(each) ** 0.5), 4) for kind, each in figures.items()}
        print(name, rows[name], flush=True)
    return rows


def ways_to_condition(p, posterior, seen, row, y, levels, g):
    """Name and draw of each."""
    few = y[:4000]
    yield "exact score", lambda: last(SOLVERS["ancestral"](posterior, few, levels, generator=g))
    yield "twisted SMC", lambda: twisted(p, y, levels, Matched(seen), islands=ISLANDS, generator=g)
    yield "DPS", lambda: last(DPS(seen.residual)(p, few, levels, generator=g))
    yield "replacement", lambda: last(RePaint(row)(p, few, levels, generator=g))
    yield "RePaint x 10", lambda: last(RePaint(row, 10)(p, few, levels, generator=g))
    yield "moment matching", lambda: last(SOLVERS["ancestral"](MomentMatching(p, seen), few, levels, generator=g))


def four_normals():
    cov = torch.tensor(
        [[[0.05, 0.03], [0.03, 0.10]], [[0.08, -0.04], [-0.04, 0.06]], [[0.05, 0.0], [0.0, 0.05]], [[0.05, 0.0], [0.0, 0.05]]]
    )
    mean = torch.tensor([[0.0, 1.2], [0.2, -1.0], [1.5, 0.5], [-1.5, 0.0]])
    return ExactDenoiser(torch.tensor([0.4, 0.3, 0.2, 0.1]).double(), mean.double(), cov.double())


def learned(options):
    g = torch.Generator().manual_seed(0)
    exact, sd, rows = four_normals(), 0.1, {}
    x = exact.sample(20_000, generator=g)
    table = torch.cat((x, x[:, :1] + sd * torch.randn(20_000, 1, generator=g, dtype=torch.float64)), 1).numpy()
    settings = {"masked": 0.75, "dropout": 0.0, "batch_size": 256, "width": 64, "blocks": 4, "max_epochs": 400, "patience": 400}
    start = time.process_time()
    p = pofx.fit(table, "diffusion", budget=options.budget, progress=False, **settings)
    seconds = time.process_time() - start
    posterior, _ = exact.condition(torch.tensor([[1.0, 0.0]]).double(), torch.tensor([SEEN]).double(), torch.tensor([[sd**2]]).double())
    truth = posterior.sample(4000, generator=g)
    for method in (None, "twisted"):
        begun = time.process_time()
        drawn = torch.tensor(p.conditional(x2=SEEN, method=method, draws=16_000, seed=1).sample(4000, seed=2))
        figures = {
            "energy": energy(drawn, truth),
            "weight": float((drawn[:, 1] > 0.3).double().mean()),
            "truth": float(posterior.weight[0]),
        }
        figures |= {"cpu_s": time.process_time() - begun, "learned_s": seconds, "steps": p.record.history[-1]["step"]}
        rows[method or "network"] = {key: round(value, 4) for key, value in figures.items()}
        print(method or "network", rows[method or "network"], flush=True)
    return rows


def two_moons(theta, g):
    """x of theta, rows (N, 2) each (Greenberg, Nonnenmacher and Macke, ICML 2019)."""
    angle = math.pi * (torch.rand(len(theta), generator=g, dtype=torch.float64) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(len(theta), generator=g, dtype=torch.float64)
    crescent = torch.stack((radius * angle.cos() + 0.25, radius * angle.sin()), 1)
    return crescent + torch.stack((-(theta.sum(1)).abs(), theta[:, 1] - theta[:, 0]), 1) / math.sqrt(2)


def joint(options):
    """C2ST of p(theta | x) at the ten observations of sbibm; and the same network's p(x | theta) and p(theta | x_2)."""
    g = torch.Generator().manual_seed(0)
    theta = 2 * torch.rand(10_000, 2, generator=g, dtype=torch.float64) - 1
    table = torch.cat((theta, two_moons(theta, g)), 1).numpy()
    start = time.process_time()
    p = pofx.fit(table, "diffusion", budget=options.budget, progress=False, **OF_PAIRS | dict(options.set))
    row = {"cpu_s": round(time.process_time() - start, 1), "steps": p.record.history[-1]["step"]}
    reference = np.load(Path(os.environ["POFX_DATA"]) / "sbibm" / "two_moons.npz")
    each = []
    for x, truth in zip(reference["observation"], reference["reference_posterior"], strict=True):
        drawn = p.conditional(x2=float(x[0]), x3=float(x[1])).sample(2000, seed=len(each))
        each.append(told_apart(drawn, truth[:2000]))
    row |= {"c2st": round(float(np.median(each)), 3), "least": round(min(each), 3), "most": round(max(each), 3)}
    print(row, flush=True)
    near = two_moons(torch.tensor([[0.3, -0.5]], dtype=torch.float64).expand(2000, 2), g).numpy()
    row["x_given_theta"] = round(told_apart(p.conditional(x0=0.3, x1=-0.5).sample(2000, seed=1), near), 3)
    many = 2 * torch.rand(1_000_000, 2, generator=g, dtype=torch.float64) - 1
    near = many[(two_moons(many, g)[:, 1] - 0.2).abs() < 0.002][:2000].numpy()
    row["theta_given_x2"] = round(told_apart(p.conditional(x3=0.2).marginal("x0", "x1").sample(len(near), seed=1), near), 3)
    return {"two_moons": row}


def told_apart(x, y):
    """C2ST as sbibm has it: held-out accuracy of a small net in five folds, of standardised draws."""
    z, label = np.concatenate((x, y)), np.repeat([0, 1], [len(x), len(y)])
    z = (z - y.mean(0)) / y.std(0)
    net = MLPClassifier((10 * z.shape[1],) * 2, max_iter=1000, random_state=1)
    return float(cross_val_score(net, z, label, cv=KFold(5, shuffle=True, random_state=1)).mean())


def inpainting(options):
    """Lower halves of held-out digits: nats a hidden pixel, by the values of 64 draws with half a count for each of the 17."""
    p, row = fitted("digits", options.budget, **{"max_epochs": 2000, "patience": 200} | dict(options.set))
    x = torch.tensor(np.asarray(pofx.load("digits").test[:100]), dtype=torch.float64).flatten(1)
    hidden = (torch.arange(64) >= 32).expand_as(x)
    seen, model = torch.where(hidden, torch.nan, x), next(m for m in p.model.modules() if isinstance(m, Diffusion))
    g, denoise = torch.Generator().manual_seed(0), lambda y, s: model.denoised(y, s, model.free(len(y)))
    levels = log_uniform(25, *model.ends.exp().tolist())

    def replaced(repeats):
        at = torch.where(hidden, torch.nan, model.heads.embed(x.float()))
        start = levels[0] * torch.randn(len(x), 64, 64, generator=g)
        with torch.no_grad():
            drawn = [last(RePaint(one, repeats)(denoise, y, levels, generator=g)) for one, y in zip(at, start, strict=True)]
        return torch.stack([model.heads.read(y) for y in drawn], 1)

    def own():
        drawn = p.impute(seen.reshape(-1, 8, 8).numpy(), 64, seed=0)
        return torch.as_tensor(np.asarray(drawn)).reshape(64, len(x), 64)

    rows, first = {}, None
    for name, draw in {"network": own, "replacement": lambda: replaced(1), "RePaint x 5": lambda: replaced(5)}.items():
        start = time.process_time()
        hits = (draw().double().round() == x).double().sum(0)  # (rows, pixels)
        nats = -((hits + 0.5) / (64 + 0.5 * 17)).log()[hidden].view(len(x), -1).mean(1)
        first = nats if first is None else first
        behind = nats - first
        figures = {"nats_a_pixel": float(nats.mean()), "behind": float(behind.mean()), "error": float(behind.std() / len(x) ** 0.5)}
        figures["cpu_s"] = time.process_time() - start
        rows[name] = {key: round(value, 3) for key, value in figures.items()}
        print(name, rows[name], flush=True)
    return {"inpainting": rows | {"learned": row}}


def conditioning(options):
    g = torch.Generator().manual_seed(0)
    p = four_normals()
    rows, row = {}, torch.tensor([SEEN, torch.nan], dtype=torch.float64)
    for sd in (0.1, 0.01):
        posterior, log_z = p.condition(torch.tensor([[1.0, 0.0]]).double(), torch.tensor([SEEN]).double(), torch.tensor([[sd**2]]).double())
        seen, levels = observe_row(row, sd=sd, variance=1.0), karras(100, 0.005, 20.0)
        y = 20.0 * torch.randn(1000 * ISLANDS, 2, generator=g, dtype=torch.float64)
        ways = dict(ways_to_condition(p, posterior, seen, row, y, levels, g))
        exact = posterior.sample(4000, generator=g)
        for name, draw in ways.items():
            start = time.process_time()
            drawn = draw()
            x = drawn.sample(4000, generator=g) if name == "twisted SMC" else drawn
            figures = {"energy": energy(x, exact), "weight": float((x[:, 1] > 0.3).double().mean()), "truth": float(posterior.weight[0])}
            figures |= {"cpu_s": time.process_time() - start}
            if name == "twisted SMC":
                figures |= {"log_z": float(drawn.log_evidence[0]), "log_z_error": float(drawn.log_evidence[1]), "log_z_truth": float(log_z)}
            rows[f"{name}, {sd}"] = {key: round(value, 4) for key, value in figures.items()}
            print(f"{name}, {sd}", rows[f"{name}, {sd}"], flush=True)
    return rows


def energy(x, y):
    """2 E|x - y| - E|x - x'| - E|y - y'|, unbiased."""
    n, m = len(x), len(y)
    own = torch.cdist(x, x).sum() / (n * (n - 1)) + torch.cdist(y, y).sum() / (m * (m - 1))
    return float(2 * torch.cdist(x, y).mean() - own)


WAYS = {
    "digits": digits,
    "toys": toys,
    "conditioning": conditioning,
    "learned": learned,
    "joint": joint,
    "inpainting": inpainting,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WAYS)
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--sets", nargs="+", default=["moons", "eight_gaussians", "checkerboard"])
    parser.add_argument("--family", default="diffusion", help="of toys: diffusion or cnf")
    parser.add_argument("--set", type=lambda pair: pair.split("=", 1), nargs="+", default=[], help="options, of joint, toys and inpainting")
    options = parser.parse_args()
    rows = WAYS[options.what](options)
    print(json.dumps(rows | {"bar": BARS.get(options.what), "torch": torch.__version__, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
