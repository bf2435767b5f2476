"""Sizes of many images from their headers, without decoding one."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import BinaryIO

from PIL import Image

from gmd_ray.images.listing import NOT_DECODED, ImageFile, open_filesystem, read_file
from gmd_ray.images.lmdb_store import split_uri

_THREADS = 16
"""Headers are waited for, not worked on."""


def image_sizes(images: Sequence[ImageFile], max_pixels: int) -> list[tuple[int, int] | None]:
    """(height, width) of each image as stored, in the order given; EXIF turns are not applied.

    None for what would become a failed row: no image, a header that is damaged, more than `max_pixels` pixels, or a
    file that cannot be opened. A file that breaks off further in is not found out here.
    """
    Image.init()  # here: threads that begin it together see half of the formats
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda image: _size(image.uri, max_pixels), images))


def _size(uri: str, max_pixels: int) -> tuple[int, int] | None:
    if PurePosixPath(uri).suffix.lower() in NOT_DECODED:
        return None  # what Pillow finds in a raw file is its preview
    try:
        with _opened(uri) as stream, Image.open(stream) as image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError):
        return None
    return (height, width) if width * height <= max_pixels else None


def _opened(uri: str) -> BinaryIO:
    if split_uri(uri) is not None:
        return io.BytesIO(read_file(uri))  # in an LMDB: a value is had whole
    filesystem, path = open_filesystem(uri)
    # Buffered: Pillow reads lines of what may be one of its older formats, and Arrow's files give none.
    return io.BufferedReader(filesystem.open_input_file(path))
