"""Settings that all teachers apply in the same way: device, dtype and tiles."""

from __future__ import annotations

import torch

from gmd_ray.config import TeacherConfig
from gmd_ray.config.validate import check_tiles
from gmd_ray.devices import choose_device
from gmd_ray.errors import ConfigError


def device_and_dtype(cfg: TeacherConfig) -> tuple[torch.device, torch.dtype]:
    """The device and the precision of the model; `teacher.dtype=auto` is bfloat16 on CUDA, float32 elsewhere.

    Raises:
        ConfigError: `teacher.device` is not on this machine.
    """
    device = choose_device(cfg.device, "teacher.device")
    if cfg.dtype == "auto":
        return device, torch.bfloat16 if device.type == "cuda" else torch.float32
    return device, {"float32": torch.float32, "bfloat16": torch.bfloat16}[cfg.dtype]


def check_teacher_tiles(cfg: TeacherConfig, multiple: int) -> None:
    """Refuse tiles that do not fall on the model's grid of tokens or latents.

    Args:
        multiple: side, in pixels, of the smallest square that the model can take.

    Raises:
        ConfigError: `teacher.tile` or `teacher.tile_overlap` is no multiple, or the overlap is not below the tile.
    """
    check_tiles("teacher", cfg.tile, cfg.tile_overlap)
    if cfg.tile and (cfg.tile % multiple or cfg.tile_overlap % multiple):
        raise ConfigError(
            f"teacher.tile={cfg.tile}, teacher.tile_overlap={cfg.tile_overlap}: both must be multiples of {multiple}"
        )
