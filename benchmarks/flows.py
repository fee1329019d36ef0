"""Flows beside zuko, nflows and normflows: speed at equal architecture and equal numbers, and equality at copied weights.

    python benchmarks/flows.py speed [--models spline maf spline-ar] [--dims 8 43] [--batch 512] [--rounds 3] [--no-native] [--peers PYTHON]
    python benchmarks/flows.py check [--peers PYTHON]

`speed`: 5 transforms, ReLU conditioners of 128-128, 8 bins, standard normal base, float32, one thread, Adam with its defaults. Each
library runs in a process of its own (importing zuko switches off the checks of torch.distributions), ours once with its kernels in C
and once in plain PyTorch (`--no-native`: the latter alone; `--native`: the former), and all are timed in turn; the
figure is the median over rounds of the best CPU time of a round: of a training step, of log_prob (batch rows) and of 4096 samples.
`check`: in float64, our spline couplings with the weights of nflows' and our masked autoregressive flow with those of zuko's; the
largest difference of log p. PYTHON is an environment with the peers and torch (pip install zuko nflows normflows).
Prints a table and, last, one JSON line.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

HIDDEN, STEPS, BINS, BOUND, SAMPLES = (128, 128), 5, 8, 5.0, 4096
PEERS = ("zuko", "nflows", "normflows")
OPS = ("step", "log_prob", "sample")


# -- the same architecture, library by library -----------------------------------------------------


def pofx_flow(model, dim, bound=BOUND):
    from pofx.domain import Domain
    from pofx.models.flows.bases import StandardNormal
    from pofx.models.flows.flow import Flow
    from pofx.nets.mlp import MLP
    from pofx.transforms.autoregressive import Autoregressive
    from pofx.transforms.base import Stack
    from pofx.transforms.coupling import Couplings
    from pofx.transforms.monotone import Affine, RationalQuadratic

    net = partial(MLP, widths=HIDDEN, activation=nn.ReLU)
    if model == "spline":
        T = Couplings(dim, STEPS, RationalQuadratic(BINS, bound), net=net)
    else:
        monotone = Affine() if model == "maf" else RationalQuadratic(BINS, bound)
        T = Stack(*(Autoregressive(dim, monotone, widths=HIDDEN, backwards=k % 2 == 1) for k in reversed(range(STEPS))))
    return Flow(Domain.real(dim), T, StandardNormal(dim))


def pofx_pair(model, dim):
    flow = pofx_flow(model, dim)
    return flow, flow.log_prob, flow.sample


def zuko_pair(model, dim):
    import zuko

    spline = {
        "univariate": partial(zuko.transforms.MonotonicRQSTransform, bound=BOUND),
        "shapes": [(BINS,), (BINS,), (BINS - 1,)],
    }
    make = zuko.flows.NICE if model == "spline" else zuko.flows.MAF
    flow = make(dim, transforms=STEPS, hidden_features=HIDDEN, activation=nn.ReLU, **({} if model == "maf" else spline))
    return flow, lambda x: flow().log_prob(x), lambda n: flow().sample((n,))


class Conditioner(nn.Sequential):
    """A ReLU net with the signature of nflows and normflows."""

    def __init__(self, inputs, outputs):
        a, b = HIDDEN
        super().__init__(nn.Linear(inputs, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, outputs))

    def forward(self, x, context=None):
        return super().forward(x)


def moved(dim, k):
    """1 where coupling k moves the variable."""
    return (torch.arange(dim) % 2 != k % 2).int()


def nflows_flow(model, dim, bound=BOUND):
    from nflows import distributions, flows, transforms

    made = {"features": dim, "hidden_features": HIDDEN[0], "num_blocks": 1, "use_residual_blocks": False}
    splines = {"num_bins": BINS, "tails": "linear", "tail_bound": bound}
    layers = []
    for k in range(STEPS):
        if model == "spline":
            make = transforms.PiecewiseRationalQuadraticCouplingTransform
            layers.append(make(mask=moved(dim, k), transform_net_create_fn=Conditioner, **splines))
            continue
        layers += [transforms.ReversePermutation(dim)] if k else []
        affine = transforms.MaskedAffineAutoregressiveTransform
        spline = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
        layers.append(affine(**made) if model == "maf" else spline(**made, **splines))
    return flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([dim]))


def nflows_pair(model, dim):
    flow = nflows_flow(model, dim)
    return flow, flow.log_prob, flow.sample


def normflows_pair(model, dim):
    import normflows as nf
    from normflows.flows.neural_spline.autoregressive import MaskedPiecewiseRationalQuadraticAutoregressive as SplineAR
    from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling as Spline

    made = {"features": dim, "hidden_features": HIDDEN[0], "num_blocks": 1, "use_residual_blocks": False}
    splines = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
    layers = []
    for k in range(STEPS):
        if model == "spline":
            layer = Spline(mask=moved(dim, k), transform_net_create_fn=Conditioner, **splines)
        elif model == "maf":
            layer = nf.flows.MaskedAffineAutoregressive(**made)
        else:
            layer = SplineAR(**made, **splines, init_identity=False)
        layers += [reversed_order(nf, dim)] if k and model != "spline" else []
        layers.append(nf.flows.Reverse(layer))  # its layers lead from the base to the data; so turned, densities cost one pass
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(dim, trainable=False), layers)
    return flow, flow.log_prob, lambda n: flow.sample(n)[0]


def reversed_order(nf, dim):
    order = nf.flows.Permute(dim, mode="shuffle")
    order.perm.copy_(torch.arange(dim - 1, -1, -1))
    order.inv_perm.copy_(order.perm)
    return order


# -- speed -----------------------------------------------------------------------------------------


def worker(library):
    """Build what the other end asks for, and time it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ops = {}
    for line in sys.stdin:
        ask = json.loads(line)
        if "model" in ask:
            ops, parameters = operations(library, **ask)
            answer = parameters
        else:
            answer = timed(ops[ask["op"]], ask["seconds"])
        print("@" + json.dumps(answer), flush=True)


def operations(library, model, dim, batch):
    torch.manual_seed(0)
    flow, log_prob, sample = globals()[f"{library}_pair"](model, dim)
    weights = [p for p in flow.parameters() if p.requires_grad]
    x, adam = torch.randn(batch, dim), torch.optim.Adam(weights)

    def step():
        adam.zero_grad()
        (-log_prob(x).mean()).backward()
        adam.step()

    ops = {"step": step, "log_prob": torch.no_grad()(partial(log_prob, x)), "sample": torch.no_grad()(partial(sample, SAMPLES))}
    step()
    return ops, sum(p.numel() for p in weights)


def timed(op, seconds):
    """The best CPU time of a call, in milliseconds."""
    best, until = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < until:
        start = time.process_time()
        op()
        best = min(best, time.process_time() - start)
    return 1000 * best


class Process:
    """A library in a process of its own."""

    def __init__(self, library, python, native="1"):
        command = [python, __file__, "worker", "--library", library]
        env = os.environ | {"POFX_NATIVE": native}
        self.pipe = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def ask(self, **question):
        self.pipe.stdin.write(json.dumps(question) + "\n")
        self.pipe.stdin.flush()
        for line in self.pipe.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError("the process ended")


def speed(options):
    tiers = {"native": "1", "plain": "0"}
    ours = [name for name in tiers if options.native is None or options.native == (name == "native")]
    libraries = {name: Process("pofx", sys.executable, tiers[name]) for name in ours}
    libraries |= {name: Process(name, options.peers) for name in PEERS}
    figures = {}
    print(f"{'':22}" + "".join(f"{name:>12}" for name in libraries) + "   best peer / " + ", / ".join(ours))
    for model in options.models:
        for dim in options.dims:
            numbers = {name: p.ask(model=model, dim=dim, batch=options.batch) for name, p in libraries.items()}
            for op in OPS:
                rounds = [{n: p.ask(op=op, seconds=options.seconds) for n, p in libraries.items()} for _ in range(options.rounds)]
                ms = {name: statistics.median(r[name] for r in rounds) for name in libraries}
                ratios = {name: min(ms[peer] for peer in PEERS) / ms[name] for name in ours}
                figures[f"{model} {dim} {op}"] = {n: round(v, 3) for n, v in ms.items()} | {
                    f"/ {n}": round(r, 2) for n, r in ratios.items()
                }
                shown = "".join(f"{v:12.2f}" for v in ms.values()) + "".join(f"{r:8.2f} x" for r in ratios.values())
                print(f"{model:>10} {dim:3} {op:8}" + shown, flush=True)
            print(f"{'':15}numbers" + "".join(f"{n:12,}" for n in numbers.values()))
    print(json.dumps(figures | {"batch": options.batch, "torch": torch.__version__, "threads": 1}))


# -- equality --------------------------------------------------------------------------------------


@torch.no_grad()
def check(options):
    """In the peers' environment, where our sources must be importable too."""
    if options.peers != sys.executable:
        sources = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "src")
        subprocess.run([options.peers, __file__, "check"], env=os.environ | {"PYTHONPATH": sources}, check=True)
        return
    torch.set_default_dtype(torch.float64)
    figures = {}
    for dim in options.dims:
        torch.manual_seed(0)
        x = 2 * torch.randn(512, dim)
        for name, pair in (("nflows spline", nflows_copied(dim)), ("zuko maf", zuko_copied(dim))):
            ours, theirs = (f(x) for f in pair)
            off = float((ours - theirs).abs().max())
            figures[f"{name} {dim}"] = off
            print(f"{name:14} D = {dim:3}: log p of {float(theirs.mean()):.1f} on average, largest difference {off:.1e}", flush=True)
    print(json.dumps(figures))


def nflows_copied(dim):
    ours, theirs = pofx_flow("spline", dim, 3.0), nflows_flow("spline", dim, 3.0)
    for net, layer in zip(ours.transform.nets, theirs._transform._transforms, strict=True):
        for k in (0, 2, 4):
            weight, bias = (2 * t for t in (layer.transform_net[k].weight, layer.transform_net[k].bias))
            layer.transform_net[k].weight.copy_(weight), layer.transform_net[k].bias.copy_(bias)
            if k == 4:  # theirs has the numbers of a variable together, ours the variables of a number
                d = len(bias) // (3 * BINS - 1)
                weight, bias = (t.unflatten(0, (d, -1)).transpose(0, 1).flatten(0, 1) for t in (weight, bias))
            net[k].weight.copy_(weight), net[k].bias.copy_(bias)
    return ours.log_prob, theirs.log_prob


def zuko_copied(dim):
    """Its units in the order of how many variables they see, as ours stand."""
    ours, (theirs, log_prob, _) = pofx_flow("maf", dim), zuko_pair("maf", dim)
    for part, transform in zip(reversed(ours.transform.parts), theirs.transform.transforms, strict=True):
        first, second, last = (layer for layer in transform.hyper if hasattr(layer, "mask"))
        seen = first.mask.sum(1)
        one = seen.argsort(stable=True)
        two = torch.stack([seen[row].max() for row in second.mask]).argsort(stable=True)
        weights = [first.weight * first.mask, (second.weight * second.mask)[:, one]]
        *hidden, out = part.net.layers
        for layer, weight, bias, order in zip(hidden, weights, (first.bias, second.bias), (one, two), strict=True):
            layer.weight.copy_(weight[order]), layer.bias[:, 0].copy_(bias[order])
        weight = (last.weight * last.mask)[:, two].unflatten(0, (dim, 2)).transpose(0, 1).flatten(0, 1)
        out.weight.copy_(weight), out.bias[:, 0].copy_(last.bias.unflatten(0, (dim, 2)).T.flatten())
        assert not part.net.theta[part.net.mask == 0].any()
    return ours.log_prob, log_prob


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "check", "worker"))
    parser.add_argument("--models", nargs="+", default=["spline", "maf", "spline-ar"])
    parser.add_argument("--dims", nargs="+", type=int, default=[8, 43])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument(
        "--native", action=argparse.BooleanOptionalAction, help="ours with kernels in C alone, or without; both when not given"
    )
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--library")
    options = parser.parse_args()
    {"speed": speed, "check": check, "worker": lambda o: worker(o.library)}[options.what](options)


if __name__ == "__main__":
    main()
