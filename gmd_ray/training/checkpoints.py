"""The checkpoints of a fine-tune, looked at before any worker starts: the last whole one is the one to go on from.

A checkpoint is a folder of Ray Train's, `train/step_00001000`, with the file `state.pt`. Ray Train's list of them, the
snapshot, decides which one the workers are given; neither file is written in one piece, so that a kill or a full disk
can leave a torn one. No torch here: `state.pt` is a zip archive, whose checksums tell.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import logging
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gmd_ray.errors import DataError
from gmd_ray.text import printable
from gmd_ray.training.run_files import CURVE, SCORE, SNAPSHOT, STATE, checkpoint_name, read_curve
from gmd_ray.training.spec import TrainingSpec

_TORN = (zipfile.BadZipFile, zlib.error, struct.error, ValueError, EOFError, RuntimeError)
"""What `zipfile` raises at one archive or another that is not whole; RuntimeError covers what it does not support."""

log = logging.getLogger("gmd_ray.training")


def settle_checkpoints(spec: TrainingSpec, label: str) -> None:
    """Make the last whole checkpoint the one that Ray Train goes on from, and say which ones are torn.

    Where training goes on from an earlier one it comes to the same weights: steps depend on nothing but the checkpoint.

    Args:
        label: what log lines and errors begin with.

    Raises:
        DataError: there are checkpoints and none is whole, or the one to be exported is torn with none before it. The
            line names the file.
    """
    snapshot = Path(spec.directory, SNAPSHOT)
    train = snapshot.parent
    listed = _read_snapshot(snapshot)
    known = {} if listed is None else {_step(entry): entry for entry in listed["checkpoint_results"]}
    there = {int(folder.name.removeprefix("step_")) for folder in train.glob("step_[0-9]*") if folder.is_dir()}
    last = max(there, default=0)
    if listed is not None and listed["latest_checkpoint_result"] is not None:
        last = _step(listed["latest_checkpoint_result"])
    candidates = sorted((step for step in {*known, *there} if step <= last), reverse=True)
    if not candidates:
        snapshot.unlink(missing_ok=True)  # torn as it was first written: nothing has begun
        return
    torn: dict[int, str] = {}
    chosen = _last_whole(train, candidates, torn)
    scores = {point["step"]: point[SCORE] for point in read_curve(Path(spec.directory, CURVE)) if SCORE in point}
    scores |= {step: entry["metrics"][SCORE] for step, entry in known.items() if SCORE in entry["metrics"]}
    if chosen is not None and spec.cfg.training.export == "best":
        best = _best(scores, chosen)
        if best is not None and best != chosen and (why := _why_torn(train / checkpoint_name(best) / STATE)):
            # It is made again where training goes on from before it.
            torn[best] = why
            chosen = _last_whole(train, [step for step in candidates if step < best], torn)
    if chosen is None:
        named = "; ".join(f"{train / checkpoint_name(step) / STATE} {why}" for step, why in torn.items())
        if not snapshot.exists():  # the first one was being written when the run was killed
            log.warning("%s: no checkpoint is whole (%s): beginning anew", label, named)
            return
        raise DataError(f"{label}: no checkpoint is whole ({named}): put it back, or remove {train} to begin anew")
    for step, why in torn.items():
        log.warning("%s: %s %s: going on from step %d", label, train / checkpoint_name(step) / STATE, why, chosen)
    if listed is None:
        log.warning("%s: %s is torn or missing: going on from step %d", label, snapshot, chosen)
    usable = there if listed is None else there & known.keys()
    kept = [step for step in candidates if step == chosen or (step < chosen and step in usable)]
    if listed is None or set(kept) != set(known):
        entries = [known.get(step, _entry(step, scores)) for step in kept]
        _write_snapshot(snapshot, listed, entries, chosen)


def has_checkpoints(directory: Path) -> bool:
    """Whether a fine-tune's directory holds a checkpoint, or Ray Train's list of them."""
    return (directory / SNAPSHOT).is_file() or any((directory / SNAPSHOT).parent.glob(f"step_*/{STATE}"))


def _why_torn(path: Path) -> str | None:
    """What is wrong with a `state.pt`, None where it is whole.

    Raises:
        DataError: the storage does not give it, whole as it may be.
    """
    try:
        if not path.stat().st_size:
            return "is empty"
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except FileNotFoundError:
        return "is missing"
    except _TORN:
        return "is torn"
    except OSError as error:
        if error.errno == errno.EINVAL:  # a place before the beginning of the file, which torn bytes named
            return "is torn"
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); see to that, and try again") from error
    return None if damaged is None else f"is damaged inside ({printable(damaged)})"


def _last_whole(train: Path, candidates: Iterable[int], torn: dict[int, str]) -> int | None:
    """The first of these steps whose checkpoint is whole; those before it come into `torn` with what ails them."""
    for step in candidates:
        why = _why_torn(train / checkpoint_name(step) / STATE)
        if why is None:
            return step
        torn[step] = why
    return None


def _best(scores: dict[int, float], until: int) -> int | None:
    """The step of the highest score up to a step; the later one at a tie."""
    return max((step for step in scores if step <= until), key=lambda step: (scores[step], step), default=None)


def _read_snapshot(path: Path) -> dict[str, Any] | None:
    """Ray Train's list; None where it is missing or torn."""
    try:
        listed = json.loads(path.read_bytes())
        for entry in [*listed["checkpoint_results"], *filter(None, [listed["latest_checkpoint_result"]])]:
            _step(entry)
            dict(entry["metrics"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    return dict(listed)


def _write_snapshot(path: Path, listed: dict[str, Any] | None, entries: list[dict[str, Any]], latest: int) -> None:
    """Write the list anew, in Ray Train's form and order: by score, then by time."""
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
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(json.dumps(document))
    draft.replace(path)


def _entry(step: int, scores: dict[int, float]) -> dict[str, Any]:
    """A checkpoint that Ray Train's list lacks, as it would have it."""
    score = {SCORE: scores[step]} if step in scores else {}
    return {"version": 0, "checkpoint_dir_name": checkpoint_name(step), "metrics": {"step": step, **score}}


def _step(entry: dict[str, Any]) -> int:
    return int(entry["checkpoint_dir_name"].removeprefix("step_"))
