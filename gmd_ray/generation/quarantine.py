"""One row's failure is one row's: the rest of its batch goes on."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError

from gmd_ray.errors import ReplicaLostError
from gmd_ray.generation.ledger import Begun
from gmd_ray.generation.watchdog import Bound, Watchdog
from gmd_ray.images.files.encode import png_size
from gmd_ray.pairstore.schema import PAIR_SCHEMA
from gmd_ray.text import one_line

UNBOUNDED = Bound()
Row = dict[str, Any]
"""One row of PAIR_SCHEMA on its way; `status` is ok until a stage fails it, or leaves it to the next run."""
_LEFT = "left"
Work = Callable[[list[Row]], list[Row]]
"""A batch in, the new columns of each of its rows out."""
Cut = Callable[[list[Row]], Iterable[list[Row]]]
"""Rows in, batches of them out."""


class Quarantine:
    """Runs one stage's work over the rows of a block, isolating the rows that raise, or kill or hang the worker.

    A batch that raises is halved until the row to blame is alone. A row on which a worker died (the ledger knows) is
    tried alone, so that the next death convicts it and nothing else. A worker whose batch takes too long is ended, and
    has then died of that batch. Where the accelerator breaks in a worker that worked before, the batch at hand is not
    suspected, but tried first of its block by the next worker: where that one has done nothing else, the batch alone
    can break it.
    """

    def __init__(
        self,
        stage: str,
        ledger: ray.actor.ActorHandle,
        max_attempts: int,
        before_leaving: Callable[[], None] = lambda: None,
        bound: Bound = UNBOUNDED,
    ) -> None:
        """Say whose work it is.

        Args:
            before_leaving: is called before this process is ended on purpose.
            bound: how long a batch may take.
        """
        self.stage, self.ledger, self.max_attempts = stage, ledger, max_attempts
        self._before_leaving, self._worked = before_leaving, False
        self._watchdog = Watchdog(bound, self._tell_hung, before_leaving)

    def run(self, rows: list[Row], work: Work, cut: Cut) -> None:
        """Fill in the columns of every row that is still ok, or mark it failed.

        Args:
            rows: all rows of a block; failed ones pass untouched.
            work: the stage.
            cut: how to group rows that nobody suspects.
        """
        batches, suspects = self.sift(rows, cut)
        for batch in [*batches, *([row] for row in suspects)]:
            self.attempt(batch, work)

    def sift(self, rows: list[Row], cut: Cut) -> tuple[list[list[Row]], list[Row]]:
        """The rows that are still ok: batches of those that nobody suspects, and those that must be tried alone.

        A row that is convicted by what the ledger knows is marked failed here.
        """
        alive = [row for row in rows if row["status"] == "ok"]
        if not alive:
            return [], []
        history = ray.get(self.ledger.history.remote(self.stage, [row["id"] for row in alive]))
        fresh: list[Row] = []
        excused: list[Row] = []
        suspects: list[Row] = []
        for row, begun in zip(alive, history, strict=True):
            if self._convicted(begun):
                row["attempts"] = max(row["attempts"], begun.times)
                fail(row, self.stage, *self._verdict(begun))
            else:
                (suspects if begun.times else excused if begun.excused else fresh).append(row)
        return [*cut(excused), *cut(fresh)], suspects

    def _convicted(self, begun: Begun) -> bool:
        return begun.alone > 0 and begun.times >= self.max_attempts

    def _verdict(self, begun: Begun) -> tuple[str, str]:
        if not begun.hung:
            return "WorkerDied", f"the worker died each of the {begun.times} times it worked on this image"
        seconds = self._watchdog.bound.of(1)
        bound = f" in generation.batch_timeout_s={seconds:g}" if seconds else " in time"
        died = f", and died {begun.times - begun.hung} times" if begun.times > begun.hung else ""
        return "Hang", f"the worker did not finish this image{bound}, {begun.hung} times{died}"

    def attempt(self, batch: list[Row], work: Work) -> None:
        """Run the stage on one batch; halves of it where it raises, down to the row to blame."""
        ids = [row["id"] for row in batch]
        counts = ray.get(self.ledger.begin.remote(self.stage, ids))
        if counts is None:
            for row in batch:
                row["status"] = _LEFT
            return
        for row, count in zip(batch, counts, strict=True):
            row["attempts"] = max(row["attempts"], count)
        start = time.perf_counter()
        try:
            with self._watchdog.over(ids):
                columns = work(batch)
            if len(columns) != len(batch):  # whose is whose, nobody can tell
                raise ValueError(f"{len(columns)} results for {len(batch)} images")
        except BaseException as error:  # whatever it is, it is this batch's alone
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise  # Ray cancels a task by it; a model has a thread of its own
            self._leave_if_lost(error, ids)
            if len(batch) > 1:
                middle = len(batch) // 2
                self.attempt(batch[:middle], work)
                self.attempt(batch[middle:], work)
                return
            fail(batch[0], self.stage, type(error).__name__, one_line(error))
        else:
            self._worked = True
            seconds = (time.perf_counter() - start) / len(batch)
            for row, new in zip(batch, columns, strict=True):
                row.update(new)
                row[f"seconds_{self.stage}"] = seconds
        self.ledger.done.remote(self.stage, ids)

    def _leave_if_lost(self, error: BaseException, ids: list[str]) -> None:
        """End this process where nothing more can be done in it; Ray starts another and repeats the task.

        After a CUDA error every later call in the process fails, which would fail innocent rows. A SystemExit from Ray
        itself (the node is going away) says nothing of the row; only a plain exit is retried by Ray as a crash. A rank
        that died counts as this process would have, had it been the one.
        """
        # By name: read tasks run without torch, whose import would take longer than they do.
        broken = type(error).__name__ == "AcceleratorError"
        ended, lost = hasattr(error, "ray_terminate_msg"), isinstance(error, ReplicaLostError)
        if not (broken or ended or lost):
            return
        if ended or (broken and self._worked):
            with contextlib.suppress(RayError):  # a node that goes away may take the way to the ledger with it
                ray.get(self.ledger.excuse.remote(self.stage, ids), timeout=10)
        self._before_leaving()
        os._exit(1)

    def _tell_hung(self, ids: Sequence[str]) -> None:
        with contextlib.suppress(RayError):
            ray.get(self.ledger.hung.remote(self.stage, list(ids)), timeout=10)


def fail(row: Row, stage: str, kind: str, message: str) -> None:
    """Mark a row failed, with the reason on one line."""
    row.update(status="failed", error_stage=stage, error_type=kind, error=message)


def to_table(rows: list[Row]) -> pa.Table:
    """The rows as a block of the stream; those that a stage left to the next run are not in it."""
    return pa.Table.from_pylist([row for row in rows if row["status"] != _LEFT], schema=PAIR_SCHEMA)


def batches_by_size(rows: Sequence[Row], column: str, batch_size: int, multiple: int = 1) -> Iterator[list[Row]]:
    """Group rows by the size of their image in `column` (PNG bytes), at most `batch_size` each, in the order given.

    Sizes that are the same once padded to multiples of `multiple` are one size, so that a model sees few shapes.
    """
    groups: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in rows:
        width, height = png_size(row[column])
        groups[width + -width % multiple, height + -height % multiple].append(row)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def one_by_one(rows: Sequence[Row]) -> Iterator[list[Row]]:
    for row in rows:
        yield [row]
