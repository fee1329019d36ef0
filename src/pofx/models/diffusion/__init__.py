"""Diffusion: data are drowned in noise step by step, and a network learns the way back."""
