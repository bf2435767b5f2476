"""A plan measured on some images, through the real stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gmd_ray.cli import main
from gmd_ray.config import PoolConfig
from gmd_ray.config.load import load_config, save_config
from gmd_ray.generation import generate
from gmd_ray.planning.plan import make_plan, survey
from gmd_ray.planning.probe import run_probe
from tests.generation.world import World
from tests.planning.conftest import write_flux


def test_a_refused_probe(capsys: pytest.CaptureFixture[str]) -> None:
    for count in ("0", "-1", "many"):
        with pytest.raises(SystemExit, match="2"):
            main(["plan", "--probe", count])
        assert "a number of at least 1" in capsys.readouterr().err


def test_a_probe_runs_the_real_stages_and_leaves_nothing(fresh: World, tmp_path: Path) -> None:
    cfg = fresh.cfg
    cfg.teacher.path, cfg.teacher.injection.steps = str(write_flux(tmp_path / "flux")), 0
    cfg.teacher.pool.max = cfg.teacher.pool.initial = 3
    jobs, unreadable = survey(cfg)
    assert {job.size for job in jobs} == {"16x16", "16x32"}
    probe = run_probe(cfg, jobs, 6, fresh.models(seconds=0.2))
    assert fresh.projected().total() == probe.images == 6
    assert set(probe.seconds) == {"16x16", "16x32"}, "spread over the sizes"
    assert all(0.2 / 4 < seconds < 5 for seconds in probe.seconds.values())
    assert probe.stages["project"] > 0.2 / 4
    assert all(0 < seconds < 5 for seconds in probe.stages.values())
    assert 0 < probe.compression < 2
    assert not list(Path(cfg.out).glob("probe-*"))
    plan = make_plan(cfg, jobs, unreadable, probe)
    sizes = [job.size for job in jobs]
    expected = sum(probe.seconds[size] for size in sizes) / 3600
    assert plan.accelerator_hours == pytest.approx(expected)
    assert plan.wall_hours == pytest.approx(expected / 3)


def test_from_plan_to_manifest(fresh: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped tiny FLUX through the verb with a probe, then the run, then the comparison."""
    cfg = fresh.cfg
    cfg.target.limit, cfg.teacher.pool = 6, PoolConfig(num_cpus=0.5, batch_size=4)
    cfg.teacher.path = load_config(["preset=toy"]).teacher.path
    cfg.teacher.steps, cfg.teacher.injection.blocks, cfg.teacher.injection.steps = 1, "all", 1
    cfg.plan.price_per_hour = 2.0
    cfg.tracking.enabled = False
    save_config(cfg, tmp_path / "settings.yaml")
    assert main(["plan", f"config={tmp_path / 'settings.yaml'}", "--probe", "3"]) == 0
    assert "a probe of 3 images" in capsys.readouterr().out
    generate(cfg)
    cost = json.loads(Path(fresh.store, "manifest.json").read_text())["cost"]
    assert cost["predicted"]["images"] == cost["actual"]["images"] == 6
    assert cost["actual"]["tflops"] > 0
    assert cost["actual"]["wall_hours"] > 0
    assert cost["actual"]["price"] == pytest.approx(2 * cost["actual"]["accelerator_hours"])
