"""Whole files written at once, on any filesystem that pyarrow knows."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from pyarrow import fs

TEMPORARY = ".tmp-"
"""Prefix of files being written; Parquet scans skip names that begin with a dot."""


def absolute(url: str) -> str:
    """A relative local path made absolute: workers need not share the driver's directory."""
    return url if "://" in url else os.path.abspath(url)


def located(path: str | None) -> str | None:
    """`absolute` for what exists on this machine; a hub id stays as it is."""
    return os.path.abspath(path) if path is not None and os.path.exists(path) else path


def put(filesystem: fs.FileSystem, path: str, data: bytes | memoryview) -> None:
    """Write a file so that no reader ever sees a part of it, replacing one of the same name.

    An object store shows an object when it is complete; a local file is written beside its place, synced and renamed.
    """
    if not isinstance(filesystem, fs.LocalFileSystem):
        with filesystem.open_output_stream(path) as stream:
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
