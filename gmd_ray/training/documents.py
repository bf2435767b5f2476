"""What a fine-tune writes down, and the digests by which it knows its inputs again."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pyarrow import fs

from gmd_ray.errors import ConfigError, DataError
from gmd_ray.hashing import content_digest, short_digest
from gmd_ray.images.listing import read_file
from gmd_ray.storage import put_json

_THREADS = 8


def read_json(path: Path) -> dict[str, Any]:
    """A document that `write_json` wrote.

    Raises:
        DataError: where it is missing or damaged.
    """
    try:
        return dict(json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; put it back, or remove {path.parent} to train anew") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a JSON document ({error}); remove {path.parent} to train anew") from error


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a document so that no reader sees a part of it."""
    put_json(fs.LocalFileSystem(), str(path), value)


def read_curve(path: Path) -> list[dict[str, Any]]:
    """The logged steps, in order; a last line that was torn by a crash is cut off the file."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    return [line for line in curve_lines(whole) if "step" in line]


def curve_lines(content: bytes) -> list[dict[str, Any]]:
    """The lines of a curve that are whole; a disk that lost power may hold others."""
    lines = []
    for text in content.splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict):
                lines.append(line)
    return lines


def digest(lines: Iterable[str]) -> str:
    """16 hex digits of lines of text."""
    return short_digest("\n".join(lines))


def digest_of_files(uris: Sequence[str]) -> str:
    """Of the content of files, wherever they lie, in the order given.

    Raises:
        DataError: naming the one that cannot be read.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return digest(pool.map(lambda uri: content_digest(read_file(uri)), uris))


def digest_of_path(path: str, key: str = "student.path") -> str:
    """Of a file's content, or of a folder's files and their names; `key` is the setting that an error names."""
    root = Path(path)
    if not root.exists():
        raise ConfigError(f"{key}={path}: no such file or folder")
    found = hashlib.sha256()
    for file in [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file()):
        found.update(f"\0{file.relative_to(root).as_posix()}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                found.update(block)
    return found.hexdigest()[:16]
