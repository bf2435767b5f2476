"""Choosing the checkpoint to resume from, before any worker starts: the last one that is intact.

A checkpoint is a folder that Ray Train writes, `train/step_00001000`, with the file `state.pt`. Ray Train's list of
them, the snapshot, decides which one the workers get. On a disk neither file is written atomically, so that a kill or a
full disk can leave a part of it; an object store shows an object once it is complete. This module does not import
torch: `state.pt` is a zip archive, and its checksums say whether it is intact.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import logging
import os
import struct
import typing
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any, BinaryIO

from gmd_ray.config.places import above, below
from gmd_ray.errors import DataError
from gmd_ray.storage import is_file, is_remote, open_filesystem, read_bytes, remove_file, write_bytes
from gmd_ray.text import printable
from gmd_ray.training.run_files import (
    CURVE,
    SCORE,
    SNAPSHOT,
    checkpoint_name,
    checkpoint_steps,
    read_curve,
    state_of,
)
from gmd_ray.training.spec import TrainingSpec

_TORN = (zipfile.BadZipFile, zlib.error, struct.error, ValueError, EOFError, RuntimeError)
"""Exceptions that `zipfile` raises for incomplete archives; RuntimeError stands for features that it lacks."""

log = logging.getLogger("gmd_ray.training")


def settle_checkpoints(spec: TrainingSpec, label: str) -> None:
    """Make Ray Train resume from the last intact checkpoint, and log the damaged ones.

    Resuming from an earlier checkpoint leads to the same weights, since a step depends on nothing but the state before
    it.

    Args:
        spec: the fine-tune.
        label: the first words of log lines and errors.

    Raises:
        DataError: there are checkpoints and all are damaged; or the best one, which is to be exported, is damaged and
            there is none before it. The message names the files.
    """
    directory = spec.directory
    snapshot = below(directory, SNAPSHOT)
    listed = _read_snapshot(snapshot)
    known = {} if listed is None else {_step(entry): entry for entry in listed["checkpoint_results"]}
    there = checkpoint_steps(directory)
    last = max(there, default=0)
    if listed is not None and listed["latest_checkpoint_result"] is not None:
        last = _step(listed["latest_checkpoint_result"])
    candidates = sorted((step for step in {*known, *there} if step <= last), reverse=True)
    if not candidates:
        remove_file(snapshot)  # the run was killed while it wrote its first snapshot
        return
    torn: dict[int, str] = {}
    chosen = _last_whole(directory, candidates, torn)
    scores = {point["step"]: point[SCORE] for point in read_curve(below(directory, CURVE)) if SCORE in point}
    scores |= {step: entry["metrics"][SCORE] for step, entry in known.items() if SCORE in entry["metrics"]}
    if chosen is not None and spec.cfg.training.export == "best":
        best = _best(scores, chosen)
        if best is not None and best != chosen and (why := _why_torn(state_of(directory, best))):
            # Training writes it again if it resumes from a checkpoint before it.
            torn[best] = why
            chosen = _last_whole(directory, [step for step in candidates if step < best], torn)
    if chosen is None:
        named = "; ".join(f"{state_of(directory, step)} {why}" for step, why in torn.items())
        if not is_file(snapshot):  # the run was killed while it wrote its first checkpoint
            log.warning("%s: no checkpoint is intact (%s): starting from step 0", label, named)
            return
        raise DataError(
            f"{label}: no checkpoint is intact ({named}); restore one, or remove {above(snapshot)} to start over"
        )
    for step, why in torn.items():
        log.warning("%s: %s %s: resuming from step %d", label, state_of(directory, step), why, chosen)
    if listed is None:
        log.warning("%s: %s is damaged or missing: resuming from step %d", label, snapshot, chosen)
    usable = there if listed is None else there & known.keys()
    kept = [step for step in candidates if step == chosen or (step < chosen and step in usable)]
    if listed is None or set(kept) != set(known):
        entries = [known.get(step, _entry(step, scores)) for step in kept]
        _write_snapshot(snapshot, listed, entries, chosen)


def has_checkpoints(directory: str) -> bool:
    """Return whether a fine-tune's directory holds a checkpoint or Ray Train's list of them."""
    return is_file(below(directory, SNAPSHOT)) or any(
        is_file(state_of(directory, step)) for step in checkpoint_steps(directory)
    )


def _why_torn(path: str) -> str | None:
    """Say what is wrong with a `state.pt`; None if it is intact.

    At a URL only the end of the archive is read, which holds its table of contents: the storage guards what it has
    taken in, and reading it all would take as long as the download that follows.

    Raises:
        DataError: the storage fails, so that the file can be neither used nor called damaged.
    """
    try:
        with _opened(path) as file:
            if not file.seek(0, os.SEEK_END):
                return "is empty"
            with zipfile.ZipFile(file) as archive:
                damaged = None if is_remote(path) else archive.testzip()
    except FileNotFoundError:
        return "is missing"
    except _TORN:
        return "is incomplete"
    except OSError as error:
        if error.errno == errno.EINVAL:  # damaged bytes named an offset before the start of the file
            return "is incomplete"
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the storage") from error
    return None if damaged is None else f"is damaged inside ({printable(damaged)})"


def _opened(path: str) -> BinaryIO:
    if not is_remote(path):
        return open(path, "rb")
    filesystem, inner = open_filesystem(path)
    return typing.cast(BinaryIO, filesystem.open_input_file(inner))


def _last_whole(directory: str, candidates: Iterable[int], torn: dict[int, str]) -> int | None:
    """The first of these steps with an intact checkpoint; the damaged ones before it are added to `torn`."""
    for step in candidates:
        why = _why_torn(state_of(directory, step))
        if why is None:
            return step
        torn[step] = why
    return None


def _best(scores: dict[int, float], until: int) -> int | None:
    """The step with the highest score, up to and including `until`; the later one at a tie."""
    return max((step for step in scores if step <= until), key=lambda step: (scores[step], step), default=None)


def _read_snapshot(path: str) -> dict[str, Any] | None:
    """Read Ray Train's list of checkpoints; None if it is missing or damaged."""
    try:
        listed = json.loads(read_bytes(path) or b"")
        for entry in [*listed["checkpoint_results"], *filter(None, [listed["latest_checkpoint_result"]])]:
            _step(entry)
            dict(entry["metrics"])
    except (ValueError, TypeError, KeyError):
        return None
    return dict(listed)


def _write_snapshot(path: str, listed: dict[str, Any] | None, entries: list[dict[str, Any]], latest: int) -> None:
    """Write Ray Train's list of checkpoints, in its own format and order: by score, then by step."""
    entries = sorted(entries, key=lambda entry: (entry["metrics"].get(SCORE, float("-inf")), _step(entry)))
    by_time = sorted(map(_step, entries))
    unused = [
        "pending_training_results",
        "pending_validation_specs",
        "validated_checkpoint_dir_names",
        "timed_out_validation_checkpoint_dir_names",
        "failed_validation_checkpoint_dir_names",
    ]
    document = {"ray_version": importlib.metadata.version("ray"), **(listed or {}), **{key: [] for key in unused}}
    document |= {
        "checkpoint_results": entries,
        "checkpoint_report_indices": [by_time.index(_step(entry)) for entry in entries],
        "latest_checkpoint_result": next(entry for entry in entries if _step(entry) == latest),
        "current_report_index": max((listed or {}).get("current_report_index", 0), len(entries)),
    }
    write_bytes(path, json.dumps(document).encode())


def _entry(step: int, scores: dict[int, float]) -> dict[str, Any]:
    """The entry of a checkpoint that Ray Train's list lacks."""
    score = {SCORE: scores[step]} if step in scores else {}
    return {"version": 0, "checkpoint_dir_name": checkpoint_name(step), "metrics": {"step": step, **score}}


def _step(entry: dict[str, Any]) -> int:
    return int(entry["checkpoint_dir_name"].removeprefix("step_"))
