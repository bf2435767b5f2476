"""FLUX.1 Kontext as a teacher: it follows an instruction and sees the restored image as context tokens.

See docs/method.md, "Diffusion teachers".
"""

from __future__ import annotations

from typing import ClassVar

import torch

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.teachers.directory import model_directory, read_json
from gmd_ray.teachers.flux.projection import ProjectionPlan
from gmd_ray.teachers.flux.sampler import Slot, integrate
from gmd_ray.teachers.flux.sdedit import SDEditTeacher
from gmd_ray.teachers.text_encoders import Prompt


class KontextTeacher(SDEditTeacher):
    """Generates an image from noise that depends on the image's id; every forward pass sees the restored image too.

    The sequence is [text, latents, context]. Context tokens have the positions of their pixels, with 1 instead of 0 as
    the first coordinate. The image keeps its own resolution; the schedule depends on the number of the latents' tokens
    alone. With `teacher.strength` below 1 the start is mixed with the image, as in SDEdit.
    """

    method: ClassVar[str] = "kontext"

    def __init__(self, cfg: TeacherConfig) -> None:
        """Load the model from `cfg.path`.

        Raises:
            ConfigError: there is no instruction, or as `FluxTeacher`.
            ModelError: the directory belongs to another pipeline, or as `FluxTeacher`.
        """
        if not cfg.prompt:
            raise ConfigError("teacher.prompt: Kontext follows an instruction; give one, or use teacher.preset=kontext")
        index = model_directory(cfg.path) / "model_index.json"
        pipeline = read_json(index).get("_class_name") if index.is_file() else None
        if pipeline not in (None, "FluxKontextPipeline"):
            raise ModelError(
                f"{index}: belongs to {pipeline}; teacher.method=kontext needs the weights of FLUX.1 Kontext"
            )
        super().__init__(cfg)

    def _reconstruct(
        self, noised: torch.Tensor, clean: torch.Tensor, img_ids: torch.Tensor, plan: ProjectionPlan
    ) -> torch.Tensor:
        # Latents and context have S tokens each: (B, S, D) + (B, S, D) -> (B, 2 S, D), at (2 S, 3) positions.
        tokens = noised.shape[1]
        context_ids = img_ids.clone()
        context_ids[:, 0] = 1
        ids = torch.cat([img_ids, context_ids])
        self.projector.start_pass(plan, inverse=False)

        def velocity(z: torch.Tensor, t: float, slot: Slot) -> torch.Tensor:
            def run(prompt: Prompt) -> torch.Tensor:
                both = torch.cat([z, clean], dim=1)
                # The context's velocity means nothing and is cut off.
                finish = self.projector.finish(prompt)
                out = self.projector.velocity(
                    both, t, ids, prompt, plan.guidance, repeated=plan.repeated, finish=finish
                )
                return out[:, :tokens]

            return plan.guided_velocity(t, run)

        clean = integrate(noised, plan.times, velocity, plan.solver)
        self.projector.end_projection()
        return clean
