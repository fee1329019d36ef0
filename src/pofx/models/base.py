"""Model: p(x | c) on a Domain, in tensors and nats.

The author of a family writes the private hooks (`_log_prob`, `_sample`, and those of the optional
questions that the family's mathematics answers); the base class gives the public methods, which check
and batch. An optional question without a hook raises `Unavailable`. A hook whose answer is not exact
says so with `@labelled(Kind.ESTIMATE)`; `Model.answers` reads the label, and a model around a model bends it.

Tensors are flat: x is (..., D) whatever `domain.shape` says; a family for images reshapes inside.
"""

import abc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from pofx.domain import Domain
from pofx.errors import DataError, FileError, OptionError, Unavailable
from pofx.events import Condition, Event
from pofx.types import Context, Generator, Kind, Latent, Nats, NatsPerVariable, Point, X

Widths = Annotated[tuple[Annotated[int, Field(ge=1, le=2**16)], ...], Field(max_length=64)]  # of hidden layers
Hook = TypeVar("Hook", bound=Callable[..., Any])


def labelled(kind: Kind) -> Callable[[Hook], Hook]:
    """Say what the numbers of a hook are when they are not exact."""

    def mark(hook: Hook) -> Hook:
        hook.kind = kind  # type: ignore[attr-defined]
        return hook

    return mark


class Takes(StrEnum):
    """Which variables a family models as they are; preparation lifts the others."""

    EVERYTHING = "everything"  # rows come in float64, as the user has them: the family standardises before it rounds
    SCALED = "scaled"  # as they are, but for a unit: reals standardised, positive ones over their scale; nothing is lifted
    DISCRETE = "discrete"  # counts and levels as they are, continuous variables as standardised reals
    FINITE = "finite"  # variables of few values as they are, every other one as a standardised real
    REALS = "reals"  # every variable becomes a standardised real: discrete ones by dequantisation


@dataclass(frozen=True)
class Lifting:
    """How preparation lifts what a family does not take as it is.

    Args:
        codes: "scores", cells of equal mass under a normal, or "uniform", cells of width 1.
        learned: whether the place in its cell that a value is given is learned with the family; else it is uniform.
        draws: of that place, a row and log_prob.
        tight: whether log_prob is the log of the draws' mean weight, not the mean of their logs.
        refine: steps of ascent that fit the learned place to each row before its log_prob.
    """

    codes: str = "scores"
    learned: bool = False
    draws: int = 8
    tight: bool = False
    refine: int = 0


@dataclass(frozen=True)
class Particles:
    """Draws of p(x | evidence) in independent populations, each with its own estimate of p(evidence).

    Args:
        x: whole rows (islands, particles, D), the evidence in place.
        log_z: log of each island's estimate, in nats, (islands,).
        ess: the effective size of an island's weights at their worst.
    """

    x: Tensor
    log_z: Tensor
    ess: float


class Diagnosis(abc.ABC):
    """What a model finds when it looks at itself; its text is a short table and the warnings."""

    @property
    @abc.abstractmethod
    def warnings(self) -> tuple[str, ...]:
        """What is wrong, and what to try: a sentence each without a full stop."""

    @abc.abstractmethod
    def sentence(self) -> str:
        """What matters most, a clause."""

    @abc.abstractmethod
    def numbers(self) -> dict[str, Any]:
        """Plain data: what a record keeps."""

    def to_units(self, of: Callable[[Tensor], Tensor]) -> "Diagnosis":
        """The same, where it holds rows, with those mapped to other units."""
        return self


class Model(nn.Module, abc.ABC):
    """p(x | c) on a Domain, in tensors and nats.

    Args:
        domain: what x is.
        context: what c is, or None for p(x).
    """

    density: Kind = Kind.EXACT  # what log_prob is
    sampling: Kind = Kind.EXACT
    missing: Kind = Kind.NONE  # what log_prob of a row with NaN is; NONE: refused
    logs_average: bool = False  # whether draws of log_prob are right in the mean, and those of e^log_prob, as weights need, are not
    clustering_families: ClassVar[tuple[str, ...]] = ("latent_class", "gmm")
    conditional_families: ClassVar[tuple[str, ...]] = ("hclt", "chow_liu", "latent_class", "gmm", "gaussian", "kde")
    grows: ClassVar[frozenset[str]] = frozenset()  # state whose shape the data decide
    rows_at_once: int = 4096

    domain: Domain
    context: Domain | None

    def __init__(self, domain: Domain, context: Domain | None = None) -> None:
        super().__init__()
        self.domain = domain
        self.context = context

    # -- every family ------------------------------------------------------------------------------

    def log_prob(self, x: X, c: Tensor | None = None, *, generator: Generator = None) -> Nats:
        """log p(x | c) of each row, of the kind `density`; NaN entries are marginalised where the family can.

        Args:
            x: rows (..., D), NaN = unobserved.
            c: conditions (..., C) of the same batch shape, or (C,) for all.
            generator: of a bound's or estimate's draws; None takes torch's own.

        Raises:
            Unavailable: a row has NaN and the family can not marginalise it.
            DataError: x has another width than the domain.
        """
        return self.log_prob_and_error(x, c, generator=generator)[0]

    def log_prob_and_error(self, x: X, c: Tensor | None = None, *, generator: Generator = None) -> tuple[Nats, Nats]:
        """log p(x | c) and the standard error of each number (0 where nothing is drawn)."""
        rows, c_rows = self._checked(x, c)
        if not len(rows):
            return x.new_zeros(x.shape[:-1]), x.new_zeros(x.shape[:-1])
        chunks = zip(rows.split(self.rows_at_once), _split(c_rows, len(rows), self.rows_at_once), strict=True)
        parts = [self._log_prob_and_error(r, k, generator) for r, k in chunks]
        value, error = (torch.cat(column) for column in zip(*parts, strict=True))
        return value.reshape(x.shape[:-1]), error.reshape(x.shape[:-1])

    def sample(self, n: int, c: Context | None = None, *, generator: Generator = None) -> Tensor:
        """Draw n rows: (n, D), or (n, *batch, D) for conditions (*batch, C). An equal generator gives equal draws."""
        if n < 0:
            raise OptionError(f"the number of draws must be 0 or more, got {n}")
        self._check_context(c)
        with torch.no_grad():
            if c is None:
                return self._sample(n, None, generator)
            flat = c.reshape(-1, c.shape[-1]).repeat(n, 1)
            return self._sample(len(flat), flat, generator).reshape(n, *c.shape[:-1], len(self.domain))

    def loss(self, x: X, c: Context | None = None, *, generator: Generator = None) -> Nats:
        """The family's own objective, one number per datum; -log p unless it says otherwise."""
        return -self._log_prob(x, c, generator)

    def initialise(self, x: X, c: Context | None = None) -> None:
        """Set what depends on the data before the first gradient step (output biases, scales)."""

    @abc.abstractmethod
    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        """log p(x | c) of rows (N, D)."""

    def _log_prob_and_error(self, x: X, c: Context | None, generator: Generator) -> tuple[Nats, Nats]:
        value = self._log_prob(x, c, generator)
        return value, torch.zeros_like(value)

    @abc.abstractmethod
    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        """n rows (n, D), one for each row of c when there is one."""

    # -- what only some can answer -----------------------------------------------------------------

    @property
    def noun(self) -> str:
        """What the model is called in sentences."""
        return type(self).__name__

    def answers(self, question: str, seen: Sequence[int] = ()) -> Kind:
        """What the answer to an optional question is: NONE where it is refused.

        Args:
            question: the name of its method.
            seen: variables that evidence fixes.
        """
        hook = getattr(type(self), f"_{question}")
        if hook is Model._log_chance:
            return self.answers("restrict", seen)
        return Kind.NONE if hook is getattr(Model, f"_{question}") else getattr(hook, "kind", Kind.EXACT)

    def marginal(self, keep: Sequence[int]) -> "Model":
        """p of some of the variables, in the order given.

        Raises:
            Unavailable: the family has no closed form for it.
        """
        if not keep or len(set(keep)) < len(keep) or not all(0 <= d < len(self.domain) for d in keep):
            raise OptionError(f"a marginal keeps distinct variables among 0 ... {len(self.domain) - 1}, got {list(keep)}")
        return self._marginal(tuple(keep))

    def conditional(self, evidence: Point) -> "Model":
        """p of the variables that are NaN in the evidence, given the others; its domain is theirs, in order.

        Raises:
            Unavailable: the family has no closed form for it, or the evidence has probability 0.
        """
        if evidence.shape != (len(self.domain),):
            raise DataError(f"evidence needs shape ({len(self.domain)},), got {tuple(evidence.shape)}")
        if not evidence.isnan().any():
            raise OptionError("the evidence fixes every variable: nothing is left to ask about")
        return self if evidence.isnan().all() else self._conditional(evidence)

    def restrict(self, event: Event) -> "tuple[Model, float]":
        """p(x | x in the event) over the same variables, and log P(event), for an event of sets and intervals.

        Raises:
            OptionError: the event is of another domain, or fixes a variable to a value: `conditional` takes those.
            Unavailable: the family has no closed form for it, or the event has probability 0.
        """
        model, log_p = self._restrict(self._open(event))
        if log_p == -math.inf:
            raise Unavailable("restriction", self.noun, f"the evidence {event.sentence} has probability 0")
        return model, log_p

    def log_chance(self, event: Event) -> float:
        """log P(event) of sets and intervals, -inf where it has probability 0; raises as `restrict`."""
        return self._log_chance(self._open(event))

    def _open(self, event: Event) -> Mapping[int, Condition]:
        """The event's conditions, checked."""
        if event.domain.names != self.domain.names:
            raise OptionError(f"the event is over {', '.join(event.domain.names[:6])}, the model over {', '.join(self.domain.names[:6])}")
        if event.seen:
            name = self.domain.names[event.seen[0]]
            raise OptionError(
                f"a restriction is to sets and intervals, but the event fixes {name!r} to a value: `conditional` takes values"
            )
        return event.conditions

    def log_expectation(self, factors: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        """log E[prod_d w_d(x_d)] of functions that are not negative, of variables with finitely many values: (R,), R products at once.

        Args:
            factors: variable to its values (V,) and log w there (R, V), to which the log of each value's measure is added: the
                width of its grid cell, 1 of a level or count.

        Raises:
            Unavailable: the family has no closed form for it.
        """
        return self._log_expectation(factors)

    def particles(self, evidence: Point, each: int, islands: int, *, generator: Generator) -> Particles:
        """Draws of p(x | evidence) by the process that the model draws with, led to the evidence and weighed; asymptotically exact.

        Args:
            evidence: x, NaN where it is not known.
            each: particles of an island.
            islands: independent runs.
            generator: of all draws.

        Raises:
            Unavailable: the family draws by no process that can be led.
        """
        return self._particles(evidence, each, islands, generator)

    def led(self, log_likelihood: Callable[[Tensor], Tensor], each: int, islands: int, *, generator: Generator) -> Particles:
        """Draws of p(x) L(x) / Z by the process that the model draws with, led up a likelihood and weighed; asymptotically exact.

        Args:
            log_likelihood: rows (N, D) to log L, (N,), in nats: finite, with a gradient through torch.
            each: particles of an island.
            islands: independent runs.
            generator: of all draws.

        Raises:
            Unavailable: the family draws by no process that can be led.
            OptionError: torch finds no gradient.
            DataError: the likelihood is not finite where draws go.
        """
        return self._led(log_likelihood, each, islands, generator)

    def over_latents(self) -> "Model":
        """p(x) as a mixture over draws of its latents, whose marginals and conditionals have closed forms; an estimate of p.

        Raises:
            Unavailable: the family has no latents that it could be a mixture over.
        """
        with torch.no_grad():
            return self._over_latents()

    def entropy(self) -> float:
        """-E[log p(x)] in nats, with respect to the domain's base measure.

        Raises:
            Unavailable: the family has no closed form for it.
        """
        with torch.no_grad():
            return float(self._entropy())

    def mode(self, evidence: Point | None = None) -> Point:
        """A most probable x, with the observed entries of the evidence kept."""
        return self._mode(torch.full((len(self.domain),), torch.nan) if evidence is None else evidence)

    def mean(self) -> Point:
        """E[x] (of codes, where a variable has levels)."""
        return self._mean()

    def impute(self, x: X, *, generator: Generator = None) -> X:
        """Fill NaN: the conditional mean, the most probable level of ordinal, categorical and binary variables."""
        return self._filled_by(self._impute, x, generator)

    def complete(self, x: X, *, generator: Generator = None) -> X:
        """Fill NaN with one joint draw from p(missing | observed) for each row."""
        return self._filled_by(self._complete, x, generator)

    def leave_one_out(self, x: X, *, generator: Generator = None) -> NatsPerVariable:
        """log p(x_d | the other cells of the row) of every cell, 0 at a missing one: how surprising each cell is where it stands.

        Its label is that of `missing`. Cost: D + 1 times that of log_prob, unless the family knows better.

        Raises:
            Unavailable: the family can not marginalise a cell.
        """
        rows, _ = self._checked(x, None)
        if self.missing is Kind.NONE:
            raise self._refuse("leave_one_out")
        with torch.no_grad():
            parts = [self._leave_one_out(part, generator) for part in rows.split(self.rows_at_once)]
        return torch.cat([x.new_zeros(0, len(self.domain)), *parts]).reshape(x.shape)

    def _filled_by(self, fill: Callable[[Tensor, Generator], Tensor], x: Tensor, generator: Generator) -> Tensor:
        rows, _ = self._checked(x, None, allow_missing=True)
        if not len(rows):
            return x
        with torch.no_grad():
            return torch.cat([fill(part, generator) for part in rows.split(self.rows_at_once)]).reshape(x.shape)

    def cluster(self, x: X, c: Context | None = None, *, generator: Generator = None) -> Tensor:
        """p(k | x), (..., K): which of its K components each row is from. NaN entries are unobserved.

        Raises:
            Unavailable: the model is no mixture.
        """
        rows, c_rows = self._checked(x, c, allow_missing=True)
        with torch.no_grad():
            chunks = zip(rows.split(self.rows_at_once), _split(c_rows, len(rows), self.rows_at_once), strict=True)
            parts = [self._cluster(r, k, generator) for r, k in chunks]
        p = torch.cat(parts)
        return p.reshape(*x.shape[:-1], p.shape[-1])

    def diagnose(self, x: X, c: Context | None = None, *, generator: Generator = None) -> Diagnosis:
        """Whether the latents are used, and whether prior and codes agree, for rows (N, D). NaN entries are unobserved.

        Raises:
            Unavailable: the model learns no latents.
            DataError: there are no rows.
        """
        rows, c_rows = self._checked(x, c, allow_missing=True)
        with torch.no_grad():
            return self._diagnose(rows, c_rows, generator)

    def classify(self, x: X, d: int, *, generator: Generator = None) -> Tensor:
        """p(x_d = k | the row's other cells) of each level k of a variable, (..., K); the cells of x_d are not read.

        Cost: a log_prob for each level, all of them with equal draws, unless the family knows better.

        Raises:
            OptionError: the variable has no levels.
            Unavailable: a row has missing cells and the family can not marginalise.
        """
        variable = self.domain.variables[d]
        if not variable.levels:
            raise OptionError(f"column {variable.name!r} is {variable.kind}: only a column of levels is classified; ask conditional")
        rows, _ = self._checked(x.index_fill(-1, torch.tensor(d, device=x.device), 0.0), None)
        with torch.no_grad():
            parts = [self._classify(part, d, generator) for part in rows.split(self.rows_at_once)]
        return torch.cat(parts).reshape(*x.shape[:-1], len(variable.levels))

    def frequencies(self, j: int) -> Tensor:
        """p(c_j = k) of each level k of a condition, (K,): as often as training rows had it where that is kept, else all alike."""
        levels = len(self.context.variables[j].levels) if self.context else 0
        return torch.full((levels,), 1 / max(1, levels))

    def encode(self, x: X, c: Context | None = None) -> Latent:
        """The code z of each row."""
        rows, c_rows = self._checked(x, c)
        with torch.no_grad():
            return self._encode(rows, c_rows).reshape(*x.shape[:-1], -1)

    def decode(self, z: Latent, c: Context | None = None) -> X:
        """The x of each code."""
        with torch.no_grad():
            return self._decode(z, c)

    def _marginal(self, keep: tuple[int, ...]) -> "Model":
        raise self._refuse("marginal", "drop the columns of samples")

    def _conditional(self, evidence: Point) -> "Model":
        raise self._refuse("conditional", "impute or sample a family that answers it")

    def _restrict(self, conditions: Mapping[int, Condition]) -> "tuple[Model, float]":
        """The model given the conditions, one a variable, and log P of them all; where that is -inf, any model."""
        raise self._refuse("restriction to sets and intervals", "draws: `pofx.ask.generic.conditional`")

    def _log_chance(self, conditions: Mapping[int, Condition]) -> float:
        """log P of the conditions; a family may know it though what is left is no model of its own."""
        return self._restrict(conditions)[1]

    def _log_expectation(self, factors: Mapping[int, tuple[Tensor, Tensor]]) -> Tensor:
        raise self._refuse("expectation of products", "the mean over draws")

    def _particles(self, evidence: Point, each: int, islands: int, generator: Generator) -> Particles:
        raise Unavailable("particles led to evidence", self.noun, "it does not draw step by step from noise", families=("diffusion",))

    def _led(self, log_likelihood: Callable[[Tensor], Tensor], each: int, islands: int, generator: Generator) -> Particles:
        raise Unavailable("particles led up a likelihood", self.noun, "it does not draw step by step from noise", families=("diffusion",))

    def _over_latents(self) -> "Model":
        raise self._refuse("mixture over draws")

    def _entropy(self) -> Tensor | float:
        raise self._refuse("entropy", "the mean of -log_prob over draws")

    def _mode(self, evidence: Point) -> Point:
        raise self._refuse("mode", "the sample with the largest log_prob")

    def _mean(self) -> Point:
        raise self._refuse("mean", "the mean of samples")

    def _impute(self, x: X, generator: Generator) -> X:
        raise self._refuse("impute")

    def _complete(self, x: X, generator: Generator) -> X:
        raise self._refuse("complete")

    def _weighed(self, x: X, generator: Generator) -> tuple[X, X, Nats]:
        """A completion of each row, the mean it stands for where that is known, and log w, such that E[w f] = p(x_o) E[f | x_o]."""
        return self._complete(x, generator), self._impute(x, generator), self._log_prob(x, None, generator)

    def _leave_one_out(self, x: X, generator: Generator) -> Tensor:
        """log p(x) - log p(x without x_d), (N, D), one variable after the other."""
        whole = self._log_prob_and_error(x, None, generator)[0]
        columns = []
        for d in range(x.shape[1]):
            rest = x.clone()
            rest[:, d] = torch.nan
            columns.append(torch.where(x[:, d].isnan(), 0.0, whole - self._log_prob_and_error(rest, None, generator)[0]))
        return torch.stack(columns, dim=1)

    def _classify(self, x: X, d: int, generator: Generator) -> Tensor:
        """p(x_d = k | the others) of rows (N, D) whose x_d is a level, whichever: p(x_d = k, the others) over its sum."""
        state = None if generator is None else generator.get_state()
        each = []
        for k in range(len(self.domain.variables[d].levels)):
            if generator is not None and state is not None:
                generator.set_state(state)
            each.append(self._log_prob_and_error(x.index_fill(-1, torch.tensor(d, device=x.device), float(k)), None, generator)[0])
        return torch.stack(each, dim=1).softmax(1)

    def _encode(self, x: X, c: Context | None) -> Latent:
        raise Unavailable("encode", self.noun, "it has no latent code", families=("realnvp", "vae", "gmm", "latent_class"))

    def _cluster(self, x: X, c: Context | None, generator: Generator) -> Tensor:
        raise Unavailable("cluster", self.noun, "it is no mixture", families=self.clustering_families)

    def _diagnose(self, x: X, c: Context | None, generator: Generator) -> Diagnosis:
        raise Unavailable("latents to diagnose", self.noun, "it has no prior and no encoder", families=("vae",))

    def _decode(self, z: Latent, c: Context | None) -> X:
        raise Unavailable("decode", self.noun, "it has no latent code", families=("realnvp", "vae"))

    def _refuse(self, question: str, instead: str = "") -> Unavailable:
        return Unavailable(question, self.noun, "no closed form", families=self.conditional_families, instead=instead)

    # -- state -------------------------------------------------------------------------------------

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take the state that `state_dict` gave: same names, types and, but for `grows`, shapes.

        Raises:
            FileError: a name, type or shape is not the model's.
        """
        own = self.state_dict()
        for name in own.keys() ^ tensors.keys():
            raise FileError(f"the file {'lacks' if name in own else 'has an unknown'} tensor {name!r}")
        for name, tensor in tensors.items():
            self._take(name, own[name], tensor)
        for module in reversed(list(self.modules())):  # parts before what is made of them
            if isinstance(module, Model):
                module._settle()

    def _settle(self) -> None:
        """What follows from tensors that were just taken.

        Raises:
            FileError: they contradict each other.
        """

    def _take(self, name: str, own: Tensor, new: Tensor) -> None:
        leaf = name.rpartition(".")[2]
        holder = self.get_submodule(name.rpartition(".")[0])
        free = leaf in getattr(holder, "grows", frozenset())
        # Weights have the precision they were learned in, whatever torch's default is here and now.
        alike = new.dtype == own.dtype or (new.is_floating_point() and own.is_floating_point())
        if not alike or (new.ndim != own.ndim if free else new.shape != own.shape):
            raise FileError(f"tensor {name!r}: expected {own.dtype} {tuple(own.shape)}, got {new.dtype} {tuple(new.shape)}")
        if free or new.dtype != own.dtype:
            old = getattr(holder, leaf)
            setattr(holder, leaf, nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new)
        else:
            with torch.no_grad():
                own.copy_(new)

    # -- checks ------------------------------------------------------------------------------------

    def _checked(self, x: X, c: Tensor | None, *, allow_missing: bool = False) -> tuple[Tensor, Tensor | None]:
        """Rows (N, D) and conditions (N, C)."""
        if x.ndim == 0 or x.shape[-1] != len(self.domain):
            raise DataError(f"{self.noun} is over {len(self.domain)} variables, got x of shape {tuple(x.shape)}")
        self._check_context(c)
        if not allow_missing and self.missing is Kind.NONE and bool(x.isnan().any()):
            raise Unavailable(
                "log_prob of a row with missing cells",
                self.noun,
                families=self.conditional_families,
                instead="impute the rows first",
            )
        rows = x.reshape(-1, x.shape[-1])
        return rows, None if c is None else c.expand(*x.shape[:-1], c.shape[-1]).reshape(len(rows), c.shape[-1])

    def _check_context(self, c: Tensor | None) -> None:
        expected = 0 if self.context is None else len(self.context)
        got = 0 if c is None else c.shape[-1]
        if expected != got:
            raise DataError(f"{self.noun} is conditional on {expected} variables, got {got}")


class Scheduled(abc.ABC):
    """What a family adds when its loss depends on where the run is."""

    @abc.abstractmethod
    def passed(self, done: float, rows: Tensor) -> None:
        """Hear where the run is before every step; a model that hears nothing is at the end of it.

        Args:
            done: the share of the run that is over, from 0 on.
            rows: which of the training rows the step is of, (batch,).
        """


class Staged(abc.ABC):
    """What a family adds when its parts learn one after the other."""

    @abc.abstractmethod
    def stages(self) -> "Iterator[tuple[Model, FamilyConfig]]":
        """Each part, as a model of the same rows that shares its tensors, and the options it learns by.

        A stage is asked for once the one before it has learned.
        """


class FullBatch(abc.ABC):
    """What a family adds when it learns from all rows at once: closed form (one step) or EM (many)."""

    @abc.abstractmethod
    def steps(self, x: Tensor, *, holdout: Tensor | None = None, generator: Generator = None) -> Iterator[float]:
        """Learn from rows x (N, D); yield the mean log-likelihood of x after each step.

        The parameters are whole at each yield, so that the caller may stop there (out of time, interrupted).
        A choice among candidates (number of components, bandwidth) is by the held-out rows.
        """


class FamilyConfig(BaseModel, abc.ABC):
    """A family's options, checked; `build` makes the untrained model. One class per family, whose hook is `_build`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    takes: ClassVar[Takes] = Takes.REALS
    conditional: ClassVar[bool] = False  # whether `build` takes a context: p(x | c)
    images: ClassVar[bool] = False  # whether x must have rows and columns
    cites: ClassVar[tuple[str, ...]] = ()  # BibTeX entries
    space: ClassVar[dict[str, tuple[Any, ...]]] = {}  # search: option -> candidates, from the plainest up

    @property
    def lifting(self) -> Lifting:
        """How what it does not take is lifted for it."""
        return Lifting()

    def for_domain(self, domain: Domain) -> "FamilyConfig":
        """These options, with what the user left to the sort of data filled in."""
        return self

    def for_rows(self, n: int) -> "FamilyConfig":
        """These options, with what the user left to the number of rows filled in."""
        return self

    def shape_of(self, domain: Domain) -> tuple[int, ...]:
        """That of an entry, as the family takes it."""
        return domain.shape

    def build(self, domain: Domain, context: Domain | None = None) -> Model:
        """The untrained model on a prepared domain.

        Raises:
            Unavailable: there is a context, but the family learns joint laws only; or x is no image, but the family needs one.
        """
        who, shape = type(self).__name__.removesuffix("Config"), self.shape_of(domain)
        if self.images and len(shape) not in (2, 3):
            raise Unavailable("fit", who, f"it learns images (H, W) or (C, H, W), got shape {shape}", families=("hclt", "vae"))
        if context is not None and not self.conditional:
            raise Unavailable(
                "p(x | c)",
                who,
                "it learns the joint law",
                instead="fit all columns and ask `conditional`",
            )
        return self._build(domain, context)

    @abc.abstractmethod
    def _build(self, domain: Domain, context: Domain | None) -> Model:
        """The model; a context comes only where `conditional` says so."""


SKIPS = "steps with gradients above so many times the median norm of the last 50 are skipped, 25 in a row at most; None: never"


class GradientConfig(FamilyConfig, abc.ABC):
    """Options of families learned by gradients; a family overrides a default by declaring the field again."""

    learning_rate: float = Field(1e-3, gt=0)
    batch_size: int = Field(128, ge=1)
    max_epochs: int = Field(1000, ge=1)
    patience: int = Field(30, ge=1, description="epochs without a better held-out loss before stopping")
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float | None = Field(10.0, gt=0, description="gradients are scaled down to this norm; None: never")
    skip_above: float | None = Field(None, gt=1, description=SKIPS)
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the weights' moving average; None: no average")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the run over which the learning rate rises from 0")
    final_rate: float = Field(1.0, gt=0, le=1, description="the last learning rate over the first; it falls geometrically over the run")

    @property
    def scheduled(self) -> bool:
        """Whether the steps depend on how long the run is."""
        return self.warmup > 0 or self.final_rate < 1 or self.settles > 0

    @property
    def settles(self) -> float:
        """The share of the run after which the loss stays the same function; patience counts from there."""
        return 0.0

    @property
    def surrogate(self) -> bool:
        """Whether training rows are learned by something else than what held-out rows are judged by, a true bound."""
        return False

    @property
    def compiles(self) -> bool:
        """Whether `torch.compile` may make the loss: it gets slopes wrong where a gradient is changed on its way back."""
        return True

    def rivals(self) -> "tuple[GradientConfig, ...]":
        """Ways to learn, the usual one first; each has a run, and held-out rows decide which is kept."""
        return (self,)

    def optimiser(self, player: nn.Module, parameters: list[nn.Parameter], rows: int) -> torch.optim.Optimizer:
        """What steps the parameters of a player that learns from so many rows."""
        # AdamW without decay is Adam. Fused: one kernel for all parameters instead of a dozen for each.
        fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=fused)


@contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Within: nothing of the module is dropped."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def _split(c: Tensor | None, rows: int, size: int) -> Sequence[Tensor | None]:
    return [None] * max(1, -(-rows // size)) if c is None else c.split(size)  # no rows are one piece, as `split` has it
