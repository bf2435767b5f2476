"""Where a run writes: places that outlive the process, whatever its working directory."""

from __future__ import annotations

import os
from pathlib import Path

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
    path = uri.removeprefix(_SQLITE)
    if path in ("", uri) or path.startswith(("/", ":memory:")):
        return uri
    return f"{_SQLITE}{resolve_out(path)}"
