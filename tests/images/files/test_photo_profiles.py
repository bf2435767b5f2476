"""Files that `restore` writes have a profile that fits their samples, or are sRGB without one, and look the same."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from gmd_ray.errors import DataError
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.photo import FORMATS, Photo, encode_photo, read_photo
from tests.images.files import icc
from tests.images.files.test_decode import icc_chunk, png16, save

SUFFIXES = sorted({kind: suffix for suffix, kind in FORMATS.items()}.values())
LOSSLESS = {"PNG", "TIFF", "BMP"}


@pytest.fixture
def smooth() -> np.ndarray:
    """Make uint16 (24, 40, 4) that is smooth, for JPEG, and not dark, where linear light has few 8-bit levels."""
    y, x = np.mgrid[0:24, 0:40].astype(np.float32)
    image = np.stack([90 + x * 4, 80 + y * 7, 250 - x * 2 - y * 3, 60 + x * 4], -1)
    return (image * 256).round().astype(np.uint16)


def png(samples: np.ndarray, bits: int, profile: bytes) -> bytes:
    if bits == 16:
        return png16(samples, icc_chunk(profile))
    pixels = (samples >> 8).astype(np.uint8)
    return save(Image.fromarray(pixels.squeeze()), "PNG", icc_profile=profile)


def space_and_profile(data: bytes) -> tuple[str, bytes | None]:
    """Return whether the samples of a file are gray or RGB, and its profile."""
    image = Image.open(io.BytesIO(data))
    if image.format == "PNG":
        gray = data[25] in (0, 4)
    elif image.format == "TIFF":
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            gray = int(file.pages.first.photometric) < 2
    elif image.format == "WEBP":
        gray = False
    else:
        gray = image.mode in ("L", "LA")
    return "GRAY" if gray else "RGB", image.info.get("icc_profile")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "profile", [icc.gray(icc.gamma(1.8)), icc.rgb(icc.gamma(1.8)), icc.rgb(icc.gamma(1.8), icc.P3)]
)
def test_every_way_out(smooth: np.ndarray, channels: int, bits: int, suffix: str, profile: bytes) -> None:
    samples = smooth[..., {1: [0], 2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]]
    before = png(samples, bits, profile)
    after = encode_photo(read_photo(before, None), suffix)
    space, kept = space_and_profile(after)
    if kept is not None:
        assert kept == profile
        assert kept[16:20].decode().strip() == space
    if FORMATS[suffix] in ("PNG", "TIFF") and bits == 8 and profile[16:20] == b"GRAY" and channels < 3:
        assert kept == profile  # converted is only what must be
    if channels % 2 == 0 and kept is not None and FORMATS[suffix] == "JPEG":
        return  # laid over white in the colours of the profile, not in sRGB
    off = np.abs(decode_image(after) - decode_image(before)) * 255
    assert off.max() <= 1.1 if FORMATS[suffix] in LOSSLESS else off.mean() < 2


def test_srgb_profiles_on_gray_say_nothing(smooth: np.ndarray) -> None:
    """Gray stays gray, and the profile of RGB samples goes."""
    for profile in (icc.rgb(icc.srgb_parametric(), name="any"), icc.rgb(icc.srgb_parametric(), version=4)):
        photo = read_photo(png(smooth[..., :1], 16, profile), None)
        assert photo.gray
        assert photo.icc is None
        assert space_and_profile(encode_photo(photo, ".png")) == ("GRAY", None)


def test_profiles_of_other_samples_do_not_travel(smooth: np.ndarray) -> None:
    ink = save(Image.fromarray((smooth >> 8).astype(np.uint8), "CMYK"), "TIFF", icc_profile=icc.constant_cmyk(50))
    plain = save(Image.fromarray((smooth >> 8).astype(np.uint8), "CMYK"), "TIFF", icc_profile=icc.linear_rgb())
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, np.full((24, 40, 3), (150, 0, 0), np.uint8), photometric="cielab", iccprofile=icc.linear_rgb()
    )
    files = [ink, plain, buffer.getvalue()]
    for profile in (icc.linear_gray(), icc.lab(), icc.constant_cmyk(50), b"not a profile" * 20):
        files += [png(smooth[..., :3], 16, profile), png(smooth[..., :3], 8, profile)]
    files += [png(smooth[..., :1], 16, icc.lab()), png(smooth[..., :1], 8, icc.constant_cmyk(50))]
    for i, data in enumerate(files):
        photo = read_photo(data, None)
        assert photo.icc is None, i
        for suffix in (".png", ".tif"):
            again = encode_photo(photo, suffix)
            assert space_and_profile(again)[1] is None
            np.testing.assert_allclose(decode_image(again), decode_image(data), atol=1.1 / 255)


def test_16_bit_gray_with_alpha_stays_so_in_png(smooth: np.ndarray) -> None:
    samples = smooth[..., [0, 3]]
    samples[3, 4] = 12345, 0
    after = encode_photo(read_photo(png16(samples, icc_chunk(icc.linear_gray())), None), ".png")
    assert struct.unpack(">IIBB", after[16:26]) == (40, 24, 16, 4)
    chunks, at = {}, 8
    while at < len(after):
        (size,) = struct.unpack_from(">I", after, at)
        kind, body = after[at + 4 : at + 8], after[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", after, at + 8 + size)[0] == zlib.crc32(kind + body)
        chunks[kind] = chunks.get(kind, b"") + body
        at += size + 12
    assert zlib.decompress(chunks[b"iCCP"].split(b"\0\0", 1)[1]) == icc.linear_gray()
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(24, 1 + 40 * 4)
    assert (rows[:, 0] == 2).all()  # each row less the one above
    stored = np.cumsum(rows[:, 1:].astype(np.uint64), axis=0).astype(np.uint8).copy().view(">u2").reshape(24, 40, 2)
    assert np.array_equal(stored, samples)


def test_a_side_that_a_format_cannot_hold_is_one_line() -> None:
    for suffix, side in ((".webp", 16_384), (".jpg", 65_501)):
        photo = Photo(np.zeros((1, side, 3), np.float32), None)
        with pytest.raises(DataError, match=rf"{side}x1 does not fit \w+, whose sides end at {side - 1}: write PNG"):
            encode_photo(photo, suffix)
        for within in (
            Photo(np.zeros((side - 1, 1, 3), np.float32), None),
            Photo(np.zeros((1, 9, 3), np.float32), None),
        ):
            assert decode_image(encode_photo(within, suffix)).shape == within.rgb.shape


def test_a_large_16_bit_png_is_whole() -> None:
    """More than one chunk of pixels."""
    noise = np.random.default_rng(0).integers(0, 65536, (1700, 2000, 3), dtype=np.uint16)
    photo = read_photo(png16(noise), None)
    again = encode_photo(photo, ".png")
    assert again.count(b"IDAT") >= 2
    assert np.array_equal(np.rint(decode_image(again) * 65535).astype(np.uint16), noise)
