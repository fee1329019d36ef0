"""Questions to any model, answered by sampling, each with its error: what a closed form says exactly, and what says the same without one.

They work on a `Model`, tensors and nats: events in codes, rows (N, D).
"""

from pofx.ask.generic.acquire import Acquisition, acquire
from pofx.ask.generic.closed import closed
from pofx.ask.generic.conditional import METHODS, conditional
from pofx.ask.generic.draws import Draws
from pofx.ask.generic.entropy import entropy
from pofx.ask.generic.expectation import expectation, probability
from pofx.ask.generic.information import mutual_information
from pofx.ask.generic.marginal import drop, log_marginal
from pofx.ask.generic.mode import Mode, mode
from pofx.ask.generic.posterior import posterior
from pofx.ask.generic.products import expected_product
from pofx.events import Among, Between, Event, Value

__all__ = [
    "METHODS",
    "Acquisition",
    "Among",
    "Between",
    "Draws",
    "Event",
    "Mode",
    "Value",
    "acquire",
    "closed",
    "conditional",
    "drop",
    "entropy",
    "expectation",
    "expected_product",
    "log_marginal",
    "mode",
    "mutual_information",
    "posterior",
    "probability",
]
