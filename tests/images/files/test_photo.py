"""Files read and written back: what they carry must come back, as Pillow, OpenCV and tifffile see it."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from gmd_ray.errors import DataError
from gmd_ray.images.files.photo import FORMATS, encode_photo, read_photo
from tests.images.files.icc import constant_cmyk, linear_gray, linear_rgb

LIMIT = 10**6


@pytest.fixture
def rgba() -> np.ndarray:
    """Smooth and without symmetry: uint8 (12, 20, 4)."""
    y, x = np.mgrid[0:12, 0:20].astype(np.float32)
    return np.stack([x * 12, y * 20, 255 - x * 6 - y * 8, 40 + x * 9], -1).round().astype(np.uint8)


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def there_and_back(data: bytes, suffix: str) -> bytes:
    return encode_photo(read_photo(data, LIMIT), suffix)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def exif(**tags: object) -> Image.Exif:
    block = Image.Exif()
    block[0x010F] = "Camera & Co"
    block.update({int(key[1:], 16): value for key, value in tags.items()})
    return block


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_8_bit_files_come_back_sample_by_sample(rgba: np.ndarray, mode: str, suffix: str) -> None:
    channels = {"L": rgba[..., 0], "LA": rgba[..., [0, 3]], "RGB": rgba[..., :3], "RGBA": rgba}[mode]
    data = save(Image.fromarray(channels), FORMATS[suffix], icc_profile=linear_rgb() if mode[0] == "R" else None)
    again = opened(there_and_back(data, suffix))
    assert again.mode == mode
    assert np.array_equal(np.asarray(again), channels)
    assert again.info.get("icc_profile") == (linear_rgb() if mode[0] == "R" else None)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("source", [".png", ".tif"])
@pytest.mark.parametrize("target", [".png", ".tif"])
def test_16_bit_files_come_back_sample_by_sample(channels: int, source: str, target: str) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (7, 9, channels), dtype=np.uint16)
    icc = linear_gray() if channels == 1 else linear_rgb()
    if source == ".png":
        _, code = cv2.imencode(".png", samples[..., {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]])
        body = b"icc\0\0" + zlib.compress(icc)
        chunk = struct.pack(">I", len(body)) + b"iCCP" + body + struct.pack(">I", zlib.crc32(b"iCCP" + body))
        data = code.tobytes()[:33] + chunk + code.tobytes()[33:]
    else:
        buffer = io.BytesIO()
        extra = ["unassalpha"] if channels == 4 else None
        kind = "minisblack" if channels == 1 else "rgb"
        tifffile.imwrite(buffer, samples.squeeze(), photometric=kind, extrasamples=extra, iccprofile=icc)
        data = buffer.getvalue()
    again = there_and_back(data, target)
    if target == ".png":
        read = cv2.imdecode(np.frombuffer(again, np.uint8), cv2.IMREAD_UNCHANGED).reshape(7, 9, -1)
        read = read[..., {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]]
    else:
        read = tifffile.imread(io.BytesIO(again)).reshape(7, 9, -1)
    assert read.dtype == np.uint16
    assert np.array_equal(read, samples)
    assert opened(again).info["icc_profile"] == icc


def test_deep_gray_with_alpha_becomes_a_tiff_that_opens() -> None:
    gray = np.random.default_rng(0).integers(0, 65536, (7, 9), dtype=np.uint16)
    body = struct.pack(">H", gray[2, 3])  # the colour key: that gray is transparent
    chunk = struct.pack(">I", len(body)) + b"tRNS" + body + struct.pack(">I", zlib.crc32(b"tRNS" + body))
    code = cv2.imencode(".png", gray)[1].tobytes()
    again = there_and_back(code[:33] + chunk + code[33:], ".tif")
    assert opened(again).mode == "RGBA"
    read = tifffile.imread(io.BytesIO(again))
    assert all(np.array_equal(read[..., channel], gray) for channel in range(3))
    assert read[2, 3, 3] == 0
    assert np.count_nonzero(read[..., 3] == 0) == np.count_nonzero(gray == gray[2, 3])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_stays_and_its_orientation_is_done(rgba: np.ndarray, kind: str) -> None:
    suffix = {name: suffix for suffix, name in FORMATS.items()}[kind]
    image = Image.fromarray(rgba[..., :3])
    options = {"lossless": True} if kind == "WEBP" else {"quality": 98, "subsampling": 0}
    data = save(image, kind, exif=exif(x0112=6), **options)  # "rotate 90 clockwise to view"
    again = opened(there_and_back(data, suffix))
    assert again.size == (12, 20)
    assert again.getexif()[0x010F] == "Camera & Co"
    assert again.getexif()[0x0112] == 1
    expected = np.rot90(rgba[..., :3], -1).astype(int)
    assert np.abs(np.asarray(again.convert("RGB")).astype(int) - expected).max() < (1 if kind == "PNG" else 24)


def test_orientation_turns_transparency_along(rgba: np.ndarray) -> None:
    photo = read_photo(save(Image.fromarray(rgba), "PNG", exif=exif(x0112=8)), LIMIT)
    assert photo.alpha is not None
    assert np.array_equal(np.rint(photo.alpha * 255), np.rot90(rgba[..., 3]))


def test_jpeg_lays_transparency_over_white_and_takes_8_bits(rgba: np.ndarray) -> None:
    again = opened(there_and_back(save(Image.fromarray(rgba), "PNG", icc_profile=linear_rgb()), ".jpg"))
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert again.mode == "RGB"
    assert again.info["icc_profile"] == linear_rgb()
    assert np.abs(np.asarray(again) - expected).max() < 8


def test_palettes_bits_and_cmyk(rgba: np.ndarray) -> None:
    palette = Image.fromarray(rgba[..., :3]).quantize(16)
    assert np.array_equal(
        np.asarray(opened(there_and_back(save(palette, "GIF"), ".png"))), np.asarray(palette.convert("RGB"))
    )
    assert opened(there_and_back(save(Image.new("1", (4, 4), 1), "PNG"), ".png")).getpixel((0, 0)) == 255
    cmyk = save(Image.new("CMYK", (4, 4), (255, 0, 255, 0)), "TIFF", icc_profile=constant_cmyk(50))
    again = opened(there_and_back(cmyk, ".png"))
    assert "icc_profile" not in again.info  # its colours are sRGB now
    assert abs(again.getpixel((0, 0))[0] - 119) <= 3  # L* 50


def test_damaged_files_are_told() -> None:
    whole = save(Image.effect_noise((40, 40), 50), "PNG")
    with pytest.raises(DataError, match="truncated"):
        read_photo(whole[:-400], LIMIT)
    with pytest.raises(DataError, match="not an image"):
        read_photo(b"text", LIMIT)
    with pytest.raises(DataError, match=r"more than target\.max_pixels=100"):
        read_photo(whole, 100)
