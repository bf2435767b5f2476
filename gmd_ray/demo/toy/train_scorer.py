"""Training of the toy world's scorer, a small NIMA that has never seen the target domain.

Its labels come from clean images with generic degradations: distributions of mean 1 + 8.5 * SSIM and standard deviation
0.9 (`docs/decisions.md`, "Demo").
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from gmd_ray.demo.toy import world
from gmd_ray.images.degradation.degradations import Degradation, sample_rng

log = logging.getLogger("gmd_ray")

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
    from gmd_ray.quality.nima import NimaScorer, emd_loss, score_distribution

    start = time.monotonic()
    torch.manual_seed(recipe.seed)
    pool = [world.draw(recipe.seed, "scorer", i) for i in range(recipe.pool)]
    train, held_out = pool[:-200], pool[-200:]
    model = NimaScorer()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    model.train()
    for step in range(recipe.steps):
        rng = sample_rng(recipe.seed, "scorer", "batch", step)
        images, labels = _batch([train[i] for i in rng.integers(len(train), size=recipe.batch)], rng)
        loss = emd_loss(model(images), score_distribution(labels, std=0.9))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            log.info("scorer: step %d/%d loss %.4f", step + 1, recipe.steps, loss.item())
    images, labels = _batch(held_out, sample_rng(recipe.seed, "scorer", "held-out"))
    correlation = float(np.corrcoef(model.score(images).numpy(), labels.numpy())[0, 1])
    model.save_pretrained(Path(dest))
    return {"seconds": time.monotonic() - start, "held_out_correlation": correlation}


def _batch(clean: list[np.ndarray], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Degraded images (B, 3, H, W) and their mean scores (B,)."""
    from gmd_ray.quality.full_reference import structural_similarity

    degraded = [_degrade(image, rng) for image in clean]
    x, y = (torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2).contiguous() for side in (degraded, clean))
    ssim = [structural_similarity(a[None].double() * 255, b[None].double() * 255) for a, b in zip(x, y, strict=True)]
    return x, 1 + 8.5 * torch.tensor(ssim).clamp(0, 1).float()


def _degrade(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Leave an image clean or degrade it mildly, generically or heavily; a quarter is median-filtered."""
    kind = rng.random()
    if kind < 0.1:
        return image
    out = (world.SOURCE if kind < 0.35 else world.WEB if kind < 0.75 else HEAVY)(image, rng)
    if rng.random() < 0.25:
        out = cv2.medianBlur(np.rint(out * 255).astype(np.uint8), 3).astype(np.float32) / 255
    return out
