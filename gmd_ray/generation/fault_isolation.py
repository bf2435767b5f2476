"""Isolation of the one row that makes a batch fail, so that the rest of the batch goes on."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from gmd_ray.errors import GmdError, ReplicaLostError
from gmd_ray.generation.attempts.log import Attempts
from gmd_ray.generation.attempts.remote import AnyAttemptLog
from gmd_ray.generation.watchdog import Bound, Watchdog
from gmd_ray.images.files.encode import png_size
from gmd_ray.pairstore.schema import PAIR_SCHEMA
from gmd_ray.text import one_line

UNBOUNDED = Bound()
Row = dict[str, Any]
"""A row of PAIR_SCHEMA on its way. `status` is "ok" until a stage fails the row or leaves it to the next run."""
_LEFT = "left"
Work = Callable[[list[Row]], list[Row]]
"""The work of a stage: takes a batch, and returns the new columns of each of its rows."""
Cut = Callable[[list[Row]], Iterable[list[Row]]]
"""Groups rows into batches."""


class FaultIsolation:
    """Runs one stage's work over the rows of a block, and isolates rows that raise, or that kill or hang the worker.

    - A batch that raises is halved until the row to blame is alone. That row is marked failed.
    - A row on which a worker died, by the attempt log's account, is a suspect: it is tried alone, so that the next
      death can only be its own. After `max_attempts` it is poison, and marked failed without another attempt.
    - A worker whose batch takes too long is ended, and has then died of that batch.
    - Where the accelerator breaks in a worker that worked before, the rows at hand are not suspects. The next worker
      tries them first, before it has done anything else, so that if it breaks too, the batch alone is to blame.
    - The same holds for a batch that is at work when its node is about to go.
    """

    def __init__(
        self,
        stage: str,
        log: AnyAttemptLog,
        max_attempts: int,
        before_leaving: Callable[[], None] = lambda: None,
        bound: Bound = UNBOUNDED,
        own_process: bool = True,
    ) -> None:
        """Prepare a stage.

        Args:
            stage: name of the stage in the attempt log and in the row's `error_stage`.
            log: the attempt log of the run.
            max_attempts: how often a row may end its worker before it is failed; at least two where it was first tried
                in a batch.
            before_leaving: is called before this process is ended on purpose.
            bound: how long a batch may take.
            own_process: whether this process may be ended, because Ray starts another. Where it may not, a broken
                accelerator ends the run.
        """
        self.stage, self.log, self.max_attempts = stage, log, max_attempts
        self._before_leaving, self._own_process, self._worked = before_leaving, own_process, False
        self._watchdog = Watchdog(bound, self._report_hang, before_leaving)
        self._at_work: list[str] = []

    def run(self, rows: list[Row], work: Work, cut: Cut) -> None:
        """Fill in the columns of every row that is still ok, or mark the row failed.

        Args:
            rows: all rows of a block. Failed ones pass untouched.
            work: the stage.
            cut: how to group rows that are not suspects.
        """
        batches, suspects = self.sift(rows, cut)
        for batch in [*batches, *([row] for row in suspects)]:
            self.attempt(batch, work)

    def sift(self, rows: list[Row], cut: Cut) -> tuple[list[list[Row]], list[Row]]:
        """Divide the rows that are still ok into batches of unsuspected rows, and suspects to be tried alone.

        A row that is poison by the log's account is marked failed here.
        """
        alive = [row for row in rows if row["status"] == "ok"]
        if not alive:
            return [], []
        history = self.log.history(self.stage, [row["id"] for row in alive])
        fresh: list[Row] = []
        retry_first: list[Row] = []
        suspects: list[Row] = []
        for row, attempts in zip(alive, history, strict=True):
            if self._is_poison(attempts):
                row["attempts"] = max(row["attempts"], attempts.times)
                fail(row, self.stage, *self._poison_error(attempts))
            elif attempts.times:
                suspects.append(row)
            else:
                (retry_first if attempts.excused else fresh).append(row)
        return [*cut(retry_first), *cut(fresh)], suspects

    def _is_poison(self, attempts: Attempts) -> bool:
        return attempts.alone > 0 and attempts.times >= self.max_attempts

    def _poison_error(self, attempts: Attempts) -> tuple[str, str]:
        """Return the error type and message of a row that ended its worker each time."""
        if not attempts.hung:
            return "WorkerDied", f"the worker died each of the {attempts.times} times it worked on this image"
        seconds = self._watchdog.bound.of(1)
        bound = f" in generation.batch_timeout_s={seconds:g}" if seconds else " in time"
        deaths = attempts.times - attempts.hung
        died = f", and died {deaths} times" if deaths else ""
        return "Hang", f"the worker did not finish this image{bound}, {attempts.hung} times{died}"

    def attempt(self, batch: list[Row], work: Work) -> None:
        """Run the stage on one batch, and on halves of it where it raises, down to the row to blame."""
        ids = self._at_work = [row["id"] for row in batch]
        counts = self.log.begin(self.stage, ids)
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
            if len(columns) != len(batch):  # nobody can tell which result is of which row
                raise ValueError(f"{len(columns)} results for {len(batch)} images")
        except BaseException as error:  # a model may raise anything, and it concerns this batch alone
            if self._ends_this_process(error):
                raise
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
        self.log.done(self.stage, ids)

    def excuse_at_work(self) -> None:
        """Take back the attempt that goes on, if one does: its worker may be killed before it ends.

        This may be called from any thread.
        """
        self.log.excuse(self.stage, self._at_work)

    def _ends_this_process(self, error: BaseException) -> bool:
        """Return whether an exception is a signal to this process, not the doing of a model, which has its own thread.

        Ray cancels a task by a KeyboardInterrupt in the main thread. In the driver's process the main thread also hears
        Ctrl-C and SIGTERM.
        """
        signals = KeyboardInterrupt if self._own_process else KeyboardInterrupt | SystemExit
        return isinstance(error, signals) and threading.current_thread() is threading.main_thread()

    def _leave_if_lost(self, error: BaseException, ids: list[str]) -> None:
        """End this process if nothing more can be done in it. Ray then starts another and repeats the task.

        - After a CUDA error every later call in the process fails, which would fail innocent rows.
        - A SystemExit of Ray's own (the node is going away) says nothing about the rows. Only a plain exit is retried
          by Ray as a crash.
        - A rank of a teacher on several GPUs that died counts as if this process had died.
        """
        # By name: read tasks run without torch, whose import would take longer than they do.
        broken = type(error).__name__ == "AcceleratorError"
        ended, lost = hasattr(error, "ray_terminate_msg"), isinstance(error, ReplicaLostError)
        if not (broken or ended or lost):
            return
        if not self._own_process:
            raise GmdError(
                f"stage {self.stage}: {one_line(error)}; with ray.enabled=false no other process can take over, so the "
                f"run ends here; what is written stays, and the same command goes on from there"
            ) from error
        if ended or (broken and self._worked):
            self.log.excuse(self.stage, ids)
        self._before_leaving()
        os._exit(1)

    def _report_hang(self, ids: Sequence[str]) -> None:
        self.log.hung(self.stage, list(ids))


def fail(row: Row, stage: str, kind: str, message: str) -> None:
    """Mark a row failed, with the reason on one line."""
    row.update(status="failed", error_stage=stage, error_type=kind, error=message)


def to_table(rows: list[Row]) -> pa.Table:
    """Return the rows as a block of the stream, without those that a stage left to the next run."""
    return pa.Table.from_pylist([row for row in rows if row["status"] != _LEFT], schema=PAIR_SCHEMA)


def batches_by_size(rows: Sequence[Row], column: str, batch_size: int, multiple: int = 1) -> Iterator[list[Row]]:
    """Group rows by the size of their image in `column` (PNG bytes), at most `batch_size` in a group.

    The largest images come first, so that an accelerator's allocator takes its largest pieces of memory at once; rows
    of one size keep their order.

    Sizes that are the same once padded to multiples of `multiple` are one size, so that a model sees few shapes.
    """
    groups: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in rows:
        width, height = png_size(row[column])
        groups[width + -width % multiple, height + -height % multiple].append(row)
    for size in sorted(groups, key=math.prod, reverse=True):
        group = groups[size]
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def one_by_one(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Group rows into batches of one."""
    for row in rows:
        yield [row]
