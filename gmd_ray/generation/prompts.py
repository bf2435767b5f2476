"""The teacher's prompts, encoded once for a run, so that no replica of the teacher loads a text encoder."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

import torch

from gmd_ray.config import Config, TeacherConfig
from gmd_ray.config.places import below
from gmd_ray.ray_utils.remote_errors import answer_of, as_value
from gmd_ray.storage import absolute, absolute_if_exists
from gmd_ray.teachers import encode_prompts, find_prompts

log = logging.getLogger("gmd_ray.generation")


def prompts_folder(out: str) -> str:
    """Return the folder in which a run keeps its prompt embeddings. Options at the end of a URL stay at its end."""
    return below(absolute(out), "prompts")


def with_prompts(cfg: Config) -> Config:
    """Return the settings with `teacher.prompt_embeddings` set, if the teacher's directory does not hold its prompts.

    Prompts that are not in the run's folder either are encoded before any model is loaded: in a Ray task that takes a
    CPU and no GPU, or in this process with `ray.enabled=false`. A run that is resumed finds them.

    Raises:
        ModelError: prompts that cannot be encoded.
    """
    teacher = replace(cfg.teacher, path=absolute_if_exists(cfg.teacher.path))
    folder = prompts_folder(cfg.out)
    found = find_prompts(teacher, folder)
    if found is None:
        log.info("encoding the teacher's prompts, once")
        found = _encode_on_ray(cfg, teacher, folder) if cfg.ray.enabled else encode_prompts(teacher, folder)
    return replace(cfg, teacher=found)


def _encode_on_ray(cfg: Config, teacher: TeacherConfig, folder: str) -> TeacherConfig:
    import ray

    task = ray.remote(as_value).options(num_cpus=1).remote(_encode, teacher, folder)
    what = f"{cfg.teacher.path}: its prompts were not encoded"
    found: TeacherConfig = answer_of(task, what, cfg.generation.no_progress_timeout_s)
    return found


def _encode(cfg: TeacherConfig, folder: str) -> TeacherConfig:
    torch.set_num_threads(os.cpu_count() or 1)  # no model is at work yet
    return encode_prompts(cfg, folder)
