"""A fine-tune with damaged files, with missing resources, and with a signal."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
import torch

from gmd_ray.errors import ConfigError, DataError, ExitCode
from gmd_ray.training import finetune
from gmd_ray.training.driver import repeated_signals
from tests import PATIENCE_S
from tests.training.toys import LONG, make_config


@pytest.mark.usefixtures("in_process")
def test_a_torn_checkpoint_or_student_costs_no_bit_of_the_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make_config(tmp_path)
    student = Path(finetune(cfg, "adapted").path)
    undisturbed = torch.load(student, weights_only=True)
    student.write_bytes(student.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"student\.pth: not as this fine-tune wrote it .*; remove it"):
        finetune(cfg, "adapted")

    student.unlink()
    last = student.parent / "train" / "step_00000012" / "state.pt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    assert finetune(cfg, "adapted").resumed_from == 8
    assert f"{last} is incomplete: resuming from step 8" in caplog.text
    again = torch.load(student, weights_only=True)
    assert all(torch.equal(again[key], value) for key, value in undisturbed.items())

    student.unlink()
    for state in student.parent.glob("train/step_*/state.pt"):
        state.write_bytes(b"")
    monkeypatch.setattr("gmd_ray.training.driver.fit", lambda *_: pytest.fail("workers were started"))
    with pytest.raises(DataError, match=r"no checkpoint is intact .*state\.pt is empty.* remove .*train to start over"):
        finetune(cfg, "adapted")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_gpu_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, use_gpu=True)
    with pytest.raises(ConfigError, match=r"the cluster has 0 GPU, .*training\.use_gpu=false"):
        finetune(cfg, "adapted")
    cfg.training.use_gpu, cfg.training.cpus_per_worker = False, 64.0
    with pytest.raises(ConfigError, match=r"has 4 CPU, .*training\.cpus_per_worker=64"):
        finetune(cfg, "adapted")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_whose_exception_is_dropped_comes_again(number: signal.Signals) -> None:
    """Ray's C++ core calls Python, and drops what that raises."""
    raised = []

    def end(signum: int, frame: object) -> None:
        raised.append(signum)
        raise KeyboardInterrupt

    def work() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(number)
        time.sleep(10)

    before, heard = signal.signal(number, end), threading.Event()
    try:
        with pytest.raises(KeyboardInterrupt), repeated_signals(heard, every_s=0.05):
            work()
        heard.set()
        assert signal.getsignal(number) is end, "the handler before is back"
        time.sleep(0.2)
        assert raised == [number] * 2, "and no signal comes after"
    finally:
        signal.signal(number, before)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_finetune_at_any_moment_with_a_word(tmp_path: Path, number: signal.Signals) -> None:
    """Here while the workers start, where Ray Train would wait for them."""
    cfg = make_config(tmp_path, **LONG)
    settings = {"out": cfg.out, "source.hq": cfg.source.hq, "source.lq": cfg.source.lq, "scorer.threshold": 1.0}
    settings |= {"student.path": cfg.student.path, "log_interval_s": 0.5, "training.source_ratio": 0.6}
    settings |= {f"training.{key}": value for key, value in LONG.items()} | {"training.cpus_per_worker": 0.5}
    settings |= {"ray.address": ray.get_runtime_context().gcs_address}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "gmd_ray.cli", "finetune", *(f"{key}={value}" for key, value in settings.items())]
    env = os.environ | {"RAY_AUTH_MODE": "token"}
    driver = subprocess.Popen(command, cwd=root, env=env, stderr=subprocess.PIPE, text=True)
    told = []
    try:
        assert driver.stderr is not None
        for line in driver.stderr:
            told.append(line)
            if "finetune adapted: " in line and "starting (" in line:
                driver.send_signal(number)
                break
        told += driver.communicate(timeout=PATIENCE_S)[1].splitlines(keepends=True)
    finally:
        driver.kill()
        driver.wait()
    text = "".join(told)
    assert driver.returncode == ExitCode.INTERRUPTED, text
    assert "Traceback" not in text
    if number is signal.SIGINT:
        assert told[-1] == "gmd-ray: stopped; the same command takes up where this one left off\n"
    else:
        assert "SIGTERM: stopping; the same command goes on from the last checkpoint" in text
