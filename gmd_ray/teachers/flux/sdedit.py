"""SDEdit on FLUX: noise to a level, then the guided reconstruction alone (teacher.md 6; Meng et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch

from gmd_ray.config import TeacherConfig
from gmd_ray.hashing import short_digest
from gmd_ray.images.padding import pad_to_multiple
from gmd_ray.teachers.flux.latents import image_ids, pack, unpack
from gmd_ray.teachers.flux.projection import ProjectionPlan
from gmd_ray.teachers.flux.teacher import FluxTeacher
from gmd_ray.teachers.noise import image_noise, tiled_with_noise


class SDEditTeacher(FluxTeacher):
    """A `FluxTeacher` whose start is z = (1 - t) x0 + t eps, t the grid's first time, eps drawn from the image's id.

    `teacher.strength` sets the level, before the schedule's shift, as in the inversion; `teacher.steps` forwards go
    from there. Nothing is inverted and nothing injected, whatever `teacher.injection` and `teacher.nudge` say.
    """

    method: ClassVar[str] = "sdedit"

    def __init__(self, cfg: TeacherConfig) -> None:
        """Load from `cfg.path`; raises as `FluxTeacher`."""
        injection = replace(cfg.injection, steps=0)
        # Its own name, however it was made: the memory plan goes by it.
        super().__init__(replace(cfg, method=self.method, injection=injection, nudge=1.0))
        self.fingerprint = short_digest(self.method, self.fingerprint)

    @torch.no_grad()
    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """float32 RGB in [0, 1], (B, 3, H, W), any H and W, -> the same shape.

        The noise is a function of id and size; it is drawn for the whole image, and tiles take their part of it.
        """
        assert len(ids) == restored.shape[0]
        height, width = restored.shape[-2:]
        images = self._filled_up(pad_to_multiple(restored.to(self.device, non_blocking=True), self.multiple))
        channels = self.model.config.in_channels // 4  # of the latents; a token packs 2 x 2 of them
        h, w = (side // self.codec.factor for side in images.shape[-2:])
        noise = torch.stack([image_noise(i, (channels, h, w)) for i in ids])
        noise = self._filled_up(noise.to(self.device, non_blocking=True))
        tile, overlap = self.cfg.tile, self.cfg.tile_overlap
        edited = tiled_with_noise(self._edit, images, noise, tile, overlap, self.multiple)
        return edited[: len(ids), :, :height, :width].cpu()

    def _edit(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        memory = self.memory(len(images), *images.shape[-2:])
        z = self.codec.encode(images * 2 - 1)
        h, w = z.shape[-2:]
        plan = self._plan(h * w // 4, memory)
        level = plan.times[0]
        tokens = self._reconstruct(pack((1 - level) * z + level * noise), pack(z), image_ids(h, w, z.device), plan)
        return ((self.codec.decode(unpack(tokens, h, w)) + 1) / 2).clamp(0, 1)

    def _reconstruct(
        self, noised: torch.Tensor, clean: torch.Tensor, img_ids: torch.Tensor, plan: ProjectionPlan
    ) -> torch.Tensor:
        """Packed latents at the first time of the plan to clean ones; `clean` are the input's own."""
        return self.projector.reconstruct(noised, {}, img_ids, plan)
