"""Sizes of many images from their headers, without decoding one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from gmd_ray.errors import DataError
from gmd_ray.images.files.formats import refusal_by_name
from gmd_ray.images.files.opening import Header, open_header
from gmd_ray.images.files.tiffs import check_tiff
from gmd_ray.images.listing import ImageFile, read_file
from gmd_ray.images.lmdb_store import split_uri
from gmd_ray.storage import open_filesystem

_THREADS = 16
"""Headers are waited for, not worked on."""


def image_sizes(images: Sequence[ImageFile], max_pixels: int) -> list[tuple[int, int] | None]:
    """(height, width) of each image, upright as `decode_image` gives it, in the order given.

    None for what would become a failed row: no image, a format that is not opened, a header that is damaged, more than
    `max_pixels` pixels, a TIFF of samples that are not read, or a file that cannot be opened. What the header does not
    tell is not found out here: a file that breaks off further in, the range of floats.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda image: _size(image.uri, max_pixels), images))


def _size(uri: str, max_pixels: int) -> tuple[int, int] | None:
    if refusal_by_name(uri) is not None:
        return None  # what Pillow finds in a raw file is its preview
    try:
        with _opened(uri) as stream:
            header = open_header(stream, max_pixels)
            if header.format == "TIFF":
                check_tiff(header)
            return upright(header)
    except (OSError, DataError):
        return None


def upright(header: Header) -> tuple[int, int]:
    """(height, width) of the picture as it is read, turned as its EXIF block says."""
    width, height = header.size
    return (width, height) if _lies(header) else (height, width)


def _lies(header: Header) -> bool:
    """Whether the picture is turned by a quarter when it is read."""
    image = header.image
    if image is None:
        return header.tags.get(274) in (5, 6, 7, 8)
    if header.format == "TIFF" or (header.format == "PNG" and not {"exif", "xmp"} & image.info.keys()):
        return False  # a TIFF's size is upright already; a PNG would be decoded in search of the tag
    try:
        return image.getexif().get(0x0112) in (5, 6, 7, 8)
    except Exception:  # noqa: BLE001 -- a damaged EXIF block spoils nothing but the orientation
        return False


def _opened(uri: str) -> BinaryIO:
    if split_uri(uri) is not None:
        return io.BytesIO(read_file(uri))  # in an LMDB: a value is had whole
    filesystem, path = open_filesystem(uri)
    # Buffered: Pillow reads lines of what may be one of its older formats, and Arrow's files give none.
    return io.BufferedReader(filesystem.open_input_file(path))
