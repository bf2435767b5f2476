"""Failed rows stay as they are until somebody asks for them to be tried again."""

from __future__ import annotations

import os

import pytest

from gmd_ray.config import PoolConfig
from gmd_ray.config.load import load_config
from gmd_ray.errors import ConfigError
from gmd_ray.generation import generate
from tests.generation.world import World, write_photo


def test_failed_rows_are_tried_again_on_request_only(world: World, ray_session: None) -> None:
    late = world.photos / "late.png"
    late.write_bytes(b"\0" * 4000)
    assert generate(world.cfg, models=world.models()).failed == 4
    listed = late.stat()
    write_photo(late)
    late.write_bytes(late.read_bytes().ljust(4000, b"\0"))
    os.utime(late, ns=(listed.st_atime_ns, listed.st_mtime_ns))  # mended, and by its size and time the same file
    assert generate(world.cfg, models=world.models()).failed == 4
    world.cfg.generation.retry_failed = True
    small, world.cfg.teacher.pool, world.cfg.ray.enabled = world.cfg.teacher.pool, PoolConfig(num_cpus=99), True
    with pytest.raises(ConfigError, match="need 100"):
        generate(world.cfg, models=world.models())
    assert len(world.rows()) == 32, "nothing goes for a run that cannot start"
    world.cfg.teacher.pool, world.cfg.ray.enabled = small, False
    books = generate(world.cfg, models=world.models())
    assert books.failed == 3
    assert world.projected() == {"late.png": 1}
    assert world.rows()["late.png"]["status"] == "ok"
    assert not load_config([f"config={world.cfg.out}/config.yaml"]).generation.retry_failed, "asked for once"
