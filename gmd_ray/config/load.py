"""From the command line to a checked Config: preset, file, dotlist overrides, then every value held against its rule.

Nothing heavy is imported here, so that a mistake is told within a second.
"""

from __future__ import annotations

import dataclasses
import math
import os
import typing
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gmd_ray.config.schema import Config, PoolConfig
from gmd_ray.errors import ConfigError, nearest

_PACKAGE = resources.files("gmd_ray")

CHOICES: dict[str, tuple[str | None, ...]] = {
    "prepare": (None, "demo"),
    "student.dtype": ("float32", "bfloat16"),
    "teacher.dtype": ("auto", "float32", "bfloat16"),
    "teacher.injection.tensors": ("kv", "v"),
    "teacher.injection.tokens": ("all", "image"),
    "training.optimizer": ("adam", "adamw"),
    "training.loss": ("l1", "l2", "charbonnier"),
    "training.schedule": ("constant", "cosine"),
}
CONTROLS = ("source_only", "median")

# key -> (lowest, highest), both allowed
RANGES: dict[str, tuple[float, float]] = {
    "log_interval_s": (0.1, math.inf),
    "target.max_pixels": (1, math.inf),
    "teacher.steps": (1, math.inf),
    "teacher.strength": (1e-6, 1),
    "teacher.injection.steps": (0, math.inf),
    "teacher.max_sequence_length": (1, 512),
    "generation.rows_per_block": (1, math.inf),
    "generation.max_attempts": (1, math.inf),
    "generation.no_progress_timeout_s": (1, math.inf),
    "training.steps": (1, math.inf),
    "training.batch_size": (1, math.inf),
    "training.source_ratio": (0, 1),
    "training.patch": (1, math.inf),
    "training.lr": (0, math.inf),
    "training.warmup_steps": (0, math.inf),
    "training.ema": (0, 1),
    "training.clip_grad_norm": (0, math.inf),
    "training.num_workers": (1, math.inf),
    "training.cpus_per_worker": (0, math.inf),
    "training.checkpoint_every": (1, math.inf),
    "training.log_every": (1, math.inf),
    "training.max_failures": (-1, math.inf),
    "evaluation.crop_border": (0, math.inf),
    "evaluation.report_images": (0, math.inf),
}

PATHS = (
    "source.hq", "source.lq", "target.path", "student.path", "scorer.path", "scorer.weights",
    "evaluation.target_lq", "evaluation.target_hq", "evaluation.source_hq", "evaluation.source_lq",
    "evaluation.pairs_hq",
)  # fmt: skip
"""Local paths that must exist; `teacher.path` may be a hub id and is looked up when it is loaded."""

NEEDED = {
    "generate": ("target.path", "student.path", "teacher.path"),
    "finetune": ("student.path", "source.hq"),
    "evaluate": ("student.path",),
    "adapt": ("target.path", "student.path", "teacher.path", "source.hq"),
}


def preset_names() -> list[str]:
    """Names that `preset=` takes."""
    return sorted(f.name.removesuffix(".yaml") for f in _presets().iterdir() if f.name.endswith(".yaml"))


def load_config(
    args: Sequence[str],
    *,
    check_paths: bool = True,
    known_metrics: Callable[[], Sequence[str]] | None = None,
) -> Config:
    """The settings that `preset=NAME config=FILE key=value ...` describe.

    Args:
        args: in any order; a preset comes first, then the file, then the overrides.
        check_paths: refuse local paths that do not exist, except below `out`, which the run itself fills.
        known_metrics: gives the names that `evaluation.metrics` and `scorer.metric` may hold.

    Raises:
        ConfigError: one line that names the key and the nearest valid one.
    """
    preset, file, overrides = "base", None, []
    for arg in args:
        key, sign, value = arg.partition("=")
        if not sign:
            raise ConfigError(f"{arg!r}: settings are given as key=value")
        if key == "preset":
            preset = value
        elif key == "config":
            file = value
        else:
            overrides.append(arg)
    OmegaConf.clear_resolver("package")
    OmegaConf.register_resolver("package", lambda path: str(_PACKAGE / path))
    layers: list[tuple[str, Any]] = [(f"preset={preset}", _read_preset(preset))]
    if file is not None:
        layers.append((f"config={file}", _read_yaml(Path(file), f"config={file}")))
    for override in overrides:
        try:
            layers.append((override, OmegaConf.to_container(OmegaConf.from_dotlist([override]))))
        except (OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"{override}: {_line(error)}") from error
    merged = OmegaConf.structured(Config)
    for where, layer in layers:
        if layer is None:
            continue
        if not isinstance(layer, dict):
            raise ConfigError(f"{where}: a mapping of settings is needed")
        _refuse_unknown(Config, layer, "", where)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{where}: {error.full_key or ''}: {_line(error)}".replace(": : ", ": ")) from error
    try:
        merged.out = resolve_out(merged.out)  # before the paths that are built on it
        cfg = typing.cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {_line(error)}") from error
    cfg.training.betas = (float(cfg.training.betas[0]), float(cfg.training.betas[1]))
    check(cfg, check_paths=check_paths, known_metrics=known_metrics)
    for key in (*PATHS, "teacher.path"):
        _make_absolute(cfg, key)
    return cfg


def in_job() -> bool:
    """Whether this process is the driver of a `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def resolve_out(out: str) -> str:
    """A run directory that outlives the process: URLs as they are, local paths absolute.

    A job's working directory is a throw-away copy, so there a relative path is taken from `~/gmd_ray`.
    """
    if "://" in out or os.path.isabs(out):
        return out
    base = Path.home() / "gmd_ray" if in_job() else Path.cwd()
    return str(base / out)


def check(
    cfg: Config, *, check_paths: bool = True, known_metrics: Callable[[], Sequence[str]] | None = None
) -> None:
    """Hold every value against its rule.

    Raises:
        ConfigError: for the first that breaks one.
    """
    values = dict(_flatten(cfg))
    for key, choices in CHOICES.items():
        if values[key] not in choices:
            names = [c for c in choices if c is not None]
            raise ConfigError(f"{key}={values[key]}: {nearest(str(values[key]), names)}")
    for key, (low, high) in RANGES.items():
        if not low <= values[key] <= high:
            bounds = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise ConfigError(f"{key}={values[key]}: must be {bounds}")
    for key, pool in _pools(cfg):
        if not 1 <= pool.min <= pool.max:
            raise ConfigError(f"{key}.min={pool.min}, {key}.max={pool.max}: 1 <= min <= max is needed")
        if pool.batch_size < 1 or pool.num_cpus < 0 or pool.num_gpus < 0:
            raise ConfigError(f"{key}: batch_size must be at least 1, num_cpus and num_gpus at least 0")
    for control in cfg.controls:
        if control not in CONTROLS:
            raise ConfigError(f"controls: no control {control!r}; {nearest(control, CONTROLS)}")
    if "median" in cfg.controls and not cfg.generation.keep_restored:
        raise ConfigError("controls: median filters the `restored` images; set generation.keep_restored=true")
    for gate in cfg.tracking.gates:
        against = ("baseline", "champion", *cfg.controls)
        if gate.against not in against:
            raise ConfigError(f"tracking.gates: against={gate.against}: {nearest(gate.against, against)}")
        if gate.dataset not in ("target", "source"):
            raise ConfigError(f"tracking.gates: dataset={gate.dataset}: target or source")
    if known_metrics is not None:
        names = list(known_metrics())
        for key, wanted in (("evaluation.metrics", cfg.evaluation.metrics), ("scorer.metric", [cfg.scorer.metric])):
            for name in wanted:
                if name not in names:
                    close = nearest(name, names)
                    hint = close if close.startswith("did") else "`gmd-ray ls metrics` lists them"
                    raise ConfigError(f"{key}: no metric {name!r}; {hint}")
    if check_paths:
        for key in PATHS:
            path = values.get(key)
            if path and "://" not in path and not _made_by_run(path, cfg.out) and not Path(path).exists():
                raise ConfigError(f"{key}={path}: no such file or folder")


def require(cfg: Config, verb: str) -> None:
    """Refuse a run that lacks what its verb needs.

    Raises:
        ConfigError: listing every missing key.
    """
    values = dict(_flatten(cfg))
    missing = [key for key in NEEDED[verb] if not values[key]]
    if missing:
        raise ConfigError(f"{verb} needs {', '.join(f'{key}=...' for key in missing)}")
    if "source.hq" in NEEDED[verb] and not cfg.source.lq and not cfg.source.degradation:
        raise ConfigError(f"{verb} needs source.lq=... (pairs) or source.degradation=... (a preset to make them)")


def resolved(cfg: Config) -> dict[str, Any]:
    """Plain nested dict of every setting."""
    return dataclasses.asdict(cfg)


def save_config(cfg: Config, path: str | Path) -> None:
    """Write a file that `config=` reads back to the same Config."""
    plain = resolved(cfg)
    plain["training"]["betas"] = list(plain["training"]["betas"])
    Path(path).write_text(yaml.safe_dump(plain, sort_keys=False))


def _presets() -> Any:
    return _PACKAGE / "config" / "presets"


def _read_preset(name: str) -> Any:
    if name.endswith((".yaml", ".yml")):
        return _read_yaml(Path(name), f"preset={name}")
    if name not in preset_names():
        raise ConfigError(f"preset={name}: {nearest(name, preset_names())}")
    return _parse((_presets() / f"{name}.yaml").read_text(), f"preset={name}")


def _read_yaml(path: Path, where: str) -> Any:
    if not path.is_file():
        raise ConfigError(f"{where}: no such file")
    return _parse(path.read_text(), where)


def _parse(text: str, where: str) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else {}
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{where}: not YAML ({_line(error)})") from error


def _refuse_unknown(schema: type, layer: dict[str, Any], head: str, where: str) -> None:
    hints = typing.get_type_hints(schema)
    for key, value in layer.items():
        if key not in hints:
            every = [name for name, _ in _flatten(Config())] + [f.name for f in dataclasses.fields(Config)]
            close = nearest(f"{head}{key}", every)
            if not close.startswith("did"):
                close = f"known here: {', '.join(sorted(hints))}"
            raise ConfigError(f"{where}: no setting {head}{key}; {close}")
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            _refuse_unknown(typing.cast(type, hints[key]), value, f"{head}{key}.", where)


def _flatten(node: Any, head: str = "") -> Iterator[tuple[str, Any]]:
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            yield from _flatten(value, f"{head}{item.name}.")
        else:
            yield f"{head}{item.name}", value


def _pools(cfg: Config) -> Iterator[tuple[str, PoolConfig]]:
    for section in ("student", "teacher", "scorer", "evaluation"):
        yield f"{section}.pool", getattr(cfg, section).pool


def _make_absolute(cfg: Config, key: str) -> None:
    """A local path from the working directory of the driver, which the workers do not share."""
    *sections, name = key.split(".")
    node: Any = cfg
    for section in sections:
        node = getattr(node, section)
    path = getattr(node, name)
    if path and "://" not in path and Path(path).exists():
        setattr(node, name, os.path.abspath(path))


def _made_by_run(path: str, out: str) -> bool:
    return Path(path).is_relative_to(out)


def _line(error: Exception) -> str:
    """The first line of a library's message, without OmegaConf's own bookkeeping lines."""
    return str(error).strip().splitlines()[0]
