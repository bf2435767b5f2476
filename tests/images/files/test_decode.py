"""Every kind of file that a photo folder holds, against what a viewer shows."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from gmd_ray.errors import DataError
from gmd_ray.images.files.decode import decode_image
from tests.images.files.icc import constant_cmyk, linear_gray, linear_rgb, srgb_encode


@pytest.fixture
def rgb() -> np.ndarray:
    """Smooth, so that JPEG keeps it, and without any symmetry: uint8 (24, 40, 3)."""
    y, x = np.mgrid[0:24, 0:40].astype(np.float32)
    return np.stack([x * 6, y * 10, 255 - x * 3 - y * 4], -1).round().astype(np.uint8)


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png16(samples: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A 16-bit PNG as the format says, written by neither library under test. samples: uint16 (H, W, channels)."""
    height, width, channels = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    return b"\x89PNG\r\n\x1a\n" + body


def icc_chunk(profile: bytes) -> tuple[bytes, bytes]:
    return b"iCCP", b"p\0\0" + zlib.compress(profile)


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def stored_as(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The samples that a camera stores so that a viewer, obeying the tag, shows `upright` (EXIF 2.3, tag 0x0112)."""
    return {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, 1),  # "rotate 90 clockwise to view"
        7: lambda a: np.swapaxes(np.rot90(a, 2), 0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_rgb_is_exact(rgb: np.ndarray, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    out = decode_image(save(Image.fromarray(rgb), kind, **options))
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    assert np.array_equal(out, rgb.astype(np.float32) / 255)


def test_jpeg_is_close(rgb: np.ndarray) -> None:
    out = decode_image(save(Image.fromarray(rgb), "JPEG", quality=98, subsampling=0))
    assert np.abs(out - rgb / 255).max() < 4 / 255


def test_one_pixel() -> None:
    assert decode_image(save(Image.new("RGB", (1, 1), (255, 0, 51)), "PNG")).tolist() == [[[1.0, 0.0, np.float32(0.2)]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(rgb: np.ndarray, orientation: int) -> None:
    stored = Image.fromarray(np.ascontiguousarray(stored_as(rgb, orientation)))
    expected = rgb / np.float32(255)
    assert np.array_equal(decode_image(save(stored, "PNG", exif=exif(orientation))), expected)
    tiff = save(stored, "TIFF", tiffinfo={0x0112: orientation})
    assert np.array_equal(decode_image(tiff), expected)
    out = decode_image(save(stored, "JPEG", quality=98, subsampling=0, exif=exif(orientation)))
    assert out.shape == rgb.shape
    assert np.abs(out - expected).max() < 4 / 255


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation_of_16_bit_files(orientation: int) -> None:
    upright = np.random.default_rng(0).integers(0, 65536, (5, 8), dtype=np.uint16)
    stored = np.ascontiguousarray(stored_as(upright, orientation))
    expected = np.repeat(upright[..., None] / np.float32(65535), 3, 2)
    chunk = (b"eXIf", exif(orientation).tobytes()[6:])
    np.testing.assert_allclose(decode_image(png16(stored[..., None], chunk)), expected, atol=1e-7)
    tiff = save(Image.fromarray(stored), "TIFF", tiffinfo={0x0112: orientation})
    np.testing.assert_allclose(decode_image(tiff), expected, atol=1e-7)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_damaged_exif_block_spoils_nothing_else(rgb: np.ndarray) -> None:
    data = save(Image.fromarray(rgb), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(decode_image(data), rgb / np.float32(255))


@pytest.mark.parametrize("high", [200, 65535])
@pytest.mark.parametrize("container", ["png", "tif"])
def test_16_bit_by_header_not_by_largest_value(high: int, container: str) -> None:
    samples = np.random.default_rng(0).integers(0, high + 1, (9, 7, 3), dtype=np.uint16)
    data = png16(samples) if container == "png" else cv2.imencode(".tif", samples[..., ::-1])[1].tobytes()
    np.testing.assert_allclose(decode_image(data), samples / np.float32(65535), atol=1e-7)


def test_deep_pgm_is_scaled_by_its_own_maximum() -> None:
    data = b"P5 2 1 1023\n" + struct.pack(">HH", 1023, 512)
    np.testing.assert_allclose(decode_image(data)[0, :, 0], [1, 512 / 1023], atol=2e-5)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P"])
def test_gray_becomes_three_equal_channels(rgb: np.ndarray, mode: str) -> None:
    image = Image.fromarray(rgb).convert("L").convert(mode)
    out = decode_image(save(image, "PNG"))
    assert np.array_equal(out[..., 0], np.asarray(image.convert("L")) / np.float32(255))
    assert np.array_equal(out, np.repeat(out[..., :1], 3, 2))


def test_alpha_lies_over_white() -> None:
    samples = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    out = decode_image(save(Image.fromarray(samples), "PNG")) * 255
    np.testing.assert_allclose(out, [[[200, 100, 0], [255, 255, 255], [244, 224, 204]]], atol=1e-4)
    deep = decode_image(png16(samples.astype(np.uint16) * 257)) * 255
    np.testing.assert_allclose(deep, [[[200, 100, 0], [255, 255, 255], [244, 224, 204]]], atol=1e-4)


def test_palette_with_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    out = decode_image(save(image, "PNG", transparency=1)) * 255
    np.testing.assert_allclose(out, [[[10, 20, 30], [255, 255, 255]]], atol=1e-4)


def test_colour_key_transparency() -> None:
    image = Image.fromarray(np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8))
    out = decode_image(save(image, "PNG", transparency=(1, 2, 3))) * 255
    np.testing.assert_allclose(out, [[[255, 255, 255], [9, 9, 9]]], atol=1e-4)


def test_gray_flag_is_luma_on_the_8_bit_grid(rgb: np.ndarray) -> None:
    out = decode_image(save(Image.fromarray(rgb), "PNG"), gray=True)
    expected = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    assert np.abs(out[..., 0] * 255 - expected).max() <= 1.001  # OpenCV rounds its fixed-point weights
    assert np.array_equal(out, np.rint(out * 255).astype(np.float32) / 255)
    assert np.array_equal(out[..., 0], out[..., 2])


def test_cmyk_without_profile_is_the_plain_formula() -> None:
    ink = Image.fromarray(np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], np.uint8), "CMYK")
    out = decode_image(save(ink, "TIFF")) * 255
    np.testing.assert_allclose(out, [[[255, 255, 255], [0, 255, 255], [0, 0, 0]]], atol=1e-4)


def test_adobe_cmyk_jpeg_is_not_inverted() -> None:
    data = save(Image.new("CMYK", (16, 16), (0, 0, 0, 20)), "JPEG", quality=95)
    assert decode_image(data).min() > 0.85


def test_cmyk_goes_through_its_profile() -> None:
    ink = Image.new("CMYK", (4, 4), (255, 0, 255, 0))
    out = decode_image(save(ink, "TIFF", icc_profile=constant_cmyk(50)))
    np.testing.assert_allclose(out * 255, 119, atol=2)  # L* 50 in sRGB


def test_rgb_profile_to_srgb(rgb: np.ndarray) -> None:
    out = decode_image(save(Image.fromarray(rgb), "PNG", icc_profile=linear_rgb()))
    np.testing.assert_allclose(out, srgb_encode(rgb / 255), atol=0.56 / 255)


def test_profile_under_transparency(rgb: np.ndarray) -> None:
    rgba = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    out = decode_image(save(Image.fromarray(rgba), "PNG", icc_profile=linear_rgb()))
    np.testing.assert_allclose(out, srgb_encode(rgb / 255), atol=0.56 / 255)


@pytest.mark.parametrize("mode", ["L", "LA"])
@pytest.mark.parametrize("profile", [linear_gray, linear_rgb])
def test_gray_with_either_kind_of_profile(rgb: np.ndarray, mode: str, profile) -> None:
    image = Image.fromarray(rgb[..., 0]).convert(mode)
    out = decode_image(save(image, "PNG", icc_profile=profile()))
    np.testing.assert_allclose(out[..., 1], srgb_encode(rgb[..., 0] / 255), atol=0.56 / 255)


def test_16_bit_profile_keeps_steps_finer_than_8_bits() -> None:
    ramp = np.arange(30000, 30256, dtype=np.uint16)  # one 8-bit level in 256 steps
    samples = np.repeat(np.tile(ramp, (2, 1))[..., None], 3, 2)
    out = decode_image(png16(samples, icc_chunk(linear_rgb())))
    np.testing.assert_allclose(out, srgb_encode(samples / 65535), atol=0.1 / 255)
    assert len(np.unique(out)) > 200


def test_broken_profile_is_left_out_and_told(rgb: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        out = decode_image(save(Image.fromarray(rgb), "PNG", icc_profile=b"not a profile" * 20))
    assert np.array_equal(out, rgb / np.float32(255))
    assert "profile" in caplog.text


def test_first_frame_of_several() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for kind in ("GIF", "TIFF", "PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = save(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode_image(data)[4, 4].tolist() == [1, 0, 0], kind


def bad_files(rgb: np.ndarray) -> dict[str, tuple[bytes, str]]:
    big = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    jpeg, png, tiff = (save(Image.fromarray(big), kind) for kind in ("JPEG", "PNG", "TIFF"))
    deep = png16(big.astype(np.uint16) * 257)
    floats = save(Image.fromarray(rgb[..., 0].astype(np.float32)), "TIFF")
    return {
        "empty": (b"", "empty file"),
        "text": (b"hello, I am a .png\n", "not an image"),
        "html": (b"<!doctype html><title>404</title>", "not an image"),
        "png signature": (png[:8], "not an image"),
        "png header": (png[:30], "not an image"),
        "png half": (png[: len(png) // 2], "truncated"),
        "deep png half": (deep[: len(deep) // 2], "truncated"),
        "jpeg half": (jpeg[: len(jpeg) // 2], "truncated"),
        "jpeg without its last tenth": (jpeg[: -len(jpeg) // 10], "truncated"),
        "tiff half": (tiff[: len(tiff) // 2], "truncated"),
        "float": (floats, "float"),
    }


@pytest.mark.parametrize("name", list(bad_files(np.zeros((8, 8, 3), np.uint8))))
def test_bad_files_give_one_line(rgb: np.ndarray, name: str) -> None:
    data, reason = bad_files(rgb)[name]
    with pytest.raises(DataError, match=reason) as caught:
        decode_image(data)
    assert "\n" not in str(caught.value)


def test_too_large_is_refused_from_the_header(rgb: np.ndarray) -> None:
    data = save(Image.fromarray(rgb), "PNG")
    assert decode_image(data, max_pixels=24 * 40).shape == (24, 40, 3)
    with pytest.raises(DataError, match=r"40x24 is more than target\.max_pixels=959"):
        decode_image(data, max_pixels=24 * 40 - 1)
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]
    with pytest.raises(DataError, match="too large"):
        decode_image(bomb, max_pixels=10**12)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_random_damage_never_escapes_as_another_error(rgb: np.ndarray) -> None:
    """1,400 damaged files: each decodes to something well formed, or is refused with a DataError."""
    image = Image.fromarray(rgb)
    files = [save(image, kind, exif=exif(6)) for kind in ("PNG", "JPEG", "WEBP")]
    files += [save(image, kind) for kind in ("TIFF", "GIF", "BMP")]
    files += [png16(rgb.astype(np.uint16) * 257, icc_chunk(linear_rgb()))]
    rng = np.random.default_rng(1)
    refused = 0
    for data in files:
        for _ in range(200):
            damaged = bytearray(data)
            for _ in range(rng.integers(1, 6)):
                damaged[rng.integers(len(damaged))] = rng.integers(256)
            if rng.random() < 0.3:
                del damaged[rng.integers(len(damaged)) :]
            try:
                out = decode_image(bytes(damaged), max_pixels=10**6)
            except DataError:
                refused += 1
            else:
                assert out.ndim == 3
                assert out.dtype == np.float32
                assert 0 <= out.min() <= out.max() <= 1
    assert 200 < refused < 1400


def test_shared_edge_cases(shared_data: Path) -> None:
    folder = shared_data / "edge_cases"
    gray = decode_image((folder / "00017_gray.png").read_bytes())
    assert gray.shape == (351, 500, 3)
    assert np.array_equal(gray[..., 0], gray[..., 1])

    rgba = np.asarray(Image.open(folder / "children-alpha.png")).astype(np.float64)
    clear = decode_image((folder / "children-alpha.png").read_bytes())
    over_white = (rgba[..., :3] * rgba[..., 3:] + 255 * (255 - rgba[..., 3:])) / 255
    assert np.abs(clear * 255 - over_white).max() <= 0.51

    deep = decode_image((folder / "tree_alpha_16bit.png").read_bytes())  # 16 bits, transparent, Adobe RGB
    assert deep.shape == (256, 342, 3)
    assert len(np.unique(deep)) > 256
    raw = cv2.imread(str(folder / "tree_alpha_16bit.png"), cv2.IMREAD_UNCHANGED)
    assert (deep[raw[..., 3] == 0] == 1).all()
