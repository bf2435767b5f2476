"""Whole files written at once, on any filesystem that pyarrow knows."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs

Item = TypeVar("Item")
T = TypeVar("T")
PAUSES_S = (1.0, 5.0)
"""Between the attempts of `with_retries`."""
TEMPORARY = ".tmp-"
"""Prefix of files being written; Parquet scans skip names that begin with a dot."""


READERS = 32
"""Files that `map_threads` has open: on an object store each open is a round trip."""


def map_threads(work: Callable[[Item], T], items: Iterable[Item]) -> Iterator[T]:
    """What `work` makes of each item, in their order, by threads."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="gmd-files") as pool:
        yield from pool.map(work, items)


def absolute(url: str) -> str:
    """A relative local path made absolute: workers need not share the driver's directory."""
    return url if "://" in url else os.path.abspath(url)


def absolute_if_exists(path: str | None) -> str | None:
    """`absolute` for what exists on this machine; a hub id stays as it is."""
    return os.path.abspath(path) if path is not None and os.path.exists(path) else path


def put(filesystem: fs.FileSystem, path: str, data: bytes | memoryview) -> None:
    """Write a file so that no reader ever sees a part of it, replacing one of the same name.

    An object store shows an object when it is complete; a local file is written beside its place, synced and renamed.
    Remote file systems that show a file while it grows (HDFS, SFTP, SMB through fsspec) are not protected so: `verify`
    names what a killed writer leaves there.
    """
    if not isinstance(filesystem, fs.LocalFileSystem):
        try:
            stream = filesystem.open_output_stream(path)
        except FileNotFoundError:  # where there are directories at all; an object store has none to be made
            filesystem.create_dir(path.rpartition("/")[0], recursive=True)
            stream = filesystem.open_output_stream(path)
        with stream:
            stream.write(data)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def with_retries(work: Callable[[], T]) -> T:
    """Do it again, twice at most, where storage fails: a network may recover in a moment.

    What will not change by itself (no such file, no permission) is raised at once.
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
    """The content of a file, None where there is none."""
    try:
        with filesystem.open_input_stream(path) as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def put_json(filesystem: fs.FileSystem, path: str, value: Any) -> None:
    put(filesystem, path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def remove(filesystem: fs.FileSystem, path: str) -> None:
    """Delete a file that may be gone already."""
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(path)
