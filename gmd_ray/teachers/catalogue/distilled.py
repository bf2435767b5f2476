"""Step-distilled models, which make an image in a few large steps and cannot be inverted.

Their velocity is trained for those steps and not for the path between them. Published inversions do not lead back to
the image: FireFlow's authors say so of FLUX.1-schnell (their issue 4), for RF-Solver and for injection of values too.
"""

from __future__ import annotations

from pathlib import Path

from gmd_ray.config import TeacherConfig
from gmd_ray.errors import ModelError
from gmd_ray.teachers.catalogue.known import FLUX1, known_teacher, layout, named_teacher
from gmd_ray.teachers.directory import cached_snapshot, local_directory, read_config

SCHEDULERS = ("LCMScheduler", "FlowMatchLCMScheduler", "TCDScheduler")
"""Schedulers that serve step-distilled models alone."""


def refuse_step_distilled(cfg: TeacherConfig, folder: Path) -> None:
    """Refuse to invert a step-distilled model, before its weights are loaded.

    Args:
        folder: the directory of `teacher.path`, or the downloaded snapshot of a hub id.

    Raises:
        ModelError: the model is step-distilled, as far as its name and config files tell.
    """
    if (line := step_distilled(cfg, folder)) is not None:
        raise ModelError(line)


def step_distilled(cfg: TeacherConfig, folder: Path | None = None) -> str | None:
    """The line that refuses the settings' teacher because it inverts a step-distilled model; None if nothing does.

    The model's name decides if it is a known one: FLUX.1-schnell and OpenFLUX.1, from which the distillation was
    trained out, have the same config files. `teacher.allow_distilled=true` overrides whatever the files say.

    Args:
        folder: the downloaded snapshot of a hub id; None looks into the hub's cache.
    """
    if cfg.allow_distilled or not cfg.path or cfg.method not in ("inversion", "ddim"):
        return None
    local = local_directory(cfg.path)
    known = known_teacher(cfg.path) if local is None else named_teacher(local)
    if known is not None:
        why = f"{known.name} is step-distilled" if known.step_distilled else None
    else:
        path = folder or local or (cached_snapshot(cfg.path) if cfg.path.count("/") == 1 else None)
        why = None if path is None else _sign(path)
    if why is None:
        return None
    return (
        f"teacher.path={cfg.path}: {why}, and its few large steps follow no path back to the photo, so it cannot be "
        "inverted; `gmd-ray ls teachers` names others. If it is not step-distilled, set teacher.allow_distilled=true"
    )


def _sign(path: Path) -> str | None:
    """The sign in the config files of a directory that its model is step-distilled; None if there is none."""
    if read_config(path / "model_index.json").get("is_distilled") is True:
        return "model_index.json says is_distilled: true"
    schedule = read_config(path / "scheduler" / "scheduler_config.json")
    if schedule.get("_class_name") in SCHEDULERS:
        return f"its scheduler is {schedule['_class_name']}, that of step-distilled models"
    network = read_config(path / "transformer" / "config.json")
    # FLUX.1-dev has a guidance embedding and a schedule that shifts with the size of the image.
    still = not schedule.get("use_dynamic_shifting") and schedule.get("shift", 1.0) == 1.0
    if schedule and still and layout(network) == layout({**FLUX1, "guidance_embeds": False}):
        return "it has the config files of FLUX.1-schnell (no guidance embedding, a schedule without shift)"
    return None
