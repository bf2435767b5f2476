"""Isolation of rows that raise, or that kill or hang their worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from gmd_ray.errors import GmdError, ModelError, ReplicaLostError
from gmd_ray.generation.attempts.log import AttemptLog, Attempts
from gmd_ray.generation.attempts.remote import RemoteAttemptLog, start_attempt_log
from gmd_ray.generation.fault_isolation import FaultIsolation, Row, batches_by_size, one_by_one, to_table
from gmd_ray.generation.io_stages import SUMMARY, write_rows
from gmd_ray.generation.watchdog import Bound
from gmd_ray.images.files.encode import encode_png
from gmd_ray.pairstore.lock import StoreLock, StoreLostError
from gmd_ray.pairstore.store import PairStore
from gmd_ray.text import one_line
from tests import PATIENCE_S


@pytest.fixture
def attempts() -> AttemptLog:
    return AttemptLog({})


@pytest.fixture
def remote_attempts(ray_session: None) -> RemoteAttemptLog:
    """A log in a process of its own, as in a run on Ray."""
    return start_attempt_log({})


def rows(*ids: str) -> list[Row]:
    return [{"id": key, "status": "ok", "attempts": 0} for key in ids]


def whole(rows: list[Row]) -> Iterator[list[Row]]:
    if rows:
        yield rows


class Died(BaseException):
    """Ends the work as a killed process does: nothing after it runs."""


class Mortal(FaultIsolation):
    """In a process that is gone where work raises `Died`."""

    def _leave_if_lost(self, error: BaseException, ids: list[str]) -> None:
        if isinstance(error, Died):
            raise error
        super()._leave_if_lost(error, ids)


def test_the_log_counts_what_was_not_finished() -> None:
    attempts = AttemptLog({"teacher": {"fingerprint": "old"}})
    assert attempts.begin("project", ["a", "b"]) == [1, 1]
    assert attempts.begin("project", ["a"]) == [2]
    assert attempts.history("project", ["a", "b", "c"]) == [Attempts(2, 1), Attempts(1, 0), Attempts()]
    assert attempts.history("restore", ["a"]) == [Attempts()]
    attempts.done("project", ["a", "c"])
    assert attempts.history("project", ["a", "b"]) == [Attempts(), Attempts(1, 0)]


def test_the_log_keeps_the_first_facts_and_the_first_error() -> None:
    attempts = AttemptLog({"scorer": {"fingerprint": "old"}})
    assert attempts.agree("teacher", {"fingerprint": "x"}) == {"fingerprint": "x"}
    assert attempts.agree("teacher", {"fingerprint": "y"}) == {"fingerprint": "x"}
    # The store's rows know the fingerprint, the worker the direction.
    known = {"fingerprint": "old", "higher_is_better": True}
    assert attempts.agree("scorer", {"fingerprint": "old", "higher_is_better": True}) == known
    assert attempts.agree("scorer", {"fingerprint": "new", "higher_is_better": True}) == known
    attempts.fail(ModelError("first"))
    attempts.fail(GmdError("second"))
    assert str(attempts.error()) == "first"


@pytest.mark.parametrize(("max_attempts", "tries"), [(1, 2), (2, 2), (3, 3)])
def test_a_row_that_kills_is_found_alone(attempts: AttemptLog, max_attempts: int, tries: int) -> None:
    worked: list[list[str]] = []

    def work(batch: list[Row]) -> list[Row]:
        ids = [row["id"] for row in batch]
        worked.append(ids)
        if "bad" in ids:
            raise Died
        return [{"score": 1.0} for _ in batch]

    isolation = Mortal("project", attempts, max_attempts)
    for _ in range(tries):
        with pytest.raises(Died):
            isolation.run(rows("a", "bad", "z"), work, whole)
    last = rows("a", "bad", "z")
    isolation.run(last, work, whole)
    assert [row["status"] for row in last] == ["ok", "failed", "ok"]
    assert (last[1]["error_type"], last[1]["attempts"]) == ("WorkerDied", tries)
    assert worked[0] == ["a", "bad", "z"]
    assert all(len(ids) == 1 for ids in worked[1:] if "bad" in ids)
    assert sum("bad" in ids for ids in worked) == tries
    # The poison row is remembered, for its block may be repeated; nothing else is left open.
    assert attempts.history("project", ["a", "bad", "z"]) == [Attempts(), Attempts(tries, tries - 1), Attempts()]


def test_two_rows_that_kill_in_one_block_are_both_found(attempts: AttemptLog) -> None:
    """The block is repeated for the second after the first was given up, which must not be tried afresh for it."""
    deaths = 0

    def work(batch: list[Row]) -> list[Row]:
        if any(row["id"] in ("bad", "worse") for row in batch):
            raise Died
        return [{"score": 1.0} for _ in batch]

    while True:
        block = rows("a", "bad", "worse")
        try:
            Mortal("project", attempts, 2).run(block, work, whole)
        except Died:
            deaths += 1
            assert deaths < 9
        else:
            break
    assert [row["status"] for row in block] == ["ok", "failed", "failed"]
    assert deaths == 3  # together, and each alone


def test_a_worker_that_hangs_ends_and_its_row_is_poison_by_name(remote_attempts: RemoteAttemptLog) -> None:
    """In tasks that Ray repeats, as it does the reading of files."""

    @ray.remote(max_retries=-1, num_cpus=0.1)
    def task(ids: str) -> list[Row]:
        def work(batch: list[Row]) -> list[Row]:
            if any(row["id"] == "h" for row in batch):
                time.sleep(600)
            return [{"score": 1.0} for _ in batch]

        block = rows(*ids)
        FaultIsolation("read", remote_attempts, 2, bound=Bound(0.5)).run(block, work, whole)
        return block

    block = ray.get(task.remote("ahz"), timeout=PATIENCE_S)
    assert [row["status"] for row in block] == ["ok", "failed", "ok"]
    assert (block[1]["error_stage"], block[1]["error_type"], block[1]["attempts"]) == ("read", "Hang", 2)
    assert block[1]["error"] == "the worker did not finish this image in generation.batch_timeout_s=0.5, 2 times"


def test_a_batch_that_raises_is_halved_until_the_row_to_blame_is_alone(attempts: AttemptLog) -> None:
    worked: list[str] = []

    def work(batch: list[Row]) -> list[Row]:
        worked.append("".join(row["id"] for row in batch))
        if any(row["id"] == "d" for row in batch):
            raise KeyError("no such\n  thing")
        return [{"score": len(batch)} for _ in batch]

    batch = [*rows(*"abcdefgh"), {"id": "gone", "status": "failed", "attempts": 1}]
    FaultIsolation("score", attempts, 2).run(batch, work, whole)
    assert worked == ["abcdefgh", "abcd", "ab", "cd", "c", "d", "efgh"]
    assert [row.get("score") for row in batch] == [2, 2, 1, None, 4, 4, 4, 4, None]
    assert [row["attempts"] for row in batch] == [3, 3, 4, 4, 2, 2, 2, 2, 1]
    bad = batch[3]
    assert (bad["error_stage"], bad["error_type"], bad["error"]) == ("score", "KeyError", r"'no such\n thing'")
    assert batch[8] == {"id": "gone", "status": "failed", "attempts": 1}
    assert attempts.history("score", list("abcdefgh")) == [Attempts()] * 8


class _Workers:
    """Workers of one pool after each other; each is lost to its accelerator after so many calls, or on a row."""

    def __init__(self, attempts: AttemptLog, good_calls: int, bad: str = "") -> None:
        self.attempts, self.good_calls, self.bad, self.used = attempts, good_calls, bad, 0

    def run(self, *blocks: list[Row]) -> None:
        for block in blocks:
            while not self._run(block):
                pass

    def _run(self, block: list[Row]) -> bool:
        if self.used == 0:
            self.isolation, self.calls = FaultIsolation("project", self.attempts, 2), 0
            self.used = 1
        try:
            self.isolation.run(block, self._work, lambda rows: (rows[n : n + 2] for n in range(0, len(rows), 2)))
        except Died:
            self.used = 0
            return False
        return True

    def _work(self, batch: list[Row]) -> list[Row]:
        self.calls += 1
        if self.calls > self.good_calls or any(row["id"] == self.bad for row in batch):
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return [{"score": 1.0} for _ in batch]


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> None:
        raise Died

    monkeypatch.setattr("os._exit", leave)


@pytest.mark.parametrize("first", ["abcd", "xy"])
def test_no_row_pays_for_a_worker_gone_bad(attempts: AttemptLog, exits: None, first: str) -> None:
    blocks = [rows(*"abcd"), rows(*"xy"), rows(*"efgh")]
    if first == "xy":
        blocks = [blocks[1], blocks[0], blocks[2]]
    _Workers(attempts, good_calls=2).run(*blocks)
    assert [row["status"] for block in blocks for row in block] == ["ok"] * 10


def test_no_row_pays_for_workers_gone_bad_where_another_block_comes_first(attempts: AttemptLog, exits: None) -> None:
    """An actor has two blocks at hand; of those that its successor is given again, either may come first."""
    block, workers = rows(*"abcd"), _Workers(attempts, good_calls=2)
    for other in ("efgh", "ijkl", "mnop"):
        assert workers._run(rows(*other))
        assert not workers._run(block)
    workers.run(block)
    assert [row["status"] for row in block] == ["ok"] * 4


def test_a_row_that_breaks_every_accelerator_is_found(attempts: AttemptLog, exits: None) -> None:
    block = rows(*"abcdef")
    _Workers(attempts, good_calls=99, bad="d").run(block)
    assert [row["status"] for row in block] == ["ok"] * 3 + ["failed"] + ["ok"] * 2
    # Once excused in its batch, once first in a fresh worker, then alone.
    assert (block[3]["error_type"], block[3]["attempts"]) == ("WorkerDied", 2)


def test_a_row_that_ends_a_rank_each_time_is_found_as_if_it_ended_the_worker(attempts: AttemptLog, exits: None) -> None:
    def work(batch: list[Row]) -> list[Row]:
        if any(row["id"] == "bad" for row in batch):
            raise ReplicaLostError("rank 1 of the teacher died (killed by SIGKILL)")
        return [{"score": 1.0} for _ in batch]

    for _ in range(2):
        with pytest.raises(Died):
            FaultIsolation("project", attempts, 2).run(rows("a", "bad"), work, whole)
    last = rows("a", "bad")
    FaultIsolation("project", attempts, 2).run(last, work, whole)
    assert [row["status"] for row in last] == ["ok", "failed"]
    assert (last[1]["error_type"], last[1]["attempts"]) == ("WorkerDied", 2)


def test_one_line() -> None:
    assert one_line(ValueError("a\n b")) == "a b"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("x" * 900)) == "x" * 497 + "..."


def test_batches_hold_images_of_one_size() -> None:
    sizes = [(4, 6), (6, 4), (4, 6), (4, 6), (6, 4), (4, 6)]
    images = [{"id": str(n), "lq": encode_png(np.zeros((*size, 3), np.float32))} for n, size in enumerate(sizes)]

    def batches(multiple: int) -> list[str]:
        return ["".join(row["id"] for row in batch) for batch in batches_by_size(images, "lq", 3, multiple)]

    assert batches(1) == batches(2) == ["023", "5", "14"]
    assert batches(4) == ["023", "5", "14"]
    assert batches(8) == ["012", "345"]
    assert [len(batch) for batch in one_by_one(images)] == [1] * 6


def test_a_late_write_of_another_driver_does_not_land(attempts: AttemptLog, tmp_path: Path) -> None:
    store = PairStore(str(tmp_path))
    table = to_table([{**row, "lq": b"x", "restored": b"y"} for row in rows("a")])
    with StoreLock(store.filesystem, store.path, store.url) as lock:
        with pytest.raises(StoreLostError):
            write_rows(table, store.url, "token of a dead driver", False, attempts)
        assert store.index().num_rows == 0
        summary = write_rows(table, store.url, lock.token, False, attempts)
    store.refresh()
    assert summary.column_names == SUMMARY
    assert store.index()["id"].to_pylist() == ["a"]
    with pytest.raises(StoreLostError):
        write_rows(table, store.url, lock.token, False, attempts)
    assert isinstance(attempts.error(), StoreLostError)
