"""A teacher of somebody else's: `teacher.method=package.module:factory`."""

from __future__ import annotations

from importlib import import_module

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError
from gmd_ray.teachers.protocol import Teacher


def load_plugin(cfg: TeacherConfig) -> Teacher:
    """What the factory makes of the settings; a class is a factory too. It must be importable on the workers.

    Raises:
        ConfigError: nothing of that name can be imported, or what it makes is not a Teacher.
        Errors of the factory pass.
    """
    where = f"teacher.method={cfg.method}"
    module, _, name = cfg.method.partition(":")
    try:
        factory = getattr(import_module(module), name)
    except ImportError as error:
        raise ConfigError(f"{where}: cannot import {module} ({_line(error)}); install it on every node") from error
    except AttributeError as error:
        raise ConfigError(f"{where}: {module} has no {name!r}") from error
    if not callable(factory):
        raise ConfigError(f"{where}: not callable; name a function or class that takes a TeacherConfig")
    teacher = factory(cfg)
    if not callable(getattr(teacher, "project", None)) or not isinstance(getattr(teacher, "fingerprint", None), str):
        raise ConfigError(
            f"{where}: made a {type(teacher).__name__}, which is no Teacher: it needs project(restored, ids) and a "
            "fingerprint, a string that tells its weights and settings apart"
        )
    return teacher


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
