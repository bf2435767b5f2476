"""The settings that each verb of the command line cannot do without."""

from __future__ import annotations

import os

from gmd_ray.config.keys import PUBLISHED, flatten
from gmd_ray.config.metric_names import unmeasured_promotion_gate
from gmd_ray.config.sections import checks
from gmd_ray.config.sections.run import Config
from gmd_ray.config.validate import is_published
from gmd_ray.errors import ConfigError

NEEDED: dict[str, tuple[str, ...]] = {
    "plan": ("target.path", "teacher.path"),
    "generate": ("target.path", "student.path", "teacher.path"),
    "finetune": ("student.path",),
    "pretrain": (),
    "evaluate": ("student.path",),
    "encode-prompts": ("teacher.path",),
    "adapt": ("target.path", "student.path", "teacher.path"),
    "ablate": ("target.path", "student.path", "teacher.path"),
}
"""Verb -> the settings that it needs in any case."""

_READS: dict[str, tuple[str, ...]] = {
    "generate": ("target.",),
    "finetune": ("source.", "training.", "evaluation.source_"),
    "pretrain": ("source.", "evaluation.source_"),
    "evaluate": ("evaluation.",),
    "encode-prompts": (),
}
"""Verb -> how the keys of the data sets begin that it reads; a verb that is not here reads all."""


LOCAL = ("ablate",)
"""Verbs that write to a local folder alone."""


def require(cfg: Config, verb: str) -> None:
    """Refuse a run that lacks what its verb needs.

    Raises:
        ConfigError: listing every missing key; or, for `adapt`, a promotion gate that can never hold.
    """
    values = dict(flatten(cfg))
    missing = [f"{key}=..." for key in NEEDED[verb] if not values[key]]
    if checks.teacher_plugin(cfg.teacher.method) is None:  # a plugin says itself what it needs
        missing = [key for key in missing if key != "teacher.path=..."]
    elif verb == "evaluate" and cfg.evaluation.online and not cfg.teacher.path:
        missing.append("teacher.path=... (or evaluation.online=false)")
    adapts = verb in ("finetune", "adapt", "ablate")
    trains = adapts and (cfg.training.source_ratio > 0 or "source_only" in cfg.controls)
    if trains or verb == "pretrain":
        if not cfg.source.hq:
            missing.append("source.hq=...")
        if not cfg.source.lq and not cfg.source.degradation:
            missing.append("source.lq=... (or source.degradation=... to make it)")
    if verb == "pretrain" and not cfg.student.path and not cfg.pretrain.architecture:
        missing.append("student.path=... (or pretrain.architecture=... to start anew)")
    if verb in ("evaluate", "adapt", "ablate") and not cfg.evaluation.target_lq and not cfg.evaluation.source_hq:
        missing.append("evaluation.target_lq=... (or evaluation.source_hq=...)")
    read = [key for key in PUBLISHED if key.startswith(_READS.get(verb, ("",)))]
    rootless = [key for key in read if (value := values[key]) and is_published(value) and value.endswith("@")]
    if rootless:
        missing.append(f"data.root=... (the folder of the data sets that {' and '.join(rootless)} name)")
    if missing:
        raise ConfigError(f"{verb} needs {', '.join(missing)}")
    if verb == "adapt" and (why := unmeasured_promotion_gate(cfg)) is not None:
        raise ConfigError(why)


def check_out(cfg: Config, verb: str) -> None:
    """Refuse a run directory that a verb cannot use.

    Raises:
        ConfigError: a URL for a verb that works in a local folder, for a demo that draws its images, or where MLflow
            would keep its database.
    """
    if "://" not in cfg.out:
        return
    if verb in LOCAL:
        raise ConfigError(f"out={cfg.out}: {verb} needs a local folder that every node sees, and no URL")
    if cfg.prepare is not None:
        raise ConfigError(
            f"out={cfg.out}: prepare={cfg.prepare} draws images into a local folder that every node sees; give such an "
            "out, or prepare=null with images of your own"
        )
    if cfg.tracking.enabled and not (cfg.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")):
        raise ConfigError(
            f"out={cfg.out}: MLflow cannot keep its database there; set tracking.uri (or "
            "MLFLOW_TRACKING_URI) to a server, or tracking.enabled=false"
        )
