"""fit: from the user's data and a family's name to a PofX.

The data flow: read -> domain -> encode -> split -> check -> prepare -> assemble -> learn. Everything
that can be wrong with data or options is found before learning starts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from pofx.ask.origin import Origin
from pofx.ask.pofx import PofX, as_columns
from pofx.data import Container, DataSet, check_training, container_of, encode, infer_domain, load, names_a_set, read, split
from pofx.data.checks import check_weights
from pofx.data.preparation import prepare
from pofx.data.weights import weighted
from pofx.domain import Domain
from pofx.errors import OptionError, Unavailable
from pofx.learn import check_weighable, isolated, run
from pofx.learn.rows import Rows as Weighed
from pofx.models import composed
from pofx.models.base import FamilyConfig
from pofx.models.registry import families, name_of
from pofx.models.registry import family as registered

HOLDOUT_SHARE = 0.1
Schema = Domain | Mapping[str, Any] | None


@dataclass(frozen=True)
class Rows:
    """Training and held-out rows, encoded: whole rows of `table`, whose `given` columns are conditions; and how often each counts."""

    train: Tensor
    holdout: Tensor
    table: Domain
    given: tuple[str, ...]
    container: Container
    weights: Tensor | None = None
    holdout_weights: Tensor | None = None

    @property
    def domain(self) -> Domain:
        """What x is."""
        return self.table.select(self._x) if self.given else self.table

    @property
    def context(self) -> Domain | None:
        """What c is."""
        return self.table.select(self._c) if self.given else None

    def parts(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """The x and the c of whole rows."""
        return (rows[:, self._x], rows[:, self._c]) if self.given else (rows, None)

    @property
    def _c(self) -> list[int]:
        return [self.table.index(name) for name in self.given]

    @property
    def _x(self) -> list[int]:
        return [d for d in range(len(self.table)) if d not in self._c]


def gather(
    data: Any,  # noqa: ANN401
    *,
    given: str | Sequence[str] | None = None,
    holdout: Any = None,  # noqa: ANN401
    schema: Schema = None,
    seed: int = 0,
    weights: object = None,
) -> Rows:
    """Read, infer or take the domain, encode, split, check.

    Raises:
        DataError: the data can not be learned from, or a weight is not a number from 0 up; the sentence names the column or row.
        OptionError: a given column is unknown, or nothing but given columns is left.
    """
    if isinstance(data, str) and names_a_set(data):
        data = load(data)
    if isinstance(data, DataSet):
        source, holdout, schema = data.train, data.holdout if holdout is None else holdout, data.domain if schema is None else schema
    else:
        source = read(data)
    source, w = weighted(source, weights)
    domain = _domain(source, schema)
    x, held_w = encode(source, domain), None
    check_weights(w, len(x))
    if holdout is None:
        check_training(x, domain)
        x, held, w, held_w = _split(x, w, torch.Generator().manual_seed(seed))
    else:
        rows, held_w = weighted(read(holdout), weights if isinstance(weights, str) else None)
        held = encode(rows, domain)
    check_training(x, domain)
    for part, its in ((x, w), (held, held_w)):
        check_weights(its, len(part))
    return Rows(x, held, domain, _given(domain, given), container_of(source), w, held_w)


def fit(
    data: Any,  # noqa: ANN401
    family: object = "gmm",
    *,
    given: str | Sequence[str] | None = None,
    holdout: Any = None,  # noqa: ANN401
    weights: object = None,
    schema: Schema = None,
    seed: int = 0,
    budget: float | None = None,
    device: str = "auto",
    checkpoint: str | PathLike[str] | None = None,
    progress: bool | None = None,
    **options: Any,  # noqa: ANN401
) -> PofX:
    """Learn p(x), or p(x | given), from data.

    Args:
        data: a frame (pandas, polars, pyarrow), array, tensor, path, or the name of a built-in set; missing cells allowed.
        family: a name of `pofx.families()`, or options of a family, your own included.
        given: columns to condition on.
        holdout: rows that learning is watched on; a tenth of the data when none are given.
        weights: how often each row counts, in learning and in held-out scores: numbers from 0 up, one a row, in any unit, or the name
            of the column that holds them, which is then no column of x. Rows of q weighted by p / q stand for rows of p.
        schema: the domain, or corrections to the inferred one, column -> kind.
        seed: makes the run reproducible, bit for bit on a CPU.
        budget: seconds after which learning stops and keeps the best so far.
        device: "cpu", "cuda", ...; "auto" takes an accelerator when there is one.
        checkpoint: a file to write to while learning and to go on from when it exists.
        progress: show a bar; None shows it on a terminal.
        **options: the named family's own, as `pofx families NAME` lists them.

    Raises:
        PofxError: data or options that can not work, before learning starts.
    """
    config = configured(family, options)
    rows = gather(data, given=given, holdout=holdout, schema=schema, seed=seed, weights=weights)
    return learn(rows, name_of(config), config, seed=seed, budget=budget, device=device, checkpoint=checkpoint, progress=progress)


def learn(
    rows: Rows,
    family: str,
    config: FamilyConfig,
    *,
    seed: int = 0,
    budget: float | None = None,
    device: str = "auto",
    checkpoint: str | PathLike[str] | None = None,
    progress: bool | None = False,
) -> PofX:
    """Prepare, assemble and learn: `fit` from the point where the rows are encoded and the options checked."""
    if rows.context is not None and not config.conditional:
        able = [name for name, one in families().items() if one.config.conditional]
        raise Unavailable("learning of p(x | given)", family, families=able, instead="learn the joint, then ask for the conditional")
    (x, c), (holdout, holdout_c) = rows.parts(rows.train), rows.parts(rows.holdout)
    config = config.for_domain(rows.domain).for_rows(len(x))
    check_weighable(config, rows.weights)
    seen = Weighed(x, c, rows.weights).alike(torch.Generator().manual_seed(seed))
    with isolated(seed):  # initial weights draw from torch's own generator
        maps = prepare(rows.domain, seen.x, config.takes, config.lifting.codes)
        model = composed.assemble(config, rows.domain, x, maps, rows.context, seen.c)
    record = run(
        model,
        x,
        c,
        config=config,
        holdout=holdout,
        holdout_c=holdout_c,
        weights=rows.weights,
        holdout_weights=rows.holdout_weights,
        seed=seed,
        budget=budget,
        device=device,
        checkpoint=checkpoint,
        progress=progress,
    )
    origin = Origin(family, config, rows.table, record, bool(x.isnan().any()))
    return PofX(model, rows.container, seed=seed, origin=origin)


def configured(family: object, options: Mapping[str, Any]) -> FamilyConfig:
    """The options of a named family, or those that came.

    Raises:
        OptionError: no such family or option, or options beside options.
    """
    if isinstance(family, str):
        return registered(family).configure(options)
    if not isinstance(family, FamilyConfig):
        raise OptionError(f"a family is a name or its options (a FamilyConfig), got {type(family).__name__}")
    for name in options:
        raise OptionError(f"{name!r} stands beside {type(family).__name__}, which has the options already: set it there")
    return family


def _split(x: Tensor, w: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Training and held-out rows, each with its weights."""
    if w is None:
        return *split(x, HOLDOUT_SHARE, generator), None, None
    train, held = split(torch.cat((x, w[:, None]), dim=1), HOLDOUT_SHARE, generator)
    return train[:, :-1], held[:, :-1], train[:, -1], held[:, -1]


def _domain(source: Any, schema: Schema) -> Domain:  # noqa: ANN401
    return schema if isinstance(schema, Domain) else infer_domain(source, schema)


def _given(table: Domain, given: str | Sequence[str] | None) -> tuple[str, ...]:
    names = as_columns(given)
    for name in names:
        table.index(name)
    if len(names) >= len(table):
        raise OptionError("every column is given: nothing is left to learn a density of")
    return names
