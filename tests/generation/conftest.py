from __future__ import annotations

from pathlib import Path

import pytest

from gmd_ray.generation import generate
from gmd_ray.pairstore.totals import Totals
from tests.generation.world import World, write_odd_files


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> tuple[World, Totals]:
    """A finished run over 24 photos and the odd files of any photo folder. Only looked at: `world` is to be changed."""
    world = World(tmp_path_factory.mktemp("finished")).build(24)
    write_odd_files(world.photos)
    return world, generate(world.cfg, models=world.models())


@pytest.fixture
def world(finished: tuple[World, Totals], tmp_path: Path) -> World:
    """A copy of the finished run; its photos have moved, which must not matter."""
    return finished[0].copy(tmp_path)


@pytest.fixture
def fresh(tmp_path: Path, ray_session: None) -> World:
    """24 photos and no run yet."""
    return World(tmp_path).build(24)
