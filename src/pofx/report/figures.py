"""The figures of the page. Grey is data, blue is samples, everywhere."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from pofx.comparison import Result, Task
from pofx.comparison.surface import axes as ticks_of
from pofx.comparison.surface import window
from pofx.domain import LEVELLED, Variable
from pofx.measure import Calibration
from pofx.report.svg import ACCENT, CLASSES, DATA_POINTS, FAINT, INK, SAMPLE_POINTS, bare, canvas, inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

Floats = NDArray[np.float64]
POINTS = 600  # in a scatter
PAIRED = 4  # variables of a pair plot
PANEL = (2.5, 2.1)  # inches


# -- learning --------------------------------------------------------------------------------------


def learning_curve(result: Result) -> str:
    """Training and held-out loss a step of learning; a ring at the weights that were kept."""
    history = [] if result.learning is None else result.learning.history
    epochs = np.array([look["epoch"] for look in history], dtype=float)
    train, held = (np.array([np.nan if look[k] is None else look[k] for look in history], dtype=float) for k in ("train", "holdout"))
    with canvas(*PANEL) as figure:
        axes = figure.subplots()
        axes.plot(epochs, train, color=FAINT, linewidth=1.2)
        axes.plot(epochs, held, color=ACCENT, linewidth=1.4)
        kept = [k for k, look in enumerate(history) if result.learning and look["step"] == result.learning.kept]
        best = held if np.isfinite(held).any() else train
        axes.plot(epochs[kept], best[kept], "o", markersize=4.5, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=0.9)
        axes.set_ylim(*_calm(np.concatenate((train, held))))
        axes.ticklabel_format(useOffset=False)
        axes.set_xlabel("epoch" if "learning_rate" in result.config else "step")
        return inline(figure, f"learning-{result.family}")


def _calm(losses: Floats) -> tuple[float, float]:
    """Limits that a few wild first losses do not decide."""
    finite = losses[np.isfinite(losses)]
    lowest, high = float(finite.min()), float(np.quantile(finite, 0.95))
    room = 0.08 * (high - lowest) or 1.0
    return lowest - room, high + 2 * room


# -- the plane -------------------------------------------------------------------------------------


def points(x: Floats, task: Task, name: str, colour: str = SAMPLE_POINTS) -> str:
    """Rows of the plane as dots."""
    with canvas(*PANEL) as figure:
        axes = figure.subplots()
        axes.scatter(x[: 3 * POINTS, 0], x[: 3 * POINTS, 1], s=1.6, color=colour, linewidths=0, alpha=0.7, rasterized=True)
        _framed(axes, task)
        return inline(figure, name)


def surface(log_p: Floats, task: Task, name: str) -> str:
    """p over the plane: the deeper the blue the denser."""
    first, second = ticks_of(_all(task))
    density = np.exp(np.nan_to_num(log_p - np.nanmax(log_p), neginf=-700.0))
    with canvas(*PANEL) as figure:
        axes = figure.subplots()
        extent = (first[0], first[-1], second[0], second[-1])
        axes.imshow(tinted(density), origin="lower", extent=extent, aspect="auto", interpolation="bilinear")
        _framed(axes, task)
        return inline(figure, name)


def tinted(density: Floats, colour: str = SAMPLE_POINTS) -> Floats:
    """One colour, whose opacity is the square root of the density (at most 1), so that tails show on white and on black."""
    from matplotlib.colors import to_rgb

    rgba = np.empty((*density.shape, 4))
    rgba[..., :3] = to_rgb(colour)
    rgba[..., 3] = np.sqrt(density)
    return rgba


def _framed(axes: "Axes", task: Task) -> None:
    (left, right), (bottom, top) = window(_all(task))
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    bare(axes)


def _all(task: Task) -> torch.Tensor:
    return torch.cat((task.train, task.test))


# -- pairs of variables ----------------------------------------------------------------------------


def pairs(result: Result, task: Task, chosen: Sequence[int]) -> str:
    """Every pair of some variables, as many samples as rows of data over them; on the diagonal each variable alone."""
    rows = torch.cat((task.test, task.train))[:POINTS].numpy()
    data, samples = rows[:, chosen], (result.sampling.x if result.sampling else rows[:0])[: len(rows), chosen]
    variables = [task.domain.variables[d] for d in chosen]
    width, height = 1.35 * len(chosen) + 0.6, 1.15 * len(chosen) + 0.5
    with canvas(width, height, layout=None) as figure:
        grid = figure.add_gridspec(
            len(chosen), len(chosen), left=0.6 / width, right=0.995, bottom=0.42 / height, top=0.99, wspace=0.14, hspace=0.14
        )
        for i, j in ((a, b) for a in range(len(chosen)) for b in range(a + 1)):
            axes = figure.add_subplot(grid[i, j])
            axes.set_xlim(*_limits(data[:, j]))
            if i == j:
                _alone(axes, data[:, i], samples[:, i], variables[i])
            else:
                axes.set_ylim(*_limits(data[:, i]))
                _scatter(axes, data[:, [j, i]], samples[:, [j, i]])
                _ticked(axes.yaxis, variables[i], j == 0)
            _ticked(axes.xaxis, variables[j], i == len(chosen) - 1)
        return inline(figure, f"pairs-{result.family}")


def _limits(column: Floats) -> tuple[float, float]:
    """The range of the data and a margin, the same for every family."""
    seen = column[~np.isnan(column)]
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
    room = 0.15 * (high - low) or 0.5
    return low - room, high + room


def _scatter(axes: "Axes", data: Floats, samples: Floats) -> None:
    for x, colour, size in ((data, DATA_POINTS, 5.0), (samples, SAMPLE_POINTS, 2.6)):
        x = x + _spread(len(x)) * _steps(data)  # levels and rounded values would hide each other
        axes.scatter(x[:, 0], x[:, 1], s=size, color=colour, alpha=0.6, linewidths=0, rasterized=True)


def _spread(n: int) -> Floats:
    """n points that fill the square (-1/2, 1/2)^2 evenly, without chance."""
    return np.arange(1, n + 1)[:, None] * np.array([0.7548776662466927, 0.5698402909980532]) % 1 - 0.5


def _steps(data: Floats) -> Floats:
    """Per variable the least distance between two values where they are few, else 0."""
    distinct = [np.unique(column[~np.isnan(column)]) for column in data.T]
    return np.array([0.6 * np.diff(values).min() if 1 < len(values) <= 40 else 0.0 for values in distinct])


def _alone(axes: "Axes", data: Floats, samples: Floats, v: Variable) -> None:
    data = data[~np.isnan(data)]
    middle = np.arange(len(v.levels) + 1) - 0.5
    bins = (middle if v.kind in LEVELLED else np.histogram_bin_edges(data, bins=min(24, 4 + len(data) // 8))).tolist()
    shares = [np.full(len(x), 1 / max(len(x), 1)) for x in (data, samples)]
    axes.hist(data, bins=bins, weights=shares[0], color=FAINT, alpha=0.45)
    axes.hist(samples, bins=bins, weights=shares[1], histtype="step", color=ACCENT, linewidth=1.2)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _ticked(axis: "Axis", v: Variable, shown: bool) -> None:
    """Ticks at levels or at a few round values; name and numbers only at the border of the grid."""
    from matplotlib.ticker import MaxNLocator

    if v.kind in LEVELLED and len(v.levels) <= 6:
        axis.set_ticks(range(len(v.levels)), [str(level)[:9] for level in v.levels])
    else:
        axis.set_major_locator(MaxNLocator(3))
    axis.set_tick_params(labelbottom=shown, labelleft=shown, labelsize=6)
    if shown:
        axis.set_label_text(v.name[:22])


def telling(task: Task) -> list[int]:
    """The variables that a pair plot shows: those most correlated with others, in the order of the table."""
    x = task.train.numpy()
    filled = np.where(np.isnan(x), np.nanmean(x, axis=0), x)
    varies = np.flatnonzero(filled.std(axis=0) > 0)
    related = np.abs(np.corrcoef(filled[:, varies].T)).reshape(len(varies), -1).sum(0)
    return sorted(int(d) for d in varies[np.argsort(-related)[:PAIRED]])


# -- answers ---------------------------------------------------------------------------------------


def calibration(found: Calibration, name: str) -> str:
    """The share of hidden numbers within their central intervals, against the intervals' probability; a band of two standard errors."""
    nominal = np.linspace(0, 1, 41)[1:-1]
    covers = [found.coverage(float(share)) for share in nominal]
    share, error = (np.array([float(a.value if part == "value" else a.error or 0) for a in covers]) for part in ("value", "error"))
    with canvas(PANEL[1], PANEL[1]) as figure:
        axes = figure.subplots()
        axes.plot((0, 1), (0, 1), color=FAINT, linewidth=1.2)
        axes.fill_between(nominal, share - 2 * error, share + 2 * error, color=ACCENT, alpha=0.2, linewidth=0)
        axes.plot(nominal, share, color=ACCENT, linewidth=1.4)
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), xlabel="probability of the interval", ylabel="held")
        return inline(figure, name)


# -- codes -----------------------------------------------------------------------------------------


def code_plane(result: Result, classes: NDArray[np.int64] | None) -> str:
    """The test rows' codes on their two principal axes, coloured by class where there are classes."""
    plane = result.code.plane if result.code is not None and result.code.plane is not None else np.empty((0, 2))
    plane, classes = plane[: 3 * POINTS], None if classes is None else classes[: 3 * POINTS]
    colours = SAMPLE_POINTS if classes is None else [DATA_POINTS if k < 0 else CLASSES[k % len(CLASSES)] for k in classes]
    with canvas(*PANEL) as figure:
        axes = figure.subplots()
        axes.scatter(plane[:, 0], plane[:, 1], s=5, c=colours, linewidths=0, alpha=0.85, rasterized=True)
        bare(axes)
        return inline(figure, f"code-{result.family}")
