"""The predicted cost of a run beside the actual one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gmd_ray.config import Config
from gmd_ray.pairstore.cost import predicted_and_actual
from gmd_ray.pairstore.totals import Totals
from gmd_ray.planning.plan import make_plan, survey
from tests.generation.world import World


def test_predicted_and_actual(cfg: Config) -> None:
    cfg.plan.tflops, cfg.plan.price_per_hour, cfg.teacher.pool.num_gpus = 400.0, 3.0, 2.0
    cfg.student.pool.num_gpus = 0.5
    plan = make_plan(cfg, *survey(cfg)).as_json()
    seconds = {"restore": 10.0, "project": 100.0, "score": 7.0}
    cost = predicted_and_actual(cfg, plan, ok=4, seconds=seconds, wall=60.0, disk=10**9)
    assert cost["predicted"] == plan
    actual = cost["actual"]
    assert actual["accelerator_hours"] == pytest.approx(205 / 3600)
    assert (actual["wall_hours"], actual["disk_bytes"]) == (60 / 3600, 10**9)
    assert actual["price"] == pytest.approx(205 / 3600 * 3)
    assert actual["tflops"] == pytest.approx(plan["flops"] / 205 / 1e12)
    later = predicted_and_actual(cfg, plan, ok=3, seconds=seconds, wall=None, disk=1)["actual"]
    assert later["wall_hours"] is later["tflops"] is None, "not the run that was planned"
    cfg.teacher.steps = 7
    assert predicted_and_actual(cfg, plan, ok=4, seconds=seconds, wall=1.0, disk=1)["predicted"] is None


def test_a_manifest_holds_both(finished: tuple[World, Totals]) -> None:
    cost = json.loads(Path(finished[0].store, "manifest.json").read_text())["cost"]
    assert cost["predicted"] is None
    assert cost["actual"]["images"] == finished[1].ok
    assert cost["actual"]["accelerator_hours"] > 0
    assert cost["actual"]["disk_bytes"] == sum(
        file.stat().st_size for file in Path(finished[0].store, "rows").iterdir()
    )
