"""Inversion under the null prompt, then guided reconstruction with injected attention (paper eq. 2 to 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gmd_ray.teachers.attention import KV, InjectingFlux
from gmd_ray.teachers.ode import invert, reconstruct


@dataclass(frozen=True)
class Prompt:
    """Text conditioning: `embeds` (T, D) and `pooled` (P,)."""

    embeds: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True)
class ProjectionPlan:
    """What one projection does. Guidance is the distilled embedding, None for models without one."""

    times: list[float]
    """Noisy to clean, as `ode.time_grid` gives them."""
    inversion_prompt: Prompt
    prompt: Prompt
    inversion_guidance: float | None
    guidance: float | None
    true_cfg: float | None
    """w of v_null + w (v_prompt - v_null), where null is the inversion prompt; None evaluates the prompt alone."""
    blocks: Sequence[str]
    inject_keys: bool
    inject_text: bool
    """Replace the text tokens' keys and values too."""
    inject_steps: int
    """The first n intervals of the reconstruction; interval i takes what the inversion left on interval i."""


class FluxProjector:
    """Projects packed latents with a frozen InjectingFlux."""

    def __init__(self, model: InjectingFlux) -> None:
        self.model = model

    def velocity(
        self,
        z: torch.Tensor,
        t: float,
        img_ids: torch.Tensor,
        prompt: Prompt,
        guidance: float | None,
        *,
        kv_in: dict[str, KV] | None = None,
        kv_out: dict[str, KV] | None = None,
        kv_from: int = 0,
    ) -> torch.Tensor:
        """(B, S, D) float32 -> (B, S, D) float32."""
        batch, dtype = z.shape[0], self.model.dtype
        time = torch.full((batch,), t, dtype=dtype, device=z.device)
        scale = None if guidance is None else torch.full((batch,), guidance, dtype=dtype, device=z.device)
        out = self.model(
            hidden_states=z.to(dtype),
            encoder_hidden_states=prompt.embeds.to(z.device, dtype).expand(batch, -1, -1),
            pooled_projections=prompt.pooled.to(z.device, dtype).expand(batch, -1),
            timestep=time,
            img_ids=img_ids,
            txt_ids=torch.zeros(prompt.embeds.shape[0], 3, device=z.device),
            guidance=scale,
            kv_in=kv_in,
            kv_out=kv_out,
            kv_from=kv_from,
            return_dict=False,
        )[0]
        return out.float()

    def __call__(self, x0: torch.Tensor, img_ids: torch.Tensor, plan: ProjectionPlan) -> torch.Tensor:
        """Project clean packed latents (B, S, D) float32; the same shape comes back."""
        return self.reconstruct(*self.invert(x0, img_ids, plan), img_ids, plan)

    def invert(
        self, x0: torch.Tensor, img_ids: torch.Tensor, plan: ProjectionPlan
    ) -> tuple[torch.Tensor, dict[int, dict[str, KV]]]:
        """The noise end of the trajectory, and the keys and values left on each injected interval."""
        kept: dict[int, dict[str, KV]] = {}
        kv_from = 0 if plan.inject_text else plan.inversion_prompt.embeds.shape[0]

        def velocity(z: torch.Tensor, t: float, interval: int) -> torch.Tensor:
            bank = None
            if interval < plan.inject_steps:
                bank = kept[interval] = self._buffers(z, plan)
            return self.velocity(
                z, t, img_ids, plan.inversion_prompt, plan.inversion_guidance, kv_out=bank, kv_from=kv_from
            )

        return invert(x0, plan.times, velocity), kept

    def reconstruct(
        self, noise: torch.Tensor, kept: dict[int, dict[str, KV]], img_ids: torch.Tensor, plan: ProjectionPlan
    ) -> torch.Tensor:
        """Back to clean latents; frees each interval's keys and values once used."""

        def velocity(z: torch.Tensor, t: float, interval: int) -> torch.Tensor:
            bank = kept.pop(interval, None)

            def run(prompt: Prompt) -> torch.Tensor:
                kv_from = 0 if plan.inject_text else prompt.embeds.shape[0]
                return self.velocity(z, t, img_ids, prompt, plan.guidance, kv_in=bank, kv_from=kv_from)

            if plan.true_cfg is None:
                return run(plan.prompt)
            null = run(plan.inversion_prompt)
            return null + plan.true_cfg * (run(plan.prompt) - null)

        return reconstruct(noise, plan.times, velocity)

    def _buffers(self, z: torch.Tensor, plan: ProjectionPlan) -> dict[str, KV]:
        config = self.model.config
        tokens = z.shape[1] + (plan.inversion_prompt.embeds.shape[0] if plan.inject_text else 0)
        shape = (z.shape[0], tokens, config.num_attention_heads, config.attention_head_dim)

        def empty() -> torch.Tensor:
            return torch.empty(shape, dtype=self.model.dtype, device=z.device)

        return {name: (empty() if plan.inject_keys else None, empty()) for name in plan.blocks}
