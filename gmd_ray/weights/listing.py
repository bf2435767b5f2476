"""The files of a model at a URL: names, sizes and checksums, as its folder and its list of checksums give them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from pyarrow import fs

from gmd_ray.errors import ModelError, StorageError
from gmd_ray.hashing import short_digest
from gmd_ray.storage import get, map_threads, open_filesystem, why_storage_failed

SUMS = "SHA256SUMS"
"""File of a model's folder that lists the SHA-256 of the others, in the format of the program sha256sum."""
SIDECAR = ".sha256"
"""Ending of the file that does the same for a single file beside it."""

_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


@dataclass(frozen=True)
class StoredFile:
    """One file of a model."""

    name: str
    """Path below the model's folder, with slashes; for a model of one file the file's name."""
    size: int
    """Size in bytes."""
    sha256: str | None = None
    """64 digits; None where no list of checksums has it."""
    tag: str | None = None
    """The store's mark of this version (ETag, or else the time of change), where there is no checksum."""


@dataclass(frozen=True)
class StoredModel:
    """A model's files at one moment."""

    name: str
    """Last part of the URL's path."""
    folder: bool
    """True for a folder, False for a single file."""
    files: tuple[StoredFile, ...]
    """Sorted by name, without the list of checksums."""

    @property
    def identity(self) -> str:
        """The name and a digest of all names, sizes and checksums (or tags). It does not depend on the URL."""
        facts = (f"{file.name} {file.size} {file.sha256 or file.tag}" for file in self.files)
        safe = re.sub(r"[^\w.-]", "_", self.name)[:64]
        return f"{safe}-{short_digest(self.name, str(self.folder), *facts)}"

    def chosen(self, only: Sequence[str] = ("*",), but: Sequence[str] = ()) -> tuple[StoredFile, ...]:
        """The files whose names fit a pattern of `only` and none of `but`; a `*` may stand for slashes too."""
        return tuple(file for file in self.files if _fits(file.name, only) and not _fits(file.name, but))

    def with_checksums(self, sums: dict[str, str]) -> StoredModel:
        """A copy in which the files named by `sums` (name -> SHA-256) have those checksums."""
        files = (replace(file, sha256=sums.get(file.name, file.sha256)) for file in self.files)
        return replace(self, files=tuple(files))

    def as_json(self) -> dict[str, Any]:
        """The model as plain values, which `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> StoredModel:
        """Read what `as_json` gave.

        Raises:
            KeyError, TypeError: the values are not of that form.
        """
        return cls(value["name"], value["folder"], tuple(StoredFile(**file) for file in value["files"]))


def list_model(url: str) -> StoredModel:
    """List a model's files, with checksums from its `SHA256SUMS` (a single file: from `NAME.sha256` beside it).

    Args:
        url: folder or file, as `storage.open_filesystem` takes it.

    Raises:
        ModelError: there is nothing, or the list of checksums does not fit the files.
        StorageError: the store cannot be reached, or refuses.
        DataError: a scheme that is unknown, or whose driver is not installed.
    """
    filesystem, path = open_filesystem(url)
    try:
        return _list(filesystem, path.rstrip("/"), url)
    except OSError as error:
        raise StorageError(f"{url}: cannot be listed: {why_storage_failed(error)}") from error


def _list(filesystem: fs.FileSystem, path: str, url: str) -> StoredModel:
    [info] = filesystem.get_file_info([path])
    name = PurePosixPath(path).name or "model"
    if info.type == fs.FileType.NotFound:
        raise ModelError(f"{url}: no such file or folder")
    if info.type == fs.FileType.File:
        sums = _read_sums(filesystem, path + SIDECAR, url)
        found = {name: info}
    else:
        sums = _read_sums(filesystem, f"{path}/{SUMS}", url)
        entries = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        found = {_below(entry.path, path): entry for entry in entries if entry.type == fs.FileType.File}
        found.pop(SUMS, None)
        if not found:
            raise ModelError(f"{url}: an empty folder")
        if absent := sorted(set(sums) - set(found)):
            raise ModelError(f"{url}: {SUMS} names {absent[0]}, which is not there; copy the folder again")
    for climbing in (key for key in (name, *found) if ".." in PurePosixPath(key).parts):
        raise ModelError(f"{url}: a file of the name {climbing!r}, which leads out of a folder; rename it")
    unsummed = [name for name in found if name not in sums]
    tags = dict(zip(unsummed, map_threads(lambda name: _tag(filesystem, found[name]), unsummed), strict=True))
    files = [StoredFile(name, found[name].size, sums.get(name), tags.get(name)) for name in sorted(found)]
    return StoredModel(name, info.type != fs.FileType.File, tuple(files))


def read_tag(filesystem: fs.FileSystem, path: str) -> str:
    """The store's mark of the present version of a file: its ETag, or else its time of change in nanoseconds.

    Raises:
        OSError: the file is gone, or the store cannot be reached.
    """
    [info] = filesystem.get_file_info([path])
    return _tag(filesystem, info)


def format_sums(sums: Iterable[tuple[str, str]]) -> bytes:
    """A list of checksums as the program sha256sum writes it.

    Args:
        sums: (name, SHA-256) of each file.
    """
    return "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(sums)).encode()


def _tag(filesystem: fs.FileSystem, info: fs.FileInfo) -> str:
    facts: dict[str, Any] = {}
    if isinstance(filesystem, fs.PyFileSystem):
        facts = filesystem.handler.fs.info(info.path)
    elif not isinstance(filesystem, fs.LocalFileSystem):
        with filesystem.open_input_stream(info.path) as stream:  # asks for the headers alone
            facts = dict(stream.metadata() or {})
    tag: Any = {key.lower(): value for key, value in facts.items()}.get("etag")
    text = tag.decode() if isinstance(tag, bytes) else str(tag or "")
    return text.strip('"') or str(info.mtime_ns)


def _read_sums(filesystem: fs.FileSystem, path: str, url: str) -> dict[str, str]:
    """Name -> SHA-256 in lower case; empty without a list. The only line of a single file's list may be without name.

    Raises:
        ModelError: a line of another form.
    """
    data = get(filesystem, path)
    if data is None:
        return {}
    sums = {}
    for line in data.decode("utf-8", errors="replace").splitlines():
        text = line.strip("\r\ufeff ")
        if not text:
            continue
        if path.endswith(SIDECAR) and re.fullmatch(r"[0-9a-fA-F]{64}", text.split(maxsplit=1)[0]):
            # Its name may be the path that the file had where sha256sum ran.
            sums[PurePosixPath(path).name.removesuffix(SIDECAR)] = text[:64].lower()
        elif (match := _LINE.fullmatch(text)) is not None and not path.endswith(SIDECAR):
            sums[match[2].removeprefix("./")] = match[1].lower()
        else:
            raise ModelError(f"{url}: {PurePosixPath(path).name} has a line that sha256sum does not write: {text[:60]}")
    return sums


def _below(path: str, folder: str) -> str:
    return path[len(folder) :].lstrip("/")


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
