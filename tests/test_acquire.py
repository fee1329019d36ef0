"""What to measure next: against closed-form conditional mutual information, tables enumerated, and sets by brute force.

Statistical comparisons are at 5 standard errors: each fails in under 1 in 10^6 runs of another seed; the seeds are fixed.
"""

import math
from importlib import import_module
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import pofx
from pofx.ask.generic import acquire
from pofx.cli.main import app
from pofx.distributions.base import inverse_positive
from pofx.domain import Domain, Variable
from pofx.domain import VariableKind as K
from pofx.errors import DataError, OptionError, Unavailable
from pofx.models.base import Model
from pofx.models.circuits.chow_liu import ChowLiuConfig
from pofx.models.classical.gaussian import GaussianConfig
from pofx.models.classical.latent_class import LatentClassConfig
from pofx.models.latent.vae import VAEConfig
from pofx.testing.subject import Blind
from pofx.types import Kind

SIGMAS = 5.0
NAN = math.nan
LEVELS = Domain(
    (
        Variable("t", K.CATEGORICAL, levels=("r", "g", "b")),
        Variable("a", K.BINARY, levels=(0, 1)),
        Variable("b", K.COUNT, lower=0, upper=3),
        Variable("c", K.ORDINAL, levels=("s", "m", "l")),
        Variable("d", K.BINARY, levels=(0, 1)),
    )
)
CELLS = torch.tensor(list(product(*(range(v.cardinality) for v in LEVELS.variables))), dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(dim: int = 5) -> Model:
    factor = torch.randn(dim, dim, generator=generator(3), dtype=torch.float64)
    model = GaussianConfig().build(Domain.real(dim))
    model.mu, model.covariance = torch.arange(float(dim), dtype=torch.float64), factor @ factor.T + 0.1 * torch.eye(dim)
    return model


def information(covariance: torch.Tensor, t: list[int], s: list[int], o: list[int]) -> float:
    """I(t; s | o) of a Gaussian, by determinants."""
    log_det = lambda some: torch.logdet(covariance[some][:, some]) if some else torch.zeros(())
    return 0.5 * float(log_det([*t, *o]) + log_det([*s, *o]) - log_det([*t, *s, *o]) - log_det(o))


@pytest.fixture(scope="module", params=["chow_liu", "latent_class"])
def levels(request):
    g = generator()
    z, e = torch.randn(900, generator=g), torch.randn(5, 900, generator=g)
    columns = [(z + e[0]).abs().floor().clamp(max=2), z + e[1] > 0, (z + e[2] + 1.5).round().clamp(0, 3)]
    columns += [(z + e[3] + 1).floor().clamp(0, 2), columns[1] ^ (e[4] > 1)]
    x = torch.stack([column.double() for column in columns], 1)
    config = ChowLiuConfig() if request.param == "chow_liu" else LatentClassConfig(components=4)
    model = config.build(LEVELS)
    for _ in model.steps(x[40:], holdout=x[:40], generator=generator()):
        pass
    return model


def enumerated(model: Model, row: torch.Tensor, t: list[int], s: list[int]) -> float:
    """I(t; s | row) by all cells of the whole domain."""
    p = model.log_prob(CELLS).double().exp() * ((row == CELLS) | row.isnan()).all(1)
    p = p / p.sum()

    def entropy(some):
        _, which = torch.unique(CELLS[:, some], dim=0, return_inverse=True)
        mass = torch.zeros(int(which.max()) + 1, dtype=torch.float64).index_add(0, which, p)
        return -float(torch.special.xlogy(mass, mass).sum())

    return entropy(t) + entropy(s) - entropy([*t, *s])


def near(value, truth, error):
    assert abs(value - truth) <= SIGMAS * error + 1e-9, f"{value} is {abs(value - truth) / error:.1f} standard errors from {truth}"


@pytest.mark.parametrize(("row", "target"), [([NAN] * 5, [0]), ([NAN, 1.0, NAN, NAN, NAN], [0]), ([0.5, NAN, NAN, 9.0, NAN], [4, 1])])
def test_gains_of_a_gaussian_are_its_conditional_mutual_information(row, target):
    model, row = gaussian(), torch.tensor(row)
    seen = (~row.isnan()).nonzero()[:, 0].tolist()
    found = acquire(model, row, target, generator=generator(1))
    free = [d for d in range(5) if d not in seen and d not in target]
    assert sorted(found.variables) == [f"x{d}" for d in free]
    assert [one.gain for one in found] == sorted((one.gain for one in found), reverse=True)
    for one in found:
        near(one.gain, information(model.covariance, target, [int(one.variable[1])], seen), one.error)
        assert one.kind is Kind.ESTIMATE
        assert 0 < one.error < 0.05


def test_a_set_of_a_gaussian_is_the_greedy_one_and_its_gains_add_up():
    model, row = gaussian(), torch.tensor([NAN, NAN, NAN, 1.0, NAN])
    found = acquire(model, row, [0], 3, generator=generator(1))
    chosen = [int(name[1]) for name in found.variables]
    for i, one in enumerate(found):
        options = {d: information(model.covariance, [0], [*chosen[:i], d], [3]) for d in (1, 2, 4) if d not in chosen[:i]}
        assert max(options, key=options.get) == chosen[i]
        near(one.total, options[chosen[i]], one.total_error)
        near(one.gain, options[chosen[i]] - information(model.covariance, [0], chosen[:i], [3]), one.error)
    assert sum(one.gain for one in found) == pytest.approx(found.gains[-1].total)


@pytest.mark.parametrize("row", [[NAN] * 5, [NAN, NAN, 2.0, NAN, NAN], [NAN, 1.0, NAN, NAN, 0.0]])
def test_tables_are_summed_exactly(levels, row):
    row = torch.tensor(row, dtype=torch.float64)
    found = acquire(levels, row, [0], generator=generator())
    for one in found:
        truth = enumerated(levels, row, [0], [LEVELS.index(one.variable)])
        assert one.gain == pytest.approx(truth, abs=1e-5)
        assert (one.error, one.kind) == (0.0, Kind.EXACT)
    assert found.how == "tables summed"


def test_a_set_beside_the_best_of_all_sets(levels):
    """Greedy is optimal where k is all there is, and never under 1 - 1/e of the best pair here."""
    row = torch.full((5,), torch.nan, dtype=torch.float64)
    best = max(enumerated(levels, row, [0], list(pair)) for pair in combinations(range(1, 5), 2))
    pair = acquire(levels, row, [0], 2, generator=generator())
    assert pair.gains[-1].total == pytest.approx(enumerated(levels, row, [0], [LEVELS.index(n) for n in pair.variables]), abs=1e-5)
    assert (1 - 1 / math.e) * best <= pair.gains[-1].total <= best + 1e-5
    every = acquire(levels, row, [0], 4, generator=generator())
    assert every.gains[-1].total == pytest.approx(enumerated(levels, row, [0], [1, 2, 3, 4]), abs=1e-5)


def test_a_target_of_several_columns(levels):
    row = torch.tensor([NAN, NAN, NAN, NAN, 1.0], dtype=torch.float64)
    for one in acquire(levels, row, [2, 0], generator=generator()):
        assert one.gain == pytest.approx(enumerated(levels, row, [0, 2], [LEVELS.index(one.variable)]), abs=1e-5)


@pytest.mark.parametrize("few", [16, 0], ids=["the target summed at each draw", "the target drawn"])
def test_draws_say_what_tables_say(levels, monkeypatch, few):
    module = import_module("pofx.ask.generic.acquire")  # the package has the function under that name
    monkeypatch.setattr(module._Question, "_summed", lambda *_: None)
    monkeypatch.setattr(module, "FEW_VALUES", few)
    row = torch.tensor([NAN, NAN, 2.0, NAN, NAN], dtype=torch.float64)
    for one in acquire(levels, row, [0], 2, generator=generator(2)):
        assert one.kind is Kind.ESTIMATE
    for one in acquire(levels, row, [0], generator=generator(2)):
        near(one.gain, enumerated(levels, row, [0], [LEVELS.index(one.variable)]), one.error)


def test_the_standard_error_is_that_of_the_runs():
    """Of 100 runs the standardised errors have mean 0 and variance 1, within 5 sigma of each."""
    model, row = gaussian(3), torch.tensor([NAN, NAN, 0.3])
    truth = information(model.covariance, [0], [1], [2])
    z = []
    for seed in range(100):
        one = acquire(model, row, [0], draws=400, generator=generator(seed)).gains[0]
        z.append((one.gain - truth) / one.error)
    assert abs(np.mean(z)) < 5 / math.sqrt(100)
    assert 0.4 < np.var(z) < 1.9


@pytest.mark.slow
def test_a_family_that_can_not_marginalise_estimates():
    model, row = gaussian(3), torch.tensor([NAN, NAN, 2.0])
    found = acquire(Blind(model), row, [0], draws=30, generator=generator(1))
    assert "importance sampling" in found.how
    for one in found:
        near(one.gain, information(model.covariance, [0], [int(one.variable[1])], [2]), one.error)


# -- in the user's columns -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def p():
    g = np.random.default_rng(0)
    kind = g.choice(["a", "b", "c"], 600, p=[0.5, 0.3, 0.2])
    size = np.where(kind == "a", 0.0, np.where(kind == "b", 3.0, 6.0)) + g.normal(size=600)
    table = pd.DataFrame({"kind": kind, "size": size, "twice": 2 * size + g.normal(size=600), "noise": g.normal(size=600)})
    return pofx.fit(table, "latent_class", components=4)


def test_a_row_comes_in_any_form_and_the_table_reads_well(p):
    found = p.acquire({"twice": 5.0}, "kind")
    assert found.variables == ["size", "noise"]
    assert found.gains[0].gain > 10 * found.gains[1].gain > -0.1
    assert list(found.frame().columns) == ["gain", "error", "kind"]
    assert repr(found).startswith("nats about kind expected of measuring, each alone")
    frame = pd.DataFrame({"kind": [None], "size": [np.nan], "twice": [5.0], "noise": [np.nan]})
    for row in (frame, frame.iloc[0], {"twice": 5.0, "size": None}):
        again = p.acquire(row, ["kind"])
        assert again == found
    pair = p.acquire({}, "kind", 2)
    assert set(pair.frame().columns) == {"gain", "error", "kind", "total", "total_error"}
    assert pair.gains[1].total > pair.gains[0].total
    assert p.acquire({}, "kind", seed=1).gains[0].gain != p.acquire({}, "kind", seed=2).gains[0].gain


BAD = {
    "a known target": ({"kind": "a"}, "kind", 1, OptionError, "target 'kind' is observed in the row"),
    "an unknown target": ({}, "kin", 1, OptionError, "no column 'kin'; did you mean 'kind'"),
    "no target": ({}, [], 1, OptionError, "got none"),
    "a target twice": ({}, ["kind", "kind"], 1, OptionError, "each named once, got kind, kind"),
    "nothing unknown": ({"size": 1.0, "twice": 2.0, "noise": 0.0}, "kind", 1, OptionError, "nothing is left to measure"),
    "too large a budget": ({"size": 1.0}, "kind", 3, OptionError, "between 1 and the 2 variables that are unobserved, got 3"),
    "no budget": ({}, "kind", 0, OptionError, "got 0"),
    "an unknown column": ({"sise": 1.0}, "kind", 1, DataError, "did you mean 'size'"),
    "two rows": ({"size": [1.0, 2.0]}, "kind", 1, DataError, "one row is asked about at a time, got 2"),
    "no such level": ({"kind": "z"}, "size", 1, DataError, "'z'"),
}


@pytest.mark.parametrize(("row", "target", "budget", "error", "sentence"), BAD.values(), ids=BAD)
def test_a_bad_question_is_one_sentence(p, row, target, budget, error, sentence):
    with pytest.raises(error, match=sentence) as raised:
        p.acquire(row, target, budget)
    assert "\n" not in str(raised.value)


def test_a_bound_bounds_no_difference(p):
    lifted = pofx.fit(np.random.RandomState(0).poisson(5, (300, 2)), "gaussian")
    with pytest.raises(Unavailable, match=r"kind bound; families that answer it: hclt"):
        lifted.acquire({}, "x0")
    with pytest.raises(OptionError, match="at least 2, got 1"):
        p.acquire({}, "kind", draws=1)


def test_in_the_shell(p, tmp_path):
    p.save(tmp_path / "m.safetensors")
    pd.DataFrame({"size": [1.0, np.nan], "noise": [np.nan, 0.0]}).to_csv(tmp_path / "rows.csv", index=False)
    files = [str(tmp_path / "m.safetensors"), str(tmp_path / "rows.csv")]
    done = CliRunner().invoke(app, ["acquire", *files, "--target", "kind", "-o", str(tmp_path / "out.csv")])
    assert done.exit_code == 0, done.output
    assert "row 1: nats about kind" in done.output
    out = pd.read_csv(tmp_path / "out.csv")
    assert list(out.columns) == ["row", "variable", "gain", "error", "kind"]
    assert out["row"].tolist() == [0, 0, 1, 1]
    expected = p.acquire({"noise": 0.0}, "kind")
    assert out["gain"].tolist()[2:] == pytest.approx([one.gain for one in expected])
    known = CliRunner().invoke(app, ["acquire", *files, "--target", "noise"])
    assert isinstance(known.exception, OptionError)
    assert "row 1: target 'noise' is observed" in str(known.exception)


# -- a model with latents ----------------------------------------------------------------------------------------------


def linear_vae(dim: int = 5, latents: int = 2) -> tuple[Model, torch.Tensor]:
    """x = W z + 0.6 e as a VAE, and the covariance of x; q is a rough encoder, which weights must correct."""
    w = torch.randn(dim, latents, generator=generator(3), dtype=torch.float64)
    vae = VAEConfig(latents=latents, widths=()).build(Domain.real(dim))
    with torch.no_grad():
        heads, inlet = vae.generative.decoder.heads, vae.inference.nets[0].inlet
        heads.weight.zero_(), heads.bias.zero_(), inlet.weight.zero_(), inlet.bias.zero_()
        heads.weight[0::2], heads.bias[1::2] = w, inverse_positive(torch.tensor(0.6) - heads.columns.laws[0].floor)
    return vae.eval(), w @ w.T + 0.36 * torch.eye(dim)


@pytest.mark.parametrize(("row", "target"), [([NAN] * 5, [0]), ([NAN, NAN, 1.0, NAN, NAN], [0, 3])])
def test_gains_of_a_model_with_latents_are_those_of_its_law(row, target):
    vae, covariance = linear_vae()
    known = [d for d in range(5) if not math.isnan(row[d])]
    found = acquire(vae, torch.tensor(row), target, generator=generator())
    assert {one.kind for one in found.gains} == {Kind.ESTIMATE}
    assert "mixture over draws of the latents" in found.how
    for one in found.gains:
        exact = information(covariance, target, [int(one.variable[1:])], known)
        assert abs(one.gain - exact) < SIGMAS * one.error + 0.02  # 2048 draws of z stand for all
    order = sorted((d for d in range(5) if d not in [*target, *known]), key=lambda d: -information(covariance, target, [d], known))
    assert found.variables[0] == f"x{order[0]}"
