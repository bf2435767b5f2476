"""Inversion under the null prompt, then guided reconstruction with injected attention (paper, equations 2 to 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from gmd_ray.teachers.acceleration.graphs import ForwardGraphs
from gmd_ray.teachers.acceleration.recorded_form import RecordedForm, recorded_form
from gmd_ray.teachers.acceleration.step_cache import Finish, StepCache
from gmd_ray.teachers.flux.cache import Bank, Banks, BankStorage, tensors
from gmd_ray.teachers.flux.families.model import Constants, InjectingModel
from gmd_ray.teachers.flux.modulation import Conditioning, ModulationTables
from gmd_ray.teachers.flux.sampler import Slot, injected_slots, integrate, schedule
from gmd_ray.teachers.guidance import guide
from gmd_ray.teachers.text_encoders import Prompt as Prompt

KEPT_PROMPTS = 4
"""Most prompts whose constants are kept; a projection has one or two."""


@dataclass(frozen=True)
class ProjectionPlan:
    """All that one projection does, beside the image itself.

    The two guidance values are the distilled embedding's, None for models without one.
    """

    times: list[float]
    """Noisy to clean, as `sampler.time_grid` gives them."""
    inversion_prompt: Prompt
    prompt: Prompt
    inversion_guidance: float | None
    guidance: float | None
    true_cfg: float | None
    """Scale of classifier-free guidance against the inversion prompt; None evaluates the prompt alone."""
    blocks: Sequence[str]
    """Names of the blocks with injection."""
    inject_keys: bool
    """Inject keys and values; False injects the values alone."""
    inject_text: bool
    """Inject into text and image tokens; False injects into image tokens alone."""
    inject_steps: int
    """The first n intervals of the reconstruction are injected, each from the inversion's pass over it."""
    solver: str = "euler"
    """See `sampler.integrate`."""
    true_cfg_interval: tuple[float, float] = (0.0, 1.0)
    """Noise levels, both ends included, at which `true_cfg` acts; elsewhere the prompt runs alone."""
    nudge: float = 1.0
    """Factor on the latents before the inversion, divided out of the result. 1.15 is Stable-Flow's value.
    See docs/method.md, "Inversion and the null prompt"."""
    cache: str = "kv"
    """The form of the cache: kv, input or lockstep. All give equal results up to rounding.
    See docs/decisions.md, "Memory and cost"."""
    cache_location: str = "device"
    """The memory that holds the cache: device or host, with equal results."""
    cache_dtype: str = "same"
    """`same` as the model's, or `fp8`, which takes half the bytes and rounds."""
    resident: int = 2
    """Evaluations whose entries stay on the device while the others wait on the host."""

    repeated: bool = True
    """Forwards may be recorded: there is room, and no copies to the host run beside them."""

    def guided(self, t: float) -> bool:
        """True where the reconstruction evaluates both prompts at that noise level."""
        low, high = self.true_cfg_interval
        return self.true_cfg is not None and low <= t <= high

    def guided_velocity(self, t: float, run: Callable[[Prompt], torch.Tensor]) -> torch.Tensor:
        """The reconstruction's velocity at that noise level, with classifier-free guidance where the plan has it.

        Args:
            run: the model's velocity, (B, S, D) float32, under one prompt.
        """
        if self.true_cfg is None or not self.guided(t):
            return run(self.prompt)
        null = run(self.inversion_prompt)
        return guide(null, run(self.prompt), self.true_cfg)

    def injected_slots(self) -> list[Slot]:
        """The evaluations that use what the inversion left, in the order in which the reconstruction makes them."""
        return injected_slots(self.solver, len(self.times) - 1, self.inject_steps)

    def conditionings(self, *, inverse: bool = True) -> list[Conditioning]:
        """The conditioning of every forward pass of the reconstruction and, with `inverse`, of the inversion."""
        found = []
        if inverse:
            for _, t in schedule(self.times, self.solver, inverse=True):
                found.append(Conditioning(t, self.inversion_guidance, self.inversion_prompt))
        for _, t in schedule(self.times, self.solver):
            prompts = [self.inversion_prompt, self.prompt] if self.guided(t) else [self.prompt]
            found += [Conditioning(t, self.guidance, prompt) for prompt in prompts]
        return found


class InversionState(NamedTuple):
    """The inputs of one evaluation of the inversion, which the reconstruction repeats (`cache` lockstep)."""

    z: torch.Tensor
    """(B, S, D) float32."""
    t: float


Kept = Banks | dict[Slot, InversionState]
"""The cache between the two passes: banks of keys and values, or for `lockstep` the inversion's states."""


class FluxProjector:
    """Projects packed latents with a frozen model of any family."""

    def __init__(self, model: InjectingModel, modulation: ModulationTables | None = None) -> None:
        """
        Args:
            modulation: the tables that replace the model's modulation layers. Without them the model computes its
                modulation in each forward pass.
        """
        self.model, self.modulation = model, modulation
        self._dtype = model.dtype  # diffusers walks every module for it: 5 ms on FLUX.1-dev
        self.graphs: ForwardGraphs | None = None
        """Recordings of the forwards, where the host is not to issue each of them."""
        self.step_cache: StepCache | None = None
        """Skips blocks in forwards without banks, where not every evaluation is to be a full one."""
        self._kept_constants: dict[Prompt, tuple[torch.Tensor, Constants]] = {}
        self._storage = BankStorage()

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
        repeated: bool = False,
        finish: Finish | None = None,
    ) -> torch.Tensor:
        """The velocity that the model predicts.

        Args:
            z: (B, S, D) float32 packed latents.
            t: noise level in [0, 1].
            img_ids: (S, axes) RoPE positions, as the model's `image_ids` gives them.
            guidance: distilled guidance, None for models without it.
            kv_in, kv_out, kv_from, finish: see the model's `forward`.
            repeated: the same work may be recorded and repeated (`graphs`), if it skips nothing.

        Returns:
            (B, S, D) float32.
        """
        batch, dtype = z.shape[0], self._dtype
        constants = self._constants(prompt, img_ids)
        # Where keys and values of all tokens are replaced in all blocks, no image token sees the text. Leaving the text
        # out then changes nothing, but its positions stay, since the replaced keys include the text tokens'.
        if self._text_is_dead(kv_in, kv_from):
            constants = constants._replace(text=constants.text[:0])
        if self.modulation is not None:
            given = self.modulation.rows(Conditioning(t, guidance, prompt))
        else:
            given = self.model.conditioning(prompt, t, guidance, batch, dtype, z.device)
        if self.graphs is not None and repeated and finish is None:
            form, bank = recorded_form(tuple(given), kv_in, kv_out, kv_from)
            inputs = [z.to(dtype), *constants, *given.values()]
            return self.graphs(form, partial(self._recorded, form), inputs, tensors(bank), writes=form.writes)
        out = self.model(
            hidden_states=z.to(dtype),
            constants=constants,
            **self._conditioned(given),
            kv_in=kv_in,
            kv_out=kv_out,
            kv_from=kv_from,
            finish=finish,
            return_dict=False,
        )[0]
        return out.float()

    def finish(self, prompt: Prompt, *, full: bool = False) -> Finish | None:
        """The end of a forward under that prompt where a step cache is on; a full one skips nothing."""
        return None if self.step_cache is None else self.step_cache.finish(prompt, full=full)

    def _recorded(
        self, form: RecordedForm, inputs: Sequence[torch.Tensor], bank: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """The velocity of a forward all of whose inputs are tensors: latents, constants, conditioning, and a bank."""
        z, text, cos, sin, *given = inputs
        kv_in, kv_out = form.banks(bank)
        out = self.model(
            hidden_states=z,
            constants=Constants(text, cos, sin),
            **self._conditioned(dict(zip(form.conditioning, given, strict=True))),
            kv_in=kv_in,
            kv_out=kv_out,
            kv_from=form.kv_from,
            return_dict=False,
        )[0]
        return out.float()

    def _constants(self, prompt: Prompt, img_ids: torch.Tensor) -> Constants:
        """Embedded text and RoPE tables, made once for a prompt and the positions of a projection."""
        positions, constants = self._kept_constants.get(prompt, (None, None))
        if constants is None or positions is not img_ids:
            constants = self.model.constants(prompt.embeds.to(img_ids.device, self._dtype), img_ids)
            if len(self._kept_constants) >= KEPT_PROMPTS:
                self._kept_constants.clear()
            self._kept_constants[prompt] = (img_ids, constants)
        return constants

    def _conditioned(self, given: dict[str, torch.Tensor]) -> dict[str, Any]:
        """The model's arguments for modulation rows, or for what it makes its modulation from."""
        return given if self.modulation is None else {"modulation": given}

    def __call__(self, x0: torch.Tensor, img_ids: torch.Tensor, plan: ProjectionPlan) -> torch.Tensor:
        """Project clean packed latents, (B, S, D) float32 -> the same shape."""
        return self.reconstruct(*self.invert(x0, img_ids, plan), img_ids, plan)

    def invert(self, x0: torch.Tensor, img_ids: torch.Tensor, plan: ProjectionPlan) -> tuple[torch.Tensor, Kept]:
        """Integrate clean packed latents to noise under the inversion prompt.

        Returns:
            the noise end of the trajectory, (B, S, D) float32, and what each injected evaluation left.
        """
        states: dict[Slot, InversionState] = {}
        slots = plan.injected_slots()
        self.start_pass(plan)
        banks = self._banks(x0, plan, slots) if slots and plan.cache != "lockstep" else None

        def velocity(z: torch.Tensor, t: float, slot: Slot) -> torch.Tensor:
            bank = None
            if slot in slots:
                if banks is None:
                    # Lockstep keeps the latents alone: (B, S, D) instead of keys and values of every block.
                    states[slot] = InversionState(z, t)
                else:
                    bank = banks.open(slot)
            # With any form of the cache: lockstep must come to the numbers of the others.
            finish = self.finish(plan.inversion_prompt, full=slot in slots)
            return self._inverse_velocity(z, t, img_ids, plan, bank, finish)

        noise = integrate(x0 * plan.nudge, plan.times, velocity, plan.solver, inverse=True)
        return noise, states if banks is None else banks

    def reconstruct(self, noise: torch.Tensor, kept: Kept, img_ids: torch.Tensor, plan: ProjectionPlan) -> torch.Tensor:
        """Integrate noise back to clean packed latents, (B, S, D) float32; each kept entry is freed once used."""
        self.start_pass(plan, inverse=False)

        def velocity(z: torch.Tensor, t: float, slot: Slot) -> torch.Tensor:
            bank = kept.pop(slot, None)
            if isinstance(bank, InversionState):
                # Lockstep: repeat the inversion's evaluation now, for its keys and values alone.
                state, bank = bank, self._buffers(z, plan)
                self._inverse_velocity(state.z, state.t, img_ids, plan, bank)

            def run(prompt: Prompt) -> torch.Tensor:
                kv_from = 0 if plan.inject_text else prompt.embeds.shape[0]
                finish = self.finish(prompt, full=bank is not None)
                evaluate = partial(self.velocity, z, t, img_ids, repeated=plan.repeated)
                return evaluate(prompt, plan.guidance, kv_in=bank, kv_from=kv_from, finish=finish)

            return plan.guided_velocity(t, run)

        clean = integrate(noise, plan.times, velocity, plan.solver) / plan.nudge
        self.end_projection()
        return clean

    def start_pass(self, plan: ProjectionPlan, *, inverse: bool = True) -> None:
        """Make room, prepare the modulation of both passes or of the reconstruction alone, and clear the step cache."""
        if self.graphs is not None and not plan.repeated:
            self.graphs.make_room(None)  # the memory plan counts on it
        if self.modulation is not None:
            self.modulation.prepare(plan.conditionings(inverse=inverse))
        if self.step_cache is not None:
            self.step_cache.start_pass()

    def end_projection(self) -> None:
        """Let the step cache free what it holds."""
        if self.step_cache is not None:
            self.step_cache.end_projection()

    def _inverse_velocity(
        self,
        z: torch.Tensor,
        t: float,
        img_ids: torch.Tensor,
        plan: ProjectionPlan,
        bank: Bank | None,
        finish: Finish | None = None,
    ) -> torch.Tensor:
        """The inversion's velocity (B, S, D); its keys and values go to the bank, if there is one."""
        prompt = plan.inversion_prompt
        kv_from = 0 if plan.inject_text else prompt.embeds.shape[0]
        evaluate = partial(self.velocity, z, t, img_ids, repeated=plan.repeated)
        return evaluate(prompt, plan.inversion_guidance, kv_out=bank, kv_from=kv_from, finish=finish)

    def _text_is_dead(self, kv_in: Bank | None, kv_from: int) -> bool:
        """True if every block takes the keys and values of all tokens from the bank."""
        if not kv_in or kv_from or len(kv_in) < len(self.model.block_names()):
            return False
        return all(isinstance(entry, torch.Tensor) or entry[0] is not None for entry in kv_in.values())

    def _banks(self, z: torch.Tensor, plan: ProjectionPlan, slots: Sequence[Slot]) -> Banks:
        """Storage for the banks of these evaluations, as the plan's location and type have it."""
        empty = partial(self._buffers, z, plan)
        return self._storage.banks(empty, slots, z.device, plan.cache_location, plan.cache_dtype, plan.resident)

    def _buffers(self, z: torch.Tensor, plan: ProjectionPlan) -> Bank:
        """An uninitialised bank for latents of the shape of z: one entry for each block with injection."""
        text = plan.inversion_prompt.embeds.shape[0] if plan.inject_text else 0
        empty = self.model.empty_entry
        as_input = plan.cache == "input"
        return {name: empty(z, text, self._dtype, keys=plan.inject_keys, as_input=as_input) for name in plan.blocks}
