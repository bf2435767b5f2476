"""Frozen sets: degraded images written to files, for test sets and targets that must never change.

Every image depends only on (seed, id, crop index). A stopped run therefore continues where it was, and any number of
processes writes the same bytes. See docs/method.md, "Degradations".

    <out>/lq/<id>.png          degraded image
    <out>/hq/<id>.png          the clean image or crop it was made from, if requested
    <out>/parameters.jsonl     one line per image: its source (with that file's size, time and digest), the drawn values
                               and the hash of its own file
    <out>/settings.json        the settings that determine the bytes
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import signal
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from gmd_ray.errors import ConfigError, DataError, GmdError
from gmd_ray.hashing import content_digest, short_digest
from gmd_ray.images.degradation.degradations import Degradation, sample_rng
from gmd_ray.images.degradation.ranges import Steps
from gmd_ray.images.degradation.second_order import SecondOrder
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.encode import encode_png
from gmd_ray.images.files.formats import refusal_by_name
from gmd_ray.images.listing import ImageFile, check_limit, list_images, read_file
from gmd_ray.images.sets import frozen_files
from gmd_ray.images.sets.pairs import pairing_stem
from gmd_ray.text import one_line, printable, some

logger = logging.getLogger(__name__)

CENTER = "center"
"""Value of `crops` that takes the middle of each image."""


@dataclass(frozen=True)
class FrozenSetSpec:
    """The settings that determine the bytes of a frozen set, together with its source images."""

    degradation: Degradation | SecondOrder
    seed: int = 0
    crops: int | str | None = None
    """Total number of crops, spread evenly over the images; `center` for the middle of each; None for whole images."""
    size: int | None = None
    """Side of a crop in HQ pixels."""
    gray: bool = False
    """Convert the images to gray first."""
    hq: bool = True
    """Write the clean images too."""

    def __post_init__(self) -> None:
        scale = self.degradation.scale
        if isinstance(self.crops, str) and self.crops != CENTER:
            raise ConfigError(f"crops={self.crops}: give a number, or {CENTER}")
        if isinstance(self.crops, int) and self.crops < 1:
            raise ConfigError(f"crops={self.crops}: give at least 1")
        if (self.crops is None) != (self.size is None):
            raise ConfigError("crops and size: give both, or neither for whole images")
        if self.size is not None and (self.size < scale or self.size % scale):
            raise ConfigError(f"size={self.size}: must be a multiple of the degradation's scale {scale}")


@dataclass(frozen=True)
class Frozen:
    """The outcome of writing a frozen set."""

    written: int
    """Number of images that this call wrote."""
    remade: tuple[str, ...]
    """Ids of source images that have changed since an earlier call; their degraded images were written again."""
    failed: Mapping[str, str]
    """URI of each source image that could not be used -> the reason, on one line."""


@dataclass(frozen=True)
class _Task:
    """One image and its crops."""

    file: ImageFile
    crops: tuple[tuple[str, int], ...]
    """Each crop's (id, index)."""
    there: Mapping[str, str | None] = field(default_factory=dict)
    """Id of each existing crop -> digest of the file it was made from; None if an older record has no digest."""


@dataclass(frozen=True)
class _Made:
    """The outcome of one task."""

    records: Sequence[dict[str, Any]] = ()
    """Records of the crops that were written."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Size, time and digest of the source file."""
    stale: Sequence[str] = ()
    """Ids of existing crops that were made from another file of the same name."""
    failure: str = ""
    """The reason of a failure, on one line; empty on success."""


def write_frozen_set(
    hq: str, out: str | Path, how: FrozenSetSpec, limit: int | None = None, workers: int | None = None
) -> Frozen:
    """Write a frozen set, or the part of it that is missing.

    Images that cannot be read, or are smaller than a crop, are skipped and reported in `failed`. An image whose size or
    time has changed since an earlier call is read, and degraded again if its bytes differ.

    Args:
        hq: folder, URL or published set of clean images; see `list_images`.
        out: a local folder.
        how: the settings of the set.
        limit: use only the first `limit` images.
        workers: number of processes; None for one per CPU. With 1, the work is done in this process.

    Raises:
        ConfigError: the settings are invalid, or the output would replace its own inputs.
        DataError: there are no images, or two have the same name.
        ResumeMismatchError: the folder was begun with other settings; the message names them.
    """
    if "://" in str(out) or not str(out).strip():
        raise ConfigError(f"the output {str(out)!r}: give a local folder")
    check_limit(limit)
    root, listed = Path(out), list_images(hq)
    # Files with an extension that is not decoded are set aside first, so they affect neither names nor crops.
    failed = {file.uri: refusal for file in listed if (refusal := refusal_by_name(file.id))}
    files = [file for file in listed if file.uri not in failed][:limit]
    if not files:
        raise DataError(f"{hq}: no image that this program decodes among {len(listed)}")
    frozen_files.keep_apart(hq, files, root)
    tasks = _plan(files, how)
    frozen_files.hold_settings(root / "settings.json", _settings(how, tasks))
    records = frozen_files.read_records(root)
    todo = [task for task in (_held(root, task, how.hq, records) for task in tasks) if _is_due(task, records)]
    written, remade = 0, []
    with (root / frozen_files.RECORDS).open("a", encoding="utf-8") as stream:
        stream.write("\n")  # ends the incomplete line that a killed run may have left
        for task, made in zip(todo, _run(root, how, todo, workers), strict=True):
            if made.failure:
                failed[task.file.uri] = made.failure
                frozen_files.forget(
                    root, [*made.stale, *(name for name, _ in task.crops if name not in task.there)], records
                )
                continue
            if made.stale:
                remade.append(task.file.id)
            seen = [records[name] | made.facts for name, digest in task.there.items() if digest and name in records]
            new = {record["id"]: record for record in (*seen, *made.records)}
            stream.write("".join(f"{json.dumps(record)}\n" for record in new.values()))
            stream.flush()
            records |= new
            written += len(made.records)
    names = sorted(name for task in tasks for name, _ in task.crops if name in records)
    frozen_files.put(root / frozen_files.RECORDS, "".join(f"{json.dumps(records[name])}\n" for name in names).encode())
    if remade:
        logger.warning(
            "%d images have changed since they were degraded, and were made anew: %s", len(remade), some(remade)
        )
    return Frozen(written, tuple(remade), failed)


def degrade_crop(
    image: np.ndarray, key: str, index: int, how: FrozenSetSpec
) -> tuple[np.ndarray, np.ndarray, tuple[int, int], Steps]:
    """Make one pair of a frozen set.

    Args:
        image: float32 RGB in [0, 1], shape (H, W, 3).
        key: id of the image; with the seed and `index`, it seeds every draw.
        index: number of the crop, counted from 0 in each image.
        how: the settings of the set.

    Returns:
        lq, hq, (top, left) of the crop, and the drawn values. `hq` is the crop, or the image cut to multiples of the
        scale.

    Raises:
        DataError: the image is smaller than a crop.
    """
    height, width = image.shape[:2]
    scale = how.degradation.scale
    rows, columns = (how.size, how.size) if how.size else (height // scale * scale, width // scale * scale)
    if min(rows, columns) < 1 or rows > height or columns > width:
        raise DataError(f"{key}: {width}x{height} is too small for crops of {how.size or scale} pixels")
    top, left = 0, 0
    if how.crops == CENTER:
        top, left = (height - rows) // 2, (width - columns) // 2
    elif how.crops is not None:
        rng = sample_rng("crop", how.seed, key, index)
        top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    clean = np.ascontiguousarray(image[top : top + rows, left : left + columns])
    steps: Steps = []
    return how.degradation(clean, sample_rng(how.seed, key, index), steps), clean, (top, left), steps


def _plan(files: Sequence[ImageFile], how: FrozenSetSpec) -> list[_Task]:
    stems: dict[str, ImageFile] = {}
    by_pairing: dict[str, str] = {}
    for file in files:
        first = by_pairing.setdefault(pairing_stem(file.id), file.id)
        if first != file.id:
            raise DataError(f"{first} and {file.id} share a name: their frozen files would be one")
        stems[str(PurePosixPath(file.id).with_suffix(""))] = file
    crops: dict[str, list[tuple[str, int]]] = defaultdict(list)
    if isinstance(how.crops, int):
        names = list(stems)
        for i in range(how.crops):
            index, which = divmod(i, len(names))
            crops[names[which]].append((f"{names[which]}_{index:04d}", index))
    else:
        crops.update({stem: [(stem, 0)] for stem in stems})
    return [_Task(stems[stem], tuple(items)) for stem, items in crops.items()]


def _held(root: Path, task: _Task, hq: bool, records: Mapping[str, dict[str, Any]]) -> _Task:
    """Return the task with its existing crops filled in."""
    there = [name for name, _ in task.crops if frozen_files.is_there(root, name, hq, records)]
    return replace(task, there={name: records[name].get("digest") for name in there})


def _is_due(task: _Task, records: Mapping[str, dict[str, Any]]) -> bool:
    whole = len(task.there) == len(task.crops)
    return not whole or not all(frozen_files.is_current(task.file, records[name]) for name in task.there)


def _settings(how: FrozenSetSpec, tasks: Sequence[_Task]) -> dict[str, Any]:
    names = "\n".join(f"{task.file.id} {name}" for task in tasks for name, _ in task.crops)
    return {
        **asdict(how),
        "kind": type(how.degradation).__name__,
        "images": len(tasks),
        "names": short_digest(names),
    }


def _run(root: Path, how: FrozenSetSpec, tasks: list[_Task], workers: int | None) -> Iterator[_Made]:
    count = min(workers or os.cpu_count() or 1, len(tasks))
    if count <= 1:
        yield from (_write(root, how, task) for task in tasks)
        return
    # Processes are spawned, since OpenCV's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        try:
            with _children_ignore_ctrl_c():
                written = pool.map(_write, [root] * len(tasks), [how] * len(tasks), tasks)
            yield from written
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def _children_ignore_ctrl_c() -> Iterator[None]:
    """Make processes that start in this context ignore Ctrl-C.

    A terminal sends SIGINT to the whole process group; the parent alone handles it and stops its children.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _write(root: Path, how: FrozenSetSpec, task: _Task) -> _Made:
    """Write the missing crops of one image, and those made from another file of the same name."""
    file, stale = task.file, []
    made: list[tuple[dict[str, Any], bytes, bytes | None]] = []
    try:
        data = read_file(file.uri)
        facts = {**frozen_files.file_facts(file), "bytes": len(data), "digest": content_digest(data)}
        stale = [name for name, digest in task.there.items() if digest not in (None, facts["digest"])]
        crops = [(name, index) for name, index in task.crops if name not in task.there or name in stale]
        image = decode_image(data, gray=how.gray) if crops else np.empty((0, 0, 3), np.float32)
        for name, index in crops:
            lq, hq, (top, left), steps = degrade_crop(image, file.id, index, how)
            png = encode_png(lq)
            record = {
                "id": name,
                "source": file.id,
                "index": index,
                "crop": {"top": top, "left": left, "height": hq.shape[0], "width": hq.shape[1]},
                "steps": steps,
                "sha256": content_digest(png),
                **facts,
            }
            made.append((record, png, encode_png(hq) if how.hq else None))
    except Exception as error:  # noqa: BLE001 -- any failure concerns this image only and is reported with it
        text = one_line(error).removeprefix(f"{printable(file.uri)}: ").removeprefix(f"{printable(file.id)}: ")
        kind = "" if isinstance(error, GmdError) else f"{type(error).__name__}: "
        return _Made(stale=stale, failure=f"{kind}{text}")
    for record, lq_png, hq_png in made:
        if hq_png is not None:
            frozen_files.put(root / "hq" / f"{record['id']}.png", hq_png)
        frozen_files.put(root / "lq" / f"{record['id']}.png", lq_png)
    return _Made([record for record, _, _ in made], facts, stale)
