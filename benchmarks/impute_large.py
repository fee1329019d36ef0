"""Memory of imputing a large table in one call: beside input and output, that of a piece of 65,536 rows.

    python benchmarks/impute_large.py [--rows 1000000] [--columns 20] [--family gaussian]

Learned from 5,000 rows of correlated normal columns; then one p.impute of all rows, a fifth of whose cells is missing. Resident memory is
read from /proc (Linux) by a thread, every 5 ms; what is there before the call, the input among it, and the output are subtracted from the
peak. Prints one JSON line.
"""

import argparse
import json
import threading
import time

import numpy as np

import pofx


def resident():
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


class Peak(threading.Thread):
    """The largest resident memory while it runs."""

    def __init__(self):
        super().__init__(daemon=True)
        self.bytes, self.over = resident(), False

    def run(self):
        while not self.over:
            self.bytes = max(self.bytes, resident())
            time.sleep(0.005)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--family", default="gaussian")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    x = random.standard_normal((options.rows, options.columns)) @ random.standard_normal((options.columns, options.columns))
    x[random.random(x.shape) < 0.2] = np.nan
    p = pofx.fit(x[:5000], options.family)
    p.impute(x[:1000])  # what is loaded once
    before, peak = resident(), Peak()
    peak.start()
    start = time.perf_counter()
    filled = p.impute(x)
    seconds = time.perf_counter() - start
    peak.over = True
    peak.join()
    above = (peak.bytes - before - filled.nbytes) / 2**20
    figures = {"family": options.family, "rows": options.rows, "columns": options.columns, "seconds": round(seconds, 1)}
    memory = {"MiB in": round(x.nbytes / 2**20), "MiB above input and output": round(above)}
    print(json.dumps(figures | memory | {"holes left": int(np.isnan(filled).sum())}))


if __name__ == "__main__":
    main()
