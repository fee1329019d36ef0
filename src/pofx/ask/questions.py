"""Which questions there are, and what a model's answer to each is."""

from pofx.models.base import Model
from pofx.types import Kind

OPTIONAL = ("marginal", "conditional", "mean", "mode", "impute", "complete", "restrict", "entropy", "encode", "decode")
QUESTIONS = ("log_prob", "missing cells", "sample", *OPTIONAL)


def kinds(model: Model) -> dict[str, Kind]:
    """Each question and what its answer is; NONE when it is refused."""
    always = {"log_prob": model.density, "missing cells": model.missing, "sample": model.sampling}
    return always | {question: model.answers(question) for question in OPTIONAL}
