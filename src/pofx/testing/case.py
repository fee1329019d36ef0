"""What a check is given: a learned model and rows of its domain; and how it complains."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from pofx.domain import LEVELLED, Domain, Variable, VariableKind
from pofx.errors import Unavailable
from pofx.models.base import Model
from pofx.types import Kind

Given = ParamSpec("Given")
Value = TypeVar("Value")

DELTA = 1e-8  # failure rate of one statistical comparison; a run makes far fewer than a hundred


@dataclass(frozen=True)
class Case:
    """A learned model and rows of its domain.

    Args:
        model: what is checked.
        x: rows (N, D), NaN = unobserved.
        c: their conditions (N, C), or None.
        generator: of every draw.
        draws: rows a statistical check draws.
    """

    model: Model
    x: Tensor
    c: Tensor | None
    generator: torch.Generator
    draws: int = 4000
    drawn: dict[int, Tensor] = field(default_factory=dict)

    @property
    def domain(self) -> Domain:
        """What x is."""
        return self.model.domain

    @property
    def scored(self) -> bool:
        """Whether log_prob is a number with a meaning of its own: exact, or a bound."""
        return self.model.density in (Kind.EXACT, Kind.BOUND)

    @property
    def exact(self) -> bool:
        """Whether log_prob is exact, so that equations between its values hold to rounding."""
        return self.model.density is Kind.EXACT

    @property
    def sums_out(self) -> bool:
        """Whether log_prob of a row with NaN is exact too."""
        return self.exact and self.model.missing is Kind.EXACT

    @property
    def unconditional(self) -> bool:
        """Whether the model is p(x), which the questions about some variables are asked of."""
        return self.model.context is None

    def complete_rows(self) -> tuple[Tensor, Tensor | None]:
        """The rows without NaN and their conditions; draws from the model where there are none."""
        whole = ~self.x.isnan().any(1)
        if whole.any():
            return self.x[whole], None if self.c is None else self.c[whole]
        drawn = self.sample(len(self.x))
        return drawn, None if self.c is None else self.c[:1].expand(len(drawn), -1)

    def sample(self, n: int) -> Tensor:
        """n rows (n, D), all under the first condition where there is one."""
        if self.c is None:
            return self.model.sample(n, generator=self.generator)
        return self.model.sample(n, self.c[:1], generator=self.generator)[:, 0]

    def log_prob(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """log p of rows, under the first condition where none are given."""
        fixed = None if self.c is None else self.c[0]
        with torch.no_grad():
            return self.model.log_prob(x, fixed if c is None else c, generator=self.generator)

    def splits(self) -> list[tuple[int, ...]]:
        """Some ways to part the variables: which are asked about; empty for a single variable."""
        n = len(self.domain)
        half = tuple(range(0, n, 2))
        return [s for s in dict.fromkeys([(n - 1,), half, tuple(range(1, n))]) if 0 < len(s) < n]

    @property
    def rounding(self) -> float:
        """Half the digits of the coarsest numbers the model computes with."""
        floats = [t.dtype for t in (*self.model.parameters(), *self.model.buffers()) if t.is_floating_point()]
        return math.sqrt(max(torch.finfo(dtype).eps for dtype in (*floats, torch.float64)))


class Failed(AssertionError):
    """A check found what must not be; its message is one sentence."""


def require(holds: bool | Tensor, otherwise: str) -> None:
    """Raise unless it holds (everywhere); `assert` would vanish under python -O."""
    if not bool(torch.as_tensor(holds).all()):
        raise Failed(otherwise)


def close(case: Case, a: Tensor, b: Tensor) -> bool:
    """Whether two log-densities agree to rounding; equal infinities do."""
    a, b = a.double(), b.double()
    near = (a - b).abs() <= case.rounding * (1 + torch.minimum(a.abs(), b.abs()))
    return a.shape == b.shape and bool((near | (a == b)).all())


def gap(a: Tensor, b: Tensor) -> str:
    """Where two tensors differ most, for a message."""
    if a.shape != b.shape:
        return f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
    at = (a.double() - b.double()).abs().nan_to_num(math.inf).flatten().argmax()
    return f"{float(a.flatten()[at]):.6g} against {float(b.flatten()[at]):.6g}"


def answered(question: Callable[Given, Value], *args: Given.args, **options: Given.kwargs) -> Value | None:
    """The answer, or None where the model says that it has none."""
    try:
        return question(*args, **options)
    except Unavailable:
        return None


def outside(variable: Variable, x: Tensor) -> Tensor:
    """Which entries of a column are no values of the variable; NaN is one."""
    if variable.kind in LEVELLED:
        return (x != x.round()) | (x < 0) | (x >= len(variable.levels))
    if variable.kind is VariableKind.COUNT:
        return (x != x.round()) | (x < variable.lower) | (x > variable.upper)
    bad = ~x.isfinite()
    beyond = torch.ge if variable.resolution is None else torch.gt  # a rounded value may stand on its bound
    if variable.kind is VariableKind.POSITIVE:
        bad |= beyond(-x, 0.0)
    if variable.kind is VariableKind.INTERVAL:
        bad |= beyond(variable.lower - x, 0.0) | beyond(x - variable.upper, 0.0)
    return bad if variable.spike is None else bad & (x != variable.spike)


def require_inside(domain: Domain, x: Tensor, what: str) -> None:
    """Every entry is a value of its variable."""
    require(x.shape[-1] == len(domain), f"{what} {tuple(x.shape)} must have {len(domain)} columns")
    for variable, column in zip(domain.variables, x.unbind(-1), strict=True):
        bad = outside(variable, column)
        if bad.any():
            raise Failed(f"{what}: {float(column[bad][0]):g} is no value of {variable.name!r} ({variable.kind})")
