"""Alignment to the ground truth: a moved copy regains its PSNR over the pixels that it covers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from gmd_ray.config import Config
from gmd_ray.errors import DataError
from gmd_ray.evaluation.alignment import align_to
from gmd_ray.images.files.encode import encode_png
from tests.evaluation.test_evaluate import judged


def scene(height: int = 120, width: int = 160) -> np.ndarray:
    noise = np.random.default_rng(0).random((height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min()) * 0.8 + 0.1


def moved(image: np.ndarray, angle: float, x: float, y: float, brightness: float = 1.0) -> np.ndarray:
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
    matrix[:, 2] += (x, y)
    shifted = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return np.clip(shifted * brightness, 0, 1).astype(np.float32)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a.astype(np.float64) - b) ** 2)))


@pytest.mark.parametrize(("angle", "x", "y", "brightness"), [(0, 3, -2, 1), (0, 2.6, 1.3, 1), (1.5, 2, -1, 0.9)])
def test_a_shifted_or_turned_image_regains_its_psnr(angle: float, x: float, y: float, brightness: float) -> None:
    truth = scene()
    image = moved(truth, angle, x, y, brightness)
    found, covered = align_to(image, truth)
    assert psnr(image, truth) < 26
    assert psnr(found[covered], truth[covered]) > 40
    assert 0.9 < covered.mean() < 1
    assert found.dtype == np.float32
    assert found.shape == truth.shape


def test_an_image_in_its_place_stays() -> None:
    truth = scene()
    noisy = np.clip(truth + np.random.default_rng(1).normal(0, 0.02, truth.shape), 0, 1).astype(np.float32)
    found, covered = align_to(noisy, truth)
    assert covered.mean() > 0.97
    assert psnr(found[covered], truth[covered]) == pytest.approx(psnr(noisy, truth), abs=0.5)


def test_images_that_cannot_be_aligned_say_so() -> None:
    with pytest.raises(DataError, match="160x120, the ground truth 80x120"):
        align_to(scene(), scene()[:, :80])
    with pytest.raises(DataError, match="no movement"):
        align_to(np.full((40, 40, 3), 0.5, np.float32), scene(40, 40))


def test_full_reference_metrics_take_the_aligned_image_and_others_the_output_itself(
    run: Config, students: dict[str, str], tmp_path: Path
) -> None:
    """Ready outputs that are moved copies of the truth: near perfect after alignment, and failures keep their image."""
    e = run.evaluation
    e.source_hq = e.source_lq = None
    for folder in ("lq", "hq"):
        for path in (tmp_path / "target" / folder).iterdir():
            path.unlink()
    truth = scene()
    for i, image in enumerate([moved(truth, 0, 3, 1), np.full_like(truth, 0.5)]):
        (tmp_path / "target" / "hq" / f"{i}.png").write_bytes(encode_png(truth))
        (tmp_path / "target" / "lq" / f"{i}.png").write_bytes(encode_png(truth * 0.5))
        (tmp_path / "ready").mkdir(exist_ok=True)
        (tmp_path / "ready" / f"{i}.png").write_bytes(encode_png(image))
    e.methods = {"moved": f"folder:{tmp_path / 'ready'}"}
    plain = judged(run, students)
    e.align = "ecc"
    aligned = judged(run, students)
    before, after = (found.values("moved", "target", "psnr") for found in (plain, aligned))
    assert set(before) == {"0.png", "1.png"}
    assert set(after) == {"0.png"}
    assert before["0.png"] < 26
    assert after["0.png"] > 40
    assert aligned.values("moved", "target", "ssim")["0.png"] > 0.99
    assert aligned.values("lq", "target", "psnr")["0.png"] > 40, "one factor of brightness"
    [(name, _, reason, count), _] = [row for row in aligned.failures("target") if row[0] == "moved"]
    assert (name, count) == ("moved", 1)
    assert "no movement leads from the output" in reason
    assert "aligned to the ground truth" in aligned.variants["psnr"]
    assert aligned.test_set("target") != plain.test_set("target"), "means of the two are not comparable"
