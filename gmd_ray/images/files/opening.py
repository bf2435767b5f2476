"""Opening of image files, with a fixed list of formats and a bound on the number of pixels.

Nothing else in this package calls `PIL.Image.open`. Without a list of formats, it would try all of Pillow's readers:
a PostScript file named `.png` would start Ghostscript on its content.
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

# Pillow prints a warning, without the file's name, for each of the thousands of odd tags that a file may have.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

FORMATS = tuple(known.name for known in READ if known.name in Image.OPEN)  # Pillow may be built without some
"""Pillow's names of the formats that are opened. JPEG covers MPO. DIB files without the BMP file header are refused."""

MAX_PIXELS = 2**30
"""The largest number of pixels of a picture, whatever the settings allow. It is OpenCV's bound."""

_CONVERT = "convert it to PNG, TIFF or JPEG"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TAGS = (254, 256, 257, 258, 262, 274, 277, 284, 338, 339, 34675, 50706)
"""TIFF tags kept in a FileHeader: NewSubfileType, ImageWidth, ImageLength, BitsPerSample, PhotometricInterpretation,
Orientation, SamplesPerPixel, PlanarConfiguration, ExtraSamples, SampleFormat, ICC profile, DNGVersion."""
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
"""First bytes of other kinds of files, which may be misnamed as images -> a description."""


@dataclass(frozen=True)
class FileHeader:
    """The facts read from the beginning of a file."""

    format: str
    """One of `FORMATS`."""
    size: tuple[int, int]
    """Size as (width, height). For a TIFF it is upright already, as Pillow reports it."""
    image: Image.Image | None
    """Pillow's image, not yet loaded; None for a TIFF whose samples Pillow does not support."""
    tags: Mapping[int, Any]
    """Tag number -> value, or a tuple of one value per sample, for the `_TAGS` of a TIFF's first page."""


def open_header(stream: BinaryIO, max_pixels: int | None = None) -> FileHeader:
    """Read the format and size of an image file.

    Args:
        stream: seekable file. Pillow keeps it to read the pixels later.
        max_pixels: value of `target.max_pixels`; None for `MAX_PIXELS` alone.

    Raises:
        DataError: the file is empty, not an image, of a format that is not opened, too large or a camera's raw file, or
            its header is damaged. The message is one line and does not name the file.
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
    return FileHeader(name, size, image, tags)


def _opened(stream: BinaryIO) -> Image.Image:
    stream.seek(0)
    # Pillow's bound is a global constant. It is switched off, as `_check` applies the bound from the settings instead.
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
    """Read the tags of the first page of a TIFF that Pillow does not open."""
    try:
        stream.seek(0)
        head = stream.read(8)
        if head[2:3] == b"+" or head[3:4] == b"+":
            head += stream.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        stream.seek(tags.next)
        tags.load(stream)
        chosen = _chosen(tags)
        if not (isinstance(chosen[256], int) and isinstance(chosen[257], int)):
            raise ValueError("width and height are not integers")
    except Exception as error:
        raise DataError(f"damaged image header: a TIFF without a readable directory ({one_line(error)})") from error
    return chosen


def _chosen(tags: Mapping[int, Any]) -> Mapping[int, Any]:
    """Copy the tags in `_TAGS`. Pillow removes the orientation from its own tags when it loads the pixels."""
    return {number: tags[number] for number in _TAGS if number in tags}


def _is_reduced(tags: Mapping[int, Any]) -> bool:
    """Tell whether the first picture of a TIFF is a reduced one, as in Nikon's and Sony's raw files."""
    kind = tags.get(254, 0)
    return isinstance(kind, int) and bool(kind & 1)


def opened_bytes(data: bytes, max_pixels: int | None = None) -> FileHeader:
    """Read the header of a file in memory; see `open_header`."""
    return open_header(io.BytesIO(data), max_pixels)
