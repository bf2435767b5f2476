"""Training of the toy world's student, a small DnCNN, on mildly degraded pairs alone."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gmd_ray.demo.networks import build_denoiser
from gmd_ray.demo.toy import world
from gmd_ray.images.degradation.degradations import sample_rng

log = logging.getLogger("gmd_ray")


@dataclass
class StudentRecipe:
    """Settings of the training; the defaults are those of `gmd-ray demo train-models`."""

    seed: int = 0
    pool: int = 2_000
    """Number of distinct clean images, 64x64, of the split `student`."""
    steps: int = 2_000
    batch: int = 32
    crop: int = 32
    lr: float = 2e-3
    channels: int = 24
    layers: int = 8


def train_student(dest: str | Path, recipe: StudentRecipe) -> dict[str, float]:
    """Train a student and write its state dict to `dest`, a .safetensors file.

    Returns:
        `images`, `seconds` of wall time, and `loss`, the mean L1 loss of the last 200 steps.
    """
    from safetensors.torch import save_file

    start = time.monotonic()
    torch.manual_seed(recipe.seed)
    pool = [world.draw(recipe.seed, "student", i) for i in range(recipe.pool)]
    model = build_denoiser(recipe.channels, recipe.layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    losses = []
    for step in range(recipe.steps):
        rng = sample_rng(recipe.seed, "student", "batch", step)
        pairs = [_crop_pair(pool[rng.integers(len(pool))], recipe.crop, rng) for _ in range(recipe.batch)]
        lq, hq = (torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2) for side in zip(*pairs, strict=True))
        loss = (model(lq) - hq).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 200 == 0:
            log.info("student: step %d/%d loss %.4f", step + 1, recipe.steps, np.mean(losses[-200:]))
    Path(dest).parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, dest)
    return {
        "images": recipe.steps * recipe.batch,
        "seconds": time.monotonic() - start,
        "loss": float(np.mean(losses[-200:])),
    }


def _crop_pair(hq: np.ndarray, crop: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    top, left = rng.integers(0, hq.shape[0] - crop + 1, 2)
    lq = world.SOURCE(hq, rng)  # degraded before the crop, so that blur and JPEG see the pixels beyond its border
    where = np.s_[top : top + crop, left : left + crop]
    return lq[where], hq[where]
