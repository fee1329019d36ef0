"""Closed forms with given parameters: the laws of one variable, their products and mixtures, normals."""
