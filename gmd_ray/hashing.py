"""Digests of content, as hexadecimal digits of SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path


def content_digest(data: bytes) -> str:
    """Digest of bytes, 64 digits: what the pair store's column `digest` holds."""
    return hashlib.sha256(data).hexdigest()


def short_digest(*parts: str) -> str:
    """Digest of texts, 16 digits; `("a", "b")` and `("ab",)` have different ones."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def path_digest(path: str | Path) -> str:
    """Digest of a local file's content, 64 digits; of a directory, the digest of its files' names and digests."""
    if Path(path).is_dir():
        files = sorted(file for file in Path(path).rglob("*") if file.is_file())
        lines = "".join(f"{file.relative_to(path).as_posix()} {path_digest(file)}\n" for file in files)
        return content_digest(lines.encode())
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
