"""PofX: the user's columns in, the user's columns out; every number labelled; answers agree with closed forms."""

import math

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import pofx
from pofx.ask.evidence import parse, point
from pofx.domain import Domain, Variable, VariableKind
from pofx.errors import DataError, OptionError, Unavailable
from pofx.models.base import FamilyConfig, FullBatch, Model, Takes
from pofx.models.classical.gaussian import GaussianConfig
from pofx.types import Answer, Kind


@pytest.fixture(scope="module")
def penguins():
    return pofx.fit("penguins", "latent_class", components=6, seed=1)


@pytest.fixture(scope="module")
def normal():
    """A Gaussian over three correlated real columns, and its rows."""
    rng = np.random.RandomState(0)
    x = rng.randn(500, 3) @ rng.randn(3, 3) + [1.0, -2.0, 3.0]
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    return pofx.fit(frame, "gaussian", holdout=frame[:50]), frame


def test_a_frame_comes_back_as_it_went_in(penguins):
    train = pofx.load("penguins").train
    drawn = penguins.sample(20)
    assert list(drawn.columns) == list(train.columns)
    assert (drawn.dtypes == train.dtypes).all()


def test_polars_in_polars_out():
    frame = pl.DataFrame({"a": np.random.RandomState(0).randn(100), "b": ["x", "y"] * 50})
    p = pofx.fit(frame, "independent")
    assert p.sample(4).schema == frame.schema


def test_arrays_keep_their_shape():
    p = pofx.fit("digits", "independent")
    assert p.sample(3).shape == (3, 8, 8)
    assert p.sample(3).dtype == pofx.load("digits").train.dtype


def test_two_samples_differ_and_equal_seeds_agree(penguins):
    assert not penguins.sample(5).equals(penguins.sample(5))
    pd.testing.assert_frame_equal(penguins.sample(5, seed=3), penguins.sample(5, seed=3))


def test_the_same_seed_learns_the_same_bits():
    a, b = (pofx.fit("iris", "realnvp", max_epochs=3, seed=5).model.state_dict() for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_log_prob_is_the_closed_form(normal):
    p, frame = normal
    answer = p.log_prob(frame)
    assert isinstance(answer, Answer)
    assert answer.kind is Kind.EXACT
    assert answer.error is None
    draws = p.sample(200_000, seed=0)
    mean, covariance = draws.mean().to_numpy(), np.cov(draws.T)
    reference = torch.distributions.MultivariateNormal(torch.tensor(mean), torch.tensor(covariance))
    np.testing.assert_allclose(np.asarray(answer), reference.log_prob(torch.tensor(frame.to_numpy())), atol=5e-2)


def test_score_is_the_mean_with_its_error(normal):
    p, frame = normal
    each, score = np.asarray(p.log_prob(frame)), p.score(frame)
    assert float(score) == pytest.approx(each.mean())
    assert float(score.error) == pytest.approx(each.std(ddof=1) / math.sqrt(len(each)))


def test_conditional_and_marginal_compose(normal):
    p, _frame = normal
    q = p.conditional(a=1.0).marginal("c")
    assert q.domain.names == ("c",)
    joint = p.marginal("a", "c").log_prob(pd.DataFrame({"a": [1.0], "c": [2.5]}))
    alone = p.marginal("a").log_prob(pd.DataFrame({"a": [1.0]}))
    assert float(q.log_prob(pd.DataFrame({"c": [2.5]})).value[0]) == pytest.approx(float(joint.value[0] - alone.value[0]))


def test_a_missing_cell_is_marginalised(normal):
    p, _ = normal
    rows = pd.DataFrame({"a": [1.0], "b": [math.nan], "c": [2.0]})
    assert p.log_prob(rows).value[0] == pytest.approx(p.marginal("a", "c").log_prob(rows[["a", "c"]]).value[0])


def test_expectation_has_its_error(normal):
    p, frame = normal
    answer = p.expectation(lambda rows: rows["a"] * rows["b"], n=20_000)
    assert answer.kind is Kind.ESTIMATE
    reference = np.cov(frame.T, bias=True)[0, 1] + frame["a"].mean() * frame["b"].mean()
    assert abs(float(answer) - reference) < 5.5 * float(answer.error) + 1e-2  # 5.5 standard errors: fails 4e-8 of seeds


def test_impute_keeps_what_is_seen_and_fills_the_rest(penguins):
    test = pofx.load("penguins").test.set_index(np.arange(1000, 1000 + len(pofx.load("penguins").test)))
    holes = test.copy()
    holes.loc[holes.index[::2], "species"] = None
    holes.loc[holes.index[1::2], "body_mass_g"] = np.nan
    full = penguins.impute(holes)
    assert not full.isna().any().any()
    seen = holes.notna()
    assert (full.where(seen) == holes.where(seen))[seen].stack().all()
    accuracy = (full["species"] == test["species"])[::2].mean()
    assert accuracy > 0.9
    draws = penguins.impute(holes, n=3)
    assert len(draws) == 3
    assert list(full.index) == list(draws[0].index) == list(holes.index)
    assert not draws[0].equals(draws[1])


PIECES = {
    "numpy": lambda frame: frame[["mass", "eggs"]].to_numpy(),
    "torch": lambda frame: torch.tensor(frame[["mass", "eggs"]].to_numpy()),
    "pandas": lambda frame: frame.set_index(pd.Index(range(500, 540), name="id")),
    "polars": lambda frame: pl.from_pandas(frame),
    "pyarrow": lambda frame: pl.from_pandas(frame).to_arrow(),
    "mapping": lambda frame: {name: frame[name].tolist() for name in frame},
}


def holes():
    """Rows of three kinds of column with missing cells."""
    r = np.random.RandomState(0)
    return pd.DataFrame(
        {
            "mass": np.where(r.rand(40) < 0.3, np.nan, r.randn(40)),
            "eggs": np.where(r.rand(40) < 0.3, np.nan, r.poisson(4, 40)),
            "kind": pd.Categorical.from_codes(r.randint(-1, 2, 40), ["a", "b"]),
        }
    )


@pytest.mark.parametrize("container", PIECES)
def test_rows_filled_in_pieces_are_the_rows_filled_at_once(container, monkeypatch):
    frame = holes()
    rows = PIECES[container](frame)
    p = pofx.fit(frame if container == "mapping" else rows, "independent")
    whole = p.impute(rows)
    monkeypatch.setattr("pofx.ask.pofx.AT_ONCE", 7)
    pieces = p.impute(rows)
    assert type(pieces) is type(whole)
    if isinstance(whole, pd.DataFrame):
        pd.testing.assert_frame_equal(pieces, whole)
    else:
        assert np.array_equal(np.asarray(whole), np.asarray(pieces))
        assert getattr(whole, "schema", None) == getattr(pieces, "schema", None)
    assert len(p.impute(rows, 2)) == 2


def test_a_bad_row_is_counted_from_the_first_of_all_pieces(monkeypatch):
    rows = np.random.RandomState(0).randn(40, 2)
    p = pofx.fit(rows, "gaussian")
    rows[33, 1] = np.inf
    monkeypatch.setattr("pofx.ask.pofx.AT_ONCE", 7)
    with pytest.raises(DataError, match="row 33"):
        p.impute(rows)


def test_no_rows_are_filled_as_no_rows(normal):
    p, frame = normal
    assert p.impute(frame[:0]).equals(frame[:0])


MIXED = Domain(
    (
        Variable("mass", VariableKind.POSITIVE),
        Variable("eggs", VariableKind.COUNT, lower=0),
        Variable("kind", VariableKind.CATEGORICAL, levels=("a", "b", "3")),
        Variable("tame", VariableKind.BINARY, levels=(False, True)),
        Variable("grade", VariableKind.ORDINAL, levels=(1, 2.5, 10)),
    )
)


def test_words_are_read_by_the_kind_of_their_column():
    words = [("mass", "2.5e3"), ("eggs", "4"), ("kind", "3"), ("tame", "TRUE"), ("grade", "2.50")]
    evidence = parse(MIXED, words)
    assert evidence == {"mass": 2500.0, "eggs": 4.0, "kind": "3", "tame": True, "grade": 2.5}
    assert point(MIXED, evidence).tolist() == [2500.0, 4.0, 2.0, 1.0, 1.0]


WORDS = {
    "a negative mass": (("mass", "-1"), "is positive"),
    "part of an egg": (("eggs", "1.5"), "whole numbers"),
    "fewer eggs than none": (("eggs", "-1"), "lies in"),
    "a number beyond floats": (("mass", "1e999"), "infinite"),
    "no level": (("kind", "A"), "no level 'A'"),
    "no truth": (("tame", "1"), "no level '1'"),
    "no grade": (("grade", "3"), "no level '3'"),
    "no number": (("eggs", "four"), "takes a number, got 'four'"),
    "digits of another script": (("mass", "٣"), "takes a number"),
}


@pytest.mark.parametrize(("word", "fragment"), WORDS.values(), ids=WORDS)
def test_a_word_that_is_no_value_is_refused(word, fragment):
    with pytest.raises(DataError, match=fragment):
        point(MIXED, parse(MIXED, [word]))


def test_a_refusal_names_who_can():
    p = pofx.fit("moons", "realnvp", max_epochs=1)
    with pytest.raises(Unavailable, match=r"families that answer it: .*gmm"):
        p.mean()


def test_questions_say_their_kind(penguins):
    assert penguins.questions["conditional"] is Kind.EXACT
    assert penguins.questions["decode"] is Kind.NONE


@pytest.mark.parametrize("family", ["vae", "realnvp"])
def test_given_columns_are_conditions(family):
    rng = np.random.RandomState(0)
    dose = rng.rand(800)
    frame = pd.DataFrame({"dose": dose, "response": 3 * dose + 0.1 * rng.randn(800)})
    q = pofx.fit(frame, family, given="dose", max_epochs=60)
    drawn = q.sample(200, given=pd.DataFrame({"dose": [0.05, 0.95]}), seed=0)
    assert list(drawn.columns) == ["response"]
    low, high = drawn["response"][:200].mean(), drawn["response"][200:].mean()
    assert high - low > 2.0
    assert q.log_prob(frame[:5]).value.shape == (5,)
    with pytest.raises(DataError):
        q.sample(5)


def test_search_keeps_the_best():
    found = pofx.search("gmm", "moons", trials=3, seed=0)
    assert found.best.origin.family == "gmm"
    assert len(found.trials) == 3


BAD = {
    "unknown column": (lambda p: p.marginal("colour"), OptionError, "no column 'colour'"),
    "evidence on an unknown column": (lambda p: p.conditional(colour=1), OptionError, "no column 'colour'"),
    "an unseen level": (lambda p: p.conditional(species="Emperor"), DataError, "Emperor"),
    "no column kept": (lambda p: p.marginal(), OptionError, "distinct variables"),
    "a negative number of rows": (lambda p: p.sample(-1), OptionError, "0 or more"),
    "no value at all": (lambda p: p.conditional(species=[]), OptionError, "needs numbers"),
    "f of another shape": (lambda p: p.expectation(lambda rows: np.zeros(3)), OptionError, "one number"),
    "a missing column": (lambda p: p.log_prob(pd.DataFrame({"species": ["Adelie"]})), DataError, "island"),
}


@pytest.mark.parametrize(("ask", "error", "fragment"), BAD.values(), ids=BAD)
def test_a_bad_question_is_one_sentence(penguins, ask, error, fragment):
    with pytest.raises(error, match=fragment):
        ask(penguins)


class Unit(Model, FullBatch):
    """A normal of deviation 1: the least a family of one's own can be."""

    def __init__(self, domain):
        super().__init__(domain)
        self.register_buffer("mu", torch.zeros(len(domain), dtype=torch.float64))

    def steps(self, x, *, holdout=None, generator=None):
        self.mu = x.mean(0)
        yield float(self._log_prob(x, None, None).mean())

    def _log_prob(self, x, c, generator):
        return torch.distributions.Normal(self.mu, 1.0).log_prob(x).sum(-1)

    def _sample(self, n, c, generator):
        return self.mu + torch.randn(n, len(self.mu), generator=generator)


class UnitConfig(FamilyConfig):
    takes = Takes.EVERYTHING
    shift: float = 0.0

    def _build(self, domain, context):
        return Unit(domain)


def test_a_family_of_ones_own_is_learned_and_asked(tmp_path):
    rows = np.random.RandomState(0).randn(300, 2)
    p = pofx.fit(rows, UnitConfig(), holdout=rows[:10])
    expected = -0.5 * ((rows - rows.mean(0)) ** 2).sum(1) - math.log(2 * math.pi)
    np.testing.assert_allclose(p.log_prob(rows), expected, rtol=1e-12)
    assert p.questions["sample"] is Kind.EXACT
    with pytest.raises(OptionError, match="there is no family 'UnitConfig'"):
        p.save(tmp_path / "p.safetensors")


def test_options_stand_for_their_family():
    rows = np.random.RandomState(0).randn(300, 2)
    p = pofx.fit(rows, GaussianConfig(prior_rows=1.0))
    assert p.origin.family == "gaussian"
    assert p.origin.config.prior_rows == 1.0
    with pytest.raises(OptionError, match="'prior_rows' stands beside GaussianConfig"):
        pofx.fit(rows, GaussianConfig(), prior_rows=2.0)
    with pytest.raises(OptionError, match="a family is a name or its options"):
        pofx.fit(rows, Unit)


# -- asked in another way ------------------------------------------------------------------------------


def test_options_of_asking_can_change_after_learning(tmp_path):
    p = pofx.fit("moons", "diffusion", width=16, blocks=1, max_epochs=1, progress=False)
    assert p.log_prob(pofx.load("moons").test[:2]).kind is Kind.BOUND
    other = p.using(likelihood="ode", ode_steps=8)
    assert other.log_prob(pofx.load("moons").test[:2]).kind is Kind.ESTIMATE
    assert p.log_prob(pofx.load("moons").test[:2]).kind is Kind.BOUND, "p stays as it was"
    other.save(tmp_path / "other.safetensors")
    assert pofx.open(tmp_path / "other.safetensors").log_prob(pofx.load("moons").test[:2]).kind is Kind.ESTIMATE


def test_options_of_learning_can_not():
    p = pofx.fit("moons", "diffusion", width=16, blocks=1, max_epochs=1, progress=False)
    with pytest.raises(OptionError, match="width decides what is learned, so that p has to be fitted anew"):
        p.using(width=32)
    with pytest.raises(OptionError, match="has no option 'widht'; did you mean 'width'"):
        p.using(widht=32)
    with pytest.raises(OptionError, match="has no options"):
        pofx.fit("iris", "gaussian").marginal("species").using(steps=3)
