"""Circuits on the binary benchmark sets: test likelihoods within 60 CPU-seconds, and speed beside cirkit and SPFlow.

    python benchmarks/circuits.py likelihood [--sets nltcs plants ...] [--data DIR]
    python benchmarks/circuits.py speed [--set plants] [--units 16] [--batch 256] [--repeats 5] [--data DIR]

`likelihood`: the original splits (Lowd and Davis 2010; Van Haaren and Davis 2012) under `hclt` and `chow_liu` with alpha 1,
mean log-likelihood of the test rows in nats, and the CPU seconds that learning took on one thread.
`speed`: one thread; CPU seconds of an epoch of EM and of Adam, rows a CPU-second of log_prob and of conditional draws (half
of the columns given). A peer runs in a process of its own, in the environment that it is installed in (--peers PYTHON;
pip install libcirkit spflow); epochs of peers are extrapolated from 16 batches. Prints a table and, last, one JSON line.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

BARS = {"nltcs": -6.02, "plants": -12.8, "baudio": -39.7, "accidents": -27.0, "dna": -80.1, "mushrooms": -13.0}
BATCHES = 16  # that a peer's epoch is extrapolated from


def load(data, name):
    held = np.load(Path(data) / "debd" / f"{name}.npz")
    return [held[part] for part in ("train", "valid", "test")]


# -- likelihood ------------------------------------------------------------------------------------


def likelihood(options):
    import pofx
    from pofx.domain import Domain, Variable, VariableKind

    figures = {}
    for name in options.sets:
        train, valid, test = load(options.data, name)
        bits = Domain(tuple(Variable(f"x{d}", VariableKind.BINARY, levels=(0, 1)) for d in range(train.shape[1])))
        row = {"bar": BARS.get(name)}
        for family, settings in (("chow_liu", {"alpha": 1.0}), ("hclt", {})):
            start = time.process_time()
            p = pofx.fit(train, family, holdout=valid, schema=bits, seed=options.seed, **settings)
            row[family] = round(float(p.score(test).value), 4)
            row[f"{family} CPU s"] = round(time.process_time() - start, 1)
        figures[name] = row
        print(f"{name:10}", row, flush=True)
    print(json.dumps(figures))


# -- speed -----------------------------------------------------------------------------------------


def timed(run):
    """CPU seconds."""
    start = time.process_time()
    run()
    return time.process_time() - start


def epoch(step, x, size, batches=None):
    """CPU seconds of an epoch, extrapolated from some batches."""
    parts = x.split(size)[:batches]
    step(parts[0])
    return timed(lambda: [step(part) for part in parts]) * len(x) / sum(map(len, parts))


def scoring(log_prob, x, size=1024):
    """Rows a CPU-second."""
    with torch.no_grad():
        log_prob(x[:size])
        return len(x) / timed(lambda: [log_prob(part) for part in x.split(size)])


def ours(options):
    from pofx.domain import Domain, Variable, VariableKind
    from pofx.models.circuits.families import HiddenChowLiuConfig

    torch.manual_seed(0)
    train, _, test = (torch.tensor(part).float() for part in load(options.data, options.set))
    bits = Domain(tuple(Variable(f"x{d}", VariableKind.BINARY, levels=(0, 1)) for d in range(train.shape[1])))
    figures = {"library": "pofx"}
    for learning in ("em", "adam"):
        config = HiddenChowLiuConfig(units=options.units, learning=learning)
        model = config.build(bits)
        model.initialise(train)
        optimiser = config.optimiser(model, list(model.parameters()), len(train))

        def step(x, model=model, optimiser=optimiser):
            optimiser.zero_grad()
            (-model.log_prob(x).mean()).backward()
            optimiser.step()

        figures[f"{learning} epoch s"] = epoch(step, train, options.batch)
    figures["log_prob rows/s"] = scoring(model.log_prob, test)
    holes = test[:4096].clone()
    holes[:, 1::2] = torch.nan
    model.complete(holes[:256])
    figures["conditional draws/s"] = len(holes) / timed(lambda: model.complete(holes))
    figures["parameters"] = sum(p.numel() for p in model.parameters())
    return figures


def cirkit(options):
    from importlib.metadata import version

    from cirkit.backend.torch.em_optimizer import EM
    from cirkit.pipeline import compile as compiled
    from cirkit.templates import data_modalities, utils

    train, _, test = (torch.tensor(part).long() for part in load(options.data, options.set))

    def built(**more):
        inputs = {"name": "categorical", "args": {"num_categories": 2}}
        sizes = {"num_input_units": options.units, "num_sum_units": options.units}
        return compiled(
            data_modalities.tabular_data("chow-liu-tree", data=train, input_layers=inputs, sum_product_layer="cp", **sizes, **more)
        )

    figures = {"library": f"cirkit {version('libcirkit')}"}
    circuit = built()
    adam = torch.optim.Adam(circuit.parameters(), lr=0.05)

    def descend(x):
        adam.zero_grad()
        (-circuit(x).mean()).backward()
        adam.step()

    figures["adam epoch s"] = epoch(descend, train, options.batch, BATCHES)
    figures["log_prob rows/s"] = scoring(circuit, test)
    figures["parameters"] = sum(p.numel() for p in circuit.parameters())
    try:
        other = built(sum_weight_param=utils.Parameterization(activation="none", initialization="dirichlet"))
        em = EM(other, lr=0.1, pseudocount=0.01)

        def maximise(x):
            other(x).sum().backward()
            em.step()
            em.zero_grad()

        figures["em epoch s"] = epoch(maximise, train, options.batch, BATCHES)
    except Exception as error:
        figures["em error"] = str(error)[:100]
    return figures


def spflow(options):
    from importlib.metadata import version

    from spflow.learn.expectation_maximization import expectation_maximization_batched
    from spflow.zoo.hclt import learn_hclt_binary
    from torch.utils.data import DataLoader, TensorDataset

    train, _, test = (torch.tensor(part).float() for part in load(options.data, options.set))
    circuit = learn_hclt_binary(train, num_hidden_cats=options.units, init="uniform")
    some = train[: 4 * options.batch]
    loader = DataLoader(TensorDataset(some), batch_size=options.batch)
    seconds = timed(lambda: expectation_maximization_batched(circuit, loader, num_epochs=1))
    figures = {"library": f"spflow {version('spflow')}", "em epoch s": seconds * len(train) / len(some)}
    adam = torch.optim.Adam(circuit.parameters(), lr=0.05)

    def descend(x):
        adam.zero_grad()
        (-circuit.log_likelihood(x).mean()).backward()
        adam.step()

    figures["adam epoch s"] = epoch(descend, train, options.batch, 4)
    figures["log_prob rows/s"] = scoring(circuit.log_likelihood, test)
    holes = test[:1024].clone()
    holes[:, 1::2] = torch.nan
    figures["conditional draws/s"] = len(holes) / timed(lambda: circuit.sample_with_evidence(evidence=holes))
    figures["parameters"] = sum(p.numel() for p in circuit.parameters())
    return figures


LIBRARIES = {"pofx": ours, "cirkit": cirkit, "spflow": spflow}


def alone(name, options):
    """A library's figures, from a process of its own."""
    python = sys.executable if name == "pofx" else options.peers
    words = ["--set", options.set, "--units", str(options.units), "--batch", str(options.batch), "--data", str(options.data)]
    run = subprocess.run([python, __file__, "one", "--library", name, *words], capture_output=True, text=True, check=False)
    if run.returncode:
        return {"library": name, "error": run.stderr.strip().splitlines()[-1][:200]}
    return json.loads(run.stdout.splitlines()[-1])


def speed(options):
    runs = [[alone(name, options) for name in LIBRARIES] for _ in range(options.repeats)]
    rows = []
    for found in zip(*runs, strict=True):
        row = {"library": found[0]["library"]}
        for key in {key for one in found for key in one} - {"library"}:
            values = [one[key] for one in found if key in one]
            row[key] = round(statistics.median(values), 3) if isinstance(values[0], (int, float)) else values[0]
        rows.append(row)
        print(row, flush=True)
    mine, *peers = rows
    ratios = {}
    for key in ("em epoch s", "adam epoch s", "log_prob rows/s", "conditional draws/s"):
        theirs = [peer[key] for peer in peers if key in peer]
        if theirs:
            ratios[key] = round(min(theirs) / mine[key] if key.endswith("epoch s") else mine[key] / max(theirs), 2)
    print(json.dumps({"times faster than the best peer": ratios, "rows": rows}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("likelihood", "speed", "one"))
    parser.add_argument("--sets", nargs="+", default=list(BARS))
    parser.add_argument("--set", default="plants")
    parser.add_argument("--units", type=int, default=16)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", default=sys.executable, help="the Python that the peers are installed in")
    parser.add_argument("--library", choices=LIBRARIES)
    parser.add_argument("--data", default=os.environ.get("POFX_DATA", "data"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part == "one":
        print(json.dumps(LIBRARIES[options.library](options)))
    else:
        {"likelihood": likelihood, "speed": speed}[options.part](options)


if __name__ == "__main__":
    main()
