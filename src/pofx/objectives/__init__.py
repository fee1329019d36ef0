"""Distances between distributions as functions of callables."""
