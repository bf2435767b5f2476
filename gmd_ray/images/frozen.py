"""Degraded images as files, for domains that have to stay the same: test sets, and targets made from clean images.

Every image is a function of (seed, id, crop index) alone, so that a run that was stopped goes on where it was, and any
number of processes writes the same bytes (restoration.md 2.4).

    <out>/lq/<id>.png          degraded
    <out>/hq/<id>.png          the clean image or crop it was made from, where asked for
    <out>/parameters.jsonl     one line for every image: what it was cut from, what was drawn, and the hash of its file
    <out>/settings.json        what determines the bytes
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from gmd_ray.errors import ConfigError, DataError, ResumeMismatchError
from gmd_ray.images.decode import decode_image
from gmd_ray.images.degradations import Degradation, sample_rng
from gmd_ray.images.encode import encode_png
from gmd_ray.images.listing import ImageFile, list_images, read_file
from gmd_ray.images.ranges import Steps
from gmd_ray.images.second_order import SecondOrder

CENTRE = "center"


@dataclass(frozen=True)
class Freezing:
    """What determines the bytes of a frozen set, beside the images it is made from."""

    degradation: Degradation | SecondOrder
    seed: int = 0
    crops: int | str | None = None
    """This many crops in all, spread evenly over the images; `center`, the middle of each; None for whole images."""
    size: int | None = None
    """Side of a crop in HQ pixels."""
    gray: bool = False
    hq: bool = True
    """Write the clean side too."""

    def __post_init__(self) -> None:
        scale = self.degradation.scale
        if isinstance(self.crops, str) and self.crops != CENTRE:
            raise ConfigError(f"crops={self.crops}: give a number, or {CENTRE}")
        if isinstance(self.crops, int) and self.crops < 1:
            raise ConfigError(f"crops={self.crops}: give at least 1")
        if (self.crops is None) != (self.size is None):
            raise ConfigError("crops and size: give both, or neither for whole images")
        if self.size is not None and (self.size < scale or self.size % scale):
            raise ConfigError(f"size={self.size}: must be a multiple of the degradation's scale {scale}")


@dataclass(frozen=True)
class _Task:
    """The crops of one image that are not there yet."""

    file: ImageFile
    crops: tuple[tuple[str, int], ...]
    """(id, index) of each."""


def freeze(hq: str, out: str | Path, how: Freezing, limit: int | None = None, workers: int | None = None) -> int:
    """Write a frozen set, or what is missing of it.

    Args:
        hq: folder, URL or published set of clean images; see `list_images`.
        out: a local folder.
        limit: only the first n images.
        workers: processes; None for as many as there are CPUs. 1 stays in this one.

    Returns:
        the number of images that this call wrote.

    Raises:
        ConfigError: settings that cannot be met.
        DataError: an image that cannot be read or is smaller than a crop, or two of one name.
        ResumeMismatchError: naming the settings that the folder was begun with and that differ.
    """
    if "://" in str(out):
        raise ConfigError(f"{out}: give a local folder")
    root = Path(out)
    tasks = _plan(list_images(hq, limit), how)
    _hold_settings(root / "settings.json", how, tasks)
    records = {record["id"]: record for record in _read_records(root)}
    missing = []
    for task in tasks:
        crops = tuple(crop for crop in task.crops if not _is_there(root, crop[0], how.hq, records))
        if crops:
            missing.append(dataclasses.replace(task, crops=crops))
    written = 0
    with (root / "parameters.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("\n")  # a line that a killed run left half written stays alone
        for batch in _run(root, how, missing, workers):
            for record in batch:
                stream.write(json.dumps(record) + "\n")
                records[record["id"]] = record
            stream.flush()
            written += len(batch)
    names = sorted(name for task in tasks for name, _ in task.crops)
    _put(root / "parameters.jsonl", "".join(json.dumps(records[name]) + "\n" for name in names).encode())
    return written


def degrade_crop(
    image: np.ndarray, key: str, index: int, how: Freezing
) -> tuple[np.ndarray, np.ndarray, tuple[int, int], Steps]:
    """One pair of a frozen set.

    Args:
        image: float32 RGB in [0, 1], shape (H, W, 3).
        key: the image's id; with the seed and `index` the key of every draw.

    Returns:
        (lq, hq), (top, left) of the crop, and what was drawn. `hq` is a crop, or the image cut to
        multiples of the scale.

    Raises:
        DataError: for an image that is smaller than a crop.
    """
    height, width = image.shape[:2]
    scale = how.degradation.scale
    rows, columns = (how.size, how.size) if how.size else (height // scale * scale, width // scale * scale)
    if min(rows, columns) < 1 or rows > height or columns > width:
        raise DataError(f"{key}: {width}x{height} is too small for crops of {how.size or scale} pixels")
    top, left = 0, 0
    if how.crops == CENTRE:
        top, left = (height - rows) // 2, (width - columns) // 2
    elif how.crops is not None:
        rng = sample_rng("crop", how.seed, key, index)
        top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    clean = np.ascontiguousarray(image[top : top + rows, left : left + columns])
    steps: Steps = []
    return how.degradation(clean, sample_rng(how.seed, key, index), steps), clean, (top, left), steps


def _plan(files: Sequence[ImageFile], how: Freezing) -> list[_Task]:
    stems: dict[str, ImageFile] = {}
    for file in files:
        stem = str(PurePosixPath(file.id).with_suffix(""))
        if stem in stems:
            raise DataError(f"{stems[stem].id} and {file.id} share a name: their frozen files would be one")
        stems[stem] = file
    crops: dict[str, list[tuple[str, int]]] = defaultdict(list)
    if isinstance(how.crops, int):
        names = list(stems)
        for i in range(how.crops):
            index, which = divmod(i, len(names))
            crops[names[which]].append((f"{names[which]}_{index:04d}", index))
    else:
        crops.update({stem: [(stem, 0)] for stem in stems})
    return [_Task(stems[stem], tuple(items)) for stem, items in crops.items()]


def _run(root: Path, how: Freezing, tasks: list[_Task], workers: int | None) -> Iterator[list[dict[str, Any]]]:
    count = min(workers or os.cpu_count() or 1, len(tasks))
    if count <= 1:
        yield from (_write(root, how, task) for task in tasks)
        return
    # Spawned: OpenCV's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        try:
            with _spawned_deaf():
                written = pool.map(_write, [root] * len(tasks), [how] * len(tasks), tasks)
            yield from written
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def _spawned_deaf() -> Iterator[None]:
    """Processes that start meanwhile do not hear Ctrl-C, which a terminal sends to all: this one ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _write(root: Path, how: Freezing, task: _Task) -> list[dict[str, Any]]:
    try:
        image = decode_image(read_file(task.file.uri), gray=how.gray)
    except DataError as error:
        raise DataError(str(error) if task.file.uri in str(error) else f"{task.file.uri}: {error}") from error
    records = []
    for name, index in task.crops:
        lq, hq, (top, left), steps = degrade_crop(image, task.file.id, index, how)
        data = encode_png(lq)
        if how.hq:
            _put(root / "hq" / f"{name}.png", encode_png(hq))
        _put(root / "lq" / f"{name}.png", data)
        records.append(
            {
                "id": name,
                "source": task.file.id,
                "index": index,
                "crop": {"top": top, "left": left, "height": hq.shape[0], "width": hq.shape[1]},
                "steps": steps,
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )
    return records


def _is_there(root: Path, name: str, hq: bool, records: dict[str, Any]) -> bool:
    sides = ("lq", "hq") if hq else ("lq",)
    return name in records and all((root / side / f"{name}.png").is_file() for side in sides)


def _hold_settings(path: Path, how: Freezing, tasks: list[_Task]) -> None:
    """Write what determines the bytes, or refuse a folder that was begun with something else."""
    names = "\n".join(f"{task.file.id} {name}" for task in tasks for name, _ in task.crops)
    now = {
        **dataclasses.asdict(how),
        "kind": type(how.degradation).__name__,
        "images": len(tasks),
        "names": hashlib.sha256(names.encode()).hexdigest()[:16],
    }
    now = json.loads(json.dumps(now))
    if not path.exists():
        _put(path, (json.dumps(now, indent=2) + "\n").encode())
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise DataError(f"{path}: not a JSON document; remove {path.parent} to begin anew") from error
    differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if differing:
        raise ResumeMismatchError(
            f"{path.parent} was begun with other settings ({', '.join(differing)}): remove it, or write elsewhere"
        )


def _read_records(root: Path) -> Iterator[dict[str, Any]]:
    path = root / "parameters.jsonl"
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # half a line, of a run that was killed: its image is made again
            yield json.loads(line)


def _put(path: Path, data: bytes) -> None:
    """Write a file so that no reader sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
