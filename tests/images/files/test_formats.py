"""Files of every listed extension are decoded, or refused with the reason."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from gmd_ray.errors import DataError
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.formats import READ, REFUSED, ending, refusal_by_name, sniff
from gmd_ray.images.listing import DECODED, NOT_DECODED, list_images, read_file

KINDS: dict[str, tuple[str, str, dict[str, object], float]] = {
    ".png": ("PNG", "RGB", {}, 0),
    ".bmp": ("BMP", "RGB", {}, 0),
    ".tif": ("TIFF", "RGB", {}, 0),
    ".tiff": ("TIFF", "RGB", {}, 0),
    ".webp": ("WEBP", "RGB", {"lossless": True}, 0),
    ".gif": ("GIF", "L", {}, 0),
    ".apng": ("PNG", "RGB", {}, 0),
    ".dib": ("BMP", "RGB", {}, 0),
    **{ending: ("JPEG2000", "RGB", {}, 0) for ending in (".jp2", ".jpf", ".jpx")},
    **{ending: ("JPEG2000", "RGB", {"no_jp2": True}, 0) for ending in (".j2k", ".j2c", ".jpc")},  # bare codestreams
    **{ending: ("AVIF", "RGB", {"quality": 100, "subsampling": "4:4:4"}, 4) for ending in (".avif", ".avifs")},
    ".mpo": ("MPO", "RGB", {"quality": 98, "subsampling": 0}, 4),
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
    ".heic": (b"\0\0\0\x18ftypheic" + bytes(64), "a HEIC photo, which this program does not decode: convert it to PNG"),
    ".heif": (b"\0\0\0\x18ftypmif1" + bytes(64), "a HEIC photo, which this program does not decode: convert it to PNG"),
    ".dng": (tiff(extratags=[(50706, "B", 4, (1, 4, 0, 0), True)]), "raw file, whose first picture is a preview"),
    ".cr2": (canon(), "raw file, whose first picture is a preview"),
    ".nef": (tiff(subfiletype=1), "raw file, whose first picture is a preview"),
    ".arw": (tiff(subfiletype=1), "raw file, whose first picture is a preview"),
}
"""Refused formats that the first bytes identify too."""


@pytest.mark.parametrize("suffix", sorted(NOT_DECODED))
def test_what_does_not_decode_is_listed_and_is_not_read(suffix: str, tmp_path: Path) -> None:
    """Raw files are refused by name, as many are TIFFs whose first picture is a small preview."""
    (tmp_path / f"a{suffix.upper()}").write_bytes(tiff())
    (tmp_path / "b.png").write_bytes(b"")
    images = list_images(str(tmp_path))
    assert [file.id for file in images] == [f"a{suffix.upper()}", "b.png"]
    with pytest.raises(DataError, match=r"which this program does not decode: (develop|convert) it to") as caught:
        read_file(images[0].uri)
    assert NOT_DECODED[suffix].name in str(caught.value)
    assert read_file(images[1].uri) == b""


@pytest.mark.parametrize("suffix", sorted(UNREADABLE))
def test_under_another_name_the_bytes_say_why(suffix: str) -> None:
    data, reason = UNREADABLE[suffix]
    with pytest.raises(DataError, match=reason):
        decode_image(data)


def test_endings_in_urls_and_of_ordinary_files() -> None:
    assert (
        refusal_by_name("a/b.NEF") == "a Nikon raw file, which this program does not decode: develop it to TIFF or PNG"
    )
    assert refusal_by_name("a.nef/b.png") is None
    with pytest.raises(DataError, match="Canon raw file"):
        read_file("s3://bucket/a.cr3?region=us-east-1&endpoint_override=http%3A%2F%2Flocalhost%3A9")  # not asked for


def test_every_ending_belongs_to_one_format() -> None:
    endings = [ending for known in (*READ, *REFUSED) for ending in known.endings]
    assert len(set(endings)) == len(endings)
    assert all(ending == ending.lower() and ending[0] == "." for ending in endings)
    assert {"png", "jpg", "cr3", "raf", "orf", "rw2", "jxl", "hif"} <= {ending[1:] for ending in endings}


@pytest.mark.parametrize("suffix", sorted(KINDS))
def test_first_bytes_name_the_format_that_the_ending_does(suffix: str) -> None:
    """Import knows every format that folders are read in: one table, seen to agree with real files."""
    kind, mode, options, _ = KINDS[suffix]
    buffer = io.BytesIO()
    picture(mode).save(buffer, kind, **options)
    known = sniff(buffer.getvalue())
    assert known in READ
    assert suffix in known.endings
    name = ending(buffer.getvalue(), known)
    assert name in DECODED
    if kind == "PPM" and suffix != ".pnm":
        assert name == suffix


def test_big_endian_and_big_tiffs_and_plain_pnm_are_known() -> None:
    for options in ({"byteorder": ">"}, {"bigtiff": True}, {"bigtiff": True, "byteorder": ">"}):
        known = sniff(tiff(**options))
        assert known is not None
        assert ".tif" in known.endings
    for text, name in ((b"P1\n2 2 0 1 1 0", ".pbm"), (b"P2 # x\n2 2 9", ".pgm"), (b"P3\r\n1 1 255 0 0 0", ".ppm")):
        known = sniff(text)
        assert known is not None
        assert ending(text, known) == name


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", ".cr3"),
        (canon(), ".cr2"),
        (b"FUJIFILMCCD-RAW 0201", ".raf"),
        (b"IIRO\x08\0\0\0", ".orf"),
        (b"MMOR\0\0\0\x08", ".orf"),
        (b"IIU\0\x18\0\0\0", ".rw2"),
        (b"FOVb\0\0\2\0", ".x3f"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", ".heic"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", ".heic"),
        (b"\0\0\0\x18ftypmsf1\0\0\0\0msf1hevc", ".heic"),
        (b"\xff\x0a\x00", ".jxl"),
        (b"\0\0\0\x0cJXL \r\n\x87\n\0", ".jxl"),
        (b"8BPS\0\1", ".psd"),
        (b"v/1\x01\2\0\0\0", ".exr"),
        (b"#?RADIANCE\n", ".hdr"),
        (b"qoif\0\0", ".qoi"),
        (b"II\xbc\x01", ".jxr"),
    ],
)
def test_first_bytes_of_what_is_not_decoded(data: bytes, suffix: str) -> None:
    assert sniff(data + bytes(80)) is NOT_DECODED[suffix]


def test_avif_under_the_general_brand_is_avif_and_text_is_nothing() -> None:
    known = sniff(b"\0\0\0\x20ftypmif1\0\0\0\0mif1avifmiaf" + bytes(64))
    assert known is not None
    assert known.name == "AVIF"
    for data in (b"", b"hello world", b"P7\nWIDTH 3", b"%!PS-Adobe-3.0", b"%PDF-1.7", b"RIFF\0\0\0\0WAVE", b"P6rates"):
        assert sniff(data) is None


def test_an_ordinary_tiff_is_no_raw_file() -> None:
    assert decode_image(tiff()).shape == (4, 6, 3)
    assert decode_image(canon().replace(b"CR", b"XX")).shape == (4, 6, 3)


def test_a_raw_file_beside_its_jpeg_is_the_same_photo(tmp_path: Path) -> None:
    for name in ("a.NEF", "a.jpg", "b.NEF", "sub/a.dng", "sub/b.JPG", "sub/b.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [file.id for file in list_images(str(tmp_path))] == ["a.jpg", "b.NEF", "sub/a.dng", "sub/b.JPG"]


def test_shared_input_unlisted() -> None:
    folder = Path(__file__).parents[3].parent / "shared" / "inputs" / "unlisted"
    if not folder.is_dir():
        pytest.skip("shared inputs are not here")
    images = list_images(str(folder))
    assert [image.id for image in images] == [
        *(f"IMG_1{ending}" for ending in (".cr3", ".hif", ".jxl", ".orf", ".raf", ".rw2")),
        "ok.png",
    ]
    for image, name in zip(images[:-1], ("Canon", "HEIC", "JPEG XL", "Olympus", "Fujifilm", "Panasonic"), strict=True):
        with pytest.raises(DataError, match=rf"{name}.*does not decode"):
            read_file(image.uri)
