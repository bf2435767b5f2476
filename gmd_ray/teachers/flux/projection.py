"""Inversion under the null prompt, then guided reconstruction with injected attention (paper eq. 2 to 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from gmd_ray.teachers.flux.attention import Entry, InjectingFlux
from gmd_ray.teachers.flux.cache import (
    Bank,
    Banks,
    Copies,
    CopiesAtOnce,
    CopiesOnStream,
    HostMemory,
    OnDevice,
    OnHost,
    Rounded,
    empty_packed,
)
from gmd_ray.teachers.flux.modulation import Conditioning, ModulationTables
from gmd_ray.teachers.flux.sampler import Slot, integrate, paired_slots
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
    cache_location: str = "device"
    """Where that waits: device or host, equal in what comes out."""
    cache_dtype: str = "same"
    """same as the model's, or float8: half the bytes, not equal."""
    resident: int = 2
    """Evaluations whose entries stay on the device, where the others wait on the host."""

    def guided(self, t: float) -> bool:
        """Whether the reconstruction evaluates both prompts at that noise level."""
        low, high = self.true_cfg_interval
        return self.true_cfg is not None and low <= t <= high


class Visited(NamedTuple):
    """Where the inversion evaluated the velocity, for the reconstruction to do it again (`cache` lockstep)."""

    z: torch.Tensor
    """(B, S, D) float32."""
    t: float


Kept = Banks | dict[Slot, Visited]


def injected_slots(plan: ProjectionPlan) -> list[Slot]:
    """The evaluations that take what the inversion left, in the order in which the reconstruction makes them."""
    paired = paired_slots(plan.solver, len(plan.times) - 1)
    return sorted(slot for slot in paired if slot.interval < plan.inject_steps)


def conditionings(plan: ProjectionPlan, *, inverse: bool = True) -> list[Conditioning]:
    """Of every forward pass of the reconstruction, and of the inversion too with `inverse`."""
    found: list[Conditioning] = []

    def invert(z: torch.Tensor, t: float, slot: Slot) -> torch.Tensor:
        found.append(Conditioning(t, plan.inversion_guidance, plan.inversion_prompt))
        return z

    def reconstruct(z: torch.Tensor, t: float, slot: Slot) -> torch.Tensor:
        prompts = [plan.inversion_prompt, plan.prompt] if plan.guided(t) else [plan.prompt]
        found.extend(Conditioning(t, plan.guidance, prompt) for prompt in prompts)
        return z

    # The solver itself says where it evaluates, to the last bit.
    nothing = torch.zeros(())
    if inverse:
        integrate(nothing, plan.times, invert, plan.solver, inverse=True)
    integrate(nothing, plan.times, reconstruct, plan.solver)
    return found


class FluxProjector:
    """Projects packed latents with a frozen InjectingFlux."""

    def __init__(self, model: InjectingFlux, modulation: ModulationTables | None = None) -> None:
        """
        Args:
            modulation: what was taken out of the model, if it was; without it the model computes it in each forward.
        """
        self.model, self.modulation = model, modulation
        self._dtype = model.dtype  # diffusers walks every module for it: 5 ms on FLUX.1-dev
        self._host: HostMemory | None = None
        self._copies: Copies | None = None

    def velocity(
        self,
        z: torch.Tensor,
        t: float,
        img_ids: torch.Tensor,
        prompt: Prompt,
        guidance: float | None,
        *,
        kv_in: Bank | None = None,
        kv_out: Bank | None = None,
        kv_from: int = 0,
    ) -> torch.Tensor:
        """(B, S, D) float32 -> (B, S, D) float32."""
        batch, dtype = z.shape[0], self._dtype
        # Text that no image token sees is left out, but for its positions (teacher.md 4.3).
        text = prompt.embeds[:0] if self._text_is_dead(kv_in, kv_from) else prompt.embeds
        rows = pooled = time = scale = None
        if self.modulation is not None:
            rows = self.modulation.rows(Conditioning(t, guidance, prompt))
        else:
            pooled = prompt.pooled.to(z.device, dtype).expand(batch, -1)
            time = torch.full((batch,), t, dtype=dtype, device=z.device)
            scale = None if guidance is None else torch.full((batch,), guidance, dtype=dtype, device=z.device)
        out = self.model(
            hidden_states=z.to(dtype),
            encoder_hidden_states=text.to(z.device, dtype).expand(batch, -1, -1),
            pooled_projections=pooled,
            timestep=time,
            img_ids=img_ids,
            txt_ids=torch.zeros(prompt.embeds.shape[0], 3, device=z.device),
            guidance=scale,
            modulation=rows,
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
        visited: dict[Slot, Visited] = {}
        slots = injected_slots(plan)
        banks = self._banks(x0, plan, slots) if slots and plan.cache != "lockstep" else None
        if self.modulation is not None:
            self.modulation.prepare(conditionings(plan))

        def velocity(z: torch.Tensor, t: float, slot: Slot) -> torch.Tensor:
            bank = None
            if slot in slots:
                if banks is None:
                    visited[slot] = Visited(z, t)
                else:
                    bank = banks.open(slot)
            return self._inverse_velocity(z, t, img_ids, plan, bank)

        noise = integrate(x0 * plan.nudge, plan.times, velocity, plan.solver, inverse=True)
        return noise, visited if banks is None else banks

    def reconstruct(self, noise: torch.Tensor, kept: Kept, img_ids: torch.Tensor, plan: ProjectionPlan) -> torch.Tensor:
        """Back to clean latents; frees what each evaluation kept once used."""
        if self.modulation is not None:
            self.modulation.prepare(conditionings(plan, inverse=False))

        def velocity(z: torch.Tensor, t: float, slot: Slot) -> torch.Tensor:
            bank = kept.pop(slot, None)
            if isinstance(bank, Visited):
                visited, bank = bank, self._buffers(z, plan)
                self._inverse_velocity(visited.z, visited.t, img_ids, plan, bank)

            def run(prompt: Prompt) -> torch.Tensor:
                kv_from = 0 if plan.inject_text else prompt.embeds.shape[0]
                return self.velocity(z, t, img_ids, prompt, plan.guidance, kv_in=bank, kv_from=kv_from)

            if not plan.guided(t):
                return run(plan.prompt)
            assert plan.true_cfg is not None
            null = run(plan.inversion_prompt)
            return null + plan.true_cfg * (run(plan.prompt) - null)

        return integrate(noise, plan.times, velocity, plan.solver) / plan.nudge

    def _inverse_velocity(
        self, z: torch.Tensor, t: float, img_ids: torch.Tensor, plan: ProjectionPlan, bank: Bank | None
    ) -> torch.Tensor:
        prompt = plan.inversion_prompt
        kv_from = 0 if plan.inject_text else prompt.embeds.shape[0]
        return self.velocity(z, t, img_ids, prompt, plan.inversion_guidance, kv_out=bank, kv_from=kv_from)

    def _text_is_dead(self, kv_in: Bank | None, kv_from: int) -> bool:
        """Whether every block takes the keys and values of all tokens from outside."""
        if not kv_in or kv_from or len(kv_in) < len(self.model.block_names()):
            return False
        return all(isinstance(entry, torch.Tensor) or entry[0] is not None for entry in kv_in.values())

    def _banks(self, z: torch.Tensor, plan: ProjectionPlan, slots: Sequence[Slot]) -> Banks:
        def empty() -> Bank:
            return self._buffers(z, plan)

        def kept_in(empty: Callable[[], Bank]) -> Banks:
            if plan.cache_location == "device":
                return OnDevice(empty)
            if self._host is None or self._copies is None:
                self._host = HostMemory(pinned=z.is_cuda)
                self._copies = CopiesOnStream(z.device) if z.is_cuda else CopiesAtOnce()
            return OnHost(empty, slots, plan.resident, self._host, self._copies)

        if plan.cache_dtype == "same":
            return kept_in(empty)
        like = empty()
        return Rounded(kept_in(lambda: empty_packed(like)), like)

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
