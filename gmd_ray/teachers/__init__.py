"""Frozen generative models that pull restored images onto the natural-image manifold."""

from __future__ import annotations

from gmd_ray.config import TeacherConfig
from gmd_ray.teachers.directory import has_unet, model_directory
from gmd_ray.teachers.prompts import encode_prompts, find_prompts
from gmd_ray.teachers.protocol import Teacher

__all__ = ["Teacher", "encode_prompts", "find_prompts", "load_teacher"]


def load_teacher(cfg: TeacherConfig) -> Teacher:
    """The teacher that the settings name.

    Raises:
        ModelError: weights that cannot be loaded.
        ConfigError: settings that the model cannot meet.
    """
    teacher = _load(cfg)
    if cfg.color_fix == "none":
        return teacher
    from gmd_ray.teachers.color import ColorFixedTeacher

    return ColorFixedTeacher(teacher, cfg.color_fix)


def _load(cfg: TeacherConfig) -> Teacher:
    if ":" in cfg.method:
        from gmd_ray.teachers.plugin import load_plugin

        return load_plugin(cfg)
    if cfg.method == "sdedit":
        from gmd_ray.teachers.sdedit import SDEditTeacher

        return SDEditTeacher(cfg)
    if cfg.method == "kontext":
        from gmd_ray.teachers.kontext import KontextTeacher

        return KontextTeacher(cfg)
    if cfg.method == "ddim" or has_unet(model_directory(cfg.path)):
        from gmd_ray.teachers.ddim import DDIMTeacher

        return DDIMTeacher(cfg)
    from gmd_ray.teachers.flux import FluxTeacher

    return FluxTeacher(cfg)
