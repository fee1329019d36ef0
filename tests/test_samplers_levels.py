"""Grids of noise levels: their ends, their formulas, and grids that are refused."""

import math

import pytest
import torch

from pofx.errors import OptionError
from pofx.samplers import along_path, check_levels, karras, log_uniform

S_MIN, S_MAX = 0.02, 50.0


def cosine(t):
    return torch.tan(0.5 * math.pi * t)


GRIDS = {
    "karras": lambda steps, to_data: karras(steps, S_MIN, S_MAX, to_data=to_data),
    "log uniform": lambda steps, to_data: log_uniform(steps, S_MIN, S_MAX, to_data=to_data),
    "along a path": lambda steps, to_data: along_path(
        steps, cosine, t_min=2 / math.pi * math.atan(S_MIN), t_max=2 / math.pi * math.atan(S_MAX), to_data=to_data
    ),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_grid_has_a_level_more_than_steps_and_falls_to_the_data(name, steps):
    grid, short = GRIDS[name](steps, True), GRIDS[name](steps, False)
    assert grid.shape == short.shape == (steps + 1,)
    assert grid[-1] == 0
    check_levels(grid)
    assert float(short[-1]) == pytest.approx(S_MIN, rel=1e-12)
    check_levels(short, s_min=float(short[-1]))
    assert [float(g[0]) for g in (grid, short)] == pytest.approx([S_MAX] * 2, rel=1e-12)
    if steps > 1:
        assert float(grid[-2]) == pytest.approx(S_MIN, rel=1e-12)


def test_formulas():
    """rho = 1 is uniform in s, rho = 7 in s^(1/7), rho to infinity uniform in log s as `log_uniform`; a path is uniform in t."""
    for rho in (1.0, 7.0):
        gaps = karras(9, S_MIN, S_MAX, rho=rho, to_data=False).pow(1 / rho).diff()
        assert torch.allclose(gaps, gaps.mean().expand(9))
    ratios = log_uniform(9, S_MIN, S_MAX, to_data=False).log().diff()
    assert torch.allclose(ratios, ratios.mean().expand(9))
    assert torch.allclose(karras(9, S_MIN, S_MAX, rho=1e8), log_uniform(9, S_MIN, S_MAX), rtol=1e-5)
    times = 2 / math.pi * along_path(9, cosine, t_min=0.1, t_max=0.9, to_data=False).atan()
    assert torch.allclose(times, torch.linspace(0.9, 0.1, 10))


BAD = {
    "no steps": (lambda: karras(0, S_MIN, S_MAX), "steps is at least 1, got 0"),
    "no steps of log s": (lambda: log_uniform(0, S_MIN, S_MAX), "steps is at least 1, got 0"),
    "levels the wrong way": (lambda: karras(5, 2.0, 1.0), "0 < s_min < s_max, got s_min=2.0 and s_max=1.0"),
    "s_min of 0": (lambda: log_uniform(5, 0.0, 1.0), "0 < s_min < s_max, got s_min=0.0"),
    "rho of 0": (lambda: karras(5, S_MIN, S_MAX, rho=0.0), "rho is positive, got 0.0"),
    "times the wrong way": (lambda: along_path(5, cosine, t_min=0.5, t_max=0.5), "t_min < t_max, got 0.5 and 0.5"),
    "a falling path": (lambda: along_path(5, lambda t: 1 - t, t_max=0.9), "fall from each to the next"),
    "one level": (lambda: check_levels(torch.zeros(1)), "is at least 1, got 0"),
    "equal levels": (lambda: check_levels(torch.tensor([1.0, 1.0, 0.0])), "fall from each to the next"),
    "NaN": (lambda: check_levels(torch.tensor([1.0, torch.nan, 0.0])), "fall from each to the next"),
    "noise left": (lambda: check_levels(torch.tensor([1.0, 0.1])), "the last noise level is 0.0, where the data are, got 0.1"),
    "another end": (lambda: check_levels(torch.tensor([1.0, 0.2]), s_min=0.1), "the last noise level is 0.1, where the data are, got 0.2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_grids_are_refused(name):
    make, sentence = BAD[name]
    with pytest.raises(OptionError, match=sentence):
        make()
