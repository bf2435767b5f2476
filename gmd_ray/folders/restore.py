"""Restoring a folder of photos with any student, locally or on a Ray cluster, into the same tree and file formats."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gmd_ray.config import Config, StudentConfig
from gmd_ray.config.load import resolve_out
from gmd_ray.errors import ConfigError, InterruptedRunError, ModelError
from gmd_ray.folders.restore_results import Results, Size
from gmd_ray.folders.restore_worker import RestoreJob, Restorer, RestorerActor
from gmd_ray.images.listing import ImageFile, list_images
from gmd_ray.images.results import AUTO, Naming, name_results
from gmd_ray.progress import Progress
from gmd_ray.storage import absolute_if_exists, open_filesystem
from gmd_ray.text import one_line, printable

log = logging.getLogger("gmd_ray")

_RECIPE = 1
"""Version of the processing outside the student. Increase it to make old results be restored again."""
_BATCH_SIDE = 512
"""A batch of photos has at most as many pixels as `batch_size` photos with sides of this many pixels."""


@dataclass(frozen=True)
class Restored:
    """The outcome of restoring a folder."""

    count: int
    """Number of results that exist now, including `skipped`."""
    failed: dict[str, str]
    """Relative path of each failed photo -> the reason, on one line."""
    skipped: int = 0
    """Number of results that an earlier run had finished."""


def restore_folder(
    cfg: Config,
    source: str,
    out: str,
    *,
    suffix: str = "",
    ext: str = AUTO,
    overwrite: bool = False,
    on_ray: bool = False,
) -> Restored:
    """Restore every photo of a folder, or one file.

    Bit depth (PNG, TIFF), transparency, ICC profile, EXIF and gray are kept, see `gmd_ray.images.files.photo`; photos
    are turned upright. The student also restores transparency. Photos that cannot be read or restored are skipped and
    reported in `failed`. Results that an earlier call finished, from the same photo with the same student and settings,
    are kept; a record beside them identifies them.

    Args:
        cfg: settings. `student.pool` sizes the actor pool on Ray; its `batch_size` is the number of photos of one size,
            or of tiles, that are processed together. `target.max_pixels` bounds memory.
        source: a file, or a folder or URL, which is read recursively.
        out: a folder or URL, made if missing. On Ray, every node must see it. A relative path is relative to the
            caller's directory, or in a submitted job to `~/gmd_ray`, as for a run's `out`.
        suffix: text appended to the stem, such as `_restored`.
        ext: extension of the results; `auto` keeps each photo's own if it can be written.
        overwrite: restore photos with finished results again.
        on_ray: run as a Ray Data pool in the present session, instead of batch after batch in this process.

    Raises:
        ConfigError: a path is empty, results would overwrite each other or their sources, their format cannot hold
            them, or the output folder cannot be written.
        DataError: there are no images.
        ModelError: the student cannot be loaded.
    """
    for option, value in (("-i", source), ("-o", out), ("-m", cfg.student.path or "")):
        if not value.strip():
            raise ConfigError(f"{option} is empty: a variable that is not set?")
    naming = Naming(suffix, ext)
    out = resolve_out(out)  # absolute, as workers have other working directories
    files = {file.id: file for file in _files(source)}
    _refuse_places(source, out, files, name_results([*files], naming))
    results = Results(out)
    if not on_ray:
        _warn_of_cluster_settings(cfg.student)
    worker = Restorer(cfg.student if not on_ray else replace(cfg.student, device="cpu"), cfg.target.max_pixels)
    sizes = results.sizes(files, cfg.target.max_pixels)
    known = {key: size for key, size in sizes.items() if size is not None}
    names = name_results([*files], naming, worker.scale, known)
    _refuse_places(source, out, files, names)
    made_with = f"{worker.fingerprint} {_RECIPE}"
    todo = results.unfinished(files, names, made_with, overwrite)
    jobs = [RestoreJob(file.id, file.uri, names[file.id]) for file in todo]
    batches = _batches(jobs, sizes, cfg.student.pool.batch_size)
    failed: dict[str, str] = {}
    skipped = len(files) - len(jobs)
    try:
        with Progress("restore", len(files), interval_s=cfg.log_interval_s, initial=skipped) as progress:
            rows = _ray_rows(cfg, batches, out) if on_ray else _local_rows(worker, batches, out, progress)
            for row in rows:
                key = row["id"]
                if row["error"]:
                    failed[key] = row["error"]
                else:
                    results.add(files[key], names[key], made_with, row["digest"], row["size"], sizes[key])
                progress.update(1, failed=len(failed))
    finally:
        results.save()
    return Restored(len(files) - len(failed), dict(sorted(failed.items())), skipped)


def _warn_of_cluster_settings(student: StudentConfig) -> None:
    pool = student.pool
    given = {"num_gpus": f"{pool.num_gpus:g}" if pool.num_gpus else "", "max": pool.max if pool.max > 1 else ""}
    named = ", ".join(f"student.pool.{key}={value}" for key, value in given.items() if value)
    if named:
        log.warning(
            "%s: for a Ray cluster, and none is named (ray.address=, RAY_ADDRESS); here one student runs on "
            "student.device=%s",
            named,
            student.device,
        )


def _files(source: str) -> list[ImageFile]:
    path = Path(source).expanduser()
    if "://" not in source and path.is_file():
        status = path.stat()
        changed = datetime.fromtimestamp(status.st_mtime_ns // 1000 / 1e6, UTC)
        return [ImageFile(path.name, str(path.absolute()), status.st_size, changed)]
    return list_images(source)


def _refuse_places(source: str, out: str, files: dict[str, ImageFile], names: dict[str, str]) -> None:
    """Refuse results that would replace photos, or become photos of the next run.

    Raises:
        ConfigError: the message names the folders.
    """
    above, target = _place(source), _place(out)
    root = os.path.dirname(above) if os.path.isfile(above) else above
    photos = {file.uri for file in files.values()} | {f"{root}/{key}" for key in files}
    for name in names.values():
        if f"{target}/{name}" in photos or f"{out.rstrip('/')}/{name}" in photos:
            raise ConfigError(
                f"{out}: results would replace their sources ({printable(name)}); give another folder, or --suffix"
            )
    if f"{target}/".startswith(f"{above}/"):
        raise ConfigError(f"{out} lies within {source}: a second run would restore its own results")


def _place(url: str) -> str:
    """Return a path or URL in a form that can be compared: local paths without links, URLs without a final slash."""
    if "://" in url and not url.startswith("file://"):
        return url.rstrip("/")
    return os.path.realpath(open_filesystem(url)[1])


def _batches(jobs: Iterable[RestoreJob], sizes: dict[str, Size | None], most: int) -> list[list[RestoreJob]]:
    """Group photos of one size, in the order in which each size first occurs. Photos of unknown size stay alone."""
    batches: list[list[RestoreJob]] = []
    growing: dict[Size, list[RestoreJob]] = {}
    for job in jobs:
        size = sizes[job.id]
        # At most `most` photos, and at most as many pixels as `most` photos of 512 x 512.
        fits = 1 if size is None else min(most, most * _BATCH_SIDE**2 // (size[0] * size[1]))
        batch = None if size is None or fits <= 1 else growing.get(size)
        if batch is None:
            batch = []
            batches.append(batch)
            if size is not None:
                growing[size] = batch
        batch.append(job)
        if size is not None and len(batch) >= fits:
            growing.pop(size, None)
    return batches


def _local_rows(
    restorer: Restorer, batches: list[list[RestoreJob]], out: str, progress: Progress
) -> Iterator[dict[str, Any]]:
    from gmd_ray.images.tiling import tiles_watched

    for batch in batches:
        more = f" and {len(batch) - 1} more" if len(batch) > 1 else ""
        names = printable(batch[0].id) + more

        def tick(done: int, tiles: int, names: str = names, n: int = len(batch)) -> None:
            progress.partly(n * done / tiles, f"tiles {done}/{tiles} of {names}")

        progress.partly(0, names)
        with tiles_watched(tick):
            rows = restorer(batch, out)
        yield from rows


def _ray_rows(cfg: Config, batches: list[list[RestoreJob]], out: str) -> Iterator[dict[str, Any]]:
    if not batches:
        return
    import ray.data
    from ray.exceptions import RayError

    from gmd_ray.ray_utils.metrics import ActorNames, model_name
    from gmd_ray.ray_utils.pools import entitle, restarting_pool

    pool = cfg.student.pool
    rows = [{"batch": json.dumps([vars(job) for job in batch])} for batch in batches]
    # When a worker dies, its whole block is repeated: blocks are small, and there are enough of them for every actor.
    blocks = min(len(rows), max(4 * pool.max, len(rows) // 16))
    with restarting_pool(pool, ActorNames("restore", model_name(cfg.student))) as options:
        stream = ray.data.from_items(rows, override_num_blocks=blocks).map(
            RestorerActor,
            fn_constructor_args=(
                replace(cfg.student, path=absolute_if_exists(cfg.student.path)),
                cfg.target.max_pixels,
                out,
            ),
            **options,
        )
    entitle(stream, "gmd_restore")
    try:
        for row in stream.iter_rows():
            if row["fatal"]:
                raise ModelError(row["fatal"])
            yield from json.loads(row["rows"])
    except RayError as error:
        raise InterruptedRunError(
            f"restoring stopped on a Ray error: {type(error).__name__}: {one_line(error, 300)}"
        ) from error
