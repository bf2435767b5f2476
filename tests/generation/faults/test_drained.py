"""A node that is drained and killed at its deadline costs no finished row, and at most the batch in hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gmd_ray.generation import generate
from tests.generation.faults.drained import BATCH
from tests.generation.world import World, write_photo

pytestmark = pytest.mark.chaos  # for the time it takes, and clusters of their own

ROOT = Path(__file__).resolve().parents[3]
IMAGES, FEW = 144, 24
PIXELS = ("lq", "restored", "pseudo_target", "width", "height", "status", "teacher", "student", "scorer")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Photos so large that a block is in the object store of a node. A smaller one would be in the driver's memory."""
    world = World(tmp_path_factory.mktemp("undisturbed")).build(IMAGES)
    for key in world.ids():
        write_photo(world.photos / key, (192, 192))
    generate(world.cfg, models=world.models())
    return world


def drained(world: World, models: Path, images: int, notice_s: float, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.generation.faults.drained", str(world.root), str(models)]
    command += [str(images), str(notice_s), str(seconds)]
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    [told] = [line for line in done.stdout.splitlines() if line.startswith('{"')]  # among Ray's own lines
    answer: dict[str, Any] = json.loads(told)
    assert "error" not in answer, answer["error"]
    return answer


def same_rows(world: World, undisturbed: World) -> None:
    mine, theirs = world.rows(), undisturbed.rows()
    for key, row in mine.items():
        assert all(row[column] == theirs[key][column] for column in PIXELS), key
        assert row["score"] == pytest.approx(theirs[key]["score"], abs=1e-5)


@pytest.fixture
def world(undisturbed: World, tmp_path: Path) -> World:
    world = undisturbed.copy(tmp_path)
    for path in sorted(Path(world.cfg.out).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    return world


def test_a_notice_longer_than_a_batch_costs_nothing(world: World, undisturbed: World) -> None:
    answer = drained(world, undisturbed.root, IMAGES, notice_s=10, seconds=0.8)
    assert answer["left_before_the_deadline"], answer
    assert 0 < len(answer["written"]) < IMAGES
    assert answer["teachers"] == 3, "two, and the one in the place of the one that left"
    assert {key: times for key, times in answer["begun"].items() if times > 1} == {}
    assert answer["restored_before"] > answer["begun_before"], "blocks waited for a teacher where they were made"
    assert not any("AttemptLog" in title for title in answer["others_there"]), "it is where the driver is"
    assert {key: times for key, times in answer["restored"].items() if times > 1} == {}
    assert (answer["books"]["ok"], answer["books"]["failed"]) == (IMAGES, 0)
    assert {row["attempts"] for row in world.rows().values()} == {1}
    same_rows(world, undisturbed)


def test_a_notice_shorter_than_a_batch_costs_the_batch_in_hand(world: World, undisturbed: World) -> None:
    answer = drained(world, undisturbed.root, FEW, notice_s=3, seconds=8.0)
    assert not answer["left_before_the_deadline"]
    twice = {key for key, times in answer["begun"].items() if times > 1}
    assert twice <= set(answer["begun_by_the_old"][-BATCH:]), "it may have come to its end just in time"
    assert max(answer["begun"].values()) <= 2
    assert not twice & set(answer["written"])
    assert (answer["books"]["ok"], answer["books"]["failed"]) == (FEW, 0)
    assert {row["attempts"] for row in world.rows().values()} == {1}, "none is a suspect"
    same_rows(world, undisturbed)
