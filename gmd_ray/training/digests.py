"""Digests by which a fine-tune recognises its inputs when it resumes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from gmd_ray.errors import ConfigError
from gmd_ray.hashing import content_digest, short_digest
from gmd_ray.images.listing import read_file
from gmd_ray.weights import node_copy

_THREADS = 8


def digest(lines: Iterable[str]) -> str:
    """The first 16 hex digits of the SHA-256 of lines of text."""
    return short_digest("\n".join(lines))


def digest_of_files(uris: Sequence[str]) -> str:
    """A digest of the content of files, local or remote, in the order given.

    Raises:
        DataError: a file cannot be read; the message names it.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return digest(pool.map(lambda uri: content_digest(read_file(uri)), uris))


def digest_of_path(path: str, key: str = "student.path") -> str:
    """A digest of a file's content, or of the names and contents of a folder's files; a URL is copied to this node.

    Args:
        key: the setting that holds the path, for the error message.

    Raises:
        ConfigError: there is nothing at `path`.
        GmdError: a URL that cannot be copied, see `weights.node_copy`.
    """
    root = node_copy(path)
    if not root.exists():
        raise ConfigError(f"{key}={path}: no such file or folder")
    content = hashlib.sha256()
    for file in [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file()):
        content.update(f"\0{file.relative_to(root).as_posix()}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                content.update(block)
    return content.hexdigest()[:16]
