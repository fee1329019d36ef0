"""Which laws suit a variable, and which of them the data prefer."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.distributions.base import Law
from pofx.distributions.continuous import Beta, LogitNormal, LogNormal, Normal, StudentT
from pofx.distributions.discrete import Bernoulli, Categorical, DiscretisedLogistic, NegativeBinomial, Ordinal, Poisson
from pofx.distributions.wrapped import Gridded, MixtureLaw, PointMass, SpikeAndSlab
from pofx.domain import Variable, VariableKind
from pofx.types import Generator

Rows = Float[Tensor, "N D"]

_TABLE_ALONE = 32  # values up to which a smoothed table of probabilities is all that a count needs
_TABLE_AT_MOST = 256  # values above which there is no table
_PSEUDO = (0.03, 0.01, 0.1, 0.3, 1.0)  # rows added to each value
_HEAD_FLOOR = 1e-3  # least scale a network may set, in standard deviations of a prepared variable
_FOLDS = 5
_ENOUGH = 10_000  # rows that a choice is made from
_MANY = 256  # equal variables (pixels) above which mixtures, slow to fit, are not tried


def candidates(variable: Variable) -> tuple[Law, ...]:
    """Laws for a variable in its own units, for fitting by maximum likelihood; the first is plain and quick to fit."""
    if variable.continuous:
        return tuple(_spiked(law, variable) for law in _smooth(variable))
    if variable.cardinality == 1:
        return (PointMass(0.0 if variable.levels else variable.lower),)
    if variable.kind is VariableKind.COUNT:
        return _counts(int(variable.lower), variable.upper)
    if variable.kind is VariableKind.BINARY:
        return tuple(Bernoulli(pseudo) for pseudo in _PSEUDO)
    return tuple(Categorical(len(variable.levels), pseudo) for pseudo in _PSEUDO)


def default_law(variable: Variable) -> Law:
    """The head of a network for a prepared variable: standardised where it is continuous, scales bounded from below."""
    if variable.continuous:
        return _head(variable)
    if variable.cardinality == 1:
        return candidates(variable)[0]
    if variable.kind is VariableKind.ORDINAL:
        return Ordinal(len(variable.levels))
    if variable.kind is not VariableKind.COUNT:
        return candidates(variable)[0]
    return _count_head(int(variable.lower), variable.upper)


def _head(variable: Variable) -> Law:
    plain = _smooth(replace(variable, resolution=None))[0]
    eighth = (variable.resolution or 0.0) / 8 if variable.kind is VariableKind.REAL else 0.0
    law: Law = replace(plain, floor=max(_HEAD_FLOOR, eighth))  # type: ignore[type-var]
    return _spiked(_rounded(law, variable.resolution), variable)


def _count_head(lower: int, upper: float) -> Law:
    if upper == math.inf:
        return NegativeBinomial(lower)
    if (lower, upper) == (0, 1):
        return Bernoulli(numbers=True)
    if upper - lower < 64:
        return Categorical(int(upper) - lower + 1, first=lower, numbers=True)
    return MixtureLaw(DiscretisedLogistic(lower, int(upper)), 5)


def _smooth(variable: Variable) -> tuple[Law, ...]:
    """Laws without an atom, plainest first."""
    kind, lower, upper, r = VariableKind(variable.kind), variable.lower, variable.upper, variable.resolution or 0.0
    if kind is VariableKind.POSITIVE:
        laws: tuple[Law, ...] = (LogNormal(),)
    elif kind is VariableKind.REAL:
        # On a grid, Student's t is integrated over cells, which needs a scale of at least half of one.
        laws = (Normal(r / 8), StudentT(r / 2))
    else:
        # On a grid, a beta would be integrated too, which fails at a singular end.
        laws = (LogitNormal(lower, upper),) if r else (LogitNormal(lower, upper), Beta(lower, upper))
    laws = tuple(_rounded(law, variable.resolution) for law in laws)
    return (*laws, MixtureLaw(laws[0], 3))


def _rounded(law: Law, resolution: float | None) -> Law:
    return law if resolution is None else Gridded(law, resolution, origin=0.0)


def _spiked(law: Law, variable: Variable) -> Law:
    return law if variable.spike is None else SpikeAndSlab(law, variable.spike)


def _counts(lower: int, upper: float) -> tuple[Law, ...]:
    if upper == math.inf:
        return (NegativeBinomial(lower), Poisson(lower), MixtureLaw(NegativeBinomial(lower), 3))
    if (lower, upper) == (0, 1):
        return tuple(Bernoulli(pseudo, numbers=True) for pseudo in _PSEUDO)
    levels = int(upper) - lower + 1
    logistic = DiscretisedLogistic(lower, int(upper))
    tables = tuple(Categorical(levels, pseudo, first=lower, numbers=True) for pseudo in _PSEUDO if levels <= _TABLE_AT_MOST)
    curves = (logistic, MixtureLaw(logistic, 3)) if levels > _TABLE_ALONE else ()
    return (*tables, *curves)


def choose(
    variables: Sequence[Variable], x: Rows, holdout: Float[Tensor, "M D"] | None = None, *, generator: Generator = None
) -> list[int]:
    """For each variable, which of its `candidates` gives unseen rows the largest mean log-density.

    Unseen rows are the held-out ones, or without any, each of a few folds of x in turn.

    Args:
        variables: of the columns of x.
        x: rows, NaN = unobserved.
        holdout: rows that take no part in the fit.
        generator: of the order in which x falls into folds, and of the rows taken where there are very many.
    """
    x = _some(x, generator)
    splits = [(x, _some(holdout, generator))] if holdout is not None and len(holdout) else _folds(x, generator)
    best = [0] * len(variables)
    for laws, at in _alike(variables).items():
        tried = [i for i, law in enumerate(laws) if len(at) <= _MANY or not isinstance(law, MixtureLaw)]
        if splits and len(tried) > 1:
            scores = torch.stack([sum((_score(laws[i], a[:, at], b[:, at]) for a, b in splits), torch.zeros(())) for i in tried])
            for d, i in zip(at, scores.nan_to_num(-torch.inf).argmax(0).tolist(), strict=True):
                best[d] = tried[i]
    return best


def _alike(variables: Sequence[Variable]) -> dict[tuple[Law, ...], list[int]]:
    """The variables by their candidates: equal ones are fitted in one call."""
    groups: dict[tuple[Law, ...], list[int]] = {}
    for d, variable in enumerate(variables):
        groups.setdefault(candidates(variable), []).append(d)
    return groups


def _some(x: Tensor, generator: Generator) -> Tensor:
    """Enough rows for a choice."""
    return x if len(x) <= _ENOUGH else x[torch.randperm(len(x), generator=generator, device=x.device)[:_ENOUGH]]


def _folds(x: Tensor, generator: Generator) -> list[tuple[Tensor, Tensor]]:
    """(the others, a fold) for each of a few folds; none of too few rows."""
    if len(x) < 2 * _FOLDS:
        return []
    order = torch.randperm(len(x), generator=generator, device=x.device)
    folds = [order[i::_FOLDS] for i in range(_FOLDS)]
    return [(x[torch.cat(folds[:i] + folds[i + 1 :])], x[fold]) for i, fold in enumerate(folds)]


def _score(law: Law, x: Tensor, unseen: Tensor) -> Tensor:
    """The log-density of all unseen cells of each column (D) under the law fitted to x."""
    parameters = law.fit_columns(x, x.new_ones(len(x), 1))[:, 0]
    return law.log_prob(parameters, unseen).sum(0)
