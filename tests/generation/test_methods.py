"""Every teacher of the paper that is not FLUX's inversion, as Stage 1 has it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from gmd_ray.config import InjectionConfig, PoolConfig, TeacherConfig
from gmd_ray.generation import generate
from gmd_ray.generation.ledger import open_ledger
from gmd_ray.generation.stages import Project, Replica
from gmd_ray.images.encode import decode_png, to_images, to_tensor
from gmd_ray.images.records import PAIR_SCHEMA
from gmd_ray.teachers import load_teacher
from tests.generation.shelf import png
from tests.generation.world import World
from tests.teachers.conftest import make_flux, make_sd


def config(method: str, folder: Path) -> TeacherConfig:
    make = make_sd if method == "ddim" else partial(make_flux, autoencoder=False)
    return TeacherConfig(
        path=str(make(folder)), method=method, prompt="a sharp photo", steps=2,
        injection=InjectionConfig(blocks="all", steps=1), pool=PoolConfig(num_cpus=0.5, batch_size=4),
    )  # fmt: skip


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("method", ["sdedit", "kontext", "ddim"])
def test_stage_1_projects_as_the_teacher_alone_does(method: str, tmp_path: Path) -> None:
    cfg = config(method, tmp_path)
    stage = Project(Replica(load_teacher, cfg, open_ledger({}), 2))
    sizes = {"a.png": (16, 16), "b/c.png": (12, 20), "d.png": (16, 16), "e.png": (15, 13)}
    block = [{"id": key, "status": "ok", "attempts": 0, "restored": png(*sizes[key], seed=key)} for key in sizes]
    made = {row["id"]: row for row in stage(pa.Table.from_pylist(block, schema=PAIR_SCHEMA)).to_pylist()}
    assert {row["error"] for row in made.values()} == {None}
    check(cfg, made)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_run_projects_as_the_teacher_alone_does(tmp_path: Path) -> None:
    world = World(tmp_path / "world").build(5)
    world.cfg.teacher = config("sdedit", tmp_path / "teacher")
    books = generate(world.cfg)
    assert (books.ok, books.failed) == (5, 0)
    check(world.cfg.teacher, world.rows())


def check(cfg: TeacherConfig, rows: dict[str, dict[str, Any]]) -> None:
    alone = load_teacher(cfg)
    for key, row in rows.items():
        assert row["teacher"] == alone.fingerprint
        restored, found = (decode_png(row[side]) for side in ("restored", "pseudo_target"))
        # The noise is of the row's id, whatever batch and replica it rode in.
        [expected] = to_images(alone.project(to_tensor([restored]), [key]))
        assert 255 * abs(found - expected).max() < 1.01  # of 8 bits
        assert 255 * abs(found - restored).max() > 3
