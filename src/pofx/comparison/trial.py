"""Learn one family on the task and measure it; a family that fails becomes a row with its reason."""

import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pofx.comparison.answering import answering
from pofx.comparison.memory import PeakMemory
from pofx.comparison.result import Code, Floats, Learning, Likelihood, Result, Sampling
from pofx.comparison.surface import grid, is_plane
from pofx.comparison.task import Task
from pofx.data import encode
from pofx.errors import DataError, PofxError, Unavailable
from pofx.measure import (
    bits_per_dim,
    c2st,
    features,
    held_out,
    knn_accuracy,
    marginal_distances,
    median_distance,
    memorising,
    mmd,
    thinned,
    with_the_holes_of,
)
from pofx.models.base import Diagnosis
from pofx.models.registry import family as registered
from pofx.types import Kind

SAMPLES = 1000
CODED_ROWS = 5000  # training rows whose codes are the neighbours
SURFACE_SECONDS = 20.0  # a density that would take longer is not drawn
Fit = Callable[..., Any]


@dataclass(frozen=True)
class Plan:
    """How one family is learned.

    Args:
        family: its name in the registry.
        options: those that differ from its own defaults.
        budget: seconds for learning.
        seed: of learning, sampling and measuring.
        device: where to learn.
        progress: as of `fit`.
        folder: where to save the learned model, or None.
    """

    family: str
    options: Mapping[str, Any] = field(default_factory=dict)
    budget: float | None = None
    seed: int = 0
    device: str = "auto"
    progress: bool | None = False
    folder: Path | None = None


def trial(task: Task, plan: Plan, fit: Fit) -> Result:
    """Learn and measure one family. Whatever goes wrong is the reason of a failed row."""
    line = registered(plan.family)
    row = Result(plan.family, line.says)
    try:
        config = line.configure(plan.options)
        row = replace(row, takes=str(config.takes), config=config.model_dump(mode="json"))
        return _measured(row, task, plan, fit)
    except Exception as error:  # whatever it was, the other families go on
        trace = "" if isinstance(error, PofxError) else traceback.format_exc()
        return replace(row, failed=True, reason=_sentence(error), trace=trace)


def _measured(row: Result, task: Task, plan: Plan, fit: Fit) -> Result:
    p, learning = _learn(task, plan, fit)
    likelihood, reason = _likelihood(p, task)
    return replace(
        row,
        reason=reason,
        learning=learning,
        likelihood=likelihood,
        sampling=_sampling(p, task, plan.seed),
        code=_code(p, task),
        latents=_latents(p, task, plan.seed),
        answering=answering(p.model, task, plan.seed),
        surface=_surface(p, task, likelihood),
    )


def _learn(task: Task, plan: Plan, fit: Fit) -> tuple[Any, Learning]:
    start = time.perf_counter()
    with PeakMemory() as memory:
        p = fit(
            task.rows(task.train),
            plan.family,
            holdout=task.rows(task.holdout),
            schema=task.domain,
            seed=plan.seed,
            budget=plan.budget,
            device=plan.device,
            progress=plan.progress,
            **plan.options,
        )
    seconds = time.perf_counter() - start
    if plan.folder is not None:
        p.save(plan.folder / f"{plan.family.replace(':', '-')}.safetensors")  # no file system minds a dash
    record, numbers = p.record, sum(t.numel() for t in p.model.state_dict().values() if t.is_floating_point())
    history = [dict(look) for look in record.history]
    return p, Learning(seconds, memory.megabytes, numbers, record.stopped, history, record.kept, record.surrogate)


def _likelihood(p: Any, task: Task) -> tuple[Likelihood | None, str]:  # noqa: ANN401
    """Of the test rows, and what it lacks, in words."""
    start = time.perf_counter()
    answer = p.log_prob(task.rows(task.test))
    seconds = time.perf_counter() - start
    if answer.kind in {Kind.UNNORMALISED, Kind.NONE}:
        return None, f"its log p is {answer.kind}: not a number to compare"
    nats = np.asarray(answer, dtype=np.float64)
    if np.isnan(nats).any():
        return None, f"its log p is not a number for {int(np.isnan(nats).sum())} of {len(nats)} test rows"
    score = held_out(torch.as_tensor(nats), answer.kind)
    impossible = int(np.isneginf(nats).sum())
    lacks = f"it gives probability 0 to {impossible} of {len(nats)} test rows" if impossible else ""
    return Likelihood(nats, score, bits_per_dim(float(score), len(task.domain)), 1000 * seconds / len(nats)), lacks


def _sampling(p: Any, task: Task, seed: int) -> Sampling:  # noqa: ANN401
    start = time.perf_counter()
    table = p.sample(SAMPLES, seed=seed)
    seconds = time.perf_counter() - start
    x = encode(table, task.domain)
    if not bool(x.isfinite().all()):
        raise DataError(f"{int((~x.isfinite()).any(1).sum())} of its {SAMPLES} samples are not finite")
    generator = torch.Generator().manual_seed(seed)
    rows = thinned(task.test, generator)
    holed = with_the_holes_of(x, rows, generator=generator)
    train, test, drawn = (features(part, task.domain, task.train) for part in (task.train, rows, holed))
    return Sampling(
        x.numpy(),
        1000 * seconds / SAMPLES,
        mmd(drawn, test, length=median_distance(train, generator=generator), generator=generator),
        c2st(drawn, test, generator=generator),
        memorising(drawn, test, train),
        marginal_distances(x, task.test, task.domain),
    )


def _code(p: Any, task: Task) -> Code | None:  # noqa: ANN401
    """The representation of the test rows, where the family has one."""
    try:
        test = torch.as_tensor(p.encode(task.rows(task.test)))
    except Unavailable:
        return None
    accuracy = None
    if task.labels is not None:
        learned = torch.as_tensor(p.encode(task.rows(task.train[:CODED_ROWS])))
        accuracy = knn_accuracy(learned, task.labels[0][:CODED_ROWS], test, task.labels[1])
    plane, shares = principal_plane(test)
    return Code(test.shape[1], accuracy, plane, shares)


def _latents(p: Any, task: Task, seed: int) -> Diagnosis | None:  # noqa: ANN401
    """What the family's latents carry, where it has some."""
    return None if p.model.answers("diagnose") is Kind.NONE else p.diagnose(task.rows(task.test), seed=seed)


def principal_plane(code: Tensor) -> tuple[Floats | None, tuple[float, float] | None]:
    """Codes (M, L) on their two principal axes, (M, 2), and the share of the variance on each; None when L < 2."""
    if code.shape[1] < 2 or len(code) < 3:
        return None, None
    centred = (code - code.mean(0)).double()
    _, spread, directions = torch.linalg.svd(centred, full_matrices=False)
    shares = spread.square() / spread.square().sum().clamp_min(1e-300)
    return (centred @ directions[:2].T).numpy(), (float(shares[0]), float(shares[1]))


def _surface(p: Any, task: Task, likelihood: Likelihood | None) -> Floats | None:  # noqa: ANN401
    if likelihood is None or not is_plane(task.domain):
        return None
    points = grid(torch.cat((task.train, task.test)))
    if len(points) * likelihood.seconds_per_1000 / 1000 > SURFACE_SECONDS:
        return None
    side = math.isqrt(len(points))
    return np.asarray(p.log_prob(task.rows(points)), dtype=np.float64).reshape(side, side)


def _sentence(error: Exception) -> str:
    first = (str(error).strip() or "no message").splitlines()[0]
    return first if isinstance(error, PofxError) else f"{type(error).__name__}: {first}"
