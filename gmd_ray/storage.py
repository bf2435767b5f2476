"""Files on any filesystem that pyarrow or fsspec knows: opening a URL, whole files, local copies, retries."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from pyarrow import fs

from gmd_ray.errors import ConfigError, DataError, StorageError
from gmd_ray.text import one_line

Item = TypeVar("Item")
T = TypeVar("T")
PAUSES_S = (1.0, 5.0)
"""Seconds between the attempts of `with_retries`."""
TEMPORARY = ".tmp-"
"""Prefix of files that are being written; Parquet scans skip names that begin with a dot."""
READERS = 32
"""Threads of `map_threads`: on an object store each file that is opened costs a round trip."""
CHUNK = 8 << 20
"""Bytes of a large file that are copied at a time."""
ARROW_SCHEMES = ("s3", "gs", "gcs")
"""URL schemes that pyarrow opens by itself; fsspec opens the others."""


def map_threads(work: Callable[[Item], T], items: Iterable[Item]) -> Iterator[T]:
    """Apply `work` to each item in `READERS` threads; yields the results in the order of the items."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="gmd-files") as pool:
        yield from pool.map(work, items)


def absolute(url: str) -> str:
    """Make a relative local path absolute, since workers need not share the driver's directory; URLs stay."""
    return url if "://" in url else os.path.abspath(url)


def absolute_if_exists(path: str | None) -> str | None:
    """Make a path absolute where it exists on this machine; a hub id and None stay."""
    return os.path.abspath(path) if path is not None and os.path.exists(path) else path


def is_remote(url: str) -> bool:
    """Tell whether a path or URL lies elsewhere than on the local filesystem."""
    return "://" in url and url.partition("://")[0].lower() not in ("file", "local")


def open_filesystem(url: str) -> tuple[fs.FileSystem, str]:
    """Open the filesystem of a path or URL; returns it and the path on it.

    Args:
        url: a local path (`~` allowed), `file://`, `s3://` or `gs://` as pyarrow reads them (percent-encoded, options
            such as `?endpoint_override=...` at the end), or any other scheme of fsspec, taken literally.
            Keep credentials in the environment: URLs are written to the pair store and to logs.

    Raises:
        ConfigError: for an empty path.
        DataError: for a scheme that is unknown, whose driver is not installed, or whose server cannot be reached.
    """
    if not url.strip() or url in ("file://", "local://"):
        raise ConfigError("an empty path: give a folder, or `.` for the one you are in")
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if not scheme:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(url))
    if scheme == "file":
        return fs.LocalFileSystem(), os.path.abspath(unquote(url[len("file://") :]))
    if scheme == "local":  # fsspec's other name of it; its own driver would walk in circles of links
        return fs.LocalFileSystem(), os.path.abspath(url[len("local://") :])
    if scheme in ARROW_SCHEMES:
        parts = urlsplit(url)
        query = f"?{parts.query}" if parts.query else ""
        filesystem, bucket = _arrow_filesystem(f"{scheme}://{parts.netloc}{query}")
        return filesystem, f"{bucket}/{unquote(parts.path).strip('/')}".rstrip("/")
    return _fsspec_filesystem(url)


@functools.lru_cache(maxsize=16)
def _arrow_filesystem(url: str) -> tuple[fs.FileSystem, str]:
    """Open a filesystem of pyarrow's own.

    The result is cached: opening one may look up a bucket's region, and there is one call for each image.
    """
    try:
        return fs.FileSystem.from_uri(url)
    except OSError as error:
        raise StorageError(f"{url}: cannot be opened: {why_storage_failed(error)}") from error
    except ValueError as error:  # ArrowInvalid among them
        raise DataError(f"{url}: cannot be opened: {one_line(error)}") from error


def _fsspec_filesystem(url: str) -> tuple[fs.FileSystem, str]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError, TypeError, FileNotFoundError) as error:  # the URL, or what it needs here
        raise DataError(f"{url}: cannot be opened: {one_line(error)}") from error
    except Exception as error:  # drivers raise what their own libraries raise (ftplib, paramiko, botocore, ...)
        raise StorageError(f"{url}: cannot be opened: {why_storage_failed(error)}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def why_storage_failed(error: Exception) -> str:
    """Put the error of a storage driver on one line, with its type where it is no OSError."""
    text = " ".join(str(error).split())
    return text if text and isinstance(error, OSError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def put(filesystem: fs.FileSystem, path: str, data: bytes | memoryview) -> None:
    """Write a file so that no reader ever sees a part of it, replacing one of the same name.

    An object store shows an object once it is complete; a local file is written beside its place, synced and renamed.
    Remote filesystems that show a file while it grows (HDFS, SFTP, SMB through fsspec) give no such protection: what a
    killed writer leaves there is found by `gmd-ray verify`.
    """
    if isinstance(filesystem, fs.LocalFileSystem):
        with replacing(Path(path)) as draft, draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return
    with _output_stream(filesystem, path) as stream:
        stream.write(data)


def _output_stream(filesystem: fs.FileSystem, path: str) -> Any:
    try:
        return filesystem.open_output_stream(path)
    except FileNotFoundError:  # a filesystem with directories; an object store has none to be made
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        return filesystem.open_output_stream(path)


@contextlib.contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """Let the block write a local file beside its place, and rename it to `path` when the block ends.

    A reader sees the old file or the whole new one. Where the block raises, the old file stays and the new one is
    removed. The folder of `path` is made.

    Args:
        suffix: ending of the file that is written, for writers that choose their format by it.

    Yields:
        the path to write to, in the same folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}{suffix}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def with_retries(work: Callable[[], T]) -> T:
    """Call `work`, and call it again, twice at most, where it raises an OSError: a network may recover in a moment.

    Errors that do not pass by waiting (no such file, no permission) are raised at once.
    """
    for pause in PAUSES_S:
        try:
            return work()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
            raise
        except OSError:
            time.sleep(pause)
    return work()


def get(filesystem: fs.FileSystem, path: str) -> bytes | None:
    """Read a whole file; None where there is none."""
    try:
        with filesystem.open_input_stream(path) as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def read_bytes(url: str) -> bytes | None:
    """`get` by URL; failures of storage elsewhere are StorageErrors, after three tries."""
    filesystem, path = open_filesystem(url)
    with _told(url, "read"):
        return with_retries(lambda: get(filesystem, path)) if is_remote(url) else get(filesystem, path)


def write_bytes(url: str, data: bytes) -> None:
    """`put` by URL; failures of storage elsewhere are StorageErrors, after three tries."""
    filesystem, path = open_filesystem(url)
    with _told(url, "written"):
        with_retries(lambda: put(filesystem, path, data)) if is_remote(url) else put(filesystem, path, data)


@contextlib.contextmanager
def _told(url: str, what: str) -> Iterator[None]:
    """Name the URL in an error of storage elsewhere."""
    try:
        yield
    except OSError as error:
        if not is_remote(url):
            raise
        raise StorageError(f"{url}: cannot be {what}: {why_storage_failed(error)}") from error


def put_json(filesystem: fs.FileSystem, path: str, value: Any) -> None:
    """`put` a value as indented JSON with sorted keys."""
    put(filesystem, path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """The bytes of the file that `put_json` writes."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def remove(filesystem: fs.FileSystem, path: str) -> None:
    """Delete a file that may be gone already."""
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(path)


def is_file(url: str) -> bool:
    """Tell whether there is a file at a path or URL."""
    return _kind(url) == fs.FileType.File


def is_folder(url: str) -> bool:
    """Tell whether there is a folder at a path or URL; on an object store, a name that others begin with."""
    return _kind(url) == fs.FileType.Directory


def remove_file(url: str) -> None:
    """`remove` by URL."""
    remove(*open_filesystem(url))


def _kind(url: str) -> fs.FileType:
    filesystem, path = open_filesystem(url)
    with _told(url, "looked into"):
        return filesystem.get_file_info(path).type


@contextlib.contextmanager
def local_copy(url: str) -> Iterator[str]:
    """Let the block read a file or folder as a local path, for libraries that open nothing else.

    Yields:
        a local path as it is; else the path of a temporary copy of the same name, which is removed with the block.

    Raises:
        FileNotFoundError: there is nothing at `url`.
        StorageError: the storage fails.
    """
    if not is_remote(url):
        yield open_filesystem(url)[1]
        return
    kind = _kind(url)
    if kind == fs.FileType.NotFound:
        raise FileNotFoundError(f"{url}: no such file or folder")
    filesystem, path = open_filesystem(url)
    with tempfile.TemporaryDirectory(prefix="gmd-copy-") as folder:
        place = os.path.join(folder, PurePosixPath(path).name)
        with _told(url, "read"):
            with_retries(lambda: _fetch(filesystem, path, place, kind))
        yield place


@contextlib.contextmanager
def local_draft(url: str) -> Iterator[str]:
    """Let the block write a file or folder at a local path, for libraries that write nowhere else.

    A file elsewhere is put in its place as one object once the block has ended. The files of a folder are put one by
    one, so that whoever needs all of them has to wait for a file that is written after them.

    Yields:
        a local path as it is; else a path of the same name in a temporary folder.

    Raises:
        StorageError: the storage fails.
    """
    if not is_remote(url):
        yield open_filesystem(url)[1]
        return
    filesystem, path = open_filesystem(url)
    with tempfile.TemporaryDirectory(prefix="gmd-draft-") as folder:
        place = Path(folder, PurePosixPath(path).name)
        yield str(place)
        files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
        with _told(url, "written"):
            for file in files:
                inside = "" if file == place else f"/{file.relative_to(place).as_posix()}"
                with_retries(lambda file=file, to=f"{path}{inside}": _send(filesystem, file, to))  # type: ignore[misc]


def _fetch(filesystem: fs.FileSystem, path: str, place: str, kind: fs.FileType) -> None:
    if kind == fs.FileType.File:
        files = {path: place}
    else:
        infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        found = [info.path for info in infos if info.type == fs.FileType.File]
        files = {each: os.path.join(place, *PurePosixPath(each[len(path) + 1 :]).parts) for each in found}
    for source, target in files.items():
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with filesystem.open_input_stream(source, compression=None) as stream, open(target, "wb") as file:
            shutil.copyfileobj(stream, file, CHUNK)


def _send(filesystem: fs.FileSystem, file: Path, path: str) -> None:
    with file.open("rb") as stream, _output_stream(filesystem, path) as target:
        shutil.copyfileobj(stream, target, CHUNK)
