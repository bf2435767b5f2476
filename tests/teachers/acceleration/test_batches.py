"""Batches of a teacher: images alone, images together and the tiles of one photo, each costing what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from gmd_ray.config import PoolConfig
from gmd_ray.errors import ConfigError
from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.acceleration.compilation import compile_blocks
from gmd_ray.teachers.cost.memory import plan_memory
from gmd_ray.teachers.flux import teacher as flux_teacher
from gmd_ray.teachers.flux.teacher import FluxTeacher
from tests.teachers.flux.test_teacher import config, ids, images

TILE = {"tile": 16, "tile_overlap": 8}
"""With these a photo of 32 x 24 pixels is 3 x 2 tiles."""


def rows_of_forwards(teacher: FluxTeacher) -> list[int]:
    """A list to which each forward of the transformer adds its number of rows."""
    seen: list[int] = []
    teacher.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    return seen


def one_by_one(teacher: FluxTeacher, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([teacher.project(x[i : i + 1], [name]) for i, name in enumerate(ids(x))])


@pytest.mark.parametrize("method", ["inversion", "sdedit"])
@pytest.mark.parametrize("images_at_once", [1, 2, 5])
def test_tiles_of_a_photo_share_forwards(flux_dir: Path, method: str, images_at_once: int) -> None:
    x = images(images_at_once, 32, 24)
    settings = config(flux_dir, method=method, **TILE)
    alone = load_teacher(replace(settings, pool=PoolConfig(batch_size=1)))
    together = load_teacher(replace(settings, pool=PoolConfig(batch_size=4)))
    assert isinstance(alone, FluxTeacher)
    assert isinstance(together, FluxTeacher)
    assert alone.fingerprint == together.fingerprint
    each, seen = rows_of_forwards(alone), rows_of_forwards(together)
    torch.testing.assert_close(together.project(x, ids(x)), one_by_one(alone, x), atol=1e-4, rtol=0)
    passes = 3 if method == "sdedit" else 6
    assert each == [1] * 6 * passes * images_at_once
    # Four rows in a forward: four tiles of one image, two of two images, or one of each of five.
    expected = {1: [4, 2], 2: [4, 4, 4], 5: [5] * 6}[images_at_once]
    assert seen == [rows for rows in expected for _ in range(passes)]


@pytest.mark.parametrize("limit", ["memory", "place"])
def test_no_more_tiles_than_leave_the_cache_on_the_device(
    flux_dir: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(files: Any, cfg: Any, batch: int, *rest: Any) -> Any:
        if batch > 2 and limit == "memory":
            raise ConfigError("too many")
        plan = plan_memory(files, cfg, batch, *rest)
        return replace(plan, cache="lockstep") if batch > 2 else plan

    x = images(1, 32, 24)
    teacher = load_teacher(config(flux_dir, **TILE))
    assert isinstance(teacher, FluxTeacher)
    expected, seen = one_by_one(teacher, x), rows_of_forwards(teacher)
    monkeypatch.setattr(flux_teacher, "plan_memory", small)
    torch.testing.assert_close(teacher.project(x, ids(x)), expected, atol=1e-4, rtol=0)
    assert seen == [2] * 3 * 6


def test_ddim_takes_tiles_together(sd_dir: Path) -> None:
    x = images(1, 16, 24)
    alone, together = (
        load_teacher(
            config(sd_dir, method="ddim", strength=1.0, tile=8, tile_overlap=4, pool=PoolConfig(batch_size=size))
        )
        for size in (1, 4)
    )
    seen: list[int] = []
    together.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))  # type: ignore[attr-defined]
    torch.testing.assert_close(together.project(x, ids(x)), alone.project(x, ids(x)), atol=1e-4, rtol=0)
    assert seen == [4] * 6 * 3 + [3] * 6


@pytest.mark.parametrize("method", ["inversion", "sdedit"])
def test_a_compiled_teacher_makes_nothing_up(flux_dir: Path, method: str) -> None:
    """A lone image costs one row of each forward; another number of images needs no graph of its own."""
    torch._dynamo.reset()
    counters.clear()
    settings = config(flux_dir, method=method, prompt="a sharp photo", true_cfg=2.0)
    x = images(4, 16, 24)
    plain, teacher = load_teacher(settings), load_teacher(settings)
    assert isinstance(teacher, FluxTeacher)
    compile_blocks(teacher.model, backend="eager")
    seen, graphs = rows_of_forwards(teacher), {}
    for count in (4, 1, 3, 2):
        batch = x[:count]
        seen.clear()
        torch.testing.assert_close(
            teacher.project(batch, ids(batch)), plain.project(batch, ids(batch)), atol=1e-4, rtol=0
        )
        assert set(seen) == {count}
        graphs[count] = counters["stats"]["unique_graphs"]
    assert graphs[4] > 0
    assert graphs[1] > graphs[4]
    assert graphs[3] == graphs[2] == graphs[1]
    torch._dynamo.reset()
