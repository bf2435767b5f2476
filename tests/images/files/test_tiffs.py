"""TIFF with unusual samples is read correctly, or refused with the reason."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from gmd_ray.errors import DataError
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.photo import encode_photo, read_photo
from tests.images.files import icc
from tests.images.files.test_decode import stored_as
from tests.images.files.test_deep import tiff

OPTIONS: list[dict[str, object]] = [
    {},
    {"compression": "zlib"},
    {"byteorder": ">"},
    {"tile": (16, 16)},
    {"rowsperstrip": 2},
]


def written(x: np.ndarray, planar: bool = False, **options: object) -> bytes:
    """Write samples (H, W, C) as a TIFF; C is 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha)."""
    n = x.shape[2]
    options.setdefault("photometric", "minisblack" if n < 3 else "rgb")
    if n % 2 == 0:
        options.setdefault("extrasamples", ["unassalpha"])
    if n == 1:
        return tiff(x[..., 0], **options)
    stored = np.ascontiguousarray(np.moveaxis(x, 2, 0)) if planar else x
    return tiff(stored, planarconfig="separate" if planar else "contig", **options)


def shown(x: np.ndarray) -> np.ndarray:
    """Convert samples (H, W, C) in [0, 1] to RGB over white."""
    colors = np.repeat(x[..., :1], 3, axis=2) if x.shape[2] < 3 else x[..., :3]
    return colors * x[..., -1:] + 1 - x[..., -1:] if x.shape[2] % 2 == 0 else colors


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_floats_from_0_to_1_are_what_a_screen_shows(kind: str, channels: int, planar: bool) -> None:
    x = np.random.default_rng(0).random((20, 30, channels)).astype(kind)
    x.flat[:2] = 0, 1
    for options in OPTIONS:
        data = written(x, planar, **options)
        np.testing.assert_allclose(decode_image(data), shown(x.astype(np.float64)), atol=1e-6)
    photo = read_photo(data, 10**6)
    assert photo.bits == 16
    assert photo.gray == (channels < 3)
    assert (photo.alpha is not None) == (channels % 2 == 0)


def test_floats_take_their_profile() -> None:
    x = np.random.default_rng(0).random((20, 30, 3)).astype(np.float32) * 0.1
    out = decode_image(written(x, iccprofile=icc.linear_rgb()))
    np.testing.assert_allclose(out, icc.srgb_encode(x), atol=0.15 / 255)


def test_overshoot_is_clipped_and_another_range_is_refused() -> None:
    x = np.random.default_rng(0).random((20, 30, 3)).astype(np.float32)
    np.testing.assert_allclose(decode_image(written(x * 1.06 - 0.03)), np.clip(x * 1.06 - 0.03, 0, 1), atol=1e-6)
    for changed, reason in (
        (x * 255, "float samples from 0.* to 2.*: only 0 to 1"),
        (x - 0.5, "float samples from -0."),
    ):
        with pytest.raises(DataError, match=reason):
            decode_image(written(changed))
    for value in (np.nan, np.inf, -np.inf):
        x[3, 4, 1] = value
        with pytest.raises(DataError, match="not finite"):
            decode_image(written(x))


@pytest.mark.parametrize("planar", [False, True])
def test_16_bit_gray_with_alpha(planar: bool) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (20, 30, 2), dtype=np.uint16)
    for options in OPTIONS:
        data = written(samples, planar, **options)
        np.testing.assert_allclose(decode_image(data), shown(samples / 65535), atol=1e-6)
        photo = read_photo(data, 10**6)
        assert photo.alpha is not None
        np.testing.assert_allclose(photo.alpha, samples[..., 1] / 65535, atol=1e-6)
        assert photo.gray
    assert np.array_equal(decode_image(encode_photo(photo, ".tif")), decode_image(data))


def test_what_further_samples_mean() -> None:
    samples = np.random.default_rng(0).integers(20000, 65536, (20, 30, 5), dtype=np.uint16)
    x = samples / 65535
    multiplied = np.stack([np.rint(x[..., 0] * x[..., 1] * 65535), samples[..., 1]], 2).astype(np.uint16)
    for stored, extra, expected, atol in (
        (samples[..., :2], ["unspecified"], shown(x[..., :1]), 1e-6),
        (multiplied, ["assocalpha"], shown(x[..., :2]), 1e-4),
        (samples, ["unassalpha", "unspecified"], shown(x[..., :4]), 1e-6),
        (samples, ["unspecified", "unspecified"], shown(x[..., :3]), 1e-6),
    ):
        data = written(stored, extrasamples=extra)
        np.testing.assert_allclose(decode_image(data), expected, atol=atol, err_msg=str(extra))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["uint16", "float16", "float32"])
def test_upright(kind: str, orientation: int) -> None:
    x = np.random.default_rng(0).random((6, 9, 2))
    x = np.rint(x * 65535).astype(kind) if kind == "uint16" else x.astype(kind)
    stored = np.ascontiguousarray(stored_as(x, orientation))
    data = written(stored, extratags=[(274, "H", 1, orientation, True)])
    unit = x / 65535 if kind == "uint16" else x.astype(np.float64)
    np.testing.assert_allclose(decode_image(data), shown(unit), atol=1e-6)
    gray = written(stored[..., :1], extratags=[(274, "H", 1, orientation, True)])
    np.testing.assert_allclose(decode_image(gray), shown(unit[..., :1]), atol=1e-6)


@pytest.mark.parametrize("top", [4095, 100])
def test_12_bits(top: int) -> None:
    values = np.random.default_rng(0).integers(0, top + 1, (4, 6))
    values.flat[0] = top
    pairs = values.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    pixels = packed.astype(np.uint8).tobytes()
    entries = [(256, 6), (257, 4), (258, 12), (259, 1), (262, 1), (273, 130), (277, 1), (278, 4), (279, len(pixels))]
    ifd = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in entries)
    data = (b"II*\0" + struct.pack("<I", 8) + ifd).ljust(130, b"\0") + pixels
    np.testing.assert_allclose(decode_image(data)[..., 0], values / 4095, atol=1e-6)


def refused() -> dict[str, tuple[bytes, str]]:
    rng = np.random.default_rng(0)
    cases = {}
    for kind in ("int8", "int16", "int32"):
        for channels in (1, 3):
            x = rng.integers(0, 100, (8, 9, channels)).astype(kind)
            cases[f"{kind} {channels}"] = (written(x), "signed integer samples have no declared range")
    for bits in (32, 64):
        x = rng.integers(0, 100, (8, 9, 3)).astype(f"uint{bits}")
        cases[f"uint{bits}"] = (written(x), f"{bits}-bit integer samples have no declared range")
        cases[f"uint{bits} gray"] = (written(x[..., :1]), f"{bits}-bit integer samples have no declared range")
    deep = rng.integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    cases["complex"] = (written(deep.astype(np.complex64)), "TIFF of 3 other samples of 64 bits")
    cases["lab"] = (written(deep, photometric="cielab"), r"TIFF of 3 integer samples of 16 bits \(photometric 8\)")
    many = rng.integers(0, 256, (8, 9, 7), dtype=np.uint8)
    cases["seven"] = (written(many, photometric="minisblack"), "TIFF of 7 integer samples of 8 bits")
    floats = rng.random((20, 30, 3)).astype(np.float32)
    cases["torn floats"] = (written(floats)[:-500], "cannot be read")
    cases["torn packed floats"] = (written(floats, compression="zlib")[:-500], "cannot be read")
    cases["torn gray and alpha"] = (written(deep[..., :2])[:-500], "cannot be read")
    return cases


@pytest.mark.parametrize("case", refused())
def test_what_is_not_read_says_what_it_is(case: str) -> None:
    data, reason = refused()[case]
    for read in (decode_image, lambda data: read_photo(data, 10**6)):
        with pytest.raises(DataError, match=reason) as caught:
            read(data)
        assert "\n" not in str(caught.value)
        assert "not an image" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damage_is_told() -> None:
    rng = np.random.default_rng(0)
    floats = rng.random((8, 9, 3)).astype(np.float32)
    for data in (written(floats), written(np.rint(floats[..., :2] * 65535).astype(np.uint16))):
        for _ in range(300):
            damaged = bytearray(data)
            for _ in range(rng.integers(1, 4)):
                damaged[rng.integers(260)] = rng.integers(256)
            try:
                out = decode_image(bytes(damaged), max_pixels=10**6)
            except DataError:
                continue
            assert out.shape[2] == 3
            assert 0 <= out.min() <= out.max() <= 1
