"""The worker of `restore`: reads photos, restores them with one student, and writes the results."""

from __future__ import annotations

import errno
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from gmd_ray.config import StudentConfig
from gmd_ray.errors import DataError, GmdError
from gmd_ray.hashing import content_digest
from gmd_ray.images.files.photo import Photo, encode_photo, read_photo
from gmd_ray.images.listing import read_file
from gmd_ray.storage import open_filesystem, put

log = logging.getLogger("gmd_ray")

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of writing that are not caused by one photo and would also fail the next."""


@dataclass(frozen=True)
class RestoreJob:
    """A photo to restore, as sent to a worker."""

    id: str
    """Path of the photo relative to its folder."""
    uri: str
    """Path or URL of the photo."""
    name: str
    """Path of the result relative to the output folder."""


class Restorer:
    """Restores photos with one student; photos of one size are processed together."""

    def __init__(self, student: StudentConfig, max_pixels: int) -> None:
        import torch

        from gmd_ray.students import load_student

        torch.set_num_threads(max(1, int(student.pool.num_cpus)))
        self._student = load_student(student)
        self._max_pixels = max_pixels
        self.scale, self.fingerprint = self._student.scale, self._student.fingerprint

    def __call__(self, jobs: Sequence[RestoreJob], out: str) -> list[dict[str, Any]]:
        """Restore photos and write the results below `out`.

        Returns:
            a row for each photo: `id`, and `error`, the reason of a failure on one line. If `error` is empty, also
            `digest`, the SHA-256 of the photo's bytes, and `size`, the bytes of the result.

        Raises:
            GmdError: the output folder can no longer be written, for example because the disk is full.
        """
        rows: dict[str, dict[str, Any]] = {}
        photos: dict[RestoreJob, tuple[Photo, str]] = {}
        for job in jobs:
            try:
                data = read_file(job.uri)
                photos[job] = read_photo(data, self._max_pixels), content_digest(data)
            except Exception as error:  # noqa: BLE001 -- any failure concerns this photo only and becomes its row
                rows[job.id] = _failed(job, error)
        restored = self._restored_together({job: photo.rgb for job, (photo, _) in photos.items()})
        for job, (photo, digest) in photos.items():
            try:
                made = self.restore_photo(photo, job.id, restored.get(job))
                code = encode_photo(made, PurePosixPath(job.name).suffix)
                filesystem, base = open_filesystem(out)
                put(filesystem, f"{base}/{job.name}", code)
                rows[job.id] = {"id": job.id, "error": "", "digest": digest, "size": len(code)}
            except Exception as error:
                if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                    raise GmdError(f"{out}: cannot be written any more: {error.strerror}") from error
                rows[job.id] = _failed(job, error)
        return [rows[job.id] for job in jobs]

    def restore_photo(self, photo: Photo, key: str, rgb: np.ndarray | None = None) -> Photo:
        """Restore one photo; its metadata are kept.

        Args:
            photo: the photo.
            key: its id, which seeds a student that draws noise.
            rgb: the restored samples (H * scale, W * scale, 3), where they are known already.

        Raises:
            DataError: the student made no image of the right size, or one with values that are not finite.
        """
        if rgb is None:
            rgb = self._run([photo.rgb], [key])[0]
        return replace(photo, rgb=rgb, alpha=self._alpha(photo.alpha, key))

    def _restored_together(self, images: dict[RestoreJob, np.ndarray]) -> dict[RestoreJob, np.ndarray]:
        """Restore images (H, W, 3) of equal size together. Groups that fail are left out, to be tried one by one."""
        by_shape: dict[tuple[int, ...], list[RestoreJob]] = defaultdict(list)
        for job, image in images.items():
            by_shape[image.shape].append(job)
        restored: dict[RestoreJob, np.ndarray] = {}
        for alike in by_shape.values():
            if len(alike) > 1:
                try:
                    made = self._run([images[job] for job in alike], [job.id for job in alike])
                    restored |= dict(zip(alike, made, strict=True))
                except Exception:
                    log.debug("%d photos cannot be restored together", len(alike), exc_info=True)
        return restored

    def _alpha(self, alpha: np.ndarray | None, key: str) -> np.ndarray | None:
        if alpha is None:
            return None
        # Most alpha channels are constant (fully opaque). They need no network, which might add a pattern.
        if alpha.min() == alpha.max():
            return np.full([side * self.scale for side in alpha.shape], alpha.flat[0], np.float32)
        return self._run([np.repeat(alpha[..., None], 3, axis=2)], [key])[0].mean(2)

    def _run(self, images: list[np.ndarray], keys: list[str]) -> list[np.ndarray]:
        from gmd_ray.images.files.encode import to_images, to_tensor

        restored = to_images(self._student.restore(to_tensor(images), keys))
        height, width = (side * self.scale for side in images[0].shape[:2])
        if len(restored) != len(images) or any(image.shape != (height, width, 3) for image in restored):
            shape = " x ".join(map(str, restored[0].shape)) if restored else "nothing"
            raise DataError(
                f"the student made {len(restored)} images of {shape}, not {len(images)} of {height} x {width} x 3"
            )
        if not all(np.isfinite(image).all() for image in restored):
            raise DataError("the restored image has values that are not finite")
        return restored


class RestorerActor:
    """A `Restorer` in a Ray Data pool.

    Input rows have `batch`, the jobs as JSON. Output rows have `rows`, the outcomes as JSON, and `fatal`, the message
    of an error that ends the whole command, or "".
    """

    def __init__(self, student: StudentConfig, max_pixels: int, out: str) -> None:
        self._restorer: Restorer | None = None
        self._failure, self._out = "", out
        try:
            self._restorer = Restorer(student, max_pixels)
        except GmdError as error:
            self._failure = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._restorer is None:
            # Returned as a row, because Ray would restart an actor whose constructor raises, again and again.
            return {"rows": "[]", "fatal": self._failure}
        try:
            rows = self._restorer([RestoreJob(**job) for job in json.loads(row["batch"])], self._out)
        except GmdError as error:
            return {"rows": "[]", "fatal": str(error)}
        return {"rows": json.dumps(rows), "fatal": ""}


def _failed(job: RestoreJob, error: Exception) -> dict[str, Any]:
    text = " ".join(str(error).split()) or "no message"
    return {"id": job.id, "error": text if isinstance(error, GmdError) else f"{type(error).__name__}: {text}"}
