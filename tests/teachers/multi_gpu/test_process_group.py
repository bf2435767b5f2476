"""Ranks that die, fail, hang or lose their driver: the driver notices at once, and no process stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gmd_ray.errors import ModelError, ReplicaLostError
from gmd_ray.teachers.multi_gpu.process_group import PATIENCE_S, RankGroup
from tests.teachers.multi_gpu.shards import alive, misbehave, on_every_rank, refuse

pytestmark = pytest.mark.slow  # each starts processes that import torch

ROOT = Path(__file__).resolve().parents[3]


def assert_nothing_is_left(ranks: RankGroup, pids: list[int | None]) -> None:
    assert ranks.closed
    assert not any(alive(pid) for pid in pids if pid)
    assert not Path(ranks.meeting).exists()


def test_a_call_runs_in_every_rank_and_the_end_of_the_object_ends_them() -> None:
    ranks = RankGroup(dict, 2, threads=2)
    pids = ranks.pids
    assert ranks.call(on_every_rank, "rank") == [0, 1]
    assert ranks.call(on_every_rank, "threads") == [2, 2]
    meeting = ranks.meeting
    del ranks
    assert not any(alive(pid) for pid in pids if pid)
    assert not Path(meeting).exists()


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("kill", ReplicaLostError, r"^rank 1 of the teacher died \(killed by SIGKILL\)"),
        ("accelerator", ReplicaLostError, "rank 1: AcceleratorError: CUDA error"),
        (
            "raise",
            ReplicaLostError,
            "rank 0 did not answer in time .* rank 1: MemoryError: out of memory",
        ),
        ("stop", ReplicaLostError, "rank 1 did not answer in time after the others had ended"),
        ("raise everywhere", RuntimeError, "^rank [01]: ValueError: this image is too much$"),
    ],
)
def test_a_rank_that_fails_is_told_of_and_ends_the_others(how: str, error: type[Exception], message: str) -> None:
    timeout_s = 5.0 if how == "stop" else 60.0
    ranks = RankGroup(dict, 2, timeout_s=timeout_s)
    pids, start = ranks.pids, time.monotonic()
    if how == "stop":
        os.kill(pids[1] or 0, signal.SIGSTOP)
    with pytest.raises(error, match=message):
        ranks.call(misbehave, how, bytes(4 << 20))  # more than a pipe holds
    assert time.monotonic() - start < PATIENCE_S + 45  # a ceiling for crowded machines, below the timeout
    assert_nothing_is_left(ranks, pids)


def test_what_a_rank_refuses_while_it_starts_is_the_drivers_error() -> None:
    with pytest.raises(ModelError, match=r"^transformer/: no such directory$"):
        RankGroup(refuse, 2)


def test_ranks_end_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.teachers.multi_gpu.shards", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        pids = [int(pid) for pid in driver.stdout.readline().split()]
        end = time.monotonic() + 120
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        driver.send_signal(signal.SIGKILL)
    end = time.monotonic() + 20
    while any(alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)
