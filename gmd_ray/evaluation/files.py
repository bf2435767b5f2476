"""Reading and writing whole files by their URL."""

from __future__ import annotations

from gmd_ray.images.listing import open_filesystem
from gmd_ray.storage import get, put


def read_bytes(url: str) -> bytes | None:
    """The content of a file, or None where there is none."""
    return get(*open_filesystem(url))


def write_bytes(url: str, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part."""
    put(*open_filesystem(url), data)
