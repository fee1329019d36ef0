"""Noise levels s = sigma_t / alpha_t of y = x0 + s eps, falling: the grid a solver of the reverse process walks down.

The grid matters more than the solver. Levels are float64 on the CPU; a solver takes them in the type of its rows.

Source of `karras`: Karras, Aittala, Aila and Laine, "Elucidating the design space of diffusion-based generative models",
NeurIPS 2022, arXiv:2206.00364.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.errors import OptionError
from pofx.samplers.densities import check_count

Levels = Float[Tensor, " L"]


def karras(steps: int, s_min: float, s_max: float, *, rho: float = 7.0, to_data: bool = True) -> Levels:
    """s_i = (s_max^(1/rho) + i/(n-1) (s_min^(1/rho) - s_max^(1/rho)))^rho, i = 0 ... n - 1, then 0.

    The larger rho, the more of the steps near the data; rho = 1 is uniform in s, and rho to infinity is `log_uniform`.

    Args:
        steps: of the solver: the grid has steps + 1 levels.
        s_min: least level above 0, in units of the data.
        s_max: the first level.
        rho: as above, positive.
        to_data: end at 0 (n = steps). If not, at s_min (n = steps + 1), as a likelihood must.

    Raises:
        OptionError: no steps, no 0 < s_min < s_max, or a rho that is not positive.
    """
    check_range(s_min, s_max)
    if not rho > 0:
        raise OptionError(f"rho is positive, got {rho}")
    return _grid(steps, s_max, s_min, lambda share: (s_max ** (1 / rho) * (1 - share) + s_min ** (1 / rho) * share) ** rho, to_data)


def log_uniform(steps: int, s_min: float, s_max: float, *, to_data: bool = True) -> Levels:
    """s_i = s_max (s_min / s_max)^(i/(n-1)), i = 0 ... n - 1, then 0: as many steps for each doubling of the noise.

    The best grid for few steps of `DPM2M`, whose steps are in log s. Arguments and errors as `karras`.
    """
    check_range(s_min, s_max)
    return _grid(steps, s_max, s_min, lambda share: s_max * (share * math.log(s_min / s_max)).exp(), to_data)


TURN = 0.1  # delta: the angle above which steps grow no more


def turned(steps: int, s_min: float, s_max: float, *, to_data: bool = True) -> Levels:
    """tan(a_i) at even steps of u, a = delta sinh(u) and delta = 0.1, then 0: even in the angle a = atan(s), finer where it is below delta.

    The grid of `TurnedRungeKutta` and `TurnedAdams`, which take the way from s = infinity as any other. Arguments and errors as `karras`.
    """
    check_range(s_min, s_max)
    top, bottom = (math.asinh(math.atan(s) / TURN) for s in (s_max, s_min))
    return _grid(steps, s_max, s_min, lambda share: (TURN * (top + share * (bottom - top)).sinh()).tan(), to_data)


def along_path(steps: int, level: Callable[[Tensor], Tensor], *, t_min: float = 1e-3, t_max: float = 1.0, to_data: bool = True) -> Levels:
    """s(t_max) ... s(t_min) at equal steps of t, then 0: the grid of those who speak of a path in t.

    Rarely a good one: where s(1) is infinite or large, most of its steps are at one end.

    Args:
        steps: as `karras`.
        level: s(t) = sigma_t / alpha_t of a tensor of times, rising in t.
        t_min: time of the least level above 0.
        t_max: time of the first level.
        to_data: as `karras`.

    Raises:
        OptionError: no steps, no t_min < t_max, or a path whose levels do not rise with t from above 0.
    """
    if not t_min < t_max:
        raise OptionError(f"times need t_min < t_max, got {t_min} and {t_max}")
    ends = level(torch.tensor([t_min, t_max], dtype=torch.float64))
    levels = _grid(steps, float(ends[1]), float(ends[0]), lambda share: level(t_max + (t_min - t_max) * share), to_data)
    check_levels(levels, s_min=float(levels[-1]))
    return levels


def check_range(s_min: float, s_max: float) -> None:
    """0 < s_min < s_max, both finite.

    Raises:
        OptionError: they are not.
    """
    if not 0 < s_min < s_max < math.inf:
        raise OptionError(f"noise levels need 0 < s_min < s_max, got s_min={s_min} and s_max={s_max}")


def check_levels(levels: Levels, *, s_min: float | None = None) -> None:
    """A grid that falls from level to level and ends at the data.

    Args:
        levels: (steps + 1,).
        s_min: the level that is meant by the data; None: 0.

    Raises:
        OptionError: no step, levels that do not fall or are not finite, or a last level that is neither 0 nor s_min.
    """
    check_count("steps, one less than the levels,", len(levels) - 1, 1)
    if not bool(levels.isfinite().all()) or bool((levels.diff() >= 0).any()):
        raise OptionError(f"noise levels are finite and fall from each to the next, got {levels.tolist()}")
    last, meant = float(levels[-1]), 0.0 if s_min is None else s_min
    if last not in (0.0, meant):
        raise OptionError(
            f"the last noise level is {meant}, where the data are, got {last}: what is left of the noise would stay in the draws"
        )


def _grid(steps: int, first: float, last: float, level: Callable[[Tensor], Tensor], to_data: bool) -> Tensor:
    """The level of each share of the way, its ends exact."""
    check_count("steps", steps, 1)
    above = steps if to_data else steps + 1
    levels = level(torch.linspace(0, 1, above, dtype=torch.float64))
    levels[-1], levels[0] = last, first  # a grid of one level above 0 begins at s_max
    return torch.cat((levels, levels.new_zeros(1))) if to_data else levels
