"""The simulated camera: its demosaicking against a plain one, its noise against counting statistics, its seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gmd_ray.demo.photos.camera import Camera, shoot
from gmd_ray.demo.photos.demosaic import demosaic, mosaic

QUIET = Camera(electrons=(1e7, 1e7), read_noise=(0.0, 0.0), jpeg_quality=(100, 100))
BARE = Camera(
    lens=(0.01, 0.01), read_noise=(3.0, 3.0), red_gain=(1.0, 1.0), blue_gain=(1.0, 1.0),
    matrix=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    luma_smoothing=0.01, chroma_smoothing=0.01, sharpening=(0.0, 0.0), jpeg_quality=(100, 100),
)  # fmt: skip
"""Nothing but sensor, demosaicking and sRGB curve."""
LUMA = np.array([0.299, 0.587, 0.114])


def scene(seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth colours: uint8, (height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width] / 16
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    return np.rint(127 + 90 * np.sin(x[..., None] + phase) * np.cos(y[..., None] + phase)).astype(np.uint8)


def plain_demosaic(values: np.ndarray) -> np.ndarray:
    """Malvar, He and Cutler's interpolation as they write it: bilinear, plus a gain times the Laplacian of the known.

    Interior pixels alone; the rest is NaN.
    """
    height, width = values.shape
    out = np.full((height, width, 3), np.nan)
    at = {(0, 0): "R", (0, 1): "G", (1, 0): "G", (1, 1): "B"}
    for i in range(2, height - 2):
        for j in range(2, width - 2):
            v = values.astype(np.float64)
            cross = np.mean([v[i - 1, j], v[i + 1, j], v[i, j - 1], v[i, j + 1]])
            corners = np.mean([v[i - 1, j - 1], v[i - 1, j + 1], v[i + 1, j - 1], v[i + 1, j + 1]])
            far = np.array([v[i - 2, j], v[i + 2, j], v[i, j - 2], v[i, j + 2]])
            colour = at[i % 2, j % 2]
            if colour in "RB":
                laplacian = v[i, j] - far.mean()
                own, other = (0, 2) if colour == "R" else (2, 0)
                out[i, j, own] = v[i, j]
                out[i, j, 1] = cross + laplacian / 2
                out[i, j, other] = corners + 3 / 4 * laplacian
            else:
                out[i, j, 1] = v[i, j]
                rows, columns = (v[i, j - 1] + v[i, j + 1]) / 2, (v[i - 1, j] + v[i + 1, j]) / 2
                # Five eighths of a Laplacian over nine greens: minus the four corners and the two far ones along the
                # direction of the colour, plus half of the two far ones across it.
                along_row = 5 * v[i, j] - 4 * corners - far[2] - far[3] + (far[0] + far[1]) / 2
                along_column = 5 * v[i, j] - 4 * corners - far[0] - far[1] + (far[2] + far[3]) / 2
                in_row, in_column = (0, 2) if i % 2 == 0 else (2, 0)
                out[i, j, in_row] = rows + along_row / 8
                out[i, j, in_column] = columns + along_column / 8
    return out


def test_demosaicking_is_the_published_one() -> None:
    values = np.random.default_rng(0).random((12, 14)).astype(np.float32)
    expected = plain_demosaic(values)
    inside = np.s_[2:-2, 2:-2]
    np.testing.assert_allclose(demosaic(values)[inside], expected[inside], atol=2e-6)


def test_demosaicking_keeps_what_was_measured_and_a_gray_plane() -> None:
    values = np.random.default_rng(1).random((10, 8)).astype(np.float32)
    np.testing.assert_allclose(mosaic(demosaic(values)), values, atol=1e-6)
    np.testing.assert_allclose(demosaic(np.full((8, 8), 0.3, np.float32)), 0.3, atol=1e-6)


def test_a_shot_is_a_function_of_scene_and_generator() -> None:
    one, same = (shoot(scene(), np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(one.picture, same.picture)
    assert one.picture.dtype == one.truth.dtype == np.uint8
    assert one.picture.shape == one.truth.shape == scene().shape
    other = shoot(scene(), np.random.default_rng(4))
    assert np.abs(one.picture.astype(int) - other.picture).max() > 5


def test_without_noise_the_picture_is_the_truth_and_the_truth_is_the_scene() -> None:
    shot = shoot(scene(), np.random.default_rng(0), QUIET)
    assert np.abs(shot.picture.astype(int) - shot.truth).mean() < 1
    inside = np.s_[6:-6, 6:-6]
    assert np.abs(shot.truth.astype(int) - scene())[inside].mean() < 4, (
        "lens, smoothing and sharpening of smooth colours"
    )


def luma_weights() -> np.ndarray:
    """The share of each of 5 x 5 sensor pixels in the luma of the green one in their middle: (5, 5)."""
    weights = np.zeros((5, 5))
    for i, j in np.ndindex(5, 5):
        impulse = np.zeros((9, 9))
        impulse[2 + i, 3 + j] = 1
        weights[i, j] = plain_demosaic(impulse)[4, 5] @ LUMA
    return weights


@pytest.mark.parametrize("electrons", [400.0, 1600.0])
def test_noise_is_that_of_counted_photons(electrons: float) -> None:
    """On gray, the luma of green pixels varies as Poisson counts and read noise do that are weighted as above."""
    shot = shoot(
        np.full((256, 256, 3), 118, np.uint8), np.random.default_rng(0), replace(BARE, electrons=(electrons,) * 2)
    )
    luma = shot.picture / 255.0 @ LUMA
    at_green = np.concatenate([luma[0::2, 1::2].ravel(), luma[1::2, 0::2].ravel()])
    light = ((118 / 255 + 0.055) / 1.055) ** 2.4
    slope = 1.055 / 2.4 * light ** (1 / 2.4 - 1)  # of the sRGB curve
    counted = light / electrons + (3 / electrons) ** 2
    assert at_green.mean() == pytest.approx(118 / 255, rel=0.01)
    assert at_green.var() == pytest.approx(slope**2 * counted * (luma_weights() ** 2).sum(), rel=0.06)


def test_noise_that_is_left_is_correlated() -> None:
    """Neighbours of white noise have no correlation; the camera's have, most of all in differences of colours."""
    gray = np.full((256, 256, 3), 118, np.uint8)
    shot = shoot(gray, np.random.default_rng(0))
    residual = shot.picture.astype(float) - shot.truth

    def lag(x: np.ndarray) -> float:
        return float(np.corrcoef(x[:, 1:].ravel(), x[:, :-1].ravel())[0, 1])

    luma, difference = residual.mean(-1), residual[..., 0] - residual[..., 1]
    assert lag(luma) > 0.3
    assert lag(difference) > 0.7
