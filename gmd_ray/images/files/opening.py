"""The one door for image files: which formats are opened at all, and how large a picture may be.

Nothing else in this package calls `PIL.Image.open`, which would try every reader that Pillow has: a file that is
PostScript under the name of a PNG would start Ghostscript on its content.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import (  # noqa: F401 -- a plugin adds its format where it is imported
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from gmd_ray.errors import DataError
from gmd_ray.images.files.formats import READ, sniff
from gmd_ray.text import one_line

# Of thousands of odd tags a file may have, Pillow tells on the terminal, one by one and without the file's name.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

FORMATS = tuple(known.name for known in READ if known.name in Image.OPEN)  # Pillow may be built without some
"""Formats that are opened, by Pillow's names. JPEG covers MPO; a DIB without a BMP's first 14 bytes is not opened."""

MAX_PIXELS = 2**30
"""Pixels that a picture may have at most, whatever a setting allows: OpenCV's bound."""

_CONVERT = "convert it to PNG, TIFF or JPEG"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TAGS = (254, 256, 257, 258, 262, 274, 277, 284, 338, 339, 34675, 50706)
_DOCUMENTS = {
    b"%!": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"%PDF": "PDF",
    b"icns": "an icon",
    b"\0\0\1\0": "an icon",
    b"SIMPLE": "FITS",
    b"\x89HDF": "HDF5",
    b"\xd7\xcd\xc6\x9a": "WMF",
    b"DDS ": "DDS",
}
"""How files begin that no folder lists as photos, but that may have the name of one."""


@dataclass(frozen=True)
class Header:
    """What the beginning of a file tells."""

    format: str
    """Of `FORMATS`."""
    size: tuple[int, int]
    """Width and height. A TIFF's are upright already, as Pillow gives them."""
    image: Image.Image | None
    """Not yet loaded; None for a TIFF whose kind of samples Pillow does not know."""
    tags: Mapping[int, Any]
    """Of a TIFF's first page, those in `_TAGS`: number to value, or a tuple of what there is for each sample."""


def open_header(stream: BinaryIO, max_pixels: int | None = None) -> Header:
    """Read as much of a file as tells its format and size.

    Args:
        stream: can seek; Pillow keeps it for the pixels.
        max_pixels: `target.max_pixels`; None for no bound but `MAX_PIXELS`.

    Raises:
        DataError: with a one-line reason that names no file: empty, no image, of a format that is not opened, with a
            damaged header, a camera's raw file, or too large.
    """
    head = stream.read(32)
    if not head:
        raise DataError("empty file")
    image: Image.Image | None = None
    tags: Mapping[int, Any] = {}
    try:
        image = _opened(stream)
        tags = _chosen(getattr(image, "tag_v2", {}))
    except Exception as error:
        if head[:4] not in _TIFF:
            raise _refusal(head, error) from error
        tags = _tiff_tags(stream)
    name = image.format if image is not None else "TIFF"
    if name == "MPO":
        name = "JPEG"
    assert name is not None
    if name == "TIFF" and (50706 in tags or head[8:10] == b"CR" or _is_reduced(tags)):
        raise DataError("a camera's raw file, whose first picture is a preview: develop it to TIFF or PNG")
    size = image.size if image is not None else (tags[256], tags[257])
    _check(size, max_pixels)
    return Header(name, size, image, tags)


def _opened(stream: BinaryIO) -> Image.Image:
    stream.seek(0)
    # Pillow's own bound on pixels is a constant of its module; the one here is a setting, and comes right after.
    Image.MAX_IMAGE_PIXELS = None
    return Image.open(stream, formats=FORMATS)


def _check(size: tuple[int, int], max_pixels: int | None) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise DataError(f"damaged image header: a size of {width}x{height}")
    if width * height > MAX_PIXELS:
        raise DataError(f"too large: {width}x{height}, and no picture of more than {MAX_PIXELS:,} pixels is read")
    if max_pixels is not None and width * height > max_pixels:
        raise DataError(f"too large: {width}x{height} is more than target.max_pixels={max_pixels}")


def _refusal(head: bytes, error: Exception) -> DataError:
    known = sniff(head)
    if known is not None and known.instead:
        return DataError(known.refusal)
    document = next((kind for start, kind in _DOCUMENTS.items() if head.startswith(start)), None)
    if document:
        return DataError(f"{document}, which this program does not decode: {_CONVERT}")
    if isinstance(error, UnidentifiedImageError):
        return DataError(f"not an image, or one that this program does not decode: {_CONVERT}")
    return DataError(f"damaged image header: {one_line(error)}")


def _tiff_tags(stream: BinaryIO) -> Mapping[int, Any]:
    """The first page's tags, of a TIFF that Pillow does not open."""
    try:
        stream.seek(0)
        head = stream.read(8)
        if head[2:3] == b"+" or head[3:4] == b"+":
            head += stream.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        stream.seek(tags.next)
        tags.load(stream)
        found = _chosen(tags)
        if not (isinstance(found[256], int) and isinstance(found[257], int)):
            raise ValueError("a size that is none")
    except Exception as error:
        raise DataError(f"damaged image header: a TIFF without a readable directory ({one_line(error)})") from error
    return found


def _chosen(tags: Mapping[int, Any]) -> Mapping[int, Any]:
    """A copy: Pillow takes the orientation away when it loads the pixels."""
    return {number: tags[number] for number in _TAGS if number in tags}


def _is_reduced(tags: Mapping[int, Any]) -> bool:
    """Whether a TIFF begins with a reduced picture, as Nikon's and Sony's raw files do."""
    kind = tags.get(254, 0)
    return isinstance(kind, int) and bool(kind & 1)


def opened_bytes(data: bytes, max_pixels: int | None = None) -> Header:
    """`open_header` of a file that is in memory."""
    return open_header(io.BytesIO(data), max_pixels)
