"""Generative Manifold Distillation on Ray: adapt an image restorer to photos that have no ground truth."""

__version__ = "0.1.0"
