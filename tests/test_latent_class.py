"""`latent_class` against enumeration, its own special cases, and EM's promise."""

import itertools

import pytest
import torch

from pofx.distributions.choose import candidates
from pofx.domain import LEVELLED, Domain, Variable, VariableKind
from pofx.errors import FileError, Unavailable
from pofx.models.classical.latent_class import LatentClass, LatentClassConfig
from pofx.models.classical.latent_class_em import expectation_maximisation, log_joint, seeded

NAN = float("nan")
DISCRETE = Domain(
    (
        Variable("a", VariableKind.BINARY, levels=("n", "y")),
        Variable("b", VariableKind.CATEGORICAL, levels=("r", "g", "b")),
        Variable("c", VariableKind.COUNT, lower=1.0, upper=3.0),
        Variable("d", VariableKind.ORDINAL, levels=("low", "mid", "high")),
    )
)
MIXED = Domain(
    (
        Variable("species", VariableKind.CATEGORICAL, levels=("adelie", "gentoo", "chinstrap")),
        Variable("bill", VariableKind.REAL, resolution=0.1),
        Variable("flipper", VariableKind.REAL),
        Variable("mass", VariableKind.POSITIVE),
        Variable("share", VariableKind.INTERVAL, lower=0.0, upper=1.0),
        Variable("rain", VariableKind.REAL, spike=0.0),
        Variable("eggs", VariableKind.COUNT, lower=0.0),
        Variable("sex", VariableKind.BINARY, levels=("f", "m")),
    )
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_model(domain, classes):
    """A model with random parameters, no learning."""
    model = LatentClass(domain, LatentClassConfig())
    model.log_pi = torch.randn(classes).log_softmax(0)
    model.theta = 2 * torch.randn(classes, model.columns.width)
    return model


@pytest.fixture
def model():
    return random_model(DISCRETE, 3)


@pytest.fixture(scope="module")
def worlds():
    return torch.tensor(list(itertools.product((0, 1), (0, 1, 2), (1, 2, 3), (0, 1, 2)))).double()


def masses(model, worlds, keep):
    """p of each distinct value of some variables, by summing over all worlds."""
    p = model.log_prob(worlds).exp()
    values, which = worlds[:, keep].unique(dim=0, return_inverse=True)
    return values, torch.zeros(len(values)).index_add_(0, which, p)


# -- against all worlds ----------------------------------------------------------------------------


def test_all_worlds_sum_to_one(model, worlds):
    torch.testing.assert_close(model.log_prob(worlds).exp().sum(), torch.tensor(1.0))


@pytest.mark.parametrize("keep", [[0], [2, 1], [3, 0, 2], [0, 1, 2, 3]], ids=str)
def test_marginals_and_missing_cells(model, worlds, keep):
    values, p = masses(model, worlds, keep)
    marginal = model.marginal(keep)
    torch.testing.assert_close(marginal.log_prob(values).exp(), p)
    holes = torch.full((len(values), 4), torch.nan)
    holes[:, keep] = values
    torch.testing.assert_close(model.log_prob(holes).exp(), p)


@pytest.mark.parametrize("seen", [s for r in (1, 2, 3) for s in itertools.combinations(range(4), r)], ids=str)
def test_conditionals_under_every_mask(model, worlds, seen):
    evidence = torch.full((4,), torch.nan)
    evidence[list(seen)] = worlds[17, list(seen)]
    rest = [d for d in range(4) if d not in seen]
    agree = (worlds[:, list(seen)] == worlds[17, list(seen)]).all(1)
    joint = model.log_prob(worlds[agree])
    conditional = model.conditional(evidence)
    assert isinstance(conditional, LatentClass)
    torch.testing.assert_close(conditional.log_prob(worlds[agree][:, rest]), joint - joint.logsumexp(0))
    p = (joint - joint.logsumexp(0)).exp()
    filled = model.impute(evidence[None])[0]
    for d in rest:
        levels, which = worlds[agree][:, d].unique(return_inverse=True)
        mass = torch.zeros(len(levels)).index_add_(0, which, p)
        expected = levels[mass.argmax()] if DISCRETE.variables[d].kind in LEVELLED else mass @ levels
        torch.testing.assert_close(filled[d], expected)


def test_mean_and_mode(model, worlds):
    p = model.log_prob(worlds).exp()
    torch.testing.assert_close(model.mean(), p @ worlds)
    assert (worlds == model.mode()).all(1).any()
    assert model.log_prob(model.mode()) <= p.log().max() + 1e-12


def test_mode_is_found_where_classes_are_apart(worlds):
    model = random_model(DISCRETE, 2)
    model.theta = 3 * model.theta
    assert model.log_prob(model.mode()) == pytest.approx(float(model.log_prob(worlds).max()))
    kept = model.mode(torch.tensor([1.0, NAN, NAN, 2.0]))
    assert (kept[0], kept[3]) == (1.0, 2.0)
    agree = (worlds[:, 0] == 1) & (worlds[:, 3] == 2)
    assert model.log_prob(kept) == pytest.approx(float(model.log_prob(worlds[agree]).max()))


def test_samples_and_completions_follow_the_law(model, worlds):
    """Frequencies of all 54 worlds within 6 standard errors (a correct sampler fails with probability below 1e-6)."""
    n = 20_000
    p = model.log_prob(worlds).exp()
    evidence = torch.tensor([NAN, 1.0, NAN, NAN])
    given = torch.where(worlds[:, 1] == 1, p, 0.0) / p[worlds[:, 1] == 1].sum()
    for x, expected in (
        (model.sample(n, generator=generator()), p),
        (model.complete(evidence.expand(n, -1), generator=generator()), given),
    ):
        share = (x[:, None] == worlds).all(-1).double().mean(0)
        assert ((share - expected).abs() <= 6 * (expected * (1 - expected) / n).sqrt() + 2e-4).all()


def test_codes_are_posteriors(model, worlds):
    code = model.encode(worlds)
    joint = log_joint(model.columns, model.mixture, worlds)
    torch.testing.assert_close(code, (joint - model.log_prob(worlds)[:, None]).exp())


def test_impossible_evidence_is_refused_and_impossible_rows_have_no_mass(model):
    with pytest.raises(Unavailable, match="probability 0"):
        model.conditional(torch.tensor([NAN, NAN, 7.0, NAN]))
    assert model.log_prob(torch.tensor([0.0, 0.0, 7.0, 0.0])).isneginf()


# -- learning --------------------------------------------------------------------------------------


def table(n=240, missing=0.15):
    """Penguins in all but name: three kinds, every sort of column, some cells missing."""
    k = torch.randint(0, 3, (n,))
    z = torch.randn(n, 6)
    x = torch.stack(
        (
            k.double(),
            ((40 + 4 * k + z[:, 0]) * 10).round() / 10,
            190 + 15 * k + 4 * z[:, 1],
            (8 + 0.3 * k + 0.1 * z[:, 2]).exp(),
            (z[:, 3] + k - 1).sigmoid(),
            torch.where(z[:, 4] > 0, z[:, 5] + k, 0.0),
            torch.poisson(1.0 + 3 * k),
            (torch.rand(n) < 0.5).double(),
        ),
        dim=1,
    )
    x[torch.rand(x.shape) < missing] = torch.nan
    return x


def learned(x, domain=MIXED, holdout=None, seed=0, **options):
    model = LatentClassConfig(**options).build(domain)
    history = list(model.steps(x, holdout=holdout, generator=generator(seed)))
    assert all(value == value for value in history)
    return model


@pytest.mark.parametrize("smoothing", [0.0, 1.0, 20.0])
@pytest.mark.parametrize("classes", [1, 3, 7])
def test_em_never_goes_down(classes, smoothing):
    x = table()
    columns = LatentClass(MIXED, LatentClassConfig()).columns
    start = seeded(columns, x, classes, smoothing, generator())
    path = [s.penalised for s in expectation_maximisation(columns, x, start, smoothing, steps=60, tolerance=-1.0)]
    assert len(path) == 60
    assert all(after >= before - 1e-10 * abs(before) for before, after in itertools.pairwise(path))
    assert path[-1] > path[0] or classes == 1


def test_one_class_is_independence():
    x = table()
    model = learned(x, components=1, smoothing=0.0, restarts=1)
    for d, variable in enumerate(MIXED.variables):
        law = candidates(variable)[0]
        alone = law.fit(x[:, d], torch.ones(len(x), 1))[0]
        torch.testing.assert_close(model.marginal([d]).log_prob(x[:, d : d + 1]), law.log_prob(alone, x[:, d]), atol=1e-4, rtol=1e-4)


def test_classes_are_found_and_missing_cells_filled():
    x = table(400, missing=0.0)
    holes = torch.where(torch.rand(x.shape) < 0.3, torch.nan, x)
    model = learned(holes, restarts=1)
    assert len(model.log_pi) > 1
    unseen = holes[:, 2].isnan()
    error = (model.impute(holes) - x)[unseen, 2].square().mean()
    assert error < 0.35 * x[:, 2].var()
    right = (model.impute(holes) == x)[holes[:, 0].isnan(), 0].double().mean()
    assert right > 0.8
    kept = ~holes.isnan()
    assert torch.equal(model.complete(holes, generator=generator())[kept], x[kept])


def test_held_out_rows_choose_no_worse_than_one_class():
    x, held = table(), table(120)
    chosen, one = learned(x, holdout=held, restarts=1), learned(x, holdout=held, components=1)
    assert chosen.log_prob(held).mean() > one.log_prob(held).mean()


def test_order_of_the_columns_does_not_matter():
    x = table(80)
    order = torch.randperm(len(MIXED)).tolist()
    options = {"components": 3, "smoothing": 5.0, "restarts": 1, "steps": 20}
    straight, permuted = learned(x, **options), learned(x[:, order], MIXED.select(order), **options)
    torch.testing.assert_close(permuted.log_prob(x[:, order]), straight.log_prob(x), atol=1e-6, rtol=1e-6)


def test_an_equal_generator_gives_equal_weights():
    x = table(60)
    one, two = (learned(x, seed=3, components=3, smoothing=5.0).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("rows", ["one row", "equal rows", "unseen rows"])
def test_hardly_any_data(rows):
    x = table(2, 0.0)
    x = {"one row": x[:1], "equal rows": x[:1].repeat(12, 1), "unseen rows": torch.cat((x, torch.full((2, 8), torch.nan)))}[rows]
    for options in ({}, {"components": 4, "smoothing": 0.0}):
        model = learned(x, **options)
        assert model.log_prob(x).isfinite().all()
        assert model.sample(5, generator=generator()).isfinite().all()


def test_a_duplicated_cell_does_not_run_away():
    x = torch.randn(50, 2)
    x[:10] = x[0]
    model = learned(x, Domain.real(2), components=8, smoothing=0.0)
    assert model.log_prob(x).max() < 2 * 8  # each column: the log of 1 / (NARROWEST sd sqrt(2 pi)), and a little


def test_every_step_leaves_a_whole_model():
    x = table(60)
    model = LatentClassConfig().build(MIXED)
    for _ in itertools.islice(model.steps(x, generator=generator()), 25):
        assert model.log_prob(x).isfinite().all()


def test_state_is_whole():
    model = learned(table(60), components=3, smoothing=5.0)
    other = LatentClassConfig().build(MIXED)
    other.load_tensors(model.state_dict())
    x = table(20)
    assert torch.equal(other.log_prob(x), model.log_prob(x))
    for damaged in ({"theta": model.theta[:, 1:]}, {"log_pi": model.log_pi[1:]}):
        with pytest.raises(FileError, match="expected"):
            LatentClassConfig().build(MIXED).load_tensors({**model.state_dict(), **damaged})


def test_a_condition_is_refused():
    with pytest.raises(Unavailable, match="learns the joint law"):
        LatentClassConfig().build(MIXED, MIXED)


@pytest.mark.slow
def test_digits_beat_the_bar():
    x = torch.as_tensor(pytest.importorskip("sklearn.datasets").load_digits().data)
    domain = Domain(tuple(Variable(f"x{d}", VariableKind.COUNT, lower=0.0, upper=16.0) for d in range(64)), (8, 8))
    model = learned(x[:1000], domain, holdout=x[1000:1350])
    assert -model.log_prob(x[1350:]).mean() <= 101.5
