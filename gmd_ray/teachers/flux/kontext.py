"""FLUX.1 Kontext: an instruction, and the restored image as context tokens (teacher.md 6)."""

from __future__ import annotations

from typing import ClassVar

import torch

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.teachers.directory import model_directory, read_json
from gmd_ray.teachers.flux.projection import ProjectionPlan, conditionings
from gmd_ray.teachers.flux.sampler import Slot, integrate
from gmd_ray.teachers.flux.sdedit import SDEditTeacher
from gmd_ray.teachers.text_encoders import Prompt


class KontextTeacher(SDEditTeacher):
    """Generates from the noise of the image's id, while every forward sees the restored image beside the latents.

    The sequence is [text, latents, context], where context tokens have the positions of their pixels and a first
    coordinate of 1. The image keeps its own resolution; the schedule depends on the latents' tokens alone. With
    `teacher.strength` below 1 the start is mixed with the image, as in SDEdit.
    """

    method: ClassVar[str] = "kontext"

    def __init__(self, cfg: TeacherConfig) -> None:
        """Load from `cfg.path`.

        Raises:
            ConfigError: no instruction, or as `FluxTeacher`.
            ModelError: a directory of another pipeline, or as `FluxTeacher`.
        """
        if not cfg.prompt:
            raise ConfigError("teacher.prompt: Kontext follows an instruction; give one, or use teacher.preset=kontext")
        index = model_directory(cfg.path) / "model_index.json"
        pipeline = read_json(index).get("_class_name") if index.is_file() else None
        if pipeline not in (None, "FluxKontextPipeline"):
            raise ModelError(f"{index}: of a {pipeline}; teacher.method=kontext needs the weights of FLUX.1 Kontext")
        super().__init__(cfg)

    def _reconstruct(
        self, noised: torch.Tensor, clean: torch.Tensor, img_ids: torch.Tensor, plan: ProjectionPlan
    ) -> torch.Tensor:
        tokens = noised.shape[1]
        context_ids = img_ids.clone()
        context_ids[:, 0] = 1
        ids = torch.cat([img_ids, context_ids])
        if self.projector.modulation is not None:
            self.projector.modulation.prepare(conditionings(plan, inverse=False))

        def velocity(z: torch.Tensor, t: float, slot: Slot) -> torch.Tensor:
            def run(prompt: Prompt) -> torch.Tensor:
                both = torch.cat([z, clean], dim=1)
                return self.projector.velocity(both, t, ids, prompt, plan.guidance)[:, :tokens]

            if not plan.guided(t):
                return run(plan.prompt)
            assert plan.true_cfg is not None
            null = run(plan.inversion_prompt)
            return null + plan.true_cfg * (run(plan.prompt) - null)

        return integrate(noised, plan.times, velocity, plan.solver)
