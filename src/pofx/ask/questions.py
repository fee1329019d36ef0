"""Which questions a family answers, and of what kind the answer is: read off the classes.

A family answers an optional question when it overrides the question's hook; the label stands beside
the hook (`pofx.models.base.labelled`), exact where there is none.
"""

from collections.abc import Callable
from typing import Any

from pofx.models.base import Model
from pofx.types import Kind

OPTIONAL = {  # question: its hook
    "marginal": "_marginal",
    "conditional": "_conditional",
    "mean": "_mean",
    "mode": "_mode",
    "impute": "_impute",
    "complete": "_complete",
    "encode": "_encode",
    "decode": "_decode",
}
ALWAYS: dict[str, Callable[[Any], Kind]] = {
    "log_prob": lambda model: model.density,
    "missing cells": lambda model: model.missing,
    "sample": lambda model: model.sampling,
}
QUESTIONS = (*ALWAYS, *OPTIONAL)


def kind_of(model: Model | type[Model], question: str) -> Kind:
    """What the answer to a question is; NONE when it is refused."""
    if question in ALWAYS:
        return ALWAYS[question](model)
    cls = model if isinstance(model, type) else type(model)
    hook = getattr(cls, OPTIONAL[question])
    return Kind.NONE if hook is getattr(Model, OPTIONAL[question]) else getattr(hook, "kind", Kind.EXACT)
