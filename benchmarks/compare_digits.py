"""The main job measured: `pofx compare digits`, its wall time, its peak memory, and every family's test nats against its bar.

    python benchmarks/compare_digits.py [--out DIR]

Prints the figures with their bars and, last, one JSON line.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARS = {"latent_class": 101.5, "gmm": 127.0, "vae": 97.0, "realnvp": 140.0, "independent": 106.9}  # test nats a row, at most


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    out = parser.parse_args().out
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pofx.cli.main", "compare", "digits", "-o", str(out)], check=True)
    wall = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    rows = {row["family"]: row for row in json.loads((out / "results.json").read_text())["families"]}
    print(f"\nwall {wall:.0f} s (bar 300), peak memory {peak:.2f} GiB (bar 1.86 GiB = 2 GB)")
    for family, row in rows.items():
        bar = BARS.get(family)
        print(f"{family:14s} {row['test_nats']:8.2f} ± {row['test_nats_se']:.2f} {row['kind']:6s} {f'bar {bar}' if bar else ''}")
    figures = {"wall_s": round(wall, 1), "peak_gib": round(peak, 3)} | {f: round(r["test_nats"], 2) for f, r in rows.items()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
