"""How much a student enlarges, found out for as little as its kind allows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gmd_ray.config import StudentConfig
from gmd_ray.students.loading import load_student


def student_scale(cfg: StudentConfig) -> int:
    """Output side over input side of the student that the settings name.

    A latent diffusion directory says it in its index. Any other student is loaded on the CPU, which takes two to three
    seconds with the imports: a checkpoint says by its shapes alone what it enlarges by, and a factory not even so.

    Raises:
        ConfigError, ModelError: as `load_student`.
    """
    if cfg.path is not None and cfg.factory is None and Path(cfg.path).is_dir():
        from gmd_ray.students.latent.student import read_index

        return int(read_index(Path(cfg.path))["scale"])
    # Untiled: how far the network looks is measured where there are tiles.
    return load_student(replace(cfg, device="cpu", tile=0, tile_overlap=None)).scale
