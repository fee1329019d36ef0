"""Questions to a learned p(x), in the user's columns and units."""

from pofx.ask.fitting import fit
from pofx.ask.opening import open_ as open
from pofx.ask.pofx import PofX
from pofx.ask.searching import search

__all__ = ["PofX", "fit", "open", "search"]
