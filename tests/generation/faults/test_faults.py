"""Rows that raise, rows that kill, workers that die, models that do not load: the run ends, and says what was what.

Each worker that starts imports torch and Ray, seconds of CPU time: a run has many faults, and pools of each size.
"""

from __future__ import annotations

import gc
from collections import Counter

import pytest
import ray

from gmd_ray.config import PoolConfig
from gmd_ray.errors import ModelError
from gmd_ray.generation import generate
from gmd_ray.pairstore.totals import Totals
from tests.generation.world import World, wait_for

pytestmark = pytest.mark.slow

FAULTS = {"001.png": "kill", "002.png": "exit", "009.png": "raise", "022.png": "nan"}


def test_bad_rows_are_isolated_and_kept_out_of_the_next_run(
    fresh_on_ray: World, finished: tuple[World, Totals]
) -> None:
    """In a pool that may grow; a pool of one actor meets such rows in test_hangs.py."""
    fresh_on_ray.cfg.teacher.pool = PoolConfig(min=1, max=2, num_cpus=0.5, batch_size=4)
    fresh_on_ray.cfg.generation.rows_per_block = 4
    books = generate(fresh_on_ray.cfg, models=fresh_on_ray.models(faults=tuple(FAULTS.items())))
    assert (books.failed, books.inputs) == (4, 24)
    rows, good = fresh_on_ray.rows(), finished[0].rows()
    failed = {key: row for key, row in rows.items() if row["status"] == "failed"}
    assert {key: (row["error_stage"], row["error_type"]) for key, row in failed.items()} == {
        "001.png": ("project", "WorkerDied"),
        "002.png": ("project", "SystemExit"),
        "009.png": ("project", "RuntimeError"),
        "022.png": ("project", "ValueError"),
    }
    assert failed["009.png"]["error"] == "this image is too much"
    assert failed["001.png"]["attempts"] == fresh_on_ray.cfg.generation.max_attempts == 2
    assert fresh_on_ray.projected()["001.png"] == 2
    for key in rows.keys() - failed.keys():
        assert rows[key]["pseudo_target"] == good[key]["pseudo_target"]

    before = fresh_on_ray.projected()
    fresh_on_ray.cfg.generation.retry_failed, fresh_on_ray.cfg.ray.enabled = True, False
    assert generate(fresh_on_ray.cfg, models=fresh_on_ray.models()).failed == 0
    assert fresh_on_ray.projected() - before == Counter(FAULTS.keys())  # what was ok is not done again


def test_rows_that_kill_and_a_killed_worker_in_two_workers_do_not_show_in_the_others(
    fresh_on_ray: World, finished: tuple[World, Totals]
) -> None:
    """A pool of two and other batches make the same rows; 018.png loses its worker once, and nothing else."""
    fresh_on_ray.cfg.teacher.pool = PoolConfig(min=2, max=2, num_cpus=0.5, batch_size=3)
    fresh_on_ray.cfg.student.pool.batch_size = 1
    fresh_on_ray.cfg.generation.rows_per_block = 5
    faults = (("001.png", "leave"), ("002.png", "exit"), ("018.png", "kill once"))
    books = generate(fresh_on_ray.cfg, models=fresh_on_ray.models(faults=faults))
    assert (fresh_on_ray.log / "killed once.mark").exists()
    assert (books.ok, books.failed) == (22, 2)
    rows, good = fresh_on_ray.rows(), finished[0].rows()
    failed = {key: row["error_type"] for key, row in rows.items() if row["status"] == "failed"}
    assert failed == {"001.png": "WorkerDied", "002.png": "SystemExit"}
    for key in rows.keys() - failed.keys():
        row = rows[key]
        for column in ("lq", "restored", "pseudo_target", "width", "height", "teacher", "student", "scorer"):
            assert row[column] == good[key][column], (key, column)
        assert row["score"] == pytest.approx(good[key]["score"], abs=1e-5)


def test_missing_weights_end_the_run_and_a_broken_accelerator_does_not(fresh_on_ray: World) -> None:
    """The first run ends with the weights' own line, and leaves room. In the second no row pays for the accelerator."""
    right, fresh_on_ray.cfg.teacher.path = fresh_on_ray.cfg.teacher.path, "missing"
    fresh_on_ray.cfg.target.limit = 8
    gc.collect()
    gc.disable()  # what is handed back must not wait for a collection, which comes when it likes
    try:
        with pytest.raises(ModelError, match=r"^teacher.path=missing: no such directory$"):
            generate(fresh_on_ray.cfg, models=fresh_on_ray.models())
        # Everything is handed back, so that a run with the right path finds room.
        wait_for(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])
    finally:
        gc.enable()
    fresh_on_ray.cfg.teacher.path = right
    books = generate(fresh_on_ray.cfg, models=fresh_on_ray.models(sick_after=2))
    assert (books.ok, books.failed) == (8, 0)
    assert len(list(fresh_on_ray.log.glob("[0-9]*"))) > 1, "the accelerator did not break"


def test_a_model_that_kills_its_worker_while_loading_is_not_tried_for_ever(fresh_on_ray: World) -> None:
    fresh_on_ray.cfg.teacher.path = "deadly"
    with pytest.raises(ModelError, match="the teacher worker died 3 times while loading"):
        generate(fresh_on_ray.cfg, models=fresh_on_ray.models())
