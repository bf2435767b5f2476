"""The finished runs of tests/generation, which tests of the store look into."""

from tests.generation.conftest import finished, fresh, world

__all__ = ["finished", "fresh", "world"]
