"""The copy of one model on a node: what it lacks, the download under a lock, and the record of its checksums."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from pyarrow import fs

from gmd_ray.errors import ConfigError, ModelError, StorageError
from gmd_ray.hashing import short_digest
from gmd_ray.progress import Progress
from gmd_ray.storage import open_filesystem, replacing, why_storage_failed
from gmd_ray.weights.download import download, sha256_of
from gmd_ray.weights.listing import StoredFile, StoredModel

log = logging.getLogger("gmd_ray")

CACHE = "GMD_RAY_CACHE"
"""Variable that names the cache's folder; by default `gmd_ray` in the user's cache folder."""
FILES_AT_ONCE = 4
"""Files of a model that are downloaded at once."""
SPARE = 64 << 20
"""Bytes of the cache's disk that stay free."""


class NodeCopy:
    """The copy of one model in the cache, which may lack files."""

    def __init__(self, cache: Path, url: str, model: StoredModel, identity: str) -> None:
        self.cache, self.url, self.model, self.identity = cache, url, model, identity
        self.root = self.cache / identity
        self.place = self.root / model.name

    def path(self, file: StoredFile) -> Path:
        return self.place / file.name if self.model.folder else self.place

    def missing(self, files: Sequence[StoredFile]) -> list[StoredFile]:
        """Those that are not there with their size. Whatever is there under its name was checked before it got it."""
        return [file for file in files if _size(self.path(file)) != file.size]

    def fetch(self, files: Sequence[StoredFile], away: str) -> None:
        """Download what is missing, unless another process does so meanwhile."""
        if away:
            raise StorageError(f"{away}; {self.cache} lacks {self.missing(files)[0].name} of it")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.cache / f"{self.identity}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.info("%s: another process downloads it to %s; waiting for it", self.url, self.root)
                lock.acquire()
        except OSError as error:
            raise ConfigError(
                f"{self.url}: {self.cache} lacks {self.missing(files)[0].name} of it and cannot be written "
                f"({why_storage_failed(error)}); set {CACHE} to a folder on a disk of this node"
            ) from error
        try:
            if missing := self.missing(files):
                self._download(missing)
        finally:
            lock.release()

    def remember(self) -> None:
        """Let this copy be the one that is used where the store cannot be reached."""
        pointer = pointer_of(self.cache, self.url)
        with contextlib.suppress(OSError):  # a cache that can only be read
            if not pointer.is_file() or pointer.read_text(encoding="utf-8") != self.identity:
                with replacing(pointer) as draft:
                    draft.write_text(self.identity, encoding="utf-8")

    def remove_damaged(self) -> list[str]:
        """Remove files whose SHA-256 is not the one that they had when they were downloaded; returns their names."""
        known = {file.name: file.sha256 for file in read_listing(self.cache, self.identity).files if file.sha256}
        judged = [file for file in self.model.files if file.name in known]
        damaged = [file for file in judged if sha256_of(self.path(file)) != known[file.name]]
        try:
            for file in damaged:
                self.path(file).unlink()
        except OSError as error:
            raise ConfigError(
                f"{self.path(damaged[0])}: damaged, and it cannot be removed ({why_storage_failed(error)})"
            ) from error
        return [file.name for file in damaged]

    def _download(self, files: Sequence[StoredFile]) -> None:
        """Download files, with the lock held."""
        for file in files:
            if (size := _size(self.path(file))) is not None:
                log.warning(
                    "%s: %s has %d bytes instead of %d; it is downloaded again",
                    self.url, self.path(file), size, file.size,
                )  # fmt: skip
        parts = self.cache / f"{self.identity}.parts"
        filesystem, path = open_filesystem(self.url)
        total = sum(file.size for file in files)
        try:
            parts.mkdir(exist_ok=True)
            self._refuse_small_disk(total - sum(_size(self._part(parts, file)) or 0 for file in files))
            self._record({})
            with Progress(f"fetching {self.model.name}", _megabytes(total), unit="MB") as progress:
                self._download_each(files, filesystem, path, parts, _Megabytes(progress))
            shutil.rmtree(parts, ignore_errors=True)
        except ModelError:
            raise
        except OSError as error:
            raise StorageError(f"{self.url}: cannot be fetched to {self.root}: {why_storage_failed(error)}") from error

    def _download_each(
        self, files: Sequence[StoredFile], filesystem: fs.FileSystem, path: str, parts: Path, tell: _Megabytes
    ) -> None:
        def one(file: StoredFile) -> None:
            place = self.path(file)
            place.parent.mkdir(parents=True, exist_ok=True)
            there = f"{path.rstrip('/')}/{file.name}" if self.model.folder else path
            sha256 = download(filesystem, there, file, place, self._part(parts, file), tell)
            with recording:
                self._record({file.name: sha256})

        recording = threading.Lock()
        with ThreadPoolExecutor(FILES_AT_ONCE, "gmd-weights") as pool:
            try:
                for _ in pool.map(one, files):
                    pass
            except BaseException:  # Ctrl-C too: the other threads would go on to the ends of their files
                tell.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _record(self, sums: dict[str, str]) -> None:
        """Write the listing with the SHA-256 of downloaded files, these and those of earlier calls."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none yet
            earlier = read_listing(self.cache, self.identity)
            sums = {file.name: file.sha256 for file in earlier.files if file.sha256} | sums
        text = json.dumps(self.model.with_checksums(sums).as_json(), indent=1)
        with replacing(self.cache / f"{self.identity}.json") as draft:
            draft.write_text(text, encoding="utf-8")

    def _part(self, parts: Path, file: StoredFile) -> Path:
        return parts / short_digest(file.name)

    def _refuse_small_disk(self, needed: int) -> None:
        free = shutil.disk_usage(self.cache).free - SPARE
        if needed > free:
            raise ConfigError(
                f"{self.url}: {_gb(needed)} GB are to be fetched, and {self.cache} has room for {_gb(max(0, free))}; "
                f"delete copies that are no longer used there, or set {CACHE} to a larger disk of this node"
            )


class _Megabytes:
    """Adds bytes, from several threads, to a progress in megabytes."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._bytes, self._lock, self._stopped = progress, 0, threading.Lock(), False

    def __call__(self, more: int) -> None:
        if self._stopped:
            raise InterruptedError("stopped")
        with self._lock:
            self._bytes += more
            self._progress.update(_megabytes(self._bytes) - self._progress.done)

    def stop(self) -> None:
        """Let every download end at its next chunk."""
        self._stopped = True


def _megabytes(size: int) -> int:
    return -(-size // 1_000_000)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _gb(size: float) -> str:
    return f"{size / 1e9:,.3g}"


def pointer_of(cache: Path, url: str) -> Path:
    """The file that holds the identity of the copy that is used where the store of `url` cannot be reached."""
    return cache / "urls" / short_digest(_without_options(url))


def read_listing(cache: Path, identity: str) -> StoredModel:
    """Read the listing of a copy.

    Raises:
        OSError: there is none.
        ValueError, KeyError, TypeError: it cannot be read.
    """
    return StoredModel.from_json(json.loads((cache / f"{identity}.json").read_text(encoding="utf-8")))


def _without_options(url: str) -> str:
    """The URL without user, password and options, which may change while the model stays."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
