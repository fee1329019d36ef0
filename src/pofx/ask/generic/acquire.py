"""What to measure next: how much each unobserved variable of a row is expected to tell about a target."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor

from pofx.ask.generic.conditional import conditional
from pofx.ask.generic.draws import Draws
from pofx.ask.generic.information import DRAWS, FEW, log_p
from pofx.ask.generic.resampling import impossible
from pofx.errors import OptionError, Unavailable
from pofx.events import Event
from pofx.models.base import Model
from pofx.types import Generator, Kind, Point

CELLS = 4096  # of a table of target and variables, up to which it is summed
FEW_VALUES = 16  # of the target, up to which it is summed at each draw of the others

Chosen = tuple[int, ...]


@dataclass(frozen=True)
class Gain:
    """What one variable tells.

    Args:
        variable: its name.
        gain: I(target; x_d | what is known), in nats; in a set, known are also the variables before it.
        error: its standard error, 0 where it is exact.
        kind: EXACT or ESTIMATE.
        total: I(target; x_d and the variables of the set before it | observed), in nats; of a variable alone, its gain.
        total_error: its standard error.
    """

    variable: str
    gain: float
    error: float
    kind: Kind
    total: float
    total_error: float


@dataclass(frozen=True)
class Acquisition:
    """What to measure next, best first; it prints as a table.

    Args:
        target: names of the variables to learn about.
        gains: every unobserved variable alone, or the variables of one set in the order in which to measure them.
        together: whether they are one set.
        how: the method, in one sentence.
    """

    target: tuple[str, ...]
    gains: tuple[Gain, ...]
    together: bool
    how: str

    @property
    def variables(self) -> list[str]:
        """Names, in order."""
        return [one.variable for one in self.gains]

    def frame(self) -> pd.DataFrame:
        """One row a variable: gain and its error in nats, kind; of a set, also the total so far and its error."""
        columns = ["gain", "error", "kind", *(["total", "total_error"] if self.together else [])]
        rows = [[str(getattr(one, name)) if name == "kind" else getattr(one, name) for name in columns] for one in self.gains]
        return pd.DataFrame(rows, columns=columns, index=pd.Index(self.variables, name="variable"))

    def __iter__(self) -> Iterator[Gain]:
        return iter(self.gains)

    def __len__(self) -> int:
        return len(self.gains)

    def __repr__(self) -> str:
        what = "a set, each on top of those above it" if self.together else "each alone"
        head = f"nats about {', '.join(self.target)} expected of measuring, {what}"
        return f"{head} ({self.how})\n{self.frame().to_string(float_format='{:.4g}'.format)}"


def acquire(
    model: Model, row: Point, target: Sequence[int], budget: int = 1, *, draws: int | None = None, generator: Generator
) -> Acquisition:
    """I(t; x_d | x_o) = E[log p(t | x_d, x_o) - log p(t | x_o)] of each unobserved d, under p(t, x_d | x_o), largest first, in nats.

    With a budget of k > 1 a set S instead: k times the variable of largest I(t; x_d | x_S, x_o) joins it. The greedy set gains at least
    1 - 1/e = 63 % of the best where measurements are independent given the target, and may miss variables that tell only together.

    Where target and variables have few values (4096 cells together) and the model sums out the others, the table is summed: EXACT. Else
    an ESTIMATE, the mean over draws of p(. | x_o) (4000, the same for all variables; a target of up to 16 values is summed at each),
    unbiased where the log-densities are exact; else each of those is an importance estimate (200 draws), whose error is part of the
    standard error. A set is chosen by some draws and measured by others, so that its numbers are not the largest by luck.

    A model with latents z and a bound for a density (a VAE) is asked as the mixture sum_k w_k p(. | z_k) over draws of p(z | x_o), whose
    marginals are summed in closed form: an ESTIMATE, whose standard error is that of the draws of x, not of z.

    The aim is that of Ma et al., "EDDI: Efficient Dynamic Discovery of High-Value Information with Partial VAE", ICML 2019,
    arXiv:1809.11142, who estimate it for a VAE; the bound of greedy choice: Krause and Guestrin, "Near-optimal nonmyopic value of
    information in graphical models", UAI 2005.

    Cost: two log-densities a draw and candidate (one for each of few values of the target), k times.

    Args:
        model: p(x), with an exact density, or one with latents.
        row: the values of observed variables, NaN elsewhere.
        target: the variables to learn about, all unobserved.
        budget: k, how many to measure.
        draws: of p(. | x_o), where they are needed; None: as said.
        generator: of the draws.

    Raises:
        OptionError: no target, a target that is observed or named twice, nothing unobserved beside it, a budget under 1 or beyond what
            is unobserved, or under 2 draws.
        Unavailable: the density is a bound or has no constant (a difference of bounds bounds nothing) and the model has no latents that
            stand for it, it is a p(x | c), or the observed values have probability 0.
    """
    candidates = _checked(model, row, target, budget, draws)
    if model.density is not Kind.EXACT:
        model, at = _stand_in(model, row)
        row, target, candidates = torch.full((len(at),), torch.nan).to(row), [at[d] for d in target], [at[d] for d in candidates]
    asked = _Question(model, row, tuple(target), draws, generator)
    if budget == 1:
        found = sorted((asked.step((), d) for d in candidates), key=lambda one: -one.gain)
        return Acquisition(_names(model, target), tuple(found), together=False, how=asked.how)
    chosen: Chosen = ()
    for _ in range(budget):
        chosen += (max((d for d in candidates if d not in chosen), key=lambda d: asked.gain(chosen, (d,))[0]),)
    again = _Question(model, row, tuple(target), draws, generator)
    found = [again.step(chosen[:i], d) for i, d in enumerate(chosen)]
    return Acquisition(_names(model, target), tuple(found), together=True, how=again.how)


@dataclass(frozen=True)
class _Question:
    """The row, the target, and draws of what is unobserved."""

    model: Model
    row: Point
    target: Chosen
    n: int | None
    generator: Generator

    @property
    def how(self) -> str:
        """Whether anything was drawn."""
        if "draws" not in self.__dict__:
            return f"tables summed{self.stands}"
        marginals = "" if self.sums else ", marginals by importance sampling"
        return f"the mean over {len(self.draws.rows)} draws{marginals}{self.stands}, where the kind is estimate"

    @property
    def stands(self) -> str:
        """What stands for the model, if something does."""
        return "" if self.model.density is Kind.EXACT else ", of a mixture over draws of the latents"

    @property
    def sums(self) -> bool:
        return self.model.missing is self.model.density  # both exact, or both those of a mixture over draws

    @cached_property
    def event(self) -> Event:
        return Event.at(self.model.domain, self.row)

    @cached_property
    def draws(self) -> Draws:
        n = self.n if self.n is not None else DRAWS if self.sums else FEW
        return conditional(self.model, self.event, draws=n, generator=self.generator)

    @cached_property
    def known(self) -> dict[Chosen, tuple[Tensor, Tensor]]:
        """log p(t | x_a, x_o) at each draw and its squared error, by a."""
        return {}

    def step(self, before: Chosen, d: int) -> Gain:
        """Variable d on top of those before it."""
        (gain, error, kind), (total, total_error, _) = self.gain(before, (d,)), self.gain((), (*before, d))
        return Gain(self.model.domain.names[d], gain, error, kind, total, total_error)

    def gain(self, a: Chosen, b: Chosen) -> tuple[float, float, Kind]:
        """E[log p(t | x_a, x_b, x_o) - log p(t | x_a, x_o)], its standard error, and what it is."""
        both = tuple(sorted((*a, *b)))
        tables = self._summed(tuple(sorted(a))), self._summed(both)
        if tables[0] is not None and tables[1] is not None:
            return tables[1] - tables[0], 0.0, self.model.density
        (less, its_error), (more, error) = self._at_draws(tuple(sorted(a))), self._at_draws(both)
        each, within = more - less, error + its_error
        variance = float(each.var()) / min(len(each), self.draws.ess) + float(within.sum()) / len(each) ** 2
        return float(each.mean()), math.sqrt(variance), Kind.ESTIMATE

    def _summed(self, a: Chosen) -> float | None:
        """E log p(t | x_a, x_o) = -H(t | x_a, x_o), by its table; None where that is too large or its cells are not known exactly."""
        values, cells = self._cells(self.target), self._cells(a)
        complete = len(self.event.seen) + len(self.target) + len(a) == len(self.model.domain)
        if values is None or cells is None or len(values) * len(cells) > CELLS or not (self.sums or complete):
            return None
        rows = self.row.double().expand(len(cells), -1).clone()
        rows[:, list(a)] = cells.to(rows)
        log_joint = self._log_joint(values, rows)
        if not bool((log_joint > -torch.inf).any()):
            raise impossible(self.model, self.event, "p is 0 there")
        return float((log_joint.logsumexp(0).softmax(0) * _negentropy(log_joint)).sum())

    def _at_draws(self, a: Chosen) -> tuple[Tensor, Tensor]:
        """log p(t | x_a, x_o) at each draw; its mean over t, -H(t | x_a, x_o), where t has few values and the model sums out the rest."""
        if a not in self.known:
            values = self._cells(self.target)
            few = self.sums and values is not None and len(values) <= FEW_VALUES
            self.known[a] = self._mean_over(values, a) if few and values is not None else self._at_points(a)
        return self.known[a]

    def _mean_over(self, values: Tensor, a: Chosen) -> tuple[Tensor, Tensor]:
        x = self.draws.rows
        rows = torch.full_like(x, torch.nan)
        keep = [*self.event.seen, *a]
        rows[:, keep] = x[:, keep]
        each = _negentropy(self._log_joint(values, rows))
        return each, torch.zeros_like(each)

    def _at_points(self, a: Chosen) -> tuple[Tensor, Tensor]:
        keep = (*self.event.seen, *a)
        (joint, error), (rest, its_error) = (self._log_p(some) for some in ((*keep, *self.target), keep))
        return joint - rest, error.square() + its_error.square()

    def _cells(self, variables: Chosen) -> Tensor | None:
        """Every combination of their values, (cells, variables); None where a list is not finite, or they are over 4096."""
        lists = [values for d in variables if (values := self.event.allowed(d)) is not None]
        if len(lists) < len(variables) or math.prod(map(len, lists)) > CELLS:
            return None
        return torch.cartesian_prod(*lists).reshape(-1, len(lists)) if lists else torch.zeros(1, 0)

    def _log_joint(self, values: Tensor, rows: Tensor) -> Tensor:
        """log p(t, row) of each combination of the target's values and each row, (values, rows)."""
        whole = rows.expand(len(values), -1, -1).clone()
        whole[..., list(self.target)] = values.to(rows)[:, None]
        with torch.no_grad():
            return self.model.log_prob(whole).double()

    def _log_p(self, keep: Chosen) -> tuple[Tensor, Tensor]:
        return log_p(self.model, self.draws.rows, keep, self.sums, self.generator)


def _stand_in(model: Model, row: Point) -> tuple[Model, dict[int, int]]:
    """What stands for p(. | x_o), over what is unobserved, and where the variables are in it."""
    mixture = model.conditional(row) if bool((~row.isnan()).any()) else model.over_latents()
    return mixture, {d: i for i, d in enumerate(row.isnan().nonzero().flatten().tolist())}


def _negentropy(log_joint: Tensor) -> Tensor:
    """Sum over t of p(t | row) log p(t | row), from log p(t, row), (values, rows)."""
    log_t = log_joint.log_softmax(0)
    return torch.where(log_t > -torch.inf, log_t.exp() * log_t, 0.0).sum(0)


def _names(model: Model, variables: Iterable[int]) -> tuple[str, ...]:
    return tuple(model.domain.names[d] for d in variables)


def _checked(model: Model, row: Point, target: Sequence[int], budget: int, draws: int | None) -> list[int]:
    """The unobserved variables beside the target."""
    if model.context is not None:
        raise Unavailable("acquire", model.noun, "it is conditional, p(x | c)", instead="learn the joint law of all columns and ask that")
    if model.density is not Kind.EXACT and model.answers("over_latents") is Kind.NONE:
        raise Unavailable("acquire", model.noun, f"its density is of kind {model.density}", families=model.conditional_families)
    if not target or len(set(target)) < len(target):
        raise OptionError(f"the target is one or several variables, each named once, got {', '.join(_names(model, target)) or 'none'}")
    unseen = row.isnan().tolist()
    seen_already = [d for d in target if not unseen[d]]
    if seen_already:
        raise OptionError(f"target {model.domain.names[seen_already[0]]!r} is observed in the row: nothing is left to learn of it")
    candidates = [d for d, free in enumerate(unseen) if free and d not in target]
    if not candidates:
        raise OptionError(f"every variable beside {', '.join(_names(model, target))} is observed: nothing is left to measure")
    if not 1 <= budget <= len(candidates):
        raise OptionError(f"the budget lies between 1 and the {len(candidates)} variables that are unobserved, got {budget}")
    if draws is not None and draws < 2:
        raise OptionError(f"the number of draws is at least 2, got {draws}")
    return candidates
