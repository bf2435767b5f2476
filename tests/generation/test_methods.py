"""Every teacher of the paper that is not FLUX's inversion, as Stage 1 of a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from gmd_ray.config import InjectionConfig, TeacherConfig
from gmd_ray.generation import generate
from gmd_ray.images.files.encode import decode_png, to_images, to_tensor
from gmd_ray.teachers import load_teacher
from tests.generation.world import World
from tests.teachers.conftest import make_flux, make_sd


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sdedit", "kontext", "ddim"])
def test_a_run_projects_as_the_teacher_alone_does(method: str, tmp_path: Path) -> None:
    make = make_sd if method == "ddim" else partial(make_flux, autoencoder=False)
    world = World(tmp_path / "world").build(5)
    teacher = TeacherConfig(
        path=str(make(tmp_path / "teacher")), method=method, prompt="a sharp photo", steps=2,
        injection=InjectionConfig(blocks="all", steps=1), pool=world.cfg.teacher.pool,
    )  # fmt: skip
    world.cfg.teacher = teacher
    books = generate(world.cfg)
    assert (books.ok, books.failed) == (5, 0)
    alone = load_teacher(teacher)
    for key, row in world.rows().items():
        assert row["teacher"] == alone.fingerprint
        restored, found = (decode_png(row[side]) for side in ("restored", "pseudo_target"))
        # The noise is of the row's id, whatever batch and replica it rode in.
        [expected] = to_images(alone.project(to_tensor([restored]), [key]))
        assert 255 * abs(found - expected).max() < 1.01  # of 8 bits
        assert 255 * abs(found - restored).max() > 3
