"""Stages 0, 1 and 1b: each takes a block of rows of PAIR_SCHEMA and fills in its own columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock
from typing import ClassVar

import pyarrow as pa
import torch

from gmd_ray.generation.attempts.handover import HandOver
from gmd_ray.generation.attempts.log import START
from gmd_ray.generation.fault_isolation import FaultIsolation, Row, batches_by_size, fail, to_table
from gmd_ray.generation.loading import Replica, load_model
from gmd_ray.generation.outputs import CLIPPED, images_of, scores_of
from gmd_ray.images.files.encode import decode_png, encode_png, to_images, to_tensor
from gmd_ray.images.padding import pad_to_multiple
from gmd_ray.ray_utils.draining import watch_this_node
from gmd_ray.ray_utils.metrics import ReplicaClock, model_name
from gmd_ray.text import one_line

IO_THREADS = 2
"""Threads of an actor for PNGs. They mostly run while the model has the accelerator."""


@dataclass(frozen=True)
class _Batch:
    images: torch.Tensor
    """(B, 3, H, W) float32 in [0, 1], padded to one size."""
    sizes: list[tuple[int, int]]
    """(height, width) of each image without the padding."""
    restored: torch.Tensor | None = None
    """(B, 3, H, W): the restored images that `images` were made from, where a fidelity metric compares the two."""


_Decoding = dict[tuple[str, ...], Future[_Batch]]
"""Batches of a block whose images are being decoded, by the ids of their rows."""


class _ModelStage:
    """Loads a model once per actor and runs it over the ok rows of each block, in batches of one (padded) size.

    An actor has two blocks at a time (`pools.BLOCKS_PER_ACTOR`), each in a call of its own, and one thread in which the
    model runs. While the model works on a batch, other threads decode the next batch (of this block, or the first of
    the other block) and encode the one before. So the model waits for neither, even between two blocks.
    """

    name: ClassVar[str]
    model_column: ClassVar[str]
    """Column of the model's fingerprint; also the name of its section of the settings."""
    image_column: ClassVar[str]
    made_column: ClassVar[str | None] = None
    """Column of the images that the stage makes; None for a stage that makes none."""

    def __init__(self, replica: Replica) -> None:
        pool = replica.config.pool
        if replica.own_process:
            torch.set_num_threads(max(1, int(pool.num_cpus)))
        self._log = replica.log
        self._hand_over = HandOver(self.name, replica.log)
        self._isolation = FaultIsolation(
            self.name, replica.log, replica.max_attempts, self._hand_over.wait, replica.bound, replica.own_process
        )
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="gmd-model")
        self._in_hand: tuple[pa.Table, list[Row]] | None = None
        """The block that the model is at, and those of its rows that are settled."""
        self._in_hand_lock = Lock()
        if replica.own_process:
            watch_this_node(self.node_goes)
        self.model = load_model(self.model_column, replica)
        self._clock = ReplicaClock(self.name, model_name(replica.config))
        self._multiple = getattr(self.model, "batch_multiple", 1)
        self._batch_size = pool.batch_size
        self._threads = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="gmd-png")

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        settled = self._hand_over.take(rows)
        known = {row["id"] for row in settled}
        batches, suspects = self._isolation.sift([row for row in rows if row["id"] not in known], self._cut)
        decoding: _Decoding = {}
        self._decode(batches[:1], decoding)  # while the model is still at the other block
        self._model_thread.submit(self._run_model, table, settled, batches, suspects, decoding).result()
        with self._hand_over.on_its_way():
            self._collect(rows)  # while the model is at the other block already
            return to_table(rows)

    def node_goes(self) -> None:
        """Let this worker end after the batch in hand, since its node is to go; Ray starts another elsewhere.

        This may be called from any thread, at any time from the start of the worker on.
        """
        self._hand_over.asked.set()
        self._isolation.excuse_at_work()
        self._log.excuse(f"{START}{self.model_column}", [self._log.worker()])  # if it is still loading
        with self._in_hand_lock:
            if self._in_hand is not None:  # at once: the batch in hand may outlast the notice
                table, settled = self._in_hand
                rows = [dict(row) for row in list(settled)]  # the model's thread has the others
                self._collect(rows)
                self._hand_over.keep(table, rows)
        self._model_thread.submit(self._hand_over.leave)  # if it has no block; else it looks before each batch

    def _cut(self, rows: list[Row]) -> Iterator[list[Row]]:
        return batches_by_size(rows, self.image_column, self._batch_size, self._multiple)

    def _run_model(
        self,
        table: pa.Table,
        settled: list[Row],
        batches: list[list[Row]],
        suspects: list[Row],
        decoding: _Decoding,
    ) -> None:
        """Run the model over a block, in the model's thread.

        Suspects are decoded in this thread too, inside their attempt, so that a crash of the decoder is attributed to
        the right image.
        """

        def work(rows: list[Row]) -> list[Row]:
            decoded = decoding.pop(_key(rows), None)  # None for suspects, and for halves of a batch that raised
            return self._work(rows, decoded.result() if decoded else self._load(rows))

        with self._in_hand_lock:
            self._in_hand = table, settled
        parts = [*batches, *([row] for row in suspects)]
        for index, batch in enumerate(parts):
            if self._hand_over.asked.is_set():
                self._collect(settled)
                self._hand_over.keep(table, settled)
                self._hand_over.leave()
            self._decode(batches[index + 1 : index + 2], decoding)
            self._isolation.attempt(batch, work)
            settled += batch
        with self._in_hand_lock:
            self._in_hand = None
            if self._hand_over.asked.is_set():
                self._hand_over.discard(table)
        self._hand_over.done()

    def _decode(self, batches: list[list[Row]], decoding: _Decoding) -> None:
        for batch in batches:
            decoding[_key(batch)] = self._threads.submit(self._load, batch)

    def _load(self, rows: list[Row]) -> _Batch:
        """Decode a batch, pad its images to one size, and pin them where an accelerator will fetch them."""
        decoded = [to_tensor([decode_png(row[self.image_column])]) for row in rows]
        sizes = [(image.shape[-2], image.shape[-1]) for image in decoded]
        images = torch.cat([pad_to_multiple(image, self._multiple) for image in decoded])
        # A process that only drives the ranks of a sharded teacher has no CUDA of its own, and should get none.
        return _Batch(images.pin_memory() if torch.cuda.is_initialized() else images, sizes)

    def _work(self, rows: list[Row], batch: _Batch) -> list[Row]:
        with torch.no_grad(), self._clock.busy():
            columns = self.run(batch, [row["id"] for row in rows])
        return [{**new, self.model_column: self.model.fingerprint} for new in columns]

    def run(self, batch: _Batch, ids: list[str]) -> list[Row]:
        """Return the new columns of each row; images as futures of `_encoded`."""
        raise NotImplementedError

    def _encoded(self, images: torch.Tensor) -> list[Future[bytes]]:
        return [self._threads.submit(encode_png, image) for image in to_images(images)]

    def _count(self, counts: Mapping[str, int]) -> None:
        for what, number in counts.items():
            if number:
                self._log.count(self.name, what, number)

    def _collect(self, rows: list[Row]) -> None:
        """Wait for the encoded images of a block. A row whose image cannot be encoded is failed."""
        for row in rows:
            if self.made_column and isinstance(row.get(self.made_column), Future):
                try:
                    row[self.made_column] = row[self.made_column].result()
                except Exception as error:  # noqa: BLE001 -- whatever it is, it concerns this image alone
                    row[self.made_column] = None
                    fail(row, self.name, type(error).__name__, one_line(error))


class Restore(_ModelStage):
    """Stage 0: the student restores `lq`. Fills `restored`, larger by the student's scale."""

    name, model_column, image_column, made_column = "restore", "student", "lq", "restored"

    def run(self, batch: _Batch, ids: list[str]) -> list[Row]:
        count, channels, height, width = batch.images.shape
        due = (count, channels, height * self.model.scale, width * self.model.scale)
        restored, clipped = images_of(self.model.restore(batch.images, ids), due, "the student's output")
        self._count({CLIPPED: clipped})
        return [{"restored": code} for code in self._encoded(restored)]


class Project(_ModelStage):
    """Stage 1: the teacher projects `restored`. Fills `pseudo_target` of the same size, `width` and `height`."""

    name, model_column, image_column, made_column = "project", "teacher", "restored", "pseudo_target"

    def run(self, batch: _Batch, ids: list[str]) -> list[Row]:
        due = tuple(batch.images.shape)
        projected, clipped = images_of(self.model.project(batch.images, ids), due, "the teacher's output")
        self._count({CLIPPED: clipped, **getattr(self.model, "take_counts", dict)()})
        rows = []
        for image, (height, width) in zip(projected, batch.sizes, strict=True):
            [code] = self._encoded(image[None, :, :height, :width])
            rows.append({"pseudo_target": code, "width": width, "height": height})
        return rows


class Score(_ModelStage):
    """Stage 1b: the gate scores `pseudo_target`. Fills `score`, and `fidelity` if `scorer.fidelity` names a metric.

    No row is filtered out here: which rows are accepted is a view over the store (`schema.accepted`).
    """

    name, model_column, image_column = "score", "scorer", "pseudo_target"

    def __init__(self, replica: Replica) -> None:
        super().__init__(replica)
        self._compares = replica.config.fidelity != "none"

    def _load(self, rows: list[Row]) -> _Batch:
        batch = super()._load(rows)
        if not self._compares:
            return batch
        return replace(batch, restored=to_tensor([decode_png(row["restored"]) for row in rows]))

    def run(self, batch: _Batch, ids: list[str]) -> list[Row]:
        columns = [{"score": score} for score in scores_of(self.model.score(batch.images), len(ids), "the score")]
        if batch.restored is not None:
            values = scores_of(self.model.fidelity(batch.images, batch.restored), len(ids), "the fidelity")
            columns = [{**column, "fidelity": value} for column, value in zip(columns, values, strict=True)]
        return columns


def _key(rows: list[Row]) -> tuple[str, ...]:
    return tuple(row["id"] for row in rows)
