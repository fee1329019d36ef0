"""Mutual information of groups of variables, by Monte Carlo."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pofx.ask.generic.marginal import log_marginal
from pofx.ask.generic.space import draws_of
from pofx.errors import OptionError, Unavailable
from pofx.models.base import Model
from pofx.types import Answer, Generator, Kind

DRAWS, FEW = 4000, 200  # where marginals are exact, and where each is itself estimated


def mutual_information(model: Model, a: Sequence[int], b: Sequence[int], *, draws: int | None = None, generator: Generator) -> Answer:
    """I(A; B) = E[log p(x_a, x_b) - log p(x_a) - log p(x_b)] in nats, with its standard error.

    Where the model sums out variables exactly, each term is exact and only the mean is estimated (4000 draws). Else the
    three log-densities of a row are importance estimates with 1000 draws each (200 rows); their logarithms are a little
    low, by about error^2 / 2, and the sum of the errors' squares is part of the standard error. Infinite where a
    variable of A is a function of B. An estimate near 0 may be negative; the truth is not.

    Args:
        model: p(x), with a density.
        a: the variables of A.
        b: those of B, none of them in A.
        draws: rows drawn; None: as said.
        generator: of the draws.

    Raises:
        OptionError: a group is empty, or they share a variable.
        Unavailable: the density is a bound or has no constant: a difference of bounds bounds nothing.
    """
    _check(model, a, b)
    exact = model.missing is Kind.EXACT
    n = draws if draws is not None else DRAWS if exact else FEW
    x = draws_of(model, n, generator=generator)
    groups = (tuple(a) + tuple(b), tuple(a), tuple(b))
    (joint, *parts), errors = zip(*(log_p(model, x, keep, exact, generator) for keep in groups), strict=True)
    each = joint - parts[0] - parts[1]
    within = sum(error.square() for error in errors)
    error = math.sqrt(float(each.var()) / n + float(within.sum()) / n**2)
    how = f"the mean over {n} draws" + ("" if exact else ", marginals by importance sampling")
    return Answer(np.asarray(float(each.mean())), Kind.ESTIMATE, np.asarray(error), how)


def log_p(model: Model, x: Tensor, keep: tuple[int, ...], exact: bool, generator: Generator) -> tuple[Tensor, Tensor]:
    """log p(x_keep) of each row and its error."""
    rows = torch.full_like(x, torch.nan)
    rows[:, list(keep)] = x[:, list(keep)]
    if exact or len(keep) == x.shape[1]:
        with torch.no_grad():
            value, error = model.log_prob_and_error(rows, generator=generator)
        return value.double(), error.double()
    answer = log_marginal(model, rows, generator=generator)
    return torch.from_numpy(answer.value), torch.from_numpy(np.zeros_like(answer.value) if answer.error is None else answer.error)


def _check(model: Model, a: Sequence[int], b: Sequence[int]) -> None:
    both = [*a, *b]
    if not a or not b or len(set(both)) < len(both) or not all(0 <= d < len(model.domain) for d in both):
        raise OptionError(f"two groups of distinct variables among 0 ... {len(model.domain) - 1} are needed, got {list(a)} and {list(b)}")
    if model.density is not Kind.EXACT:
        why = f"its density is of kind {model.density}"
        raise Unavailable("mutual information", model.noun, why, families=model.conditional_families)
