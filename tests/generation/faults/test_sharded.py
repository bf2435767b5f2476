"""A pool of teachers of two ranks each, on a Ray that has GPUs in name."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gmd_ray.config import InjectionConfig, TeacherConfig
from gmd_ray.images.files.encode import decode_png, to_images, to_tensor
from gmd_ray.teachers import load_teacher
from tests.generation.world import World
from tests.teachers.conftest import make_flux

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_a_pool_of_sharded_teachers_loses_a_rank_and_no_row(tmp_path: Path) -> None:
    flux = make_flux(tmp_path / "flux", autoencoder=False)
    world = World(tmp_path / "world", on_ray=True).build(10)
    with tempfile.TemporaryDirectory(prefix="gmd-", dir="/tmp") as temp_dir:  # short: Ray's sockets live below it
        command = [sys.executable, "-m", "tests.generation.faults.drive_sharded", str(world.root), str(flux), temp_dir]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])

    assert (answer["ok"], answer["failed"], answer["resumed"]) == (8, 0, 10)
    assert (world.log / "killed").exists()
    assert (world.log / "together").exists(), "two replicas in a call at once, the second called up by the backlog"
    assert len(answer["replicas"]) >= 2  # the one that lost a rank, and its successor
    for replica in answer["replicas"]:
        assert len(replica["pids"]) == 2
        assert len(replica["gpus"].split(",")) == 2  # as many as ranks, of Ray's account
    rows = world.rows()
    assert rows["001.png"]["attempts"] == 2

    injection = InjectionConfig(blocks="all", steps=1)
    teacher = load_teacher(TeacherConfig(path=str(flux), steps=2, device="cpu", injection=injection))
    assert {row["teacher"] for row in rows.values()} == {teacher.fingerprint}
    for key, row in rows.items():
        [expected] = to_images(teacher.project(to_tensor([decode_png(row["restored"])]), [key]))
        found = decode_png(row["pseudo_target"])
        assert 255 * abs(found - expected).max() < 1.01  # of 8 bits
