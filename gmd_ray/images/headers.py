"""What the headers and the last bytes of many image files say: sizes as decoded, and which files break off.

Nothing is decoded but the few files that look cut off, so that ten thousand images take seconds. What is damaged
inside, with a whole beginning and a whole end, is not found out here.
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
from gmd_ray.images.listing import ImageFile, open_filesystem, read_file
from gmd_ray.images.lmdb_store import split_uri
from gmd_ray.images.sizes import upright
from gmd_ray.text import one_line

LOOKED_AT = 64
"""Doubtful files of a folder that are decoded to see what they are."""

_THREADS = 16
"""Headers are waited for, not worked on."""
_TAIL = 65_536
"""Bytes at the end in which the last chunk is looked for: programs append notes of their own."""

_BYTES_OF = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
"""Type of a TIFF's value -> bytes of one."""

ReadAt = Callable[[int, int], bytes]
"""(offset, length) to bytes."""


@dataclass(frozen=True, slots=True)
class Header:
    """One file, as far as it was looked at."""

    size: tuple[int, int] | None
    """(height, width) upright, as `decode_image` gives them; None where it would refuse the file."""
    reason: str = ""
    """Why it would."""
    doubtful: bool = False
    """The file seems to break off, or to hold what cannot be decoded; only decoding it tells."""
    bytes: int | None = None
    """Of the file, where it could be opened."""


def read_headers(images: Sequence[ImageFile], max_pixels: int | None = None) -> list[Header]:
    """The header of each image, in the order given.

    Args:
        max_pixels: a larger image is refused, as `decode_image` does; None for its own bound.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda image: _header(image.uri, max_pixels), images))


def settle_doubts(
    images: Sequence[ImageFile], headers: Sequence[Header], max_pixels: int | None = None, limit: int = LOOKED_AT
) -> list[Header]:
    """Decode the doubtful files, the first `limit` of them: what decodes is well, what does not has no size.

    Where every one that was decoded is well, the others are taken to be; else they stay doubtful.
    """
    settled = list(headers)
    doubtful = [i for i, header in enumerate(headers) if header.doubtful]

    def look(index: int) -> Header:
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


def _header(uri: str, max_pixels: int | None) -> Header:
    refusal = refusal_by_name(uri)
    if refusal is not None:
        return Header(None, refusal)
    try:
        if split_uri(uri) is not None:  # in an LMDB a value is had whole
            data = read_file(uri)
            header = _of_stream(io.BytesIO(data), len(data), lambda at, length: data[at : at + length], max_pixels)
            return replace(header, bytes=len(data))
        filesystem, path = open_filesystem(uri)
        with filesystem.open_input_file(path) as file:
            size = file.size()
            # Buffered: Pillow reads lines of what may be one of its older formats, and Arrow's files give none.
            header = _of_stream(io.BufferedReader(file), size, lambda at, n: _read_at(file, at, n), max_pixels)
            return replace(header, bytes=size)
    except (OSError, DataError, pa.ArrowException) as error:
        return Header(None, one_line(error))


def _read_at(file: pa.NativeFile, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _of_stream(stream: BinaryIO, size: int, read_at: ReadAt, max_pixels: int | None) -> Header:
    opened = open_header(stream, max_pixels)
    # Samples of kinds that are not read, float ones say, are found out where they are decoded.
    odd = opened.image is None or opened.image.mode == "F"
    return Header(upright(opened), doubtful=odd or _breaks_off(opened, size, read_at))


def _breaks_off(opened: opening.Header, size: int, read_at: ReadAt) -> bool:
    """Whether the end that its format promises is not there."""
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
    """Where the last strip or tile ends, as the first page says."""
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
    """Where the last value of a TIFF's first page ends; 0 for a TIFF of more than 4 GB, which has another form."""
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
    """Where the pixels of an uncompressed bitmap end; 0 for the other kinds."""
    if len(head) < 54 or int.from_bytes(head[14:18], "little") < 40:
        return 0
    start, width, height, bits, compression = (
        *struct.unpack("<I", head[10:14]),
        *struct.unpack("<iixxHI", head[18:34]),
    )
    return start + (abs(width) * bits + 31) // 32 * 4 * abs(height) if compression in (0, 3) else 0


def _boxes_fit(size: int, read_at: ReadAt) -> bool:
    """Whether the boxes of a file of the ISO family end where it ends, or before."""
    at = 0
    while at + 8 <= size:
        length = int.from_bytes(read_at(at, 4), "big")
        if length == 1:
            length = int.from_bytes(read_at(at + 8, 8), "big")
        if length == 0:  # to the end of the file
            return True
        if length < 8:
            return True  # notes of another program
        at += length
    return at <= size
