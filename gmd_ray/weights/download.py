"""Downloading one file of a model, so that only whole and checked files ever bear their names."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pyarrow import fs

from gmd_ray.errors import ModelError
from gmd_ray.storage import with_retries
from gmd_ray.weights.listing import StoredFile, read_tag

log = logging.getLogger("gmd_ray")

CHUNK = 16 << 20
"""Bytes of a request: on an object store each takes a round trip."""
AHEAD = 4
"""Requests of a file under way at once; they and the chunk being written take 80 MiB of memory."""


def download(
    filesystem: fs.FileSystem, path: str, file: StoredFile, place: Path, part: Path, tell: Callable[[int], None]
) -> str:
    """Download a file to `part`, check it, and move it to `place`.

    A part that a killed download left is continued where the SHA-256 is known, and begun anew where it is not. Bytes
    that arrive damaged are downloaded once more.

    Args:
        filesystem, path: where the file lies.
        file: its size, and its SHA-256 or the store's tag.
        place: the path to fill; its folder must exist.
        part: a path on the same disk.
        tell: called with the number of bytes that have come since the last call.

    Returns:
        The file's SHA-256.

    Raises:
        ModelError: the file in the store is not the one that was listed.
        OSError: the store or the disk fails.
    """
    if file.sha256 is None:
        part.unlink(missing_ok=True)
    for last in (False, True):
        sha256, size = _fill(filesystem, path, file.size, part, tell)
        fault = _fault(filesystem, path, file, sha256, size)
        if fault is None:
            os.replace(part, place)
            return sha256
        part.unlink()
        if last:
            raise ModelError(f"{path}: {fault}; copy it to the store again")
        log.warning("%s: %s; it is downloaded once more", path, fault)
    raise AssertionError


def sha256_of(path: Path) -> str:
    """The SHA-256 of a local file, 64 digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fault(filesystem: fs.FileSystem, path: str, file: StoredFile, sha256: str, size: int) -> str | None:
    if size != file.size:
        return f"{size} of its {file.size} bytes came"
    if file.sha256 is not None:
        return None if sha256 == file.sha256 else f"its SHA-256 is {sha256[:16]}..., not {file.sha256[:16]}..."
    return None if read_tag(filesystem, path) == file.tag else "it was replaced during the download"


def _fill(filesystem: fs.FileSystem, path: str, size: int, part: Path, tell: Callable[[int], None]) -> tuple[str, int]:
    """Append to `part` what it lacks of a file of `size` bytes; returns the SHA-256 and the size of the whole part."""
    digest = hashlib.sha256()
    with part.open("a+b") as output:
        if output.tell() > size:
            output.truncate(0)
        output.seek(0)
        while data := output.read(CHUNK):
            digest.update(data)
        tell(output.tell())
        for data in _chunks(filesystem, path, output.tell(), size):
            output.write(data)
            digest.update(data)
            tell(len(data))
        output.flush()
        os.fsync(output.fileno())
        return digest.hexdigest(), output.tell()


def _chunks(filesystem: fs.FileSystem, path: str, start: int, size: int) -> Iterator[bytes]:
    """Read a file from `start` on, with a few requests under way at once."""
    with filesystem.open_input_file(path) as stream, ThreadPoolExecutor(AHEAD, "gmd-weights") as pool:

        def read(offset: int) -> bytes:
            return with_retries(lambda: stream.read_at(min(CHUNK, size - offset), offset))

        waiting: deque[Future[bytes]] = deque()
        for offset in range(start, size, CHUNK):
            waiting.append(pool.submit(read, offset))
            if len(waiting) == AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
