"""Models that hang, are interrupted, or answer in another range: in a real run each costs one row."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import ray

from gmd_ray.errors import GmdError
from gmd_ray.generation import generate, suspects
from tests import PATIENCE_S
from tests.generation.world import World, wait_for

pytestmark = pytest.mark.slow


def test_a_hang_is_found_by_name_and_the_run_goes_on(fresh_on_ray: World) -> None:
    fresh_on_ray.cfg.target.limit, fresh_on_ray.cfg.generation.rows_per_block = 10, 5
    fresh_on_ray.cfg.generation.batch_timeout_s = 4.0
    faults = {"001.png": "hang", "002.png": "interrupt", "003.png": "range", "006.png": "kill"}
    books = generate(fresh_on_ray.cfg, models=fresh_on_ray.models(faults=tuple(faults.items())))
    assert (books.ok, books.failed) == (6, 4)
    failed = {key: row for key, row in fresh_on_ray.rows().items() if row["status"] == "failed"}
    assert {key: (row["error_stage"], row["error_type"]) for key, row in failed.items()} == {
        "001.png": ("project", "Hang"),
        "002.png": ("project", "KeyboardInterrupt"),
        "003.png": ("project", "ValueError"),
        "006.png": ("project", "WorkerDied"),
    }
    assert failed["001.png"]["error"] == "the worker did not finish this image in generation.batch_timeout_s=4, 2 times"
    assert "an image's values are those in [0, 1]" in str(failed["003.png"]["error"])
    assert not Path(fresh_on_ray.store, suspects.SUSPECTS_FILE).exists()

    before = fresh_on_ray.projected()
    assert generate(fresh_on_ray.cfg, models=fresh_on_ray.models()).failed == 4, "it stays failed"
    assert fresh_on_ray.projected() == before
    fresh_on_ray.cfg.generation.retry_failed, fresh_on_ray.cfg.ray.enabled = True, False
    assert generate(fresh_on_ray.cfg, models=fresh_on_ray.models()).failed == 0
    assert fresh_on_ray.projected() - before == Counter(faults.keys())


def test_a_stall_ends_the_run_and_names_the_hang_and_the_next_run_knows(fresh_on_ray: World) -> None:
    fresh_on_ray.cfg.target.limit, fresh_on_ray.cfg.generation.rows_per_block = 4, 2
    fresh_on_ray.cfg.generation.batch_timeout_s, fresh_on_ray.cfg.generation.no_progress_timeout_s = 0.0, 60
    models = fresh_on_ray.models(faults=(("001.png", "hang"),))
    with pytest.raises(GmdError, match=r"no block of images was finished in 60 s; at work: project on .*001\.png"):
        generate(fresh_on_ray.cfg, models=models)
    wait_for(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])  # the one that hangs, too
    told = json.loads(Path(fresh_on_ray.store, suspects.SUSPECTS_FILE).read_text())["rows"]
    assert {"stage": "project", "id": "001.png", "times": 1, "alone": 0, "hung": 1} in told

    before = fresh_on_ray.projected()["001.png"]
    fresh_on_ray.cfg.generation.batch_timeout_s, fresh_on_ray.cfg.generation.no_progress_timeout_s = 4.0, PATIENCE_S
    assert generate(fresh_on_ray.cfg, models=models).failed == 1
    row = fresh_on_ray.rows()["001.png"]
    assert (row["error_type"], row["attempts"], fresh_on_ray.projected()["001.png"] - before) == ("Hang", 2, 1)
