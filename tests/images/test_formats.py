"""Every ending that is listed either decodes here or says why not."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from gmd_ray.errors import DataError
from gmd_ray.images.decode import decode_image
from gmd_ray.images.listing import DECODED, NOT_DECODED, list_images

KINDS: dict[str, tuple[str, str, dict[str, object], float]] = {
    ".png": ("PNG", "RGB", {}, 0),
    ".bmp": ("BMP", "RGB", {}, 0),
    ".tif": ("TIFF", "RGB", {}, 0),
    ".tiff": ("TIFF", "RGB", {}, 0),
    ".webp": ("WEBP", "RGB", {"lossless": True}, 0),
    ".gif": ("GIF", "L", {}, 0),
    ".jp2": ("JPEG2000", "RGB", {}, 0),
    ".avif": ("AVIF", "RGB", {"quality": 100, "subsampling": "4:4:4"}, 4),
    ".pbm": ("PPM", "1", {}, 0),
    ".pgm": ("PPM", "L", {}, 0),
    ".ppm": ("PPM", "RGB", {}, 0),
    ".pnm": ("PPM", "RGB", {}, 0),
    **{ending: ("JPEG", "RGB", {"quality": 98, "subsampling": 0}, 4) for ending in (".jpg", ".jpeg", ".jpe", ".jfif")},
}
"""Ending -> Pillow's format, mode, options, and how far a level may be off."""


def picture(mode: str) -> Image.Image:
    """Smooth, so that JPEG keeps it."""
    y, x = np.mgrid[0:24, 0:40]
    return Image.fromarray(np.stack([x * 6, y * 10, 255 - x * 3 - y * 4], -1).astype(np.uint8)).convert(mode)


def test_every_decoded_ending_has_a_case() -> None:
    assert set(KINDS) == DECODED


@pytest.mark.parametrize("ending", sorted(KINDS))
def test_what_is_listed_decodes(ending: str, tmp_path: Path) -> None:
    kind, mode, options, off = KINDS[ending]
    path = tmp_path / f"photo{ending.upper()}"
    picture(mode).save(path, kind, **options)
    assert [file.id for file in list_images(str(tmp_path))] == [path.name]
    expected = np.asarray(picture(mode).convert("RGB")).astype(int)
    assert np.abs(np.rint(decode_image(path.read_bytes()) * 255) - expected).max() <= off


def tiff(**options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((4, 6), np.uint8), metadata=None, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def canon() -> bytes:
    """A TIFF with CR2's mark behind the header: 6 x 4 black pixels."""
    entries = [(256, 6), (257, 4), (258, 8), (259, 1), (262, 1), (273, 130), (277, 1), (278, 4), (279, 24)]
    ifd = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in entries)
    return b"II*\0" + struct.pack("<I", 16) + b"CR\2\0" + bytes(4) + ifd + struct.pack("<I", 0) + bytes(24)


UNREADABLE = {
    ".heic": (b"\0\0\0\x18ftypheic" + bytes(64), "HEIC that this program cannot decode: convert to PNG"),
    ".heif": (b"\0\0\0\x18ftypmif1" + bytes(64), "HEIC that this program cannot decode: convert to PNG"),
    ".dng": (tiff(extratags=[(50706, "B", 4, (1, 4, 0, 0), True)]), "raw file, whose first picture is a preview"),
    ".cr2": (canon(), "raw file, whose first picture is a preview"),
    ".nef": (tiff(subfiletype=1), "raw file, whose first picture is a preview"),
    ".arw": (tiff(subfiletype=1), "raw file, whose first picture is a preview"),
}


@pytest.mark.parametrize("ending", sorted(NOT_DECODED))
def test_what_does_not_decode_is_listed_and_says_why(ending: str, tmp_path: Path) -> None:
    data, reason = UNREADABLE[ending]
    (tmp_path / f"a{ending}").write_bytes(data)
    (tmp_path / "b.png").write_bytes(b"")
    assert [file.id for file in list_images(str(tmp_path))] == [f"a{ending}", "b.png"]
    with pytest.raises(DataError, match=reason):
        decode_image(data)


def test_an_ordinary_tiff_is_no_raw_file() -> None:
    assert decode_image(tiff()).shape == (4, 6, 3)
    assert decode_image(canon().replace(b"CR", b"XX")).shape == (4, 6, 3)


def test_a_raw_file_beside_its_jpeg_is_the_same_photo(tmp_path: Path) -> None:
    for name in ("a.NEF", "a.jpg", "b.NEF", "sub/a.dng", "sub/b.JPG", "sub/b.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [file.id for file in list_images(str(tmp_path))] == ["a.jpg", "b.NEF", "sub/a.dng", "sub/b.JPG"]
