"""The part of a checkout that travels with a submitted job."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gmd_ray.errors import ConfigError

ALWAYS = ("gmd_ray", "jobs", "pyproject.toml")
"""Parts of a checkout that a job needs."""
NEVER = ("__pycache__", ".git", ".venv")
"""Folders that stay behind wherever they are."""
LIMIT = 500 * 1024**2
"""Bytes that may travel. Ray refuses packages of 512 MiB and more."""
NAMED = 3
"""Files that the refusal of a large folder names."""


@dataclass(frozen=True)
class WorkingDir:
    """A folder to submit, and what of it stays behind."""

    path: str
    excludes: list[str]
    """Patterns as in `.gitignore`, for Ray's `runtime_env`."""
    size: int
    """Bytes of the files that travel."""


def find_checkout(folder: str | None = None) -> Path | None:
    """Find the folder that holds the package `gmd_ray`: `folder`, or the current directory, or this checkout.

    Returns:
        The folder; None if gmd_ray is installed here as a package, so that there is nothing to send.

    Raises:
        ConfigError: `folder` is no folder.
    """
    if folder is not None:
        if not os.path.isdir(folder):
            raise ConfigError(f"--working-dir {folder}: no such folder")
        return Path(folder).resolve()
    here, own = Path.cwd(), Path(__file__).resolve().parents[2]
    for found in (here, own):
        if (found / "gmd_ray" / "cli.py").is_file() and (found / "pyproject.toml").is_file():
            return found
    return None


def pack(folder: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> WorkingDir:
    """Choose what of a folder travels: ALWAYS and `include`, without NEVER and `exclude`.

    Args:
        folder: the working directory of the job.
        include: files and folders below it, relative to it.
        exclude: patterns as in `.gitignore`. Files that they leave out still count towards the size.

    Raises:
        ConfigError: an included path does not exist or lies outside, or more than LIMIT would travel; the largest files
            are named.
    """
    keep = [*ALWAYS]
    for name in include:
        path = Path(os.path.normpath(folder / name))
        if not path.is_relative_to(folder):
            raise ConfigError(f"{name}: lies outside the working directory {folder}, and does not travel with the job")
        if not path.exists():
            raise ConfigError(f"--include {name}: no such file or folder in {folder}")
        keep.append(path.relative_to(folder).as_posix())
    left = [] if "." in keep else list(_others(folder, PurePosixPath(), keep))
    behind = {*left, *exclude}
    files = sorted(_files(folder, behind), key=lambda item: -item[1])
    size = sum(bytes_ for _, bytes_ in files)
    if size > LIMIT:
        largest = ", ".join(f"{name} ({bytes_ / 1024**2:.0f} MiB)" for name, bytes_ in files[:NAMED])
        raise ConfigError(
            f"{folder}: {size / 1024**2:.0f} MiB would travel with the job, and {LIMIT // 1024**2} MiB may; put what "
            f"is large on storage that all nodes see, or leave it out with --exclude: {largest}"
        )
    return WorkingDir(str(folder), [*left, *NEVER, *exclude], size)


def _others(folder: Path, at: PurePosixPath, keep: Collection[str]) -> Iterator[str]:
    """Patterns that leave out all entries below `at` that are not in `keep` and do not lead there."""
    for entry in sorted(os.listdir(folder / at)):
        path = at / entry
        if path.as_posix() in keep:
            continue
        if any(PurePosixPath(kept).is_relative_to(path) for kept in keep):
            yield from _others(folder, path, keep)
        else:
            yield "/" + "".join(f"\\{c}" if c in "\\*?[]!# " else c for c in path.as_posix())


def _files(folder: Path, behind: Collection[str]) -> Iterator[tuple[str, int]]:
    """Relative path and size of each file that travels."""
    for base, folders, names in os.walk(folder):
        at = Path(base).relative_to(folder)
        folders[:] = [name for name in folders if name not in NEVER and not _left(at / name, behind)]
        for name in names:
            if not _left(at / name, behind) and not os.path.islink(Path(base, name)):
                yield (at / name).as_posix(), Path(base, name).stat().st_size


def _left(path: Path, behind: Collection[str]) -> bool:
    plain = "/" + "".join(f"\\{c}" if c in "\\*?[]!# " else c for c in path.as_posix())
    return plain in behind or plain.lstrip("/") in behind
