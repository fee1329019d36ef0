"""Kernels in C, built on the user's machine when first needed; whatever they compute, plain PyTorch computes where they are not."""
