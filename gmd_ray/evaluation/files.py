"""Reading and writing whole files under a run directory, wherever it is."""

from __future__ import annotations

import uuid

from gmd_ray.images.listing import open_filesystem


def read_bytes(url: str) -> bytes | None:
    """The content of a file, or None where there is none."""
    filesystem, path = open_filesystem(url)
    try:
        with filesystem.open_input_stream(path) as file:
            return bytes(file.read())
    except FileNotFoundError:
        return None


def write_bytes(url: str, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part."""
    filesystem, path = open_filesystem(url)
    filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
    partial = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    with filesystem.open_output_stream(partial) as file:
        file.write(data)
    filesystem.move(partial, path)
