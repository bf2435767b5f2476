"""Paths and URLs that stay valid after the process, whatever its working directory was."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from gmd_ray.errors import ConfigError

_SQLITE = "sqlite:///"


def in_job() -> bool:
    """Tell whether this process is the driver of a `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def resolve_out(out: str) -> str:
    """Resolve a run directory: a local path becomes absolute, `file://` is such a path, and any other URL stays.

    The working directory of a submitted job is a temporary copy, so a relative path is taken from `~/gmd_ray` there.

    Raises:
        ConfigError: it is empty, as an unset variable of a shell is.
    """
    if not out.strip():
        raise ConfigError("out=: give a run directory (out=. is the current folder)")
    out = unquote(out.removeprefix("file://")) if out.startswith("file:///") else os.path.expanduser(out)
    if "://" in out or os.path.isabs(out):
        return out
    base = Path.home() / "gmd_ray" if in_job() else Path.cwd()
    return str(base / out)


def below(folder: str, name: str) -> str:
    """Join a name to a folder. Options of a URL stay at its end, while a `?` in a local path is part of it."""
    base, mark, query = folder.partition("?") if "://" in folder else (folder, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{query}"


def above(place: str) -> str:
    """The folder of a file: the inverse of `below`."""
    base, mark, query = place.partition("?") if "://" in place else (place, "", "")
    return f"{base.rstrip('/').rpartition('/')[0]}{mark}{query}"


def name_of(place: str) -> str:
    """The last name of a path or URL: `run` for `s3://bucket/run/?region=eu-west-1`."""
    base = place.partition("?")[0] if "://" in place else place
    return base.rstrip("/").rpartition("/")[2]


def folder_or_set(path: str) -> str:
    """Resolve a path that may name a published set: a folder that looks like one, `a/b/c@2x`, becomes absolute."""
    return os.path.abspath(path) if "@" in path and os.path.exists(path) else path


def resolve_uri(uri: str) -> str:
    """Resolve a tracking URI: the sqlite file of `sqlite:///mlflow.db` becomes absolute, as `out` does.

    Four slashes begin an absolute path. Other URIs stay as they are.
    """
    path, mark, query = uri.removeprefix(_SQLITE).partition("?")
    if path == "" or uri.removeprefix(_SQLITE) == uri or path.startswith(("/", ":memory:")):
        return uri
    return f"{sqlite_url(resolve_out(unquote(path)))}{mark}{query}"


def sqlite_url(path: str) -> str:
    """The URL of an sqlite file at an absolute local path.

    A path with characters that have a meaning in a URL is quoted, its slashes too: MLflow creates the folders of a path
    before it unquotes it, so that a quoted path with slashes would leave a second folder behind.
    """
    plain = re.fullmatch(r"[\w/. ~-]+", path, re.ASCII)
    return f"{_SQLITE}{path}" if plain else f"{_SQLITE}/{quote(path[1:], safe='')}"


def sqlite_path(url: str) -> str | None:
    """The path of the file that an sqlite URL names; None for any other URL."""
    if not url.startswith(_SQLITE):
        return None
    return unquote(url.removeprefix(_SQLITE).partition("?")[0])
