"""Families built from families."""

from pofx.models.composed.assembly import assemble, blank

__all__ = ["assemble", "blank"]
