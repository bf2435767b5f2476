"""The finished runs of tests/generation, which tests of the store look into, and a run of tests/planning."""

from tests.generation.conftest import finished, fresh, world
from tests.planning.conftest import cfg, flux, photos

__all__ = ["cfg", "finished", "flux", "fresh", "photos", "world"]
