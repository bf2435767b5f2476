"""Frozen generative models that pull restored images onto the natural-image manifold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmd_ray.config import TeacherConfig
from gmd_ray.teachers.protocol import Teacher

if TYPE_CHECKING:
    from gmd_ray.teachers.estimate import TeacherEstimate

__all__ = ["Teacher", "estimate_teacher", "load_teacher"]


def estimate_teacher(cfg: TeacherConfig) -> TeacherEstimate:
    """The cost model of the teacher that the settings name, from its config files; no weights are loaded.

    Raises:
        ModelError: a directory without config files, or of a model that there is no cost model for.
        ConfigError: settings that the model cannot meet.
    """
    from gmd_ray.teachers.estimate import TeacherEstimate

    return TeacherEstimate(cfg)


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
