"""The largest resident memory of this process while something runs."""

import os
import sys
import threading
from pathlib import Path
from types import TracebackType

STATM = Path("/proc/self/statm")  # pages, the second number resident
MB = 1e6


class PeakMemory:
    """A context that watches the process's resident memory; afterwards `megabytes` is the largest seen.

    Where /proc tells the resident size now, a thread reads it every 10 ms; elsewhere it is the largest size
    since the process began (getrusage), and None where there is neither. It is the whole process: the library itself (some
    300 MB of PyTorch), the data, and what earlier runs left with the allocator.
    """

    def __init__(self, interval: float = 0.01) -> None:
        self.megabytes: float | None = None
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._look()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(self._interval):
            self._look()

    def _look(self) -> None:
        now = resident()
        if now is not None:
            self.megabytes = max(now, self.megabytes or 0.0)


def resident() -> float | None:
    """Megabytes resident now, or the largest so far where only that is known."""
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / MB if sys.platform == "darwin" else largest * 1024 / MB
