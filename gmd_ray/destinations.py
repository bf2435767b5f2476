"""Checks whether a path that a user gives as an output can be written, without leaving anything there."""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from gmd_ray.errors import ConfigError, DataError, GmdError, StorageError
from gmd_ray.text import one_line


def why_unwritable(path: str, *, folder: bool) -> str | None:
    """Say why `path` cannot be made a folder and filled, or written as a file; None where it can.

    An empty folder is made in the nearest existing parent and removed again. This finds permissions, read-only disks,
    quotas and network shares that map root to nobody alike.
    """
    path = os.path.abspath(os.path.expanduser(path))
    if "\0" in path:
        return "there is a NUL byte in its name"
    try:
        if os.path.islink(path) and not os.path.exists(path):
            return f"it is a link to {os.readlink(path)}, which is not there"
        if os.path.isdir(path) and not folder:
            return "it is a folder"
        if os.path.isfile(path):
            if folder:
                return "it is a file"
            return None if os.access(path, os.W_OK) else "its permissions forbid it"
        missing, parent = [], Path(path)
        while not os.path.lexists(parent):
            missing.append(parent.name)
            parent = parent.parent
        if os.path.islink(parent) and not os.path.exists(parent):
            return f"{parent} is a link to {os.readlink(parent)}, which is not there"
        if not parent.is_dir():
            return f"{parent} is a file"
        longest = os.pathconf(parent, "PC_NAME_MAX")
        for name in missing:
            if len(os.fsencode(name)) > longest:
                return f"a name of {len(os.fsencode(name))} bytes, and {longest} is the most there: {name[:32]}..."
        os.rmdir(tempfile.mkdtemp(prefix=".gmd-ray-", dir=parent))
    except OSError as error:
        return f"{error.strerror or type(error).__name__}: {error.filename or path}"
    return None


def why_no_object(url: str) -> str | None:
    """Say why nothing can be written below a URL; None where an object could be written, and is removed again."""
    from gmd_ray.storage import open_filesystem, put, remove, why_storage_failed  # pyarrow takes a while to load

    try:
        filesystem, path = open_filesystem(url)
        probe = f"{path}/.gmd-ray-{uuid.uuid4().hex}"
        put(filesystem, probe, b"")
        remove(filesystem, probe)
    except (OSError, DataError) as error:
        return why_storage_failed(error)
    return None


@contextlib.contextmanager
def writing(option: str, path: str, *, folder: bool) -> Iterator[None]:
    """Turn failures of writing to a path that a user gave into one line, before the block runs and while it does.

    Args:
        option: the option that gave the path, for the error, such as `--to`.
        folder: whether the path is a folder to be filled; else it is a file.

    Raises:
        ConfigError: the path cannot be written.
    """
    if "://" not in path and (why := why_unwritable(path, folder=folder)):
        raise ConfigError(f"{option} {path}: cannot be written ({why})")
    try:
        yield
    except (BrokenPipeError, GmdError) as error:  # a closed pipe is no file; a GmdError says itself what it is about
        if isinstance(error, StorageError) and str(error).startswith(f"{path}: cannot be written"):
            raise ConfigError(f"{option} {error}") from error
        raise
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be written ({one_line(error)})") from error
