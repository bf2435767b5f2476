"""Training of the toy world's teacher, a tiny FLUX transformer conditioned on image quality."""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from gmd_ray.demo.flow_matching import FlowOptimizer, fit_codec, flow_loss, prompt_table, stack_prompts, write_teacher
from gmd_ray.demo.networks import build_transformer
from gmd_ray.demo.toy import world
from gmd_ray.images.degradation.degradations import sample_rng
from gmd_ray.teachers.flux.latents import SpaceToDepthCodec, pack

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

log = logging.getLogger("gmd_ray")

_MARGIN = 6  # pixels around a crop that are degraded with it, so that blur sees the pixels beyond its border


@dataclass
class TeacherRecipe:
    """Settings of the training; the defaults are those of `gmd-ray demo train-models`, written beside the weights."""

    seed: int = 0
    pool: int = 12_000
    """Number of distinct clean images, 64x64."""
    legs: tuple[tuple[int, int], ...] = ((1_000, 6_000), (2_000, 2_000))
    """Steps run and steps of the learning rate's schedule, for each leg.

    A leg starts from the weight average of the one before, with new optimizers. The first leg of the shipped teacher
    has a schedule of 6,000 steps and ends after 1,000.
    """
    batch: int = 64
    crop: int = 32
    """Side of the training crops until the share `large_from` of the schedule; after it, whole images in batches of a
    quarter of the size."""
    large_from: float = 0.75
    decay_from: float = 0.4
    muon_lr: float = 2e-3
    adamw_lr: float = 1.5e-3
    ema: float = 0.998
    double_blocks: int = 1
    single_blocks: int = 5
    heads: int = 3
    head_dim: int = 64


def clean_pool(seed: int, count: int) -> np.ndarray:
    """Draw clean images, uint8 of shape (count, 64, 64, 3)."""
    return np.stack([np.rint(world.draw(seed, "teacher", i) * 255).astype(np.uint8) for i in range(count)])


def sample_batch(
    pool: np.ndarray, rng: np.random.Generator, batch: int, crop: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a training batch.

    Returns:
        Pixels in [-1, 1], (batch, 3, crop, crop), and the number of each image's prompt in PROMPTS, (batch,).
    """
    size = pool.shape[1]
    pixels = np.empty((batch, crop, crop, 3), np.float32)
    labels = np.empty(batch, np.int64)
    for k in range(batch):
        image = pool[rng.integers(len(pool))]
        top, left = rng.integers(0, size - crop + 1, 2)
        y, x = max(0, top - _MARGIN), max(0, left - _MARGIN)
        region = image[y : top + crop + _MARGIN, x : left + crop + _MARGIN].astype(np.float32) / 255
        clean = rng.random() < 0.5
        if not clean:
            region = world.WEB(region, rng)
        pixels[k] = region[top - y : top - y + crop, left - x : left - x + crop]
        if rng.random() < 0.5:
            pixels[k] = pixels[k, :, ::-1]
        labels[k] = 0 if rng.random() < 0.2 else 1 if clean else 2
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) * 2 - 1, torch.from_numpy(labels)


def train_teacher(dest: str | Path, recipe: TeacherRecipe, first_leg: int = 0) -> dict[str, float]:
    """Train a teacher and write its directory in the diffusers layout.

    Args:
        dest: the directory; with `first_leg` above 0 it holds the result of the leg before.
        recipe: settings of the training.
        first_leg: number of the leg to start with.

    Returns:
        `images`, `seconds` of wall time, and `loss`, the mean loss of the last 200 steps.
    """
    dest = Path(dest)
    torch.manual_seed(recipe.seed)
    start = time.monotonic()
    pool = clean_pool(recipe.seed, recipe.pool)
    codec = fit_codec(pool)
    table = prompt_table(recipe.seed + 1)
    model = build_transformer(recipe.double_blocks, recipe.single_blocks, recipe.heads, recipe.head_dim)
    images = 0
    for leg in range(first_leg, len(recipe.legs)):
        if leg:
            model = type(model).from_pretrained(dest / "transformer", torch_dtype=torch.float32)
        model, losses, seen = _run_leg(model, recipe, leg, pool, codec, table)
        images += seen
        write_teacher(dest, model, codec, table)
    return {"images": images, "seconds": time.monotonic() - start, "loss": float(np.mean(losses[-200:]))}


def _run_leg(
    master: FluxTransformer2DModel,
    recipe: TeacherRecipe,
    leg: int,
    pool: np.ndarray,
    codec: SpaceToDepthCodec,
    table: dict[str, torch.Tensor],
) -> tuple[FluxTransformer2DModel, list[float], int]:
    """Train one leg.

    Returns:
        The average of the weights, the loss of each step, and the number of images.
    """
    steps, schedule = recipe.legs[leg]
    # The master weights are fp32. The working copy is bf16, in which small CPU kernels are about 1.7 times as fast.
    model = copy.deepcopy(master).to(torch.bfloat16)
    optimizer = FlowOptimizer(master, recipe.muon_lr, recipe.adamw_lr, recipe.ema)
    embeds, pooled = (side.to(torch.bfloat16) for side in stack_prompts(table))
    generator = torch.Generator().manual_seed(recipe.seed + 2 + leg)
    losses: list[float] = []
    seen = 0
    start = time.monotonic()
    for step in range(steps):
        done = step / schedule
        factor = min(1.0, (step + 1) / 100, (1 - done) / (1 - recipe.decay_from))
        crop, batch = (recipe.crop, recipe.batch) if done < recipe.large_from else (world.SIZE, recipe.batch // 4)
        pixels, labels = sample_batch(pool, sample_rng(recipe.seed, "batch", leg, step), batch, crop)
        x0 = pack(codec.encode(pixels))
        t = torch.sigmoid(torch.randn(batch, generator=generator) - 0.7)
        t = torch.where(torch.rand(batch, generator=generator) < 0.8, t, torch.rand(batch, generator=generator))
        eps = torch.randn(x0.shape, generator=generator)
        with sdpa_kernel(SDPBackend.MATH):  # the CPU flash kernel's backward took 43% of a step at 68 tokens
            loss = flow_loss(model, x0, (embeds[labels], pooled[labels]), t, eps)
        loss.backward()
        for p, q in zip(master.parameters(), model.parameters(), strict=True):
            p.grad = None if q.grad is None else q.grad.float()
            q.grad = None
        optimizer.step(factor)
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), list(master.parameters()))
        losses.append(loss.item())
        seen += batch
        if (step + 1) % 100 == 0:
            rate = (step + 1) / (time.monotonic() - start)
            log.info("teacher: leg %d step %d/%d loss %.4f, %.2f it/s, %.0f min left", leg, step + 1, steps,
                     np.mean(losses[-100:]), rate, (steps - step - 1) / rate / 60)  # fmt: skip
    return optimizer.average, losses, seen
