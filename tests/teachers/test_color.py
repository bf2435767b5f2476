"""The color fix against the definitions written out in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gmd_ray.config import InjectionConfig, TeacherConfig
from gmd_ray.errors import GmdError
from gmd_ray.teachers import Teacher, load_teacher
from gmd_ray.teachers.color import adain, wavelet


def images(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def low(plane: np.ndarray) -> np.ndarray:
    """The definition by pixels: five smoothings with [1 2 1] / 4, the gap doubled each time, the edge repeated."""
    height, width = plane.shape
    for gap in (1, 2, 4, 8, 16):
        out = np.zeros_like(plane)
        for y in range(height):
            for x in range(width):
                for dy, wy in ((-gap, 0.25), (0, 0.5), (gap, 0.25)):
                    for dx, wx in ((-gap, 0.25), (0, 0.5), (gap, 0.25)):
                        inside = plane[min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
                        out[y, x] += wy * wx * inside
        plane = out
    return plane


def test_wavelet_swaps_the_low_frequencies() -> None:
    image, reference = images(1, 20, 13, 1), images(1, 20, 13, 2) * 0.5
    found = wavelet(image, reference)[0].numpy()
    for c in range(3):
        mine, theirs = (x[0, c].numpy().astype(np.float64) for x in (image, reference))
        np.testing.assert_allclose(found[c], mine - low(mine) + low(theirs), atol=1e-6)


def test_adain_swaps_mean_and_deviation() -> None:
    image, reference = images(2, 9, 7, 1), images(2, 9, 7, 2) * 0.3 + 0.2
    found = adain(image, reference).numpy()
    for b in range(2):
        for c in range(3):
            mine, theirs = (x[b, c].numpy().astype(np.float64) for x in (image, reference))
            normal = (mine - mine.mean()) / np.sqrt(mine.var() + 1e-5)
            np.testing.assert_allclose(found[b, c], normal * np.sqrt(theirs.var() + 1e-5) + theirs.mean(), atol=1e-6)


@pytest.mark.parametrize("fix", [wavelet, adain])
def test_a_shift_of_colour_is_undone(fix: object) -> None:
    reference = images(1, 16, 16) * 0.5 + 0.1
    torch.testing.assert_close(fix(reference + 0.3, reference), reference, atol=1e-5, rtol=0)  # type: ignore[operator]


def test_a_flat_image_stays_finite() -> None:
    flat = torch.full((1, 3, 8, 8), 0.5)
    assert torch.isfinite(adain(flat, images(1, 8, 8))).all()


@pytest.mark.parametrize("method", ["inversion", "sdedit", "kontext", "ddim", "tests.teachers.test_plugin:Invert"])
@pytest.mark.parametrize("fix", ["wavelet", "adain"])
def test_it_works_for_every_teacher(method: str, fix: str, flux_dir: Path, sd_dir: Path) -> None:
    def teacher(color_fix: str) -> Teacher:
        cfg = TeacherConfig(
            path=str(sd_dir if method == "ddim" else flux_dir), method=method, steps=2, prompt="a sharp photo",
            injection=InjectionConfig(blocks="all", steps=1), color_fix=color_fix,
        )  # fmt: skip
        return load_teacher(cfg)

    plain, fixed = teacher("none"), teacher(fix)
    assert isinstance(fixed, Teacher)
    assert fixed.fingerprint not in (plain.fingerprint, teacher("adain" if fix == "wavelet" else "wavelet").fingerprint)
    x = images(2, 16, 24) * 0.2
    expected = {"wavelet": wavelet, "adain": adain}[fix](plain.project(x, ["a", "b"]), x).clamp(0, 1)
    torch.testing.assert_close(fixed.project(x, ["a", "b"]), expected, atol=1e-6, rtol=0)


def test_an_unknown_fix_is_named() -> None:
    from gmd_ray.config.load import load_config

    with pytest.raises(GmdError, match=r"teacher.color_fix=wavlet: did you mean 'wavelet'"):
        load_config(["teacher.color_fix=wavlet"])
