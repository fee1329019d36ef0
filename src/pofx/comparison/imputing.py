"""impute: fill the holes of a table by the family that says most of rows it did not learn from."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pofx.ask import PofX, fit
from pofx.comparison.words import listed
from pofx.data import check_training, container_of, decode, encode, infer_domain, read
from pofx.domain import Domain
from pofx.errors import DataError, OptionError, PofxError
from pofx.measure import held_out, paired_difference
from pofx.models.base import FamilyConfig
from pofx.models.registry import family
from pofx.types import Answer, Kind

FAMILIES = ("gaussian", "latent_class", "gmm", "vae")
PARTS = 5
LAST = 0.25  # of a budget: kept for what is learned from all rows, which fills
ENOUGH = 500  # rows that are scored; a longer table needs fewer of its parts for as sharp a choice

Families = str | Sequence[str] | Mapping[str, Mapping[str, Any]]
Schema = Domain | Mapping[str, Any] | None
Learn = Callable[[str, Tensor], PofX]


@dataclass(frozen=True)
class Score:
    """What a family says of rows that it did not learn from.

    Args:
        family: its name.
        nats: log p of the observed cells of each of those rows, (M,); none when it failed.
        kind: what those numbers are.
        reason: why it failed, in one sentence.
    """

    family: str
    nats: Tensor
    kind: Kind
    reason: str = ""

    @property
    def mean(self) -> Answer:
        """Nats a row, with the standard error."""
        return held_out(self.nats, self.kind)

    def behind(self, best: "Score") -> Answer:
        """How many nats a row the best one is ahead on the same rows, with the error of paired rows."""
        return paired_difference(best.nats, self.nats)


@dataclass(frozen=True)
class Choice:
    """A p(x) learned from the rows to fill, and how its family was chosen.

    Args:
        p: learned from all rows.
        scores: of the families, the best first and those that failed last; empty where one was named.
        seen: the least and the greatest value of each column among the rows, (D,) and (D,).
        blank: how many rows have no cell at all: they taught nothing, and the law they are filled by is that of any row.
    """

    p: PofX
    scores: tuple[Score, ...]
    seen: tuple[Tensor, Tensor]
    blank: int = 0

    def fill(self, rows: Any, *, seed: int = 0) -> Any:  # noqa: ANN401
        """Conditional means and most probable levels; a mean beyond all that was seen of its column is put at that end.

        A law on a logarithmic scale that is carried far beyond its rows has a mean of any size: one wine of an odd density
        was given 393 kg of sugar a litre.
        """
        return self.p.impute(rows, within=self.seen, seed=seed)

    def __str__(self) -> str:
        rows = "1 row has" if self.blank == 1 else f"{self.blank} rows have"
        blank = f"{rows} no cell that is not missing: filled as any row would be" if self.blank else ""
        return "; ".join(filter(None, (self._chosen, self._behind, *self._failed, blank)))

    @property
    def _chosen(self) -> str:
        if not self.scores:
            return f"filled by {self.p.record.family}"
        best = self.scores[0]
        return f"chose {best.family} by held-out likelihood, {_told(best.mean)} nats a row ({best.kind}) over {len(best.nats)} rows"

    @property
    def _behind(self) -> str:
        others = [score for score in self.scores[1:] if not score.reason]
        gaps = [f"{score.family} by {_told(score.behind(self.scores[0]))} ({score.kind})" for score in others]
        return f"behind it {listed(gaps)}" if gaps else ""

    @property
    def _failed(self) -> tuple[str, ...]:
        return tuple(f"{score.family} failed: {score.reason}" for score in self.scores if score.reason)


@dataclass(frozen=True)
class Imputed:
    """A table without holes.

    Args:
        filled: the rows as the kind of table that came; a list of tables where draws were asked for.
        choice: by what they were filled, and why.
    """

    filled: Any
    choice: Choice

    @property
    def p(self) -> PofX:
        """What was learned from the rows."""
        return self.choice.p

    def __str__(self) -> str:
        return str(self.choice)


def impute(
    data: Any,  # noqa: ANN401
    families: Families = FAMILIES,
    *,
    n: int | None = None,
    schema: Schema = None,
    seed: int = 0,
    budget: float | None = None,
) -> Imputed:
    """Fill the holes of a table: E[x_missing | x_observed] under the likeliest p, within what was seen; the most probable level.

    >>> pofx.impute(frame).filled  # doctest: +SKIP

    Args:
        data: rows with missing cells, as `pofx.fit` takes them.
        families: to choose between, names or name -> options; see `choose`. One is taken as it is.
        n: instead of means, that many tables, each a joint draw of every row's missing cells.
        schema: the domain, or corrections to the inferred one, column -> kind.
        seed: of the parts, of learning and of the draws.
        budget: seconds, shared by all fits.

    Raises:
        PofxError: data or options that can not work.
    """
    rows = read(data)
    choice = choose(rows, families, schema=schema, seed=seed, budget=budget)
    return Imputed(choice.fill(rows, seed=seed) if n is None else choice.p.impute(rows, n, seed=seed), choice)


def choose(
    data: Any,  # noqa: ANN401
    families: Families = FAMILIES,
    *,
    schema: Schema = None,
    seed: int = 0,
    budget: float | None = None,
) -> Choice:
    """The family with the largest mean of log p(observed cells of a row) over rows that it did not learn from, learned from all rows.

    Rows are put in five parts at random, and each is scored by what is learned from the others: all five, or as few as have 500
    rows. No hidden cell is needed: where cells are missing at random, the law that says most of what is seen is the one to say what
    is not. A bound counts as it is, so that it can lose by its looseness, never win. Ties go to the family named first.

    Args:
        data: rows with missing cells.
        families: as of `impute`.
        schema: the domain, or corrections to the inferred one.
        seed: of the parts and of learning.
        budget: seconds: a quarter for the fit that fills, the rest shared by those that are scored; what one leaves goes to the next.

    Cost: a fit of one family; of K families up to 5 K + 1.

    Raises:
        DataError: no cell is missing, or the rows can not be learned from.
        OptionError: there is no family to choose from, or no family of such a name.
        PofxError: no family could be learned; the sentence is the first one's.
    """
    plans = _plans(families)
    source = read(data)
    domain = schema if isinstance(schema, Domain) else infer_domain(source, schema)
    x = encode(source, domain)
    known = _known(x)
    check_training(known, domain)
    parts = list(_parts(known, seed)) if len(plans) > 1 else []
    share = _shares(budget, len(plans) * len(parts))
    rows = partial(decode, domain=domain, container=container_of(source))

    def learn(name: str, part: Tensor) -> PofX:
        return fit(rows(part), plans[name], schema=domain, seed=seed, budget=next(share))

    scores = _ranked([_score(name, parts, learn, rows) for name in plans]) if parts else ()
    seen = known.nan_to_num(math.inf).amin(0), known.nan_to_num(-math.inf).amax(0)
    return Choice(learn(scores[0].family if scores else next(iter(plans)), known), scores, seen, len(x) - len(known))


def _plans(families: Families) -> dict[str, FamilyConfig]:
    """Name -> options."""
    names = (families,) if isinstance(families, str) else families
    plans = names if isinstance(names, Mapping) else {name: {} for name in names}
    if not plans:
        raise OptionError("there is no family to fill missing cells by: name one, or leave families out")
    return {name: family(name).configure(options) for name, options in plans.items()}


def _known(x: Tensor) -> Tensor:
    """The rows that have a cell.

    Raises:
        DataError: no cell is missing.
    """
    missing = x.isnan()
    if not bool(missing.any()):
        raise DataError(f"none of the {x.numel()} cells of {len(x)} rows is missing: there is nothing to fill")
    return x[~missing.all(1)]


def _parts(x: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The others' rows and its own, of so many of the parts as have enough rows."""
    parts = min(PARTS, len(x))
    part = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)) % parts
    for k in range(min(parts, math.ceil(ENOUGH * parts / len(x)))):
        yield x[part != k], x[part == k]


def _shares(budget: float | None, scored: int) -> Iterator[float | None]:
    """Seconds of each fit that is scored, and of the last: its part of what is left when it begins.

    The last has a quarter of the budget to itself. Where nothing is left, a fit has a tenth of an equal part.
    """
    if budget is None:
        yield from [None] * (scored + 1)
        return
    end, least, last = time.monotonic() + budget, budget / (scored + 1) / 10, LAST * budget
    for left in range(scored, 0, -1):
        yield max((end - last - time.monotonic()) / left, least)
    yield max(end - time.monotonic(), least)


def _score(name: str, parts: Sequence[tuple[Tensor, Tensor]], learn: Learn, rows: Callable[[Tensor], Any]) -> Score:
    """Of one family; whatever mistake it meets is its reason."""
    try:
        answers = [learn(name, others).log_prob(rows(own)) for others, own in parts]
    except PofxError as error:
        return Score(name, torch.empty(0), Kind.NONE, str(error))
    kind, *more = [answer.kind for answer in answers]
    for each in more:
        kind = kind.worst(each)
    nats = torch.from_numpy(np.concatenate([np.asarray(answer) for answer in answers]))
    comparable = kind not in {Kind.UNNORMALISED, Kind.NONE} and not bool(nats.isnan().any())
    return Score(name, nats, kind, "" if comparable else f"its log p is {kind}, not a number to compare")


def _ranked(scores: Sequence[Score]) -> tuple[Score, ...]:
    """The best first, those that failed last.

    Raises:
        PofxError: all failed.
    """
    if all(score.reason for score in scores):
        raise DataError(f"no family could be scored on rows left out of learning, name one that needs no score: {scores[0].reason}")
    return tuple(sorted(scores, key=lambda score: math.inf if score.reason else -float(score.mean)))


def _told(answer: Answer) -> str:
    return f"{float(answer):.2f} ± {0.0 if answer.error is None else float(answer.error):.2f}"
