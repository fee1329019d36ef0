"""Normalizing flows: a base density pushed through bijections."""
