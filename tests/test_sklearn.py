"""The adapter passes scikit-learn's own checks."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from pofx.sklearn import DensityEstimator


@parametrize_with_checks([DensityEstimator("gaussian")])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([DensityEstimator("gmm", options={"components": 2}), DensityEstimator("kde"), DensityEstimator("independent")])
def test_scikit_learns_checks_on_more_families(estimator, check):
    check(estimator)


def test_score_samples_is_the_log_density():
    x = np.random.RandomState(0).randn(200, 2)
    model = DensityEstimator("gaussian").fit(x)
    np.testing.assert_allclose(model.score_samples(x), np.asarray(model.density_.log_prob(x)))
    assert model.score(x) == pytest.approx(model.score_samples(x).sum())


def test_two_samples_differ_and_equal_seeds_agree():
    model = DensityEstimator("gaussian").fit(np.random.RandomState(0).randn(200, 2))
    assert not np.array_equal(model.sample(5), model.sample(5))
    np.testing.assert_array_equal(model.sample(5, random_state=1), model.sample(5, random_state=1))
    assert model.sample(0).shape == (0, 2)


def test_clone_keeps_the_options():
    assert clone(DensityEstimator("gmm", options={"components": 3})).options == {"components": 3}
