"""The projection as one would write it first: the stock FLUX, and a processor that keeps K/V by step and block.

What `tests.benchmarks.teacher` measures the project's code against, and an independent computation of the same numbers.
Euler, without true CFG (docs/method.md, "Solver" and "Injection").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch.nn import functional as F

from gmd_ray.teachers.flux.latents import image_ids, pack, unpack
from gmd_ray.teachers.flux.projection import Prompt
from gmd_ray.teachers.flux.sampler import time_grid
from gmd_ray.teachers.flux.teacher import FluxTeacher


@dataclass
class Store:
    """State that all processors share: whether to write or read, at which step, and everything written so far."""

    keys: bool
    """K and V, or V alone."""
    first: int
    """First token kept: 0, or the text length."""
    mode: str = "off"
    """off, write or read."""
    step: int = 0
    tensors: dict[tuple[int, str, str], torch.Tensor] = field(default_factory=dict)


class StoringProcessor(FluxAttnProcessor):
    """One for each injected block."""

    def __init__(self, name: str, store: Store) -> None:
        super().__init__()
        self.name, self.store = name, store

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        def split(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (attn.heads, -1))

        query, key = attn.norm_q(split(attn.to_q(hidden_states))), attn.norm_k(split(attn.to_k(hidden_states)))
        value = split(attn.to_v(hidden_states))
        if encoder_hidden_states is not None:
            query = torch.cat([attn.norm_added_q(split(attn.add_q_proj(encoder_hidden_states))), query], dim=1)
            key = torch.cat([attn.norm_added_k(split(attn.add_k_proj(encoder_hidden_states))), key], dim=1)
            value = torch.cat([split(attn.add_v_proj(encoder_hidden_states)), value], dim=1)
        query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
        key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        if self.store.keys:
            key = self._pass_through(key, "k")
        value = self._pass_through(value, "v")
        out = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        out = out.transpose(1, 2).flatten(2, 3)
        if encoder_hidden_states is None:
            return out
        length = encoder_hidden_states.shape[1]
        return attn.to_out[0](out[:, length:]), attn.to_add_out(out[:, :length])

    def _pass_through(self, x: torch.Tensor, kind: str) -> torch.Tensor:
        store, at = self.store, (self.store.step, self.name, kind)
        if store.mode == "write":
            store.tensors[at] = x[:, store.first :].clone()
        elif store.mode == "read":
            return torch.cat([x[:, : store.first], store.tensors[at]], dim=1)
        return x


def stock_model(teacher: FluxTeacher) -> FluxTransformer2DModel:
    """The stock model over the same weights, without a copy; the teacher goes on without its modulation layers."""
    tables = teacher.projector.modulation
    assert tables is not None
    tables.restore()
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(teacher.model.config)
    model.load_state_dict(teacher.model.state_dict(), assign=True)
    # RoPE has no weights, yet its module may keep tensors that were just made on the meta device.
    model.pos_embed = teacher.model.pos_embed
    tables.take_out()
    return model.requires_grad_(False).eval()


@torch.no_grad()
def project_eagerly(
    teacher: FluxTeacher, model: FluxTransformer2DModel, blocks: Sequence[str], steps: int, images: torch.Tensor
) -> torch.Tensor:
    """The result of `teacher.project` for Euler without true CFG, strength 1, no tiles.

    Args:
        model: as `stock_model` gives it.
        blocks: names of the injected blocks.
        steps: injected intervals.
        images: float32 RGB in [0, 1], (B, 3, H, W), H and W multiples of 16 pixels.
    """
    first = 0 if teacher.cfg.injection.tokens == "all" else teacher.inversion_prompt.embeds.shape[0]
    store = Store(keys=teacher.cfg.injection.tensors == "kv", first=first)
    for name in blocks:
        model.get_submodule(name).attn.set_processor(StoringProcessor(name, store))
    try:
        return _both_passes(teacher, model, store, steps, images)
    finally:
        model.set_attn_processor(FluxAttnProcessor())  # nothing stays, of the settings or of the memory


def _both_passes(
    teacher: FluxTeacher, model: FluxTransformer2DModel, store: Store, steps: int, images: torch.Tensor
) -> torch.Tensor:
    cfg = teacher.cfg
    z = teacher.codec.encode(images.to(teacher.device) * 2 - 1)
    h, w = z.shape[-2:]
    ids = image_ids(h, w, z.device)
    z = pack(z)
    times = time_grid(cfg.steps, z.shape[1], teacher.scheduler)

    def velocity(z: torch.Tensor, t: float, prompt: Prompt, guidance: float) -> torch.Tensor:
        def rows(x: torch.Tensor) -> torch.Tensor:
            return x.to(z.device, model.dtype).expand(len(z), *x.shape)

        return model(
            hidden_states=z.to(model.dtype),
            encoder_hidden_states=rows(prompt.embeds),
            pooled_projections=rows(prompt.pooled),
            timestep=rows(torch.tensor(t)),
            guidance=rows(torch.tensor(guidance)),
            img_ids=ids,
            txt_ids=torch.zeros(len(prompt.embeds), 3, device=z.device),
            return_dict=False,
        )[0].float()

    for store.step in reversed(range(cfg.steps)):
        store.mode = "write" if store.step < steps else "off"
        dt = times[store.step] - times[store.step + 1]
        z = z + dt * velocity(z, times[store.step + 1], teacher.inversion_prompt, cfg.inversion_guidance)
    for store.step in range(cfg.steps):
        store.mode = "read" if store.step < steps else "off"
        dt = times[store.step + 1] - times[store.step]
        z = z + dt * velocity(z, times[store.step], teacher.prompt, cfg.guidance)
    return ((teacher.codec.decode(unpack(z, h, w)) + 1) / 2).clamp(0, 1).cpu()
