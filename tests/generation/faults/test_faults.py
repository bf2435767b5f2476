"""Rows that raise, rows that kill, workers that die, models that do not load: the run ends, and says what was what."""

from __future__ import annotations

import gc
import time
from collections import Counter

import pytest
import ray

from gmd_ray.config import PoolConfig
from gmd_ray.errors import GmdError, ModelError
from gmd_ray.generation import generate
from gmd_ray.pairstore.totals import Totals
from tests.generation.world import World, wait_for

pytestmark = pytest.mark.slow

FAULTS = {"002.png": "raise", "deep/er/008.png": "kill", "013.png": "exit", "022.png": "nan"}


def test_bad_rows_are_isolated_and_kept_out_of_the_next_run(
    fresh_on_ray: World, finished: tuple[World, Totals]
) -> None:
    books = generate(fresh_on_ray.cfg, models=fresh_on_ray.models(faults=tuple(FAULTS.items())))
    assert (books.failed, books.inputs) == (4, 24)
    rows, good = fresh_on_ray.rows(), finished[0].rows()
    failed = {key: row for key, row in rows.items() if row["status"] == "failed"}
    assert {key: (row["error_stage"], row["error_type"]) for key, row in failed.items()} == {
        "002.png": ("project", "RuntimeError"),
        "deep/er/008.png": ("project", "WorkerDied"),
        "013.png": ("project", "SystemExit"),
        "022.png": ("project", "ValueError"),
    }
    assert failed["002.png"]["error"] == "this image is too much"
    assert failed["deep/er/008.png"]["attempts"] == fresh_on_ray.cfg.generation.max_attempts == 2
    assert fresh_on_ray.projected()["deep/er/008.png"] == 2
    for key in rows.keys() - failed.keys():
        assert rows[key]["pseudo_target"] == good[key]["pseudo_target"]

    before = fresh_on_ray.projected()
    fresh_on_ray.cfg.generation.retry_failed = True
    assert generate(fresh_on_ray.cfg, models=fresh_on_ray.models()).failed == 0
    assert fresh_on_ray.projected() - before == Counter(FAULTS.keys())  # what was ok is not done again


@pytest.mark.parametrize(("low", "high", "fault"), [(1, 2, "kill"), (2, 2, "leave")])  # (1, 1): the test above
def test_no_size_of_pool_hangs_on_rows_that_kill(fresh_on_ray: World, low: int, high: int, fault: str) -> None:
    fresh_on_ray.cfg.target.limit = 14
    fresh_on_ray.cfg.teacher.pool = PoolConfig(min=low, max=high, num_cpus=0.5, batch_size=4)
    fresh_on_ray.cfg.generation.rows_per_block = 4
    books = generate(fresh_on_ray.cfg, models=fresh_on_ray.models(faults=(("001.png", fault), ("002.png", "exit"))))
    assert (books.ok, books.failed) == (12, 2)
    failed = {key: row["error_type"] for key, row in fresh_on_ray.rows().items() if row["status"] == "failed"}
    assert failed == {"001.png": "WorkerDied", "002.png": "SystemExit"}


def test_a_killed_worker_costs_nothing_and_pools_and_batches_do_not_show(
    fresh_on_ray: World, finished: tuple[World, Totals]
) -> None:
    fresh_on_ray.cfg.teacher.pool = PoolConfig(min=2, max=2, num_cpus=0.5, batch_size=3)
    fresh_on_ray.cfg.student.pool.batch_size = 1
    fresh_on_ray.cfg.generation.rows_per_block = 5
    books = generate(fresh_on_ray.cfg, models=fresh_on_ray.models(faults=(("009.png", "kill once"),)))
    assert (fresh_on_ray.log / "killed once.mark").exists()
    assert (books.ok, books.failed) == (24, 0)
    rows, good = fresh_on_ray.rows(), finished[0].rows()
    for key, row in rows.items():
        for column in ("lq", "restored", "pseudo_target", "width", "height", "teacher", "student", "scorer"):
            assert row[column] == good[key][column], (key, column)
        assert row["score"] == pytest.approx(good[key]["score"], abs=1e-5)


def test_a_broken_accelerator_is_left_and_no_row_pays_for_it(fresh_on_ray: World) -> None:
    fresh_on_ray.cfg.target.limit = 8
    books = generate(fresh_on_ray.cfg, models=fresh_on_ray.models(sick_after=2))
    assert (books.ok, books.failed) == (8, 0)


def test_missing_weights_end_the_run_with_their_own_line(fresh_on_ray: World) -> None:
    right, fresh_on_ray.cfg.teacher.path = fresh_on_ray.cfg.teacher.path, "missing"
    fresh_on_ray.cfg.target.limit = 8
    gc.collect()
    gc.disable()  # what is handed back must not wait for a collection, which comes when it likes
    try:
        start = time.monotonic()
        with pytest.raises(ModelError, match=r"^teacher.path=missing: no such directory$"):
            generate(fresh_on_ray.cfg, models=fresh_on_ray.models())
        assert time.monotonic() - start < 60
        # Everything is handed back, so that a run with the right path finds room.
        wait_for(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])
    finally:
        gc.enable()
    fresh_on_ray.cfg.teacher.path = right
    assert generate(fresh_on_ray.cfg, models=fresh_on_ray.models()).ok == 8


def test_a_model_that_kills_its_worker_while_loading_is_not_tried_for_ever(fresh_on_ray: World) -> None:
    fresh_on_ray.cfg.teacher.path = "deadly"
    with pytest.raises(ModelError, match="the teacher worker died 3 times while loading"):
        generate(fresh_on_ray.cfg, models=fresh_on_ray.models())


def test_a_stall_is_an_error(fresh_on_ray: World) -> None:
    fresh_on_ray.cfg.target.limit = 4
    fresh_on_ray.cfg.generation.no_progress_timeout_s = 20
    start = time.monotonic()
    with pytest.raises(GmdError, match="no block of images was finished in 20 s"):
        generate(fresh_on_ray.cfg, models=fresh_on_ray.models(seconds=600))
    assert time.monotonic() - start < 200
