"""Near-copies among the target photos: told where there are many, and only then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmd_ray.config.load import load_config
from gmd_ray.images.degradation.degradations import sample_rng
from gmd_ray.planning import Findings, bursts
from gmd_ray.planning.data_sets import read_data_sets


def scene(seed: int, shift: int = 0, noise: float = 4) -> np.ndarray:
    """(120, 160, 3): a scene of its own, moved a little and with the noise of another exposure."""
    rng = sample_rng("scene", seed)
    image = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
        (176, 136), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(image, np.float32)[8:128, 8 + shift : 168 + shift]
    return np.clip(pixels + sample_rng("noise", seed, shift).normal(0, noise, pixels.shape), 0, 255).astype(np.uint8)


def told(folder: Path) -> list[str]:
    found = Findings("generate")
    sets = read_data_sets(found, load_config([f"target.path={folder}"]), ["generate"])
    side = sets["target"].lq
    assert side is not None
    bursts.check_bursts(found, side)
    return [finding.message for finding in found.of("warning")]


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_burst_is_told(ending: str, tmp_path: Path) -> None:
    for i in range(12):
        Image.fromarray(scene(i // 4, i % 4)).save(tmp_path / f"IMG_{i:03d}.{ending}")
    [line] = told(tmp_path)
    assert "of the 12 target photos, about 9 look like the one before them by name" in line
    assert f"(IMG_000.{ending} and IMG_001.{ending}, " in line


def test_other_photos_are_not(tmp_path: Path) -> None:
    for i in range(12):
        Image.fromarray(scene(i)).save(tmp_path / f"IMG_{i:03d}.jpg")
    for i in range(12, 24):  # nothing in them to be alike by
        Image.fromarray(np.full((120, 160, 3), 200 + i, np.uint8)).save(tmp_path / f"IMG_{i:03d}.jpg")
    assert told(tmp_path) == []


def test_of_many_photos_some_neighbours_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bursts, "MOST", 10)
    for i in range(40):
        Image.fromarray(scene(i // 20, i % 3)).save(tmp_path / f"{i:03d}.png")
    [line] = told(tmp_path)
    assert "10 of the 40 target photos that were looked at" in line
    monkeypatch.setattr(bursts, "PIXELS", 120 * 160 * 6)
    [line] = told(tmp_path)
    assert "6 of the 40 target photos that were looked at" in line
