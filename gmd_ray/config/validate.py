"""Holds the settings of a run against their rules: those of each field, and those between fields.

The functions with public names are the rules that an engine also checks, since it can be called with a Config that was
built in Python and that `validate` has not seen.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from gmd_ray.config.keys import PATHS, flatten
from gmd_ray.config.metric_names import MetricFacts, check_metric_names
from gmd_ray.config.sections.models import PoolConfig
from gmd_ray.config.sections.run import Config
from gmd_ray.config.sections.setting import Rule, rule_of, types_of
from gmd_ray.config.sections.teacher import TeacherConfig
from gmd_ray.errors import ConfigError, RefusedError, nearest


def validate(
    cfg: Config, *, check_paths: bool = True, known_metrics: Callable[[], Mapping[str, MetricFacts]] | None = None
) -> None:
    """Hold every setting against its rule, and all of them against the rules between settings.

    Args:
        check_paths: refuse local paths that do not exist, except below `out`, which the run itself fills.
        known_metrics: returns the metrics by name; without it their names are not checked.

    Raises:
        ConfigError: the first rule that is broken, in a line that names the setting.
        RefusedError: all paths that do not exist.
    """
    _check_fields(cfg, "")
    for name in ("student", "teacher", "scorer", "evaluation"):
        check_pool(f"{name}.pool", getattr(cfg, name).pool)
    check_tiles("student", cfg.student.tile, cfg.student.tile_overlap)
    check_tiles("teacher", cfg.teacher.tile, cfg.teacher.tile_overlap)
    _check_teacher(cfg.teacher)
    _check_training(cfg)
    check_controls(cfg, cfg.controls)
    check_validation(cfg)
    check_test_sets(cfg)
    _check_students(cfg)
    if known_metrics is not None:
        check_metric_names(cfg, known_metrics())
    if check_paths:
        _check_paths(cfg)


def check_pool(key: str, pool: PoolConfig) -> None:
    """Check the bounds of an actor pool.

    Raises:
        ConfigError: `min`, `initial` and `max` are not in order, or one of them or the batch size is below 1.
    """
    _check_fields(pool, f"{key}.")
    if pool.min > pool.max:
        raise ConfigError(f"{key}.min={pool.min}: more than {key}.max={pool.max}; raise {key}.max too")
    if pool.initial is not None and not pool.min <= pool.initial <= pool.max:
        raise ConfigError(f"{key}.initial={pool.initial}: must lie between {key}.min and {key}.max")


def check_tiles(section: str, tile: int, overlap: int | None) -> None:
    """Check the tiles of `student` or `teacher`.

    Raises:
        ConfigError: tiles that overlap by their whole side or more, or a negative number.
    """
    for name, value in (("tile", tile), ("tile_overlap", overlap or 0)):
        if value < 0:
            raise ConfigError(f"{section}.{name}={value}: must lie in [0, inf)")
    if tile and overlap is not None and overlap >= tile:
        raise ConfigError(f"{section}.tile_overlap={overlap}: must be less than {section}.tile={tile}")


def check_step_cache(teacher: TeacherConfig) -> None:
    """Check that a step cache has a teacher that can follow it.

    Raises:
        ConfigError: a threshold that is not positive, another teacher than FLUX, several GPUs a replica, offloading.
    """
    if teacher.step_cache is None:
        return
    shown = f"teacher.step_cache={teacher.step_cache:g}"
    if not teacher.step_cache > 0:
        raise ConfigError(f"{shown}: must lie in (0, inf); null switches it off")
    if teacher.method == "ddim" or ":" in teacher.method:
        raise ConfigError(f"{shown}: for FLUX only; with teacher.method={teacher.method} set it to null")
    if teacher.gpus_per_replica > 1:
        raise ConfigError(f"{shown}: only for a replica with one GPU; set it to null, or teacher.gpus_per_replica=1")
    if teacher.offload != "none":
        # Offloading copies each block in while the one before it runs, so all of them have to run, in their order.
        raise ConfigError(f"{shown}: cannot be combined with teacher.offload; set teacher.offload=none")


def check_controls(cfg: Config, names: Iterable[str]) -> None:
    """Check that fine-tunes have the images they need.

    Args:
        names: the fine-tunes; those that are no controls need nothing here.

    Raises:
        ConfigError: naming what to set.
    """
    if "supervised" in names and not cfg.training.supervised_hq:
        raise ConfigError("controls: supervised needs the target's ground truth; set training.supervised_hq")
    if "median" in names and not cfg.generation.keep_restored:
        raise ConfigError("controls: median filters the `restored` images; set generation.keep_restored=true")


def check_validation(cfg: Config) -> None:
    """Check that the validations of the fine-tune have images.

    Raises:
        ConfigError: naming what to set.
    """
    if cfg.training.validate_every and not cfg.evaluation.source_hq:
        raise ConfigError("training.validate_every: set evaluation.source_hq, the held-out source images")


def check_test_sets(cfg: Config) -> None:
    """Check that each test set has both of its sides.

    Raises:
        ConfigError: naming what to set.
    """
    e = cfg.evaluation
    if e.target_hq and not e.target_lq:
        raise ConfigError("evaluation.target_hq: set evaluation.target_lq too")
    if e.source_lq and not e.source_hq:
        raise ConfigError("evaluation.source_lq: set evaluation.source_hq too")
    if e.source_hq and not e.source_lq and not cfg.source.degradation:
        raise ConfigError("evaluation.source_hq: set evaluation.source_lq, or source.degradation to make it")


def is_published(path: str) -> bool:
    """Tell whether a path names a published data set, `SET/SPLIT/SIDE@ROOT`; ROOT may still be missing."""
    return re.match(r"[a-z0-9_]+/[a-z0-9_]+/[a-z0-9_]+@", path) is not None


def _check_fields(node: Any, head: str) -> None:
    """Hold the value of every field of a dataclass, and of those below it, against its rule."""
    schema: Any = type(node)
    types = types_of(schema)
    for item in dataclasses.fields(node):
        key, value = f"{head}{item.name}", getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            _check_fields(value, f"{key}.")
        elif value is not None or types[item.name] is Any:  # `Any` says nothing of None
            _check_field(key, value, rule_of(item))


def _check_field(key: str, value: Any, rule: Rule) -> None:
    """Hold one value against its rule; the rules of a list or tuple are about each of its items, `check` apart."""
    items = value if isinstance(value, list | tuple) else [value]
    shown = list(value) if isinstance(value, tuple) else value
    if rule.choices:
        for item in items:
            if item not in rule.choices and (rule.check is None or rule.check(item) is not None):
                raise ConfigError(f"{key}={item}: {nearest(str(item), rule.choices)}")
    elif rule.check is not None and (problem := rule.check(value)) is not None:
        raise ConfigError(f"{key}={shown}: {problem}")
    if rule.interval and not all(rule.inside(item) for item in items):
        each = "" if items is not value else "both " if len(items) == 2 else "each "
        raise ConfigError(f"{key}={shown}: {each}must lie in {rule.interval}")
    if rule.unique:
        for item in items:
            if items.count(item) > 1:
                raise ConfigError(f"{key}: {item!r} is named twice")
    for i, item in enumerate(items):
        if dataclasses.is_dataclass(item):
            _check_fields(item, f"{key}[{i}].")


def _check_teacher(teacher: TeacherConfig) -> None:
    if teacher.compile is True and teacher.offload != "none":
        raise ConfigError("teacher.compile=true: cannot be combined with teacher.offload; set teacher.offload=none")
    # Each rank of a replica has a GPU of its own, which the pool's actor reserves; or all of them share a CPU.
    ranks, gpus = teacher.gpus_per_replica, teacher.pool.num_gpus
    if ranks == 1 and gpus > 1:
        raise ConfigError(f"teacher.pool.num_gpus={gpus:g}: one rank uses one; set teacher.gpus_per_replica too")
    if ranks > 1 and gpus != ranks and not (gpus == 0 and teacher.device == "cpu"):
        raise ConfigError(
            f"teacher.gpus_per_replica={ranks}: every rank needs a GPU; set teacher.pool.num_gpus={ranks}, or "
            f"teacher.device=cpu"
        )
    for key, usual in (("offload", "none"), ("precision", "same")):
        if ranks > 1 and (value := getattr(teacher, key)) != usual:
            raise ConfigError(
                f"teacher.{key}={value}: only for a replica with one GPU; set teacher.{key}={usual}, or "
                "teacher.gpus_per_replica=1"
            )
    check_step_cache(teacher)
    if ranks > 1 and ":" in teacher.device:
        raise ConfigError(f"teacher.device={teacher.device}: {ranks} ranks cannot share one; use auto, cuda or cpu")


def _check_training(cfg: Config) -> None:
    """Rules between the settings of training, pretraining and the scorer's second opinion."""
    if cfg.scorer.fidelity == "none" and cfg.scorer.fidelity_bound is not None:
        raise ConfigError(
            f"scorer.fidelity_bound={cfg.scorer.fidelity_bound:g}: needs a metric; set scorer.fidelity to psnr, ssim, "
            "lpips or dists"
        )
    t, pretrain = cfg.training, cfg.pretrain
    if t.min_workers is not None and t.min_workers > t.num_workers:
        raise ConfigError(f"training.min_workers={t.min_workers}: more than training.num_workers={t.num_workers}")
    if t.mixing == "loss" and t.batch_size < 2:
        raise ConfigError(
            "training.mixing=loss: half of each batch is source, so training.batch_size must be 2 or more"
        )
    if t.schedule == "multistep" and not t.milestones:
        raise ConfigError("training.schedule=multistep: set training.milestones, the steps at which lr falls")
    if t.strategy == "fsdp" and (t.compile or t.channels_last):
        key = "compile" if t.compile else "channels_last"
        raise ConfigError(f"training.strategy=fsdp: set training.{key}=false")
    if t.perceptual and not t.perceptual_weights:
        raise ConfigError("training.perceptual: set training.perceptual_weights to a file of torchvision's vgg19")
    if t.export == "best" and not t.validate_every:
        raise ConfigError("training.export=best: needs validations to choose by; set training.validate_every too")
    if pretrain.reinitialise and pretrain.architecture:
        raise ConfigError(
            "pretrain.reinitialise: takes the architecture of student.path, and pretrain.architecture is set; drop one"
        )
    if pretrain.arguments and not pretrain.architecture:
        raise ConfigError("pretrain.arguments: are those of a class; set pretrain.architecture too")


def _check_students(cfg: Config) -> None:
    """Check the names of students in `evaluation.online` and `tracking.gates`."""
    students = ("baseline", "adapted", *cfg.controls)
    if not isinstance(cfg.evaluation.online, bool):
        for name in cfg.evaluation.online:
            if name not in students:
                raise ConfigError(f"evaluation.online: no student {name!r}; {nearest(name, students)}")
    references = ("baseline", "champion", "lq", *cfg.controls, *cfg.evaluation.methods)
    for i, gate in enumerate(cfg.tracking.gates):
        if gate.against not in references:
            raise ConfigError(f"tracking.gates[{i}].against={gate.against}: {nearest(gate.against, references)}")


def _check_paths(cfg: Config) -> None:
    values = dict(flatten(cfg))
    paths = {key: values[key] for key in PATHS}
    paths |= {f"evaluation.weights.{name}": path for name, path in cfg.evaluation.weights.items()}
    if not _may_be_hub_id(cfg.teacher.path):
        paths["teacher.path"] = cfg.teacher.path
    absent = []
    for key, path in paths.items():
        # Whoever lists a URL or a published set says what is missing there.
        elsewhere = not path or "://" in path or is_published(path)
        if not elsewhere and not Path(path).is_relative_to(cfg.out) and not Path(path).exists():
            absent.append(f"{key}={path}: no such file or folder")
    if absent:
        raise RefusedError(absent)


def _may_be_hub_id(path: str | None) -> bool:
    """Tell whether a path has the form `owner/model`; an absolute, dotted or deeper one is a folder."""
    return path is None or re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path) is not None
