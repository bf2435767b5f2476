"""ICC profiles: used for what is in them, at 8 and at 16 bits, and never for samples of another colour space."""

from __future__ import annotations

import io
import logging
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from gmd_ray.images.files import profiles
from gmd_ray.images.files.decode import decode_image
from tests.images.files import icc
from tests.images.files.test_decode import icc_chunk, png16, save

LEVEL = 1 / 255
NEAREST = 0.56 / 255
"""Tolerance in 8-bit levels: half a level of rounding, and the error of the conversion."""
CURVES = {
    "linear": (icc.LINEAR, lambda x: x),
    "gamma 2.2": (icc.gamma(2.2), lambda x: x ** (round(2.2 * 256) / 256)),
    "gamma 1.8": (icc.gamma(1.8), lambda x: x ** (round(1.8 * 256) / 256)),
    "a table": (icc.table(np.linspace(0, 1, 1024) ** 1.5), lambda x: x**1.5),
    "a power": (icc.parametric(0, 2.4), lambda x: x**2.4),
    "CIE 122": (icc.parametric(1, 2.0, 1.25, -0.25), lambda x: np.maximum(1.25 * x - 0.25, 0) ** 2),
    "IEC 61966-3": (icc.parametric(2, 2.0, 1.25, -0.25, 0.0), lambda x: np.maximum(1.25 * x - 0.25, 0) ** 2),
    "Rec. 709": (
        icc.parametric(3, 1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081),
        lambda x: np.where(x < 0.081, x / 4.5, (np.maximum(x + 0.099, 0) / 1.099) ** (1 / 0.45)),
    ),
    "all seven": (
        icc.parametric(4, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045, 0.0, 0.0),
        icc.srgb_decode,
    ),
}
"""A curve as a tag, and as a function from samples to linear light."""


@pytest.fixture
def colors() -> np.ndarray:
    """Make uint16 (32, 40, 3), half of it in the shadows."""
    x = np.random.default_rng(0).integers(0, 65536, (32, 40, 3), dtype=np.uint16)
    x[:16] = x[:16] // 30
    return x


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("primaries", [icc.SRGB, icc.ADOBE, icc.P3], ids=["sRGB", "Adobe RGB", "P3"])
def test_rgb(colors: np.ndarray, curve: str, primaries: icc.Colorants) -> None:
    tag, light = CURVES[curve]
    data = icc.rgb(tag, primaries)
    out = decode_image(png16(colors, icc_chunk(data)))
    np.testing.assert_allclose(out, icc.to_srgb(light(colors / 65535), primaries), atol=0.15 * LEVEL)
    shallow = (colors >> 8).astype(np.uint8)
    out = decode_image(save(Image.fromarray(shallow), "PNG", icc_profile=data))
    np.testing.assert_allclose(out, icc.to_srgb(light(shallow / 255), primaries), atol=NEAREST)
    assert np.array_equal(out, np.rint(out * 255).astype(np.float32) / 255)


@pytest.mark.parametrize("curve", CURVES)
def test_gray(colors: np.ndarray, curve: str) -> None:
    tag, light = CURVES[curve]
    samples = colors[..., :1]
    out = decode_image(png16(samples, icc_chunk(icc.gray(tag))))
    expected = np.repeat(icc.srgb_encode(light(samples / 65535)), 3, axis=2)
    np.testing.assert_allclose(out, expected, atol=0.1 * LEVEL)
    shallow = (samples[..., 0] >> 8).astype(np.uint8)
    out = decode_image(save(Image.fromarray(shallow), "PNG", icc_profile=icc.gray(tag)))
    np.testing.assert_allclose(out[..., 1], icc.srgb_encode(light(shallow / 255)), atol=NEAREST)


def test_gray_that_counts_in_lightness(colors: np.ndarray) -> None:
    """A gray profile may say CIE L* instead of light."""
    x = colors[..., :1] / 65535
    light = np.where(x > 0.08, ((x + 0.16) / 1.16) ** 3, x * 100 / 903.3)
    out = decode_image(png16(colors[..., :1], icc_chunk(icc.gray(icc.LINEAR, b"Lab "))))
    np.testing.assert_allclose(out, np.repeat(icc.srgb_encode(light), 3, axis=2), atol=0.1 * LEVEL)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("container", ["png", "tif"])
def test_16_bits_with_and_without_alpha(colors: np.ndarray, channels: int, container: str) -> None:
    gray = channels < 3
    data = icc.linear_gray() if gray else icc.linear_rgb()
    samples = colors[..., : 1 if gray else 3]
    alpha = np.full_like(samples[..., :1], 40000)
    stored = np.concatenate([samples, alpha], axis=2) if channels % 2 == 0 else samples
    if container == "png":
        file = png16(stored, icc_chunk(data))
    else:
        buffer = io.BytesIO()
        tifffile.imwrite(
            buffer,
            stored[..., 0] if channels == 1 else stored,
            photometric="minisblack" if gray else "rgb",
            planarconfig="contig" if channels > 1 else None,
            extrasamples=["unassalpha"] if channels % 2 == 0 else None,
            iccprofile=data,
            metadata=None,
        )
        file = buffer.getvalue()
    clear = np.repeat(icc.srgb_encode(samples / 65535), 3 if gray else 1, axis=2)
    a = 40000 / 65535 if channels % 2 == 0 else 1
    np.testing.assert_allclose(decode_image(file), clear * a + 1 - a, atol=0.15 * LEVEL)


def test_a_ramp_in_the_shadows_has_no_stairs() -> None:
    ramp = np.rint(np.linspace(0, 0.02, 512) * 65535).astype(np.uint16)
    out = decode_image(png16(np.tile(ramp[None, :, None], (2, 1, 3)), icc_chunk(icc.linear_rgb())))[0]
    np.testing.assert_allclose(out, np.repeat(icc.srgb_encode(ramp / 65535)[:, None], 3, 1), atol=0.1 * LEVEL)
    assert len(np.unique(np.rint(out[:, 0] * 255))) == 40
    assert (np.diff(out[:, 0]) > 0).sum() == (np.diff(ramp) > 0).sum()


def test_lookup_tables_at_16_bits(colors: np.ndarray) -> None:
    expected = icc.srgb_encode(colors / 65535)
    out = decode_image(png16(colors, icc_chunk(icc.linear_rgb_tables())))
    np.testing.assert_allclose(out, expected, atol=LEVEL)
    ramp = np.tile(np.arange(0, 6000, 3, dtype=np.uint16)[None, :, None], (1, 1, 3))
    steps = np.diff(decode_image(png16(ramp, icc_chunk(icc.linear_rgb_tables())))[0, :, 0])
    assert (steps > 0).all()  # no stairs
    out = decode_image(png16(colors[..., :1], icc_chunk(icc.linear_gray_tables())))
    np.testing.assert_allclose(out, np.repeat(expected[..., :1], 3, axis=2), atol=LEVEL)


def test_a_raised_black_is_compensated() -> None:
    """The darkest colour of the profile becomes black, as LittleCMS and photo editors have it."""
    curve = icc.table(np.linspace(0.05, 1, 256))
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (1, 1, 3))
    for data, samples in ((icc.rgb(curve), ramp), (icc.gray(curve), ramp[..., :1])):
        deep = decode_image(png16(samples.astype(np.uint16) * 257, icc_chunk(data)))
        np.testing.assert_allclose(deep, icc.srgb_encode(ramp / 255), atol=0.2 * LEVEL)


@pytest.mark.parametrize("version", [2, 4])
@pytest.mark.parametrize("curve", [icc.srgb_parametric(), icc.table(icc.srgb_decode(np.linspace(0, 1, 1024)))])
def test_srgb_under_any_name_changes_nothing(colors: np.ndarray, curve: bytes, version: int) -> None:
    data = icc.rgb(curve, name="My monitor", version=version)
    shallow = (colors >> 8).astype(np.uint8)
    assert np.array_equal(
        decode_image(save(Image.fromarray(shallow), "PNG", icc_profile=data)), shallow / np.float32(255)
    )
    assert np.array_equal(decode_image(png16(colors, icc_chunk(data))), colors / np.float32(65535))
    assert np.array_equal(
        decode_image(png16(colors[..., :1], icc_chunk(icc.gray(curve))))[..., 2], colors[..., 0] / np.float32(65535)
    )


def test_what_littlecms_and_apple_call_srgb(colors: np.ndarray) -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(decode_image(png16(colors, icc_chunk(own))), colors / np.float32(65535))


@pytest.mark.parametrize("name", ["sRGB", "sRGB IEC61966-2.1", "sRGB-elle-V2-g10.icc", "Linear"])
@pytest.mark.parametrize("make", [icc.linear_rgb_tables, lambda name: icc.rgb(icc.LINEAR, name=name)])
def test_a_linear_profile_is_used_whatever_its_name(colors: np.ndarray, name: str, make) -> None:
    shallow = (colors >> 8).astype(np.uint8)
    out = decode_image(save(Image.fromarray(shallow), "PNG", icc_profile=make(name)))
    np.testing.assert_allclose(out, icc.srgb_encode(shallow / 255), atol=1.1 * LEVEL)
    other = decode_image(save(Image.fromarray(shallow), "PNG", icc_profile=make("another")))
    assert np.array_equal(out, other)


def test_a_curve_near_srgb_is_not_taken_for_it(colors: np.ndarray) -> None:
    """Gamma 2.2 and Rec. 709 differ from sRGB by several levels, in the shadows above all."""
    shallow = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (1, 1, 3))
    for curve in ("gamma 2.2", "Rec. 709"):
        tag, light = CURVES[curve]
        out = decode_image(save(Image.fromarray(shallow), "PNG", icc_profile=icc.rgb(tag, name="sRGB")))
        np.testing.assert_allclose(out, icc.srgb_encode(light(shallow / 255)), atol=0.6 * LEVEL)
        assert np.abs(out - shallow / 255).max() > 4 * LEVEL


UNFIT = {
    "gray for RGB": icc.linear_gray(),
    "CMYK for RGB": icc.constant_cmyk(50),
    "Lab for RGB": icc.lab(),
    "device link": icc.linear_rgb().replace(b"mntr", b"link", 1),
    "abstract": icc.linear_rgb().replace(b"mntr", b"abst", 1),
    "named colours": icc.linear_rgb().replace(b"mntr", b"nmcl", 1),
    "half of one": icc.linear_rgb()[:200],
    "a header alone": icc.linear_rgb()[:128],
    "no curves": icc.profile(b"mntr", b"RGB ", b"XYZ ", {}),
    "a thousand million tags": icc.linear_rgb()[:128] + struct.pack(">I", 10**9) + icc.linear_rgb()[132:],
    "six colours": icc.linear_rgb().replace(b"RGB ", b"6CLR", 1),
    "text": b"not a profile" * 20,
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_is_left_out_and_told(
    colors: np.ndarray, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    shallow = (colors >> 8).astype(np.uint8)
    with caplog.at_level(logging.WARNING):
        out = decode_image(save(Image.fromarray(shallow), "PNG", icc_profile=UNFIT[case]))
        deep = decode_image(png16(colors, icc_chunk(UNFIT[case])))
    assert np.array_equal(out, shallow / np.float32(255))
    assert np.array_equal(deep, colors / np.float32(65535))
    assert caplog.text.count("profile") >= 2
    assert all("\n" not in record.message for record in caplog.records)


def test_no_profile_but_its_own_for_ink_and_gray(caplog: pytest.LogCaptureFixture) -> None:
    ink = Image.new("CMYK", (4, 4), (40, 80, 120, 10))
    plain = decode_image(save(ink, "TIFF"))
    for data in (icc.linear_rgb(), icc.linear_gray(), icc.lab()):
        assert np.array_equal(decode_image(save(ink, "TIFF", icc_profile=data)), plain)
    gray = Image.new("L", (4, 4), 90)
    for data in (icc.constant_cmyk(50), icc.lab()):
        assert np.array_equal(
            decode_image(save(gray, "PNG", icc_profile=data)), np.full((4, 4, 3), 90 / np.float32(255))
        )
    assert "profile" in caplog.text


def test_lab_samples_take_no_rgb_profile() -> None:
    """Pillow converts Lab to sRGB itself, so an embedded RGB profile is not applied."""
    pixels = np.full((4, 4, 3), (150, 0, 0), np.uint8)
    files = []
    for data in (None, icc.linear_rgb()):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, pixels, photometric="cielab", iccprofile=data, metadata=None)
        files.append(decode_image(buffer.getvalue()))
    assert np.array_equal(*files)


def test_odd_curves_are_what_littlecms_makes_of_them() -> None:
    """Curves whose result differs from LittleCMS are not used, and LittleCMS converts."""
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (1, 1, 3))
    for tag in (icc.parametric(0, -1.0), icc.table(np.linspace(1, 0, 64)), icc.parametric(3, 2.0, -1.0, 1.0, 0.0, 0.5)):
        data = icc.rgb(tag)
        profile = profiles.fitting(data, 3)
        assert profile is not None
        reference = profiles._by_lcms(ramp, data, "RGB", exact=profile.curves != ())
        assert np.abs(profiles.to_srgb(ramp, profile).astype(int) - reference).max() <= 1
