"""Preparation of a loaded transformer for speed: compiled blocks, fused kernels, 8 bits, weights on the host."""
