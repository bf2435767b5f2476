"""`finetune` through Ray Train: several workers, failures, resume."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from mlflow.tracking import MlflowClient

from gmd_ray.config import Config
from gmd_ray.config.load import resolved
from gmd_ray.errors import DataError, GmdError, ResumeMismatchError
from gmd_ray.images.files.encode import decode_png, encode_png, to_images, to_tensor
from gmd_ray.students import load_student
from gmd_ray.tracking import MlflowRecorder, start_run
from gmd_ray.training import finetune, finetuned_path
from gmd_ray.training.run_files import read_curve
from gmd_ray.training.spec import Finetuned, make_spec
from tests import PATIENCE_S
from tests.training.conftest import fit_in_process
from tests.training.oracle import plain_training
from tests.training.toys import LONG, FileRecorder, make_config


def _assert_is_plain_training(cfg: Config) -> None:
    expected = plain_training(make_spec(cfg, "adapted", None))
    after = torch.load(finetuned_path(cfg, "adapted"), weights_only=True)
    assert after.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=1e-5)


def _assert_curve_is_whole(cfg: Config, recorder: FileRecorder) -> list[dict[str, Any]]:
    every = cfg.training.log_every
    steps = list(range(every, cfg.training.steps + 1, every))
    points = read_curve(Path(finetuned_path(cfg, "adapted")).parent / "curve.jsonl")
    assert [point["step"] for point in points] == steps
    assert recorder.read() == points
    return points


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_two_uneven_workers_are_one(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, num_workers=2, batch_size=5)
    recorder = FileRecorder(tmp_path / "metrics.jsonl")
    handler = signal.getsignal(signal.SIGINT)
    finetuned = finetune(cfg, "adapted", recorder)
    assert signal.getsignal(signal.SIGINT) is handler

    _assert_is_plain_training(cfg)
    points = _assert_curve_is_whole(cfg, recorder)
    assert [(p["n_source"], p["n_target"]) for p in points] == [(3, 2)] * 6
    assert all(p["grad_norm"] > 0 and p["images_per_s"] > 0 and 0 <= p["data_wait"] <= 1 for p in points)
    assert finetuned.path == finetuned_path(cfg, "adapted")
    assert (finetuned.steps, finetuned.resumed_from) == (12, None)
    assert finetuned.final_loss == points[-1]["loss"]
    checkpoints = sorted(p.name for p in (Path(finetuned.path).parent / "train").glob("step_*"))
    assert checkpoints == ["step_00000008", "step_00000012"]

    files = sorted(path for path in Path(finetuned.path).parent.rglob("*") if path.is_file())
    before = [path.stat().st_mtime_ns for path in files]
    assert finetune(cfg, "adapted", recorder) == finetuned
    assert [path.stat().st_mtime_ns for path in files] == before
    assert len(recorder.read()) == len(points)
    cfg.training.lr = 0.5
    with pytest.raises(ResumeMismatchError, match=r"training\.lr"):
        finetune(cfg, "adapted", recorder)


@pytest.mark.usefixtures("in_process")
def test_best_checkpoint_outlives_later_ones_and_is_exported(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, validate_every=3, validation_images=2, keep_checkpoints=1, export="best", lr=0.01)
    # Held-out truths that are what the student gives before training: whatever it learns, it scores ever less.
    student = load_student(cfg.student)
    for side in ("hq", "lq"):
        (tmp_path / "held" / side).mkdir(parents=True)
    for i in range(2):
        lq = (tmp_path / "source" / "lq" / f"{i}.png").read_bytes()
        restored = to_images(student.restore(to_tensor([decode_png(lq)])))[0]
        (tmp_path / "held" / "hq" / f"{i}.png").write_bytes(encode_png(restored))
        (tmp_path / "held" / "lq" / f"{i}.png").write_bytes(lq)
    cfg.evaluation.source_hq, cfg.evaluation.source_lq = str(tmp_path / "held" / "hq"), str(tmp_path / "held" / "lq")
    finetuned = finetune(cfg, "adapted")
    folder = Path(finetuned.path).parent
    scores = [point["val_psnr"] for point in read_curve(folder / "curve.jsonl") if "val_psnr" in point]
    assert len(scores) == 4
    assert scores[0] > max(scores[1:]) + 1
    assert sorted(p.name for p in (folder / "train").glob("step_*")) == ["step_00000003", "step_00000012"]
    best = torch.load(folder / "train" / "step_00000003" / "state.pt", weights_only=True)["ema"]
    after = torch.load(finetuned.path, weights_only=True)
    assert all(torch.equal(after[key.removeprefix("network.")], value) for key, value in best.items())

    Path(finetuned.path).unlink()  # stopped before the export: which one is best is in the last checkpoint
    assert finetune(cfg, "adapted").resumed_from == 12
    again = torch.load(finetuned.path, weights_only=True)
    assert all(torch.equal(again[key], value) for key, value in after.items())
    cfg.training.validation_images = 1
    with pytest.raises(ResumeMismatchError, match=r"training\.validation_images"):
        finetune(cfg, "adapted")


@pytest.mark.usefixtures("in_process")
def test_figures_that_were_lost_with_the_controller_are_logged_by_the_run_that_resumes(tmp_path: Path) -> None:
    """A checkpoint is written before what was reported with it, and with one before it, is logged."""
    cfg = make_config(tmp_path)
    recorder = FileRecorder(tmp_path / "metrics.jsonl")
    finetuned = finetune(cfg, "adapted", recorder)
    for file in (Path(finetuned.path).parent / "curve.jsonl", recorder.path):
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    Path(finetuned.path).unlink()
    assert finetune(cfg, "adapted", recorder).resumed_from == 12
    _assert_curve_is_whole(cfg, recorder)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_an_image_that_one_worker_cannot_read_stops_both_at_once(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, num_workers=2)
    (tmp_path / "source" / "lq" / "4.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"4\.png"):
        finetune(cfg, "adapted")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_errors_that_are_nobodys_setting_are_tried_again_and_then_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make_config(tmp_path, max_failures=0)
    folder = Path(finetuned_path(cfg, "adapted"))
    folder.mkdir(parents=True)  # where the student's file has to go
    with pytest.raises(GmdError, match=r"training\.max_failures=0 times, .*IsADirectoryError") as caught:
        finetune(cfg, "adapted")
    assert "\n" not in str(caught.value)
    folder.rmdir()
    monkeypatch.setattr("gmd_ray.training.driver.fit", fit_in_process)
    assert finetune(cfg, "adapted").resumed_from == 12  # only the export was left to do
    _assert_is_plain_training(cfg)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_killed_only_worker(tmp_path: Path) -> None:
    """The small form of `test_killed_worker`, for every run of the tests."""
    cfg = make_config(tmp_path, **LONG | {"steps": 150})
    recorder = FileRecorder(tmp_path / "metrics.jsonl")
    finetuned = _with_a_worker_killed(cfg, recorder, 40)
    assert finetuned.resumed_from in range(20, 150, 20)
    _assert_curve_is_whole(cfg, recorder)
    _assert_is_plain_training(cfg)


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_session")
def test_killed_worker(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, num_workers=2, max_failures=1, **LONG)
    recorder = FileRecorder(tmp_path / "metrics.jsonl")
    finetuned = _with_a_worker_killed(cfg, recorder, 100)  # who takes the other with it: one death, and one failure
    assert finetuned.resumed_from is not None
    assert finetuned.resumed_from >= 20
    assert finetuned.resumed_from % 20 == 0
    _assert_curve_is_whole(cfg, recorder)
    _assert_is_plain_training(cfg)


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_session")
def test_killed_driver(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, num_workers=2, **LONG)
    recorder = FileRecorder(tmp_path / "metrics.jsonl")
    _stopped_driver(
        cfg,
        f"""
from tests.training.toys import FileRecorder
finetune(cfg, "adapted", FileRecorder(Path({str(recorder.path)!r})))
""",
        after=100,
        signal_=signal.SIGKILL,
    )
    logged = len(recorder.read())
    assert 10 <= logged < 40
    cfg.training.num_workers = 1
    finetuned = finetune(cfg, "adapted", recorder)
    assert finetuned.resumed_from is not None
    assert finetuned.resumed_from >= 20
    _assert_curve_is_whole(cfg, recorder)
    _assert_is_plain_training(cfg)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_stopped_job_goes_on_with_the_same_mlflow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = make_config(tmp_path, **LONG | {"steps": 150})
    cfg.tracking.uri = f"sqlite:///{tmp_path}/mlflow.db"
    _stopped_driver(
        cfg,
        f"""
from gmd_ray.config.load import resolved
from gmd_ray.tracking import start_run
cfg.tracking.uri = {cfg.tracking.uri!r}
with start_run(cfg, resolved(cfg)) as run, run.stage("finetune-adapted") as stage:
    finetune(cfg, "adapted", stage)
""",
        after=40,
        signal_=signal.SIGTERM,
    )
    monkeypatch.setattr("gmd_ray.training.driver.fit", fit_in_process)
    with start_run(cfg, resolved(cfg)) as run, run.stage("finetune-adapted") as stage:
        finetuned = finetune(cfg, "adapted", stage)
    assert finetuned.resumed_from in range(20, 150, 20)
    assert isinstance(run, MlflowRecorder)
    assert isinstance(stage, MlflowRecorder)

    client = MlflowClient(cfg.tracking.uri)
    experiment = client.get_experiment_by_name(cfg.tracking.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {found.info.run_id for found in runs} == {run.run_id, stage.run_id}
    assert {found.info.status for found in runs} == {"FINISHED"}
    points = read_curve(Path(finetuned.path).parent / "curve.jsonl")
    assert [point["step"] for point in points] == [*range(10, 151, 10)]
    logged = [(metric.step, metric.value) for metric in client.get_metric_history(stage.run_id, "loss")]
    assert logged == sorted(set(logged))
    missing = {(point["step"], point["loss"]) for point in points} ^ set(logged)
    assert len(missing) <= 1  # the point at the moment of the stop: left out rather than drawn twice
    _assert_is_plain_training(cfg)


def _stopped_driver(cfg: Config, body: str, *, after: int, signal_: signal.Signals) -> None:
    """Begin a fine-tune of these settings in a process of its own, and send it a signal soon after a step."""
    assert cfg.training.checkpoint_every < after
    code = f"""
import ray
from pathlib import Path
from gmd_ray.training import finetune
from tests.training.toys import make_config
ray.init(address={ray.get_runtime_context().gcs_address!r}, log_to_driver=False)
cfg = make_config(Path({cfg.out!r}).parent, **{dataclasses.asdict(cfg.training)!r})
{body}
"""
    root = Path(__file__).parents[2]
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=root, env=os.environ | {"RAY_AUTH_MODE": "token"})
    try:
        _wait_for_step(cfg, after)
        driver.send_signal(signal_)
        driver.wait(PATIENCE_S)
    finally:
        driver.kill()
        driver.wait()


def _with_a_worker_killed(cfg: Config, recorder: FileRecorder, step: int) -> Finetuned:
    """A fine-tune one of whose workers gets SIGKILL soon after a step."""
    killed: list[int] = []

    def kill() -> None:
        _wait_for_step(cfg, step)
        below = psutil.Process().children(recursive=True)
        workers = [process for process in below if "RayTrainWorker" in " ".join(process.cmdline())]
        workers[0].kill()
        killed.append(workers[0].pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    finetuned = finetune(cfg, "adapted", recorder)
    killer.join(PATIENCE_S)
    assert killed
    curve = Path(finetuned_path(cfg, "adapted")).parent / "curve.jsonl"
    [died] = [line for line in map(json.loads, curve.read_text().splitlines()) if "died" in line]
    assert died["error"].startswith("its process ended")
    return finetuned


def _wait_for_step(cfg: Config, step: int) -> None:
    curve = Path(finetuned_path(cfg, "adapted")).parent / "curve.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if curve.is_file() and any(f'"step": {done},' in curve.read_text() for done in range(step, step + 50)):
            return
        time.sleep(0.05)
    raise TimeoutError(f"no step {step} in {curve}")
