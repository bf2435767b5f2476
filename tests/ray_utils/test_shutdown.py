"""SIGTERM: once for an orderly end, twice or too late for one at once, and nothing left behind."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from gmd_ray.generation.ledger import Ledger
from gmd_ray.ray_utils import shutdown
from gmd_ray.ray_utils.shutdown import EXIT_CODE, StopRequest
from tests.generation.world import wait_for


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Counts how often it is asked to admit no more; says whether the teacher has begun anything."""
    fake = SimpleNamespace(asked=[], taught=True)

    def close() -> bool:
        fake.asked.append(True)
        return fake.taught

    fake.close = SimpleNamespace(remote=close)
    monkeypatch.setattr(shutdown.ray, "get", lambda reference, timeout: reference)
    return fake


@pytest.fixture(autouse=True)
def harmless() -> Iterator[list[int]]:
    """What SIGTERM does before and after: it is counted."""
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


def run(ledger: Any, grace_s: float, *body: Callable[[StopRequest], object]) -> None:
    with StopRequest(grace_s) as stop:
        stop.closes(ledger)
        for step in body:
            step(stop)


def sigterm(stop: StopRequest) -> None:
    signal.raise_signal(signal.SIGTERM)


def too_late(stop: StopRequest) -> None:
    pytest.fail("it should have ended before")


def test_the_first_asks_and_the_second_ends(ledger: Any, harmless: list[int]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(ledger, 60, StopRequest.leave, sigterm, lambda stop: wait_for(lambda: ledger.asked), sigterm, too_late)
    assert caught.value.code == EXIT_CODE
    assert ledger.asked == [True]
    signal.raise_signal(signal.SIGTERM)
    assert harmless == [signal.SIGTERM], "whoever listened before listens again"


def test_leave_ends_it_where_it_was_asked_for(ledger: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        run(ledger, 60, sigterm, StopRequest.leave, too_late)
    assert caught.value.code == EXIT_CODE


def test_with_no_grace_or_nothing_in_flight_it_ends_at_once(ledger: Any) -> None:
    with pytest.raises(SystemExit):
        run(ledger, 0, sigterm, too_late)
    with pytest.raises(SystemExit):
        run(None, 60, sigterm, too_late)
    assert ledger.asked == []


def test_grace_runs_out(ledger: Any) -> None:
    start = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        run(ledger, 0.3, sigterm, lambda stop: wait(30), too_late)
    assert caught.value.code == EXIT_CODE
    assert 0.3 <= time.monotonic() - start < 10


def test_grace_that_runs_out_after_the_end_hits_nobody(ledger: Any, harmless: list[int]) -> None:
    run(ledger, 0.2, sigterm)
    wait(0.5)
    assert harmless == []


def test_while_the_models_load_it_does_not_wait(ledger: Any) -> None:
    """Nothing that a teacher has done would be lost, and loading may take longer than the grace."""
    ledger.taught = False
    start = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        run(ledger, 60, sigterm, lambda stop: wait(30), too_late)
    assert caught.value.code == EXIT_CODE
    assert time.monotonic() - start < 10


def test_the_ledger_knows_whether_the_teacher_has_begun() -> None:
    ledger = Ledger({})
    ledger.begin("read", ["a"])
    ledger.begin("restore", ["a"])
    assert not ledger.close()
    assert ledger.begin("project", ["a"]) is None
    assert not ledger.close(), "it was not let in"
    ledger = Ledger({})
    ledger.begin("project", ["a"])
    ledger.done("project", ["a"])
    assert ledger.close(), "it is still to be scored and written"
