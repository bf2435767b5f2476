"""Kernels, sharpening and resizing against direct formulas, and against scipy and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from gmd_ray.images.degradation.filters import bicubic, blur, gaussian_kernel, resize, sharpen, sinc_kernel, to_levels
from tests.images.degradation.test_degradations import picture


def test_kernels_are_their_formulas() -> None:
    """Pixel by pixel, from the covariance matrix that the paper gives the kernel by."""
    size, sigma_u, sigma_v, angle = 9, 2.3, 0.8, 0.6
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    inverse = np.linalg.inv(turn @ np.diag([sigma_u**2, sigma_v**2]) @ turn.T)
    for beta, plateau in [(1.0, False), (0.6, False), (3.0, False), (1.0, True), (1.7, True)]:
        expected = np.zeros((size, size))
        for row in range(size):
            for column in range(size):
                place = np.array([column - 4, row - 4])
                q = (place @ inverse @ place) ** beta
                expected[row, column] = 1 / (q + 1) if plateau else math.exp(-q / 2)
        kernel = gaussian_kernel(size, sigma_u, sigma_v, angle, beta, plateau)
        assert kernel.dtype == np.float32
        assert np.allclose(kernel, expected / expected.sum(), atol=1e-7)
        assert kernel.sum() == pytest.approx(1, abs=1e-5)


def test_a_narrow_gaussian_is_no_blur() -> None:
    assert np.array_equal(blur(picture(), gaussian_kernel(7, 0.05, 0.05)), picture())


@pytest.mark.parametrize("size", [7, 13, 21])
def test_sinc_kernel_is_the_bessel_formula(size: int) -> None:
    special = pytest.importorskip("scipy.special")
    y, x = np.mgrid[:size, :size] - size // 2
    r = np.hypot(x, y)
    r[size // 2, size // 2] = 1e-9  # the limit, and not the formula for it
    for cutoff in (np.pi / 5, np.pi / 3, 2.0, np.pi):
        expected = cutoff * special.j1(cutoff * r) / (2 * np.pi * r)
        kernel = sinc_kernel(size, cutoff)
        assert np.allclose(kernel, expected / expected.sum(), atol=1e-7)
        assert cutoff < 2 or kernel.min() < 0, "rings"
        assert kernel.sum() == pytest.approx(1, abs=1e-5)


def test_blur_mirrors_at_the_border_and_keeps_rows_and_columns_apart() -> None:
    x, kernel = picture(32), gaussian_kernel(11, 3, 0.5)
    wide = np.pad(x, ((5, 5), (5, 5), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(wide, (11, 11), (0, 1))
    assert np.abs(blur(x, kernel) - np.einsum("hwcij,ij->hwc", windows, kernel)).max() < 1e-5
    edge = np.zeros((21, 21, 3), np.float32)
    edge[:, 10] = 1
    assert blur(edge, kernel)[10, 13, 0] > 0.05 > blur(edge, kernel.T.copy())[10, 13, 0], "sigma_u lies along a row"


def test_separable_sharpening_is_the_direct_one() -> None:
    """The two-dimensional kernel of 51 x 51 and a sum over its window; on the mask of large details too."""
    x = picture(72)
    line = np.exp(-((np.arange(51) - 25) ** 2) / (2 * 8.0**2))
    kernel = np.outer(line, line) / line.sum() ** 2

    def direct(image: np.ndarray) -> np.ndarray:
        wide = np.pad(image, ((25, 25), (25, 25), (0, 0)), mode="reflect")
        rows = np.lib.stride_tricks.sliding_window_view(wide, (51, 51), (0, 1))
        return np.stack([np.tensordot(row, kernel, axes=([2, 3], [0, 1])) for row in rows])

    detail = x - direct(x)
    mask = direct((np.abs(detail) * 255 > 10).astype(np.float64))
    expected = mask * np.clip(x + 0.5 * detail, 0, 1) + (1 - mask) * x
    assert np.abs(sharpen(x) - expected).max() < 1e-3
    assert np.abs(expected - x).max() > 0.05


def test_small_details_are_not_sharpened() -> None:
    flat = np.full((64, 64, 3), 0.5, np.float32)
    flat[::2, ::2] += 9 / 255
    assert np.allclose(sharpen(flat), flat, atol=1e-6)
    flat[::2, ::2] += 9 / 255
    assert sharpen(flat).std() > 1.05 * flat.std()


@pytest.mark.parametrize("size", [(20, 33), (61, 97), (47, 110), (70, 48), (1, 1)])
@pytest.mark.parametrize("how", ["area", "bilinear", "bicubic"])
def test_resize_is_torchs(size: tuple[int, int], how: str) -> None:
    x = picture(96)[:61]
    tensor = torch.from_numpy(x.copy()).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(tensor, size=size, mode=how)[0].permute(1, 2, 0).numpy()
    made = resize(x, *size, how)  # type: ignore[arg-type]
    assert made.shape == (*size, 3)
    assert made.dtype == np.float32
    assert np.abs(made - expected).max() < 1e-4


def test_levels_are_the_nearest() -> None:
    values = np.array([-0.2, 0.0, 0.49 / 255, 0.51 / 255, 254.6 / 255, 1.3], np.float32)
    assert to_levels(values).tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_is_pillows_away_from_the_border(scale: int) -> None:
    """Pillow's kernel is the same one, antialiased; at the border it leaves out what MATLAB mirrors."""
    x = np.random.default_rng(0).random((24 * scale, 30 * scale, 3), dtype=np.float32)
    small = bicubic(x, scale)
    assert small.shape == (24, 30, 3)
    assert small.dtype == np.float32
    for channel in range(3):
        pillow = Image.fromarray(x[..., channel]).resize((30, 24), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(pillow) - small[..., channel])[3:-3, 3:-3].max() < 1e-5


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_bicubic_is_its_formula_with_the_border_mirrored(scale: int) -> None:
    """Pixel by pixel, as imresize's documentation has it: kernel h(x / scale) / scale, `symmetric` padding."""

    def h(t: float) -> float:
        t = abs(t)
        if t <= 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0

    size, wide = 4 * scale, 4 * scale
    x = np.random.default_rng(1).random((size, size, 1))
    padded = np.pad(x[..., 0], wide, mode="symmetric")
    expected = np.zeros((4, 4))
    for i in range(4):
        for j in range(4):
            u, v = (i + 0.5) * scale - 0.5, (j + 0.5) * scale - 0.5
            rows = {r: h((r - u) / scale) for r in range(-wide, size + wide)}
            columns = {c: h((c - v) / scale) for c in range(-wide, size + wide)}
            total = sum(rows.values()) * sum(columns.values())
            for r, a in rows.items():
                for c, b in columns.items():
                    expected[i, j] += a * b * padded[r + wide, c + wide] / total
    assert np.abs(bicubic(x, scale)[..., 0] - expected).max() < 1e-6


def test_bicubic_survives_images_smaller_than_its_kernel() -> None:
    assert np.allclose(bicubic(np.full((4, 8, 3), 0.3, np.float32), 4), 0.3)
