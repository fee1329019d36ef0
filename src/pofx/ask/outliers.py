"""Outliers: which rows, and which of their cells, are not like the ordinary ones.

A density alone does not tell: in many variables the most probable point is itself unlike any row. What tells is the place of
log p(x) among the log-densities of ordinary rows. With r_1 ... r_n those of rows that p did not learn from, a row x of the same kind has

    P(lower <= a) <= a   for   lower = (1 + #{r_i <= log p(x)}) / (1 + n),

whatever p is (a conformal p-value; Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005), and the smaller of both tails,
doubled, also finds rows that are too probable to be typical. The same holds for a cell with log p(x_d | the other cells) in place of
log p(x): each cell is compared with the same cell of ordinary rows, so that cells of different kinds and units can be ranked together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pofx.data import check_training, split
from pofx.domain import Domain, Level, Variable, VariableKind
from pofx.errors import DataError, OptionError, Unavailable
from pofx.models.base import Model
from pofx.types import Generator, Kind, Mask, X

DRAWS = 4000  # from p, where no ordinary rows are named: the least p-value is 1 / 4001
LEAST = 199  # ordinary rows that a pattern of missing cells is compared with, at least: its least p-value is 1 / 200
WORK = 2**20  # log-densities of ordinary rows over all patterns, as long as each pattern has its least
TIE = 1e-9  # relative: equal rows differ by rounding, with the batch they stand in, and must count as equal
HOLDOUT_SHARE = 0.1
ROUNDS = 3  # of leaving out: concentration steps converge in a few
Numbers = NDArray[np.float64]
Ordinary = Float[Tensor, "M D"]
Learn = Callable[[Tensor, Tensor], Model]  # from rows to learn from and rows to watch, (N, D) each, to p


@dataclass(frozen=True)
class Outliers:
    """How far N rows of D cells are from ordinary ones; `table` shows the most surprising.

    Args:
        log_prob: log p(x) of each row, (N,), in nats; of its observed cells, where some are missing.
        expected: the median of the same over the ordinary rows, with the same cells hidden, (N,).
        p_value: P(an ordinary row is as improbable), (N,): small is surprising.
        p_typical: the same for both tails, (N,): small is surprising or too probable to be typical.
        compared: how many ordinary rows each row was compared with, (N,).
        surprise: -log p(x_d | the row's other cells), (N, D), in nats; NaN at a missing cell and where the others alone have
            density 0; None where the family can not marginalise.
        cell_p_value: P(the cell of an ordinary row is as surprising), (N, D), NaN where `surprise` is; or None.
        blame: the position of the cell most to blame, (N,), -1 where there is none; or None.
        x: the rows, encoded, (N, D).
        domain: what x is.
        index: the user's labels of the rows.
        kind: what log_prob is.
        cells_kind: what surprise is.
        how: what the rows were compared with, in words.
    """

    log_prob: Numbers
    expected: Numbers
    p_value: Numbers
    p_typical: Numbers
    compared: NDArray[np.int64]
    surprise: Numbers | None
    cell_p_value: Numbers | None
    blame: NDArray[np.int64] | None
    x: Numbers
    domain: Domain
    index: "pd.Index[Any]"
    kind: Kind
    cells_kind: Kind
    how: str

    def order(self, *, both: bool = False) -> NDArray[np.intp]:
        """Positions of the rows from the most surprising on; equal p-values by how many nats log p lies from the expected.

        Args:
            both: too probable counts as surprising.
        """
        p = self.p_typical if both else self.p_value
        away = _difference(self.expected, self.log_prob)
        return np.lexsort((-np.abs(away) if both else -away, p))

    def table(self, n: int = 10, *, both: bool = False) -> pd.DataFrame:
        """The n most surprising rows under the user's index: log p, p-values, and the cell most to blame with its value and p-value.

        Raises:
            OptionError: n is negative.
        """
        if n < 0:
            raise OptionError(f"the number of rows to show must be 0 or more, got {n}")
        return self._frame(self.order(both=both)[:n])

    def frame(self) -> pd.DataFrame:
        """Every row, in the rows' own order: the columns of `table`, then the p-value of each cell."""
        out = self._frame(np.arange(len(self)))
        if self.cell_p_value is None:
            return out
        names = [f"p_value of {name}" for name in self.domain.names]
        return pd.concat([out, pd.DataFrame(self.cell_p_value, columns=names, index=self.index)], axis=1)

    def _frame(self, rows: NDArray[np.intp]) -> pd.DataFrame:
        columns = {name: getattr(self, name)[rows] for name in ("log_prob", "expected", "p_value", "p_typical")}
        if self.blame is not None and self.cell_p_value is not None:
            blame = self.blame[rows]
            found = blame >= 0
            columns["column"] = np.array([self.domain.names[d] if d >= 0 else None for d in blame], dtype=object)
            columns["value"] = np.array([self._value(i, d) for i, d in zip(rows.tolist(), blame.tolist(), strict=True)], dtype=object)
            columns["cell_p_value"] = np.where(found, self.cell_p_value[rows, blame], np.nan)
        return pd.DataFrame(columns, index=self.index[rows])

    def _value(self, row: int, d: int) -> Level | None:
        return None if d < 0 else in_words(self.domain.variables[d], float(self.x[row, d]))

    def __len__(self) -> int:
        return len(self.log_prob)

    def __repr__(self) -> str:
        n = min(5, len(self))
        few = int((self.p_value <= 0.01).sum())
        size = f"{len(self)} rows × {len(self.domain)} variables"
        head = f"{size}: {few} with p_value <= 0.01, where {0.01 * len(self):.3g} are expected"
        return f"Outliers({head}; log_prob: {self.kind}; {self.how})\n{self.table(n).to_string()}"


def in_words(v: Variable, value: float) -> Level:
    """A value of the domain as the user writes it: a level, a whole number, a real."""
    if v.levels:
        return v.levels[round(value)]
    return round(value) if v.kind is VariableKind.COUNT or "int" in v.dtype else value


def index_of(rows: object) -> "pd.Index[Any] | None":
    """The labels of a pandas frame's rows; None for what has none."""
    return rows.index if isinstance(rows, pd.DataFrame) else None


# -- one model -------------------------------------------------------------------------------------


def judge(
    model: Model,
    x: X,
    reference: Ordinary | None = None,
    *,
    index: "pd.Index[Any] | None" = None,
    drawn_from: Model | None = None,
    cells: bool = True,
    generator: Generator = None,
) -> Outliers:
    """The place of each row, and of each of its cells, among ordinary ones.

    Rows with missing cells are compared with ordinary rows that have the same cells hidden, one pattern of missing cells after the other.
    Ordinary rows with a cell missing that the row has are left out of its comparison.

    Args:
        model: p(x), without a context.
        x: rows (N, D), NaN = missing.
        reference: ordinary rows (M, D) that p did not learn from; None: draws.
        index: labels of the rows; None numbers them.
        drawn_from: whose draws they are; None: p's own.
        cells: also judge cells, where the family can marginalise.
        generator: of draws and of estimates.

    Cost: log-densities of N + M' rows, and with cells D + 1 times that unless the family knows better; M' is M (4000 draws) while
    patterns are few, and never below 199 a pattern. Memory: numbers of the rows, and a batch.

    Raises:
        DataError: there are no rows.
        OptionError: the reference has no rows.
        Unavailable: p is conditional; or a row has missing cells and the family can not marginalise.
    """
    _check(model, x, reference)
    cells = cells and model.missing is not Kind.NONE
    drawn = reference is None
    ordinary = (drawn_from or model).sample(DRAWS, generator=generator) if reference is None else reference
    ordinary = ordinary[torch.randperm(len(ordinary), generator=generator, device=ordinary.device)]
    own, own_cells = _densities(model, x, cells=cells, generator=generator)
    groups = patterns(x)
    most = max(LEAST, WORK // (len(groups) * (len(model.domain) + 2 if cells else 1)))
    out = _blank(own, own_cells)
    for hidden, rows in groups:
        like = _hidden(ordinary, hidden, most)
        ranked = _ranked(own[rows], own_cells[rows] if cells else None, *_densities(model, like, cells=cells, generator=generator))
        for name, values in ranked.items():
            out[name][rows] = values
    label = model.density.worst(model.missing) if bool(x.isnan().any()) else model.density
    return Outliers(
        **out,
        x=_numpy(x),
        domain=model.domain,
        index=pd.RangeIndex(len(x)) if index is None else index,
        kind=label,
        cells_kind=model.density.worst(model.missing) if cells else Kind.NONE,
        how=_how(model, len(ordinary), drawn=drawn, own=drawn_from is None, most=most, alone=bool((out["compared"] == 0).any())),
    )


def patterns(x: X) -> list[tuple[Mask, NDArray[np.intp]]]:
    """Which cells are hidden, and the positions of the rows where just these are: the patterns of missing cells of rows (N, D)."""
    hidden = x.isnan().cpu().numpy()
    if not hidden.any():
        return [(torch.zeros(x.shape[1], dtype=torch.bool, device=x.device), np.arange(len(x)))]
    packed = np.packbits(hidden, axis=1)  # eight cells a byte, and a row of bytes is one key: sorting rows of truths takes far longer
    keys = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    members = np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which))[:-1])
    return [(torch.from_numpy(hidden[i]).to(x.device), rows) for i, rows in zip(first, members, strict=True)]


def _check(model: Model, x: X, reference: Ordinary | None) -> None:
    if model.context is not None:
        raise Unavailable("outliers", model.noun, "it is conditional, p(x | c)", instead="learn the joint law of all columns and ask that")
    if not len(x):
        raise DataError("there are no rows to judge: at least 1 is needed")
    if reference is not None and not len(reference):
        raise OptionError("the reference has no rows: name ordinary rows, or leave it out to compare with draws from p")


def _densities(model: Model, x: Tensor, *, cells: bool, generator: Generator) -> tuple[Numbers, Numbers]:
    """log p(x), (N,), and log p(x_d | the others), (N, D), NaN where nothing is known; (N, 0) without cells."""
    with torch.no_grad():
        whole = _numpy(model.log_prob(x, generator=generator))
        if not cells:
            return whole, np.empty((len(x), 0))
        each = torch.where(x.isnan(), torch.nan, model.leave_one_out(x, generator=generator))
    return whole, _numpy(each)


def _hidden(ordinary: Tensor, hidden: Mask, most: int) -> Tensor:
    """At most so many of the ordinary rows that have what the pattern has, with its cells hidden."""
    whole = ordinary[~(ordinary.isnan() & ~hidden).any(1)][:most]
    return torch.where(hidden, torch.nan, whole)


def _blank(own: Numbers, own_cells: Numbers) -> dict[str, Any]:
    cells = own_cells.shape[1] > 0
    return {name: np.full(len(own), np.nan) for name in ("expected", "p_value", "p_typical")} | {
        "log_prob": own,
        "compared": np.zeros(len(own), dtype=np.int64),
        "surprise": -own_cells if cells else None,
        "cell_p_value": np.full(own_cells.shape, np.nan) if cells else None,
        "blame": np.full(len(own), -1, dtype=np.int64) if cells else None,
    }


def _ranked(own: Numbers, own_cells: Numbers | None, like: Numbers, like_cells: Numbers) -> dict[str, Any]:
    """The place of rows of one pattern, and of their cells, among ordinary rows of that pattern."""
    lower, upper = _tails(own, like)
    both = np.minimum(1.0, 2 * np.minimum(lower, upper))
    found = {"expected": _median(like), "p_value": lower, "p_typical": both, "compared": len(like)}
    if own_cells is None:
        return found
    p = np.full(own_cells.shape, np.nan)
    excess = np.full(own_cells.shape, np.nan)
    for d in np.flatnonzero(~np.isnan(own_cells).all(0)):
        some = ~np.isnan(own_cells[:, d])
        p[some, d] = _tails(own_cells[some, d], like_cells[:, d])[0]
        excess[some, d] = _difference(_median(like_cells[:, d]), own_cells[some, d])
    return found | {"cell_p_value": p, "blame": _blamed(p, excess)}


def _tails(own: Numbers, like: Numbers) -> tuple[Numbers, Numbers]:
    """(1 + #{like <= own}) / (1 + n) and (1 + #{like >= own}) / (1 + n); a tie counts in both."""
    ordered = np.sort(like[~np.isnan(like)])
    slack = TIE * np.maximum(1.0, np.abs(np.nan_to_num(own, posinf=0.0, neginf=0.0)))
    below = np.searchsorted(ordered, own + slack, side="right")
    above = len(ordered) - np.searchsorted(ordered, own - slack, side="left")
    return (1 + below) / (1 + len(ordered)), (1 + above) / (1 + len(ordered))


def _difference(a: Numbers | float, b: Numbers) -> Numbers:
    """a - b, 0 where that is not defined (both infinite, or one unknown)."""
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(a - b, nan=0.0)


def _median(like: Numbers) -> float:
    known = like[~np.isnan(like)]
    # With infinite values beside finite ones the mean of the middle two would warn; the lower of the two will do.
    return float(np.sort(known)[(len(known) - 1) // 2]) if len(known) else np.nan


def _blamed(p: Numbers, excess: Numbers) -> NDArray[np.int64]:
    """The cell of least p-value in each row, (N, D) -> (N,); of equal ones that with most nats above the ordinary; -1 where all are NaN."""
    least = np.where(np.isnan(p), np.inf, p).min(axis=1, keepdims=True)
    ahead = np.where(p == least, excess, -np.inf)
    return np.where(np.isinf(least[:, 0]), -1, ahead.argmax(axis=1))


def _how(model: Model, n: int, *, drawn: bool, own: bool, most: int, alone: bool) -> str:
    whose = "p itself" if own else "the p learned without trimming"
    parts = [f"compared with {n} draws from {whose}" if drawn else f"compared with {n} rows named as ordinary"]
    if most < n:
        parts.append(f"at most {most} of them for each pattern of missing cells")
    if alone:
        parts.append("p_value 1 where no ordinary row has all the cells of a row")
    if drawn and model.sampling is not Kind.EXACT:
        parts.append(f"draws are of kind {model.sampling}")
    if model.missing is Kind.NONE:
        parts.append("no cells: the family can not marginalise")
    return "; ".join(parts)


def _numpy(x: Tensor) -> Numbers:
    return x.detach().cpu().to(torch.float64).numpy()


# -- rows that are learned from --------------------------------------------------------------------


def cross_fitted(
    x: X,
    domain: Domain,
    learn: Learn,
    *,
    folds: int = 5,
    trim: float = 0.0,
    reference: Ordinary | None = None,
    index: "pd.Index[Any] | None" = None,
    cells: bool = True,
    seed: int = 0,
) -> Outliers:
    """Judge the very rows that are learned from: each of k parts under the p learned from the other parts.

    A p that has learned a row finds it less surprising than it is, the more so the freer the family: an outlier would hide by
    having been learned.

    With a share to trim, rows are ranked by the p of the others less their most surprising (`concentrated`), but compared with draws
    from the p of all the others: p-values are those of the ranking's score under p as it would be without trimming. So they are
    sound where that p is, and where outliers widen it they are too large rather than too small.

    Args:
        x: rows (N, D).
        domain: what x is.
        learn: makes p from rows to learn from and rows to watch while learning, a tenth of what is there.
        folds: k, the number of parts, drawn at random.
        trim: the share of the others' rows that is left out.
        reference: ordinary rows that are not among x; None: draws.
        index: labels of the rows.
        cells: also judge cells.
        seed: of the parts, the draws and the estimates.

    Cost: k fits (4 k with trimming) and one `judge`.

    Raises:
        OptionError: k is not between 2 and the number of rows, or the share is not in [0, 1).
        DataError: the other parts alone can not be learned from.
    """
    if not 2 <= folds <= len(x):
        raise OptionError(f"the number of folds lies between 2 and the number of rows, {len(x)}, got {folds}")
    _check_share(trim)
    generator = torch.Generator().manual_seed(seed)
    part = torch.randperm(len(x), generator=generator) % folds
    found, places = [], []
    for k in range(folds):
        others, own = x[part != k], part == k
        check_training(others, domain)
        rows = split(others, HOLDOUT_SHARE, generator)
        plain = learn(*rows).cpu().eval()
        model = concentrated(plain, learn, *rows, share=trim, seed=seed) if trim else plain
        source = plain if trim else None
        found.append(judge(model, x[own], reference, drawn_from=source, cells=cells, generator=generator))
        places.append(own.nonzero().flatten().numpy())
    whole = _joined(found, np.argsort(np.concatenate(places)))
    less = f", less the {trim:.0%} of them that are most surprising" if trim else ""
    how = f"each of {folds} parts under the p learned from the others{less}; {whole.how}"
    return replace(whole, index=whole.index if index is None else index, how=how)


def concentrated(
    model: Model, learn: Learn, train: Tensor, holdout: Tensor, *, share: float = 0.25, rounds: int = ROUNDS, seed: int = 0
) -> Model:
    """Leave out the share of rows that p finds most surprising, learn again, and so on: argmax_{p, rows kept} of the sum of log p.

    The trimmed likelihood; for a Gaussian, the determinant of least covariance (Rousseeuw & Van Driessen, A Fast Algorithm for the Minimum
    Covariance Determinant Estimator, Technometrics 41, 1999, whose share of a quarter this is). As long as fewer rows than the share
    are outliers, they do not bend a family that can not give them a mode of their own. The ranking gains by it; draws of such a p know
    the middle of the ordinary rows alone, so p-values are to be had against others.

    Args:
        model: the p of all rows.
        learn: makes p from rows to learn from and rows to watch.
        train: rows to learn from.
        holdout: rows to watch.
        share: of the rows, in [0, 1).
        rounds: how often rows are left out anew.
        seed: of draws.

    Cost: rounds times that of learn. Rounds stop early where the rows kept can not be learned from (a column of theirs is constant).

    Raises:
        OptionError: the share is not in [0, 1), or there is no round.
    """
    _check_share(share, rounds)
    for _ in range(rounds):
        kept = [_likely(model, part, share, seed) for part in (train, holdout)]
        try:
            check_training(kept[0], model.domain)
        except DataError:  # nothing of a column is left to learn: the p before is the best there is
            return model
        model = learn(*kept).cpu().eval()
    return model


def _check_share(share: float, rounds: int = ROUNDS) -> None:
    if not 0.0 <= share < 1.0 or rounds < 1:
        raise OptionError(f"the share of rows to leave out lies in [0, 1) and rounds is 1 or more, got {share} and {rounds}")


def _likely(model: Model, x: Tensor, share: float, seed: int) -> Tensor:
    """All but the share of rows that p finds most surprising, in order; at least one."""
    generator = torch.Generator().manual_seed(seed)
    if bool(x.isnan().any()):  # log p of rows with other cells missing is on another scale: only their places compare
        order = judge(model, x, cells=False, generator=generator).order()
    else:
        order = np.argsort(_densities(model, x, cells=False, generator=generator)[0], kind="stable")
    return x[np.sort(order[min(int(share * len(x)), len(x) - 1) :])]


def _joined(parts: Sequence[Outliers], order: NDArray[np.intp]) -> Outliers:
    """Several parts as one, its rows in that order."""
    first = parts[0]
    stacked: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts])[order] for name in _arrays(first)}
    kind, cells_kind = first.kind, first.cells_kind
    for part in parts[1:]:
        kind, cells_kind = kind.worst(part.kind), cells_kind.worst(part.cells_kind)
    how = " | ".join(dict.fromkeys(part.how for part in parts))
    return replace(first, **stacked, index=pd.RangeIndex(len(order)), kind=kind, cells_kind=cells_kind, how=how)


def _arrays(result: Outliers) -> Iterator[str]:
    return (field.name for field in fields(result) if isinstance(getattr(result, field.name), np.ndarray))
