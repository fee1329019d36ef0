"""The table, figures and citations as one self-contained page."""
