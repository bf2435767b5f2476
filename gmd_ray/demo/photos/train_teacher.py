"""Training of the photographs' teacher, a FLUX transformer of 16.6 M parameters conditioned on image quality."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gmd_ray.demo.flow_matching import FlowOptimizer, fit_codec, flow_loss, prompt_table, stack_prompts, write_teacher
from gmd_ray.demo.networks import build_transformer
from gmd_ray.demo.photos.crops import LabelledCrops
from gmd_ray.demo.photos.draws import Draws
from gmd_ray.errors import ModelError
from gmd_ray.teachers.flux.latents import SpaceToDepthCodec, pack

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

log = logging.getLogger("gmd_ray")

_LOG_EVERY = 100


@dataclass
class PhotoTeacherRecipe:
    """Settings of the training; the defaults are those of the shipped teacher."""

    seed: int = 0
    pool: int = 3_849
    """Number of distinct tiles, 128x128, at most."""
    steps: int = 1_399
    batch: int = 512
    crop: int = 64
    warmup: int = 150
    """Steps in which the learning rates rise to their values."""
    decay_from: float = 0.45
    """Share of the steps after which the learning rates fall to 0 on a straight line."""
    muon_lr: float = 2e-3
    adamw_lr: float = 1.5e-3
    ema: float = 0.999
    double_blocks: int = 1
    single_blocks: int = 8
    heads: int = 5
    head_dim: int = 64


def train_teacher(
    dest: str | Path, tiles: np.ndarray, recipe: PhotoTeacherRecipe, device: torch.device
) -> dict[str, Any]:
    """Train a teacher and write its directory in the diffusers layout.

    Args:
        tiles: uint8 RGB, (N, 128, 128, 3).
        device: on a GPU the network runs in bfloat16 (autocast), on a CPU in float32.

    Returns:
        `device`, `torch`, `images`, `tiles`, `seconds` of wall time, `losses` (see `mean_losses`) and, of a GPU,
        `peak_gib` of memory.

    Raises:
        ModelError: the loss is not finite; nothing is written then.
    """
    torch.manual_seed(recipe.seed)
    start = time.monotonic()
    codec = fit_codec(tiles)
    table = prompt_table(recipe.seed + 1)
    model = build_transformer(recipe.double_blocks, recipe.single_blocks, recipe.heads, recipe.head_dim).to(device)
    generator = torch.Generator(device).manual_seed(recipe.seed)
    on_gpu = device.type == "cuda"
    average, losses = run_steps(
        model, torch.from_numpy(tiles).to(device), recipe, codec, table, generator, half_precision=on_gpu
    )
    write_teacher(Path(dest), average, codec, table)
    figures = {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "images": recipe.steps * recipe.batch,
        "tiles": len(tiles),
        "seconds": round(time.monotonic() - start, 1),
        "losses": mean_losses(losses),
    }
    if on_gpu:
        figures["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    return figures


def run_steps(
    model: FluxTransformer2DModel,
    tiles: torch.Tensor,
    recipe: PhotoTeacherRecipe,
    codec: SpaceToDepthCodec,
    table: dict[str, torch.Tensor],
    generator: torch.Generator,
    half_precision: bool,
) -> tuple[FluxTransformer2DModel, list[float]]:
    """Run the steps of the recipe. The model, tiles and generator are on one device.

    Returns:
        The average of the weights, and the loss of each step.
    """
    device = generator.device
    crops, draws = LabelledCrops(tiles, recipe.crop, generator), Draws(generator)
    optimizer = FlowOptimizer(model, recipe.muon_lr, recipe.adamw_lr, recipe.ema, fused=device.type == "cuda")
    embeds, pooled = (side.to(device) for side in stack_prompts(table))
    losses: list[float] = []
    pending: list[torch.Tensor] = []
    start = time.monotonic()
    for step in range(recipe.steps):
        pixels, labels = crops.batch(recipe.batch)
        x0 = pack(codec.encode(pixels))
        t = draw_times(draws, recipe.batch)
        noise = draws.normal_like(x0)
        with torch.autocast(device.type, torch.bfloat16, enabled=half_precision):
            loss = flow_loss(model, x0, (embeds[labels], pooled[labels]), t, noise)
        loss.backward()
        optimizer.step(schedule(recipe, step))
        pending.append(loss.detach())
        if len(pending) == _LOG_EVERY or step + 1 == recipe.steps:
            losses += torch.stack(pending).tolist()  # reading a loss waits for the GPU
            recent, pending = np.mean(losses[-len(pending) :]), []
            if not math.isfinite(recent):
                raise ModelError(f"teacher: the loss is not finite by step {step + 1}; nothing is written")
            rate = (step + 1) / (time.monotonic() - start)
            log.info("teacher: step %d/%d loss %.4f, %.0f patches/s, %.0f min left", step + 1, recipe.steps, recent,
                     rate * recipe.batch, (recipe.steps - step - 1) / rate / 60)  # fmt: skip
    return optimizer.average, losses


def draw_times(draws: Draws, batch: int) -> torch.Tensor:
    """Draw times in [0, 1), (batch,): 70 % near the images, 3 % exactly 0, where the inversion starts, else uniform."""
    kind = draws.unit(batch)
    t = torch.where(kind < 0.7, torch.sigmoid(draws.normal(batch) * 1.2 - 1.4), draws.unit(batch))
    return torch.where(kind > 0.97, torch.zeros_like(t), t)


def schedule(recipe: PhotoTeacherRecipe, step: int) -> float:
    """Factor of the learning rates at a step, from 0."""
    return min(1.0, (step + 1) / recipe.warmup, (1 - step / recipe.steps) / (1 - recipe.decay_from))


def mean_losses(losses: list[float]) -> list[float]:
    """Mean loss of each whole hundred steps; of all steps, where they are fewer."""
    starts = range(0, max(len(losses) - 99, 1), 100)
    return [round(float(np.mean(losses[start : start + 100])), 5) for start in starts]
