"""The transparent colour of a PNG (tRNS), at every depth: exactly the pixels of this colour are transparent."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.photo import encode_photo, read_photo
from tests.images.files import icc
from tests.images.files.test_decode import icc_chunk

GRAY, RGB, PALETTE = 0, 2, 3


def png(samples: np.ndarray, bits: int, color: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Write a PNG without the libraries under test from samples (H, W, channels) of `bits` bits."""
    height, width, _ = samples.shape
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in samples]
    else:
        binary = np.unpackbits(samples.astype(np.uint8)[..., None], axis=3)[..., -bits:]
        rows = [np.packbits(row.reshape(-1)).tobytes() for row in binary]
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    return b"\x89PNG\r\n\x1a\n" + body


def drawn(bits: int, channels: int) -> np.ndarray:
    """Make samples (16, 31, channels) with every value at least twice."""
    count = min(1 << bits, 200)
    values = np.resize(np.linspace(0, (1 << bits) - 1, count).round().astype(np.uint16), (16, 31))
    return (
        np.stack([values] * channels, axis=2)
        if channels == 1
        else np.stack([values, values[::-1], values.T.reshape(16, 31)], 2)
    )


def check(data: bytes, colors: np.ndarray, transparent: np.ndarray) -> None:
    """Check the decoded colors (H, W, 3) in [0, 1], over white where `transparent`, bool (H, W), is set."""
    assert 0 < transparent.sum() < transparent.size
    expected = np.where(transparent[..., None], 1, colors)
    np.testing.assert_allclose(decode_image(data), expected, atol=1e-6)
    photo = read_photo(data, 10**6)
    assert photo.alpha is not None
    assert np.array_equal(photo.alpha, np.where(transparent, 0, 1))
    opened = Image.open(io.BytesIO(encode_photo(photo, ".png"))).convert("RGBA")
    assert np.array_equal(np.asarray(opened)[..., 3] == 0, transparent)


@pytest.mark.parametrize(("bits", "above"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (2, 1), (4, 1), (8, 1)])
def test_gray(bits: int, above: int) -> None:
    """Bits of the key above those of a sample have no meaning."""
    samples, top = drawn(bits, 1), (1 << bits) - 1
    for key in {0, 1, top, int(samples[2, 3, 0])}:
        if key not in samples:
            continue
        data = png(samples, bits, GRAY, (b"tRNS", struct.pack(">H", key + (above << bits))))
        check(data, np.repeat(samples / top, 3, axis=2), samples[..., 0] == key)


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_gray_with_a_profile(bits: int) -> None:
    samples, top = drawn(bits, 1), (1 << bits) - 1
    key = int(samples[2, 3, 0])
    data = png(samples, bits, GRAY, icc_chunk(icc.linear_gray()), (b"tRNS", struct.pack(">H", key)))
    expected = np.where(samples == key, 1, icc.srgb_encode(samples / top))
    np.testing.assert_allclose(decode_image(data), np.repeat(expected, 3, axis=2), atol=0.56 / 255)


def test_a_key_that_no_pixel_has() -> None:
    samples = drawn(2, 1) % 3
    data = png(samples, 2, GRAY, (b"tRNS", struct.pack(">H", 3)))
    np.testing.assert_allclose(decode_image(data), np.repeat(samples / 3, 3, axis=2), atol=1e-6)


@pytest.mark.parametrize("above", [0, 256])
@pytest.mark.parametrize("bits", [8, 16])
def test_colour(bits: int, above: int) -> None:
    samples, top = drawn(bits, 3), (1 << bits) - 1
    key = samples[2, 3]
    stored = [(int(value) + (above if bits == 8 else 0)) for value in key]
    data = png(samples, bits, RGB, (b"tRNS", struct.pack(">HHH", *stored)))
    check(data, samples / top, (samples == key).all(axis=2))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette(bits: int) -> None:
    """Each entry of a palette has its own transparency; entries that are not named are opaque."""
    samples = drawn(bits, 1)
    table = np.random.default_rng(0).integers(0, 256, (1 << bits, 3), dtype=np.uint8)
    data = png(samples, bits, PALETTE, (b"PLTE", table.tobytes()), (b"tRNS", bytes([255, 0][: 1 << bits])))
    check(data, table[samples[..., 0]] / 255, samples[..., 0] == 1)
