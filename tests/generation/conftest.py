from __future__ import annotations

from pathlib import Path

import pytest

from gmd_ray.generation import generate
from gmd_ray.pairstore.totals import Totals
from tests.generation.world import World, write_odd_files


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Totals]:
    """A finished run in process over 24 photos and the odd files of any photo folder.

    Tests only look at it; `world` is a copy that they may change.
    """
    world = World(tmp_path_factory.mktemp("finished")).build(24)
    write_odd_files(world.photos)
    return world, generate(world.cfg, models=world.models())


@pytest.fixture
def world(finished: tuple[World, Totals], tmp_path: Path) -> World:
    """A copy of the finished run. Its photos have moved, which must not matter."""
    return finished[0].copy(tmp_path)


@pytest.fixture
def fresh(tmp_path: Path) -> World:
    """24 photos and no run yet, to be run in process."""
    return World(tmp_path).build(24)


@pytest.fixture
def fresh_on_ray(tmp_path: Path, ray_session: None) -> World:
    """24 photos and no run yet, to be run on Ray."""
    return World(tmp_path, on_ray=True).build(24)
