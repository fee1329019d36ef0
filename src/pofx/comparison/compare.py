"""compare: every family on the same rows, under the same budget."""

import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from pofx.ask import fit as learn
from pofx.comparison.comparison import Comparison
from pofx.comparison.findings import Setting
from pofx.comparison.result import Result
from pofx.comparison.task import Schema, Task, task_of
from pofx.comparison.terminal import nats
from pofx.comparison.trial import Fit, Plan, trial
from pofx.comparison.words import duration
from pofx.domain import Domain
from pofx.errors import OptionError
from pofx.learn.record import versions
from pofx.models.registry import families as registry
from pofx.models.registry import family as registered

Families = Sequence[str] | Mapping[str, Mapping[str, Any]] | None


def compare(
    data: Any,  # noqa: ANN401
    families: Families = None,
    *,
    budget: float | None = None,
    seed: int = 0,
    jobs: int = 1,
    schema: Schema = None,
    test: Any = None,  # noqa: ANN401
    device: str = "auto",
    progress: bool = False,
    save_to: str | PathLike[str] | None = None,
    fit: Fit = learn,
) -> Comparison:
    """Learn every family on the same rows and measure each on the same test rows.

    A family that fails is a row with its reason, and the others go on; the registry's baselines are always among them.
    One after another, families share a process, so peak memory includes what earlier ones left; jobs share the cores.

    Args:
        data: the name of a built-in set (with its own split), a path, a frame, an array.
        families: names, or name -> options; every family of the registry when left out. A name may carry options, and so come
            again: ["nsf", "nsf:dequantise=uniform"].
        budget: seconds each may learn.
        seed: of the split, of learning, of sampling and of measuring.
        jobs: families learned at the same time, in joblib's processes (or wherever its `parallel_config` says).
        schema: the domain, or corrections of the inferred one, column -> kind.
        test: rows to test on; a fifth of the data when none are given.
        device: where to learn.
        progress: whether to say on standard error how far it is.
        save_to: a folder for the learned models, each as FAMILY.safetensors; None: they are not kept.
        fit: learns one family, as `pofx.fit` does.

    Raises:
        PofxError: the data or the options can not work; found before anything is learned.
    """
    if jobs < 1 or (budget is not None and not budget > 0):
        raise OptionError(f"jobs and budget are positive, got jobs={jobs} and budget={budget}")
    start = time.perf_counter()
    chosen = _chosen(families)
    task = task_of(data, test=test, schema=schema, seed=seed)
    if families is None and len(task.domain.shape) == 1:
        chosen = {name: options for name, options in chosen.items() if not registered(name).config.images}
    bar, folder = None if progress and jobs == 1 else False, None if save_to is None else _made(save_to)
    plans = [Plan(name, options, budget, seed, device, bar, folder) for name, options in chosen.items()]
    rows = _trials(task, plans, fit, jobs)
    results = tuple(_told(rows, len(plans)) if progress else rows)
    again = _command(data, families, budget, seed, schema)
    return Comparison(task, results, Setting(seed, budget, jobs, again, time.perf_counter() - start, machine(), versions()))


def _chosen(families: Families) -> dict[str, Mapping[str, Any]]:
    """Name -> options, checked, in the registry's order: the chosen ones and every baseline."""
    if isinstance(families, str):
        raise OptionError(f"families are a list of names, got {families!r}: write [{families!r}]")
    if families is None:
        return {name: {} for name in registry()}
    wanted: dict[str, Mapping[str, Any]] = dict(families) if isinstance(families, Mapping) else {name: {} for name in families}
    for name, options in wanted.items():
        registered(name).configure(options)
    order = list(registry())
    baselines: dict[str, Mapping[str, Any]] = {name: {} for name, line in registry().items() if line.baseline}
    return dict(sorted((baselines | wanted).items(), key=lambda item: order.index(item[0].partition(":")[0])))


def _trials(task: Task, plans: Sequence[Plan], fit: Fit, jobs: int) -> Iterable[Result]:
    if jobs == 1:
        return (trial(task, plan, fit) for plan in plans)
    from joblib import Parallel, delayed

    return Parallel(n_jobs=jobs, return_as="generator")(delayed(trial)(task, plan, fit) for plan in plans)


def _told(results: Iterable[Result], total: int) -> Iterator[Result]:
    """Pass the results on, with a line each on standard error."""
    for k, result in enumerate(results, start=1):
        seconds = "" if result.learning is None else f", learned in {duration(result.learning.seconds)}"
        says = f"failed: {result.reason}" if result.failed else f"−log p {nats(result)} nats a row{seconds}"
        print(f"[{k}/{total}] {result.family}: {says}", file=sys.stderr, flush=True)
        yield result


def _made(folder: str | PathLike[str]) -> Path:
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _command(data: Any, families: Families, budget: float | None, seed: int, schema: Schema) -> str:  # noqa: ANN401
    """What makes the comparison again: a shell command where the shell can say it, else Python."""
    kinds = {} if isinstance(schema, Domain) else dict(schema or {})
    in_words = not isinstance(schema, Domain) and all(isinstance(kind, str) for kind in kinds.values())
    if not (isinstance(data, str | PathLike) and in_words) or isinstance(families, Mapping):
        shown = repr(data) if isinstance(data, str) else "data"
        return f"pofx.compare({shown}, {families!r}, budget={budget}, seed={seed}{', schema=schema' if schema is not None else ''})"
    parts = ["pofx", "compare", str(data), *(["--families", ",".join(families)] if families else [])]
    parts += ["--budget", f"{budget:g}"] if budget is not None else []
    parts += [part for name, kind in kinds.items() for part in ("--kind", f"{name}={kind}")]
    return shlex.join([*parts, "--seed", str(seed)])


def machine() -> str:
    """This machine in words: what decides about speed."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.system()} on {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {device}"
