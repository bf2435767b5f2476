"""The bound on a batch, and the process that ends at it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gmd_ray.config import GenerationConfig
from gmd_ray.generation.watchdog import Bound, Watchdog, batch_bound
from tests import PATIENCE_S

ROOT = Path(__file__).resolve().parents[3]
CODE = """
import ctypes, time
from gmd_ray.generation import watchdog
watchdog.SLACK_S = 1.0
def tell(ids):
    print("hangs:", *ids, flush=True)
dog = watchdog.Watchdog(watchdog.Bound(0.3), tell, lambda: print("leaves", flush=True))
with dog.over(["a", "b"]):
    pass
with dog.over(["c"]):
    {}
print("came back")
"""


@pytest.mark.parametrize(
    ("hang", "said"),
    [
        ("time.sleep(600)", "hangs: c\nleaves\n"),
        ("ctypes.PyDLL(None).sleep(600)", ""),  # native code that keeps Python's lock: nothing of Python runs
    ],
)
def test_a_process_that_hangs_ends(hang: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(hang)], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stdout) == (1, said), done.stderr


def test_work_that_ends_while_the_process_is_about_to_leave_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    exits, told, ended, looked = list[int](), list[str](), threading.Event(), threading.Event()
    monkeypatch.setattr("os._exit", exits.append)

    def before_leaving() -> None:
        assert ended.wait(PATIENCE_S)
        looked.set()

    with Watchdog(Bound(0.05), lambda ids: told.extend(ids), before_leaving).over(["slow"]):
        while not told:
            time.sleep(0.01)
    ended.set()
    assert looked.wait(PATIENCE_S)
    time.sleep(0.2)
    assert (told, exits) == (["slow"], [])


def test_without_a_bound_nothing_is_watched() -> None:
    with Watchdog(Bound(), lambda ids: None, lambda: None).over(["a"]):
        assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("settings", "alone", "eight"),
    [
        ({}, 450.0, 900.0),  # half of a block of healthy images may take half of the run's patience
        ({"max_attempts": 1}, 450.0, 900.0),
        ({"max_attempts": 4, "no_progress_timeout_s": 600}, 100.0, 300.0),
        ({"rows_per_block": 2}, 900.0, 7200.0),
        ({"batch_timeout_s": 7.5}, 7.5, 7.5),
        ({"batch_timeout_s": 0.0}, 0.0, 0.0),
    ],
)
def test_the_bound_of_the_settings(settings: dict, alone: float, eight: float) -> None:
    bound = batch_bound(GenerationConfig(**settings))
    assert (bound.of(1), bound.of(8)) == (alone, eight)
