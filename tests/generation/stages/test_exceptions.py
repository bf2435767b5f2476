"""Whatever a model raises, or returns too little of, is its row's failure and nobody else's."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from gmd_ray.generation.attempts.log import AttemptLog
from gmd_ray.generation.fault_isolation import FaultIsolation, Row, to_table
from tests.generation.stages.test_fault_isolation import rows, whole


@pytest.fixture
def attempts() -> AttemptLog:
    return AttemptLog({})


class HomemadeError(BaseException):
    """An exception of a class that no `except Exception` catches."""


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit("closed"), "closed"),
        (asyncio.CancelledError(), "CancelledError"),
        (HomemadeError("by hand"), "by hand"),
        (SystemExit(3), "3"),
        (StopIteration(7), "7"),
        (MemoryError(), "MemoryError"),
        (RecursionError("too deep"), "too deep"),
        (UnspeakableError(), "UnspeakableError"),
        (ValueError("\x1b[2Jgone \udcff"), "\\x1b[2Jgone \\udcff"),
    ],
)
def test_whatever_a_model_raises_is_one_failed_row(attempts: AttemptLog, error: BaseException, message: str) -> None:
    def work(batch: list[Row]) -> list[Row]:
        if any(row["id"] == "bad" for row in batch):
            raise error
        return [{"score": 1.0} for _ in batch]

    block = rows("a", "bad", "z")
    with ThreadPoolExecutor(1) as model_thread:
        model_thread.submit(FaultIsolation("score", attempts, 2).run, block, work, whole).result()
    assert [row["status"] for row in block] == ["ok", "failed", "ok"]
    assert (block[1]["error_type"], block[1]["error"]) == (type(error).__name__, message)
    assert to_table(block)["error"].to_pylist() == [None, message, None]


def test_an_interrupt_of_the_process_itself_goes_through(attempts: AttemptLog) -> None:
    """Ray cancels a read task by it."""

    def work(batch: list[Row]) -> list[Row]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FaultIsolation("read", attempts, 2).run(rows("a"), work, whole)


@pytest.mark.parametrize("always", [False, True])
def test_a_wrong_count_of_results_lands_in_no_row(attempts: AttemptLog, always: bool) -> None:
    """Wrong for a batch and right alone: each row gets its own result. Wrong alone too: failed rows."""

    def work(batch: list[Row]) -> list[Row]:
        found = [{"score": float(ord(row["id"]))} for row in batch]
        return found[1:] if always or len(batch) > 1 else found

    block = rows("a", "b", "c")
    FaultIsolation("score", attempts, 2).run(block, work, whole)
    if always:
        assert [row["error"] for row in block] == ["0 results for 1 images"] * 3
    else:
        assert [row["score"] for row in block] == [97.0, 98.0, 99.0]
