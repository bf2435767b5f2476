"""Teachers: frozen generative models that pull restored images onto the manifold of natural images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmd_ray.config import Config, TeacherConfig
from gmd_ray.config.validate import check_step_cache
from gmd_ray.teachers.contents import missing_parts
from gmd_ray.teachers.directory import has_unet, model_directory
from gmd_ray.teachers.prompts import encode_prompts, find_prompts
from gmd_ray.teachers.protocol import Teacher

if TYPE_CHECKING:
    from gmd_ray.teachers.acceleration.choice import CompileChoice
    from gmd_ray.teachers.catalogue.licence import Licence
    from gmd_ray.teachers.cost.estimate import TeacherEstimate

__all__ = [
    "Teacher",
    "compilation_of_run",
    "encode_prompts",
    "estimate_teacher",
    "find_prompts",
    "load_teacher",
    "missing_parts",
    "teacher_licence",
]


def estimate_teacher(cfg: TeacherConfig) -> TeacherEstimate:
    """The cost model of the settings' teacher, from its config files; no weights are loaded.

    Raises:
        ModelError: the directory lacks config files, or belongs to another model.
        ConfigError: settings that the model cannot meet, or a method without a cost model (DDIM, a plugin).
    """
    from gmd_ray.teachers.cost.estimate import TeacherEstimate

    return TeacherEstimate(cfg)


def teacher_licence(cfg: TeacherConfig) -> Licence:
    """The licence class of the settings' teacher: `teacher.licence`, what is known of the model, or its files."""
    from gmd_ray.teachers.catalogue import licence

    return licence.teacher_licence(cfg)


def compilation_of_run(cfg: Config, images: int) -> CompileChoice:
    """The answer to `teacher.compile` for a run of `generate` that has to make that many images, and its reason."""
    from gmd_ray.teachers.acceleration import choice

    return choice.compilation_of_run(cfg, images)


def load_teacher(cfg: TeacherConfig) -> Teacher:
    """Load the settings' teacher, on one device or on `cfg.gpus_per_replica` ranks.

    Raises:
        ModelError: the weights cannot be loaded.
        ConfigError: settings that the model or this machine cannot meet.
        ReplicaLostError: a rank died while it loaded its share.
    """
    check_step_cache(cfg)
    if cfg.gpus_per_replica > 1:
        from gmd_ray.teachers.multi_gpu.teacher import ShardedTeacher

        return ShardedTeacher(cfg)
    return load_rank(cfg)


def load_rank(cfg: TeacherConfig) -> Teacher:
    """Load the teacher in this process: the whole of it, or as one rank of a process group its share.

    Raises:
        ModelError, ConfigError: as `load_teacher`.
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
        from gmd_ray.teachers.flux.sdedit import SDEditTeacher

        return SDEditTeacher(cfg)
    if cfg.method == "kontext":
        from gmd_ray.teachers.flux.kontext import KontextTeacher

        return KontextTeacher(cfg)
    if cfg.method == "ddim" or has_unet(model_directory(cfg.path)):
        from gmd_ray.teachers.ddim import DDIMTeacher

        return DDIMTeacher(cfg)
    from gmd_ray.teachers.flux.teacher import FluxTeacher

    return FluxTeacher(cfg)
