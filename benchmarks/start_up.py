"""How long `pofx --help` and `import pofx` take, and that neither loads torch.

    python benchmarks/start_up.py [--repeats 15]

Prints medians in seconds and, last, one JSON line.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import pofx": [sys.executable, "-c", "import pofx"],
    "pofx --help": [sys.executable, "-m", "pofx.cli.main", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
}


def seconds(command):
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    times = {name: [] for name in COMMANDS}
    for _ in range(repeats):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        print(f"{name:20s} {value:.3f} s")
    print(json.dumps({name: round(value, 4) for name, value in medians.items()}))


if __name__ == "__main__":
    main()
