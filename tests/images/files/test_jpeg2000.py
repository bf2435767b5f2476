"""JPEG 2000 above 8 bits: white stays white, and the depth is kept."""

from __future__ import annotations

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from gmd_ray.errors import DataError
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.photo import encode_photo, read_photo
from tests.images.files import icc

LOSSLESS = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]


def ramps(bits: int, channels: int) -> np.ndarray:
    """Make a ramp from black to full white, uint16 (64, 64, channels)."""
    y, x = np.mgrid[:64, :64]
    ramp = (x * 64 + y) * ((1 << bits) - 1) // 4095
    return np.stack([ramp, ramp[::-1], ramp.T, ramp[:, ::-1]][:channels], axis=2).astype(np.uint16)


def jp2(samples: np.ndarray, bits: int, signed: bool = False) -> bytes:
    """Written at 16 bits around the middle of the range, and the depth changed: the stream of a lossless file is the
    distance from the middle, whatever the depth."""
    middle = samples.astype(int) - (1 << bits >> 1) + 32768
    n = samples.shape[2]
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[n]
    return with_depth(cv2.imencode(".jp2", middle.astype(np.uint16)[..., order], LOSSLESS)[1].tobytes(), bits, signed)


def with_depth(data: bytes, bits: int, signed: bool = False) -> bytes:
    changed = bytearray(data)
    at = changed.index(b"\xff\x4f\xff\x51") + 40
    for i in range(struct.unpack_from(">H", changed, at)[0]):
        changed[at + 2 + 3 * i] = (bits - 1) | (0x80 if signed else 0)
    return bytes(changed)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bits", [9, 10, 12, 15, 16])
def test_every_depth(bits: int, channels: int, signed: bool) -> None:
    samples = ramps(bits, channels)
    x = samples / ((1 << bits) - 1)
    colors = np.repeat(x, 3, axis=2) if channels == 1 else x[..., :3]
    data = jp2(samples, bits, signed)
    photo = read_photo(data, 10**6)
    np.testing.assert_allclose(photo.rgb, colors, atol=1e-6)
    assert photo.rgb.max() == 1
    assert photo.bits == 16
    assert photo.gray == (channels == 1)
    if channels == 4:
        assert photo.alpha is not None
        np.testing.assert_allclose(photo.alpha, x[..., 3], atol=1e-6)
        colors = colors * x[..., 3:] + 1 - x[..., 3:]
    np.testing.assert_allclose(decode_image(data), colors, atol=1e-6)
    again = cv2.imdecode(np.frombuffer(encode_photo(photo, ".png"), np.uint8), cv2.IMREAD_UNCHANGED)
    assert again.dtype == np.uint16


def test_a_bare_codestream() -> None:
    data = jp2(ramps(12, 3), 12)
    bare = data[data.index(b"\xff\x4f\xff\x51") :]
    assert np.array_equal(decode_image(bare), decode_image(data))


def test_8_bits_stay_8() -> None:
    samples = (ramps(8, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, "JPEG2000")
    assert np.array_equal(decode_image(buffer.getvalue()), samples / np.float32(255))
    assert read_photo(buffer.getvalue(), 10**6).bits == 8


def with_profile(data: bytes, profile: bytes) -> bytes:
    """A JP2 file may have an ICC profile instead of a named colour space."""
    at, header = data.index(b"colr") - 4, data.index(b"jp2h") - 4
    (size,) = struct.unpack_from(">I", data, at)
    body = b"colr" + bytes([2, 0, 0]) + profile
    changed = bytearray(data[:at] + struct.pack(">I", len(body) + 4) + body + data[at + size :])
    struct.pack_into(">I", changed, header, struct.unpack_from(">I", data, header)[0] + len(body) + 4 - size)
    return bytes(changed)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_its_profile_is_used(bits: int) -> None:
    """The profile is in a box that Pillow does not read."""
    samples = ramps(bits, 3)
    data = with_profile(jp2(samples, bits), icc.linear_rgb())
    expected = icc.srgb_encode(samples / ((1 << bits) - 1))
    np.testing.assert_allclose(decode_image(data), expected, atol=(0.56 if bits == 8 else 0.15) / 255)
    assert read_photo(data, 10**6).icc == icc.linear_rgb()


def test_what_is_not_read_says_so() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16, 2), 90, np.uint8)).save(buffer, "JPEG2000")
    rgb = jp2(ramps(12, 3), 12)
    at = rgb.index(b"colr") + 7
    for data, reason in (
        (with_depth(buffer.getvalue(), 9), "JPEG 2000 of gray and alpha in more than 8 bits"),
        (rgb[:at] + struct.pack(">I", 18) + rgb[at + 4 :], "luma and chroma in more than 8 bits"),
        (with_depth(jp2(ramps(16, 1), 16), 20), "JPEG 2000 of 20 bits"),
        (rgb[: len(rgb) // 2], "damaged or truncated JPEG2000"),
    ):
        with pytest.raises(DataError, match=reason) as caught:
            decode_image(data)
        assert "\n" not in str(caught.value)


def test_damage_is_told() -> None:
    data, rng = jp2(ramps(12, 3), 12), np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(rng.integers(1, 6)):
            damaged[rng.integers(200)] = rng.integers(256)
        try:
            out = decode_image(bytes(damaged), max_pixels=10**6)
        except DataError:
            continue
        assert out.shape[2] == 3
        assert 0 <= out.min() <= out.max() <= 1
