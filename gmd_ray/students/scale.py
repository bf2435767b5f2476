"""Finding the scale of a student as cheaply as its kind allows."""

from __future__ import annotations

from dataclasses import replace

from gmd_ray.config import StudentConfig
from gmd_ray.students.loading import load_student
from gmd_ray.weights import is_model_folder, node_copy


def student_scale(cfg: StudentConfig) -> int:
    """Return the output side divided by the input side of the student in the settings.

    A latent diffusion directory states it in its index. Any other student is loaded on the CPU, which takes two to
    three seconds with the imports, as only the loaded network knows its scale.

    Raises:
        ConfigError, ModelError: as in `load_student`.
    """
    if cfg.path is not None and cfg.factory is None and is_model_folder(cfg.path):
        from gmd_ray.students.latent.student import read_index

        return int(read_index(node_copy(cfg.path))["scale"])
    # Without tiles, as loading a tiled student measures the receptive radius of its network.
    return load_student(replace(cfg, device="cpu", tile=0, tile_overlap=None)).scale
