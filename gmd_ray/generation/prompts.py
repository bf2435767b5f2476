"""The teacher's prompts, encoded once for a run: no replica of the teacher ever loads a text encoder."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

import ray
import torch

from gmd_ray.config import Config, TeacherConfig
from gmd_ray.config.places import below
from gmd_ray.ray_utils.remote_errors import answer_of, as_value
from gmd_ray.storage import absolute, absolute_if_exists
from gmd_ray.teachers import encode_prompts, find_prompts

log = logging.getLogger("gmd_ray.generation")


def prompts_folder(out: str) -> str:
    """Where a run keeps its prompt embeddings; options at the end of a URL stay at its end."""
    return below(absolute(out), "prompts")


def with_prompts(cfg: Config) -> Config:
    """The settings with `teacher.prompt_embeddings`, where the teacher's directory has no table of its prompts.

    What is missing is encoded in a Ray task that takes a CPU and no GPU, before any pool starts; a run that is taken up
    again finds it there. Ray must be initialised.

    Raises:
        ModelError: prompts that cannot be encoded.
    """
    teacher = replace(cfg.teacher, path=absolute_if_exists(cfg.teacher.path))
    folder = prompts_folder(cfg.out)
    found = find_prompts(teacher, folder)
    if found is None:
        log.info("encoding the teacher's prompts, once")
        task = ray.remote(as_value).options(num_cpus=1).remote(_encode, teacher, folder)
        what = f"{cfg.teacher.path}: its prompts were not encoded"
        found = answer_of(task, what, cfg.generation.no_progress_timeout_s)
    return replace(cfg, teacher=found)


def _encode(cfg: TeacherConfig, folder: str) -> TeacherConfig:
    torch.set_num_threads(os.cpu_count() or 1)  # no model is at work yet
    return encode_prompts(cfg, folder)
