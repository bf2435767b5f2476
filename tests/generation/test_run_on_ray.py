"""A run on Ray: the same rows as in process, a bound on what is in flight, stops, and pools that grow."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from gmd_ray.cli import main
from gmd_ray.config import PoolConfig
from gmd_ray.config.load import load_config, save_config
from gmd_ray.errors import ConfigError, ExitCode
from gmd_ray.generation import generate
from gmd_ray.pairstore.totals import Totals
from gmd_ray.ray_utils import ray_internals
from gmd_ray.ray_utils.blocks_in_flight import BlocksInFlight
from tests import PATIENCE_S
from tests.generation.world import World, wait_for, write_photo


@pytest.mark.slow
def test_the_rows_are_those_of_a_run_in_process_and_the_pool_grows(
    finished: tuple[World, Totals], tmp_path: Path, ray_session: None
) -> None:
    """A whole run on Ray with a teacher pool that grows: every column of its rows but the place and the times."""
    reference, totals = finished
    world = World(tmp_path, reference.weights, on_ray=True)
    shutil.copytree(reference.photos, world.photos)
    world.log.mkdir()
    world.cfg.teacher.pool = PoolConfig(min=1, max=2, num_cpus=0.5, batch_size=1)
    world.cfg.generation.rows_per_block = 2
    found = generate(world.cfg, models=world.models(seconds=1.5))
    assert len(list(world.log.glob("[0-9]*"))) > 1, "one worker did it all"
    assert {**found.counts(), "seconds": 0} == {**totals.counts(), "seconds": 0}
    assert world.projected() == reference.projected()
    rows, expected = world.rows(), reference.rows()
    assert rows.keys() == expected.keys()
    for key, row in rows.items():
        for column, value in row.items():
            if column not in {"uri", "modified", "score"} and not column.startswith("seconds_"):
                assert value == expected[key][column], (key, column)
        assert row["score"] == pytest.approx(expected[key]["score"], abs=1e-5)
        assert (row["seconds_project"] is None) == (expected[key]["seconds_project"] is None)


def test_pools_that_leave_no_room_to_read_are_refused(fresh_on_ray: World) -> None:
    """Before anything is streamed; tests/ray_utils/test_capacity.py has the other refusals."""
    fresh_on_ray.cfg.student.pool = PoolConfig(min=2, max=2, num_cpus=1.5)
    with pytest.raises(ConfigError, match=r"need 4\.4 CPUs \(student 2 x 1\.5.* has 4"):
        generate(fresh_on_ray.cfg, models=fresh_on_ray.models())


def test_a_stop_waits_for_what_is_in_flight_and_that_does_not_depend_on_how_many_images_there_are(
    fresh_on_ray: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """36 blocks of one photo each, of which ten may be in flight.

    How many are depends neither on the images that are left nor on how long the models take to load, when nothing but
    reading can go on.
    """
    world, seen = fresh_on_ray, list[int]()
    real = BlocksInFlight.room

    def look(self: BlocksInFlight) -> bool:
        seen.append(self.in_flight())
        return real(self)

    def ask() -> None:
        wait_for(lambda: len(list(Path(world.store, "rows").glob("part-*"))) >= 3)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ray_internals, "BLOCKS_AHEAD", 1)
    monkeypatch.setattr(BlocksInFlight, "room", look)
    for number in range(24, 36):
        write_photo(world.photos / f"{number:03d}.png")
    world.cfg.generation.rows_per_block, world.cfg.generation.grace_s = 1, 10 * PATIENCE_S
    threading.Thread(target=ask).start()
    with pytest.raises(SystemExit) as caught:
        generate(world.cfg, models=world.models(seconds=0.5))
    assert caught.value.code == ExitCode.INTERRUPTED
    # The limit is 1 + 3 x 3. A task that has handed out its block and not yet ended counts twice.
    assert 10 <= max(seen) <= 20
    rows = world.rows()
    assert world.projected().keys() == rows.keys(), "what the teacher had begun is written"
    assert 3 <= len(rows) < 25
    world.cfg.ray.enabled = False
    books = generate(world.cfg, models=world.models())
    assert (books.ok, books.resumed) == (36, len(rows))


@pytest.mark.slow
def test_a_store_on_a_url_from_the_command_line(
    fresh_on_ray: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`local:` is fsspec's: not a local disk to pyarrow, so it takes the way of object stores, and workers see it."""
    cfg = fresh_on_ray.cfg
    cfg.out, cfg.tracking.enabled, cfg.target.limit = f"local://{tmp_path}/bucket/run", False, 5
    cfg.teacher.path = load_config(["preset=toy"]).teacher.path
    cfg.teacher.steps, cfg.teacher.injection.steps = 1, 0
    save_config(cfg, tmp_path / "settings.yaml")
    assert main(["generate", f"config={tmp_path / 'settings.yaml'}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("5 inputs = ")  # Ray may speak before
    assert sorted(path.name for path in (tmp_path / "bucket" / "run").iterdir()) == ["config.yaml", "pairs"]
    assert main(["verify", cfg.out, "--deep"]) == 0
    assert main(["status", cfg.out]) == 0
    assert "the last run finished" in capsys.readouterr().out
    assert main(["export", f"config={tmp_path / 'settings.yaml'}", "scorer.threshold=0", "--to", f"{cfg.out}/e"]) == 0
    assert len(list((tmp_path / "bucket" / "run" / "e" / "lq").iterdir())) == 5
