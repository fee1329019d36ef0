"""A family that learned in a world, and how two answers about it are compared."""

import math
from functools import cached_property

import torch
from torch import Tensor

from pofx.ask.generic import Draws, conditional
from pofx.events import Event
from pofx.models.base import Model
from pofx.testing.case import require
from pofx.testing.worlds import Cells, Pair, World
from pofx.types import Context, Generator, Kind, Nats, X

SIGMAS = 4.9  # a comparison of two numbers fails in 10^-6 of runs, were errors normal and known
DRAWS = 1500  # of a generic conditional
COUNTED = 60_000  # draws behind counted cells
_ROUNDING = 1e-4  # integrals over a line of 20 000 points, and rounding, are off by so much at most


class Blind(Model):
    """A model that draws and scores whole rows, and nothing else.

    Args:
        base: the model whose other answers are hidden.
    """

    def __init__(self, base: Model) -> None:
        super().__init__(base.domain)
        self.base, self.density, self.sampling = base, base.density, base.sampling

    def _log_prob(self, x: X, c: Context | None, generator: Generator) -> Nats:
        return self.base.log_prob(x, generator=generator)

    def _sample(self, n: int, c: Context | None, generator: Generator) -> X:
        return self.base.sample(n, generator=generator)


class Subject:
    """A family in a world.

    Args:
        model: learned.
        world: where.
    """

    def __init__(self, model: Model, world: World) -> None:
        self.model, self.world, self.blind = model, world, Blind(model)
        self.compared = 0  # numbers that were held against others

    @property
    def exact(self) -> bool:
        """Whether log_prob is exact."""
        return self.model.density is Kind.EXACT

    @cached_property
    def cells(self) -> Cells:
        """The truth in a discrete world: every cell's probability by an exact log_prob, else counted in the model's own draws."""
        x = self.world.cells
        if self.exact:
            return Cells(x, self.model.log_prob(x).double().exp(), None)
        return Cells.counted(x, self.model.sample(COUNTED, generator=torch.Generator().manual_seed(1)))

    def draw(self, event: Event, method: str | None, generator: Generator, draws: int = DRAWS) -> Draws:
        """The generic conditional of the model that answers nothing else."""
        return conditional(self.blind, event, method=method, draws=draws, generator=generator)

    # -- comparisons -------------------------------------------------------------------------------

    def agree(self, what: str, one: Pair, other: Pair) -> None:
        """Two answers lie within their error bars of one another.

        Raises:
            AssertionError: they do not, or are not finite.
        """
        self._hold(what, one, other, "against", two_sided=True)

    def below(self, what: str, low: Pair, high: Pair) -> None:
        """The first does not lie above the second by more than the error bars.

        Raises:
            AssertionError: it does, or they are not finite.
        """
        self._hold(what, low, high, "above", two_sided=False)

    def _hold(self, what: str, one: Pair, other: Pair, word: str, *, two_sided: bool) -> None:
        numbers = [torch.as_tensor(t, dtype=torch.float64) for t in (*one, *other)]
        require(all(bool(t.isfinite().all()) for t in numbers), f"{what}: an answer or its error is not finite: {one} {word} {other}")
        a, a_error, b, b_error = torch.broadcast_tensors(*numbers)
        off = (a - b).abs() if two_sided else a - b
        bar = (a_error.square() + b_error.square()).sqrt()
        by = (off - _ROUNDING).clamp_min(0) / bar.clamp_min(1e-300)
        self.compared += by.numel()
        require(by <= SIGMAS, f"{what}: {a.tolist()} {word} {b.tolist()}, off by {by.tolist()} standard errors")


def known(value: Tensor | float) -> Pair:
    """A number without error."""
    value = torch.as_tensor(value, dtype=torch.float64)
    return value, torch.zeros_like(value)


def mean_of(values: Tensor) -> Pair:
    """The mean of independent values (N, *event), and its standard error."""
    values = values.double()
    return values.mean(0), values.std(0) / math.sqrt(len(values))


def mean_of_few(values: Tensor) -> Pair:
    """The same of 25 values or more, the error widened so that 4.9 of it are as rare as of a known one.

    Student's law with 24 degrees of freedom leaves 10^-6 beyond 6.51.
    """
    mean, error = mean_of(values)
    return mean, error * 6.51 / SIGMAS
