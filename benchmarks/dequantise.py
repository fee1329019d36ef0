"""What codes as reals cost: test nats a row of digits (8 x 8, 17 levels), by scores and by cells of width 1, uniform and learned noise.

    python benchmarks/dequantise.py [--families nsf nsf-ar realnvp] [--draws 32]

Each variant is learned once (seed 0, its own defaults). The figure is the mean of the bound, beside it the tighter bound, the log of
the mean weight over the draws, and the mean of the bound once learned noise has been fitted to each row (`refine=200`).
Prints the figures with their bars and, last, one JSON line.
"""

import argparse
import json
import time
from dataclasses import replace

import pofx

VARIANTS = ("", ":noise=variational", ":dequantise=uniform", ":dequantise=uniform:noise=variational")
REFINE = 200  # steps that fit learned noise to each row; the last figure
BARS = {"nsf:dequantise=uniform": 106.0, "nsf-ar:dequantise=uniform": 98.0}  # test nats a row, at most
GAIN = 10.0  # of learned over uniform noise, Real NVP by cells of width 1, at least


def measured(name, draws):
    start = time.perf_counter()
    p, test = pofx.fit("digits", name, progress=False), pofx.load("digits").test
    seconds, score = time.perf_counter() - start, p.score(test)
    asked, figures = p.model.lifting, {"nats": -float(score), "error": float(score.error), "seconds": seconds}
    for kind, lifting in {"tight": replace(asked, draws=draws, tight=True), "refined": replace(asked, refine=REFINE)}.items():
        p.model.lifting = lifting
        figures[kind] = -float(p.score(test)) if kind == "tight" or asked.learned else figures["nats"]
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=["nsf", "nsf-ar", "realnvp"])
    parser.add_argument("--draws", type=int, default=32)
    options, figures = parser.parse_args(), {}
    for name in (family + variant for family in options.families for variant in VARIANTS):
        row = figures[name] = measured(name, options.draws)
        bar = f"bar {BARS[name]}" if name in BARS else ""
        told = f"tight {row['tight']:7.2f}  refined {row['refined']:7.2f}"
        print(f"{name:48s} {row['nats']:7.2f} ± {row['error']:.2f}  {told}  {row['seconds']:5.0f} s  {bar}", flush=True)
    if "realnvp" in options.families:
        uniform, learned = (figures["realnvp" + variant] for variant in VARIANTS[2:])
        gains = [uniform["nats"] - learned[kind] for kind in ("nats", "refined")]
        print(f"learned noise gains {gains[0]:.2f} nats, fitted to each row {gains[1]:.2f} (bar {GAIN})")
    print(json.dumps({name: {key: round(value, 2) for key, value in row.items()} for name, row in figures.items()}))


if __name__ == "__main__":
    main()
