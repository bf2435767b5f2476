"""Stages 0, 1 and 1b: each takes a block of rows in PAIR_SCHEMA and fills in its own columns."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pyarrow as pa
import ray
import torch

from gmd_ray.errors import GmdError, ModelError, ReplicaLostError, ResumeMismatchError
from gmd_ray.generation.ledger import START
from gmd_ray.generation.outputs import images_of, scores_of
from gmd_ray.generation.quarantine import UNBOUNDED, Quarantine, Row, batches_by_size, fail, to_table
from gmd_ray.generation.watchdog import Bound
from gmd_ray.images.files.encode import decode_png, encode_png, to_images, to_tensor
from gmd_ray.images.padding import pad_to_multiple
from gmd_ray.text import one_line

IO_THREADS = 2
"""Of an actor, for PNGs; they mostly run while the model has the accelerator."""
MAX_STARTS = 3
"""Times a worker may die while it loads its model (out of memory, say) before the run ends."""
HAND_OVER_S = 2.0
"""For Ray to take the block that a call has returned; it does not say when it has."""
PATIENCE_S = 60.0
"""For the last images of a block to be encoded, in a worker that is about to leave."""


@dataclass(frozen=True)
class Replica:
    """What an actor of a pool needs to start: how to load its model, and whom to tell."""

    load: Callable[[Any], Any]
    config: Any
    """StudentConfig, TeacherConfig or ScorerConfig."""
    ledger: ray.actor.ActorHandle
    max_attempts: int
    bound: Bound = UNBOUNDED
    """How long a batch may take."""


@dataclass(frozen=True)
class _Batch:
    images: torch.Tensor
    """(B, 3, H, W) float32 in [0, 1], padded to one size."""
    sizes: list[tuple[int, int]]
    """(height, width) of each image without the padding."""
    restored: torch.Tensor | None = None
    """What `images` were made of, in the same form, for a second opinion on them."""


_Decoding = dict[tuple[str, ...], Future[_Batch]]
"""Batches of a block whose images are being decoded, by the ids of their rows."""


class _ModelStage:
    """Loads a model once per actor and runs it over the ok rows of each block, in batches of one (padded) size.

    An actor has two blocks at hand (`pools.BLOCKS_PER_ACTOR`), each in a call of its own, and one thread in which the
    model runs. While the model works on a batch, other threads decode the next one, be it of this block or the first
    of the other, and encode the last; so it waits for neither, at the seams of blocks too.
    """

    name: ClassVar[str]
    model_column: ClassVar[str]
    """Column of the model's fingerprint, and its section of the settings."""
    image_column: ClassVar[str]
    made_column: ClassVar[str | None] = None
    """Column of the images that the stage makes."""

    def __init__(self, replica: Replica) -> None:
        pool = replica.config.pool
        torch.set_num_threads(max(1, int(pool.num_cpus)))
        self.model = load_model(self.model_column, replica)
        self._quarantine = Quarantine(self.name, replica.ledger, replica.max_attempts, self._hand_over, replica.bound)
        self._ledger = replica.ledger
        self._multiple = getattr(self.model, "batch_multiple", 1)
        self._batch_size = pool.batch_size
        self._threads = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="gmd-png")
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="gmd-model")
        self._on_their_way = 0
        """Blocks that the model is done with, and that have not been returned."""
        self._returned = threading.Condition()

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        batches, suspects = self._quarantine.sift(rows, self._cut)
        decoding: _Decoding = {}
        self._decode(batches[:1], decoding)  # while the model is still at the other block
        self._model_thread.submit(self._run_model, batches, suspects, decoding).result()
        try:
            self._collect(rows)  # while the model is at the other block already
            return to_table(rows)
        finally:
            with self._returned:
                self._on_their_way -= 1
                self._returned.notify_all()

    def _cut(self, rows: list[Row]) -> Iterator[list[Row]]:
        return batches_by_size(rows, self.image_column, self._batch_size, self._multiple)

    def _run_model(self, batches: list[list[Row]], suspects: list[Row], decoding: _Decoding) -> None:
        """The model's turn at a block. Suspects are decoded in it too: a death must be laid at the right door."""

        def work(rows: list[Row]) -> list[Row]:
            ready = decoding.pop(_key(rows), None)
            return self._work(rows, ready.result() if ready else self._load(rows))

        for index, batch in enumerate(batches):
            self._decode(batches[index + 1 : index + 2], decoding)
            self._quarantine.attempt(batch, work)
        for row in suspects:
            self._quarantine.attempt([row], work)
        with self._returned:
            self._on_their_way += 1

    def _hand_over(self) -> None:
        """See that blocks which are done get out of a process that is to end, while the model rests or hangs.

        They would be lost with it and made again, and where each worker breaks at the same point, for ever.
        """
        with self._returned:
            self._returned.wait_for(lambda: self._on_their_way == 0, PATIENCE_S)
        time.sleep(HAND_OVER_S)

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
        with torch.no_grad():
            columns = self.run(batch, [row["id"] for row in rows])
        return [{**new, self.model_column: self.model.fingerprint} for new in columns]

    def run(self, batch: _Batch, ids: list[str]) -> list[Row]:
        """The new columns of each row; images as what `_encoded` gives."""
        raise NotImplementedError

    def _encoded(self, images: torch.Tensor) -> list[Future[bytes]]:
        return [self._threads.submit(encode_png, image) for image in to_images(images)]

    def _count_clipped(self, images: int) -> None:
        if images:
            self._ledger.count_clipped.remote(self.name, images)

    def _collect(self, rows: list[Row]) -> None:
        """Wait for the encoded images of a block; one that cannot be encoded is a failed row."""
        for row in rows:
            if self.made_column and isinstance(row.get(self.made_column), Future):
                try:
                    row[self.made_column] = row[self.made_column].result()
                except Exception as error:  # noqa: BLE001 -- whatever it is, it is this image's alone
                    row[self.made_column] = None
                    fail(row, self.name, type(error).__name__, one_line(error))


class Restore(_ModelStage):
    """Stage 0: the student restores. Fills `restored`."""

    name, model_column, image_column, made_column = "restore", "student", "lq", "restored"

    def run(self, batch: _Batch, ids: list[str]) -> list[Row]:
        count, channels, height, width = batch.images.shape
        due = (count, channels, height * self.model.scale, width * self.model.scale)
        restored, clipped = images_of(self.model.restore(batch.images, ids), due, "the student's output")
        self._count_clipped(clipped)
        return [{"restored": code} for code in self._encoded(restored)]


class Project(_ModelStage):
    """Stage 1: the teacher projects. Fills `pseudo_target`, `width`, `height`."""

    name, model_column, image_column, made_column = "project", "teacher", "restored", "pseudo_target"

    def run(self, batch: _Batch, ids: list[str]) -> list[Row]:
        due = tuple(batch.images.shape)
        projected, clipped = images_of(self.model.project(batch.images, ids), due, "the teacher's output")
        self._count_clipped(clipped)
        rows = []
        for image, (height, width) in zip(projected, batch.sizes, strict=True):
            [code] = self._encoded(image[None, :, :height, :width])
            rows.append({"pseudo_target": code, "width": width, "height": height})
        return rows


class Score(_ModelStage):
    """Stage 1b: the gate scores. Fills `score`, and `fidelity` where it is asked for.

    Whom it admits is a view over the store, never a filter here.
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


def load_model(section: str, replica: Replica) -> Any:
    """Load a model inside an actor, and end the run where that cannot be done.

    An error here would come back wrapped in a traceback, and a death while loading would be repeated by Ray for ever;
    so the reason goes to the ledger, where the driver finds it.
    """
    ledger, me = replica.ledger, ray.get_runtime_context().get_actor_id() or "task"
    [starts] = ray.get(ledger.begin.remote(f"{START}{section}", [me]))
    try:
        if starts > MAX_STARTS:
            raise ModelError(f"the {section} worker died {MAX_STARTS} times while loading its model (out of memory?)")
        try:
            model = replica.load(replica.config)
        except BaseException as error:
            if isinstance(error, ReplicaLostError) or hasattr(error, "ray_terminate_msg"):
                os._exit(1)  # as if this process had died: Ray starts another
            if isinstance(error, GmdError):
                raise
            raise ModelError(f"the {section} could not be loaded: {type(error).__name__}: {one_line(error)}") from error
        facts = facts_of(model)
        agreed = ray.get(ledger.agree.remote(section, facts))
        if agreed != facts:
            raise ResumeMismatchError(
                f"{section}.path gives model {facts['fingerprint']}, the store's rows are of {agreed['fingerprint']} "
                f"(other weights, settings or precision); give another out=, or the old model"
            )
    except GmdError as error:
        ray.get(ledger.fail.remote(error))
        raise
    ledger.done.remote(f"{START}{section}", [me])
    return model


def facts_of(model: Any) -> dict[str, Any]:
    """What must be the same for every worker of a stage, and for every run on a store."""
    facts = {"fingerprint": model.fingerprint}
    if hasattr(model, "higher_is_better"):
        facts["higher_is_better"] = model.higher_is_better
    return facts


def _key(rows: list[Row]) -> tuple[str, ...]:
    return tuple(row["id"] for row in rows)
