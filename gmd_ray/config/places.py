"""Where a run writes: places that outlive the process, whatever its working directory."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

_SQLITE = "sqlite:///"


def in_job() -> bool:
    """Whether this process is the driver of a `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def resolve_out(out: str) -> str:
    """A run directory that outlives the process: URLs as they are, local paths absolute.

    A job's working directory is a throw-away copy, so there a relative path is taken from `~/gmd_ray`.
    """
    out = os.path.expanduser(out)
    if "://" in out or os.path.isabs(out):
        return out
    base = Path.home() / "gmd_ray" if in_job() else Path.cwd()
    return str(base / out)


def below(folder: str, name: str) -> str:
    """`name` in a folder: options of a URL stay at its end, while a `?` of a local path is part of it."""
    base, mark, query = folder.partition("?") if "://" in folder else (folder, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{query}"


def folder_or_set(path: str) -> str:
    """`path` for whoever takes published sets too: a folder that looks like one, `a/b/c@2x`, is the folder."""
    return os.path.abspath(path) if "@" in path and os.path.exists(path) else path


def resolve_uri(uri: str) -> str:
    """A tracking URI whose sqlite file outlives the process: `sqlite:///mlflow.db` is anchored as `out` is.

    Four slashes begin an absolute path; other URIs are taken as they are.
    """
    path, mark, query = uri.removeprefix(_SQLITE).partition("?")
    if path == "" or uri.removeprefix(_SQLITE) == uri or path.startswith(("/", ":memory:")):
        return uri
    return f"{sqlite_url(resolve_out(unquote(path)))}{mark}{query}"


def sqlite_url(path: str) -> str:
    """The URL of an sqlite file at an absolute local path.

    A path with characters that mean something in a URL is quoted, its slashes too: MLflow makes the folders of a path
    before it takes the quotes off, which would leave a second one behind.
    """
    plain = re.fullmatch(r"[\w/. ~-]+", path, re.ASCII)
    return f"{_SQLITE}{path}" if plain else f"{_SQLITE}/{quote(path[1:], safe='')}"


def sqlite_path(url: str) -> str | None:
    """The path of the file that an sqlite URL names; None for another URL."""
    if not url.startswith(_SQLITE):
        return None
    return unquote(url.removeprefix(_SQLITE).partition("?")[0])
