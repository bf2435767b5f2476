"""Places that a user names to be written to: whether they can be, found out without leaving anything there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gmd_ray.errors import ConfigError, GmdError


def why_unwritable(path: str, *, folder: bool) -> str | None:
    """Why no folder can be made at `path` and filled, or no file written there; None where it can.

    An empty folder is made in the nearest one that is there, and removed again: permissions, read-only disks, quotas
    and shares that map root to nobody are found out alike.
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


@contextlib.contextmanager
def writing(option: str, path: str, *, folder: bool) -> Iterator[None]:
    """Around what writes to a place that a user named: one line where it cannot, before the work and in it.

    Args:
        option: what names the place, for the error: `--to`.
        folder: the place is a folder that is filled; else a file.

    Raises:
        ConfigError: the place cannot be written.
    """
    if "://" not in path and (why := why_unwritable(path, folder=folder)):
        raise ConfigError(f"{option} {path}: cannot be written ({why})")
    try:
        yield
    except (BrokenPipeError, GmdError):  # of no file; or of what is read, in its own words
        raise
    except OSError as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{option} {path}: cannot be written ({reason})") from error
