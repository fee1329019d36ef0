"""Histogram, joint grid and density tree answer every question exactly: one set of oracles for the three."""

import itertools
import math

import pytest
import torch

from pofx.domain import Domain, Variable
from pofx.domain import VariableKind as K
from pofx.errors import DataError, FileError, Unavailable
from pofx.models.classical.density_tree import DensityTreeConfig
from pofx.models.classical.histogram import HistogramConfig
from pofx.models.registry import family

FORMS = {"product": HistogramConfig(), "grid": HistogramConfig(form="grid"), "tree": DensityTreeConfig()}
N = 600
MIXED = Domain(
    (
        Variable("real", K("real")),
        Variable("positive", K("positive")),
        Variable("interval", K("interval"), lower=-1.0, upper=2.0),
        Variable("rounded", K("real"), resolution=0.5),
        Variable("spiked", K("real"), spike=0.0),
        Variable("rainfall", K("positive"), resolution=0.1, spike=0.3),
        Variable("share", K("interval"), lower=0.0, upper=1.0, resolution=0.1),
        Variable("count", K("count"), lower=0.0),
        Variable("pixel", K("count"), lower=0.0, upper=5.0),
        Variable("grade", K("ordinal"), levels=("low", "middle", "high")),
        Variable("colour", K("categorical"), levels=("red", "green", "blue", "grey")),
        Variable("sex", K("binary"), levels=("f", "m")),
    )
)
LEVELS = Domain((MIXED["pixel"], MIXED["colour"], MIXED["sex"], MIXED["grade"]))
FEW = MIXED.select([0, 5, 7, 10])  # a real, a rounded positive with a spike, an open count, an unordered level


def mixed_rows(n: int = N, hidden: float = 0.15) -> torch.Tensor:
    """Rows of MIXED that depend on one hidden number."""
    g = torch.Generator().manual_seed(1)
    z = torch.randn(n, generator=g)
    e = torch.randn(n, 12, generator=g) * 0.5
    u = torch.rand(n, 2, generator=g)
    spiked = torch.where(u[:, 0] < 0.3, 0.0, z + e[:, 4])
    rain = torch.where(u[:, 1] < 0.4, 0.3, ((z + e[:, 5]).exp() * 10).round().clamp(1) / 10)
    columns = (
        z + e[:, 0],
        (z + e[:, 1]).exp(),
        torch.sigmoid(z + e[:, 2]) * 3 - 1,
        ((z + e[:, 3]) * 4).round() / 2,
        spiked,
        rain,
        (torch.sigmoid(z + e[:, 6]) * 10).round().clamp(1, 9) / 10,
        (z + e[:, 7]).exp().round(),
        (z + e[:, 8] + 2.5).round().clamp(0, 5),
        (z + e[:, 9] + 1).round().clamp(0, 2),
        ((z + e[:, 10]).abs() * 2).floor().clamp(0, 3),
        (z + e[:, 11] > 0).double(),
    )
    x = torch.stack(columns, 1)
    return torch.where(torch.rand(x.shape, generator=g) < hidden, torch.nan, x)


def rows_of(domain: Domain, **kwargs) -> torch.Tensor:
    return mixed_rows(**kwargs)[:, [MIXED.index(v.name) for v in domain.variables]]


def learned(form: str, domain: Domain, x: torch.Tensor):
    model = FORMS[form].build(domain)
    assert all(math.isfinite(value) for value in model.steps(x[:400], holdout=x[400:]))
    return model


@pytest.fixture(scope="module")
def models():
    """Each form learned on each domain once (the grid only where it is small)."""
    pairs = [(f, d) for f in FORMS for d in ("mixed", "few", "levels") if (f, d) != ("grid", "mixed")]
    domains = {"mixed": MIXED, "few": FEW, "levels": LEVELS}
    return {pair: learned(pair[0], domains[pair[1]], rows_of(domains[pair[1]])) for pair in pairs}


def every(domain: Domain) -> torch.Tensor:
    """All values of a domain of levels and bounded counts."""
    return torch.tensor(list(itertools.product(*(range(v.cardinality) for v in domain.variables))), dtype=torch.float64)


def total(model) -> float:
    """Numeric integral, sum over the grid or levels, and the atom, of a model of one variable."""
    v = model.domain.variables[0]
    if v.resolution:
        x = (torch.arange(-3000, 3000) * v.resolution)[:, None]
        off = (x[:, 0] - v.spike).abs() > v.resolution / 2 if v.spike is not None else torch.ones(len(x), dtype=torch.bool)
        value = float((model.log_prob(x).exp() * off).sum() * v.resolution)
    elif v.continuous:
        step = 2e-4
        x = (torch.arange(-400_000, 400_000) + 0.4321)[:, None] * step
        value = float(model.log_prob(x).exp().sum() * step)
    else:
        value = float(model.log_prob(torch.arange(500.0)[:, None]).exp().sum())
    return value + (float(model.log_prob(torch.tensor([[v.spike]])).exp()) if v.spike is not None else 0.0)


@pytest.mark.parametrize("name", MIXED.names)
@pytest.mark.parametrize("form", FORMS)
def test_every_variable_integrates_to_one(models, form, name):
    where = "mixed" if (form, "mixed") in models else "few"
    model = models[form, where]
    if name in model.domain.names:
        assert total(model.marginal([model.domain.index(name)])) == pytest.approx(1, abs=2e-3 if MIXED[name].continuous else 1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_levels_sum_to_one(models, form):
    assert float(models[form, "levels"].log_prob(every(LEVELS)).exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_density_over_the_plane_integrates_to_one(form):
    domain = Domain((Variable("a", K("real")), Variable("b", K("positive"))))
    g = torch.Generator().manual_seed(2)
    a = torch.randn(500, generator=g)
    model = learned(form, domain, torch.stack((a, (a * 0.8 + 0.3 * torch.randn(500, generator=g)).exp()), 1))
    steps = torch.tensor([0.02, 0.03])
    x = torch.cartesian_prod((torch.arange(-700, 700) + 0.43) * steps[0], (torch.arange(800) + 0.57) * steps[1])
    assert float(model.log_prob(x).exp().sum() * steps.prod()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("form", FORMS)
def test_missing_cells_are_summed_out(models, form):
    model, x = models[form, "levels"], every(LEVELS)
    p = model.log_prob(x).exp()
    for seen in itertools.product((True, False), repeat=4):
        row = torch.where(torch.tensor(seen), torch.tensor([2.0, 1.0, 0.0, 2.0]), torch.nan)
        same = torch.where(row.isnan(), True, x == row).all(1)
        assert float(model.log_prob(row)) == pytest.approx(float(p[same].sum().log()), abs=1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["mixed", "few", "levels"])
def test_marginal_is_the_density_of_rows_with_the_rest_unobserved(models, form, where):
    if (form, where) not in models:
        pytest.skip("a joint grid of so many variables is refused")
    model = models[form, where]
    x = rows_of(model.domain, n=50)
    keep = [2, 0]
    holes = torch.full_like(x, torch.nan)
    holes[:, keep] = x[:, keep]
    part = model.marginal(keep)
    assert part.domain == model.domain.select(keep)
    torch.testing.assert_close(part.log_prob(x[:, keep]), model.log_prob(holes))
    again = part.marginal([1])
    torch.testing.assert_close(again.log_prob(x[:, :1]), model.marginal([0]).log_prob(x[:, :1]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["mixed", "few", "levels"])
def test_chain_rule(models, form, where):
    if (form, where) not in models:
        pytest.skip("a joint grid of so many variables is refused")
    model = models[form, where]
    x = rows_of(model.domain, n=30, hidden=0)
    for row, hidden in zip(x, itertools.cycle([[0], [1, 3], [0, 2, 3]]), strict=False):
        evidence = row.clone()
        evidence[hidden] = torch.nan
        part = model.conditional(evidence)
        assert part.domain == model.domain.select(hidden)
        whole = model.log_prob(evidence) + part.log_prob(row[hidden])
        assert float(whole) == pytest.approx(float(model.log_prob(row)), abs=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_conditional_of_a_conditional(models, form):
    model = models[form, "levels"]
    nan = math.nan
    once = model.conditional(torch.tensor([2.0, nan, nan, 1.0])).conditional(torch.tensor([nan, 1.0]))
    both = model.conditional(torch.tensor([2.0, nan, 1.0, 1.0]))
    x = torch.arange(4.0)[:, None]
    torch.testing.assert_close(once.log_prob(x), both.log_prob(x))


@pytest.mark.parametrize("form", FORMS)
def test_mode_is_the_greatest_of_all(models, form):
    model, x = models[form, "levels"], every(LEVELS)
    p = model.log_prob(x)
    assert float(model.log_prob(model.mode())) == pytest.approx(float(p.max()))
    for first in range(6):
        evidence = torch.tensor([float(first), math.nan, math.nan, 1.0])
        mode = model.mode(evidence)
        assert mode[0] == first
        assert mode[3] == 1
        same = (x[:, 0] == first) & (x[:, 3] == 1)
        assert float(model.log_prob(mode)) == pytest.approx(float(p[same].max()))


@pytest.mark.parametrize(("form", "where"), [("product", "mixed"), ("tree", "mixed"), ("grid", "few"), ("tree", "few")])
def test_no_row_beats_the_mode(models, form, where):
    model = models[form, where]
    x = torch.cat((rows_of(model.domain, hidden=0), model.sample(2000, generator=torch.Generator().manual_seed(3))))
    assert float(model.log_prob(model.mode())) >= float(model.log_prob(x).max()) - 1e-9
    evidence = torch.where(torch.arange(x.shape[1]) == 0, x[0], torch.nan)
    rest = x.clone()
    rest[:, 0] = x[0, 0]
    assert float(model.log_prob(model.mode(evidence))) >= float(model.log_prob(rest).max()) - 1e-9


@pytest.mark.parametrize("form", FORMS)
def test_mean_and_imputation_are_those_of_all_values(models, form):
    model, x = models[form, "levels"], every(LEVELS)
    p = model.log_prob(x).exp()
    torch.testing.assert_close(model.mean(), p @ x)
    row = torch.tensor([math.nan, 1.0, math.nan, 2.0])
    filled = model.impute(row)
    given = p * ((x[:, 1] == 1) & (x[:, 3] == 2))
    assert float(filled[0]) == pytest.approx(float(given @ x[:, 0] / given.sum()))
    assert float(filled[2]) == float(given @ x[:, 2] / given.sum() > 0.5)
    assert filled[1] == 1
    assert filled[3] == 2


@pytest.mark.parametrize("form", FORMS)
def test_mean_of_samples(models, form):
    """Five standard errors and a half, 4 or 12 means: fails for fewer than 1 seed in 10^6."""
    for (f, _), model in models.items():
        if f == form:
            s = model.sample(20_000, generator=torch.Generator().manual_seed(4))
            assert ((s.mean(0) - model.mean()).abs() <= 5.5 * s.std(0) / math.sqrt(len(s))).all()


def chi_square_bound(cells: int) -> float:
    """Above the 1 - 10^-7 quantile (Laurent and Massart's bound: d + 2 sqrt(d t) + 2 t at e^-t)."""
    t = math.log(1e7)
    return cells - 1 + 2 * math.sqrt((cells - 1) * t) + 2 * t


@pytest.mark.parametrize("form", FORMS)
def test_samples_and_completions_follow_the_masses(models, form):
    """Chi-square over all 144 values, and over those that two observed cells leave; fails for 1 seed in 10^6."""
    model, x = models[form, "levels"], every(LEVELS)
    p = model.log_prob(x).exp()
    g = torch.Generator().manual_seed(5)
    row = torch.tensor([math.nan, 1.0, math.nan, 2.0])
    same = (x[:, 1] == 1) & (x[:, 3] == 2)
    for draws, q in (
        (model.sample(40_000, generator=g), p),
        (model.complete(row.expand(40_000, 4), generator=g), p * same / p[same].sum()),
    ):
        index = ((draws * torch.tensor([24.0, 6.0, 3.0, 1.0])).sum(1)).long()
        counts = torch.bincount(index, minlength=len(x)).double()
        assert counts[q == 0].sum() == 0
        expected = 40_000 * q
        often = expected >= 20  # the rest is one cell
        counts, expected = (torch.cat((n[often], n[~often].sum()[None])) for n in (counts, expected))
        chi = ((counts - expected).square() / expected.clamp(min=1)).sum()
        assert float(chi) < chi_square_bound(len(counts))


@pytest.mark.parametrize("form", FORMS)
def test_samples_lie_in_the_domain_and_have_the_models_entropy(models, form):
    """E[-log p] by samples against the integral on the line: 6 standard errors."""
    model = models[form, "few"].marginal([0])
    s = model.sample(20_000, generator=torch.Generator().manual_seed(6))
    nats = -model.log_prob(s)
    x = ((torch.arange(-100_000, 100_000) + 0.43) * 1e-3)[:, None]
    log_p = model.log_prob(x)
    entropy = -float((log_p.exp() * log_p * 1e-3).nansum())
    assert abs(float(nats.mean()) - entropy) < 6 * float(nats.std()) / math.sqrt(20_000) + 2e-3
    rain = models[form, "few"].marginal([1]).sample(2000, generator=torch.Generator().manual_seed(6))[:, 0]
    assert (rain >= 0).all()
    torch.testing.assert_close(rain, (rain * 10).round() / 10)
    assert float((rain == 0.3).double().mean()) == pytest.approx(
        float(models[form, "few"].marginal([1]).log_prob(torch.tensor([0.3])).exp()), abs=0.06
    )


@pytest.mark.parametrize("form", FORMS)
def test_rounded_variable_has_the_probability_of_its_cell_over_the_resolution(models, form):
    model = models[form, "few"].marginal([1])
    s = model.sample(50_000, generator=torch.Generator().manual_seed(7))[:, 0]
    for value in (0.1, 0.5, 1.0):
        share = float(((s - value).abs() < 0.01).double().mean())
        p = float(model.log_prob(torch.tensor([value])).exp()) * 0.1
        assert abs(share - p) < 5.5 * math.sqrt(p * (1 - p) / 50_000)


@pytest.mark.parametrize("form", FORMS)
def test_completions_keep_what_is_observed_and_the_chain(models, form):
    model = models[form, "few"]
    x = rows_of(FEW, n=40)
    g = torch.Generator().manual_seed(8)
    for filled in (model.impute(x), model.complete(x, generator=g)):
        assert not filled.isnan().any()
        assert torch.equal(filled[~x.isnan()], x[~x.isnan()])
    assert model.log_prob(filled).isfinite().all()
    again = model.complete(x, generator=torch.Generator().manual_seed(8))
    assert torch.equal(filled, again)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_observed_has_probability_one(models, form):
    assert float(models[form, "few"].log_prob(torch.full((4,), torch.nan))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_far_rows_are_finite_and_impossible_rows_are_minus_infinity(models, form):
    model = models[form, "few"]
    far = torch.tensor([[1e4, 900.0, 1e4, 0.0], [-1e4, 0.1, 0.0, 3.0]])
    assert model.log_prob(far).isfinite().all()
    impossible = torch.tensor([[0.0, -1.0, 1.0, 0.0], [0.0, 1.0, -1.0, 0.0], [0.0, 1.0, 0.5, 0.0], [0.0, 1.0, 1.0, 4.0]])
    assert (model.log_prob(impossible) == -math.inf).all()
    evidence = torch.where(torch.tensor([True, True, True, False]), impossible[0], torch.nan)
    with pytest.raises(Unavailable, match="probability 0"):
        model.conditional(evidence)
    with pytest.raises(DataError, match="column 'rainfall': -1 lies outside the domain"):
        model.complete(torch.stack((torch.full((4,), torch.nan), evidence)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["few", "levels"])
def test_state_goes_through_a_file(models, form, where):
    model = models[form, where]
    x = rows_of(model.domain, n=60)
    blank = FORMS[form].build(model.domain)
    blank.load_tensors({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert torch.equal(blank.log_prob(x), model.log_prob(x))
    drawn, again = (m.sample(5, generator=torch.Generator().manual_seed(0)) for m in (blank, model))
    assert torch.equal(drawn, again)


@pytest.mark.parametrize("form", FORMS)
def test_tensors_that_do_not_fit_each_other_are_refused(models, form):
    model = models[form, "few"]
    for name in type(model).grows | {"cells.edges"}:
        tensors = {n: t.clone() for n, t in model.state_dict().items()}
        tensors[name] = torch.cat((tensors[name], tensors[name]))
        with pytest.raises(FileError):
            FORMS[form].build(FEW).load_tensors(tensors)


@pytest.mark.parametrize("form", FORMS)
def test_a_blank_model_is_built_without_reading_its_numbers(form):
    """On the meta device there are none: so a file's sizes are checked before anything is allocated."""
    with torch.device("meta"):
        assert all(tensor.is_meta for tensor in FORMS[form].build(FEW).state_dict().values())


REAL, POSITIVE = Variable("a", K("real")), Variable("a", K("positive"))
DEGENERATE = {
    "constant": (REAL, [3.5] * 40),
    "constant zero": (REAL, [0.0] * 40),
    "constant positive": (POSITIVE, [1e-5] * 40),
    "one row": (REAL, [2.0]),
    "two rows": (POSITIVE, [2.0, 3.0]),
    "nothing observed": (REAL, [math.nan] * 40),
    "all at the spike": (Variable("a", K("positive"), spike=0.0), [0.0] * 40),
    "all at the spike of a grid": (Variable("a", K("real"), spike=0.0, resolution=0.1), [0.0] * 40),
    "mostly one value": (REAL, [1.0] * 35 + [2.0, 3.0, -7.0, 8.0, 1.5]),
    "an outlier": (REAL, [0.1 * i for i in range(39)] + [1e12]),
    "a far cluster": (REAL, [1e9 + i for i in range(40)]),
    "tiny": (POSITIVE, [1e-12 * (i + 1) for i in range(40)]),
    "constant on a grid": (Variable("a", K("real"), resolution=0.1), [0.3] * 40),
    "a grid beside zero": (Variable("a", K("real"), resolution=1.0), [0.5, 1.5, 2.5, 4.5] * 10),
    "at the end of the interval": (Variable("a", K("interval"), lower=0.0, upper=1.0), [1e-9, 1 - 1e-9] * 20),
    "one level": (Variable("a", K("categorical"), levels=("x",)), [0.0] * 40),
    "wide counts": (Variable("a", K("count"), lower=0.0, upper=1e6), [float(i**4) for i in range(31)]),
    "open counts": (Variable("a", K("count"), lower=3.0), [3.0] * 39 + [1e6]),
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("form", FORMS)
def test_degenerate_columns(form, case):
    variable, values = DEGENERATE[case]
    domain = Domain((variable, Variable("b", K("binary"), levels=(0, 1))))
    x = torch.stack((torch.tensor(values), torch.arange(len(values)) % 2.0), 1)
    model = FORMS[form].build(domain)
    assert all(math.isfinite(v) for v in model.steps(x))
    assert model.log_prob(x).isfinite().all()
    s = model.sample(500, generator=torch.Generator().manual_seed(0))
    assert model.log_prob(s).isfinite().all()
    assert model.mean().isfinite().all()
    assert model.log_prob(model.mode()).isfinite()
    assert float(model.marginal([1]).log_prob(torch.tensor([0.0])).exp()) == pytest.approx(0.5, abs=0.2 if len(x) > 2 else 0.45)


@pytest.mark.parametrize("form", FORMS)
def test_repeated_rows_do_not_make_the_density_grow(form):
    """A row repeated a thousand times adds no more than log of its share over the narrowest bin kept."""
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    x = torch.cat((x, x[:1].expand(1000, 2)))
    model = FORMS[form].build(Domain.real(2))
    list(model.steps(x))
    assert float(model.log_prob(x).max()) < 20


@pytest.mark.parametrize("form", FORMS)
def test_no_rows_in_no_rows_out(models, form):
    assert models[form, "few"].log_prob(torch.zeros(0, 4)).shape == (0,)
    assert models[form, "few"].sample(0).shape == (0, 4)
    assert models[form, "few"].impute(torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("name", ["histogram", "density_tree"])
def test_conditions_are_refused(name):
    with pytest.raises(Unavailable, match=r"p\(x \| c\): it learns the joint law"):
        family(name).configure({}).build(FEW, LEVELS)
