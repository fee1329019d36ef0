"""The generic engine in the user's columns: any family, evidence of any form, against what a closed form says."""

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import pofx
from pofx.ask.evidence import conditions, event
from pofx.cli.main import app
from pofx.domain import Domain, Variable, VariableKind
from pofx.errors import DataError, OptionError, Unavailable
from pofx.types import Kind

SIGMAS = 4.9  # a right answer is farther off once in a million times


@pytest.fixture(scope="module")
def table():
    """A number that depends on a level, and a second number on the first."""
    g = np.random.default_rng(0)
    kind = g.choice(["a", "b", "c"], 600, p=[0.5, 0.3, 0.2])
    size = np.where(kind == "a", 0.0, np.where(kind == "b", 3.0, 6.0)) + g.normal(size=600)
    return pd.DataFrame({"kind": kind, "size": size, "twice": 2 * size + g.normal(size=600)})


@pytest.fixture(scope="module")
def p(table):
    return pofx.fit(table, "latent_class", components=4)


@pytest.fixture(scope="module")
def flow(table):
    return pofx.fit(table, "realnvp", max_epochs=5)


def near(value, error, truth):
    return abs(float(value) - float(truth)) <= SIGMAS * float(error)


def test_a_probability_is_exact_where_it_sums_out(p, table):
    answer = p.probability({"kind": "a"})
    assert answer.kind is Kind.EXACT
    assert float(answer) == pytest.approx(float(np.exp(p.marginal("kind").log_prob(table[["kind"]][table.kind == "a"][:1]).value[0])))
    guess = p.probability(lambda rows: rows["kind"] == "a")
    assert guess.kind is Kind.ESTIMATE
    assert near(guess, guess.error, answer)


def test_an_interval_is_a_condition(p):
    q = p.conditional(size=pofx.Between(2.0, 4.0))
    assert q.domain.names == p.domain.names
    assert q.sample(50)["size"].between(2, 4).all()
    both = p.probability({"size": pofx.Between(2.0, 4.0), "kind": "b"})
    alone = p.probability({"size": pofx.Between(2.0, 4.0)})
    answer = q.probability({"kind": "b"})
    assert both.kind is alone.kind is answer.kind is Kind.EXACT
    assert float(answer) == pytest.approx(float(both) / float(alone), rel=1e-12)
    assert q.approximation == ""


def test_intervals_compose(p):
    """p(kind | size, twice in intervals) does not depend on the order in which they come, nor on when the rest is dropped."""
    size, twice = {"size": pofx.Between(2.0, 4.0)}, {"twice": pofx.Between(5.0)}
    ways = (
        p.conditional({**size, **twice}).marginal("kind"),
        p.conditional(size).conditional(twice).marginal("kind"),
        p.conditional(twice).marginal("size", "kind").conditional(size).marginal("kind"),
    )
    chances = [float(way.probability({"kind": "b"})) for way in ways]
    assert chances == pytest.approx([chances[0]] * 3, rel=1e-12)
    point = p.conditional({**size, "kind": "b"})
    assert point.domain.names == ("size", "twice")
    assert 2 < point.mean().value[0] < 4


def test_draws_of_an_interval_are_exact_and_scored(p, flow, table):
    """By the closed form where draws are asked for; and by a family without one log p is log p(x) - log P(event) inside."""
    facts = {"size": pofx.Between(2.0, 4.0)}
    q = p.conditional(facts, method="exact", draws=500)
    assert q.model.sampling is Kind.EXACT
    rows = q.sample(20)
    np.testing.assert_allclose(np.asarray(q.log_prob(rows)), np.asarray(p.conditional(facts).log_prob(rows)), rtol=1e-10)
    drawn = flow.conditional(facts)
    inside = drawn.log_prob(drawn.sample(5))
    assert inside.kind is Kind.ESTIMATE
    assert np.isfinite(np.asarray(inside)).all()
    assert np.isneginf(np.asarray(drawn.log_prob(table[table["size"] > 5][:3]))).all()


def test_a_set_is_a_condition(p):
    q = p.conditional({"kind": {"a", "b"}})
    chances = [float(p.probability({"kind": k})) for k in "ab"]
    answer = q.probability({"kind": "a"})
    assert answer.kind is Kind.EXACT
    assert float(answer) == pytest.approx(chances[0] / sum(chances), rel=1e-12)
    assert float(q.probability({"kind": "c"})) == 0
    with pytest.raises(Unavailable, match="probability 0"):
        q.conditional({"kind": {"c"}, "size": pofx.Between(0.0)})


@pytest.mark.parametrize("method", ["sir", "gibbs"])
def test_a_method_can_be_named(p, method):
    exact, forced = p.conditional(size=3.0), p.conditional(size=3.0, method=method, draws=1500)
    assert forced.model.sampling is Kind.ESTIMATE
    value, error = forced.model.draws.mean
    assert near(value[2], error[2], exact.mean().value[1])


def test_a_flow_has_marginals_with_an_error(flow, table):
    whole = flow.marginal("size", "twice")
    assert list(whole.sample(3).columns) == ["size", "twice"]
    answer = whole.log_prob(table[["size", "twice"]][:3])
    assert answer.kind is Kind.ESTIMATE
    assert (answer.error > 0).all()
    assert "without the other columns" in whole.approximation


def test_a_flow_has_conditionals(flow):
    q = flow.conditional(kind="b")
    assert list(q.domain.names) == ["size", "twice"]
    assert len(q.sample(5)) == 5
    assert "draws" in q.approximation


def test_a_posterior_is_bayes_rule(table):
    """A normal prior and a normal likelihood: the mean in closed form."""
    prior = pofx.fit(table[["size"]], "gaussian")
    m, v = float(prior.mean().value[0]), float(prior.sample(50_000, seed=1)["size"].var())
    d = prior.domain.index("size")
    post = prior.posterior(lambda x: -0.5 * (x[:, d] - 5.0).square() / 0.25, draws=2000)
    value, error = post.model.draws.mean
    assert near(value[0], float(error[0]) + 0.01, (m / v + 5.0 / 0.25) / (1 / v + 1 / 0.25))
    assert "effective size" in post.approximation


def test_mutual_information_of_columns(p):
    near_ones, far = p.mutual_information("size", "twice"), p.mutual_information("kind", ["twice"])
    assert near_ones.kind is Kind.ESTIMATE
    assert float(near_ones) > float(far) > 0


DOMAIN = Domain(
    (
        Variable("age", VariableKind.COUNT, lower=0.0),
        Variable("sex", VariableKind.BINARY, levels=("F", "M")),
        Variable("income", VariableKind.POSITIVE),
    )
)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["age=30"], {"age": 30.0}),
        (["sex = F"], {"sex": "F"}),
        (["income > 50000"], {"income": pofx.Between(50000.0, closed=(False, True))}),
        (["10 < age <= 20"], {"age": pofx.Between(10.0, 20.0, (False, True))}),
        (["30 >= age", "age>5"], {"age": pofx.Between(5.0, 30.0, (False, True))}),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_words_are_conditions(words, found):
    assert conditions(DOMAIN, words) == found


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (["colour=red"], OptionError, "no column 'colour'"),
        (["sex=X"], DataError, "no level 'X'"),
        (["sex > 1"], OptionError, "has levels, which are not compared by size: write sex=F"),
        (["age > old"], DataError, "takes a number, got 'old'"),
        (["age=3", "age=4"], OptionError, "given twice"),
        (["age"], OptionError, "no column|expected a column compared with a value"),
        (["1 < 2 < age"], OptionError, "expected a column compared with a value"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_words_that_are_none(words, error, says):
    with pytest.raises(error, match=says):
        conditions(DOMAIN, words)


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (lambda p: p.conditional({"kind": []}), OptionError, "needs numbers"),
        (lambda p: p.conditional(size=pofx.Between(3.0, 2.0)), OptionError, "is empty"),
        (lambda p: p.conditional(kind=pofx.Between(0, 1)), OptionError, "have no order"),
        (lambda p: p.conditional(size=[1.0, 2.0]), OptionError, "a set of its values has probability 0"),
        (lambda p: p.conditional(size=1.0, method="magic"), OptionError, "no method 'magic'"),
        (lambda p: p.conditional(kind="a", size=1.0, twice=2.0), OptionError, "fixes every variable"),
        (lambda p: p.conditional(kind="z"), DataError, "z"),
    ],
    ids=["empty set", "empty interval", "unordered", "null set", "method", "everything", "level"],
)
def test_questions_that_can_not_be_answered(p, ask, error, says):
    with pytest.raises(error, match=says):
        ask(p)


def test_a_predicate_that_is_never_true_says_how_rare_it_may_be(p):
    answer = p.probability(lambda rows: rows["size"] > 1e9)
    assert float(answer) == 0
    assert answer.kind is Kind.ESTIMATE
    assert "95" in answer.how


def test_a_class_is_bayes_rule(p, table):
    rows = table[:20].drop(columns="kind")
    answer = p.classify(rows, "kind")
    assert answer.kind is Kind.EXACT
    for row, chances in zip(rows.to_dict("records"), answer.value, strict=True):
        given = p.conditional(row)
        for level, chance in zip(p.domain["kind"].levels, chances, strict=True):
            assert float(given.probability({"kind": level})) == pytest.approx(chance, abs=1e-9)


def test_only_levels_are_classified(p, table):
    with pytest.raises(OptionError, match="column 'size' is real: only a column of levels is classified"):
        p.classify(table, "size")


def test_an_expectation_that_is_not_a_number(p):
    with pytest.raises(DataError, match=r"f is NaN at \d+ of 1000 rows drawn"):
        p.expectation(lambda rows: np.where(rows["size"] > 0, 1.0, np.nan), 1000)


def test_the_shell_asks(p, tmp_path):
    file = tmp_path / "p.safetensors"
    p.save(file)
    asked = CliRunner().invoke(app, ["ask", str(file), "kind=a"])
    assert asked.exit_code == 0
    assert float(asked.stdout.split()[0]) == pytest.approx(float(p.probability({"kind": "a"})), rel=1e-4)
    given = CliRunner().invoke(app, ["ask", str(file), "size > 2", "--given", "kind=b", "--given", "0 < twice < 20"])
    assert given.exit_code == 0
    p_given = p.conditional(kind="b", twice=pofx.Between(0.0, 20.0, (False, False)))
    assert "exact" in given.stdout
    assert float(given.stdout.split()[0]) == pytest.approx(float(p_given.probability({"size": pofx.Between(2.0)})), rel=1e-4)


def test_evidence_is_in_codes():
    facts = event(DOMAIN, {"sex": {"M"}, "age": 3})
    torch.testing.assert_close(facts.values, torch.tensor([3.0, 1.0, float("nan")]), equal_nan=True)
