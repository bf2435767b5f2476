"""Reading and scoring of the pairs of a calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gmd_ray.config import Config
from gmd_ray.errors import ConfigError, DataError
from gmd_ray.images.degradation.degradations import Degradation, sample_rng
from gmd_ray.images.files.encode import encode_png
from gmd_ray.images.listing import list_images
from gmd_ray.images.sets.pairs import PairFile
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.quality.calibration import pairs as module


class Brightness:
    """A scorer whose value is known: the mean of the image."""

    higher_is_better = True
    fingerprint = "mean"

    def score(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[-1] < 4:
            raise DataError("too small to be scored")
        return images.mean((1, 2, 3))


def save(path: Path, image: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(image))
    return str(path)


def ramp(height: int, width: int) -> np.ndarray:
    """Every pixel has its own value, on the grid of 8 bits."""
    values = np.arange(height * width * 3).reshape(height, width, 3) % 251
    return (values / 255).astype(np.float32)


def photos(*files: PairFile, degradation: Degradation | None = None) -> module.PairedPhotos:
    return module.PairedPhotos("source", "clean photo", "degraded photo", files, False, degradation, 3)


def test_both_files_are_cut_to_the_same_part(tmp_path: Path) -> None:
    hq = ramp(24, 40)
    lq = np.ascontiguousarray(hq[::2, ::2])
    pair = PairFile("a.png", save(tmp_path / "lq" / "a.png", lq), save(tmp_path / "hq" / "a.png", hq))
    degraded, clean = module.read_pair(pair, photos(pair), (8, 6))
    assert np.array_equal(clean, hq[6:18, 12:28]), "6 by 8 LQ pixels at the centre, across as the photo lies"
    assert np.array_equal(degraded, module.enlarged(lq[3:9, 6:14], (12, 16)))
    assert degraded.shape == clean.shape
    whole = module.read_pair(pair, photos(pair), (99, 99))
    assert np.array_equal(whole[1], hq), "a photo that is smaller stays whole"


def test_a_degradation_is_drawn_from_the_seed_and_the_name(tmp_path: Path) -> None:
    hq = ramp(21, 13)
    noise = Degradation(noise_prob=1, noise_sigma=(20, 20))
    pair = PairFile("a.png", None, save(tmp_path / "a.png", hq))
    degraded, clean = module.read_pair(pair, photos(pair, degradation=noise), (8, 8))
    assert np.array_equal(clean, hq[6:14, 2:10])
    assert np.array_equal(degraded, noise(clean, sample_rng(3, "a.png", 0)))
    smaller = module.read_pair(pair, photos(pair, degradation=Degradation(scale=2)), (4, 4))
    assert [image.shape for image in smaller] == [(8, 8, 3), (8, 8, 3)]


def test_scores_are_in_one_order_and_what_fails_is_counted(tmp_path: Path) -> None:
    files = []
    for i in range(6):
        size = (3, 3) if i == 2 else (8, 8)
        hq = np.full((*size, 3), (200 + i) / 255, np.float32)
        lq = save(tmp_path / "lq" / f"{i}.png", hq / 2)
        files.append(PairFile(f"{i}.png", lq, save(tmp_path / "hq" / f"{i}.png", hq)))
    Path(files[4].hq).write_bytes(b"torn")
    ticks: list[int] = []
    found = module.score_pairs(Brightness(), photos(*files), (8, 8), 99, count=lambda: ticks.append(1))
    assert found.better * 255 == pytest.approx([200, 201, 203, 205], abs=0.01)
    assert found.worse * 255 == pytest.approx([100, 100.5, 101.5, 102.5], abs=0.51)
    assert (found.left_out, found.reason, len(ticks)) == (2, "too small to be scored", 6)
    with pytest.raises(DataError, match="none of 1 source pairs can be scored: too small to be scored"):
        module.score_pairs(Brightness(), photos(files[2]), (8, 8), 99)
    in_time = module.score_pairs(Brightness(), photos(*files), (8, 8), 99, seconds=0)
    assert len(in_time.better) == 1, "one pair is scored in any case"


def test_images_are_taken_from_all_over_the_set() -> None:
    assert module.spread(range(10), 3) == [1, 5, 8]
    assert module.spread(range(3), 10) == [0, 1, 2]
    assert module.spread([], 5) == []


def test_the_view_is_the_target_s(tmp_path: Path) -> None:
    for i, size in enumerate([(8, 6), (6, 8), (12, 10), (30, 40), (10, 12)]):
        save(tmp_path / f"{i}.png", ramp(*size))
    (tmp_path / "torn.png").write_bytes(b"torn")
    assert module.target_view(Config(), list_images(str(tmp_path))) == (10, 12)
    assert module.target_view(Config(), []) == module.UNSIZED


def test_settings_without_pairs() -> None:
    cfg = Config()
    with pytest.raises(ConfigError, match=r"source\.hq is not set"):
        module.source_photos(cfg, RunInputs())
    cfg.source.hq = "/photos"
    with pytest.raises(ConfigError, match=r"source\.lq is not set: give it, or source\.degradation"):
        module.source_photos(cfg, RunInputs())
    assert module.held_out_photos(cfg, RunInputs()) is None
