"""Hold a merged Config against its limits, and each verb against what it needs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gmd_ray.config.judging import MetricFacts, check_judging, unmeasured_gate
from gmd_ray.config.limits import (
    BLOCKS,
    CHOICES,
    CONTROLS,
    DEVICES,
    NEEDED,
    PATHS,
    POOLS,
    RANGES,
    READS,
    SETS,
    TEMPLATES,
)
from gmd_ray.config.schema import Config
from gmd_ray.config.teacher import TeacherConfig
from gmd_ray.errors import ConfigError, RefusedError, nearest


def check(
    cfg: Config, *, check_paths: bool = True, known_metrics: Callable[[], Mapping[str, MetricFacts]] | None = None
) -> None:
    """Hold every value against its rule.

    Args:
        check_paths: refuse local paths that do not exist, except below `out`, which the run itself fills.
        known_metrics: gives the metrics by name; without it their names are not checked.

    Raises:
        ConfigError: for the first value that breaks one.
        RefusedError: for every path that does not exist.
    """
    values = dict(flatten(cfg))
    _check_values(values)
    _check_together(cfg, values)
    check_judging(cfg, None if known_metrics is None else known_metrics())
    if check_paths:
        weights = {f"evaluation.weights.{name}": path for name, path in cfg.evaluation.weights.items()}
        paths = {key: values[key] for key in PATHS} | weights
        if not _may_be_hub_id(cfg.teacher.path):
            paths["teacher.path"] = cfg.teacher.path
        absent = []
        for key, path in paths.items():
            elsewhere = not path or "://" in path or is_set(path)  # told by whoever lists it
            if not elsewhere and not Path(path).is_relative_to(cfg.out) and not Path(path).exists():
                absent.append(f"{key}={path}: no such file or folder")
        if absent:
            raise RefusedError(absent)


def require(cfg: Config, verb: str) -> None:
    """Refuse a run that lacks what its verb needs.

    Raises:
        ConfigError: listing every missing key; or a gate that can never hold.
    """
    values = dict(flatten(cfg))
    missing = [f"{key}=..." for key in NEEDED[verb] if not values[key]]
    if _is_import_path(cfg.teacher.method):  # a plugin knows what it needs
        missing = [key for key in missing if key != "teacher.path=..."]
    elif verb == "evaluate" and cfg.evaluation.online and not cfg.teacher.path:
        missing.append("teacher.path=... (or evaluation.online=false)")
    trains = verb in ("finetune", "adapt") and (cfg.training.source_ratio > 0 or "source_only" in cfg.controls)
    if trains or verb == "pretrain":
        if not cfg.source.hq:
            missing.append("source.hq=...")
        if not cfg.source.lq and not cfg.source.degradation:
            missing.append("source.lq=... (or source.degradation=... to make it)")
    if verb == "pretrain" and not cfg.student.path and not cfg.pretrain.architecture:
        missing.append("student.path=... (or pretrain.architecture=... to start anew)")
    if verb in ("evaluate", "adapt") and not cfg.evaluation.target_lq and not cfg.evaluation.source_hq:
        missing.append("evaluation.target_lq=... (or evaluation.source_hq=...)")
    read = [key for key in SETS if key.startswith(READS.get(verb, ("",)))]
    rootless = [key for key in read if (value := values[key]) and is_set(value) and value.endswith("@")]
    if rootless:
        missing.append(f"data.root=... (the folder of the data sets that {' and '.join(rootless)} name)")
    if missing:
        raise ConfigError(f"{verb} needs {', '.join(missing)}")
    if verb == "adapt" and (why := unmeasured_gate(cfg)) is not None:
        raise ConfigError(why)


def is_set(path: str) -> bool:
    """Whether a path names a published set, `SET/SPLIT/SIDE@ROOT`, complete or not."""
    return re.match(r"[a-z0-9_]+/[a-z0-9_]+/[a-z0-9_]+@", path) is not None


def flatten(node: Any, head: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a settings dataclass as (dotted key, value)."""
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{head}{item.name}.")
        else:
            yield f"{head}{item.name}", value


def _check_values(values: dict[str, Any]) -> None:
    """Rules of one key each."""
    for key, choices in CHOICES.items():
        if key == "teacher.method" and _is_import_path(values[key]):
            continue
        if values[key] is not None and values[key] not in choices:
            raise ConfigError(f"{key}={values[key]}: {nearest(values[key], choices)}")
    for key, interval in RANGES.items():
        if values[key] is not None and not _inside(values[key], interval):
            raise ConfigError(f"{key}={values[key]}: must lie in {interval}")
    for beta in values["training.betas"]:
        if not 0 <= beta < 1:
            raise ConfigError(f"training.betas={values['training.betas']}: both must lie in [0, 1)")
    low, high = values["teacher.true_cfg_interval"]
    if not 0 <= low <= high <= 1:
        raise ConfigError(f"teacher.true_cfg_interval=[{low}, {high}]: must be two noise levels in [0, 1], low to high")
    for key in DEVICES:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", values[key]):
            raise ConfigError(f"{key}={values[key]}: known: auto, cpu, cuda, cuda:N")
    factory = values["student.factory"]
    if factory is not None and not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", factory):
        raise ConfigError(f"student.factory={factory}: give package.module:function")
    for key in TEMPLATES:
        if values[key].count("{}") != 1:
            raise ConfigError(f"{key}={values[key]}: must hold {{}} once, for the stem of the HQ file")
    blocks = values["teacher.injection.blocks"]
    if isinstance(blocks, str) and blocks not in BLOCKS:
        raise ConfigError(f"teacher.injection.blocks={blocks}: {nearest(blocks, BLOCKS)}")
    if not isinstance(blocks, str) and not (isinstance(blocks, list) and all(isinstance(b, str) for b in blocks)):
        raise ConfigError(f"teacher.injection.blocks={blocks}: known: {', '.join(BLOCKS)}, or a list of module names")
    online = values["evaluation.online"]
    if not isinstance(online, bool) and not (isinstance(online, list) and all(isinstance(n, str) for n in online)):
        raise ConfigError(f"evaluation.online={online}: must be true, false, or a list of students' names")
    for key in ("controls", "evaluation.metrics"):
        for name in values[key]:
            if not isinstance(name, str):
                raise ConfigError(f"{key}: {name!r} is not a name")


def _check_together(cfg: Config, values: dict[str, Any]) -> None:
    """Rules between keys."""
    for pool in POOLS:
        if values[f"{pool}.min"] > values[f"{pool}.max"]:
            low, high = values[f"{pool}.min"], values[f"{pool}.max"]
            raise ConfigError(f"{pool}.min={low}: more than {pool}.max={high}; raise {pool}.max too")
        initial = values[f"{pool}.initial"]
        if initial is not None and not values[f"{pool}.min"] <= initial <= values[f"{pool}.max"]:
            raise ConfigError(f"{pool}.initial={initial}: must lie between {pool}.min and {pool}.max")
    for room in ("student", "teacher"):
        tile, overlap = values[f"{room}.tile"], values[f"{room}.tile_overlap"]
        if tile and overlap is not None and overlap >= tile:
            raise ConfigError(f"{room}.tile_overlap={overlap}: must be less than {room}.tile={tile}")
    if cfg.teacher.compile and cfg.teacher.offload != "none":
        raise ConfigError("teacher.compile: blocks that come and go cannot be compiled; set teacher.offload=none")
    _check_ranks(cfg.teacher)
    if cfg.scorer.fidelity == "none" and cfg.scorer.fidelity_bound is not None:
        raise ConfigError(
            f"scorer.fidelity_bound={cfg.scorer.fidelity_bound:g}: a bound on what? set scorer.fidelity too"
        )
    for control in cfg.controls:
        if control not in CONTROLS:
            raise ConfigError(f"controls: no control {control!r}; {nearest(control, CONTROLS)}")
    t = cfg.training
    if t.min_workers is not None and t.min_workers > t.num_workers:
        raise ConfigError(f"training.min_workers={t.min_workers}: more than training.num_workers={t.num_workers}")
    if t.mixing == "loss" and t.batch_size < 2:
        raise ConfigError(
            "training.mixing=loss: half of each batch is source, so training.batch_size must be 2 or more"
        )
    if any(not isinstance(m, int) or m < 1 for m in t.milestones) or sorted(t.milestones) != t.milestones:
        raise ConfigError(f"training.milestones={t.milestones}: must be steps from 1, in order")
    if t.schedule == "multistep" and not t.milestones:
        raise ConfigError("training.schedule=multistep: set training.milestones, the steps at which lr falls")
    if cfg.pretrain.reinitialise and cfg.pretrain.architecture:
        raise ConfigError("pretrain.reinitialise: means student.path, and pretrain.architecture is set; drop one")
    if t.strategy == "fsdp" and (t.compile or t.channels_last):
        key = "compile" if t.compile else "channels_last"
        raise ConfigError(f"training.strategy=fsdp: set training.{key}=false")
    if t.perceptual and not t.perceptual_weights:
        raise ConfigError("training.perceptual: set training.perceptual_weights to a file of torchvision's vgg19")
    if t.validate_every and not cfg.evaluation.source_hq:
        raise ConfigError("training.validate_every: set evaluation.source_hq, the held-out source images")
    if t.export == "best" and not t.validate_every:
        raise ConfigError("training.export=best: by what? set training.validate_every too")
    if cfg.pretrain.arguments and not cfg.pretrain.architecture:
        raise ConfigError("pretrain.arguments: of which class? set pretrain.architecture too")
    if "supervised" in cfg.controls and not t.supervised_hq:
        raise ConfigError("controls: supervised needs the target's ground truth; set training.supervised_hq")
    if "median" in cfg.controls and not cfg.generation.keep_restored:
        raise ConfigError("controls: median filters the `restored` images; set generation.keep_restored=true")
    for key, other in (("target_hq", "target_lq"), ("source_lq", "source_hq")):
        if getattr(cfg.evaluation, key) and not getattr(cfg.evaluation, other):
            raise ConfigError(f"evaluation.{key}: set evaluation.{other} too")
    if cfg.evaluation.source_hq and not cfg.evaluation.source_lq and not cfg.source.degradation:
        raise ConfigError("evaluation.source_hq: set evaluation.source_lq, or source.degradation to make it")


def _check_ranks(teacher: TeacherConfig) -> None:
    """Every rank of a replica has a GPU that the pool's actor reserves, or all share a CPU."""
    ranks, gpus = teacher.gpus_per_replica, teacher.pool.num_gpus
    if ranks == 1 and gpus > 1:
        raise ConfigError(f"teacher.pool.num_gpus={gpus:g}: one rank uses one; set teacher.gpus_per_replica too")
    if ranks > 1 and gpus != ranks and not (gpus == 0 and teacher.device == "cpu"):
        raise ConfigError(
            f"teacher.gpus_per_replica={ranks}: every rank needs a GPU; set teacher.pool.num_gpus={ranks}, or "
            f"teacher.device=cpu"
        )
    if ranks > 1 and (teacher.offload != "none" or teacher.quantization != "none"):
        key = "offload" if teacher.offload != "none" else "quantization"
        raise ConfigError(f"teacher.{key}: for a GPU by itself; set it to none, or teacher.gpus_per_replica=1")
    if ranks > 1 and ":" in teacher.device:
        raise ConfigError(f"teacher.device={teacher.device}: {ranks} ranks cannot share one; use auto, cuda or cpu")


def _may_be_hub_id(path: str | None) -> bool:
    """`owner/model` may; what is absolute, starts with a dot or is deeper can only be a folder."""
    return path is None or re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path) is not None


def _is_import_path(method: str) -> bool:
    """Whether `teacher.method` names a plugin, `package.module:factory`."""
    return re.fullmatch(r"\w+(\.\w+)*:\w+", method) is not None


def _inside(value: float, interval: str) -> bool:
    """Whether a value lies in an interval in the usual notation; NaN lies in none."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    return above and below
