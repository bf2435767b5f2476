"""Stages 0, 1 and 1b: each takes a block of rows in PAIR_SCHEMA and fills in its own columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import ray
import torch

from gmd_ray.errors import GmdError, ModelError, ResumeMismatchError
from gmd_ray.generation.quarantine import Quarantine, Row, batches_by_size, one_line, to_table
from gmd_ray.images.encode import decode_png, encode_png, to_images, to_tensor

MAX_STARTS = 3
"""Times a worker may die while it loads its model (out of memory, say) before the run ends."""


@dataclass(frozen=True)
class Replica:
    """What an actor of a pool needs to start: how to load its model, and whom to tell."""

    load: Callable[[Any], Any]
    config: Any
    """StudentConfig, TeacherConfig or ScorerConfig."""
    ledger: ray.actor.ActorHandle
    max_attempts: int


class _ModelStage:
    """Loads a model once per actor and runs it over the ok rows of each block, in batches of images of one size."""

    name: ClassVar[str]
    model_column: ClassVar[str]
    """Column of the model's fingerprint, and its section of the settings."""
    image_column: ClassVar[str]

    def __init__(self, replica: Replica) -> None:
        pool = replica.config.pool
        torch.set_num_threads(max(1, int(pool.num_cpus)))
        self.model = load_model(self.model_column, replica)
        self._quarantine = Quarantine(self.name, replica.ledger, replica.max_attempts)
        self._batches = batches_by_size(self.image_column, pool.batch_size)

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        self._quarantine.run(rows, self._work, self._batches)
        return to_table(rows)

    def _work(self, rows: list[Row]) -> list[Row]:
        images = to_tensor([decode_png(row[self.image_column]) for row in rows])
        with torch.no_grad():
            columns = self.run(images, [row["id"] for row in rows])
        return [{**new, self.model_column: self.model.fingerprint} for new in columns]

    def run(self, images: torch.Tensor, ids: list[str]) -> list[Row]:
        """(B, 3, H, W) float32 in [0, 1] -> the new columns of each row."""
        raise NotImplementedError


class Restore(_ModelStage):
    """Stage 0: the student restores. Fills `restored`."""

    name, model_column, image_column = "restore", "student", "lq"

    def run(self, images: torch.Tensor, ids: list[str]) -> list[Row]:
        restored = _finite(self.model.restore(images), "the student's output")
        return [{"restored": encode_png(image)} for image in to_images(restored)]


class Project(_ModelStage):
    """Stage 1: the teacher projects. Fills `pseudo_target`, `width`, `height`."""

    name, model_column, image_column = "project", "teacher", "restored"

    def run(self, images: torch.Tensor, ids: list[str]) -> list[Row]:
        projected = _finite(self.model.project(images, ids), "the teacher's output")
        if projected.shape != images.shape:
            raise ValueError(f"the teacher made {tuple(projected.shape)} of {tuple(images.shape)}")
        height, width = projected.shape[-2:]
        return [
            {"pseudo_target": encode_png(image), "width": width, "height": height} for image in to_images(projected)
        ]


class Score(_ModelStage):
    """Stage 1b: the gate scores. Fills `score`, and `fidelity` where it is asked for.

    Whom it admits is a view over the store, never a filter here.
    """

    name, model_column, image_column = "score", "scorer", "pseudo_target"

    def __init__(self, replica: Replica) -> None:
        super().__init__(replica)
        self._compares = replica.config.fidelity != "none"

    def _work(self, rows: list[Row]) -> list[Row]:
        columns = super()._work(rows)
        if self._compares:  # for the second opinion
            targets, restored = (
                to_tensor([decode_png(row[name]) for row in rows]) for name in ("pseudo_target", "restored")
            )
            values = _finite(self.model.fidelity(targets, restored), "the fidelity").tolist()
            columns = [{**column, "fidelity": value} for column, value in zip(columns, values, strict=True)]
        return columns

    def run(self, images: torch.Tensor, ids: list[str]) -> list[Row]:
        return [{"score": score} for score in _finite(self.model.score(images), "the score").tolist()]


def load_model(section: str, replica: Replica) -> Any:
    """Load a model inside an actor, and end the run where that cannot be done.

    An error here would come back wrapped in a traceback, and a death while loading would be repeated by Ray for ever;
    so the reason goes to the ledger, where the driver finds it.
    """
    ledger, me = replica.ledger, ray.get_runtime_context().get_actor_id() or "task"
    [starts] = ray.get(ledger.begin.remote(f"start {section}", [me]))
    try:
        if starts > MAX_STARTS:
            raise ModelError(f"the {section} worker died {MAX_STARTS} times while loading its model (out of memory?)")
        try:
            model = replica.load(replica.config)
        except (Exception, SystemExit) as error:
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
    ledger.done.remote(f"start {section}", [me])
    return model


def facts_of(model: Any) -> dict[str, Any]:
    """What must be the same for every worker of a stage, and for every run on a store."""
    facts = {"fingerprint": model.fingerprint}
    if hasattr(model, "higher_is_better"):
        facts["higher_is_better"] = model.higher_is_better
    return facts


def _finite(values: torch.Tensor, what: str) -> torch.Tensor:
    if not torch.isfinite(values).all():
        raise ValueError(f"{what} is not finite")
    return values
