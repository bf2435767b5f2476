"""Training of the toy world's teacher, a tiny FLUX transformer conditioned on image quality, by flow matching.

Clean images have the prompt `hq`, generically degraded ones `lq`, and a fifth of both has the null prompt. Inversion
with the null prompt and reconstruction with `hq` then moves an image towards clean ones (`docs/decisions.md`, "Demo").
"""

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

from gmd_ray.demo.toy import world
from gmd_ray.images.degradation.degradations import sample_rng
from gmd_ray.teachers.flux.latents import SpaceToDepthCodec, image_ids, pack

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

log = logging.getLogger("gmd_ray")

PROMPTS = ("", "hq", "lq")
_TEXT_TOKENS, _TEXT_DIM = 4, 32
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


def build_transformer(recipe: TeacherRecipe) -> FluxTransformer2DModel:
    """Build a FluxTransformer2DModel whose modulations and output layer start at zero."""
    from diffusers import FluxTransformer2DModel

    third = recipe.head_dim // 8
    model = FluxTransformer2DModel(
        in_channels=48,
        num_layers=recipe.double_blocks,
        num_single_layers=recipe.single_blocks,
        attention_head_dim=recipe.head_dim,
        num_attention_heads=recipe.heads,
        joint_attention_dim=_TEXT_DIM,
        pooled_projection_dim=_TEXT_DIM,
        guidance_embeds=False,
        axes_dims_rope=(2 * third, 3 * third, 3 * third),
    )
    for name, parameter in model.named_parameters():
        if name.startswith("proj_out") or (".linear." in name and "norm" in name):
            torch.nn.init.zeros_(parameter)
    return model


def prompt_table(seed: int) -> dict[str, torch.Tensor]:
    """Draw fixed random embeddings of the prompts; those of the null prompt are zero.

    Returns:
        `<prompt>.prompt_embeds`, (4, 32), and `<prompt>.pooled`, (32,), for each prompt.
    """
    generator = torch.Generator().manual_seed(seed)
    table = {}
    for prompt in PROMPTS:
        scale = 1.0 if prompt else 0.0
        table[f"{prompt}.prompt_embeds"] = scale * torch.randn(_TEXT_TOKENS, _TEXT_DIM, generator=generator)
        table[f"{prompt}.pooled"] = scale * torch.randn(_TEXT_DIM, generator=generator)
    return table


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
    scaled = pool[:2000].astype(np.float32) / 127.5 - 1
    codec = SpaceToDepthCodec(2, round(float(scaled.mean()), 4), round(1 / float(scaled.std()), 4))
    table = prompt_table(recipe.seed + 1)
    model = build_transformer(recipe)
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
    average = copy.deepcopy(master).requires_grad_(False)
    named = dict(master.named_parameters())
    in_blocks = {n for n, p in named.items() if p.ndim == 2 and "transformer_blocks" in n and "norm" not in n}
    optimizers = [
        torch.optim.Muon([named[n] for n in named if n in in_blocks], lr=recipe.muon_lr, weight_decay=0.0,
                         adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([named[n] for n in named if n not in in_blocks], lr=recipe.adamw_lr, betas=(0.9, 0.99),
                          weight_decay=0.0),
    ]  # fmt: skip
    base = (recipe.muon_lr, recipe.adamw_lr)
    embeds = torch.stack([table[f"{p}.prompt_embeds"] for p in PROMPTS]).to(torch.bfloat16)
    pooled = torch.stack([table[f"{p}.pooled"] for p in PROMPTS]).to(torch.bfloat16)
    txt_ids = torch.zeros(_TEXT_TOKENS, 3)
    generator = torch.Generator().manual_seed(recipe.seed + 2 + leg)
    losses: list[float] = []
    seen = 0
    start = time.monotonic()
    for step in range(steps):
        done = step / schedule
        factor = min(1.0, (step + 1) / 100, (1 - done) / (1 - recipe.decay_from))
        for optimizer, rate in zip(optimizers, base, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        crop, batch = (recipe.crop, recipe.batch) if done < recipe.large_from else (world.SIZE, recipe.batch // 4)
        pixels, labels = sample_batch(pool, sample_rng(recipe.seed, "batch", leg, step), batch, crop)
        x0 = pack(codec.encode(pixels))
        t = torch.sigmoid(torch.randn(batch, generator=generator) - 0.7)
        t = torch.where(torch.rand(batch, generator=generator) < 0.8, t, torch.rand(batch, generator=generator))
        eps = torch.randn(x0.shape, generator=generator)
        z = (1 - t[:, None, None]) * x0 + t[:, None, None] * eps
        with sdpa_kernel(SDPBackend.MATH):  # the CPU flash kernel's backward took 43% of a step at 68 tokens
            v = model(
                hidden_states=z.to(torch.bfloat16),
                encoder_hidden_states=embeds[labels],
                pooled_projections=pooled[labels],
                timestep=t.to(torch.bfloat16),
                img_ids=image_ids(crop // 2, crop // 2),
                txt_ids=txt_ids,
            ).sample
        loss = (v.float() - (eps - x0)).pow(2).mean()
        loss.backward()
        for p, q in zip(master.parameters(), model.parameters(), strict=True):
            p.grad = None if q.grad is None else q.grad.float()
            q.grad = None
        torch.nn.utils.clip_grad_norm_(master.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        decay = min(recipe.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(master.parameters()), 1 - decay)
            torch._foreach_copy_(list(model.parameters()), list(master.parameters()))
        losses.append(loss.item())
        seen += batch
        if (step + 1) % 100 == 0:
            rate = (step + 1) / (time.monotonic() - start)
            log.info("teacher: leg %d step %d/%d loss %.4f, %.2f it/s, %.0f min left", leg, step + 1, steps,
                     np.mean(losses[-100:]), rate, (steps - step - 1) / rate / 60)  # fmt: skip
    return average, losses, seen


def write_teacher(
    dest: Path, model: FluxTransformer2DModel, codec: SpaceToDepthCodec, table: dict[str, torch.Tensor]
) -> None:
    """Write the diffusers layout: transformer/ (bf16), vae/, scheduler/, and prompt_embeddings.safetensors."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from safetensors.torch import save_file

    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(dest / "transformer")
    codec.save_pretrained(dest / "vae")
    FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False).save_pretrained(dest / "scheduler")
    save_file({k: v.contiguous() for k, v in table.items()}, dest / "prompt_embeddings.safetensors")
