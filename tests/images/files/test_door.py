"""Opening image files: the listed formats up to a size are opened, and anything else gives an error of one line."""

from __future__ import annotations

import io
import logging
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, PngImagePlugin

import gmd_ray
from gmd_ray.errors import DataError
from gmd_ray.images.files.decode import decode_8bit, decode_image
from gmd_ray.images.files.opening import FORMATS, MAX_PIXELS, opened_bytes
from gmd_ray.images.files.photo import read_photo
from gmd_ray.images.listing import DECODED, ImageFile
from gmd_ray.images.sizes import image_sizes
from tests.images.files.test_decode import exif, save
from tests.images.files.test_formats import KINDS
from tests.images.files.test_tiffs import refused, written

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 10 10
%%EndComments
showpage
%%EOF
"""


def size_of(data: bytes, path: Path, max_pixels: int = 10**6) -> tuple[int, int] | None:
    path.write_bytes(data)
    return image_sizes([ImageFile(path.name, str(path))], max_pixels)[0]


def test_the_formats_are_those_of_the_endings() -> None:
    assert set(FORMATS) == {kind for kind, *_ in KINDS.values()} - {"MPO"}  # Pillow opens those as JPEG
    assert set(KINDS) == DECODED


def test_there_is_no_other_door() -> None:
    """Every file that this package opens as an image passes `opening.open_header`."""
    root = Path(gmd_ray.__file__).parent
    pattern = re.compile(r"\bImage\.open\(|\bimread\(|from PIL\.Image import|tifffile\.imread")
    found = {
        path.relative_to(root).as_posix() for path in root.rglob("*.py") if pattern.search(path.read_text("utf-8"))
    }
    assert found == {"images/files/opening.py"}
    assert "Image.open(stream, formats=FORMATS)" in (root / "images" / "files" / "opening.py").read_text("utf-8")


def test_ghostscript_is_never_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PostScript file named `.png` must not reach Pillow's reader that starts `gs`."""
    mark, tool = tmp_path / "was_here", tmp_path / "bin" / "gs"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\ntouch '{mark}'\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    for read in (decode_image, decode_8bit, lambda data: read_photo(data, None)):
        with pytest.raises(DataError, match="PostScript, which this program does not decode: convert it to PNG"):
            read(EPS)
    assert size_of(EPS, tmp_path / "photo.png") is None
    assert not mark.exists()
    with pytest.raises(Exception, match=r"gs|Ghostscript"):  # the control: it would have been
        Image.open(io.BytesIO(EPS)).load()
    assert mark.exists()


def others() -> dict[str, bytes]:
    picture = Image.new("RGB", (16, 16), "red")
    made = {kind: save(picture, kind) for kind in ("EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "DIB", "DDS", "ICNS")}
    return made | {
        "PostScript": EPS,
        "Photoshop": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 4, 4, 8, 3) + bytes(100),
        "FITS": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "WMF": b"\xd7\xcd\xc6\x9a\0\0" + bytes(100),
        "GRIB": b"GRIB\0\0\0\1" + bytes(100),
        "BUFR": b"BUFR" + bytes(100),
        "XPM": b'/* XPM */\nstatic char *x[] = {"1 1 1 1", "a c #ff0000", "a"};',
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "JPEG XL": b"\xff\x0a" + bytes(100),
        "OpenEXR": b"v/1\x01" + bytes(100),
        "CR3": b"\0\0\0\x18ftypcrx " + bytes(100),
        "RAF": b"FUJIFILMCCD-RAW 0201" + bytes(100),
        "RW2": b"IIU\0\x18\0\0\0" + bytes(100),
        "ORF": b"IIRO\x08\0\0\0" + bytes(100),
        "a letter": b"x",
        "HTML": b"<!doctype html><title>404</title>",
    }


@pytest.mark.parametrize("kind", others())
def test_other_formats_are_one_line(kind: str, tmp_path: Path) -> None:
    data = others()[kind]
    with pytest.raises(DataError, match=r"this program does not decode: (convert|develop) it to ") as caught:
        decode_image(data)
    assert "\n" not in str(caught.value)
    if kind in ("PostScript", "Photoshop", "FITS", "HDF5", "WMF", "JPEG XL", "OpenEXR"):
        assert kind in str(caught.value)
    if kind in ("CR3", "RAF", "RW2", "ORF"):
        assert f"raw file ({kind}), which this program does not decode: develop it to" in str(caught.value)
    assert size_of(data, tmp_path / "photo.png") is None


@pytest.mark.parametrize(
    "error", [RuntimeError, RecursionError, AttributeError, AssertionError, OverflowError, MemoryError]
)
def test_whatever_a_decoder_raises_is_the_file_s_fault(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    data = save(Image.new("RGB", (8, 9)), "PNG")

    def broken(self: object) -> None:
        raise error("two\nlines")

    for method, told in (("load", "damaged or truncated PNG|memory"), ("_open", "damaged image header")):
        with monkeypatch.context() as patched:
            patched.setattr(PngImagePlugin.PngImageFile, method, broken)
            with pytest.raises(DataError, match=told) as caught:
                decode_image(data)
            assert "\n" not in str(caught.value)


def header_of(width: int, height: int) -> bytes:
    """Make the header of a gray PNG without its pixels."""
    body = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + body + struct.pack(">I", zlib.crc32(b"IHDR" + body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 4) + b"IDAT" + bytes(8)


def test_the_setting_is_the_bound(tmp_path: Path) -> None:
    """Pillow's own bound of 178,956,970 pixels, and its warning at half of it, have no effect."""
    assert opened_bytes(header_of(14_000, 14_000), 10**9).size == (14_000, 14_000)
    assert opened_bytes(header_of(14_000, 14_000)).size == (14_000, 14_000)
    assert size_of(header_of(14_000, 14_000), tmp_path / "a.png", 10**9) == (14_000, 14_000)
    for width, bound in ((11_656, 89_478_485), (14_000, 120_000_000), (9_000, 80_999_999)):
        with pytest.raises(DataError, match=rf"too large: {width}x{width} is more than target\.max_pixels={bound}$"):
            decode_image(header_of(width, width), max_pixels=bound)
        assert size_of(header_of(width, width), tmp_path / "a.png", bound) is None


def bombs() -> dict[str, bytes]:
    gif = save(Image.new("P", (4, 4)), "GIF")
    bmp = save(Image.new("RGB", (4, 4)), "BMP")
    jp2 = save(Image.new("RGB", (16, 16)), "JPEG2000")
    at = jp2.index(b"ihdr") + 4
    return {
        "PNG": header_of(60_000, 60_000),
        "GIF": gif[:6] + b"\xff\xff\xff\xff" + gif[10:],
        "BMP": bmp[:18] + struct.pack("<ii", 2**30, 2) + bmp[26:],
        "PPM": b"P6 99999 99999 255\n" + bytes(100),
        "JPEG2000": jp2[:at] + struct.pack(">II", 2**16, 2**16) + jp2[at + 8 :],
        "TIFF": written(np.zeros((8, 9, 3), np.float32)).replace(
            struct.pack("<HHII", 256, 4, 1, 9), struct.pack("<HHII", 256, 4, 1, 2**31)
        ),
    }


@pytest.mark.parametrize("kind", bombs())
def test_no_setting_lifts_the_last_bound(kind: str, tmp_path: Path) -> None:
    for bound in (None, 10**12):
        with pytest.raises(DataError, match=rf"too large: .*more than {MAX_PIXELS:,} pixels"):
            decode_image(bombs()[kind], max_pixels=bound)
    assert size_of(bombs()[kind], tmp_path / "a.png", 10**12) is None


@pytest.mark.parametrize(
    ("name", "head"),
    [(b"iCCP", b"x\0\0"), (b"zTXt", b"x\0\0"), (b"iTXt", b"x\0\1\0\0\0")],
    ids=["iCCP", "zTXt", "iTXt"],
)
def test_a_chunk_that_unpacks_to_very_much_is_refused(name: bytes, head: bytes) -> None:
    body = head + zlib.compress(bytes(100 << 20), 9)
    png = save(Image.new("RGB", (4, 4), "red"), "PNG")
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    with pytest.raises(DataError, match=r"^damaged image header: .*too large"):
        decode_image(png[:33] + chunk + png[33:])


def test_of_animations_and_several_pictures_the_first_is_read() -> None:
    frames = [Image.new("RGB", (24, 16), color) for color in ("red", "blue", "lime")]
    for kind in ("GIF", "PNG", "WEBP", "AVIF", "TIFF", "MPO"):
        data = save(frames[0], kind, save_all=True, append_images=frames[1:])
        out = decode_image(data)
        assert out.shape == (16, 24, 3), kind
        np.testing.assert_allclose(out[8, 12], [1, 0, 0], atol=0.02, err_msg=kind)
        assert not read_photo(data, None).gray


def test_sizes_agree_with_what_is_decoded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The picture's size upright, or None, for good and bad files of every kind."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8))
    files = {kind: save(picture.convert(mode), kind) for kind, mode, *_ in KINDS.values()}
    files |= {f"turned {kind}": save(picture, kind, exif=exif(6)) for kind in ("PNG", "JPEG", "WEBP", "AVIF")}
    files["turned TIFF"] = save(picture, "TIFF", tiffinfo={0x0112: 6})
    files["turned floats"] = written(np.zeros((16, 24, 3), np.float32), extratags=[(274, "H", 1, 6, True)])
    files["MPO"] = save(picture, "MPO", save_all=True, append_images=[picture])
    files |= {"gray and alpha": written(np.zeros((16, 24, 2), np.uint16)), "empty": b"", **others(), **bombs()}
    with caplog.at_level(logging.CRITICAL):
        for name, data in files.items():
            for bound in (10**6, 300):
                try:
                    expected = decode_image(data, max_pixels=bound).shape[:2]
                except DataError:
                    expected = None
                assert size_of(data, tmp_path / "a.png", bound) == expected, name
    # What a header does not tell: the range of floats, and the end of the file.
    assert size_of(written(np.full((16, 24, 3), 9, np.float32)), tmp_path / "a.png") == (16, 24)


def test_samples_that_are_not_read_have_no_size(tmp_path: Path) -> None:
    for name, (data, _) in refused().items():
        if "torn" not in name:
            assert size_of(data, tmp_path / "a.tif") is None, name
