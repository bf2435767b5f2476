"""Inversion under the null prompt, then guided reconstruction with injected attention (paper eq. 2 to 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from gmd_ray.teachers.attention import Entry, InjectingFlux
from gmd_ray.teachers.ode import Slot, integrate, paired_slots
from gmd_ray.teachers.text_encoders import Prompt as Prompt


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
    solver: str = "euler"
    """See `ode.integrate`."""
    true_cfg_interval: tuple[float, float] = (0.0, 1.0)
    """Noise levels, both ends in, where true CFG acts; elsewhere the prompt runs alone."""
    nudge: float = 1.0
    """Factor on the latents that are inverted, taken off the result again (teacher.md 8)."""
    cache: str = "kv"
    """What the inversion leaves for the reconstruction: kv, input or lockstep, equal in what comes out."""


class Visited(NamedTuple):
    """Where the inversion evaluated the velocity, for the reconstruction to do it again (`cache` lockstep)."""

    z: torch.Tensor
    """(B, S, D) float32."""
    t: float


Kept = dict[Slot, dict[str, Entry] | Visited]


class FluxProjector:
    """Projects packed latents with a frozen InjectingFlux."""

    def __init__(self, model: InjectingFlux) -> None:
        self.model = model
        self._dtype = model.dtype  # diffusers walks every module for it: 5 ms on FLUX.1-dev

    def velocity(
        self,
        z: torch.Tensor,
        t: float,
        img_ids: torch.Tensor,
        prompt: Prompt,
        guidance: float | None,
        *,
        kv_in: dict[str, Entry] | None = None,
        kv_out: dict[str, Entry] | None = None,
        kv_from: int = 0,
    ) -> torch.Tensor:
        """(B, S, D) float32 -> (B, S, D) float32."""
        batch, dtype = z.shape[0], self._dtype
        # Text that no image token sees is left out, but for its positions (teacher.md 4.3).
        text = prompt.embeds[:0] if self._text_is_dead(kv_in, kv_from) else prompt.embeds
        time = torch.full((batch,), t, dtype=dtype, device=z.device)
        scale = None if guidance is None else torch.full((batch,), guidance, dtype=dtype, device=z.device)
        out = self.model(
            hidden_states=z.to(dtype),
            encoder_hidden_states=text.to(z.device, dtype).expand(batch, -1, -1),
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

    def invert(self, x0: torch.Tensor, img_ids: torch.Tensor, plan: ProjectionPlan) -> tuple[torch.Tensor, Kept]:
        """The noise end of the trajectory, and what each injected evaluation left."""
        kept: Kept = {}
        paired = paired_slots(plan.solver, len(plan.times) - 1)

        def velocity(z: torch.Tensor, t: float, slot: Slot) -> torch.Tensor:
            bank = None
            if slot.interval < plan.inject_steps and slot in paired:
                if plan.cache == "lockstep":
                    kept[slot] = Visited(z, t)
                else:
                    bank = kept[slot] = self._buffers(z, plan)
            return self._inverse_velocity(z, t, img_ids, plan, bank)

        return integrate(x0 * plan.nudge, plan.times, velocity, plan.solver, inverse=True), kept

    def reconstruct(self, noise: torch.Tensor, kept: Kept, img_ids: torch.Tensor, plan: ProjectionPlan) -> torch.Tensor:
        """Back to clean latents; frees what each evaluation kept once used."""
        low, high = plan.true_cfg_interval

        def velocity(z: torch.Tensor, t: float, slot: Slot) -> torch.Tensor:
            bank = kept.pop(slot, None)
            if isinstance(bank, Visited):
                visited, bank = bank, self._buffers(z, plan)
                self._inverse_velocity(visited.z, visited.t, img_ids, plan, bank)

            def run(prompt: Prompt) -> torch.Tensor:
                kv_from = 0 if plan.inject_text else prompt.embeds.shape[0]
                return self.velocity(z, t, img_ids, prompt, plan.guidance, kv_in=bank, kv_from=kv_from)

            if plan.true_cfg is None or not low <= t <= high:
                return run(plan.prompt)
            null = run(plan.inversion_prompt)
            return null + plan.true_cfg * (run(plan.prompt) - null)

        return integrate(noise, plan.times, velocity, plan.solver) / plan.nudge

    def _inverse_velocity(
        self, z: torch.Tensor, t: float, img_ids: torch.Tensor, plan: ProjectionPlan, bank: dict[str, Entry] | None
    ) -> torch.Tensor:
        prompt = plan.inversion_prompt
        kv_from = 0 if plan.inject_text else prompt.embeds.shape[0]
        return self.velocity(z, t, img_ids, prompt, plan.inversion_guidance, kv_out=bank, kv_from=kv_from)

    def _text_is_dead(self, kv_in: dict[str, Entry] | None, kv_from: int) -> bool:
        """Whether every block takes the keys and values of all tokens from outside."""
        if not kv_in or kv_from or len(kv_in) < len(self.model.block_names()):
            return False
        return all(isinstance(entry, torch.Tensor) or entry[0] is not None for entry in kv_in.values())

    def _buffers(self, z: torch.Tensor, plan: ProjectionPlan) -> dict[str, Entry]:
        config = self.model.config
        text = plan.inversion_prompt.embeds.shape[0] if plan.inject_text else 0
        batch, tokens = z.shape[0], z.shape[1] + text
        heads = (config.num_attention_heads // self.model.ranks, config.attention_head_dim)

        def empty(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=self._dtype, device=z.device)

        def entry() -> Entry:
            # Values alone are as small as the input they come from, and need no projection.
            if plan.cache == "input" and plan.inject_keys:
                return empty(batch, *self.model.input_kept(text, z.shape[1]))
            value = empty(batch, tokens, *heads)
            return (empty(*value.shape) if plan.inject_keys else None, value)

        return {name: entry() for name in plan.blocks}
