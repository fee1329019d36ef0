"""How far a run is: a bar on a terminal, plain lines elsewhere when asked for, else nothing."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, str], None]  # told how many steps are done, and loss and held-out loss in words
EVERY = 5.0  # seconds between two plain lines


@contextmanager
def shown(wanted: bool | None, total: int | None) -> Iterator[Progress]:
    """The progress of a run of `total` steps (None: unknown) on standard error.

    Args:
        wanted: None: a bar if standard error is a terminal, else nothing; True: where it is none, a line every few seconds.
        total: how many steps there are at most.
    """
    terminal = sys.stderr.isatty()
    if wanted is False or (wanted is None and not terminal):
        yield _silent
    elif terminal:
        with _bar(total) as bar:
            yield bar
    else:
        yield Lines(total)


def _silent(done: int, says: str) -> None:
    pass


class Lines:
    """One plain line every few seconds, for logs.

    Args:
        total: how many steps there are at most.
    """

    def __init__(self, total: int | None) -> None:
        self.of = f"/{total}" if total else ""
        self.start = self.last = time.monotonic()

    def __call__(self, done: int, says: str) -> None:
        """Print a line if the last one is old enough."""
        now = time.monotonic()
        if now - self.last >= EVERY:
            self.last = now
            print(f"step {done}{self.of}  {says}  {now - self.start:.0f} s", file=sys.stderr, flush=True)


@contextmanager
def _bar(total: int | None) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Rich

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TextColumn("{task.fields[speed]}"))
    with Rich(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True) as rich:
        task = rich.add_task("", total=total, speed="")

        def update(done: int, says: str) -> None:
            rate = rich.tasks[0].speed
            rich.update(task, completed=done, description=says, speed=f"{rate:.0f} steps/s" if rate else "")

        yield update
