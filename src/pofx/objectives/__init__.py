"""Distances between distributions as functions of callables."""

from pofx.objectives.base import Objective
from pofx.objectives.likelihood import Likelihood

__all__ = ["Likelihood", "Objective"]
