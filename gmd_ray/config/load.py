"""From the command line to a checked Config: preset, file, dotlist overrides, then every value held against its rule.

Nothing heavy is imported here, so that a mistake is told within a second.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gmd_ray.config.rules import PATHS, check, flatten, require
from gmd_ray.config.schema import Config
from gmd_ray.errors import ConfigError, nearest

__all__ = [
    "check",
    "in_job",
    "load_config",
    "preset_names",
    "require",
    "resolve_out",
    "resolved",
    "save_config",
]

_PACKAGE = resources.files("gmd_ray")


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
    """Compare names before OmegaConf does: it knows only the siblings, not the same name in another section."""
    hints = typing.get_type_hints(schema)
    for key, value in layer.items():
        hint = hints.get(key)
        if hint is None:
            raise ConfigError(f"{where}: no setting {head}{key}; {_nearest_key(key, value, head, hints)}")
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                example = f"{head}{key}.{dataclasses.fields(hint)[0].name}=..."
                raise ConfigError(f"{where}: {head}{key} is a section; set single keys of it, as {example}")
            _refuse_unknown(typing.cast(type, hint), value, f"{head}{key}.", where)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                for kind in typing.get_args(hint):
                    if dataclasses.is_dataclass(kind) and isinstance(item, dict):
                        _refuse_unknown(typing.cast(type, kind), item, f"{head}{key}[{i}].", where)


def _nearest_key(key: str, value: Any, head: str, siblings: Iterable[str]) -> str:
    siblings = [f"{head}{name}" for name in siblings]
    for known in (siblings, [name for name, _ in flatten(Config())]):
        close = nearest(f"{head}{key}", known)
        if close.startswith("did"):
            return close
    return f"known here: {', '.join(sorted(siblings))}"


def _make_absolute(cfg: Config, key: str) -> None:
    """A local path from the working directory of the driver, which the workers do not share."""
    *sections, name = key.split(".")
    node: Any = cfg
    for section in sections:
        node = getattr(node, section)
    path = getattr(node, name)
    if path and "://" not in path and Path(path).exists():
        setattr(node, name, os.path.abspath(path))


def _line(error: Exception) -> str:
    """The first line of a library's message, without OmegaConf's own bookkeeping lines."""
    return str(error).strip().splitlines()[0]
