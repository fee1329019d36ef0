"""Outliers: p-values of ordinary rows are uniform, planted rows and cells are found, whatever is missing and whoever asks."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import pofx
from pofx.ask.outliers import concentrated, cross_fitted, judge, patterns
from pofx.domain import Domain, Variable, VariableKind
from pofx.errors import DataError, OptionError, Unavailable
from pofx.models.base import Model
from pofx.models.classical.gaussian import GaussianConfig
from pofx.types import Kind

RATE = 1e-6  # of false alarms, each test


def rows(n, seed=0, d=4):
    """Correlated normal rows, the first column in units a thousand times those of the others."""
    r = np.random.default_rng(seed)
    mixing = np.eye(d) + 0.5 * np.random.default_rng(99).standard_normal((d, d))
    return r.standard_normal((n, d)) @ mixing * np.array([1000.0, *[1.0] * (d - 1)])


@pytest.fixture(scope="module")
def normal():
    """A Gaussian learned from 4000 rows."""
    return pofx.fit(rows(4000), "gaussian", holdout=rows(200, 1), schema=Domain.real(4))


def uniform_enough(p):
    """Neither more small p-values than there may be, nor fewer: Kolmogorov and Smirnov's test, but for the grid of the p-values."""
    p = np.asarray(p)[~np.isnan(p)]
    return stats.kstest(p, "uniform").pvalue > RATE


# -- p-values --------------------------------------------------------------------------------------


def test_p_values_of_ordinary_rows_are_uniform(normal):
    found = normal.outliers(rows(2000, 2), rows(4000, 3))
    assert uniform_enough(found.p_value)
    assert uniform_enough(found.p_typical)
    for d in range(4):
        assert uniform_enough(found.cell_p_value[:, d])


def test_they_are_uniform_whatever_p_is(normal):
    """A conformal p-value is valid though p is wrong: here it judges rows of quite another law."""
    other, more = np.random.default_rng(5).exponential(size=(2, 3000, 4))
    assert uniform_enough(normal.outliers(other[:2000], more).p_value)


def test_draws_of_p_are_ordinary_to_p(normal):
    found = normal.outliers(normal.sample(2000, seed=7))
    assert uniform_enough(found.p_value)
    assert (found.compared == 4000).all()
    assert "4000 draws from p itself" in found.how


def test_the_formula():
    """Against a normal of known density: (1 + how many ordinary rows are as improbable) / (1 + how many there are)."""
    p = pofx.fit(np.random.RandomState(0).randn(200, 1), "gaussian", schema=Domain.real(1))
    x, ordinary = np.array([[0.3], [4.0], [-1.0]]), np.random.RandomState(1).randn(50, 1)
    found = p.outliers(x, ordinary)
    own, like = np.asarray(p.log_prob(x)), np.asarray(p.log_prob(ordinary))
    lower = (1 + (like[None] <= own[:, None]).sum(1)) / 51
    upper = (1 + (like[None] >= own[:, None]).sum(1)) / 51
    np.testing.assert_allclose(found.p_value, lower)
    np.testing.assert_allclose(found.p_typical, np.minimum(1, 2 * np.minimum(lower, upper)))
    np.testing.assert_allclose(found.log_prob, own)
    np.testing.assert_allclose(found.surprise[:, 0], -own)  # one cell: nothing else to know it by


def test_ties_count_as_as_improbable():
    """Of a fair coin, every row is as probable as any other: no row may look surprising."""
    frame = pd.DataFrame({"coin": ["head", "tail"] * 100})
    found = pofx.fit(frame, "independent", holdout=frame[:100]).outliers(frame, frame)
    assert (found.p_value == 1.0).all()
    assert (found.p_typical == 1.0).all()
    assert (found.cell_p_value == 1.0).all()


def test_no_p_value_is_zero(normal):
    found = normal.outliers(np.full((1, 4), 1e9), rows(99, 3))
    assert found.p_value[0] == found.cell_p_value.min() == 0.01


def test_a_row_can_be_too_probable():
    """In 200 dimensions no row lies at the mean: it is the most probable point and no typical one."""
    x = np.random.RandomState(0).randn(4000, 200)
    p = pofx.fit(x, "gaussian", schema=Domain.real(200))
    found = p.outliers(np.vstack([np.zeros(200), 1.8 * np.ones(200)]), x[:1000], cells=False)
    assert found.p_value[0] == 1.0
    assert found.p_typical[0] == pytest.approx(2 / 1001)
    assert found.p_value[1] == pytest.approx(1 / 1001)
    assert found.order().tolist() == [1, 0]


# -- cells -----------------------------------------------------------------------------------------


def test_the_cells_are_those_of_the_closed_form(normal):
    x = rows(5, 11)
    found = normal.outliers(x)
    for d, name in enumerate(normal.domain.names):
        for i in range(5):
            q = normal.conditional({f"x{e}": x[i, e] for e in range(4) if e != d})
            assert float(q.log_prob(pd.DataFrame({name: [x[i, d]]})).value[0]) == pytest.approx(-found.surprise[i, d])


def test_a_planted_cell_is_found_and_blamed(normal):
    """Each planted value is ordinary for its column alone and impossible beside the others."""
    x = rows(300, 12)
    planted = np.arange(0, 300, 10)
    which = planted // 10 % 4
    rest = normal.impute(pd.DataFrame(np.where(np.arange(4) == which[:, None], np.nan, x[planted]), columns=normal.domain.names))
    deviation = np.sqrt(1 / np.diag(np.linalg.inv(np.cov(rows(4000).T))))
    x[planted, which] = np.asarray(rest)[np.arange(30), which] + 12 * deviation[which]
    found = normal.outliers(x)
    assert set(found.order()[:30]) == set(planted)
    assert (found.blame[planted] == which).all()
    assert (found.cell_p_value[planted, which] == 1 / 4001).all()


def test_cells_of_mixed_kinds_are_ranked_together():
    r = np.random.RandomState(0)
    level = r.rand(1500) < 0.5
    make = lambda: pd.DataFrame(
        {
            "mass": np.where(level, 900.0, 100.0) + 10 * r.randn(1500),
            "species": np.where(level, "large", "small"),
            "eggs": r.poisson(np.where(level, 20, 3)),
        }
    )
    train, test = make(), make()
    test.index = [f"row {i}" for i in range(1500)]
    test.loc["row 5", "species"] = "large" if test.loc["row 5", "species"] == "small" else "small"
    test.loc["row 6", "eggs"] = 90
    p = pofx.fit(train, "latent_class", components=2, holdout=train[:300])
    table = p.outliers(test).table(2)
    assert set(table.index) == {"row 5", "row 6"}
    assert table.loc["row 5", ["column", "value"]].tolist() == ["species", test.loc["row 5", "species"]]
    assert table.loc["row 6", ["column", "value"]].tolist() == ["eggs", 90]
    assert isinstance(table.loc["row 6", "value"], int)


# -- missing cells ---------------------------------------------------------------------------------


def test_every_pattern_of_missing_cells_is_calibrated(normal):
    x, ordinary = rows(3000, 21), rows(3000, 22)
    masks = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]], dtype=bool)
    pattern = np.arange(3000) % 4
    x[masks[pattern]] = np.nan
    found = normal.outliers(x, ordinary)
    assert np.array_equal(np.isnan(found.surprise), np.isnan(x))
    assert np.array_equal(np.isnan(found.cell_p_value), np.isnan(x))
    for k in range(4):
        assert uniform_enough(found.p_value[pattern == k])
        for d in np.flatnonzero(~masks[k]):
            assert uniform_enough(found.cell_p_value[pattern == k, d])


def test_an_ordinary_row_with_a_hole_stands_for_rows_with_that_hole_alone(normal):
    ordinary = rows(100, 3)
    ordinary[:40, 1] = np.nan
    x = rows(2, 4)
    x[1, 1:3] = np.nan
    found = normal.outliers(x, ordinary)
    assert found.compared.tolist() == [60, 100]
    expected = np.asarray(normal.log_prob(ordinary[40:]))
    assert found.p_value[0] == pytest.approx((1 + (expected <= found.log_prob[0]).sum()) / 61)


def test_rows_that_nothing_compares_with_are_not_called_surprising(normal):
    ordinary = rows(100, 3)
    ordinary[:, 1] = np.nan
    found = normal.outliers(rows(3, 4), ordinary)
    assert (found.p_value == 1.0).all()
    assert "no ordinary row has all the cells" in found.how


def test_a_row_with_no_cell_is_ordinary_and_blames_none(normal):
    found = normal.outliers(np.full((1, 4), np.nan))
    assert found.p_value[0] == 1.0
    assert found.blame[0] == -1
    assert found.table(1)["value"].isna().all()


def test_patterns_are_those_of_numpy():
    x = torch.randn(500, 11)
    x[torch.rand(500, 11) < 0.1] = torch.nan
    hidden, members = zip(*patterns(x), strict=True)
    assert sorted(np.concatenate(members)) == list(range(500))
    assert len(hidden) == len(np.unique(x.isnan().numpy(), axis=0))
    for mask, rows_ in zip(hidden, members, strict=True):
        assert (x[rows_].isnan() == mask).all()


def test_many_patterns_are_compared_with_fewer_rows_each(monkeypatch, normal):
    x = rows(64, 21)
    for i in range(1, 16):
        x[i::16, [bool(i & 1 << d) for d in range(4)]] = np.nan
    monkeypatch.setattr("pofx.ask.outliers.WORK", 20_000)
    found = normal.outliers(x, rows(1000, 22))
    assert set(found.compared) == {20_000 // (16 * 6)}
    assert "at most 208" in found.how


# -- labels, refusals, table -----------------------------------------------------------------------


def test_numbers_carry_the_models_label(normal):
    whole = normal.outliers(rows(3, 1))
    assert whole.kind is whole.cells_kind is Kind.EXACT
    lifted = pofx.fit(np.random.RandomState(0).poisson(5, (300, 2)), "gaussian").outliers(np.array([[5, 5]]))
    assert lifted.kind is lifted.cells_kind is Kind.BOUND


class Closed(Model):
    """A standard normal that can not marginalise."""

    def _log_prob(self, x, c, generator):
        return torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(-1)

    def _sample(self, n, c, generator):
        return torch.randn(n, len(self.domain), generator=generator)


def test_a_family_that_can_not_marginalise_judges_rows():
    found = judge(Closed(Domain.real(2)), torch.tensor([[0.0, 1.0], [9.0, 0.0]]), generator=torch.Generator().manual_seed(0))
    assert found.surprise is None
    assert found.cell_p_value is None
    assert found.blame is None
    assert found.cells_kind is Kind.NONE
    assert "can not marginalise" in found.how
    assert list(found.table().columns) == list(found.frame().columns) == ["log_prob", "expected", "p_value", "p_typical"]
    assert found.order()[0] == 1
    with pytest.raises(Unavailable, match="missing cells"):
        judge(Closed(Domain.real(2)), torch.tensor([[0.0, torch.nan]]))


def test_an_impossible_row_is_the_most_surprising():
    """Outside a histogram's bins p is 0: log p is -inf, and no number but the p-value is left to rank by."""
    p = pofx.fit(np.random.RandomState(0).rand(500, 2), "histogram", schema=Domain.real(2))
    x = np.array([[0.5, 0.5], [50.0, 0.5], [50.0, 50.0]])
    found = p.outliers(x)
    assert found.p_value[0] > 0.01
    assert (found.p_value[1:] == 1 / 4001).all()
    assert found.blame[1] == 0
    assert repr(found)


def test_the_same_seed_gives_the_same_numbers(normal):
    a, b = (normal.outliers(rows(50, 1), seed=3) for _ in range(2))
    assert np.array_equal(a.p_value, b.p_value)
    assert not np.array_equal(a.p_value, normal.outliers(rows(50, 1), seed=4).p_value)


def test_table_frame_and_repr(normal):
    frame = pd.DataFrame(rows(30, 1), columns=normal.domain.names, index=pd.Index(range(100, 130), name="id"))
    frame.loc[117, "x2"] = 500.0
    found = normal.outliers(frame)
    table = found.table(3)
    assert table.index[0] == 117
    assert table["column"].iloc[0] == "x2"
    assert table["value"].iloc[0] == 500.0
    assert list(found.frame().index) == list(frame.index)
    assert list(found.frame().columns[-4:]) == [f"p_value of x{d}" for d in range(4)]
    assert len(found) == 30
    assert len(found.table(0)) == 0
    assert "30 rows × 4 variables" in repr(found)
    assert "117" in repr(found)


BAD = {
    "no rows": (lambda p: p.outliers(np.zeros((0, 4))), DataError, "no rows to judge"),
    "no ordinary rows": (lambda p: p.outliers(rows(3), np.zeros((0, 4))), OptionError, "the reference has no rows"),
    "rows of another shape": (lambda p: p.outliers(np.zeros((3, 2))), DataError, "4"),
    "a reference of another shape": (lambda p: p.outliers(rows(3), np.zeros((3, 2))), DataError, "4"),
    "an infinite value": (lambda p: p.outliers(np.full((1, 4), np.inf)), DataError, "infinite"),
    "a negative number of rows": (lambda p: p.outliers(rows(3)).table(-1), OptionError, "0 or more"),
}


@pytest.mark.parametrize(("ask", "error", "fragment"), BAD.values(), ids=BAD)
def test_a_bad_question_is_one_sentence(normal, ask, error, fragment):
    with pytest.raises(error, match=fragment) as raised:
        ask(normal)
    assert "\n" not in str(raised.value)


def test_a_conditional_p_is_refused():
    with pytest.raises(Unavailable, match="conditional"):
        judge(Closed(Domain.real(2), Domain.real(1)), torch.zeros(3, 2))


# -- rows that are learned from --------------------------------------------------------------------


def gaussian_of(train, holdout):
    model = GaussianConfig().build(Domain.real(train.shape[1]))
    for _ in model.steps(train, holdout=holdout):
        pass
    return model


def test_each_part_is_judged_by_what_the_others_teach():
    x = torch.from_numpy(rows(203, 5))
    seen = []

    def learn(train, holdout):
        seen.append(torch.cat([train, holdout]))
        return gaussian_of(train, holdout)

    found = cross_fitted(x, Domain.real(4), learn, folds=4, seed=1)
    assert len(seen) == 4
    assert sorted(len(x) - len(part) for part in seen) == [50, 51, 51, 51]
    for i, row in enumerate(x):
        assert sum(bool((part == row).all(1).any()) for part in seen) == 3  # learned by all but its own
        assert torch.equal(torch.from_numpy(found.x[i]), row)
    assert "each of 4 parts" in found.how


def test_an_outlier_can_not_hide_by_having_been_learned():
    """A far row is the mean of a kernel or of a narrow component of its own: learned, it is as likely as any."""
    x = np.vstack([np.random.RandomState(0).randn(200, 2), [[60.0, -60.0]]])
    p = pofx.fit(x, "kde", schema=Domain.real(2))
    learned = p.outliers(x, np.random.RandomState(1).randn(400, 2)).p_value[-1]

    def learn(train, holdout):
        return pofx.fit(train.numpy(), "kde", holdout=holdout.numpy(), schema=Domain.real(2)).model

    crossed = cross_fitted(torch.from_numpy(x), Domain.real(2), learn)
    assert crossed.p_value[-1] == 1 / 4001
    assert crossed.p_value[-1] <= learned
    assert crossed.order()[0] == 200


def test_cross_fitting_is_calibrated_beside_ordinary_rows():
    found = cross_fitted(torch.from_numpy(rows(1000, 5)), Domain.real(4), gaussian_of, reference=torch.from_numpy(rows(3000, 6)))
    assert uniform_enough(found.p_value)


@pytest.mark.parametrize("folds", [1, 11])
def test_the_number_of_folds_is_checked(folds):
    with pytest.raises(OptionError, match="between 2 and the number of rows, 10"):
        cross_fitted(torch.randn(10, 2), Domain.real(2), gaussian_of, folds=folds)


def test_a_part_that_can_not_be_learned_from_is_refused():
    x = torch.zeros(10, 1)
    x[0] = 1.0
    domain = Domain((Variable("a", VariableKind.REAL),))
    with pytest.raises(DataError, match="'a' holds one value"):
        cross_fitted(x, domain, gaussian_of)


def test_judge_moves_no_global_seed(normal):
    state = torch.get_rng_state()
    judge(normal.model, torch.from_numpy(rows(5)), generator=torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.get_rng_state())


def knot(n=300):
    """Normal rows, the first tenth of them in a knot far off, which widens a Gaussian of all rows."""
    x = np.random.RandomState(0).randn(n, 3)
    x[: n // 10] = 6 + 0.1 * x[: n // 10]
    return torch.from_numpy(x)


def trimmed(learn, share=0.25, *, rounds=3):
    """Learn with the share left out."""
    return lambda train, holdout: concentrated(learn(train, holdout), learn, train, holdout, share=share, rounds=rounds)


def test_trimming_is_not_bent_by_a_knot_of_outliers():
    """What is learned of the ordinary rows has their mean; without trimming, a tenth of the way to the knot is gone."""
    plain, robust = (learn(knot(), knot(50)).mean() for learn in (gaussian_of, trimmed(gaussian_of)))
    assert plain.mean() > 0.4
    assert abs(robust.mean()) < 0.2
    found = cross_fitted(knot(), Domain.real(3), gaussian_of, trim=0.25, cells=False)
    assert set(found.order()[:30]) == set(range(30))
    assert "less the 25% of them that are most surprising" in found.how


def test_trimming_never_lowers_the_trimmed_likelihood():
    """Each round is a concentration step: of all rows, the three quarters most probable are no less probable than before."""
    x = knot()

    def learn(train, holdout):
        model = GaussianConfig(prior_rows=0.0).build(Domain.real(3))
        for _ in model.steps(train):
            pass
        return model

    kept = lambda model: model.log_prob(x).sort().values[75:].sum().item()
    values = [kept(trimmed(learn, rounds=r)(x, x[:20])) for r in (1, 2, 3, 4)]
    assert all(b >= a - 1e-9 for a, b in pairwise(values))
    assert values[0] > kept(learn(x, x[:20]))


def test_p_values_after_trimming_are_those_of_ordinary_rows():
    """Draws of the trimmed p know the middle alone and would make one ordinary row in ten look like one in twenty."""
    x = torch.from_numpy(rows(1000, 5))
    found = cross_fitted(x, Domain.real(4), gaussian_of, trim=0.25)
    assert uniform_enough(found.p_value)
    for d in range(4):
        assert uniform_enough(found.cell_p_value[:, d])
    assert "4000 draws from the p learned without trimming" in found.how
    own = judge(trimmed(gaussian_of)(x, x[:100]), torch.from_numpy(rows(2000, 6)), cells=False, generator=torch.Generator().manual_seed(0))
    assert (own.p_value <= 0.05).mean() > 0.08
    known = cross_fitted(x, Domain.real(4), gaussian_of, trim=0.25, reference=torch.from_numpy(rows(3000, 6)))
    assert uniform_enough(known.p_value)


def test_trimming_goes_by_place_where_cells_are_missing():
    """A row of one cell has a larger log p than a row of three: it must not outlive rows that are ordinary."""
    x = knot()
    x[30:150, 1:] = torch.nan
    x[:30, 2] = torch.nan
    assert abs(trimmed(gaussian_of)(x, x[100:150]).mean()[0]) < 0.3


def test_trimming_stops_where_a_column_becomes_constant():
    x = knot()
    x[30:, 0] = 1.0
    assert trimmed(gaussian_of)(x, x[:50]).mean().isfinite().all()


@pytest.mark.parametrize(("share", "rounds"), [(1.0, 3), (-0.1, 3), (0.25, 0)])
def test_the_share_to_trim_is_checked(share, rounds):
    with pytest.raises(OptionError, match=r"lies in \[0, 1\)"):
        trimmed(gaussian_of, share, rounds=rounds)(knot(), knot(50))
    if share:
        with pytest.raises(OptionError, match=r"lies in \[0, 1\)"):
            cross_fitted(knot(), Domain.real(3), gaussian_of, trim=1.0)


# -- pofx.outliers ---------------------------------------------------------------------------------


def odd_table(n=300):
    """A count and a rounded number that follow each other, but for one row."""
    r = np.random.RandomState(0)
    age = r.poisson(30, n)
    pay = (100 * age + 50 * r.randn(n)).round(-1)
    table = pd.DataFrame({"age": age, "pay": pay}, index=[f"r{i}" for i in range(n)])
    table.loc["r7", "pay"] += 1500
    table.loc["r20":"r40", "pay"] = np.nan
    return table


def test_a_table_is_judged_in_one_call():
    found = pofx.outliers(odd_table())
    top = found.table(1)
    assert top.index[0] == "r7"
    assert top["column"].iloc[0] in {"age", "pay"}
    assert found.p_value[7] < 0.01
    assert found.how.startswith("each of 5 parts under the p learned from the others, less the 25%")
    assert [str(v.kind) for v in found.domain.variables] == ["real", "real"]
    assert [v.resolution for v in found.domain.variables] == [None] * 2
    assert found.kind is found.cells_kind is Kind.EXACT
    assert list(found.frame().index) == list(odd_table().index)


def test_what_the_schema_says_of_a_column_stands():
    table = odd_table(100).dropna()
    said = pofx.outliers(table, schema={"age": "count"}, cells=False, folds=2, trim=0.0)
    assert str(said.domain["age"].kind) == "count"
    domain = pofx.infer_domain(table)
    assert pofx.outliers(table, schema=domain, cells=False, folds=2, trim=0.0).domain == domain


def test_ordinary_rows_may_be_named_and_options_are_checked():
    table = odd_table().dropna()
    found = pofx.outliers(table, reference=table[100:], cells=False)
    assert "rows named as ordinary" in found.how
    with pytest.raises(OptionError, match="no option 'components'"):
        pofx.outliers(table, components=3)
    with pytest.raises(OptionError, match=r"lies in \[0, 1\)"):
        pofx.outliers(table, trim=1.0)
    with pytest.raises(OptionError, match="between 2 and the number of rows"):
        pofx.outliers(table, folds=1)


def test_numbers_are_plain_however_they_are_written():
    """Rounded, counted or with a spike: the score is that of real columns, and exact where a lifted one is a bound."""
    r = np.random.RandomState(0)
    x = np.column_stack([r.randn(200).round(1), r.poisson(4, 200), np.where(r.rand(200) < 0.4, 0.0, r.randn(200))])
    found, plain = (pofx.outliers(x, schema=schema, cells=False) for schema in (None, Domain.real(3)))
    assert np.array_equal(found.log_prob, plain.log_prob)
    assert found.kind is Kind.EXACT
    assert pofx.outliers(x, schema=pofx.infer_domain(x), trim=0.0, folds=2, cells=False).kind is Kind.BOUND
