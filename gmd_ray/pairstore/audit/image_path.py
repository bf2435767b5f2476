"""The way of one image through the stages, read from its row."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.compute as pc

from gmd_ray.errors import DataError
from gmd_ray.pairstore.parts import SCALARS
from gmd_ray.pairstore.schema import rows_dataset
from gmd_ray.pairstore.store import PairStore, arrow_errors_as_data_errors
from gmd_ray.text import printable

STAGES = (("read", None), ("restore", "student"), ("project", "teacher"), ("score", "scorer"))
"""Stages in their order, each with the column of its model's fingerprint."""

SEARCHED = 10_000
"""Ids that are searched for one that looks like a mistyped one."""


@dataclass(frozen=True)
class StageStep:
    """One stage of an image."""

    stage: str
    state: str
    """`done`, `failed` or `not reached`."""
    seconds: float | None
    """Wall time of the stage for this image, its share of a batch; None for `read`, and where it is not recorded."""
    model: str | None
    """Fingerprint of the model."""
    error: str | None
    """`type: message` of a failed stage."""


@dataclass(frozen=True)
class ImagePath:
    """One row of a pair store, in the order of its making."""

    id: str
    uri: str | None
    digest: str | None
    """Digest of the photo's bytes (`hashing.content_digest`)."""
    status: str
    attempts: int
    score: float | None
    width: int | None
    height: int | None
    steps: tuple[StageStep, ...]
    part: str
    """Part file that holds the row."""
    store: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        tries = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        size = f", {self.width}x{self.height}" if self.width else ""
        score = f", score {self.score:.4g}" if self.score is not None else ""
        lines = [f"{self.id}: {self.status}{size}{score}, {tries}", f"photo      {self.uri} (digest {self.digest})"]
        for step in self.steps:
            took = f"{step.seconds:.3g} s" if step.seconds is not None else ""
            model = f"model {step.model}" if step.model else ""
            parts = [part for part in (took, model, step.error) if part]
            lines.append(f"{step.stage:<10} {step.state:<12}{', '.join(parts)}".rstrip())
        lines.append(f"row        {self.part}")
        return "\n".join(map(printable, lines))


def read_image_path(store: PairStore, name: str) -> ImagePath:
    """Read the row of one image; its pictures are not read.

    Args:
        store: the store.
        name: the image's id.

    Raises:
        DataError: the store has no row of this id; the nearest ids are named.
    """
    columns = [name for name in SCALARS if name != "id"]
    with arrow_errors_as_data_errors(store.url):
        rows = rows_dataset(store.path, store.filesystem)
        found = rows.to_table(columns=["id", *columns, "__filename"], filter=pc.field("id") == name).to_pylist()
        if not found:
            ids = rows.to_table(columns=["id"])["id"].to_pylist()
            close = difflib.get_close_matches(name, ids[:SEARCHED], n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"{len(ids):,} other images have theirs"
            raise DataError(f"{store.url}: no row of {name!r} yet; {hint}")
    row = next((row for row in found if row["status"] == "ok"), found[-1])
    return ImagePath(
        id=row["id"],
        uri=row["uri"],
        digest=row["digest"],
        status=row["status"],
        attempts=row["attempts"] or 0,
        score=row["score"],
        width=row["width"],
        height=row["height"],
        steps=tuple(_steps(row)),
        part=row["__filename"],
        store=store.url,
    )


def _steps(row: dict[str, Any]) -> list[StageStep]:
    steps, reached = [], True
    for stage, model in STAGES:
        failed = row["status"] == "failed" and row["error_stage"] == stage
        state = "failed" if failed else "done" if reached else "not reached"
        error = f"{row['error_type']}: {row['error']}" if failed else None
        made_by = row[model] if model else None
        steps.append(StageStep(stage, state, row.get(f"seconds_{stage}") if reached else None, made_by, error))
        reached = reached and not failed
    return steps
