"""Images of many sizes: few shapes for the teacher, the same pixels for each image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from gmd_ray.config import InjectionConfig, PoolConfig, TeacherConfig
from gmd_ray.generation.attempts.log import AttemptLog
from gmd_ray.generation.loading import Replica
from gmd_ray.generation.stages import Project
from gmd_ray.images.files.encode import decode_png, to_images, to_tensor
from gmd_ray.pairstore.schema import PAIR_SCHEMA
from gmd_ray.teachers import load_teacher
from tests.generation.shelf import png
from tests.teachers.conftest import make_flux

SIZES = [(16, 16), (15, 14), (13, 16), (12, 20), (9, 20), (12, 17), (5, 3)]


class Watched:
    """The real teacher, and the shape of each batch that it was given."""

    def __init__(self, cfg: TeacherConfig) -> None:
        self.teacher, self.shapes = load_teacher(cfg), list[tuple[int, ...]]()
        self.fingerprint, self.batch_multiple = self.teacher.fingerprint, self.teacher.batch_multiple

    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        self.shapes.append(tuple(restored.shape))
        return self.teacher.project(restored, ids)


def test_sizes_that_pad_alike_share_batches(tmp_path: Path) -> None:
    cfg = TeacherConfig(
        path=str(make_flux(tmp_path / "flux", autoencoder=False)),
        steps=2,
        injection=InjectionConfig(blocks="all", steps=1),
        pool=PoolConfig(num_cpus=0.5, batch_size=8),
    )
    block = [
        {"id": f"{number}.png", "status": "ok", "attempts": 0, "restored": png(*size, seed=str(number))}
        for number, size in enumerate(SIZES)
    ]
    stage = Project(Replica(Watched, cfg, AttemptLog({}), 2))
    rows = stage(pa.Table.from_pylist(block, schema=PAIR_SCHEMA)).to_pylist()

    teacher = load_teacher(cfg)
    assert teacher.batch_multiple == 4
    assert sorted(stage.model.shapes) == [(1, 3, 8, 4), (3, 3, 12, 20), (3, 3, 16, 16)]
    for row, size in zip(rows, SIZES, strict=True):
        made, restored = decode_png(row["pseudo_target"]), decode_png(row["restored"])
        assert made.shape[:2] == restored.shape[:2] == (row["height"], row["width"]) == size
        alone = to_images(teacher.project(to_tensor([restored]), ["x"]))[0]
        assert np.abs(made - alone).max() <= 0.51 / 255
