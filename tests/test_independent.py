"""`independent` is a product of the best laws, and answers as one."""

import pytest
import torch

from pofx.distributions.choose import candidates
from pofx.distributions.continuous import StudentT
from pofx.domain import Domain, Variable, VariableKind
from pofx.errors import FileError, OptionError, Unavailable
from pofx.models.classical.independent import Independent, IndependentConfig

NAN = float("nan")
DOMAIN = Domain(
    (
        Variable("height", VariableKind.REAL),
        Variable("income", VariableKind.POSITIVE),
        Variable("share", VariableKind.INTERVAL, lower=0.0, upper=1.0),
        Variable("rounded", VariableKind.REAL, resolution=0.5),
        Variable("rain", VariableKind.REAL, spike=0.0),
        Variable("visits", VariableKind.COUNT, lower=0.0),
        Variable("pixel", VariableKind.COUNT, lower=0.0, upper=7.0),
        Variable("grade", VariableKind.ORDINAL, levels=("low", "mid", "high")),
        Variable("species", VariableKind.CATEGORICAL, levels=("a", "b", "c")),
        Variable("sex", VariableKind.BINARY, levels=("f", "m")),
        Variable("always", VariableKind.CATEGORICAL, levels=("x",)),
    )
)


def rows(n=200):
    """Rows of every kind, some cells missing."""
    z = torch.randn(n, 5)
    x = torch.stack(
        (
            StudentT().sample(torch.tensor([170.0, 8.0, -3.0]).expand(n, -1)),
            (10 + z[:, 0]).exp(),
            z[:, 1].sigmoid(),
            (z[:, 2] * 4).round() / 2,
            torch.where(z[:, 3] > 0, z[:, 4], 0.0),
            torch.poisson(torch.full((n,), 3.0)),
            torch.randint(0, 8, (n,)).double(),
            torch.randint(0, 3, (n,)).double(),
            torch.randint(0, 3, (n,)).double(),
            torch.randint(0, 2, (n,)).double(),
            torch.zeros(n),
        ),
        dim=1,
    )
    x[torch.rand(x.shape) < 0.1] = torch.nan
    return x


def learned(x, domain=DOMAIN, **options):
    model = IndependentConfig().build(domain)
    (log_likelihood,) = model.steps(x, generator=torch.Generator().manual_seed(0), **options)
    torch.testing.assert_close(log_likelihood, float(model.log_prob(x).mean()))
    return model


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        torch.set_default_dtype(torch.float64)
        return learned(rows())


def test_log_prob_is_the_sum_over_columns_and_a_missing_cell_is_factor_one(model):
    x = rows(20)
    each = [model.marginal([d]).log_prob(x[:, d : d + 1]) for d in range(len(DOMAIN))]
    torch.testing.assert_close(model.log_prob(x), torch.stack(each).sum(0))
    assert model.log_prob(torch.full((len(DOMAIN),), torch.nan)) == 0


def test_heavy_tails_are_found(model):
    assert isinstance(model.laws[0], StudentT)


def test_conditional_is_the_marginal_of_the_rest(model):
    evidence = torch.tensor([NAN, NAN, 0.5, NAN, 0.0, 1.0, NAN, 2.0, NAN, 1.0, 0.0])
    rest = model.conditional(evidence)
    assert rest.domain.names == ("height", "income", "rounded", "pixel", "species")
    x = rows(10)[:, [0, 1, 3, 6, 8]]
    torch.testing.assert_close(rest.log_prob(x), model.marginal([0, 1, 3, 6, 8]).log_prob(x))


def test_impossible_evidence_is_refused(model):
    with pytest.raises(Unavailable, match="probability 0"):
        model.conditional(torch.tensor([NAN, -1.0, *[NAN] * 9]))


def test_draws_are_values_of_the_domain_and_possible(model):
    x = model.sample(500, generator=torch.Generator().manual_seed(2))
    assert x.shape == (500, len(DOMAIN))
    assert model.log_prob(x).isfinite().all()
    assert torch.equal(x[:, 3] * 2, (x[:, 3] * 2).round())
    assert (x[:, 4] == 0).any()
    assert torch.equal(x, model.sample(500, generator=torch.Generator().manual_seed(2)))
    assert model.sample(0).shape == (0, len(DOMAIN))


def test_fills_keep_what_is_seen(model):
    x = rows(30)
    for filled in (model.impute(x), model.complete(x)):
        assert not filled.isnan().any()
        assert torch.equal(filled[~x.isnan()], x[~x.isnan()])
    centre = model.impute(torch.full((1, len(DOMAIN)), torch.nan))[0]
    numbers = [0, 1, 2, 3, 4, 5, 6]
    torch.testing.assert_close(centre[numbers], model.mean()[numbers])
    torch.testing.assert_close(centre[7:], model.mode()[7:])


def test_no_row_is_more_probable_than_the_mode(model):
    at = torch.tensor([NAN, 5.0, *[NAN] * 9])
    mode = model.mode(at)
    assert mode[1] == 5.0
    assert (model.log_prob(rows(200).nan_to_num(0.5)) <= model.log_prob(model.mode()) + 1e-3).all()


def test_state_carries_the_choice_of_laws(model):
    other = IndependentConfig().build(DOMAIN)
    other.load_tensors(model.state_dict())
    x = rows(20)
    assert torch.equal(other.log_prob(x), model.log_prob(x))
    assert other.laws == model.laws


def test_state_of_another_model_is_refused(model):
    state = model.state_dict()
    with pytest.raises(FileError, match="candidate laws, got number 99"):
        IndependentConfig().build(DOMAIN).load_tensors({**state, "choice": torch.full_like(state["choice"], 99)})
    with pytest.raises(FileError, match="parameters, got"):
        IndependentConfig().build(DOMAIN).load_tensors({**state, "theta": state["theta"][1:]})


def test_held_out_rows_decide():
    domain = Domain((Variable("pixel", VariableKind.COUNT, lower=0.0, upper=1.0),))
    laws = candidates(domain.variables[0])
    x = torch.tensor([[1.0], [1.0], [1.0], [0.0]])
    model = learned(x, domain, holdout=torch.tensor([[1.0], [0.0]]))  # even odds: the more smoothing the better
    assert model.laws[0].pseudo == max(law.pseudo for law in laws)


@pytest.mark.parametrize(
    "x", [torch.ones(1, 11), torch.ones(2, 11), torch.full((3, 11), torch.nan)], ids=["one row", "equal rows", "unseen"]
)
def test_hardly_any_data(x):
    x = x * torch.tensor([1.0] * 2 + [0.5] + [1.0] * 7 + [0.0])
    model = learned(x)
    assert model.log_prob(x).isfinite().all()
    assert model.sample(5).isfinite().all()


def test_a_condition_is_refused():
    with pytest.raises(Unavailable, match="learns the joint law"):
        IndependentConfig().build(DOMAIN, DOMAIN)
    with pytest.raises(OptionError, match="distinct"):
        Independent(DOMAIN).marginal([0, 0])


@pytest.mark.slow
def test_digits_are_at_the_published_figure():
    """A smoothed table a pixel: 106.4 nats on the test rows."""
    data = pytest.importorskip("sklearn.datasets").load_digits().data
    x = torch.as_tensor(data)
    domain = Domain(tuple(Variable(f"x{d}", VariableKind.COUNT, lower=0.0, upper=16.0) for d in range(64)), (8, 8))
    model = learned(x[:1000], domain, holdout=x[1000:1350])
    assert -model.log_prob(x[1350:]).mean() == pytest.approx(106.4, abs=0.5)
