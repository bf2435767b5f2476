"""Training of the photographs' scorer, a small NIMA that has never seen the demo's photographs or its camera.

The degradations are those of the toy world's scorer and, for 4 of 10 images, what they lack: noise that is correlated
from pixel to pixel, which the scorer otherwise takes for texture.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from gmd_ray.demo.scorer_training import degrade_generically, fit_scorer
from gmd_ray.demo.toy import world
from gmd_ray.images.degradation.degradations import Degradation
from gmd_ray.images.degradation.filters import jpeg, to_levels

SIDE = 64
HEAVY = Degradation(
    blur_prob=0.8, blur_sigma=(0.5, 5.0), noise_prob=0.8, noise_sigma=(5, 70), jpeg_prob=0.6, jpeg_quality=(8, 60)
)


@dataclass
class PhotoScorerRecipe:
    """Settings of the training; the defaults are those of the shipped scorer."""

    seed: int = 0
    pool: int = 2_600
    """Number of tiles, at most; the last 200 are held out. Tiles of one photograph may be on both sides."""
    steps: int = 700
    batch: int = 32
    lr: float = 3e-3


def train_scorer(dest: str | Path, tiles: np.ndarray, recipe: PhotoScorerRecipe) -> dict[str, Any]:
    """Train a scorer on this CPU and write its directory.

    Args:
        tiles: uint8 RGB, (N, 128, 128, 3), more than 200.

    Returns:
        `threads`, `torch`, `tiles`, `seconds` of wall time, and `held_out_correlation`, the Pearson correlation of
        score and label on 200 held-out tiles.
    """
    start = time.monotonic()
    pool = shrink_tiles(tiles, recipe)
    model, correlation = fit_scorer(
        pool[:-200], pool[-200:], degrade, seed=recipe.seed, steps=recipe.steps, batch=recipe.batch, lr=recipe.lr
    )
    model.save_pretrained(Path(dest))
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "tiles": len(pool),
        "seconds": round(time.monotonic() - start, 1),
        "held_out_correlation": correlation,
    }


def shrink_tiles(tiles: np.ndarray, recipe: PhotoScorerRecipe) -> list[np.ndarray]:
    """Make 64x64 images of tiles in random order, half of them shrunk, half cropped: float32 RGB in [0, 1]."""
    rng = np.random.default_rng(recipe.seed)
    pool = []
    for i in rng.permutation(len(tiles))[: recipe.pool]:
        tile = tiles[i]
        if rng.random() < 0.5:
            tile = cv2.resize(tile, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        else:
            top, left = rng.integers(0, tile.shape[0] - SIDE + 1, 2)
            tile = tile[top : top + SIDE, left : left + SIDE]
        pool.append(tile.astype(np.float32) / 255)
    return pool


def degrade(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Degrade one image as the toy world's scorer sees it, or by blur, correlated noise, JPEG and a median filter."""
    if rng.random() < 0.6:
        return degrade_generically(image, rng, world.SOURCE, world.WEB, HEAVY)
    out, side = image, image.shape[0]
    if rng.random() < 0.6:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.5, 6))
    if rng.random() < 0.85:
        out = out + _correlated(side, rng)
    levels = to_levels(out)
    if rng.random() < 0.5:
        levels = jpeg(levels, int(rng.integers(10, 80)))
    if rng.random() < 0.5:
        levels = cv2.medianBlur(np.ascontiguousarray(levels), int(rng.choice([3, 5])))
    return levels.astype(np.float32) / 255


def _correlated(side: int, rng: np.random.Generator) -> np.ndarray:
    """White noise drawn small and enlarged, (side, side, 3), partly gray, of 3 to 70 levels."""
    small = int(side / rng.uniform(1.2, 5))
    white = rng.normal(0, 1, (small, small, 3)).astype(np.float32)
    noise = cv2.resize(white, (side, side), interpolation=cv2.INTER_CUBIC)
    noise = noise + rng.uniform(0, 1.5) * noise.mean(2, keepdims=True)
    return noise / noise.std() * np.exp(rng.uniform(np.log(3), np.log(70))) / 255
