"""Every measure against a closed form, a count by hand, or the property that defines it."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pofx.domain import Domain, Variable, VariableKind
from pofx.errors import DataError
from pofx.measure import (
    bits_per_dim,
    c2st,
    features,
    held_out,
    knn_accuracy,
    marginal_distances,
    median_distance,
    memorising,
    mmd,
    paired_difference,
    with_the_holes_of,
)
from pofx.measure.kernel import FACTORS, gaussians
from pofx.measure.memorising import nearest
from pofx.types import Kind

SIX_NINES = 4.9  # |z| beyond this has probability below 1e-6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def z_score(answer, truth):
    return abs(float(answer) - truth) / float(answer.error)


# -- likelihood ------------------------------------------------------------------------------------


def test_held_out_by_hand():
    score = held_out(torch.tensor([-1.0, -2.0, -6.0]), Kind.BOUND)
    assert float(score) == -3
    assert float(score.error) == pytest.approx(math.sqrt(7 / 3))  # variance 7 over 3 rows
    assert score.kind is Kind.BOUND


def test_one_row_has_a_score_and_no_error():
    assert math.isnan(float(held_out(torch.tensor([-1.0])).error))


def test_no_row_is_refused():
    with pytest.raises(DataError, match="at least one row"):
        held_out(torch.zeros(0))


def test_bits_per_dim_of_a_uniform_law():
    assert bits_per_dim(-64 * math.log(17), 64) == pytest.approx(math.log2(17))


def test_paired_difference_is_exact_where_the_gap_is_constant():
    nats = torch.randn(50)
    gap = paired_difference(nats, nats - 2)
    assert float(gap) == pytest.approx(2)
    assert float(gap.error) == pytest.approx(0, abs=1e-12)
    with pytest.raises(DataError, match="same rows"):
        paired_difference(nats, nats[:3])


# -- features --------------------------------------------------------------------------------------

MIXED = Domain((Variable("a", VariableKind.REAL), Variable("b", VariableKind.CATEGORICAL, levels=("r", "g", "b"))))


def test_features_standardise_and_spread_levels():
    like = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    seen = features(torch.tensor([[5.0, 2.0], [torch.nan, torch.nan]]), MIXED, like)
    assert seen.tolist() == [[3, 0, 0, 1], [0, 0, 0, 0]]  # sd 1 about mean 2; missing: the mean, no level


def test_pixels_share_one_scale():
    x = torch.zeros(100, 4)
    x[0, 0], x[:, 1] = 1, torch.randn(100)
    seen = features(x, Domain.counts((2, 2), 2), x)
    assert seen.square().mean() == pytest.approx(1)
    assert seen[0, 0] < 3  # standardised alone, the rare pixel would be at 10


def test_samples_take_the_holes_of_the_rows():
    rows = torch.tensor([[1.0, torch.nan], [torch.nan, 2.0]])
    x = with_the_holes_of(torch.ones(500, 2), rows, generator=seeded())
    assert bool((x.isnan().sum(1) == 1).all())
    assert bool(x.isnan().any(0).all())
    assert with_the_holes_of(rows[:1, :1], rows[:1, :1], generator=seeded()) is not None


# -- MMD -------------------------------------------------------------------------------------------


def mmd_between_normals(shift, dim, length):
    """MMD^2 of N(0, I) and N(shift, I): E k = (l^2 / (l^2 + 2))^(D/2) exp(-|shift|^2 / (2 (l^2 + 2))) for a kernel of length l."""
    value = 0.0
    for f in FACTORS:
        l2 = (f * length) ** 2
        same = (l2 / (l2 + 2)) ** (dim / 2)
        value += 2 * same * (1 - math.exp(-dim * shift**2 / (2 * (l2 + 2)))) / len(FACTORS)
    return value


@pytest.mark.parametrize(("shift", "dim"), [(0.0, 2), (0.5, 2), (0.3, 20)])
def test_mmd_has_the_closed_form_between_normals(shift, dim):
    x, y = torch.randn(900, dim) + shift, torch.randn(700, dim)
    found = mmd(x, y, length=2.0, permutations=1, generator=seeded())
    assert z_score(found.distance, mmd_between_normals(shift, dim, 2.0)) < SIX_NINES


def test_mmd_is_unbiased_and_its_error_is_honest():
    truth = mmd_between_normals(0.5, 3, 1.5)
    found = [mmd(torch.randn(20, 3) + 0.5, torch.randn(30, 3), length=1.5, permutations=1, generator=seeded()).distance for _ in range(600)]
    values, errors = (np.array([float(v) for v in column]) for column in ((a.value for a in found), (a.error for a in found)))
    spread = values.std(ddof=1)
    assert abs(values.mean() - truth) < SIX_NINES * spread / math.sqrt(600)
    assert 0.9 < math.sqrt((errors**2).mean()) / spread < 1.3


def test_mmd_is_its_definition():
    x, y = torch.randn(5, 2), torch.randn(4, 2)
    k_xx, k_yy, k_xy = gaussians(x, x, 1.0), gaussians(y, y, 1.0), gaussians(x, y, 1.0)
    by_hand = (k_xx.sum() - 5) / 20 + (k_yy.sum() - 4) / 12 - 2 * k_xy.mean()
    assert float(mmd(x, y, length=1.0, permutations=1, generator=seeded())) == pytest.approx(float(by_hand))


def test_jackknife_leaves_one_row_out():
    from pofx.measure.mmd import _jackknife

    x, y = torch.randn(6, 2), torch.randn(5, 2)
    z = torch.cat((x, y))
    kernel = gaussians(z, z, 1.0).fill_diagonal_(0)

    def value(a, b):
        return float(mmd(a, b, length=1.0, permutations=1, generator=seeded()))

    without_x = np.array([value(torch.cat((x[:i], x[i + 1 :])), y) for i in range(6)])
    without_y = np.array([value(x, torch.cat((y[:i], y[i + 1 :]))) for i in range(5)])
    assert _jackknife(kernel, 6) == pytest.approx(math.sqrt(5 * without_x.var() + 4 * without_y.var()))


def test_permutation_p_value_is_uniform_when_the_distributions_agree():
    p = [mmd(torch.randn(15, 2), torch.randn(10, 2), permutations=99, generator=seeded(i)).p_value for i in range(400)]
    # Massart's inequality: sup |F_n - F| > e has probability below 2 exp(-2 n e^2) = 1e-6; 0.01 for the p's own grid
    assert stats.kstest(p, "uniform").statistic < math.sqrt(math.log(2e6) / 800) + 0.01


def test_permutation_p_value_sees_a_shift():
    assert mmd(torch.randn(200, 2) + 1, torch.randn(200, 2), permutations=199, generator=seeded()).p_value == 1 / 200


def test_median_distance_by_hand():
    assert median_distance(torch.tensor([[0.0], [0.0], [1.0], [5.0]])) == 4  # 1 1 4 5 5 without the pair that is equal
    assert median_distance(torch.zeros(5, 2)) == 1


# -- C2ST ------------------------------------------------------------------------------------------


def test_c2st_is_a_half_when_the_distributions_agree():
    accuracies = np.array([float(c2st(torch.randn(60, 3), torch.randn(60, 3), generator=seeded(i))) for i in range(200)])
    assert abs(accuracies.mean() - 0.5) < SIX_NINES * accuracies.std() / math.sqrt(200)
    assert 0.8 < accuracies.std() / math.sqrt(0.25 / 120) < 1.4  # the binomial error is about right


@pytest.mark.parametrize(("dim", "shift"), [(2, 1.0), (16, 1.5)])
def test_c2st_nears_the_bayes_accuracy_of_shifted_normals(dim, shift):
    x = torch.randn(1000, dim) + shift / math.sqrt(dim)
    found = c2st(x, torch.randn(1000, dim), generator=seeded())
    bayes = stats.norm.cdf(shift / 2)
    assert bayes - 0.04 - SIX_NINES * float(found.distance.error) < float(found) < bayes + SIX_NINES * float(found.distance.error)
    assert found.p_value < 1e-6


def test_c2st_sees_a_dependence_that_no_marginal_shows():
    x, y = torch.randn(600, 2), torch.randn(600, 2)
    x[:, 1] = 0.8 * x[:, 0] + 0.6 * x[:, 1]
    assert float(c2st(x, y, generator=seeded())) > 0.6


def test_c2st_of_equal_rows_is_a_coin():
    assert float(c2st(torch.zeros(50, 2), torch.zeros(70, 2), generator=seeded())) == pytest.approx(0.5)


def test_equal_generators_give_equal_answers():
    x, y = torch.randn(1200, 2), torch.randn(50, 2)
    assert float(c2st(x, y, generator=seeded())) == float(c2st(x, y, generator=seeded()))
    assert mmd(x, y, generator=seeded()) == mmd(x, y, generator=seeded())


@pytest.mark.parametrize("measure", [mmd, c2st])
@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (torch.zeros(20, 2), torch.zeros(20, 3), r"\(20, 2\) and \(20, 3\)"),
        (torch.zeros(20, 2), torch.zeros(1, 2), "got 20 and 1"),
        (torch.zeros(20, 1), torch.full((20, 1), torch.nan), "finite"),
    ],
)
def test_samples_that_can_not_be_compared_are_refused(measure, x, y, says):
    with pytest.raises(DataError, match=says):
        measure(x, y, generator=seeded())


# -- memorising ------------------------------------------------------------------------------------


def test_nearest_by_hand_with_exact_copies():
    training = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1e4, 1.0]])
    assert nearest(torch.tensor([[3.0, 4.0], [0.0, 1.0], [1e4, 1.0]]), training).tolist() == [0, 1, 0]


def test_fresh_data_have_ratio_one_and_copies_have_zero():
    training, fresh, other = torch.randn(500, 3), torch.randn(400, 3), torch.randn(400, 3)
    honest = memorising(fresh, other, training)
    assert z_score(honest.ratio, 1) < SIX_NINES
    assert honest.copies == honest.copies_held_out == 0
    parrot = memorising(training[:300], other, training)
    assert float(parrot.ratio) == 0
    assert parrot.copies == 1


def test_ratio_is_undefined_where_every_fresh_row_has_a_twin():
    assert math.isnan(float(memorising(torch.ones(9, 1), torch.zeros(9, 1), torch.zeros(9, 1)).ratio))


# -- marginals -------------------------------------------------------------------------------------


def test_wasserstein_of_a_shift_is_the_shift_in_sd():
    y = torch.randn(300, 1)
    distance = marginal_distances(y + 3, y, Domain.real(1))
    assert float(distance.value[0]) == pytest.approx(3 / float(y.std(correction=0)))


def test_wasserstein_and_total_variation_are_scipys_and_ours_by_hand():
    x, y = torch.randn(40), 2 * torch.randn(70)
    x[:5] = torch.nan
    pair = torch.full((2, 70, 2), torch.nan)
    pair[0, :40, 0], pair[1, :, 0] = x, y
    pair[0, :4, 1], pair[1, :4, 1] = torch.tensor([0, 0, 1, 2.0]), torch.tensor([0, 2, 2, 2.0])
    found = marginal_distances(pair[0], pair[1], MIXED).value
    assert found[0] == pytest.approx(stats.wasserstein_distance(x[5:].numpy(), y.numpy()) / float(y.std(correction=0)))
    assert found[1] == pytest.approx(0.5)  # (1/2, 1/4, 1/4) against (1/4, 0, 3/4)


def test_error_of_the_marginal_distances_is_their_spread():
    domain = Domain((Variable("a", VariableKind.REAL), Variable("b", VariableKind.BINARY, levels=(0, 1))))

    def rows(shift, p):
        return torch.stack((torch.randn(200) + shift, (torch.rand(200) < p).to(torch.float64)), dim=1)

    found = [marginal_distances(rows(1, 0.7), rows(0, 0.3), domain) for _ in range(300)]
    values, errors = np.array([f.value for f in found]), np.array([f.error for f in found])
    # W1 is in units of the data's own sd, whose spread the error leaves out: a little more than 1
    assert np.allclose(values.std(0) / np.sqrt((errors**2).mean(0)), [1.1, 1.0], atol=0.25)
    assert values[:, 1].mean() == pytest.approx(0.4, abs=0.02)


def test_a_column_without_cells_has_no_distance():
    assert math.isnan(marginal_distances(torch.full((3, 1), torch.nan), torch.zeros(3, 1), Domain.real(1)).value[0])


# -- code ------------------------------------------------------------------------------------------


def test_knn_by_hand():
    code, labels = torch.tensor([[0.0], [1.0], [10.0], [11.0]]), torch.tensor([0, 0, 1, 1])
    found = knn_accuracy(code, labels, torch.tensor([[0.4], [10.4], [10.6], [0.6]]), torch.tensor([0, 1, 1, 1]), neighbours=2)
    assert float(found) == 0.75
    assert float(found.error) == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_a_tie_goes_to_the_nearer():
    code, labels = torch.tensor([[0.0], [1.0]]), torch.tensor([1, 0])
    assert float(knn_accuracy(code, labels, torch.tensor([[0.2]]), torch.tensor([1]), neighbours=2)) == 1


def test_more_neighbours_than_rows_are_refused():
    with pytest.raises(DataError, match="among 2"):
        knn_accuracy(torch.zeros(2, 1), torch.zeros(2), torch.zeros(1, 1), torch.zeros(1), neighbours=3)
