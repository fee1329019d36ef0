"""How good: every number with its error bar.

All functions take rows (N, D) in the encoding of the domain; two-sample measures take features, what
`nets.Features` makes of rows. Nats become bits here and nowhere below.
"""

from pofx.measure.c2st import c2st
from pofx.measure.code import knn_accuracy
from pofx.measure.hidden_cells import Calibration, HiddenCells, PerCell, calibration, hide, scales, squared_error, surprise, wrong
from pofx.measure.kernel import median_distance
from pofx.measure.likelihood import bits_per_dim, held_out, paired_difference
from pofx.measure.marginals import marginal_distances
from pofx.measure.memorising import Memorising, memorising
from pofx.measure.mmd import mmd
from pofx.measure.rows import features, with_the_holes_of
from pofx.measure.two_samples import TwoSamples, thinned

__all__ = [
    "Calibration",
    "HiddenCells",
    "Memorising",
    "PerCell",
    "TwoSamples",
    "bits_per_dim",
    "c2st",
    "calibration",
    "features",
    "held_out",
    "hide",
    "knn_accuracy",
    "marginal_distances",
    "median_distance",
    "memorising",
    "mmd",
    "paired_difference",
    "scales",
    "squared_error",
    "surprise",
    "thinned",
    "with_the_holes_of",
    "wrong",
]
