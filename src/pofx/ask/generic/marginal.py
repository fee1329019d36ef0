"""Marginals of a model that has none in closed form: log p of rows with missing cells, and draws with columns dropped."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pofx.ask.generic.resampling import POOL, weigh
from pofx.ask.generic.space import draws_of
from pofx.errors import DataError, OptionError, Unavailable
from pofx.events import Event
from pofx.models.base import Model
from pofx.types import Answer, Generator, Kind, X


def log_marginal(model: Model, x: X, *, draws: int = 1000, generator: Generator) -> Answer:
    """log p(x_o) = log E_q[p(x_o, x_m) / q(x_m)] of each row, by importance sampling, with its standard error.

    q is learned for each row (`resampling.weigh`), from draws other than those weighed: the mean weight is unbiased for
    p(x_o), its logarithm a little low. Rows without NaN are scored as they are; a row of NaN has log p = 0. An
    error that is infinite says that no weight was above 0.

    Cost: draws + 1000 log-densities a row with NaN. The standard error is too small where weights have no variance; many
    missing cells do that.

    Args:
        model: p(x), with a density.
        x: rows (N, D), NaN = unobserved.
        draws: of each row.
        generator: of the draws.

    Raises:
        DataError: rows of another width.
        Unavailable: the model has no density, or none with a constant.
    """
    if x.ndim != 2 or x.shape[1] != len(model.domain):
        raise DataError(f"{model.noun} is over {len(model.domain)} variables, got rows of shape {tuple(x.shape)}")
    if model.density in (Kind.NONE, Kind.UNNORMALISED):
        raise Unavailable("log p of some variables", model.noun, f"its density is of kind {model.density}", instead="a density of `drop`")
    pool = draws_of(model, POOL, generator=generator) if bool(x.isnan().any()) else None
    pairs = [_one(model, row, draws, pool, generator) for row in x]
    value, error = (np.array([pair[i] for pair in pairs]) for i in (0, 1))
    label = "" if model.density is Kind.EXACT else f", of a log-density of kind {model.density}"
    return Answer(value, Kind.ESTIMATE, error, f"importance sampling with {draws} draws a row{label}")


def drop(model: Model, keep: Sequence[int], n: int, *, generator: Generator) -> Tensor:
    """n draws of p(x_keep), (n, K): draws of the joint without the other columns, as exact as the model's own.

    Raises:
        OptionError: no or repeated columns, or one that there is not.
    """
    if not keep or len(set(keep)) < len(keep) or not all(0 <= d < len(model.domain) for d in keep):
        raise OptionError(f"a marginal keeps distinct variables among 0 ... {len(model.domain) - 1}, got {list(keep)}")
    return draws_of(model, n, generator=generator)[:, list(keep)]


def _one(model: Model, row: Tensor, draws: int, pool: Tensor | None, generator: Generator) -> tuple[float, float]:
    if bool(row.isnan().all()):
        return 0.0, 0.0
    if pool is None or not bool(row.isnan().any()):
        with torch.no_grad():
            value, error = model.log_prob_and_error(row[None], generator=generator)
        return float(value), float(error)
    event = Event.at(model.domain, row)
    if not event.possible:
        return -np.inf, 0.0
    try:
        value, error = weigh(model, event, draws, rounds=1, pool=pool, generator=generator).log_evidence
    except Unavailable:
        return -np.inf, np.inf
    return float(value), float(error)
