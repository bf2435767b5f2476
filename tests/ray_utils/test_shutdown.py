"""SIGTERM: once for an orderly end, twice or too late for one at once, and nothing left behind."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from gmd_ray.errors import ExitCode
from gmd_ray.generation.attempts.log import AttemptLog
from gmd_ray.ray_utils.shutdown import StopRequest
from tests import PATIENCE_S
from tests.generation.world import wait_for


@pytest.fixture
def attempts() -> Any:
    """Counts how often it is asked to admit no more; says whether the teacher has begun anything."""
    fake = SimpleNamespace(asked=[], taught=True)

    def close(timeout_s: float) -> bool:
        fake.asked.append(True)
        return fake.taught

    fake.close = close
    return fake


@pytest.fixture(autouse=True)
def harmless() -> Iterator[list[int]]:
    """The handler of SIGTERM before and after, which counts its calls."""
    assert threading.current_thread() is threading.main_thread()
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    yield heard
    signal.signal(signal.SIGTERM, before)


def wait(seconds: float) -> None:
    """In small steps: a signal's handler runs between them."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def run(attempts: Any, grace_s: float, *body: Callable[[StopRequest], object]) -> None:
    with StopRequest(grace_s) as stop:
        if attempts is not None:
            stop.attach(attempts.close)
        for step in body:
            step(stop)


def sigterm(stop: StopRequest) -> None:
    signal.raise_signal(signal.SIGTERM)


def too_late(stop: StopRequest) -> None:
    pytest.fail("it should have ended before")


def test_the_first_asks_and_the_second_ends(attempts: Any, harmless: list[int]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(
            attempts,
            60,
            StopRequest.exit_if_requested,
            sigterm,
            lambda stop: wait_for(lambda: attempts.asked),
            sigterm,
            too_late,
        )
    assert caught.value.code == ExitCode.INTERRUPTED
    assert attempts.asked == [True]
    signal.raise_signal(signal.SIGTERM)
    assert harmless == [signal.SIGTERM], "whoever listened before listens again"


def test_leave_ends_it_where_it_was_asked_for(attempts: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        run(attempts, 60, sigterm, StopRequest.exit_if_requested, too_late)
    assert caught.value.code == ExitCode.INTERRUPTED


def test_with_no_grace_or_nothing_in_flight_it_ends_at_once(attempts: Any) -> None:
    with pytest.raises(SystemExit):
        run(attempts, 0, sigterm, too_late)
    with pytest.raises(SystemExit):
        run(None, 60, sigterm, too_late)
    assert attempts.asked == []


def test_grace_runs_out(attempts: Any) -> None:
    start = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        run(attempts, 0.3, sigterm, lambda stop: wait(PATIENCE_S), too_late)
    assert caught.value.code == ExitCode.INTERRUPTED
    assert 0.3 <= time.monotonic() - start < PATIENCE_S


def test_grace_that_runs_out_after_the_end_hits_nobody(attempts: Any, harmless: list[int]) -> None:
    run(attempts, 0.2, sigterm)
    wait(0.5)
    assert harmless == []


def test_while_the_models_load_it_does_not_wait(attempts: Any) -> None:
    """Nothing that a teacher has done would be lost, and loading may take longer than the grace."""
    attempts.taught = False
    start = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        run(attempts, 10 * PATIENCE_S, sigterm, lambda stop: wait(PATIENCE_S), too_late)
    assert caught.value.code == ExitCode.INTERRUPTED
    assert time.monotonic() - start < PATIENCE_S


def test_the_log_knows_whether_the_teacher_has_begun() -> None:
    attempts = AttemptLog({})
    attempts.begin("read", ["a"])
    attempts.begin("restore", ["a"])
    assert not attempts.close()
    assert attempts.begin("project", ["a"]) is None
    assert not attempts.close(), "it was not let in"
    attempts = AttemptLog({})
    attempts.begin("project", ["a"])
    attempts.done("project", ["a"])
    assert attempts.close(), "it is still to be scored and written"
