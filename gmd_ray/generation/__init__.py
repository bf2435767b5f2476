"""Stages 0, 1 and 1b as one Ray Data stream into the pair store."""

from gmd_ray.generation.books import Books
from gmd_ray.generation.export import export_pairs
from gmd_ray.generation.generate import generate
from gmd_ray.generation.stream import Models

__all__ = ["Books", "Models", "export_pairs", "generate"]
