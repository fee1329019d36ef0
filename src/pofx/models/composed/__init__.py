"""Families built from families."""

from pofx.models.composed.assembly import assemble, blank
from pofx.models.composed.shallow import as_circuit

__all__ = ["as_circuit", "assemble", "blank"]
