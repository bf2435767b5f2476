"""A run without Ray: what a user with a debugger gets, and where it ends."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gmd_ray.cli import main
from gmd_ray.config import TeacherConfig
from gmd_ray.config.load import save_config
from gmd_ray.errors import ExitCode, GmdError, ModelError
from gmd_ray.generation import Models, generate
from gmd_ray.images.sets.run_inputs import RunInputs
from tests.generation.world import World

ROOT = Path(__file__).resolve().parents[2]


def test_a_row_that_raises_is_failed_and_the_others_are_made(fresh: World) -> None:
    faults = {"001.png": "raise", "002.png": "interrupt", "003.png": "exit", "005.png": "nan", "006.png": "range"}
    totals = generate(fresh.cfg, models=fresh.models(faults=tuple(faults.items())))
    assert (totals.ok, totals.failed) == (19, 5)
    failed = {key: row["error_type"] for key, row in fresh.rows().items() if row["status"] == "failed"}
    assert failed == {
        "001.png": "RuntimeError",
        "002.png": "KeyboardInterrupt",
        "003.png": "SystemExit",
        "005.png": "ValueError",
        "006.png": "ValueError",
    }


def test_what_a_step_cache_skips_is_told_and_written(fresh: World, caplog: pytest.LogCaptureFixture) -> None:
    sharpen = fresh.models().teacher

    class Skipping:
        """Counts 50 evaluations of each image, of which it skips 20."""

        def __init__(self, cfg: TeacherConfig) -> None:
            self.inner, self.images = sharpen(cfg), 0
            self.fingerprint = self.inner.fingerprint

        def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
            self.images += len(ids)
            return self.inner.project(restored, ids)

        def take_counts(self) -> dict[str, int]:
            images, self.images = self.images, 0
            return {"evaluations": 50 * images, "skipped": 20 * images}

    with caplog.at_level(logging.INFO, logger="gmd_ray"):
        generate(fresh.cfg, models=Models(teacher=Skipping))
    counts = {"evaluations": 24 * 50, "skipped": 24 * 20}
    assert "teacher.step_cache skipped 40 % of the teacher's evaluations (480 of 1200)" in caplog.text
    assert json.loads(Path(fresh.store, "manifest.json").read_text())["step_cache"] == counts
    [run] = json.loads(Path(fresh.store, "runs.json").read_text())
    assert run["teacher"] == counts


def test_a_broken_accelerator_ends_the_run_and_what_is_written_stays(fresh: World) -> None:
    threads = torch.get_num_threads()
    with pytest.raises(GmdError, match=r"^stage project: CUDA error: .*; with ray\.enabled=false no other process"):
        generate(fresh.cfg, models=fresh.models(sick_after=2))
    done = len(fresh.rows())
    assert done == 6, "the first block"
    totals = generate(fresh.cfg, models=fresh.models())
    assert (totals.ok, totals.failed, totals.resumed) == (24, 0, done)
    assert torch.get_num_threads() == threads, "they are the process's own"


def test_a_model_that_does_not_load_is_its_own_line(fresh: World) -> None:
    fresh.cfg.teacher.path = "missing"
    with pytest.raises(ModelError, match=r"^teacher\.path=missing: no such directory$"):
        generate(fresh.cfg, models=fresh.models())


def ends(error: BaseException) -> Any:
    def load(cfg: object) -> object:
        raise error

    return load


def test_an_interrupt_while_a_model_loads_goes_through(fresh: World) -> None:
    for error in (KeyboardInterrupt(), SystemExit(143)):
        with pytest.raises(type(error)):
            generate(fresh.cfg, models=Models(teacher=ends(error)))
    with pytest.raises(ModelError, match="the teacher could not be loaded: OSError: torn"):
        generate(fresh.cfg, models=Models(teacher=ends(OSError("torn"))))


class Stops:
    """Sends SIGTERM to its own process, in which the run is, in a call in the second block."""

    def __init__(self, world: World, call: int) -> None:
        self.teacher, self.calls, self.fingerprint = world.models().teacher(world.cfg.teacher), 0, "stops"
        self.call = call

    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.call:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.teacher.project(restored, ids)


def test_sigterm_ends_it_in_order(fresh: World) -> None:
    fresh.cfg.generation.grace_s = 60
    with pytest.raises(SystemExit) as caught:
        generate(fresh.cfg, models=Models(teacher=lambda cfg: Stops(fresh, 3)))
    assert caught.value.code == ExitCode.INTERRUPTED
    rows = fresh.rows()
    assert fresh.projected().keys() == rows.keys(), "what the teacher had begun is written"
    assert 6 < len(rows) <= 12
    assert not Path(fresh.store, "lock.json").exists()
    assert generate(fresh.cfg, models=Models(teacher=lambda cfg: Stops(fresh, 0))).resumed == len(rows)


def test_files_that_the_caller_has_listed_are_not_listed_again(fresh: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh.cfg.target.limit, inputs = 5, RunInputs()
    inputs.images(str(fresh.photos), 5)
    monkeypatch.setattr("gmd_ray.images.sets.run_inputs.list_folder", lambda *given: pytest.fail("listed again"))
    assert generate(fresh.cfg, models=fresh.models(), inputs=inputs).ok == 5


def test_the_verb_runs_without_ray(fresh: World, tmp_path: Path) -> None:
    """In a process of its own: that of the tests may have imported Ray for others."""
    cfg = fresh.cfg
    cfg.target.limit, cfg.tracking.enabled = 5, False
    cfg.teacher.method = "tests.generation.world:load_sharpen_teacher"
    cfg.teacher.path = str(fresh.log)
    save_config(cfg, tmp_path / "settings.yaml")
    code = "import sys; from gmd_ray.cli import main; code = main(sys.argv[1:])"
    command = [
        sys.executable,
        "-c",
        f"{code}; assert 'ray' not in sys.modules; sys.exit(code)",
        "generate",
        f"config={tmp_path / 'settings.yaml'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5 inputs = "), done.stdout
    assert len(fresh.rows()) == 5


@pytest.mark.parametrize("verb", ["adapt", "evaluate"])
def test_verbs_that_need_ray_say_so(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["preset=toy", f"out={tmp_path / 'run'}", "ray.enabled=false"]
    assert main([verb, *given]) == 2
    [line] = capsys.readouterr().err.splitlines()
    others = "ablate, generate, finetune, pretrain, plan, encode-prompts"
    assert line == f"gmd-ray: ray.enabled=false: {verb} needs Ray; {others} run without it"
    assert not (tmp_path / "run").exists()
