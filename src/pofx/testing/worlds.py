"""Small worlds in which a family is learned for a moment and then asked everything, and the truth about its answers there."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.data.preparation import prepare
from pofx.domain import Domain, Variable, VariableKind
from pofx.events import Between, Event
from pofx.learn import run
from pofx.models.base import FamilyConfig, Model
from pofx.models.composed import assemble

Pair = tuple[Tensor, Tensor]  # values and their standard errors

_EPOCHS = 20  # of a family learned by gradients: enough for variables to depend on one another
_ROWS, _HELD_OUT = 400, 60


@dataclass(frozen=True, eq=False)
class World:
    """A domain, rows, and what is asked.

    Args:
        name: one word.
        says: what it is, in one sentence.
        domain: what x is.
        draw: n rows.
        point: a value for each of some variables.
        level: an interval, or a level.
        both: an interval or a set, and a value.
        holes: groups of variables that are hidden.
    """

    name: str
    says: str
    domain: Domain
    draw: Callable[[int], Tensor]
    point: Event
    level: Event
    both: Event
    holes: tuple[tuple[int, ...], ...]

    @property
    def discrete(self) -> bool:
        """Whether it has a finite number of cells, which can be listed and counted."""
        return all(variable.cardinality is not None for variable in self.domain.variables)

    @property
    def cells(self) -> Float[Tensor, "C D"]:
        """Every cell of a discrete world, the last variable first to change."""
        each = [range(variable.cardinality or 0) for variable in self.domain.variables]
        return torch.tensor(list(product(*each)), dtype=torch.float64)

    def learned(self, config: FamilyConfig) -> Model:
        """The family, learned from 340 rows, for 20 epochs where it learns by gradients."""
        x = self.draw(_ROWS)
        if "max_epochs" in type(config).model_fields:
            config = config.model_copy(update={"max_epochs": _EPOCHS})
        model = assemble(config, self.domain, x, prepare(self.domain, x, config.takes, config.lifting.codes), None, None)
        run(model, x[_HELD_OUT:], config=config, holdout=x[:_HELD_OUT])
        return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Cells:
    """The probability of every cell, enumerated or counted.

    Args:
        x: the cells, (C, D).
        p: their probabilities, (C,).
        draws: how many were counted; None where log_prob gave p exactly.
    """

    x: Float[Tensor, "C D"]
    p: Float[Tensor, " C"]
    draws: int | None

    @classmethod
    def counted(cls, x: Float[Tensor, "C D"], rows: Float[Tensor, "N D"]) -> "Cells":
        """The share of rows in each cell; x are all combinations of 0 ... n_d - 1 in order."""
        sizes = (x.max(0).values + 1).long()
        strides = torch.cat((sizes.flip(0).cumprod(0).flip(0)[1:], sizes.new_ones(1)))
        counts = (rows.long() * strides).sum(1).bincount(minlength=len(x))
        return cls(x, counts.double() / len(rows), len(rows))

    def where(self, event: Event) -> Float[Tensor, " C"]:
        """1 in the event, else 0."""
        return event.holds(self.x).double()

    def total(self, weight: Float[Tensor, " C"]) -> Pair:
        """E[weight(x)]; of 1 in an event, its probability."""
        mean = self.p @ weight
        return mean, self._error(self.p @ (weight - mean).square())

    def mean(self, values: Float[Tensor, "C K"], weight: Float[Tensor, " C"]) -> Pair:
        """E[values w] / E[w], by the delta method for the error."""
        total = self.p @ weight
        mean = (self.p * weight) @ values / total
        return mean, self._error((self.p * weight.square()) @ (values - mean).square()) / total

    def _error(self, variance: Tensor) -> Tensor:
        return torch.zeros_like(variance) if self.draws is None else (variance / self.draws).sqrt()


def _clouds(n: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    first = torch.rand(n, 1, generator=g, dtype=torch.float64) < 0.4
    mix = torch.tensor([[0.8, 0.3, 0.0], [0.0, 0.9, -0.4], [0.0, 0.0, 0.6]], dtype=torch.float64)
    centres = torch.where(first, torch.tensor([-1.5, 0.5, 1.0]), torch.tensor([1.5, 1.0, -1.0]))
    return centres + torch.randn(n, 3, generator=g, dtype=torch.float64) @ mix


def _answers(n: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    z, e = torch.randn(n, generator=g, dtype=torch.float64), torch.randn(4, n, generator=g, dtype=torch.float64)
    columns = (
        (z + e[0]).abs().floor().clamp(max=2),
        z + e[1] > 0,
        (z + e[2] + 1.5).round().clamp(0, 3),
        (z + e[3] + 1).floor().clamp(0, 2),
    )
    return torch.stack([column.double() for column in columns], 1)


def _pixels(n: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(n, 2, generator=g, dtype=torch.float64)
    slopes = torch.tensor([[1.2, 0.8, -0.6, 1.0, -1.1, 0.4], [0.3, -0.9, 1.1, 0.7, 0.2, -1.3]], dtype=torch.float64)
    return (z @ slopes + torch.randn(n, 6, generator=g, dtype=torch.float64) > 0).double()


def _reals() -> World:
    domain = Domain.real(3)
    return World(
        "reals",
        "three real variables, from a mixture of two correlated Gaussians",
        domain,
        _clouds,
        Event.at(domain, torch.tensor([1.0, math.nan, math.nan], dtype=torch.float64)),
        Event.of(domain, {"x0": Between(0.0, 1.5)}),
        Event.of(domain, {"x0": Between(-2.0, 0.5), "x1": 0.8}),
        ((0,), (2,), (1, 2)),
    )


def _levels() -> World:
    domain = Domain(
        (
            Variable("a", VariableKind.CATEGORICAL, levels=("r", "g", "b")),
            Variable("b", VariableKind.BINARY, levels=(0, 1)),
            Variable("c", VariableKind.COUNT, lower=0, upper=3),
            Variable("d", VariableKind.ORDINAL, levels=("s", "m", "l")),
        )
    )
    return World(
        "levels",
        "a category, a yes or no, a count and an ordered level that depend on one hidden number: 72 cells",
        domain,
        _answers,
        Event.of(domain, {"b": 1.0, "d": 1.0}),
        Event.of(domain, {"a": 1.0}),
        Event.of(domain, {"b": 0.0, "c": Between(1, 2)}),
        ((2,), (1, 3), (0, 1, 2)),
    )


def _image() -> World:
    pixels = tuple(Variable(f"x{d}", VariableKind.BINARY, levels=(0, 1)) for d in range(6))
    domain = Domain(pixels, (2, 3))
    return World(
        "image",
        "2 x 3 pixels, each on or off, that depend on two hidden numbers: 64 cells; for families that learn images only",
        domain,
        _pixels,
        Event.of(domain, {"x1": 1.0, "x3": 1.0}),
        Event.of(domain, {"x0": 1.0}),
        Event.of(domain, {"x1": 0.0, "x2": (0.0, 1.0), "x5": 1.0}),
        ((0,), (2, 4), (0, 1, 2)),
    )


REALS, LEVELS, IMAGE = _reals(), _levels(), _image()


def worlds(config: type[FamilyConfig]) -> tuple[World, ...]:
    """Those that a family can learn in."""
    return (IMAGE,) if config.images else (REALS, LEVELS)
