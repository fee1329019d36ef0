"""The outliers of a table that is learned from: pofx.outliers."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from pofx.ask.fitting import Rows, Schema, configured, learn
from pofx.ask.outliers import ROUNDS, Outliers, cross_fitted, index_of
from pofx.data import container_of, encode, infer_domain, read
from pofx.domain import Domain, Variable, VariableKind
from pofx.models.base import Model
from pofx.models.registry import name_of

FAMILY, TRIM = "gaussian", 0.25


def outliers(
    data: Any,  # noqa: ANN401
    family: object = FAMILY,
    *,
    trim: float = TRIM,
    folds: int = 5,
    reference: Any = None,  # noqa: ANN401
    schema: Schema = None,
    cells: bool = True,
    seed: int = 0,
    budget: float | None = None,
    **options: Any,  # noqa: ANN401
) -> Outliers:
    """The most surprising rows of a table, and the cell most to blame in each: score of a row = log p under what the others taught.

    Each of k parts is judged by the p learned from the other parts, less the share of their rows that is most surprising
    (`pofx.ask.outliers.cross_fitted`), so that no outlier hides by having been learned and a quarter of outliers does not
    bend p. One Gaussian is the default because it has no mode to give to a knot of outliers, which mixtures, kernels and
    circuits have; a free family is right where ordinary rows are far from Gaussian and outliers few and apart.

    Numbers are taken as numbers: the grid, spike or count that is inferred of a column is how it was written down, and a density of cells
    and atoms ranks rows by how common their digits are. What the schema says of a column stands, and a whole Domain stands as it is.

    p-values are of a row like the others (`Outliers`): against draws of the p learned without trimming, sound as far as that p is;
    with a reference of ordinary rows that are not among the data, valid whatever p is.

    Args:
        data: as `fit` takes them; missing cells allowed where the family can marginalise.
        family: a name of `pofx.families()`, or options of a family.
        trim: the share of rows left out of learning, in [0, 1); as many may be outliers.
        folds: k.
        reference: ordinary rows, which are not learned from; None: draws.
        schema: the domain, or corrections to the inferred one, column -> kind.
        cells: also judge cells: D + 1 times the work, unless the family knows better.
        seed: of parts, learning and draws.
        budget: seconds of learning, shared by all fits.
        **options: the named family's own.

    Cost: 4 k fits (k without trimming).

    Raises:
        PofxError: data or options that can not work.
    """
    config = configured(family, options)
    source = read(data)
    domain = _domain(source, schema)
    x = encode(source, domain)
    known = None if reference is None else encode(read(reference), domain)
    empty = Rows(x[:0], x[:0], domain, (), container_of(source))
    share = None if budget is None else budget / (folds * (ROUNDS + 1 if trim else 1))

    def model_of(train: Tensor, holdout: Tensor) -> Model:
        rows = replace(empty, train=train, holdout=holdout)
        return learn(rows, name_of(config), config, seed=seed, budget=share, progress=None).model

    return cross_fitted(x, domain, model_of, folds=folds, trim=trim, reference=known, index=index_of(source), cells=cells, seed=seed)


def _domain(source: Any, schema: Schema) -> Domain:  # noqa: ANN401
    """A Domain as it is; else the inferred one, whose numbers are plain where nothing is declared."""
    if isinstance(schema, Domain):
        return schema
    inferred = infer_domain(source, schema)
    declared: Mapping[str, Any] = schema or {}
    return Domain(tuple(v if v.name in declared else _plain(v) for v in inferred.variables), inferred.shape)


def _plain(v: Variable) -> Variable:
    """A real number in place of one on a grid, with a spike, or a count."""
    if v.levels or (v.continuous and v.resolution is None and v.spike is None):
        return v
    return replace(v, kind=VariableKind.REAL, lower=-math.inf, upper=math.inf, resolution=None, spike=None)
