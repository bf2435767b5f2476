"""Training of the toy world's scorer, a small NIMA that has never seen the target domain."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gmd_ray.demo.scorer_training import degrade_generically, fit_scorer
from gmd_ray.demo.toy import world
from gmd_ray.images.degradation.degradations import Degradation

HEAVY = Degradation(
    blur_prob=0.7, blur_sigma=(0.5, 3.0), noise_prob=0.7, noise_sigma=(5, 60), jpeg_prob=0.5, jpeg_quality=(10, 60)
)


@dataclass
class ScorerRecipe:
    """Settings of the training; the defaults are those of `gmd-ray demo train-models`."""

    seed: int = 0
    pool: int = 1_500
    """Number of distinct clean images, 64x64, of the split `scorer`."""
    steps: int = 600
    batch: int = 32
    lr: float = 3e-3


def train_scorer(dest: str | Path, recipe: ScorerRecipe) -> dict[str, float]:
    """Train a scorer and write its directory.

    Returns:
        `seconds` of wall time, and `held_out_correlation`, the Pearson correlation of score and label on 200 held-out
        images.
    """
    start = time.monotonic()
    pool = [world.draw(recipe.seed, "scorer", i) for i in range(recipe.pool)]
    model, correlation = fit_scorer(
        pool[:-200], pool[-200:], _degrade, seed=recipe.seed, steps=recipe.steps, batch=recipe.batch, lr=recipe.lr
    )
    model.save_pretrained(Path(dest))
    return {"seconds": time.monotonic() - start, "held_out_correlation": correlation}


def _degrade(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return degrade_generically(image, rng, world.SOURCE, world.WEB, HEAVY)
