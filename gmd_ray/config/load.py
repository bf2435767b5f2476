"""From the command line to a checked Config: preset, file, dotlist overrides, then every value held against its rule.

Nothing heavy is imported here, so that a mistake is told within a second.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gmd_ray.config.judging import MetricFacts
from gmd_ray.config.limits import PATHS, SETS
from gmd_ray.config.places import in_job, resolve_out, resolve_uri
from gmd_ray.config.rules import check, flatten, is_set, require
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


def preset_heading(name: str) -> str:
    """The first sentence of a preset's file, which says what the preset is for."""
    lines = (_presets() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))
    return comment.partition(". ")[0].rstrip(".")


def load_config(
    args: Sequence[str],
    *,
    check_paths: bool = True,
    known_metrics: Callable[[], Mapping[str, MetricFacts]] | None = None,
) -> Config:
    """The settings that `preset=NAME config=FILE key=value ...` describe.

    Args:
        args: in any order; a preset comes first, then the file, then the overrides.
        check_paths: refuse local paths that do not exist, except below `out`, which the run itself fills.
        known_metrics: gives the metrics that `evaluation.metrics` and `scorer.metric` may name.

    Raises:
        ConfigError: one line that names the key and the nearest valid one.
    """
    preset, file, overrides = "base", None, []
    for arg in args:
        key, sign, value = arg.partition("=")
        if not key or not sign:
            raise ConfigError(f"{arg!r}: settings are given as key=value")
        if key == "preset":
            preset = value
        elif key == "config":
            file = value
        else:
            overrides.append(arg)
    sources: list[list[tuple[str, Any]]] = [[(f"preset={preset}", _read_preset(preset))]]
    if file is not None:
        sources.append([(f"config={file}", _read_yaml(Path(file), f"config={file}"))])
    sources.append([(override, _parse_override(override)) for override in overrides])
    cfg = _merge(_with_teacher_preset(sources))
    _expand_home(cfg)
    if cfg.tracking.uri:
        cfg.tracking.uri = resolve_uri(cfg.tracking.uri)
    _complete_sets(cfg)
    check(cfg, check_paths=check_paths, known_metrics=known_metrics)
    _make_absolute(cfg)
    return cfg


def check_out(cfg: Config, *, files: bool) -> None:
    """Refuse a run directory that a verb cannot use.

    Args:
        files: the verb writes models and reports, which are files; the pair store alone may lie at any URL.

    Raises:
        ConfigError: a URL where files are written, or where MLflow would keep its database.
    """
    if "://" not in cfg.out:
        return
    if files or cfg.prepare is not None:
        raise ConfigError(f"out={cfg.out}: the run directory must be a path that every node sees")
    if cfg.tracking.enabled and not cfg.tracking.uri:
        raise ConfigError(
            f"out={cfg.out}: MLflow cannot keep its database there; set tracking.uri to a server, or "
            "tracking.enabled=false"
        )


def resolved(cfg: Config) -> dict[str, Any]:
    """Plain nested dict of every setting."""
    return dataclasses.asdict(cfg)


def save_config(cfg: Config, path: str | Path) -> None:
    """Write a file that `config=` reads back to the same Config."""
    Path(path).write_text(config_text(cfg), encoding="utf-8")


def config_text(cfg: Config) -> str:
    """What `save_config` writes: YAML."""
    return yaml.safe_dump(resolved(cfg), sort_keys=False)


def _merge(layers: Sequence[tuple[str, Any]]) -> Config:
    """Lay (where it comes from, nested dict) over the defaults, in order."""
    OmegaConf.register_resolver("package", lambda path: str(_PACKAGE / path), replace=True)
    merged = OmegaConf.structured(Config)
    for where, layer in layers:
        if not isinstance(layer, dict):
            raise ConfigError(f"{where}: must hold settings as key: value")
        _refuse_unknown(Config, layer, "", where)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise ConfigError(_blame(where, error)) from error
    try:
        merged.out = resolve_out(merged.out)  # before the paths that are built on it
        cfg = typing.cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {_line(error)}") from error
    # OmegaConf gives lists.
    cfg.training.betas = (cfg.training.betas[0], cfg.training.betas[1])
    cfg.teacher.true_cfg_interval = (cfg.teacher.true_cfg_interval[0], cfg.teacher.true_cfg_interval[1])
    return cfg


def _with_teacher_preset(sources: Sequence[Sequence[tuple[str, Any]]]) -> list[tuple[str, Any]]:
    """The layers of all sources, with the fields of `teacher.preset` laid under the last source that sets it."""
    name, at, where = None, 0, ""
    for i, source in enumerate(sources):
        for origin, layer in source:
            teacher = layer.get("teacher") if isinstance(layer, dict) else None
            if isinstance(teacher, dict) and "preset" in teacher:
                name, at, where = teacher["preset"], i, origin
    layers = [layer for source in sources[:at] for layer in source]
    if name is not None:
        known = _parse((_PACKAGE / "config" / "teacher_presets.yaml").read_text(), "teacher presets")
        if str(name) not in known:
            key = "teacher.preset"
            head = f"{key}={name}" if where.startswith(f"{key}=") else f"{where}: {key}={name}"
            raise ConfigError(f"{head}: {nearest(str(name), known)}")
        layers.append((f"teacher.preset={name}", {"teacher": known[name]}))
    return layers + [layer for source in sources[at:] for layer in source]


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
    try:
        return _parse(path.read_text(encoding="utf-8"), where)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not a text file") from error


def _parse(text: str, where: str) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.create(text))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{where}: not YAML ({_line(error)})") from error


def _parse_override(override: str) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{override}: cannot be read ({_line(error)}); quote the value") from error


def _refuse_unknown(schema: type, layer: dict[str, Any], head: str, where: str) -> None:
    """Compare names before OmegaConf does: it knows only the siblings, not the same name in another section."""
    hints = typing.get_type_hints(schema)
    for key, value in layer.items():
        hint = hints.get(key)
        if hint is None:
            raise ConfigError(f"{where}: no setting {head}{key}; {_nearest_key(key, value, head, hints)}")
        if typing.get_origin(hint) is list and not isinstance(value, list) and "${" not in str(value):
            raise ConfigError(f"{where}: {head}{key} is a list; give the whole of it, as {head}{key}=[...]")
        if typing.get_origin(hint) is dict and isinstance(value, list):
            raise ConfigError(f"{where}: {head}{key} maps names to values; give them as {head}{key}.NAME=...")
        if typing.get_origin(hint) is tuple and isinstance(value, list):
            for item in value:
                if isinstance(item, str) and "${" not in item:  # OmegaConf's own line names neither key nor value
                    raise ConfigError(f"{where}: {head}{key}: {item!r} is not a number")
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
    """A hint: settings of that name in other sections, else the nearest setting, else all siblings."""
    siblings = [f"{head}{name}" for name in siblings]
    leaves = [name for name, _ in flatten(Config())]
    namesakes = [repr(leaf) for leaf in leaves if leaf.endswith(f".{key}")]
    if namesakes:
        return f"did you mean {' or '.join(namesakes)}?"
    full = f"{head}{key}"
    if isinstance(value, dict) and len(value) == 1:  # `teachr.steps=3` is {"teachr": {"steps": 3}}
        full += f".{next(iter(value))}"
    close = nearest(full, [*siblings, *leaves])
    return close if close.startswith("did") else f"known here: {', '.join(sorted(siblings))}"


def _expand_home(cfg: Config) -> None:
    """`~` in local paths: no shell expands it behind `key=`."""
    _map_paths(cfg, os.path.expanduser)


def _complete_sets(cfg: Config) -> None:
    """`gopro/train/blur@` under `data.root`; where none is given, `require` asks for it."""
    for key in SETS:
        section, name = key.split(".")
        path = getattr(getattr(cfg, section), name)
        if path and is_set(path):
            published, _, root = path.partition("@")
            root = _absolute(os.path.expanduser(root or cfg.data.root or ""))
            setattr(getattr(cfg, section), name, f"{published}@{root}")


def _make_absolute(cfg: Config) -> None:
    """Local paths hold from the working directory of the driver, which the workers do not share."""
    _map_paths(cfg, _absolute)


def _map_paths(cfg: Config, change: Callable[[str], str]) -> None:
    for key in (*PATHS, "teacher.path"):
        *sections, name = key.split(".")
        node: Any = cfg
        for section in sections:
            node = getattr(node, section)
        path = getattr(node, name)
        setattr(node, name, change(path) if path else path)
    cfg.evaluation.weights = {name: change(path) for name, path in cfg.evaluation.weights.items()}


def _absolute(path: str) -> str:
    """What does not exist here stays as it is: a URL, or a hub id."""
    return os.path.abspath(path) if path and Path(path).exists() else path


def _blame(where: str, error: OmegaConfBaseException) -> str:
    key = error.full_key or ""
    return f"{where}: {_line(error)}" if not key or where.startswith(f"{key}=") else f"{where}: {key}: {_line(error)}"


def _line(error: Exception) -> str:
    """The first line of a library's message, without OmegaConf's own bookkeeping lines."""
    return str(error).strip().splitlines()[0]
