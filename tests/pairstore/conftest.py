"""The finished runs of tests/generation, which tests of the store look into, and the run that tests of the plan plan."""

from tests.generation.conftest import finished, fresh, world
from tests.planning.conftest import cfg, flux, photos

__all__ = ["cfg", "finished", "flux", "fresh", "photos", "world"]
