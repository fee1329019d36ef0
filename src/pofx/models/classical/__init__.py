"""Densities without a network: closed forms, EM, kernels, histograms and trees."""
