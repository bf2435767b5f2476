"""Isolation of rows, with the ledger in a process of its own as in a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from gmd_ray.errors import GmdError, ModelError, ReplicaLostError
from gmd_ray.generation.ledger import Begun, Ledger, open_ledger
from gmd_ray.generation.quarantine import Quarantine, Row, batches_by_size, one_by_one, to_table
from gmd_ray.generation.watchdog import Bound
from gmd_ray.generation.writer import SUMMARY, write_rows
from gmd_ray.images.files.encode import encode_png
from gmd_ray.pairstore.lock import StoreLock, StoreLostError
from gmd_ray.pairstore.store import PairStore
from gmd_ray.text import one_line


@pytest.fixture
def ledger(ray_session: None) -> ray.actor.ActorHandle:
    return open_ledger({})


def rows(*ids: str) -> list[Row]:
    return [{"id": key, "status": "ok", "attempts": 0} for key in ids]


def whole(rows: list[Row]) -> Iterator[list[Row]]:
    if rows:
        yield rows


class Died(BaseException):
    """Ends the work as a killed process does: nothing after it runs."""


class Mortal(Quarantine):
    """In a process that is gone where work raises `Died`."""

    def _leave_if_lost(self, error: BaseException, ids: list[str]) -> None:
        if isinstance(error, Died):
            raise error
        super()._leave_if_lost(error, ids)


def test_ledger_counts_what_was_not_finished() -> None:
    ledger = Ledger({"teacher": {"fingerprint": "old"}})
    assert ledger.begin("project", ["a", "b"]) == [1, 1]
    assert ledger.begin("project", ["a"]) == [2]
    assert ledger.history("project", ["a", "b", "c"]) == [Begun(2, 1), Begun(1, 0), Begun()]
    assert ledger.history("restore", ["a"]) == [Begun()]
    ledger.done("project", ["a", "c"])
    assert ledger.history("project", ["a", "b"]) == [Begun(), Begun(1, 0)]


def test_ledger_keeps_the_first_facts_and_the_first_error() -> None:
    ledger = Ledger({"scorer": {"fingerprint": "old"}})
    assert ledger.agree("teacher", {"fingerprint": "x"}) == {"fingerprint": "x"}
    assert ledger.agree("teacher", {"fingerprint": "y"}) == {"fingerprint": "x"}
    # The store's rows know the fingerprint, the worker the direction.
    known = {"fingerprint": "old", "higher_is_better": True}
    assert ledger.agree("scorer", {"fingerprint": "old", "higher_is_better": True}) == known
    assert ledger.agree("scorer", {"fingerprint": "new", "higher_is_better": True}) == known
    ledger.fail(ModelError("first"))
    ledger.fail(GmdError("second"))
    assert str(ledger.error()) == "first"


@pytest.mark.parametrize(("max_attempts", "tries"), [(1, 2), (2, 2), (3, 3)])
def test_a_row_that_kills_is_convicted_alone(ledger: ray.actor.ActorHandle, max_attempts: int, tries: int) -> None:
    worked: list[list[str]] = []

    def work(batch: list[Row]) -> list[Row]:
        ids = [row["id"] for row in batch]
        worked.append(ids)
        if "bad" in ids:
            raise Died
        return [{"score": 1.0} for _ in batch]

    quarantine = Mortal("project", ledger, max_attempts)
    for _ in range(tries):
        with pytest.raises(Died):
            quarantine.run(rows("a", "bad", "z"), work, whole)
    last = rows("a", "bad", "z")
    quarantine.run(last, work, whole)
    assert [row["status"] for row in last] == ["ok", "failed", "ok"]
    assert (last[1]["error_type"], last[1]["attempts"]) == ("WorkerDied", tries)
    assert worked[0] == ["a", "bad", "z"]
    assert all(len(ids) == 1 for ids in worked[1:] if "bad" in ids)
    assert sum("bad" in ids for ids in worked) == tries
    # The convict is remembered, for its block may be repeated; nothing else is left open.
    assert ray.get(ledger.history.remote("project", ["a", "bad", "z"])) == [Begun(), Begun(tries, tries - 1), Begun()]


def test_two_rows_that_kill_in_one_block_are_both_convicted(ledger: ray.actor.ActorHandle) -> None:
    """The block is repeated for the second after the first was convicted, which must not be tried afresh for it."""
    deaths = 0

    def work(batch: list[Row]) -> list[Row]:
        if any(row["id"] in ("bad", "worse") for row in batch):
            raise Died
        return [{"score": 1.0} for _ in batch]

    while True:
        block = rows("a", "bad", "worse")
        try:
            Mortal("project", ledger, 2).run(block, work, whole)
        except Died:
            deaths += 1
            assert deaths < 9
        else:
            break
    assert [row["status"] for row in block] == ["ok", "failed", "failed"]
    assert deaths == 3  # together, and each alone


def test_a_worker_that_hangs_ends_and_its_row_is_convicted_by_name(ledger: ray.actor.ActorHandle) -> None:
    """In tasks that Ray repeats, as it does the reading of files."""

    @ray.remote(max_retries=-1, num_cpus=0.1)
    def task(ids: str) -> list[Row]:
        def work(batch: list[Row]) -> list[Row]:
            if any(row["id"] == "h" for row in batch):
                time.sleep(600)
            return [{"score": 1.0} for _ in batch]

        block = rows(*ids)
        Quarantine("read", ledger, 2, bound=Bound(0.5)).run(block, work, whole)
        return block

    block = ray.get(task.remote("ahz"), timeout=120)
    assert [row["status"] for row in block] == ["ok", "failed", "ok"]
    assert (block[1]["error_stage"], block[1]["error_type"], block[1]["attempts"]) == ("read", "Hang", 2)
    assert block[1]["error"] == "the worker did not finish this image in generation.batch_timeout_s=0.5, 2 times"


def test_a_batch_that_raises_is_halved_until_the_row_to_blame_is_alone(ledger: ray.actor.ActorHandle) -> None:
    worked: list[str] = []

    def work(batch: list[Row]) -> list[Row]:
        worked.append("".join(row["id"] for row in batch))
        if any(row["id"] == "d" for row in batch):
            raise KeyError("no such\n  thing")
        return [{"score": len(batch)} for _ in batch]

    batch = [*rows(*"abcdefgh"), {"id": "gone", "status": "failed", "attempts": 1}]
    Quarantine("score", ledger, 2).run(batch, work, whole)
    assert worked == ["abcdefgh", "abcd", "ab", "cd", "c", "d", "efgh"]
    assert [row.get("score") for row in batch] == [2, 2, 1, None, 4, 4, 4, 4, None]
    assert [row["attempts"] for row in batch] == [3, 3, 4, 4, 2, 2, 2, 2, 1]
    bad = batch[3]
    assert (bad["error_stage"], bad["error_type"], bad["error"]) == ("score", "KeyError", r"'no such\n thing'")
    assert batch[8] == {"id": "gone", "status": "failed", "attempts": 1}
    assert ray.get(ledger.history.remote("score", list("abcdefgh"))) == [Begun()] * 8


class _Workers:
    """Workers of one pool after each other; each is lost to its accelerator after so many calls, or on a row."""

    def __init__(self, ledger: ray.actor.ActorHandle, good_calls: int, bad: str = "") -> None:
        self.ledger, self.good_calls, self.bad, self.used = ledger, good_calls, bad, 0

    def run(self, *blocks: list[Row]) -> None:
        for block in blocks:
            while not self._run(block):
                pass

    def _run(self, block: list[Row]) -> bool:
        if self.used == 0:
            self.quarantine, self.calls = Quarantine("project", self.ledger, 2), 0
            self.used = 1
        try:
            self.quarantine.run(block, self._work, lambda rows: (rows[n : n + 2] for n in range(0, len(rows), 2)))
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
def test_no_row_pays_for_a_worker_gone_bad(ledger: ray.actor.ActorHandle, exits: None, first: str) -> None:
    blocks = [rows(*"abcd"), rows(*"xy"), rows(*"efgh")]
    if first == "xy":
        blocks = [blocks[1], blocks[0], blocks[2]]
    _Workers(ledger, good_calls=2).run(*blocks)
    assert [row["status"] for block in blocks for row in block] == ["ok"] * 10


def test_no_row_pays_for_workers_gone_bad_where_another_block_comes_first(
    ledger: ray.actor.ActorHandle, exits: None
) -> None:
    """An actor has two blocks at hand; of those that its successor is given again, either may come first."""
    block, workers = rows(*"abcd"), _Workers(ledger, good_calls=2)
    for other in ("efgh", "ijkl", "mnop"):
        assert workers._run(rows(*other))
        assert not workers._run(block)
    workers.run(block)
    assert [row["status"] for row in block] == ["ok"] * 4


def test_a_row_that_breaks_every_accelerator_is_convicted(ledger: ray.actor.ActorHandle, exits: None) -> None:
    block = rows(*"abcdef")
    _Workers(ledger, good_calls=99, bad="d").run(block)
    assert [row["status"] for row in block] == ["ok"] * 3 + ["failed"] + ["ok"] * 2
    # Once excused in its batch, once first in a fresh worker, then alone.
    assert (block[3]["error_type"], block[3]["attempts"]) == ("WorkerDied", 2)


def test_a_row_that_ends_a_rank_each_time_is_convicted_as_if_it_ended_the_worker(
    ledger: ray.actor.ActorHandle, exits: None
) -> None:
    def work(batch: list[Row]) -> list[Row]:
        if any(row["id"] == "bad" for row in batch):
            raise ReplicaLostError("rank 1 of the teacher died (killed by SIGKILL)")
        return [{"score": 1.0} for _ in batch]

    for _ in range(2):
        with pytest.raises(Died):
            Quarantine("project", ledger, 2).run(rows("a", "bad"), work, whole)
    last = rows("a", "bad")
    Quarantine("project", ledger, 2).run(last, work, whole)
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


def test_a_late_write_of_another_driver_does_not_land(ledger: ray.actor.ActorHandle, tmp_path: Path) -> None:
    store = PairStore(str(tmp_path))
    table = to_table([{**row, "lq": b"x", "restored": b"y"} for row in rows("a")])
    with StoreLock(store.filesystem, store.path, store.url) as lock:
        with pytest.raises(StoreLostError):
            write_rows(table, store.url, "token of a dead driver", False, ledger)
        assert store.index().num_rows == 0
        summary = write_rows(table, store.url, lock.token, False, ledger)
    store.refresh()
    assert summary.column_names == SUMMARY
    assert store.index()["id"].to_pylist() == ["a"]
    with pytest.raises(StoreLostError):
        write_rows(table, store.url, lock.token, False, ledger)
    assert isinstance(ray.get(ledger.error.remote()), StoreLostError)
