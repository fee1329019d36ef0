"""What a diffusion model shows of itself: where along the noise its bound is paid, the way of some draws, the score in the plane."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from pofx.models.base import Diagnosis
from pofx.models.diffusion.heads import Coordinates, Heads
from pofx.models.diffusion.views import View
from pofx.types import Context, Generator, Nats, X

_BANDS = 24
_ROWS = 512  # that the bound is looked at by
_DRAWN = {True: 400, False: 6}  # draws that are followed: of points of the plane, and of everything else
_ALONG = 16  # arrows on each side of the plane
_FIELDS = (0.1, 0.3, 1.0)  # levels of the arrows, in deviations
_DEAR = 0.1  # nats that forgetting a row may cost


class Field(NamedTuple):
    """The score s^2 grad log p_s(y) = D(y, s) - y on a grid of the plane.

    Args:
        levels: s of each picture.
        tails: y, (M, 2).
        tips: D(y, s), (levels, M, 2).
    """

    levels: tuple[float, ...]
    tails: Tensor
    tips: Tensor


@dataclass(frozen=True)
class NoiseDiagnostics(Diagnosis):
    """Of some rows and some draws.

    Args:
        rows: how many the bound was taken of.
        levels: s at the edges of bands, evenly apart in ln s, rising.
        nats: E |x_0 - D|^2 / s^2 in each band: nats of the bound a unit of ln s, mean over the rows.
        error: its standard error.
        forgotten: KL to the prior at s_max, in nats a row.
        decoded: -E log p(x | y) at s_min, in nats a row.
        way: draws from noise on, scaled to the spread of the data, (steps + 1, draws, D).
        at: s of each.
        field: in the plane.
    """

    rows: int
    levels: tuple[float, ...]
    nats: tuple[float, ...]
    error: tuple[float, ...]
    forgotten: float
    decoded: float
    way: Tensor
    at: tuple[float, ...]
    field: Field | None

    @property
    def paid(self) -> float:
        """Nats of all bands."""
        return sum(self.nats) * math.log(self.levels[-1] / self.levels[0]) / len(self.nats)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with the ends."""
        dear = f"forgetting a row costs {self.forgotten:.2f} nats at s_max = {self.levels[-1]:.3g}: a greater s_max would cost less"
        return (dear,) if self.forgotten > _DEAR else ()

    def sentence(self) -> str:
        """Where the nats are."""
        upto = torch.tensor(self.nats).cumsum(0) / sum(self.nats)
        low, high = (self.levels[int(torch.searchsorted(upto, torch.tensor(share)))] for share in (0.1, 0.9))
        return f"{self.paid:.2f} nats a row along the noise, eight in ten of them between s = {low:.2g} and {high:.2g}"

    def numbers(self) -> dict[str, Any]:
        """Plain data."""
        ends = {"forgotten": self.forgotten, "decoded": self.decoded, "paid": self.paid}
        return {"rows": self.rows, "levels": list(self.levels), "nats": list(self.nats), "error": list(self.error)} | ends

    def to_units(self, of: Callable[[Tensor], Tensor]) -> "NoiseDiagnostics":
        """The same with draws and field mapped to other units."""
        field = self.field and Field(self.field.levels, of(self.field.tails), of(self.field.tips))
        return replace(self, way=of(self.way), field=field)

    def __str__(self) -> str:
        low, high = self.levels[:-1], self.levels[1:]
        head = f"{'noise s':>19}  nats a unit of ln s"
        bands = [f"{a:8.3g} … {b:8.3g}  {n:8.3f} ± {e:.3f}" for a, b, n, e in zip(low, high, self.nats, self.error, strict=True)]
        ends = f"nats a row: forgotten at the top {self.forgotten:.3f}, on the way {self.paid:.3f}, decoded at the end {self.decoded:.3f}"
        return "\n".join((head, *bands, ends, *(f"Warning: {warning}." for warning in self.warnings)))


@runtime_checkable
class FromNoise(Protocol):
    """What is looked at: see `Diffusion`."""

    heads: Heads
    ends: Tensor

    def paid(self, x: X, c: Context | None, edges: Tensor, generator: Generator) -> tuple[Nats, Nats, Tensor]:
        """What rows pay of the bound: at the top, at the bottom, and a unit of ln s between these edges, (bands, N)."""

    def way(self, n: int, c: Context | None, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draws at every level, (steps + 1, n, D), and the levels."""

    def free(self, n: int) -> View:
        """Rows of which nothing is known."""

    def denoised(self, y: Coordinates, s: Tensor, view: View) -> Coordinates:
        """D(y, s)."""


@torch.no_grad()
def diagnose(model: FromNoise, x: X, c: Context | None, generator: Generator) -> NoiseDiagnostics:
    """Look at rows and draws.

    Cost: 24 passes of up to 512 rows, and some draws.

    Args:
        model: learned.
        x: rows (N, D), NaN = unobserved.
        c: their conditions.
        generator: of levels, noise and draws.
    """
    x, c = x[:_ROWS].to(model.ends), None if c is None else c[:_ROWS]
    edges, plane = torch.linspace(float(model.ends[0]), float(model.ends[1]), _BANDS + 1).to(x), x.shape[1] == 2
    forgotten, decoded, each = model.paid(x, c, edges, generator)
    way, at = model.way(_DRAWN[plane], c, generator)
    return NoiseDiagnostics(
        rows=len(x),
        levels=tuple(edges.exp().tolist()),
        nats=tuple(each.mean(1).tolist()),
        error=tuple((each.std(1) / math.sqrt(len(x))).tolist()),
        forgotten=float(forgotten.mean()),
        decoded=float(decoded.mean()),
        way=way,
        at=tuple(at.tolist()),
        field=_field(model, x) if c is None and model.heads.real and plane else None,
    )


def _field(model: FromNoise, x: X) -> Field:
    """On a grid over the rows."""
    x_0 = model.heads.embed(x)
    low, high = x_0.amin(0), x_0.amax(0)
    steps = torch.linspace(-0.05, 1.05, _ALONG).to(x_0)
    grid = low + torch.cartesian_prod(steps, steps) * (high - low)
    view = model.free(len(grid))
    tips = torch.stack([model.denoised(grid, torch.full((len(grid), 1), s).to(grid), view) for s in _FIELDS])
    return Field(_FIELDS, model.heads.read(grid), model.heads.read(tips.flatten(0, 1)).unflatten(0, tips.shape[:2]))
