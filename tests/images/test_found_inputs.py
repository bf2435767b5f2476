"""Files of users on which the program once failed. They are outside the repository and not on every machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gmd_ray.errors import DataError
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.photo import encode_photo, read_photo
from tests.images.files import icc

INPUTS = Path(__file__).parents[2].parent / "shared" / "inputs"
GRAY = np.arange(256).reshape(16, 16)

pytestmark = pytest.mark.skipif(not INPUTS.is_dir(), reason="no shared/inputs beside the repository")


def read(*parts: str) -> bytes:
    return INPUTS.joinpath(*parts).read_bytes()


@pytest.mark.parametrize("bits", [12, 16])
def test_deep_jpeg_2000(bits: int) -> None:
    data, top = read("jp2_deep_rgb", f"white_rgb{bits}.jp2"), 2**bits - 1
    y, x = np.mgrid[:64, :64]
    ramp = (x * 64 + y) * top // 4095
    np.testing.assert_allclose(decode_image(data), np.stack([ramp, ramp[::-1], ramp.T], 2) / top, atol=1e-6)
    assert decode_image(data).max() == 1
    assert read_photo(data, None).bits == 16


def test_a_linear_profile_called_srgb() -> None:
    out = decode_image(read("icc_named_srgb", "linear_named_sRGB-elle-V2-g10.png"))
    expected = icc.srgb_encode(np.stack([GRAY, GRAY.T, GRAY[::-1]], 2) / 255)
    np.testing.assert_allclose(out, expected, atol=0.56 / 255)


def test_16_bit_gray_and_alpha_with_a_gray_profile() -> None:
    data = read("icc_deep", "gray_alpha_16bit_gray_profile.png")
    expected = np.repeat(icc.srgb_encode(GRAY / 255)[..., None], 3, axis=2)
    np.testing.assert_allclose(decode_image(data), expected, atol=0.1 / 255)
    for suffix in (".png", ".tif"):
        np.testing.assert_allclose(decode_image(encode_photo(read_photo(data, None), suffix)), expected, atol=0.1 / 255)


def test_a_16_bit_ramp_in_linear_light() -> None:
    out = decode_image(read("icc_deep", "shadow_ramp_16bit_linear.png"))
    ramp = np.rint(np.linspace(0, 0.02, 512) * 65535) / 65535
    np.testing.assert_allclose(out[0, :, 0], icc.srgb_encode(ramp), atol=0.1 / 255)
    assert len(np.unique(np.rint(out * 255))) == 40


def test_a_transparent_value_of_2_bits() -> None:
    data = read("png_lowbit_key", "gray2_key1.png")
    transparent = GRAY % 4 == 1
    np.testing.assert_allclose(decode_image(data)[..., 0], np.where(transparent, 1, GRAY % 4 / 3), atol=1e-6)
    alpha = read_photo(data, None).alpha
    assert alpha is not None
    assert np.array_equal(alpha == 0, transparent)


@pytest.mark.parametrize("ending", ["cr3", "raf", "orf", "rw2", "jxl", "hif"])
def test_what_is_no_picture_is_one_line(ending: str) -> None:
    with pytest.raises(DataError, match="not an image"):
        decode_image(read("unlisted", f"IMG_1.{ending}"))


def test_half_of_a_file_is_told() -> None:
    with pytest.raises(DataError, match="truncated"):
        decode_image(read("source_torn", "hq", "3.png"))
