"""Third-party teachers: `teacher.method=package.module:factory`."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ConfigError
from gmd_ray.teachers.protocol import Teacher
from gmd_ray.text import one_line
from gmd_ray.weights import is_stored, node_copy


def load_plugin(cfg: TeacherConfig) -> Teacher:
    """Call the factory, a function or a class, with the settings. Its module must be importable on every node.

    Where `path` is a URL, the factory gets the path of this node's copy.

    Raises:
        ConfigError: the factory cannot be imported, or does not return a Teacher.
        Exception: any error of the factory itself.
    """
    where = f"teacher.method={cfg.method}"
    module, _, name = cfg.method.partition(":")
    try:
        factory = getattr(import_module(module), name)
    except ImportError as error:
        raise ConfigError(f"{where}: cannot import {module} ({one_line(error)}); install it on every node") from error
    except AttributeError as error:
        raise ConfigError(f"{where}: {module} has no {name!r}") from error
    if not callable(factory):
        raise ConfigError(f"{where}: not callable; name a function or class that takes a TeacherConfig")
    if cfg.path and is_stored(cfg.path):
        cfg = replace(cfg, path=str(node_copy(cfg.path)))
    teacher = factory(cfg)
    if not callable(getattr(teacher, "project", None)) or not isinstance(getattr(teacher, "fingerprint", None), str):
        raise ConfigError(
            f"{where}: returned a {type(teacher).__name__}, which is no Teacher: it needs project(restored, ids) and a "
            "string fingerprint that identifies its weights and settings"
        )
    return teacher
