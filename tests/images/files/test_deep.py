"""16-bit files with easily misread samples, against values computed from the format's definition."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile

from gmd_ray.errors import DataError
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.photo import read_photo
from tests.images.files.test_decode import png16, stored_as


@pytest.fixture
def samples() -> np.ndarray:
    """Make uint16 (6, 9, 4), whose last channel is an alpha that includes both extremes."""
    samples = np.random.default_rng(0).integers(0, 65536, (6, 9, 4), dtype=np.uint16)
    samples[0, :4, 3] = (0, 65535, 1, 30000)
    return samples


def tiff(samples: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, metadata=None, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def planes(samples: np.ndarray, **options: object) -> bytes:
    return tiff(np.moveaxis(samples, 2, 0).copy(), photometric="rgb", planarconfig="separate", **options)


def over_white(samples: np.ndarray) -> np.ndarray:
    x = samples / 65535
    return x[..., :3] * x[..., 3:] + 1 - x[..., 3:]


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"byteorder": ">"}])
def test_planes_are_not_read_as_interleaved(samples: np.ndarray, options: dict[str, object]) -> None:
    expected = samples[..., :3] / 65535
    np.testing.assert_allclose(decode_image(planes(samples[..., :3], **options)), expected, atol=1e-7)
    np.testing.assert_allclose(read_photo(planes(samples[..., :3], **options), 10**6).rgb, expected, atol=1e-7)
    clear = planes(samples, extrasamples=["unassalpha"], **options)
    np.testing.assert_allclose(decode_image(clear), over_white(samples), atol=1e-6)


@pytest.mark.parametrize("orientation", [1, 2, 6, 8])
def test_planes_are_upright(samples: np.ndarray, orientation: int) -> None:
    stored = np.ascontiguousarray(stored_as(samples[..., :3], orientation))
    out = decode_image(planes(stored, extratags=[(274, "H", 1, orientation, True)]))
    np.testing.assert_allclose(out, samples[..., :3] / 65535, atol=1e-7)


def test_planes_that_cannot_be_read_are_one_line(samples: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the\n'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", broken)
    with pytest.raises(DataError, match=r"planar TIFF that cannot be read .*: save it as 16-bit PNG") as caught:
        decode_image(planes(samples[..., :3]))
    assert "\n" not in str(caught.value)


def test_white_may_be_zero(samples: np.ndarray) -> None:
    data = tiff(samples[..., 0], photometric="miniswhite")
    expected = np.repeat(1 - samples[..., :1] / 65535, 3, axis=2)
    np.testing.assert_allclose(decode_image(data), expected, atol=1e-7)
    photo = read_photo(data, 10**6)
    assert photo.gray
    np.testing.assert_allclose(photo.rgb, expected, atol=1e-7)


def test_colours_multiplied_with_alpha(samples: np.ndarray) -> None:
    multiplied = samples.copy()
    multiplied[..., :3] = np.rint(samples[..., :3] / 65535 * samples[..., 3:])
    data = tiff(multiplied, photometric="rgb", extrasamples=["assocalpha"])
    np.testing.assert_allclose(decode_image(data), over_white(samples), atol=2e-5)
    photo = read_photo(data, 10**6)
    assert photo.alpha is not None
    np.testing.assert_allclose(photo.alpha, samples[..., 3] / 65535, atol=1e-7)
    opaque = photo.alpha > 0.2  # elsewhere the multiplied samples have lost the colour
    np.testing.assert_allclose(photo.rgb[opaque], samples[..., :3][opaque] / 65535, atol=1e-4)


def test_a_fourth_sample_that_is_no_alpha(samples: np.ndarray) -> None:
    data = tiff(samples, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_allclose(decode_image(data), samples[..., :3] / 65535, atol=1e-7)
    assert read_photo(data, 10**6).alpha is None


def test_a_transparent_gray_value(samples: np.ndarray) -> None:
    key = int(samples[2, 3, 0])
    data = png16(samples[..., :1], (b"tRNS", struct.pack(">H", key)))
    expected = np.where(samples[..., :1] == key, 1, samples[..., :1] / 65535)
    np.testing.assert_allclose(decode_image(data), np.repeat(expected, 3, axis=2), atol=1e-7)
    alpha = read_photo(data, 10**6).alpha
    assert alpha is not None
    assert np.array_equal(alpha == 0, samples[..., 0] == key)


@pytest.mark.parametrize("top", [256, 1023, 65535])
def test_ppm_of_any_maximum(samples: np.ndarray, top: int) -> None:
    values = samples[..., :3].astype(int) % (top + 1)
    values[0, 0] = top
    data = b"P6\n# a comment\n9 6\n%d\n" % top + values.astype(">u2").tobytes()
    np.testing.assert_allclose(decode_image(data), values / top, atol=1e-7)
    assert read_photo(data, 10**6).bits == 16
    with pytest.raises(DataError, match="truncated"):
        decode_image(data[:-1])


def test_of_an_animated_png_the_first_frame(samples: np.ndarray) -> None:
    data = png16(samples[..., :3])
    at, pixels = data.index(b"IDAT") - 4, data[data.index(b"IDAT") + 4 : -16]

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def control(number: int) -> bytes:
        return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, 9, 6, 0, 0, 1, 10, 0, 0))

    second = zlib.compress(bytes(6 * (1 + 9 * 6)))
    first = chunk(b"acTL", struct.pack(">II", 2, 0)) + control(0) + chunk(b"IDAT", pixels)
    rest = control(1) + chunk(b"fdAT", struct.pack(">I", 2) + second) + chunk(b"IEND", b"")
    np.testing.assert_allclose(decode_image(data[:at] + first + rest), samples[..., :3] / 65535, atol=1e-7)


def test_a_transparent_colour(samples: np.ndarray) -> None:
    data = png16(samples[..., :3], (b"tRNS", struct.pack(">HHH", *samples[2, 3, :3])))
    expected = samples[..., :3] / 65535
    expected[2, 3] = 1
    np.testing.assert_allclose(decode_image(data), expected, atol=1e-7)
