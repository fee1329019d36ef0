"""PofX: a learned p(x), asked in the user's columns and units.

A question that returns a distribution returns a PofX again, so questions compose:
``p.conditional(age=30).marginal("income").sample(100)``. Every number is an `Answer` that says
what it is; a question that p can not answer raises `Unavailable`, which names who can.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pofx.ask import files
from pofx.ask.accuracy import log_prob_within
from pofx.ask.evidence import event, one_row
from pofx.ask.generic import (
    Acquisition,
    acquire,
    closed,
    conditional,
    entropy,
    expected_product,
    mode,
    mutual_information,
    posterior,
    probability,
)
from pofx.ask.origin import Origin
from pofx.ask.outliers import Outliers, index_of, judge
from pofx.ask.questions import kinds
from pofx.ask.sampled import Dropped, given, known
from pofx.data import Container, container_of, decode, encode, like, read
from pofx.data.encoding import count, encode_in_pieces, together
from pofx.domain import Domain, Variable
from pofx.errors import DataError, FileError, OptionError, Unavailable
from pofx.events import Event
from pofx.learn import Record
from pofx.models import composed
from pofx.models.base import Diagnosis, Model
from pofx.models.registry import family as registered
from pofx.types import Answer, Kind, X

AT_ONCE = 2**16  # rows of a table that are filled at a time: a multiple of what models take, so that no draw depends on it
HOW = {
    Kind.EXACT: "",
    Kind.BOUND: "a lower bound on log p, averaged over its draws",
    Kind.ESTIMATE: "a Monte Carlo estimate",
    Kind.UNNORMALISED: "up to an unknown constant",
}


class PofX:
    """p(x | c), learned: model, the user's table, and the record of learning.

    Args:
        model: p on the user's domain, in tensors and nats.
        container: what rows come back as (a pandas frame, an array, ...).
        seed: of the draws that questions make; `sample` moves on from it, every other question starts at it.
        origin: how it was learned; None for a p that a question made.
        approximation: how a question that is not exact made this p, with its effective sample size.
    """

    def __init__(self, model: Model, container: Container, *, seed: int = 0, origin: Origin | None = None, approximation: str = "") -> None:
        self.model = model.eval()
        self.container = container
        self.seed = seed
        self.origin = origin
        self.approximation = approximation
        self._stream = self._generator(seed)

    @property
    def domain(self) -> Domain:
        """What x is."""
        return self.model.domain

    @property
    def record(self) -> Record:
        """How p was learned: options, history, why learning stopped.

        Raises:
            OptionError: p came from a question, not from `fit`.
        """
        return self._learned("record").record

    @property
    def questions(self) -> dict[str, Kind]:
        """Each question and what its answer is; `Kind.NONE` where p refuses it."""
        return kinds(self.model)

    # -- numbers -----------------------------------------------------------------------------------

    def log_prob(self, rows: Any, given: Any = None, *, accuracy: float | None = None) -> Answer:  # noqa: ANN401
        """log p of each row in nats, in the user's units; missing cells are marginalised where the family can.

        Args:
            rows: a frame, array, file or list of rows; with `given`, the conditions may stand in its columns.
            given: the conditions, one row each, when they do not.
            accuracy: standard error in nats to bring each row to, where it is a bound or an estimate by draws: as many as it takes, up to
                1024 times as many as usual, which also tightens a bound.
        """
        x, c = self._rows(rows, given)
        with torch.no_grad():
            ask = self.model.log_prob_and_error if accuracy is None else partial(log_prob_within, self.model, accuracy=accuracy)
            value, error = ask(x, c, generator=self._generator())
        kind = self.model.missing if bool(x.isnan().any()) else self.model.density
        return Answer(_numpy(value), kind, _numpy(error) if bool((error > 0).any()) else None, HOW.get(kind, ""))

    def score(self, rows: Any, given: Any = None, *, accuracy: float | None = None) -> Answer:  # noqa: ANN401
        """The mean of log p over the rows, in nats a row, with its standard error; `accuracy` is each row's, as in `log_prob`."""
        each = self.log_prob(rows, given, accuracy=accuracy)
        value = np.asarray(each)
        error = value.std(ddof=1) / np.sqrt(len(value)) if len(value) > 1 else np.nan
        return Answer(np.asarray(value.mean()), each.kind, np.asarray(error), each.how)

    def held_out(self, x: X, c: Tensor | None) -> float:
        """The mean of log p over encoded rows, in nats a row."""
        with torch.no_grad():
            value = self.model.log_prob(self._on_device(x), None if c is None else self._on_device(c), generator=self._generator())
        return float(value.mean())

    def outliers(self, rows: Any, reference: Any = None, *, cells: bool = True, seed: int | None = None) -> Outliers:  # noqa: ANN401
        """The place of log p of each row, and of log p(x_d | the row's other cells), among those of ordinary rows, as p-values.

        Args:
            rows: the rows to judge, missing cells allowed where the family can marginalise. Rows that p learned from look more
                ordinary than they are: `pofx.outliers` judges those.
            reference: ordinary rows that p did not learn from; 4000 draws from p when left out.
            cells: also judge each cell; a family that can not marginalise judges rows alone.
            seed: of the draws.

        Raises:
            Unavailable: p is conditional; or a row has missing cells and the family can not marginalise.
        """
        rows = read(rows)
        x, known = self._encode(rows, self.domain), None if reference is None else self._encode(reference, self.domain)
        generator = self._generator(seed)
        return judge(self.model, x, known, index=index_of(rows), cells=cells, generator=generator)

    def expectation(
        self,
        f: Callable[[Any], Any] | Mapping[str, Callable[[Any], float]],
        n: int = 10_000,
        *,
        given: Any = None,  # noqa: ANN401
        seed: int | None = None,
    ) -> Answer:
        """E[f(x)], estimated by the mean over n draws, with its standard error; or E[f(x_a) g(x_b) ...], exact for finite columns.

        Args:
            f: from rows, as `sample` gives them, to one number (or one row of numbers) a row. Or column -> function of one value of
                it (a level as it is in the table, or a number) to a number: then the expectation of their product, in closed form
                where the columns have finitely many values and the family sums over them.
            n: how many draws.
            given: one row of conditions, for a p(x | c).
            seed: of the draws.
        """
        if isinstance(f, Mapping):
            return self._expected_product(f, n, self._generator(seed))
        values = np.asarray(f(self.sample(n, given=given, seed=self.seed if seed is None else seed)), dtype=np.float64)
        if values.shape[:1] != (n,):
            raise OptionError(f"f gives one number (or row of numbers) for each of {n} rows, got shape {values.shape}")
        bad = int(np.isnan(values).reshape(n, -1).any(1).sum())
        if bad:
            raise DataError(f"f is NaN at {bad} of {n} rows drawn: it must be a number wherever p is positive")
        error = values.std(0, ddof=1) / np.sqrt(n)
        return Answer(np.asarray(values.mean(0)), Kind.ESTIMATE, np.asarray(error), f"the mean over {n} draws")

    def probability(
        self,
        what: Mapping[str, Any] | Callable[[Any], Any],
        n: int = 10_000,
        *,
        seed: int | None = None,
    ) -> Answer:
        """P(what), with its standard error; exact where the family sums it out.

        Args:
            what: column -> value, set of values, or `pofx.Between`; or a function of rows, as `sample` gives them, to truths.
            n: draws, where it is estimated.
            seed: of the draws.
        """
        generator = self._generator(seed)
        if not callable(what):
            return probability(self.model, event(self.domain, what), draws=n, generator=generator)

        def holds(x: Tensor) -> Tensor:
            return torch.from_numpy(np.array(what(decode(x.cpu(), self.domain, self.container)), dtype=bool))

        return probability(self.model, holds, draws=n, generator=generator)

    def classify(
        self,
        rows: Any,  # noqa: ANN401
        column: str | None = None,
        given: Any = None,  # noqa: ANN401
        *,
        prior: Mapping[Any, float] | None = None,
    ) -> Answer:
        """P(column = level | the row's other cells), (N, levels) in the order of the domain's levels; the column's own cells are not read.

        p(level | rest) is p(level, rest) over its sum over levels: a log_prob for each level, of its kind. A model that learned a
        classifier for the column (`m2`, for its label) answers by that. Where the column is a condition of p(x | c), it is Bayes' rule
        with p(x | c) and the prior: the frequencies of the training rows, or those given.

        Args:
            rows: the rows; the column may be left out.
            column: of levels; None: the only one there is, among the conditions where p has some.
            given: the other conditions, one row each, when they do not stand in the rows.
            prior: level -> probability of a condition, in any unit; levels left out have none.

        Raises:
            OptionError: the column has no levels, or there are several and none was named.
            Unavailable: a row has missing cells and the family can not marginalise.
        """
        name = column or self.only_levels()
        if self.model.context is not None and name in self.model.context.names:
            return self._by_bayes(rows, name, given, prior)
        if prior is not None:
            raise OptionError(f"a prior is for a condition, but {name!r} is a column that p knows the law of")
        d = self.domain.index(name)
        x = self._on_device(encode(read(rows), self.domain, partial=True))
        each = self.model.classify(x, d, generator=self._generator())
        return self._classes(each, x[:, [i for i in range(len(self.domain)) if i != d]], self.domain.variables[d])

    def only_levels(self) -> str:
        """The one column that can be classified: among the conditions where p has some.

        Raises:
            OptionError: there is none, or more than one.
        """
        names = [v.name for v in (self.model.context or self.domain).variables if v.levels]
        if len(names) != 1:
            raise OptionError(f"which column is classified? There are {len(names)} of levels: {', '.join(names[:6]) or 'none'}")
        return names[0]

    def mutual_information(self, a: str | Sequence[str], b: str | Sequence[str], *, seed: int | None = None) -> Answer:
        """I(A; B) of two groups of columns in nats, with its standard error.

        Raises:
            OptionError: a group is empty, or they share a column.
            Unavailable: the density is a bound or has no constant.
        """
        groups = ([self.domain.index(name) for name in as_columns(names)] for names in (a, b))
        return mutual_information(self.model, *groups, generator=self._generator(seed))

    def acquire(
        self,
        row: Any,  # noqa: ANN401
        target: str | Sequence[str],
        budget: int = 1,
        *,
        draws: int | None = None,
        seed: int | None = None,
    ) -> Acquisition:
        """What to measure next: I(target; x_d | the row's known cells) in nats of each column that is not known, largest first.

        Args:
            row: what is known: a mapping column -> value, or one row of a table; a cell that is missing or absent is not known.
            target: the column or columns to learn about.
            budget: how many to measure: above 1, the set that greedy choice finds, each column's gain on top of those before it.
            draws: of the unknown columns, where tables are too large to be summed; None: 4000.
            seed: of those draws.

        Raises:
            OptionError: a target that is known or unknown to p, nothing left to measure, or a budget beyond what is left.
            Unavailable: the density is a bound or has no constant, or the known cells have probability 0.
        """
        generator = self._generator(seed)
        known, columns = self._on_device(one_row(self.domain, row)), [self.domain.index(name) for name in as_columns(target)]
        return acquire(self.model, known, columns, budget, draws=draws, generator=generator)

    def entropy(self, n: int = 10_000, *, seed: int | None = None) -> Answer:
        """-E[log p(x)] in nats: in closed form where the family has one, else over n draws, with its standard error."""
        return entropy(self.model, draws=n, generator=self._generator(seed))

    def mean(self) -> Answer:
        """E[x] of every variable (of codes, where a variable has levels), exactly.

        Raises:
            Unavailable: the family has no closed form; `expectation` estimates it.
        """
        return Answer(_numpy(self.model.mean()), self.model.answers("mean"))

    # -- rows --------------------------------------------------------------------------------------

    def sample(self, n: int = 1, *, given: Any = None, seed: int | None = None) -> Any:  # noqa: ANN401
        """Draw n rows (n for each row of `given`, one condition after another), as the kind of table p was learned from.

        Two calls give different rows; equal seeds give equal rows.
        """
        generator = self._stream if seed is None else self._generator(seed)
        c = None if given is None else self._conditions(given)
        x = self.model.sample(n, c, generator=generator)
        rows = x if c is None else x.transpose(0, 1).reshape(-1, len(self.domain))
        return decode(rows.cpu(), self.domain, self.container)

    def impute(self, rows: Any, n: int | None = None, *, within: tuple[Tensor, Tensor] | None = None, seed: int | None = None) -> Any:  # noqa: ANN401
        """Fill missing cells: the conditional mean, the most probable level of ordinal, categorical and binary columns.

        Args:
            rows: rows with missing cells.
            n: instead, that many completions, each a joint draw of every row's missing cells.
            within: the least and the greatest mean of each column, (D,) and (D,): one beyond is put at that end.
            seed: of the draws.

        Returns:
            A table of the kind that came; with `n`, a list of n tables. Beside rows and tables: memory for 65,536 rows at a time.
        """
        rows = read(rows)
        generator = self._generator(seed)
        if n is None:
            return self._filled(rows, self.model.impute if within is None else clamped(self.model.impute, *within), generator)
        return [self._filled(rows, self.model.complete, generator) for _ in range(n)]

    def mode(self, evidence: Mapping[str, Any] | None = None, /, **named: Any) -> Answer:  # noqa: ANN401
        """A most probable row, the evidence kept; the label says how far to trust the maximum."""
        facts = event(self.domain, {**(evidence or {}), **named})
        seen = facts.as_point()
        if seen is not None and self.model.answers("mode", facts.seen) is not Kind.NONE:
            x = self.model.mode(self._on_device(seen))
            how, kind = f"log p = {float(self._log_prob(x)):.4f} nats there", self.model.answers("mode", facts.seen)
        else:
            found = mode(self.model, facts, generator=self._generator())
            x, kind = found.x, found.kind
            how = found.how if found.error else f"log p = {found.log_p:.4f} nats there; {found.how}"
        return Answer(decode(x[None].cpu(), self.domain, self.container), kind, None, how)

    def cluster(self, rows: Any, given: Any = None, *, seed: int | None = None) -> Answer:  # noqa: ANN401
        """p(k | x): from which of the K components of a mixture each row is, (N, K); `np.argmax(answer, 1)` is the cluster.

        The components of a mixture are those it learned, of a `vae` with prior=mixture or prior=vamp those of its prior. Missing
        cells are integrated out.

        Args:
            rows: the rows.
            given: their conditions, for a p(x | c), when they do not stand in the rows.
            seed: of the draws, where it is an estimate.

        Raises:
            Unavailable: p is no mixture.
        """
        value = self.model.cluster(*self._rows(rows, given), generator=self._generator(seed))
        kind = self.model.answers("cluster")
        return Answer(_numpy(value), kind, None, HOW.get(kind, ""))

    def diagnose(self, rows: Any, given: Any = None, *, seed: int | None = None) -> Diagnosis:  # noqa: ANN401
        """Whether the latents are used: active units, KL of levels and units, prior against codes, evenness of log_prob's weights.

        Of a diffusion model: what each noise level costs of the bound, and draws on their way from noise.

        `print` shows the table; `warnings` are sentences. Rows that p did not learn from tell most; some hundreds are enough.

        Args:
            rows: the rows, missing cells allowed.
            given: their conditions, for a p(x | c), when they do not stand in the rows.
            seed: of the draws.

        Raises:
            Unavailable: p learns no latents and draws from no noise.
            DataError: there are no rows.
        """
        return self.model.diagnose(*self._rows(rows, given), generator=self._generator(seed))

    def encode(self, rows: Any, given: Any = None) -> np.ndarray:  # noqa: ANN401
        """The code z of each row, shape (N, L)."""
        return _numpy(self.model.encode(*self._rows(rows, given)))

    def decode(self, z: Any, given: Any = None) -> Any:  # noqa: ANN401
        """The row of each code, under the conditions given.

        A code of p(x | c) holds what the condition does not say: `p.decode(p.encode(rows, given=a), given=b)` keeps the style of the
        rows and changes their class from a to b.
        """
        c = None if given is None else self._conditions(given)
        codes = self._on_device(torch.as_tensor(np.asarray(z), dtype=torch.float64))
        return decode(self.model.decode(codes, c).cpu(), self.domain, self.container)

    def interpolate(self, start: Any, end: Any, n: int = 8, *, given: Any = None) -> Any:  # noqa: ANN401
        """n rows whose codes lie evenly on the straight line between those of two rows, which are the first and the last.

        Args:
            start: a row.
            end: another one.
            n: how many, 2 or more.
            given: the condition of a p(x | c), one row, of start, end and all between.

        Raises:
            OptionError: n is under 2.
            DataError: start or end is not one row.
            Unavailable: p has no codes, or they are not decoded.
        """
        if n < 2:
            raise OptionError(f"a line between two rows has 2 or more, got {n}")
        first, last = (self.encode(row, given) for row in (start, end))
        if not len(first) == len(last) == 1:
            raise DataError(f"a line goes from one row to another, got {len(first)} and {len(last)}")
        return self.decode(np.linspace(first[0], last[0], n), given)

    # -- distributions -----------------------------------------------------------------------------

    def marginal(self, *names: str) -> "PofX":
        """p of some of the columns, in the order given.

        Where the family has no closed form: samples with the other columns dropped, and log_prob as an estimate with its error;
        `approximation` says so.
        """
        keep = [self.domain.index(name) for name in names]
        try:
            return self._derived(self.model.marginal(keep))
        except Unavailable:
            if self.model.context is not None:
                raise
            return self._derived(Dropped(self.model, keep))

    def conditional(
        self,
        evidence: Mapping[str, Any] | None = None,
        /,
        *,
        method: str | None = None,
        draws: int = 2000,
        seed: int | None = None,
        **named: Any,  # noqa: ANN401
    ) -> "PofX":
        """p of the other columns, given what is known of some: a mapping, or keywords where names allow.

        A column may be known by its value, by a set (or list) of values or levels, or by an interval, `pofx.Between(lower, upper)`;
        the last two stay columns of the answer. In closed form where the family has one; else by draws, whose method and
        effective size `approximation` tells.

        Args:
            evidence: column -> what is known of it.
            method: exact, rejection, sir, hmc, gibbs, smc, twisted or abc; None: the first that is good (see
                `pofx.ask.generic.conditional`).
            draws: how many, where the answer is draws.
            seed: of those draws.
            **named: the same as evidence.

        Raises:
            Unavailable: no method can, or the evidence has probability 0.
        """
        facts = event(self.domain, {**(evidence or {}), **named})
        if method is None:
            try:
                return self._derived(closed(self.model, facts))
            except Unavailable as refused:
                if self.model.context is not None or self._answers(facts):
                    raise refused
        generator = self._generator(seed)
        return self._derived(given(self.model, facts, conditional(self.model, facts, method=method, draws=draws, generator=generator)))

    def posterior(
        self, log_likelihood: Callable[[Tensor], Tensor], *, method: str | None = None, draws: int = 4000, seed: int | None = None
    ) -> "PofX":
        """p(x) L(x) / Z: this p as the prior of a Bayes update with a likelihood of the user's, by draws.

        Args:
            log_likelihood: rows (N, D), a tensor with levels as codes and columns in the domain's order, to log L, (N,), in nats. Where
                torch can differentiate it, moves follow the gradient.
            method: None: tempered particles; "twisted": those that a diffusion model leads down from noise, where log L has a gradient.
            draws: how many.
            seed: of those draws.

        Raises:
            DataError: the likelihood is NaN or inf at a draw, or 0 at all of them.
        """
        generator = self._generator(seed)
        return self._derived(known(self.domain, posterior(self.model, log_likelihood, method=method, draws=draws, generator=generator)))

    def using(self, **options: Any) -> "PofX":  # noqa: ANN401
        """The same p, asked in another way: with other options of its family, as far as they leave what was learned as it is.

        >>> p.using(likelihood="ode").log_prob(rows), p.using(solver="heun", steps=50).sample(9)  # doctest: +SKIP

        Args:
            **options: the family's own, as `pofx families NAME` lists them; those of learning have no effect any more.

        Raises:
            OptionError: an option is unknown or out of range, or stands for other tensors than those that were learned.
        """
        origin = self._learned("options")
        config = registered(origin.family).configure({**origin.config.model_dump(mode="json"), **options})
        model = composed.blank(config, self.domain, self.model.context, origin.incomplete)
        try:
            model.load_tensors(self.model.state_dict())
        except FileError as error:
            raise OptionError(f"{', '.join(options)} decides what is learned, so that p has to be fitted anew: {error}") from None
        return PofX(model.to(self._device), self.container, seed=self.seed, origin=replace(origin, config=config))

    # -- files -------------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """Write p to one safetensors file, atomically; `pofx.open` reads it back to the bit."""
        origin = self._learned("file; save the p that fit returned, and ask again after opening it")
        files.save(path, self.model, origin, self.container, self.seed)

    def __repr__(self) -> str:
        who = self.origin.family if self.origin else self.model.noun
        columns = ", ".join(self.domain.names[:6]) + (", ..." if len(self.domain) > 6 else "")
        how = f"; {self.approximation}" if self.approximation else ""
        return f"PofX({who} over {len(self.domain)} variables: {columns}; log_prob: {self.model.density}{how})"

    # -- within ------------------------------------------------------------------------------------

    def _filled(self, rows: Any, fill: Callable[..., Tensor], generator: torch.Generator) -> Any:  # noqa: ANN401
        """The rows, filled piece by piece."""
        container = container_of(rows)
        pieces = encode_in_pieces(rows, self.domain, AT_ONCE)
        filled = (decode(fill(self._on_device(x), generator=generator).cpu(), self.domain, container) for x in pieces)
        return like(rows, together(filled, count(rows)))

    def _derived(self, model: Model) -> "PofX":
        how = "; ".join(dict.fromkeys(filter(None, (self.approximation, getattr(model, "approximation", "")))))
        return PofX(model, self.container, seed=self.seed, approximation=how)

    def _by_bayes(self, rows: Any, name: str, given: Any, prior: Mapping[Any, float] | None) -> Answer:  # noqa: ANN401
        """p(c_j | x, the other c), p(x | c) p(c_j) over its sum."""
        context = self._context()
        j = context.index(name)
        variable = context.variables[j]
        x = self._encode(rows, self.domain)
        c = (
            x.new_zeros(len(x), 1)
            if len(context) == 1
            else self._on_device(encode(read(rows if given is None else given), context, partial=True))
        )
        log_joint = self._log_p(variable, j, prior).to(x).expand(len(x), -1).clone()
        for code in log_joint[0].isfinite().nonzero()[:, 0].tolist():
            c[:, j] = code
            self._check_conditions(c)
            log_joint[:, code] += self._log_prob(x, c).to(x)
        return self._classes(log_joint.softmax(1), x, variable)

    def _log_p(self, variable: Variable, j: int, prior: Mapping[Any, float] | None) -> Tensor:
        """log p(c_j) of each level."""
        if not variable.levels:
            raise OptionError(f"condition {variable.name!r} is {variable.kind}: only a column of levels is classified")
        if prior is None:
            return self.model.frequencies(j).log()
        for level, weight in prior.items():
            if level not in variable.levels or not 0 <= weight < float("inf"):
                raise OptionError(f"a prior of {variable.name!r} maps its levels to numbers from 0 up, got {level!r}: {weight!r}")
        p = torch.tensor([float(prior.get(level, 0.0)) for level in variable.levels], dtype=torch.float64)
        if not bool(p.any()):
            raise OptionError(f"a prior of {variable.name!r} gives some level a positive number")
        return (p / p.sum()).log()

    def _classes(self, p: Tensor, seen: Tensor, variable: Variable) -> Answer:
        label = self.model.missing if bool(seen.isnan().any()) else self.model.density
        how = f"levels in order: {', '.join(map(str, variable.levels))}"
        return Answer(_numpy(p), label if label is Kind.EXACT else Kind.ESTIMATE, None, how)

    def _check_conditions(self, c: Tensor) -> None:
        """Whether something was learned under each condition.

        Raises:
            DataError: a condition is missing, or its level was in no training row.
        """
        for j, variable in enumerate(self._context().variables):
            if variable.levels:
                codes = c[..., j].flatten()
                unseen = codes[codes.isfinite()].long().unique()
                never = [code for code in unseen.tolist() if not self.model.frequencies(j)[code] > 0]
                if never:
                    level = variable.levels[never[0]]
                    raise DataError(f"condition {variable.name!r} = {level!r} was in no training row: what x is there, p never learned")

    def _conditions(self, given: Any) -> Tensor:  # noqa: ANN401
        c = self._encode(given, self._context())
        self._check_conditions(c)
        return c

    def _answers(self, facts: Event) -> bool:
        """Whether the family has a conditional of its own for such evidence."""
        open_ = not facts.open or self.model.answers("restrict", sorted(facts.open)) is not Kind.NONE
        return open_ and (not facts.seen or self.model.answers("conditional", facts.seen) is not Kind.NONE)

    def _expected_product(self, f: Mapping[str, Callable[[Any], float]], n: int, generator: torch.Generator) -> Answer:
        def of_codes(name: str, each: Callable[[Any], float]) -> Callable[[Tensor], Tensor]:
            levels = self.domain[name].levels
            words = (lambda v: levels[int(v)]) if levels else float
            return lambda x: torch.tensor([float(each(words(v))) for v in x.tolist()], dtype=torch.float64)

        columns = {self.domain.index(name): of_codes(name, each) for name, each in f.items()}
        return expected_product(self.model, columns, draws=n, generator=generator)

    def _learned(self, what: str) -> Origin:
        if self.origin is None:
            raise OptionError(f"this p came from a question, not from fit: it has no {what}")
        return self.origin

    def _context(self) -> Domain:
        if self.model.context is None:
            raise OptionError("p was learned without given columns: leave `given` out")
        return self.model.context

    def _rows(self, rows: Any, given: Any) -> tuple[X, Tensor | None]:  # noqa: ANN401
        if self.model.context is None or given is not None:
            return self._encode(rows, self.domain), None if given is None else self._conditions(given)
        table = self._learned("given columns").table
        whole = self._encode(rows, table)
        x, c = (whole[:, [table.index(name) for name in part.names]] for part in (self.domain, self.model.context))
        self._check_conditions(c)
        return x, c

    def _encode(self, rows: Any, domain: Domain) -> X:  # noqa: ANN401
        return self._on_device(encode(read(rows), domain))

    def _log_prob(self, x: X, c: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            return self.model.log_prob(x, c, generator=self._generator())

    @property
    def _device(self) -> torch.device:
        tensors = (*self.model.parameters(), *self.model.buffers())
        return tensors[0].device if tensors else torch.device("cpu")

    def _on_device(self, x: Tensor) -> Tensor:
        return x.to(self._device)

    def _generator(self, seed: int | None = None) -> torch.Generator:
        return torch.Generator(self._device).manual_seed(self.seed if seed is None else seed)


def as_columns(names: str | Sequence[str] | None) -> tuple[str, ...]:
    """One name, several or none, as a tuple."""
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)


def clamped(fill: Callable[..., Tensor], lower: Tensor, upper: Tensor) -> Callable[..., Tensor]:
    """The same, every entry between its ends."""
    return lambda x, generator: fill(x, generator=generator).clamp(lower.to(x), upper.to(x))


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().to(torch.float64).numpy()
