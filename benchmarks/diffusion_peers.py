"""Solvers, likelihoods and training steps beside azula, flow_matching and torchcfm (with torchdyn's solver), each in a process of its own.

    python benchmarks/diffusion_peers.py [--peers PYTHON] [--rounds 5]

All libraries get the same exact field: the denoiser of four normals in the plane (float64), in the form each of them asks for. `solve`:
evaluations of the field for draws that are off the exact flow from their own starts by at most 0.03, 0.01 and 0.003 (root mean square),
with each library's own grids and the best of its own solvers. `likelihood`: evaluations with the exact trace until log p of 200 rows is
off by 0.01 and 0.001 nats in the mean. `step`: milliseconds of CPU time of a training step of one and the same net (2 + 1 inputs, three
layers of 128, SELU; 256 evaluations of it, which are 128 rows where each meets a noise and its opposite; float32, Adam), median over rounds
taken in turn. PYTHON is an environment with pofx and the peers (pip
install azula flow_matching torchcfm, without torchvision, which torchdyn would import). Prints a table and, last, one JSON line.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from functools import cache

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

LIBRARIES = ("pofx", "azula", "flow_matching", "torchcfm")
BUDGETS = (5, 6, 7, 8, 10, 12, 13, 14, 15, 16, 18, 20, 24, 28, 32, 40, 48, 56, 68, 80, 96, 112, 136, 160, 224, 320)
BARS = {"solve": (0.03, 0.01, 0.003), "likelihood": (0.01, 0.001)}
ROWS, SCORED = 2000, 200


# -- the field ---------------------------------------------------------------------------------------


def truth():
    from pofx.models.diffusion.exact import ExactDenoiser

    cov = [[[0.05, 0.03], [0.03, 0.10]], [[0.08, -0.04], [-0.04, 0.06]], [[0.05, 0.0], [0.0, 0.05]], [[0.05, 0.0], [0.0, 0.05]]]
    mean = torch.tensor([[0.0, 1.2], [0.2, -1.0], [1.5, 0.5], [-1.5, 0.0]]).double()
    p = ExactDenoiser(torch.tensor([0.4, 0.3, 0.2, 0.1]).double(), mean, torch.tensor(cov).double())
    return ExactDenoiser(p.weight, p.mean - p.moments()[0], p.covariance)


class Counted:
    """D, and how often it was asked."""

    def __init__(self):
        self.p, self.asked = truth(), 0

    def __call__(self, y, s):
        self.asked += 1
        return self.p(y, s)


def velocity(d, t, x):
    """u_t(x) = (D - x) / (1 - t) of x_t = (1 - t) eps + t x_0, whose y is x / t and s (1 - t) / t."""
    t = torch.as_tensor(t, dtype=x.dtype).clamp(1e-9, 1 - 1e-9)
    s = ((1 - t) / t).reshape(-1, 1).expand(len(x), 1)
    return (d(x / t, s) - x) / (1 - t)


@cache
def flowed(s):
    """Where the exact flow carries noise of the spread at level s: to the data, whose narrowest deviation is 0.2, at s = 1e-5."""
    from pofx.samplers.flow_ode import decode
    from pofx.transforms.ode import DormandPrince

    return decode(truth(), start(s), s_min=1e-5, s_max=s, method=DormandPrince(1e-9, 1e-9)).y


def start(s):
    """Noise of the spread that the data have at level s."""
    return (s**2 + truth().moments()[1].diagonal()).sqrt() * noise()


def noise(n=ROWS):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# -- draws: name of a solver to (evaluations, rms) by budget -----------------------------------------


def solve_pofx(budget):
    from pofx.samplers.denoising import SOLVERS, last
    from pofx.samplers.levels import karras, log_uniform, turned

    for s_max in (10.0, 80.0):
        ways = {
            "dpm2m": (1, (log_uniform, karras)),
            "heun": (2, (log_uniform, karras)),
            "adams": (1, (SOLVERS["adams"].grid,)),
            "rk4": (4, (turned,)),
        }
        for name, (cost, grids) in ways.items():
            for grid in grids:
                d = Counted()
                with torch.no_grad():
                    x = last(SOLVERS[name](d, start(s_max), grid(max(2, budget // cost), 0.002, s_max), generator=None))
                yield f"{name}, {grid.__name__}, {s_max:g}", d.asked, (x - flowed(s_max)).square().mean().sqrt()


def solve_azula(budget):
    import azula.sample as ways
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import CosineSchedule, RectifiedSchedule, VESchedule, VPSchedule

    class Exact(Denoiser):
        def __init__(self, schedule):
            super().__init__()
            self.schedule, self.d = schedule, Counted()

        def forward(self, x_t, t, **_):
            alpha, sigma = self.schedule(t)
            return DiracPosterior(mean=self.d(x_t / alpha, (sigma / alpha).reshape(1, 1).expand(len(x_t), 1)))

    for schedule in (VPSchedule(), VESchedule(), CosineSchedule(), RectifiedSchedule()):
        alpha, sigma = (part.double() for part in schedule(torch.tensor(1.0, dtype=torch.float64)))
        s = float(sigma / alpha)
        for name, cost in (
            ("DDIMSampler", 1),
            ("HeunSampler", 2),
            ("zABSampler", 1),
            ("vABSampler", 1),
            ("xEABSampler", 1),
            ("zEABSampler", 1),
        ):
            exact = Exact(schedule)
            x = getattr(ways, name)(exact, steps=max(2, budget // cost), silent=True, dtype=torch.float64)(alpha * start(s))
            yield f"{name}, {type(schedule).__name__}", exact.d.asked, (x - flowed(s)).square().mean().sqrt()


def solve_flow_matching(budget):
    from flow_matching.solver import ODESolver

    begin = noise()  # t = 0 of the linear path: what `flowed` starts from at s = 1e5, over s
    for name, cost in (("euler", 1), ("midpoint", 2), ("heun3", 3), ("rk4", 4)):
        d = Counted()
        solver, steps = ODESolver(lambda x, t, d=d, **_: velocity(d, t, x)), max(1, budget // cost)
        grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        x = solver.sample(begin, step_size=None, method=name, time_grid=grid)
        yield name, d.asked, (x - flowed(1e5)).square().mean().sqrt()
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        d = Counted()
        solver = ODESolver(lambda x, t, d=d, **_: velocity(d, t, x))
        x = solver.sample(begin, step_size=None, method="dopri5", atol=tolerance, rtol=tolerance)
        yield f"dopri5, {tolerance:g}", d.asked, (x - flowed(1e5)).square().mean().sqrt()


def solve_torchcfm(budget):
    from torchdyn.core import NeuralODE

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.d, self.nothing = Counted(), nn.Parameter(torch.zeros(1))

        def forward(self, t, x, args=None):
            return velocity(self.d, t, x)

    begin = noise()  # t = 0 of the linear path: what `flowed` starts from at s = 1e5, over s
    for name, cost in (("euler", 1), ("midpoint", 2), ("rk4", 4)):
        field, steps = Field(), max(1, budget // cost)
        ode = NeuralODE(field, solver=name, sensitivity="autograd")
        with torch.no_grad():
            x = ode.trajectory(begin, torch.linspace(0, 1, steps + 1, dtype=torch.float64))[-1]
        yield name, field.d.asked, (x - flowed(1e5)).square().mean().sqrt()
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        field = Field()
        ode = NeuralODE(field, solver="dopri5", sensitivity="autograd", atol=tolerance, rtol=tolerance)
        with torch.no_grad():
            x = ode.trajectory(begin, torch.linspace(0, 1, 2, dtype=torch.float64))[-1]
        yield f"dopri5, {tolerance:g}", field.d.asked, (x - flowed(1e5)).square().mean().sqrt()


# -- log p -------------------------------------------------------------------------------------------


def rows_and_log_p():
    x = truth().sample(SCORED, generator=torch.Generator().manual_seed(1))
    return x, truth().log_prob(x)


def likelihood_pofx(budget):
    from pofx.samplers.flow_ode import ode_log_prob
    from pofx.transforms.ode import THREE_EIGHTHS, DormandPrince, RungeKutta

    x, log_p = rows_and_log_p()
    cov = truth().moments()[1]
    for s_max in (10.0, 80.0):
        prior = torch.distributions.MultivariateNormal(torch.zeros(2).double(), cov + s_max**2 * torch.eye(2).double())
        ways = {"rk4": RungeKutta(max(1, budget // 4), THREE_EIGHTHS)}
        ways |= {f"dormand-prince, {e:g}": DormandPrince(e, e) for e in (1e-2, 1e-3, 1e-4)}
        for name, method in ways.items():
            found = ode_log_prob(truth(), x, s_min=0.002, s_max=s_max, log_prior=prior.log_prob, method=method)
            yield f"{name}, {s_max:g}", float(found.evaluations.double().mean()), (found.value - log_p).abs().mean()


def likelihood_flow_matching(budget):
    from flow_matching.solver import ODESolver

    x, log_p = rows_and_log_p()
    prior = torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    ways = [
        (name, {"method": name, "time_grid": torch.linspace(1, 0, max(1, budget // cost) + 1).double()})
        for name, cost in (("euler", 1), ("midpoint", 2), ("rk4", 4))
    ]
    ways += [(f"dopri5, {e:g}", {"method": "dopri5", "atol": e, "rtol": e}) for e in (1e-2, 1e-3, 1e-4)]
    for name, how in ways:
        d = Counted()
        solver = ODESolver(lambda x, t, d=d, **_: velocity(d, t, x))
        value = solver.compute_likelihood(x, prior.log_prob, step_size=None, exact_divergence=True, **how)[1]
        yield name, d.asked, (value.detach() - log_p).abs().mean()


# -- a step of training ------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [nn.Linear(3, 128), nn.SELU(), nn.Linear(128, 128), nn.SELU(), nn.Linear(128, 128), nn.SELU(), nn.Linear(128, 2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x, t):
        return self.layers(torch.cat((x, t.reshape(-1, 1).expand(len(x), 1)), 1))


def losses_pofx(net):
    from pofx.domain import Domain
    from pofx.models.diffusion.diffusion import Asking, Diffusion, Learning
    from pofx.models.diffusion.heads import Heads
    from pofx.models.diffusion.path import Prediction, Target
    from pofx.objectives.matching import flow_matching, stratified

    class Seen(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, v, view, u, c):
            return self.net(v[..., 0], u)

    domain = Domain.real(2)
    model = Diffusion(domain, None, Heads(domain, Prediction(Target.EDM)), Seen(), Learning(), Asking())
    return {
        "flow matching": (net, lambda x: flow_matching(lambda t, z: net(z, t), torch.randn_like(x), x, stratified(x)).mean()),
        "diffusion": (model, lambda x: model.loss(x[: len(x) // 2]).mean()),
    }


def losses_azula(net):
    from azula.denoise import KarrasDenoiser
    from azula.noise import VPSchedule

    denoiser = KarrasDenoiser(net, VPSchedule())
    return {"diffusion": (denoiser, lambda x: denoiser.loss(x, torch.rand(len(x))))}


def losses_flow_matching(net):
    from flow_matching.path import AffineProbPath
    from flow_matching.path.scheduler import CondOTScheduler

    path = AffineProbPath(scheduler=CondOTScheduler())

    def loss(x):
        sample = path.sample(t=torch.rand(len(x)), x_0=torch.randn_like(x), x_1=x)
        return (net(sample.x_t, sample.t) - sample.dx_t).square().mean()

    return {"flow matching": (net, loss)}


def losses_torchcfm(net):
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    matcher = ConditionalFlowMatcher(sigma=0.0)

    def loss(x):
        t, x_t, u_t = matcher.sample_location_and_conditional_flow(torch.randn_like(x), x)
        return (net(x_t, t) - u_t).square().mean()

    return {"flow matching": (net, loss)}


def steps(library, count=300):
    """Milliseconds of CPU time of a step, of each objective."""
    data, found = truth().sample(256, generator=torch.Generator().manual_seed(2)).float(), {}
    for name, (module, loss) in globals()[f"losses_{library}"](Net()).items():
        adam = torch.optim.Adam(module.parameters(), lr=1e-3)
        for k in range(count + 30):
            if k == 30:
                start = time.process_time()
            adam.zero_grad()
            loss(data).backward()
            adam.step()
        found[name] = 1000 * (time.process_time() - start) / count
    return found


# -- the table ---------------------------------------------------------------------------------------


def least(ways, bars):
    """For each bar the fewest evaluations that keep it, and whose they are."""
    best = dict.fromkeys(bars, (math.inf, ""))
    for budget in BUDGETS:
        for name, asked, off in ways(budget):
            for bar in bars:
                if float(off) <= bar and asked < best[bar][0]:
                    best[bar] = asked, name
    return {str(bar): [found[0] if math.isfinite(found[0]) else None, found[1]] for bar, found in best.items()}


def work(library, task):
    torch.set_num_threads(1)
    if task == "step":
        return steps(library)
    ways = globals().get(f"{task}_{library}")
    return least(ways, BARS[task]) if ways else None


def asked_of(python, library, task):
    command = [python, __file__, "--library", library, "--task", task]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


def medians(rounds):
    return {name: round(statistics.median(r[name] for r in rounds), 3) for name in rounds[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, help="python of the environment with the peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--library", choices=LIBRARIES)
    parser.add_argument("--task", choices=[*BARS, "step"])
    options = parser.parse_args()
    if options.library:
        print(json.dumps(work(options.library, options.task)))
        return
    found = {task: {library: asked_of(options.peers, library, task) for library in LIBRARIES} for task in BARS}
    rounds = [{library: asked_of(options.peers, library, "step") for library in LIBRARIES} for _ in range(options.rounds)]
    found["step"] = {
        library: {name: round(statistics.median(r[library][name] for r in rounds), 3) for name in rounds[0][library]}
        for library in LIBRARIES
    }
    for task, rows in found.items():
        print(task)
        for library, row in rows.items():
            print(f"  {library:14} {row}")
    print(json.dumps(found | {"torch": torch.__version__}))


if __name__ == "__main__":
    main()
