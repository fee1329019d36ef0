"""E[prod_d f_d(x_d)], a product of functions of one variable each: exact where the family sums such products over finite columns."""

import math
from collections.abc import Callable, Mapping
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pofx.ask.generic.closed import log_per
from pofx.ask.generic.expectation import expectation
from pofx.errors import DataError, OptionError
from pofx.events import listed
from pofx.models.base import Model
from pofx.types import Answer, Generator, Kind

Column = Callable[[Float[Tensor, " N"]], Float[Tensor, " N"]]  # values of a variable (codes of levels) to a number each
BOTH_SIGNS = 12  # functions that may be positive and negative: each doubles the work


def expected_product(model: Model, functions: Mapping[int, Column], *, draws: int = 10_000, generator: Generator) -> Answer:
    """E[prod_d f_d(x_d)]: in closed form where every variable has finitely many values, else the mean over draws.

    In closed form each f is parted into f+ - f-, and the product into 2^m products of functions that are not negative, m
    the number of functions of both signs: the error is rounding of E[prod |f_d|].

    Args:
        model: p(x).
        functions: of each variable.
        draws: where it is estimated.
        generator: of the draws.

    Raises:
        DataError: a function is not finite at a value, or gives no number a value.
        OptionError: there is no function.
    """
    if not functions:
        raise OptionError("the expectation of a product needs a function of one column or more, got none")
    values = {d: listed(model.domain.variables[d]) for d in functions}
    finite = {d: v for d, v in values.items() if v is not None}
    if len(finite) == len(functions) and _sums(model, sorted(functions)):
        f = {d: _checked(model, d, functions[d], v) for d, v in finite.items()}
        if sum(bool((v < 0).any() and (v > 0).any()) for v in f.values()) <= BOTH_SIGNS:
            return Answer(np.asarray(_exact(model, finite, f)), Kind.EXACT, None, "in closed form")

    def whole(x: Tensor) -> Tensor:
        return math.prod((_checked(model, d, g, x[:, d].double()) for d, g in functions.items()), start=torch.ones(len(x)).to(x))

    return expectation(model, whole, draws=draws, generator=generator)


def _sums(model: Model, variables: list[int]) -> bool:
    exact = model.context is None and model.density is Kind.EXACT
    return exact and model.answers("log_expectation", variables) is Kind.EXACT


def _exact(model: Model, values: Mapping[int, Tensor], f: Mapping[int, Tensor]) -> float:
    sides = {d: [(s, (s * v).clamp_min(0.0)) for s in (1.0, -1.0) if bool((s * v > 0).any())] for d, v in f.items()}
    terms = list(product(*sides.values()))
    if not terms:  # a function is 0 everywhere
        return 0.0
    factors = {}
    for i, d in enumerate(sides):
        log_w = torch.stack([term[i][1] for term in terms]).log()
        factors[d] = values[d], log_w + log_per(model.domain.variables[d], values[d])
    signs = torch.tensor([math.prod(sign for sign, _ in term) for term in terms], dtype=torch.float64)
    with torch.no_grad():
        return float((signs * model.log_expectation(factors).double().cpu().exp()).sum())


def _checked(model: Model, d: int, f: Column, values: Tensor) -> Tensor:
    found = f(values)
    name = model.domain.names[d]
    if found.shape != values.shape:
        raise DataError(f"the function of {name!r} gives one number for each of {len(values)} values, got shape {tuple(found.shape)}")
    if not bool(found.isfinite().all()):
        raise DataError(f"the function of {name!r} is not finite at {float(values[~found.isfinite()][0]):g}")
    return found.to(values)
