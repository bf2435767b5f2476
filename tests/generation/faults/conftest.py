from __future__ import annotations

import pytest

from tests.generation.world import World


@pytest.fixture
def fresh(fresh_on_ray: World) -> World:
    """24 photos and no run yet. Every test of faults runs on Ray, which restarts what dies."""
    return fresh_on_ray
