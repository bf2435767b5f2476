"""One row's failure is one row's: the rest of its batch goes on."""

from __future__ import annotations

import os
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray

from gmd_ray.errors import ReplicaLostError
from gmd_ray.generation.ledger import Begun
from gmd_ray.images.records import PAIR_SCHEMA

Row = dict[str, Any]
"""One row of PAIR_SCHEMA on its way; `status` is ok until a stage fails it."""
Work = Callable[[list[Row]], list[Row]]
"""A batch in, the new columns of each of its rows out."""


class Quarantine:
    """Runs one stage's work over the rows of a block, isolating the rows that raise or kill the worker.

    A batch that raises is repeated row by row. A row on which a worker died (the ledger knows) is tried alone, so
    that the next death convicts it and nothing else.
    """

    def __init__(self, stage: str, ledger: ray.actor.ActorHandle, max_attempts: int) -> None:
        self.stage, self.ledger, self.max_attempts = stage, ledger, max_attempts

    def run(self, rows: list[Row], work: Work, batches: Callable[[list[Row]], Iterator[list[Row]]]) -> None:
        """Fill in the columns of every row that is still ok, or mark it failed.

        Args:
            rows: all rows of a block; failed ones pass untouched.
            work: the stage.
            batches: how to group rows that nobody suspects.
        """
        alive = [row for row in rows if row["status"] == "ok"]
        if not alive:
            return
        history = ray.get(self.ledger.history.remote(self.stage, [row["id"] for row in alive]))
        fresh: list[Row] = []
        suspects: list[Row] = []
        for row, begun in zip(alive, history, strict=True):
            if self._convicted(begun):
                row["attempts"] = max(row["attempts"], begun.times)
                message = f"the worker died each of the {begun.times} times it worked on this image"
                fail(row, self.stage, "WorkerDied", message)
                self.ledger.done.remote(self.stage, [row["id"]])
            else:
                (suspects if begun.times else fresh).append(row)
        for batch in batches(fresh):
            self._attempt(batch, work)
        for row in suspects:
            self._attempt([row], work)

    def _convicted(self, begun: Begun) -> bool:
        return begun.alone > 0 and begun.times >= self.max_attempts

    def _attempt(self, batch: list[Row], work: Work) -> None:
        ids = [row["id"] for row in batch]
        counts = ray.get(self.ledger.begin.remote(self.stage, ids))
        for row, count in zip(batch, counts, strict=True):
            row["attempts"] = max(row["attempts"], count)
        start = time.perf_counter()
        try:
            columns = work(batch)
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- whatever it is, it is this batch's alone
            leave_if_lost(error)
            if len(batch) > 1:
                for row in batch:
                    self._attempt([row], work)
                return
            fail(batch[0], self.stage, type(error).__name__, one_line(error))
        else:
            seconds = (time.perf_counter() - start) / len(batch)
            for row, new in zip(batch, columns, strict=True):
                row.update(new)
                row[f"seconds_{self.stage}"] = seconds
        self.ledger.done.remote(self.stage, ids)


def fail(row: Row, stage: str, kind: str, message: str) -> None:
    """Mark a row failed, with the reason on one line."""
    row.update(status="failed", error_stage=stage, error_type=kind, error=message)


def one_line(error: BaseException, limit: int = 500) -> str:
    """The message of an exception on one line, never empty."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def to_table(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=PAIR_SCHEMA)


def batches_by_size(column: str, batch_size: int) -> Callable[[list[Row]], Iterator[list[Row]]]:
    """Group rows by the size of their image in `column` (PNG bytes), at most `batch_size` each, in the order given."""

    def batches(rows: list[Row]) -> Iterator[list[Row]]:
        groups: dict[tuple[int, int], list[Row]] = defaultdict(list)
        for row in rows:
            groups[png_size(row[column])].append(row)
        for group in groups.values():
            for start in range(0, len(group), batch_size):
                yield group[start : start + batch_size]

    return batches


def one_by_one(rows: Sequence[Row]) -> Iterator[list[Row]]:
    for row in rows:
        yield [row]


def png_size(data: bytes) -> tuple[int, int]:
    """(width, height) from a PNG's header, without decoding it."""
    return struct.unpack(">II", data[16:24])


def leave_if_lost(error: BaseException) -> None:
    """End this process where nothing more can be done in it; Ray starts another and repeats the task.

    After a CUDA error every later call in the process fails, which would fail innocent rows. A replica of several ranks
    is lost with one of them, as a worker is by its own death. A SystemExit from Ray itself (the node is going away)
    says nothing of the row; only a plain exit is retried by Ray as a crash.
    """
    # By name: read tasks run without torch, whose import would take longer than they do.
    lost = type(error).__name__ == "AcceleratorError" or isinstance(error, ReplicaLostError)
    if lost or hasattr(error, "ray_terminate_msg"):
        os._exit(1)
