"""Questions about hidden cells against closed forms of a normal world, counts by hand, and repetition.

In the plane exactly one cell of an asked row is hidden, and of two normals of correlation r it is N(r x, 1 - r^2) given the other.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pofx.domain import Domain, Variable, VariableKind
from pofx.errors import DataError
from pofx.measure import calibration, hide, scales, squared_error, surprise, wrong
from pofx.measure.hidden_cells import DRAWS, HiddenCells
from pofx.types import Kind

SIX_NINES = 4.9  # |z| beyond this has probability below 1e-6
R = 0.8
SD = math.sqrt(1 - R**2)  # of a cell given the other
PLANE = Domain.real(2)
ONES = torch.ones(2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(n):
    """Rows of two standard normals of correlation R."""
    z = torch.randn(n, 2)
    return torch.stack((z[:, 0], R * z[:, 0] + SD * z[:, 1]), dim=1)


def means(hidden):
    """The conditional mean of each hidden cell, in its place."""
    return torch.where(hidden.mask, R * hidden.x.flip(1), hidden.x)


def draws(hidden, sd=SD, n=DRAWS):
    return [torch.where(hidden.mask, means(hidden) + sd * torch.randn(hidden.x.shape), hidden.x) for _ in range(n)]


def log_conditional(hidden):
    z = ((hidden.x - means(hidden)) / SD)[hidden.mask]
    return -0.5 * z.square() - math.log(SD * math.sqrt(2 * math.pi))


def binaries(n):
    return tuple(Variable(f"b{d}", VariableKind.BINARY, levels=(0, 1)) for d in range(n))


def z_score(answer, truth):
    return abs(float(answer) - truth) / float(answer.error)


# -- what is hidden ------------------------------------------------------------------------------------


def test_what_is_hidden_was_there_and_something_stays():
    x = torch.randn(300, 4)
    x[torch.rand(x.shape) < 0.4] = torch.nan
    hidden = hide(x, asked=2000, generator=seeded())
    assert bool(hidden.mask.any(1).all())
    assert not bool((hidden.mask & hidden.x.isnan()).any())
    assert bool((~hidden.holes.isnan()).any(1).all())
    assert torch.equal(hidden.x.nan_to_num(9.0), x[hidden.row].nan_to_num(9.0))
    askable = ((~x.isnan()).sum(1) >= 2).nonzero().flatten()
    assert set(hidden.row.tolist()) <= set(askable.tolist())


def test_a_share_is_hidden_and_the_same_again():
    x = torch.randn(1000, 40)
    hidden = hide(x, asked=1000, generator=seeded())
    cells = hidden.mask.sum()
    assert abs(float(cells) / x.numel() - 0.2) < SIX_NINES * math.sqrt(0.2 * 0.8 / x.numel())
    assert torch.equal(hidden.mask, hide(x, asked=1000, generator=seeded()).mask)
    assert sorted(hidden.row.tolist()) == sorted(set(hidden.row.tolist()))


def test_every_row_is_asked_before_any_comes_again():
    hidden = hide(torch.randn(7, 50), asked=24, generator=seeded())
    times = torch.bincount(hidden.row, minlength=7)
    assert times.sum() == 24
    assert set(times.tolist()) == {3, 4}
    assert sorted(hidden[:7].row.tolist()) == list(range(7))


def test_rows_of_one_cell_are_not_asked():
    assert len(hide(torch.randn(50, 1), generator=seeded())) == 0
    assert len(hide(torch.zeros(0, 3), generator=seeded())) == 0


# -- how probable --------------------------------------------------------------------------------------


def test_surprise_at_the_true_conditional_is_its_entropy():
    hidden = hide(normals(4000), asked=4000, generator=seeded())
    found = surprise(hidden, log_conditional(hidden) - 7, torch.full((len(hidden),), -7.0)).answer
    assert z_score(found, 0.5 * math.log(2 * math.pi * math.e * SD**2)) < SIX_NINES
    assert found.kind is Kind.EXACT


def test_surprise_by_hand():
    mask = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=torch.bool)
    hidden = HiddenCells(torch.zeros(3, 3), mask, torch.tensor([4, 2, 7]))
    found = surprise(hidden, torch.tensor([-2.0, -5.0, -3.0]), torch.tensor([-1.0, -1.0, 0.0]), Kind.BOUND).answer
    assert float(found) == 2  # 8 nats over 4 cells
    assert float(found.error) == pytest.approx(math.sqrt(3 / 2 * (1 + 0 + 1) / 16))  # what each row adds: (-1, 0, 1) / 4
    assert found.kind is Kind.ESTIMATE


def test_what_is_hidden_behind_the_impossible_is_impossible():
    hidden = hide(normals(20), asked=20, generator=seeded())
    never = torch.full((len(hidden),), -math.inf)
    assert float(surprise(hidden, never, torch.zeros(len(hidden)))) == math.inf
    assert float(surprise(hidden, never, never)) == math.inf


def test_two_are_compared_on_the_rows_that_both_were_asked():
    hidden = hide(normals(400), asked=400, generator=seeded())
    own, nats = log_conditional(hidden), 5 * torch.randn(len(hidden))
    gap = surprise(hidden[:100], own[:100] - 0.3, nats[:100]) - surprise(hidden, own, nats)
    assert float(gap) == pytest.approx(0.3)
    assert float(gap.error) == pytest.approx(0, abs=1e-12)
    others = hide(normals(400), asked=400, generator=seeded(1))
    with pytest.raises(DataError, match="the same hidden cells"):
        surprise(hidden, own, nats) - surprise(others, *torch.zeros(2, len(others)))


# -- how far off ---------------------------------------------------------------------------------------


def test_error_of_the_conditional_mean_is_the_conditional_deviation():
    hidden = hide(normals(4000), asked=4000, generator=seeded())
    assert z_score(squared_error(hidden, means(hidden), ONES).root, SD) < SIX_NINES
    assert z_score(squared_error(hidden, torch.zeros_like(hidden.x), 2 * ONES).root, 0.5) < SIX_NINES  # its sd, in units of 2


def test_error_of_numbers_by_hand():
    mask = torch.tensor([[1, 0], [1, 0], [1, 1]], dtype=torch.bool)
    hidden = HiddenCells(torch.tensor([[3.0, 10.0], [0.0, 20.0], [4.0, 6.0]]), mask, torch.arange(3))
    assert float(squared_error(hidden, torch.zeros(3, 2), torch.tensor([1.0, torch.nan])).root) == pytest.approx(math.sqrt(25 / 3))
    found = squared_error(hidden, torch.zeros(3, 2), torch.tensor([1.0, 2.0]))
    assert float(found.root) == pytest.approx(math.sqrt((9 + 0 + 16 + 9) / 4))
    assert float(found.root.error) == pytest.approx(float(found.answer.error) / 2 / math.sqrt(8.5))
    assert float(squared_error(hidden, hidden.x, ONES).root.error) == 0


def test_share_of_wrong_levels_by_hand():
    domain = Domain((*binaries(1), Variable("b", VariableKind.ORDINAL, levels=("l", "m", "h")), *PLANE.variables))
    x = torch.tensor([[0, 2, 5.0, 5], [1, 1, 5, 5], [1, 0, 5, 5], [0, 0, 5, 5]])
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    filled = torch.tensor([[0, 1.0, 5, 0], [1, 1, 5, 5], [1, 0, 5, 5], [1, 0, 5, 5]])
    hidden = HiddenCells(x, mask, torch.arange(4))
    assert float(wrong(hidden, filled, domain)) == pytest.approx(2 / 5)
    assert wrong(hidden, filled, Domain.real(4)) is None
    assert squared_error(hidden, filled, torch.full((4,), torch.nan)) is None
    assert calibration(hidden, [filled] * 19, torch.full((4,), torch.nan), generator=seeded()) is None


def test_units_are_the_deviations_of_numbers_that_vary():
    x = torch.tensor([[0.0, 7.0, 1.0], [2.0, 7.0, 0.0], [torch.nan, 7.0, 1.0]])
    mixed = Domain((*PLANE.variables, Variable("k", VariableKind.BINARY, levels=("n", "y"))))
    assert scales(x, mixed).nan_to_num(-1).tolist() == [1, -1, -1]
    pixels = torch.tensor([[0.0, 0, 4], [0, 0, 0]])
    assert scales(pixels, Domain.counts((1, 3), 5)).tolist() == pytest.approx([math.sqrt(4 / 3)] * 3)  # one for all, of variances 0, 0, 4


# -- how sure ------------------------------------------------------------------------------------------


def expected(f, end):
    """E f(q) of the normal quantile q of the end-th of DRAWS uniform order statistics."""
    return stats.beta(end, DRAWS + 1 - end).expect(lambda u: f(stats.norm.ppf(u)))


@pytest.mark.parametrize("times", [0.5, 1.0, 2.0])
def test_coverage_and_width_are_those_of_the_draws(times):
    hidden = hide(normals(3000), asked=3000, generator=seeded())
    found = calibration(hidden, draws(hidden, times * SD), ONES, generator=seeded())
    held = expected(lambda q: stats.norm.cdf(times * q), 38) - expected(lambda q: stats.norm.cdf(times * q), 2)
    if times == 1:
        assert held == pytest.approx(0.9)
    assert z_score(found.coverage(), held) < SIX_NINES
    assert found.off == pytest.approx((float(found.coverage()) - 0.9) / max(float(found.coverage().error), 0.3 / math.sqrt(found.cells)))
    assert z_score(found.sharpness, 2 * times * SD * expected(lambda q: q, 38)) < SIX_NINES


def uniform(ranks):
    """Massart: the distance of n uniform ranks from uniformity passes sqrt(log(2e6) / 2n) with probability below 1e-6."""
    return stats.kstest(ranks, "uniform").statistic < math.sqrt(math.log(2e6) / (2 * len(ranks)))


def test_ranks_are_uniform_where_the_draws_are_right():
    hidden = hide(normals(3000), asked=3000, generator=seeded())
    found = calibration(hidden, draws(hidden), ONES, generator=seeded())
    assert torch.equal(~found.rank.isnan(), hidden.mask)
    assert uniform(found.rank[hidden.mask].numpy())
    narrow = calibration(hidden, draws(hidden, 0.7 * SD), ONES, generator=seeded())
    assert not uniform(narrow.rank[hidden.mask].numpy())


def test_ties_of_counts_are_broken_fairly():
    x = torch.poisson(torch.full((4000, 2), 0.7), generator=seeded(1))
    hidden = hide(x, asked=4000, generator=seeded())
    drawn = [torch.where(hidden.mask, torch.poisson(torch.full(hidden.x.shape, 0.7)), hidden.x) for _ in range(DRAWS)]
    found = calibration(hidden, drawn, ONES, generator=seeded())
    assert uniform(found.rank[hidden.mask].numpy())
    assert abs(found.off) < SIX_NINES
    same = calibration(hidden, [hidden.x] * DRAWS, ONES, generator=seeded())
    assert uniform(same.rank[hidden.mask].numpy())  # who always draws the truth is neither too low nor too high
    assert float(same.sharpness) == 0


def test_a_tie_is_a_tie_after_rounding():
    hidden = hide((391 + torch.randint(0, 9, (500, 2))) / 10, generator=seeded())
    ulp = [(hidden.x * (1 + 1e-15)).float() for _ in range(DRAWS)]
    assert uniform(calibration(hidden, ulp, ONES, generator=seeded()).rank[hidden.mask].numpy())


def test_a_share_of_all_or_none_has_the_error_of_a_cell():
    hidden = hide(normals(400), asked=400, generator=seeded())
    wide = calibration(hidden, draws(hidden, 100.0), ONES, generator=seeded())
    assert float(wide.coverage()) == 1
    assert float(wide.coverage().error) == 1 / wide.cells
    assert wide.off == pytest.approx(math.sqrt(wide.cells) / 3)  # 0.1 over 0.3 / sqrt(cells)
    right = HiddenCells((hidden.x > 0).double(), hidden.mask, hidden.row)
    assert float(wrong(right, right.x, Domain(binaries(2))).answer.error) == 1 / len(hidden)


# -- errors by repetition ------------------------------------------------------------------------------


def measured():
    """All numbers of one draw of 60 rows of five cells that share a common part, each row asked about three times."""
    x = torch.randn(60, 1) + 0.5 * torch.randn(60, 5)
    hidden = hide(x, asked=180, generator=seeded(int(torch.randint(2**40, ()))))
    filled = torch.zeros_like(hidden.x)
    drawn = [torch.where(hidden.mask, torch.randn(hidden.x.shape), hidden.x) for _ in range(19)]
    sure = calibration(hidden, drawn, torch.ones(5), generator=seeded())
    nats = -0.5 * torch.where(hidden.mask, hidden.x, 0.0).square().sum(1)
    levels = wrong(HiddenCells((hidden.x > 1).double(), hidden.mask, hidden.row), filled, Domain(binaries(5)))
    return (
        surprise(hidden, nats, torch.zeros_like(nats)).answer,
        squared_error(hidden, filled, torch.ones(5)).root,
        levels.answer,
        sure.coverage(),
    )


def test_errors_are_the_spread_over_repetitions():
    found = [measured() for _ in range(600)]
    values, errors = (
        np.array([[float(v) for v in row] for row in part])
        for part in ([[a.value for a in r] for r in found], [[a.error for a in r] for r in found])
    )
    ratio = np.sqrt((errors**2).mean(0)) / values.std(0, ddof=1)
    # the spread of 600 is known to 1 / sqrt(1200) = 3 %, five of which are 15 %; the delta method of 60 rows is low by a few per cent
    assert ((ratio > 0.80) & (ratio < 1.17)).all(), ratio


# -- mistakes ------------------------------------------------------------------------------------------


def test_answers_to_other_questions_are_refused():
    hidden = hide(normals(50), generator=seeded())
    with pytest.raises(DataError, match="need shape"):
        surprise(hidden, torch.zeros(3), torch.zeros(3))
    with pytest.raises(DataError, match="need shape"):
        squared_error(hidden, torch.zeros(3, 2), ONES)
    with pytest.raises(DataError, match="at least 19 draws, got 5"):
        calibration(hidden, draws(hidden, n=5), ONES, generator=seeded())
    with pytest.raises(DataError, match="no cell is hidden"):
        surprise(hidden[:0], torch.zeros(0), torch.zeros(0))
