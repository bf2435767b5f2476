"""Training of a small NIMA on clean images and generic degradations of them; the worlds bring their own images.

The labels are distributions of mean 1 + 8.5 * SSIM and standard deviation 0.9 (`docs/decisions.md`, "Demo").
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch

from gmd_ray.images.degradation.degradations import sample_rng
from gmd_ray.quality.nima import NimaScorer, emd_loss, score_distribution

log = logging.getLogger("gmd_ray")

Degrade = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""A function of float32 RGB in [0, 1], (H, W, 3), that returns the same."""


def fit_scorer(
    train: Sequence[np.ndarray],
    held_out: Sequence[np.ndarray],
    degrade: Degrade,
    *,
    seed: int,
    steps: int,
    batch: int,
    lr: float,
) -> tuple[NimaScorer, float]:
    """Train a scorer with Adam and a cosine schedule.

    Args:
        train, held_out: clean images of one size, float32 RGB in [0, 1].
        degrade: degrades one image, or leaves it clean.

    Returns:
        The scorer, and the Pearson correlation of score and label on the held-out images.
    """
    torch.manual_seed(seed)
    model = NimaScorer()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for step in range(steps):
        rng = sample_rng(seed, "scorer", "batch", step)
        images, labels = _labelled([train[i] for i in rng.integers(len(train), size=batch)], degrade, rng)
        loss = emd_loss(model(images), score_distribution(labels, std=0.9))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            log.info("scorer: step %d/%d loss %.4f", step + 1, steps, loss.item())
    images, labels = _labelled(held_out, degrade, sample_rng(seed, "scorer", "held-out"))
    return model, float(np.corrcoef(model.score(images).numpy(), labels.numpy())[0, 1])


def degrade_generically(
    image: np.ndarray, rng: np.random.Generator, mild: Degrade, web: Degrade, heavy: Degrade
) -> np.ndarray:
    """Leave an image clean (1 of 10) or degrade it mildly, generically or heavily; a quarter is median-filtered."""
    kind = rng.random()
    if kind < 0.1:
        return image
    out = (mild if kind < 0.35 else web if kind < 0.75 else heavy)(image, rng)
    if rng.random() < 0.25:
        out = cv2.medianBlur(np.rint(out * 255).astype(np.uint8), 3).astype(np.float32) / 255
    return out


def _labelled(
    clean: Sequence[np.ndarray], degrade: Degrade, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Degraded images (B, 3, H, W) and their mean scores (B,)."""
    from gmd_ray.quality.full_reference import structural_similarity

    degraded = [degrade(image, rng) for image in clean]
    x, y = (torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2).contiguous() for side in (degraded, clean))
    ssim = [structural_similarity(a[None].double() * 255, b[None].double() * 255) for a, b in zip(x, y, strict=True)]
    return x, 1 + 8.5 * torch.tensor(ssim).clamp(0, 1).float()
