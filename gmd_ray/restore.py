"""Restoring a folder of photos with any student: the same tree and kinds of files, on a cluster where there is one."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from gmd_ray.config import Config, StudentConfig
from gmd_ray.config.load import resolve_out
from gmd_ray.errors import ConfigError, DataError, GmdError, ModelError
from gmd_ray.generation.files import located, put
from gmd_ray.images.listing import ImageFile, list_images, open_filesystem, read_file
from gmd_ray.images.photo import FORMATS, Photo, encode_photo, read_photo
from gmd_ray.progress import Progress

AUTO = "auto"
_INSTEAD = ".png"
"""With `ext=auto`: what files become whose own kind cannot be written as they were."""


@dataclass(frozen=True)
class Restored:
    """What became of a folder."""

    count: int
    failed: dict[str, str]
    """Relative path -> reason, on one line."""


@dataclass(frozen=True)
class _Job:
    """One photo; pickled to the worker that restores it."""

    id: str
    uri: str
    target: str
    """Where the result goes: a path or URL."""


def restore_folder(
    cfg: Config, source: str, out: str, *, suffix: str = "", ext: str = AUTO, on_ray: bool = False
) -> Restored:
    """Restore every photo of a folder, or one file.

    Bit depth (PNG, TIFF), transparency, ICC profile, EXIF and gray are kept, see `gmd_ray.images.photo`; a photo is
    turned upright. Transparency is restored beside the colours, by the same student. What cannot be read or restored is
    left out and named; the rest is done.

    Args:
        cfg: its `student`; `student.pool` sizes the actor pool on Ray; `target.max_pixels` guards memory.
        source: a file, or a folder (or URL), read recursively.
        out: a folder (or URL), made where it is missing; on Ray one that every node sees. A relative one is taken from
            the caller's directory, or in a submitted job from `~/gmd_ray`, as a run's `out` is.
        suffix: put behind the stem: `_restored`.
        ext: ending of the results without its dot, or auto: each photo's own.
        on_ray: run as a Ray Data pool in the session that is there; otherwise here, one photo after the other.

    Raises:
        ConfigError: results that would overwrite each other or their sources.
        DataError: no images.
        ModelError: a student that cannot be loaded.
    """
    jobs = _plan(source, resolve_out(out), suffix, ext)  # a worker's directory is another
    failed: dict[str, str] = {}
    rows = _ray_rows(cfg, jobs) if on_ray else _local_rows(cfg, jobs)
    with Progress("restore", len(jobs), interval_s=cfg.log_interval_s) as progress:
        for row in rows:
            if row["error"]:
                failed[row["id"]] = row["error"]
            progress.update(1, failed=len(failed))
    return Restored(len(jobs) - len(failed), dict(sorted(failed.items())))


class Restorer:
    """Restores photos one by one: an actor of the pool, or the only one here."""

    def __init__(self, student: StudentConfig, max_pixels: int) -> None:
        import torch

        from gmd_ray.students import load_student

        torch.set_num_threads(max(1, int(student.pool.num_cpus)))
        self._student = load_student(student)
        self._max_pixels = max_pixels

    def __call__(self, job: _Job) -> str | None:
        """Restore one photo and write it; the reason on one line where that fails."""
        try:
            photo = self._restored(read_photo(read_file(job.uri), self._max_pixels), job.id)
            _write(job.target, encode_photo(photo, PurePosixPath(job.target).suffix))
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is this photo's alone
            text = " ".join(str(error).split()) or "no message"
            return text if isinstance(error, GmdError) else f"{type(error).__name__}: {text}"
        return None

    def _restored(self, photo: Photo, key: str) -> Photo:
        alpha = photo.alpha
        if alpha is not None:
            size = [side * self._student.scale for side in alpha.shape]
            # A flat one (most are: fully opaque) needs no network, and must not get a pattern from one.
            flat = alpha.min() == alpha.max()
            gray = np.repeat(alpha[..., None], 3, axis=2)
            alpha = np.full(size, alpha.flat[0], np.float32) if flat else self._run(gray, key).mean(2)
        return replace(photo, rgb=self._run(photo.rgb, key), alpha=alpha)

    def _run(self, image: np.ndarray, key: str) -> np.ndarray:
        from gmd_ray.images.encode import to_images, to_tensor

        restored = to_images(self._student.restore(to_tensor([image]), [key]))[0]
        if not np.isfinite(restored).all():
            raise DataError("the restored image has values that are not finite")
        return restored


class RestorerActor:
    """A `Restorer` in a Ray Data pool. Rows: id, uri, target in; id, error out."""

    def __init__(self, student: StudentConfig, max_pixels: int) -> None:
        self._restorer: Restorer | None = None
        self._failure = ""
        try:
            self._restorer = Restorer(student, max_pixels)
        except GmdError as error:
            self._failure = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._restorer is None:
            # As a row: Ray would start an actor that fails again and again.
            return {"id": row["id"], "error": "", "fatal": self._failure}
        return {"id": row["id"], "error": self._restorer(_Job(**row)) or "", "fatal": ""}


def _plan(source: str, out: str, suffix: str, ext: str) -> list[_Job]:
    if ext != AUTO and f".{ext}" not in FORMATS:
        raise ConfigError(f"--ext {ext}: known: auto, {', '.join(known.removeprefix('.') for known in FORMATS)}")
    jobs = []
    for file in _files(source):
        path = PurePosixPath(file.id)
        own = path.suffix.lower()
        ending = f".{ext}" if ext != AUTO else path.suffix if own in FORMATS else _INSTEAD
        jobs.append(_Job(file.id, file.uri, f"{out.rstrip('/')}/{path.with_name(f'{path.stem}{suffix}{ending}')}"))
    target, n = Counter(job.target for job in jobs).most_common(1)[0]
    if n > 1:
        names = ", ".join(job.id for job in jobs if job.target == target)
        raise ConfigError(f"{names} would all be written to {target}: restore them apart, or leave out --ext")
    if any(_place(job.target) == _place(job.uri) for job in jobs):
        raise ConfigError(f"{out}: results would take the place of their sources; give another folder, or --suffix")
    if f"{_place(out)}/".startswith(f"{_place(source)}/"):
        raise ConfigError(f"{out} lies within {source}: a second run would restore its own results")
    return jobs


def _files(source: str) -> list[ImageFile]:
    if "://" not in source and Path(source).expanduser().is_file():
        file = Path(source).expanduser()
        return [ImageFile(file.name, str(file.absolute()))]
    return list_images(source)


def _place(url: str) -> str:
    """Comparable form of a path or URL."""
    return url.rstrip("/") if "://" in url else open_filesystem(url)[1]


def _write(target: str, data: bytes) -> None:
    filesystem, path = open_filesystem(target)
    put(filesystem, path, data)


def _local_rows(cfg: Config, jobs: Iterable[_Job]) -> Iterator[dict[str, Any]]:
    restorer = Restorer(cfg.student, cfg.target.max_pixels)
    for job in jobs:
        yield {"id": job.id, "error": restorer(job)}


def _ray_rows(cfg: Config, jobs: list[_Job]) -> Iterator[dict[str, Any]]:
    import ray.data
    from ray.exceptions import RayError

    from gmd_ray.generation.pools import actor_pool

    pool = cfg.student.pool
    rows = [vars(job) for job in jobs]
    # A block is what a worker's death repeats: small ones, and enough of them for every actor.
    blocks = min(len(rows), max(4 * pool.max, len(rows) // 16))
    with warnings.catch_warnings():
        # The bounds on restarts leave in Ray 2.64; until then this pool has them, and pyproject.toml holds Ray below.
        warnings.filterwarnings("ignore", message=".*ray_remote_args", category=DeprecationWarning)
        stream = ray.data.from_items(rows, override_num_blocks=blocks).map(
            RestorerActor,
            fn_constructor_args=(replace(cfg.student, path=located(cfg.student.path)), cfg.target.max_pixels),
            max_restarts=2,
            max_task_retries=2,
            **actor_pool(pool),
        )
    stream.context.enable_progress_bars = False
    stream.context.issue_detectors_config.detectors = []
    try:
        for row in stream.iter_rows():
            if row["fatal"]:
                raise ModelError(row["fatal"])
            yield row
    except RayError as error:
        raise GmdError(f"restoring broke: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
