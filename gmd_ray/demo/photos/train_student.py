"""Training of the photographs' student, a DnCNN, on white Gaussian noise of sigma 0 to 55 alone."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gmd_ray.demo.networks import build_denoiser, update_average

log = logging.getLogger("gmd_ray")

LARGEST_SHARE = 600_000
"""Pixels of a photograph that count towards its share of the crops, at most."""


@dataclass
class PhotoStudentRecipe:
    """Settings of the training; the defaults are those of the shipped student.

    The shipped one was trained for a time, 18 minutes, in which 3,182 steps passed, with a schedule over that time.
    Here the schedule is over the steps, so that a slow machine gives the same student.
    """

    seed: int = 0
    pool: int = 530
    """Number of photographs, at most."""
    steps: int = 3_182
    batch: int = 16
    crop: int = 48
    sigma: float = 55.0
    """Largest standard deviation of the noise in 8-bit levels; that of each crop is uniform from 0."""
    lr: float = 1.5e-3
    warmup: int = 100
    ema: float = 0.998
    channels: int = 48
    layers: int = 10


def train_student(dest: str | Path, photographs: list[np.ndarray], recipe: PhotoStudentRecipe) -> dict[str, Any]:
    """Train a student on this CPU and write its state dict to `dest`, a .safetensors file.

    Args:
        photographs: uint8 RGB, (H, W, 3) each, no side shorter than the crops.

    Returns:
        `threads`, `torch`, `images`, `photographs`, `seconds` of wall time, and `loss`, the mean L1 loss of the last
        200 steps.
    """
    from safetensors.torch import save_file

    start = time.monotonic()
    model, losses = fit_student(photographs, recipe)
    Path(dest).parent.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.contiguous() for name, weight in model.state_dict().items()}, dest)
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "images": recipe.steps * recipe.batch,
        "photographs": len(photographs),
        "seconds": round(time.monotonic() - start, 1),
        "loss": float(np.mean(losses[-200:])),
    }


def fit_student(photographs: list[np.ndarray], recipe: PhotoStudentRecipe) -> tuple[torch.nn.Module, list[float]]:
    """Train a student with Adam and a cosine schedule.

    Returns:
        The network with the average of its weights, and the loss of each step.
    """
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    shares = np.array([min(x.shape[0] * x.shape[1], LARGEST_SHARE) for x in photographs], float)
    shares /= shares.sum()
    model = build_denoiser(recipe.channels, recipe.layers)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # in no overload of torch's own types
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    average = [parameter.detach().clone() for parameter in model.parameters()]
    losses: list[float] = []
    for step in range(recipe.steps):
        rise = min(1, (step + 1) / recipe.warmup)
        fall = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        optimizer.param_groups[0]["lr"] = recipe.lr * rise * fall + 1e-6
        clean = _crops(photographs, shares, recipe, rng).contiguous(memory_format=torch.channels_last)
        sigma = torch.rand(recipe.batch, 1, 1, 1) * recipe.sigma / 255
        loss = (model(clean + torch.randn_like(clean) * sigma) - clean).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        update_average(average, model.parameters(), step, recipe.ema)
        losses.append(loss.item())
        if (step + 1) % 200 == 0:
            log.info("student: step %d/%d loss %.5f", step + 1, recipe.steps, np.mean(losses[-200:]))
    with torch.no_grad():
        for parameter, mean in zip(model.parameters(), average, strict=True):
            parameter.copy_(mean)
    return model.eval(), losses


def _crops(
    photographs: list[np.ndarray], shares: np.ndarray, recipe: PhotoStudentRecipe, rng: np.random.Generator
) -> torch.Tensor:
    """Draw a batch of crops in [0, 1], (batch, 3, crop, crop), turned by quarters and flipped."""
    crops = []
    for i in rng.choice(len(photographs), recipe.batch, p=shares):
        image = photographs[i]
        top, left = (int(rng.integers(0, side - recipe.crop + 1)) for side in image.shape[:2])
        crop = image[top : top + recipe.crop, left : left + recipe.crop]
        crop = np.rot90(crop, int(rng.integers(4)))
        crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
