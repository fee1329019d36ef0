"""Flows: an exact density that a simple one is bent into, whichever family bends it."""

import copy
import math
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.testing import assert_close
from typer.testing import CliRunner

import pofx
from pofx.cli.main import app
from pofx.distributions.continuous import StudentT
from pofx.domain import Domain
from pofx.errors import DataError, OptionError, Unavailable
from pofx.learn import run
from pofx.models.classical.gmm import GaussianMixtureConfig
from pofx.models.classical.independent import IndependentConfig
from pofx.models.flows.bases import LawBase
from pofx.models.flows.families import (
    AdditiveConfig,
    InverseAutoregressiveConfig,
    MaskedAutoregressiveConfig,
    NeuralSplineAutoregressiveConfig,
    NeuralSplineConfig,
)
from pofx.models.flows.flow import Flow
from pofx.models.flows.realnvp import RealNVPConfig
from pofx.models.registry import families
from pofx.testing.matrix import check_question
from pofx.testing.subject import Subject
from pofx.testing.worlds import REALS
from pofx.transforms.autoregressive import Autoregressive
from pofx.transforms.base import Compose, Stack
from pofx.transforms.linear import Triangular
from pofx.transforms.monotone import RationalQuadratic, Shift
from pofx.transforms.pointwise import Pointwise
from pofx.types import Kind


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


CONFIGS = {
    "nice": AdditiveConfig,
    "realnvp": RealNVPConfig,
    "nsf": NeuralSplineConfig,
    "maf": MaskedAutoregressiveConfig,
    "iaf": InverseAutoregressiveConfig,
    "nsf-ar": NeuralSplineAutoregressiveConfig,
}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def bent(config, dim, context=None, **options):
    """A flow whose weights are away from where they start."""
    flow = config(**{"layers": 2, "width": 16, **options}).build(Domain.real(dim), context).eval()
    for p in flow.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.15)
    for m in flow.modules():
        if hasattr(m, "mask"):
            m.theta.data.mul_(m.mask)
    return flow


def test_the_registry_has_every_family(config):
    assert config in {line.config for line in families().values()}


def test_untrained_it_is_the_standard_normal(config):
    flow, x = config().build(Domain.real(3)), torch.randn(5, 3)
    assert_close(flow.log_prob(x), MultivariateNormal(torch.zeros(3), torch.eye(3)).log_prob(x))


def test_initialised_it_is_the_normal_of_the_rows(config):
    x = torch.randn(400, 3) @ torch.randn(3, 3) + 2
    flow = config(shrink=0.0).build(Domain.real(3))
    flow.initialise(x)
    law = MultivariateNormal(x.mean(0), x.T.cov(correction=0))
    assert_close(flow.log_prob(x), law.log_prob(x), rtol=1e-4, atol=1e-4)


def test_density_integrates_to_one(config):
    flow = bent(config, 2)
    grid = torch.linspace(-60, 60, 1201)
    with torch.no_grad():
        p = flow.log_prob(torch.cartesian_prod(grid, grid)).exp()
    assert (p.sum() * (grid[1] - grid[0]) ** 2).item() == pytest.approx(1.0, abs=2e-3)


def test_a_conditional_density_integrates_to_one(config):
    flow = bent(config, 1, Domain.real(2))
    grid = torch.linspace(-25, 25, 5001)[:, None]
    p = flow.log_prob(grid, torch.tensor([[0.5, -1.0]]).expand(5001, 2)).exp()
    assert (p.sum() * (grid[1] - grid[0]))[0].item() == pytest.approx(1.0, abs=1e-3)


def test_samples_follow_the_density(config):
    """E[1 / p(x)] over draws inside a box is its area; failure rate below 1e-6: 6 standard errors."""
    flow = bent(config, 2)
    x = flow.sample(40_000, generator=generator())
    inside = (x.abs() < 1).all(-1)
    weight = torch.where(inside, (-flow.log_prob(x)).exp(), 0.0).detach()
    assert (weight.mean() - 4.0).abs() < 6 * weight.std() / math.sqrt(len(x))


def test_encode_and_decode_undo_each_other(config):
    flow, x = bent(config, 5, Domain.real(2)), torch.randn(6, 5)
    c = torch.randn(6, 2)
    z = flow.encode(x, c)
    assert_close(flow.decode(z, c), x, rtol=1e-9, atol=1e-9)
    assert not z.requires_grad


def test_float32_round_trip(config):
    flow, x = bent(config, 6, layers=4).float(), torch.randn(50, 6).float()
    assert_close(flow.decode(flow.encode(x)), x, rtol=1e-3, atol=1e-3)
    assert flow.sample(3).dtype is torch.float32


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinity_has_no_density(config, value):
    x = torch.zeros(3, 4)
    x[torch.arange(3), torch.tensor([0, 2, 3])] = value
    assert torch.equal(bent(config, 4).log_prob(x), torch.full((3,), -math.inf))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_tails_are_never_nan(config, dtype):
    x = torch.tensor([[1e30, -1e30, 1e18, 0.0], [1e4, 1e5, -1e6, 1e7]], dtype=dtype)
    log_p = bent(config, 4).to(dtype).log_prob(x)
    assert not log_p.isnan().any()
    assert (log_p < -1000).all()


def test_equal_generators_give_equal_samples(config):
    flow = bent(config, 3)
    assert torch.equal(*(flow.sample(7, generator=generator(3)) for _ in range(2)))
    assert not flow.sample(2).requires_grad


def test_no_tensor_has_two_names(config):
    tensors = bent(config, 3).state_dict().values()
    assert len({t.data_ptr() for t in tensors}) == len(tensors)


def test_missing_cells_are_refused(config):
    with pytest.raises(Unavailable, match="missing cells"):
        bent(config, 3).log_prob(torch.tensor([[0.0, torch.nan, 1.0]]))
    assert Flow.missing is Kind.NONE


def test_conditions_of_another_width_are_refused(config):
    with pytest.raises(DataError, match="conditional on 2 variables, got 3"):
        bent(config, 3, Domain.real(2)).log_prob(torch.zeros(4, 3), torch.zeros(4, 3))


@pytest.mark.parametrize("one", [RealNVPConfig, NeuralSplineConfig, AdditiveConfig])
def test_one_variable_needs_a_condition(one):
    with pytest.raises(OptionError, match="a coupling needs"):
        one().build(Domain.real(1))


def test_an_odd_number_of_layers_is_refused():
    with pytest.raises(ValueError, match="multiple of 2"):
        RealNVPConfig(layers=5)


@pytest.mark.parametrize(("rows", "epochs"), [(200, 300), (1000, 75), (10**6, 2)])
def test_the_length_of_a_run_follows_the_rows(rows, epochs):
    assert NeuralSplineConfig().for_rows(rows).max_epochs == epochs
    assert NeuralSplineConfig(max_epochs=7).for_rows(rows).max_epochs == 7


@pytest.mark.parametrize("base", ["student", "mixture"])
def test_a_base_is_learned_too(config, base):
    flow = bent(config, 2, base=base, components=3)
    assert all(p.requires_grad for p in flow.base.parameters())
    x = flow.sample(500, generator=generator())
    assert x.isfinite().all()
    assert flow.log_prob(x).isfinite().all()


def test_tails_of_a_student_base_are_heavy():
    """Far out a spline flow is linear, so its tails are its base's: log p falls like a power, not like a square."""
    x = torch.tensor([[30.0, 0.0], [3000.0, 0.0]])
    light, heavy = (NeuralSplineConfig(base=base).build(Domain.real(2)).log_prob(x).detach() for base in ("normal", "student"))
    assert light[1] < -1e6
    assert heavy[1] > -100
    assert float(heavy.diff()) == pytest.approx(-(8 + 1) * math.log(100), rel=0.02)


def test_every_candidate_of_the_search_is_valid(config):
    for option, candidates in config.space.items():
        for value in candidates:
            config(**{option: value}).build(Domain.real(3))


def crescent(n, seed):
    x = torch.randn(n, 2, generator=generator(seed))
    return torch.stack((x[:, 0], 0.3 * x[:, 1] + x[:, 0].square()), 1)


def crescent_log_prob(x):
    y = (x[:, 1] - x[:, 0].square()) / 0.3
    return -0.5 * (x[:, 0].square() + y.square()) - math.log(2 * math.pi * 0.3)


@pytest.mark.slow
def test_it_learns_a_crescent(config):
    """The divergence from the truth falls from the normal's to below 0.05 nats."""
    torch.manual_seed(0)
    x, held = crescent(4000, 1), crescent(4000, 2)
    options = {"dropout": 0.0, "layers": 4}
    flow = config(**{name: value for name, value in options.items() if name in config.model_fields}).build(Domain.real(2))
    flow.initialise(x)
    before = (crescent_log_prob(held) - flow.log_prob(held)).mean()
    optimiser = torch.optim.Adam(flow.parameters(), lr=3e-3)
    falling = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.02 ** (1 / 600))
    for _ in range(600):
        batch = x[torch.randint(len(x), (256,))]
        optimiser.zero_grad()
        flow.loss(batch).mean().backward()
        optimiser.step()
        falling.step()
    after = (crescent_log_prob(held) - flow.eval().log_prob(held)).mean()
    assert before > 0.5
    assert after < 0.05


# -- prefixes: the first variables of an order that all steps have --------------------------------

ORDERED = {
    "maf": (MaskedAutoregressiveConfig, {"order": "columns"}),
    "iaf": (InverseAutoregressiveConfig, {"order": "columns"}),
    "nsf-ar": (NeuralSplineAutoregressiveConfig, {"order": "columns"}),
    "maf, x2 first": (MaskedAutoregressiveConfig, {"order": ("x2", "x1")}),
    "maf, mixture": (MaskedAutoregressiveConfig, {"order": "columns", "base": "mixture", "components": 3}),
}


@pytest.fixture(params=ORDERED)
def ordered(request):
    """A flow over three variables, and two of them that come first."""
    config, options = ORDERED[request.param]
    flow = bent(config, 3, **options).requires_grad_(False)
    return flow, [1, 2] if "x2" in request.param else [1, 0]


LINE = torch.linspace(-40, 40, 4001)


def test_the_marginal_of_the_first_is_the_integral_over_the_others(ordered):
    flow, first = ordered
    (rest,) = {0, 1, 2} - set(first)
    x, part = torch.randn(3, 2), flow.marginal(first)
    for row in x:
        rows = torch.empty(len(LINE), 3)
        rows[:, first], rows[:, rest] = row, LINE
        integral = (flow.log_prob(rows).logsumexp(0) + (LINE[1] - LINE[0]).log()).item()
        assert part.log_prob(row).item() == pytest.approx(integral, abs=2e-3)
    assert flow.answers("marginal", first) is part.density is Kind.EXACT


def test_the_rest_given_the_first_completes_the_chain_rule(ordered):
    flow, first = ordered
    x = torch.randn(6, 3)
    for seen in (first, [first[-1]] if first == [1, 0] else [2]):
        evidence = torch.full((3,), torch.nan)
        evidence[seen] = x[0, seen]
        x[:, seen] = x[0, seen]
        rest = flow.conditional(evidence)
        whole = flow.marginal(seen).log_prob(x[:, seen]) + rest.log_prob(x[:, evidence.isnan()])
        assert_close(whole, flow.log_prob(x), rtol=0, atol=1e-9)
        assert rest.density is rest.sampling is flow.answers("conditional", seen) is Kind.EXACT


def test_draws_given_the_first_follow_their_density(ordered):
    """E[1 / p(x)] over draws inside a box is its area; failure rate below 1e-6: 6 standard errors."""
    flow, first = ordered
    evidence = torch.full((3,), torch.nan)
    evidence[2 if 2 in first else 0] = 0.4
    rest = flow.conditional(evidence)
    x = rest.sample(20_000, generator=generator())
    weight = torch.where((x.abs() < 1).all(-1), (-rest.log_prob(x)).exp(), 0.0)
    assert (weight.mean() - 4.0).abs() < 6 * weight.std() / math.sqrt(len(x))
    assert_close(rest.decode(rest.encode(x[:50])), x[:50], rtol=1e-9, atol=1e-9)


def test_conditionals_and_marginals_go_on(ordered):
    """p(b | a) and p(c | a, b) of p(b, c | a) are those of p(a, b, c)."""
    flow, first = ordered
    (c,) = {0, 1, 2} - set(first)
    a, b = (2, 1) if 2 in first else (0, 1)
    x = torch.randn(3)
    given_a, given_both = torch.full((3,), torch.nan), x.clone()
    given_a[a], given_both[c] = x[a], torch.nan
    rest = flow.conditional(given_a)  # over b and c, in the order of the columns
    at, place = (0, 1) if b < c else (1, 0)
    step = torch.full((2,), torch.nan)
    step[at] = x[b]
    assert rest.answers("marginal", [at]) is rest.answers("conditional", [at]) is Kind.EXACT
    assert rest.answers("marginal", [place]) is Kind.NONE
    alone = rest.marginal([at]).log_prob(x[[b]]) + flow.marginal([a]).log_prob(x[[a]])
    assert_close(alone, flow.marginal([a, b]).log_prob(x[[a, b]]), rtol=0, atol=1e-9)
    assert_close(rest.conditional(step).log_prob(x[[c]]), flow.conditional(given_both).log_prob(x[[c]]), rtol=0, atol=1e-9)


def test_a_marginal_keeps_the_condition():
    flow, c = bent(MaskedAutoregressiveConfig, 2, Domain.real(2), order="columns").requires_grad_(False), torch.randn(2)
    rows = torch.stack((torch.full_like(LINE, 0.3), LINE), 1)
    integral = flow.log_prob(rows, c).exp().sum() * (LINE[1] - LINE[0])
    assert_close(flow.marginal([0]).log_prob(rows[:1, :1], c).exp()[0], integral, rtol=1e-3, atol=1e-3)
    assert flow.answers("conditional", [0]) is Kind.NONE
    with pytest.raises(Unavailable, match="no closed form"):
        flow.conditional(torch.tensor([0.3, torch.nan]))


@pytest.mark.parametrize(("one", "seen"), [(MaskedAutoregressiveConfig, [0]), (NeuralSplineConfig, [0]), (ORDERED["iaf"][0], [1])])
def test_other_marginals_and_conditionals_are_refused(one, seen):
    flow = bent(one, 3, **({"order": "columns"} if seen == [1] else {}))
    assert flow.answers("marginal", seen) is flow.answers("conditional", seen) is flow.answers("marginal") is Kind.NONE
    with pytest.raises(Unavailable, match="marginal"):
        flow.marginal(seen)
    evidence = torch.full((3,), torch.nan)
    evidence[seen] = 0.5
    with pytest.raises(Unavailable):
        flow.conditional(evidence)


def test_evidence_without_density_is_refused():
    with pytest.raises(Unavailable, match="where p is 0"):
        bent(MaskedAutoregressiveConfig, 2, order="columns").conditional(torch.tensor([math.inf, torch.nan]))


def test_an_order_names_columns_once():
    with pytest.raises(OptionError, match="names a column once"):
        MaskedAutoregressiveConfig(order=("x0", "x0")).build(Domain.real(2))
    with pytest.raises(OptionError, match="x7"):
        MaskedAutoregressiveConfig(order=("x7",)).build(Domain.real(2))


def frame(n=120):
    g = np.random.default_rng(0)
    a = g.normal(size=n)
    return pd.DataFrame({"a": a, "b": a + g.normal(size=n), "c": g.normal(size=n) - a})


def test_prefixes_of_a_table_are_exact_and_say_so(tmp_path):
    p = pofx.fit(frame(), "maf", order=["c", "a"], max_epochs=1, width=8, layers=2)
    assert p.model.answers("conditional", [0, 2]) is Kind.EXACT
    rest, first = p.conditional(a=0.5, c=-0.2), p.marginal("a", "c")
    assert rest.domain.names == ("b",)
    assert not rest.approximation
    assert not first.approximation
    x = frame(5)
    assert first.log_prob(x[["a", "c"]]).kind is rest.log_prob(x[["b"]]).kind is Kind.EXACT
    assert p.conditional(c=0.1).marginal("a").log_prob({"a": [0.3]}).kind is Kind.EXACT
    p.save(tmp_path / "p.safetensors")
    again = pofx.open(tmp_path / "p.safetensors").marginal("a", "c").log_prob(x[["a", "c"]])
    assert_close(np.asarray(first.log_prob(x[["a", "c"]])), np.asarray(again))
    run = CliRunner().invoke(app, ["ask", str(tmp_path / "p.safetensors"), "a > 0.3", "--given", "c=0.1", "-n", "400"])
    assert run.exit_code == 0, run.output
    assert "effective" not in run.output  # draws of the conditional itself, not weighted ones


def test_a_level_among_the_evidence_is_an_event():
    """The answer averages over its cell, as behind every lift."""
    x = frame()
    x["kind"] = np.where(x["a"] + x["b"] > 0, "u", "v")
    rest = pofx.fit(x, "nsf-ar", order=["kind"], max_epochs=1, width=8, layers=1).conditional(kind="u")
    assert "averaged over" in rest.approximation
    assert rest.log_prob({"a": [0.1], "b": [0.2], "c": [0.0]}).kind is Kind.ESTIMATE


# -- any model as a base ---------------------------------------------------------------------------


def learned(config, x):
    model = config.build(Domain.real(x.shape[1]))
    for _ in model.steps(x):
        pass
    return model


def bases():
    x = torch.randn(300, 2, generator=generator(5))
    x = torch.where(torch.rand(300, 1, generator=generator(6)) < 0.5, x - 2, 0.5 * x + 1)
    return {
        "gmm": lambda: learned(GaussianMixtureConfig(components=2), x),
        "independent": lambda: learned(IndependentConfig(), x),
        "student": lambda: LawBase(2, StudentT()),
        "flow": lambda: bent(MaskedAutoregressiveConfig, 2, order="columns"),
    }


@pytest.mark.parametrize("name", ["gmm", "independent", "student", "flow"])
def test_any_model_is_a_base(name):
    """It integrates to one, draws follow it (failure rate below 1e-6: 6 standard errors), and prefixes are as exact as the base's."""
    base = bases()[name]()
    steps = [Autoregressive(2, RationalQuadratic(), widths=(16,)), Triangular(2)]
    for p in (p for step in steps for p in step.parameters()):
        torch.nn.init.normal_(p, std=0.15)
    steps[0].net.theta.data.mul_(steps[0].net.mask)
    flow = Flow(Domain.real(2), Compose(Stack(steps[0]), steps[1]), base).eval().requires_grad_(False)
    grid = torch.linspace(-30, 30, 601)
    p = flow.log_prob(torch.cartesian_prod(grid, grid)).exp().view(601, 601)
    assert (p.sum() * 0.01).item() == pytest.approx(1.0, abs=2e-3)
    x = flow.sample(20_000, generator=generator())
    weight = torch.where((x.abs() < 1).all(-1), (-flow.log_prob(x)).exp(), 0.0)
    assert (weight.mean() - 4.0).abs() < 6 * weight.std() / math.sqrt(len(x))
    assert_close(flow.marginal([0]).log_prob(grid[290:310, None]).exp(), p[290:310].sum(1) * 0.1, rtol=2e-3, atol=1e-4)


def test_a_base_may_see_the_condition():
    """p(u | c) of a conditional flow, under a map that does not look at c: the composition is the same flow."""
    base = bent(MaskedAutoregressiveConfig, 2, Domain.real(1))
    flow = Flow(Domain.real(2), Pointwise(2, Shift()), base, Domain.real(1))
    x, c = torch.randn(4, 2), torch.randn(4, 1)
    assert_close(flow.log_prob(x, c), base.log_prob(x, c))
    assert_close(flow.sample(1, c, generator=generator()), base.sample(1, c, generator=generator()))


def test_the_tail_index_of_a_student_base_is_kept():
    """Hill's estimate of 1 / nu over the 1,000 largest of 200,000 draws; 6 relative errors of 1 / sqrt(1000), and its bias."""
    flow = Flow(Domain.real(1), Compose(Pointwise(1, RationalQuadratic()), Triangular(1)), LawBase(1, StudentT())).requires_grad_(False)
    torch.nn.init.normal_(flow.transform.parts[0].raw)
    largest = flow.sample(200_000, generator=generator())[:, 0].abs().topk(1001).values.log()
    assert (largest[:-1].mean() - largest[-1]).item() == pytest.approx(1 / 8, rel=6 / math.sqrt(1000) + 0.15)


@pytest.mark.slow
def test_the_generic_engine_agrees_with_an_exact_conditional():
    """E[x | x_0] over draws of the family's own conditional and by weighted draws of the joint: the row of the deepest test."""
    learned = REALS.learned(MaskedAutoregressiveConfig(order="columns", layers=2, width=32))
    cell = check_question("conditional", Subject(learned, REALS))
    assert cell.kind is Kind.EXACT


# -- compiled --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_a_compiled_flow_learns_the_same():
    """In a process of its own: what checks the shapes under pytest can not be compiled."""
    subprocess.run([sys.executable, __file__], check=True)


def is_one_graph(config):
    """The loss compiles without a break: nothing asks for a value, and no shape depends on one."""
    flow, x = config.build(Domain.real(3)), torch.randn(64, 3, generator=generator())
    assert_close(torch.compile(flow.loss, backend="eager", fullgraph=True)(x), flow.loss(x))


def learns_the_same(config):
    """The losses of a run whose loss is compiled are those of one whose is not."""
    x, plain = torch.randn(64, 3, generator=generator()), config.build(Domain.real(3))
    compiled = copy.deepcopy(plain)
    runs = [run(m, x, config=config, holdout=x[:32], compile=m is compiled) for m in (plain, compiled)]
    first, second = (torch.tensor([row["holdout"] for row in r.history]) for r in runs)
    assert_close(first, second, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    options = {"layers": 1, "width": 8, "max_epochs": 2, "batch_size": 32}
    is_one_graph(NeuralSplineConfig(dropout=0.0, **options))
    is_one_graph(NeuralSplineAutoregressiveConfig(**options))
    learns_the_same(MaskedAutoregressiveConfig(**options))
