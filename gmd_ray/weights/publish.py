"""Copying a model to a store, with the list of checksums by which every node checks what it downloads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pyarrow import fs

from gmd_ray.errors import ConfigError, ModelError, StorageError
from gmd_ray.progress import Progress
from gmd_ray.storage import open_filesystem, put, replacing, why_storage_failed
from gmd_ray.weights.download import CHUNK, sha256_of
from gmd_ray.weights.listing import SIDECAR, SUMS, format_sums, list_model


def publish(source: Path, url: str) -> int:
    """Copy a model's file or folder to a URL or path, and write its list of checksums last.

    Files that are there already with the same SHA-256, by the list that lies there, are not copied again, and other
    files that the list names stay in it. Folders whose names begin with a dot (`.git`, `.cache`) are left out.

    Args:
        source: a file, or a folder.
        url: the file's or folder's own destination, not the folder around it.

    Returns:
        The number of files that were copied.

    Raises:
        ConfigError: `source` is not there or empty, or cannot be read.
        StorageError: the destination cannot be reached or written.
    """
    files = dict(_files(source))
    if not files:
        raise ConfigError(f"{source}: no such file or folder, or an empty one")
    filesystem, path = open_filesystem(url)
    path = path.rstrip("/")
    there = _listed(url)
    sums = {name: sha256 for name, (_, sha256) in there.items()} if source.is_dir() else {}
    copied = 0
    total = sum(file.stat().st_size for file in files.values())
    with Progress(f"copying {source.name}", -(-total // 1_000_000), unit="MB") as progress:
        done = 0
        for name, file in files.items():
            size = file.stat().st_size
            key = name if source.is_dir() else path.rpartition("/")[2]
            if key not in there or there[key] != (size, sha256_of(file)):
                to = f"{path}/{name}" if source.is_dir() else path
                try:
                    sums[key] = _copy(file, filesystem, to)
                except OSError as error:
                    raise StorageError(f"{url}: {key} cannot be written: {why_storage_failed(error)}") from error
                copied += 1
            else:
                sums[key] = there[key][1]
            done += size
            progress.update(-(-done // 1_000_000) - progress.done)
        try:
            put(filesystem, f"{path}/{SUMS}" if source.is_dir() else path + SIDECAR, format_sums(sums.items()))
        except OSError as error:
            raise StorageError(f"{url}: its checksums cannot be written: {why_storage_failed(error)}") from error
    return copied


def _files(source: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of the model's files, sorted by name."""
    if source.is_file():
        yield source.name, source
    for file in sorted(source.rglob("*")) if source.is_dir() else ():
        name = file.relative_to(source)
        hidden = any(part.startswith(".") for part in name.parts[:-1])
        if file.is_file() and not hidden and name.as_posix() != SUMS:
            yield name.as_posix(), file


def _listed(url: str) -> dict[str, tuple[int, str]]:
    """Name -> size and SHA-256 of the files at the destination that its list of checksums names."""
    try:
        model = list_model(url)
    except ModelError:  # nothing there, or a list that does not fit and is written anew
        return {}
    return {file.name: (file.size, file.sha256) for file in model.files if file.sha256 is not None}


def _copy(file: Path, filesystem: fs.FileSystem, path: str) -> str:
    """Copy a local file; returns the SHA-256 of what was copied."""
    if isinstance(filesystem, fs.LocalFileSystem):
        with replacing(Path(path)) as draft, draft.open("wb") as output:
            sha256 = _pump(file, output)
            os.fsync(output.fileno())
        return sha256
    try:
        stream = filesystem.open_output_stream(path)
    except FileNotFoundError:  # a filesystem with directories
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        stream = filesystem.open_output_stream(path)
    with stream:
        return _pump(file, stream)


def _pump(file: Path, output: IO[bytes]) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as source:
        while data := source.read(CHUNK):
            output.write(data)
            digest.update(data)
    output.flush()
    return digest.hexdigest()
