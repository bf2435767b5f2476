"""The orderly end of a worker: what it has made is not made again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa

from gmd_ray.generation.attempts.remote import AnyAttemptLog
from gmd_ray.generation.fault_isolation import Row

RETURN_S = 2.0
"""Time for Ray to take the block that a call has returned, in seconds. Ray does not say when it has."""
PATIENCE_S = 60.0
"""Time for the last images of a block to be encoded in a worker that is about to end, in seconds."""


class HandOver:
    """Lets what a worker has made leave the process before it ends.

    - A block that the model is done with is returned as ever.
    - Of a block that it is not done with, the rows that are settled go to the attempt log: at the notice, and once more
      after the batch in hand. Ray repeats the block in the next worker, which takes them from there and begins the
      others alone.
    """

    def __init__(self, stage: str, log: AnyAttemptLog) -> None:
        self._stage, self._log = stage, log
        self.asked = threading.Event()
        """Set when the worker is to end after the batch that it has in hand, because its node goes."""
        self._on_their_way = 0
        """Number of blocks that the model is done with and that have not been returned."""
        self._returned = threading.Condition()

    def done(self) -> None:
        """Note that the model is done with a block. The call of the block then goes through `on_its_way`."""
        with self._returned:
            self._on_their_way += 1

    @contextmanager
    def on_its_way(self) -> Iterator[None]:
        """Note at the end of the context that the block is returned."""
        try:
            yield
        finally:
            with self._returned:
                self._on_their_way -= 1
                self._returned.notify_all()

    def wait(self) -> None:
        """Wait until the blocks that the model is done with have left a process that is about to end.

        They would be lost with it and made again, and if each worker breaks at the same point, made again for ever.
        """
        with self._returned:
            self._returned.wait_for(lambda: self._on_their_way == 0, PATIENCE_S)
        time.sleep(RETURN_S)

    def keep(self, block: pa.Table, settled: Iterable[Row]) -> None:
        """Give the attempt log what the stage has made of a block, for the worker that is given the block next.

        Args:
            block: the block as it came.
            settled: those of its rows that the stage has worked on; of the images in them none is a future.
        """
        given = {row["id"]: row for row in block.to_pylist()}
        made = {
            row["id"]: {name: value for name, value in row.items() if value != given[row["id"]][name]}
            for row in settled
        }
        if made:
            self._log.keep(self._stage, made)

    def take(self, rows: Iterable[Row]) -> list[Row]:
        """Fill in what an earlier worker has made of a block, and return the rows for which there was anything."""
        by_id = {row["id"]: row for row in rows}
        made = self._log.take(self._stage, list(by_id))
        for key, columns in made.items():
            by_id[key].update(columns)
        return [by_id[key] for key in made]

    def discard(self, block: pa.Table) -> None:
        """Take back what `keep` was given of a block that is returned whole after all."""
        self._log.take(self._stage, block["id"].to_pylist())

    def leave(self) -> None:
        """End this process, once all that is on its way has left. Ray starts another and repeats what was at hand."""
        self.wait()
        os._exit(1)
