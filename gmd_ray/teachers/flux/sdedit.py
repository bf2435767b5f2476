"""SDEdit on FLUX (Meng et al., 2022): add noise up to some level, then run the guided reconstruction alone.

See docs/method.md, "Strength and SDEdit".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch

from gmd_ray.config import TeacherConfig
from gmd_ray.hashing import short_digest
from gmd_ray.images.noise import image_noise, tiled_with_noise
from gmd_ray.images.padding import pad_to_multiple
from gmd_ray.teachers.flux.latents import pack, unpack
from gmd_ray.teachers.flux.projection import ProjectionPlan
from gmd_ray.teachers.flux.teacher import FluxTeacher


class SDEditTeacher(FluxTeacher):
    """A `FluxTeacher` that starts from z = (1 - t) x0 + t eps, where t is the first time of the grid.

    The noise eps depends on the image's id. `teacher.strength` sets the level before the schedule's shift, as in the
    inversion, and `teacher.steps` evaluations lead from there to the clean image. Nothing is inverted or injected:
    `teacher.injection` and `teacher.nudge` have no effect.
    """

    method: ClassVar[str] = "sdedit"

    def __init__(self, cfg: TeacherConfig) -> None:
        """Load the model from `cfg.path`; raises as `FluxTeacher`."""
        injection = replace(cfg.injection, steps=0)
        # The memory plan reads the method, so it has to be this class's also where the class was made directly.
        super().__init__(replace(cfg, method=self.method, injection=injection, nudge=1.0))
        self.fingerprint = short_digest(self.method, self.fingerprint)

    @torch.no_grad()
    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """Project images: float32 RGB in [0, 1], (B, 3, H, W), any H and W -> the same shape, on the CPU.

        The noise depends on id and size. It is drawn for the whole image, and each tile takes its part.
        """
        assert len(ids) == restored.shape[0]
        height, width = restored.shape[-2:]
        images = pad_to_multiple(restored.to(self.device, non_blocking=True), self.multiple)
        channels = self.model.config.in_channels // 4  # channels of the latents: a token packs 2 x 2 of them
        h, w = (side // self.codec.factor for side in images.shape[-2:])
        noise = torch.stack([image_noise(i, (channels, h, w)) for i in ids])
        noise = noise.to(self.device, non_blocking=True)
        tile, overlap, batch = self.cfg.tile, self.cfg.tile_overlap, self._tiles_at_once(images)
        edited = tiled_with_noise(self._edit, images, noise, tile, overlap, self.multiple, batch)
        return edited[..., :height, :width].cpu()

    def _edit(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        memory = self.memory(len(images), *images.shape[-2:])
        z = self.codec.encode(images * 2 - 1)  # (B, C, h, w)
        h, w = z.shape[-2:]
        plan = self._plan(h * w // 4, memory)
        level = plan.times[0]
        tokens = self._reconstruct(
            pack((1 - level) * z + level * noise), pack(z), self.model.image_ids(h, w, z.device), plan
        )
        return ((self.codec.decode(unpack(tokens, h, w)) + 1) / 2).clamp(0, 1)

    def _reconstruct(
        self, noised: torch.Tensor, clean: torch.Tensor, img_ids: torch.Tensor, plan: ProjectionPlan
    ) -> torch.Tensor:
        """Packed latents (B, S, D) at the plan's first time -> clean ones; `clean` are those of the input image."""
        return self.projector.reconstruct(noised, {}, img_ids, plan)
