"""Workers whose node is to go: the batch in hand is finished, and nothing that is made is made again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from gmd_ray.generation import stages
from gmd_ray.generation.attempts import handover
from gmd_ray.generation.attempts.log import START, AttemptLog, Attempts
from gmd_ray.generation.loading import Replica
from gmd_ray.generation.stages import Restore
from gmd_ray.images.files.encode import decode_png, encode_png
from gmd_ray.ray_utils.draining import watch
from gmd_ray.ray_utils.pools import BLOCKS_PER_ACTOR
from tests.generation.stages.test_stages import PATIENCE_S, Student, block, until

CONFIG = SimpleNamespace(pool=SimpleNamespace(num_cpus=1, batch_size=2))


class Left(BaseException):
    """In the place of the end of the process."""


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit statuses; the thread that ends its process is stopped instead."""
    found: list[int] = []

    def leave(code: int) -> None:
        found.append(code)
        raise Left

    monkeypatch.setattr("os._exit", leave)
    monkeypatch.setattr(handover, "RETURN_S", 0.01)
    return found


@pytest.fixture
def log() -> AttemptLog:
    return AttemptLog({})


@pytest.fixture
def calls() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(BLOCKS_PER_ACTOR) as threads:
        yield threads


Worker = Callable[[Any], Restore]
"""Makes stage 0 as an actor holds it, with a given student and batches of two images; all share one log."""


@pytest.fixture
def worker(log: AttemptLog, exits: list[int]) -> Iterator[Worker]:
    made: list[Restore] = []

    def make(student: Any) -> Restore:
        made.append(Restore(Replica(lambda _: student, CONFIG, log, 2)))
        return made[-1]

    yield make
    for stage in made:  # none may come to the end of its process when that is the real one again
        stage._model_thread.shutdown(wait=True)


def held(student: Student, stage: Restore, calls: ThreadPoolExecutor, table: pa.Table) -> Future[pa.Table]:
    """Start a block, and return once the student is in its first batch, where it stays."""
    student.may_go_on.clear()
    call = calls.submit(stage, table)
    until(lambda: bool(student.seen))
    return call


def test_the_batch_in_hand_is_finished_and_the_next_worker_begins_the_others_alone(
    worker: Worker, log: AttemptLog, exits: list[int], calls: ThreadPoolExecutor
) -> None:
    first, second, table = Student(), Student(), block(*"abcdef")
    stage = worker(first)
    call = held(first, stage, calls, table)
    stage.node_goes()
    assert not exits, "the batch is not finished"
    first.may_go_on.set()
    with pytest.raises(Left):
        call.result(PATIENCE_S)
    assert (first.seen, set(exits)) == (["a", "b"], {1})
    rows = worker(second)(table).to_pylist()
    assert second.seen == ["c", "d", "e", "f"]
    assert [(row["id"], row["status"], row["attempts"]) for row in rows] == [(key, "ok", 1) for key in "abcdef"]
    assert all(np.allclose(decode_png(row["restored"]), 0.4, atol=1e-6) for row in rows)
    assert all(row["student"] == first.fingerprint and row["seconds_restore"] > 0 for row in rows)
    assert log.take("restore", list("abcdef")) == {}, "nothing is kept for longer than it is needed"


def test_a_notice_shorter_than_a_batch_keeps_the_batches_before_it(
    worker: Worker, log: AttemptLog, exits: list[int], calls: ThreadPoolExecutor
) -> None:
    """The first worker is killed in its second batch: it never hears that the batch is done."""
    first, second, table = Student(), Student(), block(*"abcdef")

    def makes(lq: torch.Tensor) -> torch.Tensor:
        first.may_go_on.clear()  # the next batch stays
        return lq / 2

    first.makes = makes
    stage = worker(first)
    call = calls.submit(stage, table)
    until(lambda: first.seen == list("abcd"))
    stage.node_goes()
    assert not exits
    rows = worker(second)(table).to_pylist()  # while the first is stuck
    assert second.seen == list("cdef")
    assert {row["status"] for row in rows} == {"ok"}
    first.may_go_on.set()
    with pytest.raises(Left):
        call.result(PATIENCE_S)


def test_what_two_workers_after_each_other_have_made_reaches_the_third(
    worker: Worker, log: AttemptLog, exits: list[int], calls: ThreadPoolExecutor
) -> None:
    students, table = [Student(), Student(), Student()], block(*"abcdef")
    for student in students[:2]:
        stage = worker(student)
        call = held(student, stage, calls, table)
        stage.node_goes()
        student.may_go_on.set()
        with pytest.raises(Left):
            call.result(PATIENCE_S)
    assert {row["status"] for row in worker(students[2])(table).to_pylist()} == {"ok"}
    assert [student.seen for student in students] == [["a", "b"], ["c", "d"], ["e", "f"]]


def test_a_failed_row_stays_failed_without_another_attempt(
    worker: Worker, log: AttemptLog, exits: list[int], calls: ThreadPoolExecutor
) -> None:
    def makes(lq: torch.Tensor) -> torch.Tensor:
        raise ValueError("this image is too much")

    first, second, table = Student(), Student(), block("a", "b", "c")
    first.makes = makes
    stage = worker(first)
    call = held(first, stage, calls, table)
    stage.node_goes()
    first.may_go_on.set()
    with pytest.raises(Left):
        call.result(PATIENCE_S)
    rows = worker(second)(table).to_pylist()
    assert [row["status"] for row in rows] == ["failed", "failed", "ok"]
    assert second.seen == ["c"]


def test_a_block_that_is_done_is_returned_and_one_that_waits_is_not_begun(
    worker: Worker, log: AttemptLog, exits: list[int], calls: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding, may_end = threading.Event(), threading.Event()

    def slow(image: np.ndarray) -> bytes:
        encoding.set()
        assert may_end.wait(PATIENCE_S)
        return encode_png(image)

    monkeypatch.setattr(stages, "encode_png", slow)
    student = Student()
    stage = worker(student)
    done = calls.submit(stage, block("a", "b"))
    assert encoding.wait(PATIENCE_S)
    stage.node_goes()
    waits = calls.submit(stage, block("c", "d"))
    time.sleep(0.1)
    assert not exits
    may_end.set()
    assert [row["status"] for row in done.result(PATIENCE_S).to_pylist()] == ["ok", "ok"]
    with pytest.raises(Left):
        waits.result(PATIENCE_S)
    assert student.seen == ["a", "b"]
    assert log.history("restore", ["c", "d"]) == [Attempts()] * 2


def test_a_worker_without_a_block_leaves_at_once(worker: Worker, exits: list[int]) -> None:
    worker(Student()).node_goes()
    until(lambda: exits == [1])


def test_a_batch_that_is_longer_than_the_notice_is_no_suspect(
    worker: Worker, log: AttemptLog, exits: list[int], calls: ThreadPoolExecutor
) -> None:
    """The node is killed in its midst: the next worker tries it in a batch, as if it were new, and first."""
    first, second, table = Student(), Student(), block(*"abcd")
    stage = worker(first)
    held(first, stage, calls, table)
    stage.node_goes()
    assert log.history("restore", ["a", "b", "c"]) == [Attempts(excused=1), Attempts(excused=1), Attempts()]
    rows = worker(second)(table).to_pylist()
    first.may_go_on.set()
    assert second.seen == ["a", "b", "c", "d"]
    assert [(row["status"], row["attempts"]) for row in rows] == [("ok", 1)] * 4


def test_a_worker_that_loads_its_model_leaves_and_its_start_is_not_held_against_it(
    log: AttemptLog, exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three nodes that go while a model loads must not read as three deaths of the loader."""
    watched: list[Any] = []
    monkeypatch.setattr(stages, "watch_this_node", watched.append)

    def load(_: Any) -> Student:
        watched[-1]()
        until(lambda: exits == [1])
        raise Left

    with pytest.raises(Exception, match="could not be loaded"):
        Restore(Replica(load, CONFIG, log, 2))
    assert log.begin(f"{START}student", ["driver"]) == [1]


def test_the_node_is_watched_until_it_is_to_go() -> None:
    """A head that does not answer for a while is no notice, and no end of the watch."""
    answers: Iterator[Any] = iter([False, ConnectionError("no head"), True, True])
    told: list[float] = []

    def draining() -> bool:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    thread = watch(draining, lambda: told.append(time.monotonic()), poll_s=0.01)
    thread.join(PATIENCE_S)
    assert len(told) == 1
    assert next(answers) is True, "it stops asking"
