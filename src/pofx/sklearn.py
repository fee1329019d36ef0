"""The scikit-learn adapter: any family as an estimator that passes scikit-learn's own checks.

>>> from pofx.sklearn import DensityEstimator
>>> DensityEstimator("gaussian").get_params()["family"]
'gaussian'
"""

from typing import Any

import numpy as np

from pofx.ask import PofX, fit
from pofx.domain import Domain
from pofx.errors import OptionError

try:
    from sklearn.base import BaseEstimator, DensityMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise OptionError("pofx.sklearn needs scikit-learn: pip install 'pofx[sklearn]'") from error


class DensityEstimator(DensityMixin, BaseEstimator):
    """p(x) of real rows (N, D), with `fit`, `score_samples`, `score` and `sample` as scikit-learn has them.

    Args:
        family: a name of `pofx.families()`.
        options: the family's own.
        random_state: an integer seed.
        budget: seconds after which learning keeps the best so far.
    """

    # Any: scikit-learn's contract is that a constructor stores what it is given and `fit` judges it.
    def __init__(self, family: Any = "gaussian", *, options: Any = None, random_state: Any = 0, budget: Any = None) -> None:  # noqa: ANN401
        self.family = family
        self.options = options
        self.random_state = random_state
        self.budget = budget

    def fit(self, X: Any, y: Any = None) -> "DensityEstimator":  # noqa: ANN401
        """Learn p from rows."""
        rows = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        self.density_: PofX = fit(
            rows,
            self.family,
            schema=Domain.real(rows.shape[1]),
            seed=self.random_state,
            budget=self.budget,
            progress=False,
            **dict(self.options or {}),
        )
        return self

    def score_samples(self, X: Any) -> np.ndarray:  # noqa: ANN401
        """log p of each row, in nats."""
        check_is_fitted(self)
        return np.asarray(self.density_.log_prob(validate_data(self, X, dtype=np.float64, reset=False)))

    def score(self, X: Any, y: Any = None) -> float:  # noqa: ANN401
        """The sum of log p over the rows, as scikit-learn's densities have it."""
        return float(self.score_samples(X).sum())

    def sample(self, n_samples: int = 1, random_state: int | None = None) -> np.ndarray:
        """Draw rows (n_samples, D); two calls differ unless `random_state` is given."""
        check_is_fitted(self)
        return np.asarray(self.density_.sample(n_samples, seed=random_state))
