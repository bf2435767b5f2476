"""Images of many sizes: few shapes for the teacher, the same pixels for each image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from gmd_ray.config import InjectionConfig, PoolConfig, TeacherConfig
from gmd_ray.generation import Models, generate
from gmd_ray.images.encode import decode_png, to_images, to_tensor
from gmd_ray.teachers import load_teacher
from tests.generation.world import World, write_photo
from tests.teachers.conftest import make_flux

pytestmark = pytest.mark.slow

SIZES = [(16, 16), (15, 14), (13, 16), (12, 20), (9, 20), (12, 17), (5, 3)]


@dataclass(frozen=True)
class Watched:
    """Loads the real teacher and leaves the shape of each batch in a file."""

    log: str

    def __call__(self, cfg: TeacherConfig) -> WatchedTeacher:
        return WatchedTeacher(self.log, cfg)


class WatchedTeacher:
    def __init__(self, log: str, cfg: TeacherConfig) -> None:
        self.log, self.teacher = log, load_teacher(cfg)
        self.fingerprint, self.batch_multiple = self.teacher.fingerprint, self.teacher.batch_multiple

    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        with open(self.log, "a") as file:
            file.write(json.dumps(restored.shape) + "\n")
        return self.teacher.project(restored, ids)


def test_sizes_that_pad_alike_share_batches(tmp_path: Path, ray_session: None) -> None:
    world = World(tmp_path).build(0)
    for number, size in enumerate(SIZES):
        write_photo(world.photos / f"{number}.png", size)
    world.cfg.teacher = TeacherConfig(
        path=str(make_flux(tmp_path / "flux", autoencoder=False)),
        steps=2,
        injection=InjectionConfig(blocks="all", steps=1),
        pool=PoolConfig(num_cpus=0.5, batch_size=8),
    )
    world.cfg.generation.rows_per_block = 16
    log = tmp_path / "shapes"
    assert generate(world.cfg, models=Models(teacher=Watched(str(log)))).ok == len(SIZES)

    teacher = load_teacher(world.cfg.teacher)
    assert teacher.batch_multiple == 4
    shapes = [tuple(json.loads(line)) for line in log.read_text().splitlines()]
    assert sorted(shapes) == [(1, 3, 8, 4), (3, 3, 12, 20), (3, 3, 16, 16)]
    for number, size in enumerate(SIZES):
        row = world.rows()[f"{number}.png"]
        made, restored = decode_png(row["pseudo_target"]), decode_png(row["restored"])  # type: ignore[arg-type]
        assert made.shape[:2] == restored.shape[:2] == (row["height"], row["width"]) == size
        alone = to_images(teacher.project(to_tensor([restored]), ["x"]))[0]
        assert np.abs(made - alone).max() <= 0.51 / 255
