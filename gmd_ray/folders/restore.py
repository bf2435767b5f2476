"""Restoring a folder of photos with any student: the same tree and kinds of files, on a cluster where there is one."""

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
from gmd_ray.errors import ConfigError, GmdError, ModelError
from gmd_ray.folders.restore_results import Results, Size
from gmd_ray.folders.restore_worker import Job, Restorer, RestorerActor
from gmd_ray.images.listing import ImageFile, list_images, open_filesystem
from gmd_ray.images.results import AUTO, Naming, name_results
from gmd_ray.progress import Progress
from gmd_ray.storage import absolute_if_exists
from gmd_ray.text import one_line, printable

log = logging.getLogger("gmd_ray")

_RECIPE = 1
"""Of what is done to a photo beside the student; a new one makes all results anew."""
_BATCH_SIDE = 512
"""Photos go through together as long as they have no more pixels than the pool's batch of photos of this side."""


@dataclass(frozen=True)
class Restored:
    """What became of a folder."""

    count: int
    """Results that are there now, `skipped` among them."""
    failed: dict[str, str]
    """Relative path -> reason, on one line."""
    skipped: int = 0
    """Results that an earlier run had finished."""


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

    Bit depth (PNG, TIFF), transparency, ICC profile, EXIF and gray are kept, see `gmd_ray.images.files.photo`; a photo
    is turned upright. Transparency is restored beside the colours, by the same student. What cannot be read or restored
    is left out and named; the rest is done. Results that an earlier call finished, of the same photo with the same
    student and settings, are left as they are; a record beside them says so.

    Args:
        cfg: its `student`; `student.pool` sizes the actor pool on Ray, and its `batch_size` is how many photos of one
            size, or tiles, go through together; `target.max_pixels` guards memory.
        source: a file, or a folder (or URL), read recursively.
        out: a folder (or URL), made where it is missing; on Ray one that every node sees. A relative one is taken from
            the caller's directory, or in a submitted job from `~/gmd_ray`, as a run's `out` is.
        suffix: put behind the stem: `_restored`.
        ext: ending of the results, or auto: each photo's own where it can be written.
        overwrite: restore again what is finished.
        on_ray: run as a Ray Data pool in the session that is there; otherwise here, batch after batch.

    Raises:
        ConfigError: an empty path, results that would overwrite each other or their sources or that their format cannot
            hold, or a folder that cannot be written.
        DataError: no images.
        ModelError: a student that cannot be loaded.
    """
    for option, value in (("-i", source), ("-o", out), ("-m", cfg.student.path or "")):
        if not value.strip():
            raise ConfigError(f"{option} is empty: a variable that is not set?")
    naming = Naming(suffix, ext)
    out = resolve_out(out)  # a worker's directory is another
    files = {file.id: file for file in _files(source)}
    _refuse_places(source, out, files, name_results([*files], naming))
    results = Results(out)
    if not on_ray:
        _say_what_is_for_clusters(cfg.student)
    worker = Restorer(cfg.student if not on_ray else replace(cfg.student, device="cpu"), cfg.target.max_pixels)
    sizes = results.sizes(files, cfg.target.max_pixels)
    known = {key: size for key, size in sizes.items() if size is not None}
    names = name_results([*files], naming, worker.scale, known)
    _refuse_places(source, out, files, names)
    made_with = f"{worker.fingerprint} {_RECIPE}"
    todo = results.unfinished(files, names, made_with, overwrite)
    jobs = [Job(file.id, file.uri, names[file.id]) for file in todo]
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


def _say_what_is_for_clusters(student: StudentConfig) -> None:
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
    """Refuse results that would take the place of photos, or become photos of the next run."""
    above, target = _place(source), _place(out)
    root = os.path.dirname(above) if os.path.isfile(above) else above
    photos = {file.uri for file in files.values()} | {f"{root}/{key}" for key in files}
    for name in names.values():
        if f"{target}/{name}" in photos or f"{out.rstrip('/')}/{name}" in photos:
            raise ConfigError(
                f"{out}: results would take the place of their sources ({printable(name)}); give another folder, or "
                f"--suffix"
            )
    if f"{target}/".startswith(f"{above}/"):
        raise ConfigError(f"{out} lies within {source}: a second run would restore its own results")


def _place(url: str) -> str:
    """Comparable form of a path or URL: of local ones, where links lead."""
    if "://" in url and not url.startswith("file://"):
        return url.rstrip("/")
    return os.path.realpath(open_filesystem(url)[1])


def _batches(jobs: Iterable[Job], sizes: dict[str, Size | None], most: int) -> list[list[Job]]:
    """Photos of one size together, in the order of the first of each; those of an unknown size are alone."""
    batches: list[list[Job]] = []
    growing: dict[Size, list[Job]] = {}
    for job in jobs:
        size = sizes[job.id]
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


def _local_rows(restorer: Restorer, batches: list[list[Job]], out: str, progress: Progress) -> Iterator[dict[str, Any]]:
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


def _ray_rows(cfg: Config, batches: list[list[Job]], out: str) -> Iterator[dict[str, Any]]:
    if not batches:
        return
    import ray.data
    from ray.exceptions import RayError

    from gmd_ray.ray_utils.pools import restarting_pool, silence

    pool = cfg.student.pool
    rows = [{"batch": json.dumps([vars(job) for job in batch])} for batch in batches]
    # When a worker dies, its whole block is repeated: blocks are small, and there are enough of them for every actor.
    blocks = min(len(rows), max(4 * pool.max, len(rows) // 16))
    with restarting_pool(pool) as options:
        stream = ray.data.from_items(rows, override_num_blocks=blocks).map(
            RestorerActor,
            fn_constructor_args=(
                replace(cfg.student, path=absolute_if_exists(cfg.student.path)),
                cfg.target.max_pixels,
                out,
            ),
            **options,
        )
    silence(stream)
    try:
        for row in stream.iter_rows():
            if row["fatal"]:
                raise ModelError(row["fatal"])
            yield from json.loads(row["rows"])
    except RayError as error:
        raise GmdError(f"restoring stopped on a Ray error: {type(error).__name__}: {one_line(error, 300)}") from error
