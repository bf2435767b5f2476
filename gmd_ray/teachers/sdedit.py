"""SDEdit on FLUX: noise to a level, then the guided reconstruction alone (teacher.md 6; Meng et al., 2022)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch

from gmd_ray.config import TeacherConfig
from gmd_ray.images.tiling import tiled
from gmd_ray.teachers.fingerprint import digest
from gmd_ray.teachers.flux import FluxTeacher, pad_to_multiple
from gmd_ray.teachers.latents import image_ids, pack, unpack


class SDEditTeacher(FluxTeacher):
    """A `FluxTeacher` whose start is z = (1 - t) x0 + t eps, t the grid's first time, eps drawn from the image's id.

    `teacher.strength` sets the level, before the schedule's shift, as in the inversion; `teacher.steps` forwards go
    from there. Nothing is inverted and nothing injected, whatever `teacher.injection` and `teacher.nudge` say.
    """

    def __init__(self, cfg: TeacherConfig) -> None:
        """Load from `cfg.path`; raises as `FluxTeacher`."""
        super().__init__(replace(cfg, injection=replace(cfg.injection, steps=0), nudge=1.0))
        self.fingerprint = digest("sdedit", self.fingerprint)

    def project(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        """float32 RGB in [0, 1], (B, 3, H, W), any H and W, -> the same shape; tiles of an image share its noise."""
        assert len(ids) == restored.shape[0]
        images = self._filled_up(restored.to(self.device))
        every = [*ids, *[ids[-1]] * (len(images) - len(ids))]
        return tiled(lambda x: self._edit(x, every), images, self.cfg.tile, self.cfg.tile_overlap)[: len(ids)].cpu()

    @torch.no_grad()
    def _edit(self, restored: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        height, width = restored.shape[-2:]
        z = self.codec.encode(pad_to_multiple(restored, self.multiple) * 2 - 1)
        h, w = z.shape[-2:]
        plan = self._plan(h * w // 4)
        level = plan.times[0]
        noised = (1 - level) * z + level * torch.stack([_noise(i, z.shape[1:]) for i in ids]).to(z.device)
        tokens = self.projector.reconstruct(pack(noised), {}, image_ids(h, w, z.device), plan)
        pixels = self.codec.decode(unpack(tokens, h, w))
        return ((pixels + 1) / 2).clamp(0, 1)[..., :height, :width]


def _noise(image_id: str, shape: torch.Size) -> torch.Tensor:
    """Standard normal, a function of id and shape; drawn on the CPU, so that it is the same on any device."""
    seed = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "little", signed=True)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
