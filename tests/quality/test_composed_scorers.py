"""Scores over tiles, and a score with a fidelity beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from gmd_ray.config import ScorerConfig
from gmd_ray.errors import ConfigError, DataError
from gmd_ray.images.degradation.degradations import sample_rng
from gmd_ray.quality import Scorer, load_scorer
from gmd_ray.quality.composed_scorers import TiledScorer
from gmd_ray.quality.nima import NimaScorer


def images(*shape: int) -> torch.Tensor:
    return torch.from_numpy(sample_rng("gate", *shape).random(shape, dtype=np.float32))


@pytest.fixture
def path(tmp_path: Path) -> str:
    torch.manual_seed(0)
    NimaScorer(channels=(4, 4, 4)).save_pretrained(tmp_path)
    return str(tmp_path)


class CentreBrightness:
    """Sees the centre square alone, as NIMA does."""

    higher_is_better = False
    fingerprint = "centre"

    def score(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        side = min(height, width)
        y, z = (height - side) // 2, (width - side) // 2
        return x[..., y : y + side, z : z + side].mean((1, 2, 3))


def test_tiles_see_what_a_centre_square_misses() -> None:
    x = torch.zeros(1, 3, 8, 32)
    x[..., 24:] = 1.0
    assert CentreBrightness().score(x).item() == 0
    tiled = TiledScorer(CentreBrightness(), 1)
    assert tiled.score(x).item() == pytest.approx(0.25)
    assert tiled.higher_is_better is False


@pytest.mark.parametrize(("tiles", "height", "width", "boxes"), [
    (1, 20, 20, [(0, 0, 20)]),
    (1, 20, 50, [(0, 0, 20), (0, 15, 20), (0, 30, 20)]),
    (2, 20, 30, [(0, 0, 10), (0, 10, 10), (0, 20, 10), (10, 0, 10), (10, 10, 10), (10, 20, 10)]),
])  # fmt: skip
def test_the_mean_over_squares(
    path: str, tiles: int, height: int, width: int, boxes: list[tuple[int, int, int]]
) -> None:
    whole, tiled = load_scorer(ScorerConfig(path=path)), load_scorer(ScorerConfig(path=path, tiles=tiles))
    x = images(3, 3, height, width)
    expected = np.mean([whole.score(x[..., a : a + side, b : b + side]).numpy() for a, b, side in boxes], axis=0)
    assert np.allclose(tiled.score(x).numpy(), expected, atol=1e-6)
    assert torch.equal(tiled.score(x), tiled.score(x)), "the same each time"
    assert torch.allclose(tiled.score(x[1:2]), tiled.score(x)[1:2]), "whatever the batch"
    assert isinstance(tiled, Scorer)


def test_what_changes_a_score_changes_the_fingerprint(path: str) -> None:
    settings: list[dict] = [{}, {"tiles": 1}, {"tiles": 2}, {"fidelity": "psnr"}, {"fidelity": "ssim"}]
    prints = [load_scorer(ScorerConfig(path=path, **values)).fingerprint for values in settings]
    assert len(set(prints)) == len(settings)
    assert prints[0] == NimaScorer.from_pretrained(path).fingerprint, "older stores keep theirs"
    bounded = load_scorer(ScorerConfig(path=path, fidelity="psnr", fidelity_bound=28.0))
    assert bounded.fingerprint == prints[3], "the bound is a view"


def test_fidelity_is_that_of_the_whole_image(path: str) -> None:
    scorer = load_scorer(ScorerConfig(path=path, fidelity="psnr", tiles=2))
    restored = torch.round(images(2, 3, 16, 24) * 255) / 255
    target = torch.round((restored + 0.05).clamp(0, 1) * 255) / 255
    expected = [
        peak_signal_noise_ratio(a.numpy().astype(np.float64), b.numpy().astype(np.float64), data_range=1.0)
        for a, b in zip(restored, target, strict=True)
    ]
    values = scorer.fidelity(target, restored)  # type: ignore[attr-defined]
    assert values.tolist() == pytest.approx(expected, abs=1e-4)
    assert values.shape == (2,)
    assert torch.equal(scorer.score(target), load_scorer(ScorerConfig(path=path, tiles=2)).score(target))


def test_what_cannot_be_measured_says_so(path: str) -> None:
    scorer = load_scorer(ScorerConfig(path=path, fidelity="ssim"))
    with pytest.raises(DataError, match="SSIM needs at least 11x11"):
        scorer.fidelity(images(1, 3, 8, 8), images(1, 3, 8, 8))  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"scorer.fidelity_weights=w: psnr is a formula"):
        load_scorer(ScorerConfig(path=path, fidelity="psnr", fidelity_weights="w"))
