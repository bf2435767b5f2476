"""The figures of a fine-tune on their way to a person."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from gmd_ray.progress import NullRecorder
from gmd_ray.training.curve import CurveKeeper, CurveWatcher
from gmd_ray.training.run_files import read_curve
from tests.training.toys import FileRecorder

GLOO = RuntimeError("[/x/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.1]:1234")
DEAD = WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: x", failure=ActorDiedError())


@pytest.mark.parametrize(
    ("errors", "rank", "said"),
    [
        ({0: GLOO, 1: DEAD, 2: GLOO}, 1, "its process ended"),
        ({0: GLOO, 1: OSError("disk full")}, 1, "OSError: disk full"),
        ({0: GLOO}, 0, "RuntimeError: [/x/gloo"),
    ],
)
def test_a_group_that_dies_is_one_death_of_the_worker_that_began_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, errors: dict[int, Exception], rank: int, said: str
) -> None:
    path = tmp_path / "curve.jsonl"
    with caplog.at_level(logging.WARNING, logger="gmd_ray"), CurveWatcher(str(path), "finetune adapted", 9, 60.0):
        CurveKeeper(str(path), NullRecorder(), 0, ("runs/a", "adapted")).after_exception(None, errors)
    [line] = [json.loads(text) for text in path.read_text().splitlines()]
    assert (line["died"], line["with_it"]) == (rank, len(errors) - 1)
    assert line["error"].startswith(said)
    [told] = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"finetune adapted: worker {rank} died ({said}")
    assert ("stopped with it" in told) == (len(errors) > 1)


def test_a_node_that_goes_is_told_with_its_checkpoints_and_its_deaths_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "curve.jsonl"
    recorder = FileRecorder(tmp_path / "metrics.jsonl")
    gone = WorkerHealthCheckFailedError("x", failure=RayActorError(preempted=True))
    with caplog.at_level(logging.WARNING, logger="gmd_ray"), CurveWatcher(str(path), "finetune adapted", 99, 60.0):
        keeper = CurveKeeper(str(path), recorder, 0, ("runs/a", "adapted"))
        keeper.after_report(None, [{"step": 7, "leaving": [0, 2], "left_s": 87.5, "waits": False}], "checkpoint")
        final = {"step": 10, "loss": 0.5, "leaving": [0, 2], "left_s": 4.2, "waits": True}
        keeper.after_report(None, [final], "checkpoint")
        for _ in range(3):  # polls of Ray Train, until the whole group has ended
            keeper.after_exception(None, {0: gone, 1: GLOO})
        for _ in range(2):  # deaths of two groups
            keeper.after_exception(None, {1: GLOO})
    first, second = [record.getMessage() for record in caplog.records][:2]
    assert first.endswith("workers 0, 2: node goes in 1m28s; checkpoint at step 7, and training goes on until then")
    assert second.endswith(
        "workers 0, 2: node goes in 4s; checkpoint at step 10, then all workers start again elsewhere"
    )
    assert len(caplog.records) == 2 + 1 + 2
    assert read_curve(path) == [{"step": 10, "loss": 0.5}]
    assert recorder.read() == [{"step": 10, "loss": 0.5}]


def test_until_the_first_step_every_interval_says_what_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    path = tmp_path / "curve.jsonl"
    answers = ["waiting for 2 worker(s) x {GPU: 1}: the cluster has 0 GPU", "workers starting"]

    def waiting_for() -> str:
        if not answers:
            raise ConnectionError("no cluster")
        return answers.pop(0)

    watcher = CurveWatcher(str(path), "finetune adapted", 9, 0.05, waiting_for)
    with caplog.at_level(logging.INFO, logger="gmd_ray"), watcher:
        deadline = time.monotonic() + 10
        while len(caplog.records) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        path.write_text('{"step": 3, "loss": 1.0}\n')
        while "3/9" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        begun = len(caplog.records)
        time.sleep(0.3)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("finetune adapted: waiting for 2 worker(s) x {GPU: 1}: the cluster has 0 GPU (")
    assert lines[1].startswith("finetune adapted: workers starting (")
    assert "the cluster does not answer (ConnectionError)" in lines[2]
    assert all("3/9 step" in line for line in lines[begun:])


def test_damaged_lines_of_a_curve_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    path.write_bytes(b'{"step": 2, "loss": 1.0}\n\0\0\0\n[1]\n{"step": 4, "loss": 0.5}\n')
    assert [point["step"] for point in read_curve(path)] == [2, 4]
