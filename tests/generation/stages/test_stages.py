"""The batches that a stage hands to its model, and the work beside it."""

from __future__ import annotations

import re
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
from gmd_ray.generation.attempts.log import AttemptLog
from gmd_ray.generation.loading import Replica
from gmd_ray.generation.stages import Restore
from gmd_ray.images.files.encode import decode_png, encode_png
from gmd_ray.pairstore.schema import PAIR_SCHEMA
from gmd_ray.ray_utils.pools import BLOCKS_PER_ACTOR

PATIENCE_S = 30


class Student:
    """Darkens; stays at an image until it is told to go on, and remembers who asked and where."""

    fingerprint = "f" * 12
    scale = 1

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.threads: set[int] = set()
        self.breaks_on = ""
        self.makes: Callable[[torch.Tensor], Any] = lambda lq: lq / 2
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def restore(self, lq: torch.Tensor, ids: list[str]) -> torch.Tensor:
        self.seen += ids
        self.threads.add(threading.get_ident())
        assert self.may_go_on.wait(PATIENCE_S)
        if self.breaks_on in ids:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return self.makes(lq)


@pytest.fixture
def student() -> Student:
    return Student()


@pytest.fixture
def stage(student: Student) -> Iterator[Restore]:
    """Stage 0 as an actor holds it, in this process."""
    config = SimpleNamespace(pool=SimpleNamespace(num_cpus=1, batch_size=2))
    yield Restore(Replica(lambda _: student, config, AttemptLog({}), 2))
    student.may_go_on.set()


def block(*ids: str) -> pa.Table:
    image = np.full((8, 8, 3), 0.8, np.float32)
    rows = [{"id": key, "status": "ok", "attempts": 0, "lq": encode_png(image)} for key in ids]
    return pa.Table.from_pylist(rows, schema=PAIR_SCHEMA)


def checked(done: Future[pa.Table]) -> list[str]:
    rows = done.result(PATIENCE_S).to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    assert all(np.allclose(decode_png(row["restored"]), 0.4, atol=1e-6) for row in rows)
    return [row["id"] for row in rows]


def test_stage_0_tells_the_student_whose_image_it_is(stage: Restore, student: Student) -> None:
    """A student that samples draws its noise from the id; without it a renamed or resumed run would differ."""
    assert stage(block("a/b.png", "c.png", "d.png")).num_rows == 3
    assert student.seen == ["a/b.png", "c.png", "d.png"]


def test_the_model_goes_on_while_the_last_images_of_a_block_are_encoded(
    stage: Restore, student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding, may_end = threading.Event(), threading.Event()

    def slow(image: np.ndarray) -> bytes:
        encoding.set()
        assert may_end.wait(PATIENCE_S)
        return encode_png(image)

    with ThreadPoolExecutor(BLOCKS_PER_ACTOR) as calls:
        student.may_go_on.clear()
        first = calls.submit(stage, block("a"))
        second = calls.submit(stage, block("b"))
        monkeypatch.setattr(stages, "encode_png", slow)
        student.may_go_on.set()
        assert encoding.wait(PATIENCE_S)
        until(lambda: sorted(student.seen) == ["a", "b"])
        assert not first.done()
        assert not second.done()
        may_end.set()
        assert checked(first) == ["a"]
        assert checked(second) == ["b"]
    assert len(student.threads) == 1  # an accelerator's model is never in two places


def test_the_next_block_is_decoded_while_the_model_works(
    stage: Restore, student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = threading.Semaphore(0)

    def noted(data: bytes) -> np.ndarray:
        image = decode_png(data)
        decoded.release()
        return image

    monkeypatch.setattr(stages, "decode_png", noted)
    with ThreadPoolExecutor(BLOCKS_PER_ACTOR) as calls:
        student.may_go_on.clear()
        first = calls.submit(stage, block("a"))
        assert decoded.acquire(timeout=PATIENCE_S)
        until(lambda: student.seen == ["a"])
        second = calls.submit(stage, block("b", "c", "d"))
        for _ in range(stage._batch_size):
            assert decoded.acquire(timeout=PATIENCE_S)
        assert student.seen == ["a"]  # which the student still has
        student.may_go_on.set()
        assert checked(first) == ["a"]
        assert checked(second) == ["b", "c", "d"]


@pytest.mark.parametrize(
    ("makes", "reason"),
    [
        (lambda lq: lq[..., 1:], r"shape \(1, 3, 8, 7\), and \(1, 3, 8, 8\) is due"),
        (lambda lq: torch.nn.functional.interpolate(lq, scale_factor=2), r"shape \(1, 3, 16, 16\)"),
        (lambda lq: lq[:, :1], r"shape \(1, 1, 8, 8\)"),
        (lambda lq: lq.repeat(2, 1, 1, 1), r"shape \(2, 3, 8, 8\)"),
        (lambda lq: lq[0], r"shape \(3, 8, 8\)"),
        (lambda lq: lq.numpy(), "is a numpy.ndarray, not a tensor"),
        (lambda lq: None, "is a builtins.NoneType, not a tensor"),
        (lambda lq: (lq * 255).to(torch.uint8), "a tensor of uint8, not of floats"),
        (lambda lq: lq * float("nan"), "is not finite"),
        (lambda lq: lq.double() * 1e200, "is not finite"),
        (lambda lq: lq * 255, r"ranges from 204 to 204, .* \[0, 1\]"),
    ],
)
def test_what_is_no_image_of_the_right_size_is_a_failed_row(
    stage: Restore, student: Student, makes: Callable[[torch.Tensor], Any], reason: str
) -> None:
    student.makes = makes
    rows = stage(block("a", "b")).to_pylist()
    assert [(row["status"], row["error_stage"], row["restored"]) for row in rows] == [("failed", "restore", None)] * 2
    assert all(re.search(reason, row["error"]) for row in rows), rows[0]["error"]


def test_an_enlarging_student_makes_enlarged_images(stage: Restore, student: Student) -> None:
    student.scale = 2
    student.makes = lambda lq: torch.nn.functional.interpolate(lq / 2, scale_factor=2)
    assert [decode_png(row["restored"]).shape for row in stage(block("a", "b")).to_pylist()] == [(16, 16, 3)] * 2


def test_a_count_that_is_right_alone_gives_each_image_its_own(stage: Restore, student: Student) -> None:
    student.makes = lambda lq: lq[:1] / 2
    assert {row["status"] for row in stage(block("a", "b", "c")).to_pylist()} == {"ok"}
    assert student.seen == ["a", "b", "a", "b", "c"]


def test_an_image_that_cannot_be_encoded_is_its_rows_failure(
    stage: Restore, student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(image: np.ndarray) -> bytes:
        raise MemoryError("no room for a PNG")

    monkeypatch.setattr(stages, "encode_png", full)
    [row] = stage(block("a")).to_pylist()
    assert (row["status"], row["error_stage"], row["error_type"]) == ("failed", "restore", "MemoryError")


class Left(BaseException):
    """In the place of the end of the process."""


def test_a_worker_that_leaves_lets_go_of_the_block_that_is_done(
    stage: Restore, student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be lost and made again, by a worker that may break at the same point."""
    may_end, exits = threading.Event(), list[float]()

    def slow(image: np.ndarray) -> bytes:
        assert may_end.wait(PATIENCE_S)
        return encode_png(image)

    def leave(code: int) -> None:
        exits.append(time.monotonic())
        raise Left

    monkeypatch.setattr(stages, "encode_png", slow)
    monkeypatch.setattr("os._exit", leave)
    with ThreadPoolExecutor(BLOCKS_PER_ACTOR) as calls:
        first = calls.submit(stage, block("a"))
        until(lambda: student.seen == ["a"])
        student.breaks_on = "b"
        second = calls.submit(stage, block("b"))
        until(lambda: student.seen == ["a", "b"])
        time.sleep(handover.RETURN_S + 0.5)
        assert not exits
        assert not first.done()
        released = time.monotonic()
        may_end.set()
        assert checked(first) == ["a"]
        with pytest.raises(Left):
            second.result(PATIENCE_S)
    assert exits[0] >= released + handover.RETURN_S, "Ray takes a moment to fetch what was returned"


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
