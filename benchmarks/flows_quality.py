"""Flows on real tables: held-out log-likelihood of ours beside the peers' spline flows, trained for as much CPU time.

    python benchmarks/flows_quality.py galaxies [--data DIR] [--peers PYTHON] [--seconds S] [--set NAME=VALUE]
    python benchmarks/flows_quality.py patches8 [--data DIR] [--set NAME=VALUE]
    python benchmarks/flows_quality.py cities [--data DIR] [--picture FILE]

`galaxies`: 7 real columns, standardised by the 80,000 training rows; nats a row in standardised units (a Lebesgue density, whatever the
columns' resolution). `patches8`: 8 x 8 patches after the protocol of BSDS300: dequantised, mean subtracted, the last pixel dropped, 63
real numbers. `cities`: longitude and latitude in degrees, a tenth of the cities held out and a tenth to choose by: `nsf` with
the options of EDGES, beside other families; --picture draws the cities, as many draws, and its log-density.
Ours is `--family` (nsf) as it stands, or with options by --set, with the validation rows to choose its weights. The peers on galaxies,
nflows' RQ-NSF coupling with LU layers and zuko's NSF (autoregressive), are learned with Adam and a cosine over their CPU time, in a
process each: of their settings the one with the best validation score after a short run is learned again for the CPU seconds that
ours took (--seconds: for so many), and its weights of the best validation score are kept. One thread, float32.
Prints a table and, last, one JSON line.
"""

import argparse
import copy
import json
import math
import os
import subprocess
import time
import warnings
from io import BytesIO
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

PEERS = ("nflows", "zuko")
SETTINGS = {  # steps, hidden units, batch, learning rate: as their papers have it for tables of few columns, and smaller
    "nflows": ((10, 256, 512, 5e-4), (5, 64, 256, 1e-3)),
    "zuko": ((5, 256, 512, 1e-3), (3, 128, 256, 1e-3)),
}
TRIAL = 0.1  # of the seconds, for each setting
EDGES = {"layers": 4, "bins": 32, "waves": 8, "batch_size": 512, "learning_rate": 5e-3, "final_rate": 0.02, "max_epochs": 140}
CITIES = {"histogram": {"form": "grid"}, "kde": {}, "gmm": {"components": 200}, "nsf": EDGES}
MAP = (-180.0, 180.0, -58.0, 80.0)  # degrees that the picture shows
JUDGED = 12  # times that a peer's run is held against the validation rows


# -- data ------------------------------------------------------------------------------------------


def galaxies(folder):
    file = np.load(folder / "galaxies" / "galaxies.npz", allow_pickle=False)
    x, split = file["x"].astype(np.float64), file["split"]
    return standardised(*(x[split == part] for part in range(3)))


def patches8(folder):
    file, g = np.load(folder / "patches8" / "patches8.npz", allow_pickle=False), np.random.default_rng(0)
    return [centred((file[part].reshape(-1, 64) + g.random((len(file[part]), 64))) / 256) for part in ("train", "valid", "test")]


def centred(x):
    return (x - x.mean(1, keepdims=True))[:, :-1]


def cities(folder):
    x = np.load(folder / "cities" / "cities.npz", allow_pickle=False)["lonlat"].astype(np.float64)
    x = x[np.random.default_rng(0).permutation(len(x))]
    tenth = len(x) // 10
    return x[2 * tenth :], x[:tenth], x[tenth : 2 * tenth]


def standardised(train, *others):
    mean, deviation = train.mean(0), train.std(0)
    return [(x - mean) / deviation for x in (train, *others)]


SETS = {"galaxies": galaxies, "patches8": patches8, "cities": cities}


# -- ours ------------------------------------------------------------------------------------------


def ours(options):
    """Figures of each family asked for."""
    if options.family or options.set != "cities":
        given = {name: json.loads(value) for name, value in (item.split("=", 1) for item in options.settings)}
        asked = {options.family or "nsf": given}
    else:
        asked = CITIES
    parts = SETS[options.set](Path(options.data))
    learned = {family: fitted(family, settings, *parts) for family, settings in asked.items()}
    if options.picture:
        picture(learned["nsf"][0], np.concatenate(parts), options.picture)
    return {f"pofx {family}": figures for family, (_, figures) in learned.items()}


def fitted(family, settings, train, valid, test):
    """What was learned, and its figures."""
    import pofx
    from pofx.domain import Domain

    start = time.process_time()
    p = pofx.fit(train, family, holdout=valid, schema=Domain.real(train.shape[1]), progress=False, **settings)
    seconds = time.process_time() - start
    scores = {name: round(float(np.mean(p.log_prob(x))), 3) for name, x in (("valid", valid), ("test", test))}
    numbers = sum(t.numel() for t in p.model.parameters())
    return p, scores | {"seconds": round(seconds), "steps": p.record.history[-1]["step"], "parameters": numbers} | settings


def picture(p, cities, path):
    """The cities and how many there are in each cell of a map; as many draws, and log p."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    west, east, south, north = MAP
    edges = np.arange(west, east + 0.5, 0.5), np.arange(south, north + 0.5, 0.5)
    rows = np.stack(np.meshgrid(*((edge[1:] + edge[:-1]) / 2 for edge in edges)), -1)
    count = np.histogram2d(*cities.T, bins=edges)[0].T
    with np.errstate(divide="ignore"):
        seen = np.log(count / len(cities) / 0.25)
    log_p, draws = np.asarray(p.log_prob(rows.reshape(-1, 2))).reshape(count.shape), np.asarray(p.sample(len(cities), seed=0))
    figure, axes = plt.subplots(2, 2, figsize=(12, 5), layout="constrained")
    shown = (
        (f"{len(cities):,} cities", cities, "log of their density, in cells of half a degree", seen),
        ("as many draws", draws, "log p", log_p),
    )
    for (left, right), (title, points, beside, density) in zip(axes, shown, strict=True):
        left.plot(*points.T, ",", color="black")
        left.set(xlim=MAP[:2], ylim=MAP[2:], aspect="equal")
        right.imshow(density, origin="lower", extent=MAP, vmin=-13, vmax=-4, cmap=plt.cm.magma.with_extremes(bad="black"))
        for axis, words in ((left, title), (right, beside)):
            axis.set_title(words, fontsize=9)
            axis.set(xticks=[], yticks=[])
    buffer = BytesIO()
    figure.savefig(buffer, dpi=100)
    Image.open(buffer).convert("RGB").quantize(256).save(path, format="png", optimize=True)  # a palette: a third of the size


# -- peers, in a process of their own --------------------------------------------------------------


def nflows_flow(dim, steps, hidden):
    from nflows import distributions, flows, nn, transforms

    def net(inputs, outputs):
        return nn.nets.ResidualNet(inputs, outputs, hidden_features=hidden, num_blocks=2)

    layers = []
    for k in range(steps):
        layers += [transforms.RandomPermutation(dim), transforms.LULinear(dim, identity_init=True)]
        mask = torch.arange(dim) % 2 == k % 2
        spline = transforms.PiecewiseRationalQuadraticCouplingTransform
        layers.append(spline(mask.int(), net, num_bins=8, tails="linear", tail_bound=5.0))
    layers += [transforms.RandomPermutation(dim), transforms.LULinear(dim, identity_init=True)]
    flow = flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([dim]))
    return flow, flow.log_prob


def zuko_flow(dim, steps, hidden):
    import zuko

    flow = zuko.flows.NSF(dim, bins=8, transforms=steps, hidden_features=(hidden, hidden), randperm=False)
    return flow, lambda x: flow().log_prob(x)


def worker(options):
    """The best of the library's settings after a short run, learned for as long as is given."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    parts = [torch.tensor(x, dtype=torch.float32) for x in SETS[options.set](Path(options.data))]
    trials = {setting: learned(options, setting, parts, TRIAL * options.seconds)["valid"] for setting in SETTINGS[options.library]}
    best = max(trials, key=trials.get)
    found = learned(options, best, parts, options.seconds)
    print("@" + json.dumps(found | {"setting": best, "trials": [round(v, 2) for v in trials.values()]}), flush=True)


def learned(options, setting, parts, seconds):
    steps, hidden, batch, rate = setting
    train, valid, test = parts
    torch.manual_seed(0)
    flow, log_prob = globals()[f"{options.library}_flow"](train.shape[1], steps, hidden)
    adam, kept, best, step, judged = torch.optim.Adam(flow.parameters(), lr=rate), None, -math.inf, 0, 0
    start, share = time.process_time(), 0.0
    while share < 1:
        for rows in torch.randperm(len(train)).split(batch):
            adam.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
            adam.zero_grad()
            (-log_prob(train[rows]).mean()).backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
            adam.step()
            step, share = step + 1, (time.process_time() - start) / seconds
            if share * JUDGED >= judged + 1 or share >= 1:
                judged += 1
                score = mean(flow, log_prob, valid)
                if score > best:
                    best, kept = score, copy.deepcopy(flow.state_dict())
            if share >= 1:
                break
    flow.load_state_dict(kept)
    numbers = sum(p.numel() for p in flow.parameters())
    return {
        "valid": round(best, 3),
        "test": round(mean(flow, log_prob, test), 3),
        "seconds": round(time.process_time() - start),
        "steps": step,
        "parameters": numbers,
    }


@torch.no_grad()
def mean(flow, log_prob, x):
    flow.eval()
    value = float(torch.cat([log_prob(part) for part in x.split(4096)]).double().mean())
    flow.train()
    return value


def peer(library, options, seconds):
    command = [options.peers, __file__, options.set, "--library", library]
    command += ["--data", options.data, "--seconds", str(seconds)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return json.loads(next(line[1:] for line in lines if line.startswith("@")))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--data", default=os.environ.get("POFX_DATA", "data"))
    parser.add_argument("--family", help="one family, as it stands; when left out nsf, and of cities those of CITIES")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE", help="an option of the family")
    parser.add_argument("--peers", help="a Python with zuko, nflows and torch")
    parser.add_argument("--seconds", type=float, help="CPU time of the peers; that of ours when left out")
    parser.add_argument("--library", choices=PEERS, help="of a peer's own process")
    parser.add_argument("--picture")
    options = parser.parse_args()
    if not (Path(options.data) / options.set).is_dir():
        print(f"skipped: there is no folder {options.set} in {options.data}")
        return
    if options.library:
        worker(options)
        return
    figures = ours(options)
    if options.peers and options.set == "galaxies":
        seconds = options.seconds or sum(figure["seconds"] for figure in figures.values())
        figures |= {library: peer(library, options, seconds) for library in PEERS}
    for name, figure in figures.items():
        print(f"{name:14} valid {figure['valid']:8.3f}  test {figure['test']:8.3f}  " + json.dumps(figure))
    print(json.dumps(figures | {"set": options.set, "torch": torch.__version__, "threads": 1}))


if __name__ == "__main__":
    main()
