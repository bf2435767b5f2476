"""Frozen generative models that pull restored images onto the natural-image manifold."""

from __future__ import annotations

from gmd_ray.config import TeacherConfig
from gmd_ray.teachers.protocol import Teacher

__all__ = ["Teacher", "load_teacher"]


def load_teacher(cfg: TeacherConfig) -> Teacher:
    """The teacher that the settings name.

    Raises:
        ModelError: weights that cannot be loaded.
        ConfigError: settings that the model cannot meet.
    """
    if cfg.method == "sdedit":
        from gmd_ray.teachers.sdedit import SDEditTeacher

        return SDEditTeacher(cfg)
    from gmd_ray.teachers.flux import FluxTeacher

    return FluxTeacher(cfg)
