"""Checking many image files quickly, by their headers and last bytes: sizes, unreadable files and truncated files.

Only the few files that look truncated are decoded, so ten thousand images take seconds. Damage in the middle of a file
is not detected here.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import BinaryIO, Literal

import pyarrow as pa

from gmd_ray.errors import DataError
from gmd_ray.images.files import opening
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.formats import refusal_by_name
from gmd_ray.images.files.opening import open_header
from gmd_ray.images.listing import ImageFile, read_file
from gmd_ray.images.lmdb_store import split_uri
from gmd_ray.images.sizes import upright
from gmd_ray.storage import open_filesystem
from gmd_ray.text import one_line

LOOKED_AT = 64
"""The number of doubtful files per folder that are decoded to settle the doubt."""

_THREADS = 16
"""Threads that read headers. They wait for storage most of the time, so there are more than CPUs."""
_TAIL = 65_536
"""Bytes at the end of a file that are searched for its end marker: some programs append data after it."""

_BYTES_OF = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
"""TIFF value type -> bytes per value."""

ReadAt = Callable[[int, int], bytes]
"""Reads (offset, length) of a file."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The findings about one file."""

    size: tuple[int, int] | None
    """Upright (height, width), as `decode_image` returns them; None if `decode_image` would refuse the file."""
    reason: str = ""
    """The reason for a refusal, on one line."""
    doubtful: bool = False
    """True if the file looks truncated or its kind of samples may be unreadable; only decoding settles it."""
    bytes: int | None = None
    """Size of the file; None if it could not be opened."""


def read_headers(images: Sequence[ImageFile], max_pixels: int | None = None) -> list[ImageHeader]:
    """Read the header of each image, in the order given.

    Args:
        max_pixels: larger images are refused, as `decode_image` does; None for the bound of `opening.MAX_PIXELS`.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda image: _header(image.uri, max_pixels), images))


def settle_doubts(
    images: Sequence[ImageFile], headers: Sequence[ImageHeader], max_pixels: int | None = None, limit: int = LOOKED_AT
) -> list[ImageHeader]:
    """Decode the first `limit` doubtful files: those that decode are sound, the others lose their size.

    If all decoded files are sound, the remaining doubtful files are taken to be sound too. Otherwise they stay
    doubtful.
    """
    settled = list(headers)
    doubtful = [i for i, header in enumerate(headers) if header.doubtful]

    def look(index: int) -> ImageHeader:
        try:
            decode_image(read_file(images[index].uri), max_pixels=max_pixels)
        except (DataError, OSError) as error:
            return replace(headers[index], size=None, reason=one_line(error), doubtful=False)
        return replace(headers[index], doubtful=False)

    with ThreadPoolExecutor(4) as pool:
        for index, header in zip(doubtful[:limit], pool.map(look, doubtful[:limit]), strict=True):
            settled[index] = header
    if all(settled[index].size is not None for index in doubtful[:limit]):
        for index in doubtful[limit:]:
            settled[index] = replace(settled[index], doubtful=False)
    return settled


def _header(uri: str, max_pixels: int | None) -> ImageHeader:
    refusal = refusal_by_name(uri)
    if refusal is not None:
        return ImageHeader(None, refusal)
    try:
        if split_uri(uri) is not None:  # an LMDB returns whole values only
            data = read_file(uri)
            header = _of_stream(io.BytesIO(data), len(data), lambda at, length: data[at : at + length], max_pixels)
            return replace(header, bytes=len(data))
        filesystem, path = open_filesystem(uri)
        with filesystem.open_input_file(path) as file:
            size = file.size()
            # Some of Pillow's readers call readline(), which Arrow's files lack; BufferedReader adds it.
            header = _of_stream(io.BufferedReader(file), size, lambda at, n: _read_at(file, at, n), max_pixels)
            return replace(header, bytes=size)
    except (OSError, DataError, pa.ArrowException) as error:
        return ImageHeader(None, one_line(error))


def _read_at(file: pa.NativeFile, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _of_stream(stream: BinaryIO, size: int, read_at: ReadAt, max_pixels: int | None) -> ImageHeader:
    opened = open_header(stream, max_pixels)
    # The header does not settle whether unusual samples (floats, or a mode unknown to Pillow) can be decoded.
    odd = opened.image is None or opened.image.mode == "F"
    return ImageHeader(upright(opened), doubtful=odd or _breaks_off(opened, size, read_at))


def _breaks_off(opened: opening.FileHeader, size: int, read_at: ReadAt) -> bool:
    """Tell whether the file lacks the end marker, or the length, that its format requires."""
    kind, image = opened.format, opened.image
    if kind in ("PNG", "JPEG", "GIF", "JPEG2000"):
        tail = read_at(max(0, size - _TAIL), min(size, _TAIL))
        if kind == "PNG":
            return b"IEND\xaeB`\x82" not in tail
        return not tail.rstrip(b"\0").endswith(b";" if kind == "GIF" else b"\xff\xd9")
    if kind == "TIFF":
        return max(_end_of_tiff(image), _end_of_tags(read_at)) > size
    if kind == "BMP":
        return _end_of_bmp(read_at(0, 54)) > size
    if kind == "WEBP":
        return 8 + int.from_bytes(read_at(4, 4), "little") > size
    if kind == "AVIF":
        return not _boxes_fit(size, read_at)
    tiles = getattr(image, "tile", None)  # PPM
    if image is None or not tiles or tiles[0][0] != "raw":
        return False
    bits = {"1": 1, "L": 8, "RGB": 24}.get(image.mode, 16)
    return bool(tiles[0][2] + -(-image.width * bits // 8) * image.height > size)


def _end_of_tiff(image: object) -> int:
    """Return the offset at which the last strip or tile of a TIFF's first page ends."""
    tags = getattr(image, "tag_v2", {})
    end = 0
    for offsets, counts in ((273, 279), (324, 325)):
        starts, lengths = (
            value if isinstance(value, tuple) else (value,) for value in map(tags.get, (offsets, counts))
        )
        if starts[0] is not None and lengths[0] is not None:
            end = max([end, *(start + length for start, length in zip(starts, lengths, strict=False))])
    return end


def _end_of_tags(read_at: ReadAt) -> int:
    """Return the offset at which the last tag value of a TIFF's first page ends; 0 for a BigTIFF (not parsed)."""
    head = read_at(0, 8)
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    start = int.from_bytes(head[4:8], order)
    if int.from_bytes(head[2:4], order) != 42:
        return 0
    count = int.from_bytes(read_at(start, 2), order)
    table, end = read_at(start + 2, 12 * count), start + 2 + 12 * count
    for at in range(0, len(table) - 11, 12):
        kind, number, value = (int.from_bytes(table[at + i : at + j], order) for i, j in ((2, 4), (4, 8), (8, 12)))
        length = number * _BYTES_OF.get(kind, 0)
        end = max(end, value + length if length > 4 else 0)
    return end


def _end_of_bmp(head: bytes) -> int:
    """Return the offset at which the pixels of an uncompressed BMP end; 0 for compressed ones."""
    if len(head) < 54 or int.from_bytes(head[14:18], "little") < 40:
        return 0
    start, width, height, bits, compression = (
        *struct.unpack("<I", head[10:14]),
        *struct.unpack("<iixxHI", head[18:34]),
    )
    return start + (abs(width) * bits + 31) // 32 * 4 * abs(height) if compression in (0, 3) else 0


def _boxes_fit(size: int, read_at: ReadAt) -> bool:
    """Tell whether the boxes of an ISO base media file (AVIF) end within the file."""
    at = 0
    while at + 8 <= size:
        length = int.from_bytes(read_at(at, 4), "big")
        if length == 1:
            length = int.from_bytes(read_at(at + 8, 8), "big")
        if length == 0:  # this box extends to the end of the file
            return True
        if length < 8:
            return True  # data that another program appended
        at += length
    return at <= size
