"""Sizes of many images, read from their headers without decoding pixels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from gmd_ray.errors import DataError
from gmd_ray.images.files.formats import refusal_by_name
from gmd_ray.images.files.opening import FileHeader, open_header
from gmd_ray.images.files.tiffs import check_tiff
from gmd_ray.images.listing import ImageFile, read_file
from gmd_ray.images.lmdb_store import split_uri
from gmd_ray.storage import open_filesystem

_THREADS = 16
"""Threads that read headers. They wait for storage most of the time, so there are more than CPUs."""


def image_sizes(images: Sequence[ImageFile], max_pixels: int) -> list[tuple[int, int] | None]:
    """Read the size of each image, in the order given.

    Returns:
        (height, width) of each image, upright as `decode_image` returns it. None for files that would become failed
        rows: not an image, a refused format, a damaged header, more than `max_pixels` pixels, unreadable TIFF samples,
        or a file that cannot be opened. Faults beyond the header (a truncated file, floats out of range) are not found.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda image: _size(image.uri, max_pixels), images))


def _size(uri: str, max_pixels: int) -> tuple[int, int] | None:
    if refusal_by_name(uri) is not None:
        return None  # Pillow would return the size of a raw file's preview
    try:
        with _opened(uri) as stream:
            header = open_header(stream, max_pixels)
            if header.format == "TIFF":
                check_tiff(header)
            return upright(header)
    except (OSError, DataError):
        return None


def upright(header: FileHeader) -> tuple[int, int]:
    """Return (height, width) of the picture as it is decoded: turned as its EXIF orientation says."""
    width, height = header.size
    return (width, height) if _is_turned(header) else (height, width)


def _is_turned(header: FileHeader) -> bool:
    """Tell whether decoding turns the picture by 90 degrees."""
    image = header.image
    if image is None:
        return header.tags.get(274) in (5, 6, 7, 8)
    if header.format == "TIFF" or (header.format == "PNG" and not {"exif", "xmp"} & image.info.keys()):
        return False  # a TIFF's size is upright already; in a PNG, Pillow would decode the pixels to find the tag
    try:
        return image.getexif().get(0x0112) in (5, 6, 7, 8)
    except Exception:  # noqa: BLE001 -- a damaged EXIF block affects nothing but the orientation
        return False


def _opened(uri: str) -> BinaryIO:
    if split_uri(uri) is not None:
        return io.BytesIO(read_file(uri))  # an LMDB returns whole values only
    filesystem, path = open_filesystem(uri)
    # Some of Pillow's readers call readline(), which Arrow's files lack; BufferedReader adds it.
    return io.BufferedReader(filesystem.open_input_file(path))
