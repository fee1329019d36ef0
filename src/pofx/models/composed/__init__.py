"""Families built from families."""
