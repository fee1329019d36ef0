"""pofx.impute: the family is chosen by what it says of rows left out of learning, and fills with its conditional means."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import pofx
from pofx.cli.rows import learned_to_fill
from pofx.comparison.imputing import ENOUGH, FAMILIES, PARTS, Choice, Score, _parts, _shares, choose
from pofx.types import Kind

RHO = 0.9


def correlated(n, seed=0):
    """Rows of N(0, [[1, rho], [rho, 1]]), a tenth of the second column hidden; and what stood there."""
    r = np.random.RandomState(seed)
    a = r.randn(n)
    whole = pd.DataFrame({"a": a, "b": RHO * a + math.sqrt(1 - RHO**2) * r.randn(n)})
    holes = whole.copy()
    holes.loc[::10, "b"] = np.nan
    return holes, whole


@pytest.fixture(scope="module")
def imputed():
    """A table whose law is known, filled."""
    return pofx.impute(correlated(500)[0], ["independent", "gaussian"])


def test_the_true_family_is_chosen_by_its_mutual_information(imputed):
    """E[log p(a, b) - log p(a) p(b)] = I(a; b) = -log(1 - rho^2) / 2 a whole row: within 6 errors, which fails by chance once in 10^8."""
    best, other = imputed.choice.scores
    assert (best.family, other.family) == ("gaussian", "independent")
    gap = other.behind(best)
    assert abs(float(gap) - 0.9 * -0.5 * math.log(1 - RHO**2)) < 6 * float(gap.error)


def test_a_score_is_the_true_law_less_what_learning_costs(imputed):
    """Held-out nats of the family that is true lie within 6 errors of those of the truth itself, on the same observed cells."""
    holes, _ = correlated(500)
    a, b = (torch.tensor(holes[name].to_numpy()) for name in "ab")
    conditional = torch.distributions.Normal(RHO * a, math.sqrt(1 - RHO**2), validate_args=False).log_prob(b)
    truth = torch.distributions.Normal(0.0, 1.0).log_prob(a) + torch.where(b.isnan(), 0.0, conditional)
    score = imputed.choice.scores[0].mean
    assert score.kind is Kind.EXACT
    assert abs(float(score) - float(truth.mean())) < 6 * 0.02  # of paired rows; five parameters of 360 rows cost 0.007
    assert len(imputed.choice.scores[0].nats) == len(holes)


def test_holes_get_conditional_means_and_nothing_else_moves(imputed):
    """rho a, whose slope after 400 pairs has an error of 0.022."""
    holes, _ = correlated(500)
    hidden = holes["b"].isna()
    assert imputed.filled["b"][~hidden].equals(holes["b"][~hidden])
    assert imputed.filled["a"].equals(holes["a"])
    assert np.abs(imputed.filled["b"] - RHO * holes["a"])[hidden].max() < 0.3
    expected = imputed.p.impute(holes)
    expected["b"] = expected["b"].clip(holes["b"].min(), holes["b"].max())
    pd.testing.assert_frame_equal(imputed.filled, expected)


def test_no_mean_is_beyond_what_was_seen():
    """Of log b = a + noise with one a far out, exp(a) is a thousand times the largest b: it is put at that one."""
    r = np.random.RandomState(0)
    a = r.randn(200)
    frame = pd.DataFrame({"a": a, "b": np.exp(a + 0.1 * r.randn(200))})
    frame.loc[0] = [10.0, np.nan]
    found = pofx.impute(frame, "gaussian", schema={"b": "positive"})
    assert float(found.p.impute(frame).loc[0, "b"]) > 10 * frame["b"].max()
    assert found.filled.loc[0, "b"] == pytest.approx(frame["b"].max())


def test_one_family_is_taken_as_it_is_and_draws_differ():
    holes, _ = correlated(200)
    found = pofx.impute(holes, {"gaussian": {"prior_rows": 1.0}}, n=2)
    assert str(found) == "filled by gaussian"
    assert found.choice.scores == ()
    assert found.p.record.options["prior_rows"] == 1.0
    first, second = found.filled
    assert not first.isna().any().any()
    assert not first.equals(second)


@pytest.mark.parametrize("n", [3, 100, 1001, 7000])
def test_no_row_is_scored_by_what_learned_it(n):
    """Each part and its others are all rows, none twice; no row is scored twice, and enough of them are."""
    x = torch.arange(n, dtype=torch.float64)[:, None]
    own = [part for _, part in _parts(x, 0)]
    for others, part in _parts(x, 0):
        assert sorted(torch.cat((others, part)).flatten().tolist()) == x.flatten().tolist()
    scored = torch.cat(own).flatten().tolist()
    assert len(set(scored)) == len(scored) >= min(n, ENOUGH)
    assert len(own) <= PARTS


def test_a_blank_row_is_filled_by_the_mean_and_told():
    holes, _ = correlated(100)
    holes.loc[[3, 50]] = np.nan
    found = pofx.impute(holes, ["gaussian", "independent"])
    assert str(found).endswith("; 2 rows have no cell that is not missing: filled as any row would be")
    np.testing.assert_allclose(found.filled.loc[3], np.asarray(found.p.mean()))
    assert len(found.choice.scores[0].nats) == 98


def test_a_level_that_one_part_alone_has_is_no_trouble():
    holes, _ = correlated(60)
    holes["c"] = np.where(np.arange(60) % 2, "even", "odd")
    holes.loc[7, "c"] = "rare"
    found = choose(holes, ["independent", "gaussian"])
    assert all(bool(score.nats.isfinite().all()) and not score.reason for score in found.scores)


def test_a_family_that_fails_is_told_last():
    found = choose(correlated(60)[0], ["quad_tree", "independent"])
    assert found.scores[1].family == "quad_tree"
    assert "quad_tree failed: " in str(found)
    assert found.p.record.family == "independent"


def test_the_sentence_says_who_by_how_much_and_of_what_kind():
    """Nats by hand: means -2 and -3.5, of paired differences 1, 1, 2, 2."""
    best = Score("gmm", torch.tensor([-1.0, -3.0, -1.0, -3.0]), Kind.BOUND)
    other = Score("vae", torch.tensor([-2.0, -4.0, -3.0, -5.0]), Kind.BOUND)
    p = pofx.fit(correlated(20)[0], "independent")
    ends = torch.zeros(2), torch.ones(2)
    words = str(Choice(p, (best, other, Score("kde", torch.empty(0), Kind.NONE, "no room")), ends))
    assert words == (
        "chose gmm by held-out likelihood, -2.00 ± 0.58 nats a row (bound) over 4 rows; "
        "behind it vae by 1.50 ± 0.29 (bound); kde failed: no room"
    )


def test_the_shell_says_which_it_chose(capsys):
    holes, _ = correlated(60)
    p = learned_to_fill(holes, ["independent", "gaussian"], {}, None, seed=0, budget=None).p
    assert capsys.readouterr().err.startswith("chose gaussian by held-out likelihood, ")
    assert p.record.family == "gaussian"


BAD = {
    "no holes": (correlated(20)[1], FAMILIES, "none of the 40 cells of 20 rows is missing"),
    "an empty column": (correlated(20)[0].assign(c=np.nan), FAMILIES, "'c'"),
    "no row with a cell": (correlated(20)[0] * np.nan, FAMILIES, "'a'"),
    "no family": (correlated(20)[0], [], "name one"),
    "an unknown family": (correlated(20)[0], ["gnm", "gaussian"], "did you mean 'gmm'"),
    "a value in one row": (correlated(20)[1].assign(c=[1.5, *[np.nan] * 19]), FAMILIES, "'c'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_sentence_before_learning(case):
    rows, families, words = BAD[case]
    with pytest.raises(pofx.PofxError) as refused:
        pofx.impute(rows, families)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_when_every_family_fails_the_first_reason_is_given():
    with pytest.raises(pofx.PofxError, match="no family could be scored on rows left out of learning, name one"):
        choose(correlated(20)[0], ["quad_tree", "glow"])


@pytest.mark.slow
def test_four_families_are_tried_where_none_is_named():
    """Two clusters: within one the columns are independent, so a single normal is behind both mixtures by far more than its error."""
    r = np.random.RandomState(0)
    centre = 8.0 * (r.rand(120) > 0.5)
    frame = pd.DataFrame({"a": centre + r.randn(120), "b": centre * (1 + 0 * centre) + r.randn(120)})
    frame.loc[::7, "b"] = np.nan
    found = pofx.impute(frame, budget=16.0)
    scores = {score.family: score for score in found.choice.scores}
    assert set(scores) == set(FAMILIES)
    assert found.choice.scores[0].family in {"gmm", "latent_class"}
    gap = scores["gaussian"].behind(found.choice.scores[0])
    assert float(gap) > 4 * float(gap.error)


def test_what_a_fit_leaves_of_the_budget_goes_to_those_after_it(monkeypatch):
    """A clock by hand: two scored fits share 30 of 40 s; the first takes 6 of its 15, the second 20 of its 24, and 14 are left."""
    now = iter([100.0, 100.0, 106.0, 126.0, 0.0, 0.0, 90.0])
    monkeypatch.setattr("pofx.comparison.imputing.time.monotonic", lambda: next(now))
    assert list(_shares(40.0, 2)) == [15.0, 24.0, 14.0]
    assert list(_shares(40.0, 1)) == [30.0, 2.0]  # the first overdrew: the last has a tenth of an equal part
    assert list(_shares(None, 2)) == [None] * 3
