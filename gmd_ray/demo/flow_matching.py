"""Flow matching of a small FLUX transformer that is conditioned on image quality; the worlds bring their own images.

Clean images have the prompt `hq`, degraded ones `lq`, and a fifth of both has the null prompt. Inversion with the null
prompt and reconstruction with `hq` then moves an image towards clean ones (`docs/decisions.md`, "Demo").
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from gmd_ray.demo.networks import TEXT_DIM, TEXT_TOKENS, update_average
from gmd_ray.teachers.flux.latents import SpaceToDepthCodec, image_ids

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

PROMPTS = ("", "hq", "lq")
SHARD_BYTES = 12 * 2**20
"""Largest file of a teacher's weights, since code hosts warn of larger ones."""


def prompt_table(seed: int) -> dict[str, torch.Tensor]:
    """Draw fixed random embeddings of the prompts; those of the null prompt are zero.

    Returns:
        `<prompt>.prompt_embeds`, (4, 32), and `<prompt>.pooled`, (32,), for each prompt.
    """
    generator = torch.Generator().manual_seed(seed)
    table = {}
    for prompt in PROMPTS:
        scale = 1.0 if prompt else 0.0
        table[f"{prompt}.prompt_embeds"] = scale * torch.randn(TEXT_TOKENS, TEXT_DIM, generator=generator)
        table[f"{prompt}.pooled"] = scale * torch.randn(TEXT_DIM, generator=generator)
    return table


def stack_prompts(table: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack a table in the order of PROMPTS: prompt embeddings (3, 4, 32) and pooled ones (3, 32)."""
    embeds = torch.stack([table[f"{prompt}.prompt_embeds"] for prompt in PROMPTS])
    return embeds, torch.stack([table[f"{prompt}.pooled"] for prompt in PROMPTS])


def fit_codec(images: np.ndarray) -> SpaceToDepthCodec:
    """Make a codec whose latents have mean 0 and standard deviation 1 over the first 2,000 images, uint8."""
    scaled = images[:2000].astype(np.float32) / 127.5 - 1
    return SpaceToDepthCodec(2, round(float(scaled.mean()), 4), round(1 / float(scaled.std()), 4))


def flow_loss(
    model: FluxTransformer2DModel,
    x0: torch.Tensor,
    prompts: tuple[torch.Tensor, torch.Tensor],
    t: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """Mean squared error of the predicted velocity on the straight path from `x0` at time 0 to `noise` at time 1.

    Args:
        model: the network, of the type of the embeddings.
        x0: tokens of square images, float32 (B, N, 48).
        prompts: prompt embeddings (B, 4, 32) and pooled ones (B, 32) of each image.
        t: times in [0, 1], (B,).
        noise: standard normal, of the shape of `x0`.
    """
    embeds, pooled = prompts
    side = 2 * math.isqrt(x0.shape[1])
    z = (1 - t[:, None, None]) * x0 + t[:, None, None] * noise
    v = model(
        hidden_states=z.to(embeds.dtype),
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        timestep=t.to(embeds.dtype),
        img_ids=image_ids(side, side, x0.device),
        txt_ids=torch.zeros(TEXT_TOKENS, 3, device=x0.device),
    ).sample
    return (v.float() - (noise - x0)).pow(2).mean()


class FlowOptimizer:
    """Muon for the matrices of a transformer's blocks, AdamW for all else, and the average of the weights."""

    def __init__(
        self, model: FluxTransformer2DModel, muon_lr: float, adamw_lr: float, ema: float, fused: bool = False
    ) -> None:
        """
        Args:
            model: the network, in float32.
            muon_lr, adamw_lr: learning rates of the two, before the schedule.
            ema: largest decay of the average.
            fused: run AdamW as one kernel; for GPUs.
        """
        named = dict(model.named_parameters())
        in_blocks = {n for n, p in named.items() if p.ndim == 2 and "transformer_blocks" in n and "norm" not in n}
        self._optimizers = [
            torch.optim.Muon([named[n] for n in named if n in in_blocks], lr=muon_lr, weight_decay=0.0,
                             adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([named[n] for n in named if n not in in_blocks], lr=adamw_lr, betas=(0.9, 0.99),
                              weight_decay=0.0, fused=fused),
        ]  # fmt: skip
        self._rates = (muon_lr, adamw_lr)
        self._parameters = list(named.values())
        self._ema = ema
        self._steps = 0
        self.average = copy.deepcopy(model).requires_grad_(False)

    def step(self, factor: float) -> None:
        """Clip the gradients to norm 1, take one step at `factor` of the learning rates, and clear the gradients."""
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer, rate in zip(self._optimizers, self._rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        update_average(self.average.parameters(), self._parameters, self._steps, self._ema)
        self._steps += 1


def write_teacher(
    dest: Path, model: FluxTransformer2DModel, codec: SpaceToDepthCodec, table: dict[str, torch.Tensor]
) -> None:
    """Write the diffusers layout: transformer/ (bf16), vae/, scheduler/, and prompt_embeddings.safetensors."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from safetensors.torch import save_file

    weights = copy.deepcopy(model).to("cpu", torch.bfloat16)
    weights.save_pretrained(dest / "transformer", max_shard_size=SHARD_BYTES)
    codec.save_pretrained(dest / "vae")
    FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False).save_pretrained(dest / "scheduler")
    save_file({k: v.contiguous() for k, v in table.items()}, dest / "prompt_embeddings.safetensors")
