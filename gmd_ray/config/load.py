"""From the command line to a checked Config: preset, file, dotlist overrides, then every value held against its rule.

Nothing heavy is imported here, so that a mistake is told within a second.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gmd_ray.config import secrets
from gmd_ray.config.judging import MetricFacts
from gmd_ray.config.layers import PACKAGE, Assignment, Lookup, from_override, from_yaml, merge, teacher_preset
from gmd_ray.config.limits import PATHS, SETS
from gmd_ray.config.places import in_job, resolve_out, resolve_uri
from gmd_ray.config.rules import check, flatten, is_set, require
from gmd_ray.config.schema import Config
from gmd_ray.config.values import escaped
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
    sources = [_read_preset(preset)]
    if file is not None:
        sources.append(_read_yaml(Path(os.path.expanduser(file)), f"config={file}"))
    sources.append([from_override(override) for override in overrides])
    cfg = _settings(sources)
    _learn(cfg)
    _refuse_hidden(cfg)
    _expand_home(cfg)
    if cfg.tracking.uri:
        _change(cfg, "tracking.uri", resolve_uri)
    _complete_sets(cfg)
    check(cfg, check_paths=check_paths, known_metrics=known_metrics)
    _make_absolute(cfg)
    return cfg


def setting_like(name: str) -> list[str]:
    """The settings that `name` may mean, whatever stands for its dots: `source-hq`, `preset`, `lr`; none for others."""
    plain, keys = _without_marks(name), ["preset", "config", *(key for key, _ in flatten(Config()))]
    whole = [key for key in keys if _without_marks(key) == plain]
    return whole or [key for key in keys if _without_marks(key.rpartition(".")[2]) == plain]


def _without_marks(name: str) -> str:
    return "".join(c for c in name.lower() if c not in "-_.")


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
    """Plain nested dict of every setting, as it may be shown: with `${oc.env:NAME}` for what came of the environment,
    and `***` for other secrets of URLs."""
    return typing.cast(dict[str, Any], _shown(cfg, "", str))


def save_config(cfg: Config, path: str | Path) -> None:
    """Write a file that `config=` reads back to the same Config, secrets of URLs apart; its owner alone may read it."""
    draft = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.tmp")  # no reader sees a part of it
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(config_text(cfg))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def config_text(cfg: Config) -> str:
    """What `save_config` writes: YAML."""
    return yaml.safe_dump(_shown(cfg, "", escaped), sort_keys=False)


def _shown(value: Any, key: str, escape: Callable[[str], str]) -> Any:
    """A value without its secrets; `escape` makes text of what has a meaning in settings."""
    if (written := secrets.kept(key, value)) is not None:
        return written
    if isinstance(value, str):
        text = secrets.with_references(value, escape)
        # A URL by itself: its password may hold what ends one in a sentence.
        return secrets.redact_url(text) if "://" in value else text
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        head = f"{key}." if key else ""
        return {
            item.name: _shown(getattr(value, item.name), f"{head}{item.name}", escape)
            for item in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {name: _shown(item, f"{key}.{name}", escape) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_shown(item, f"{key}[{i}]", escape) for i, item in enumerate(value))
    return value


def _settings(sources: Sequence[Sequence[Assignment]]) -> Config:
    """Lay the sources over the defaults, and look up what they refer to."""
    found = merge(_with_teacher_preset(sources))
    lookup = Lookup(found)
    for key in ("out", *found):  # `out` first: paths are built on it
        found[key] = lookup.value(key, found[key])
        if key == "out":
            written = secrets.kept("out", found[key])
            found[key] = resolve_out(found[key])
            lookup.put("out", found[key])
            if written is not None:
                secrets.keep("out", found[key], written)
    return typing.cast(Config, _section(Config, found, ""))


def _section(schema: type, found: Mapping[str, Any], head: str) -> Any:
    fields = {}
    for name, hint in typing.get_type_hints(schema).items():
        key = f"{head}{name}"
        section = dataclasses.is_dataclass(hint)
        fields[name] = _section(typing.cast(type, hint), found, f"{key}.") if section else found[key]
    return schema(**fields)


def _with_teacher_preset(sources: Sequence[Sequence[Assignment]]) -> list[Assignment]:
    """All assignments, with the fields of `teacher.preset` laid under the last source that sets it."""
    last, at = None, 0
    for i, source in enumerate(sources):
        for one in source:
            if one.key == "teacher.preset":
                last, at = one, i
    layers = [one for source in sources[:at] for one in source]
    if last is not None and last.value is not None:
        layers += teacher_preset(str(last.value), last.where)
    return layers + [one for source in sources[at:] for one in source]


def _presets() -> Any:
    return PACKAGE / "config" / "presets"


def _read_preset(name: str) -> list[Assignment]:
    if name.endswith((".yaml", ".yml")):
        return _read_yaml(Path(os.path.expanduser(name)), f"preset={name}")
    if name not in preset_names():
        raise ConfigError(f"preset={name}: {nearest(name, preset_names())}")
    return from_yaml((_presets() / f"{name}.yaml").read_text(), f"preset={name}")


def _read_yaml(path: Path, where: str) -> list[Assignment]:
    if not path.is_file():
        raise ConfigError(f"{where}: no such file")
    try:
        return from_yaml(path.read_text(encoding="utf-8"), where)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not a text file") from error
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror})") from error


def _refuse_hidden(cfg: Config) -> None:
    """`config.yaml` holds `***` where a URL had a secret: such a place can be shown, and not be opened."""
    for key, text in _texts(cfg):
        if secrets.is_redacted(text):
            raise ConfigError(
                f"{key}={text}: *** stands for a secret, which saved settings do not hold; give {key}=... again, with "
                "${oc.env:NAME} for the secret where it is to be kept"
            )


def _learn(cfg: Config) -> None:
    """Secrets of URLs are hidden wherever a library tells them."""
    for _, text in _texts(cfg):
        secrets.learn(text)


def _texts(cfg: Config) -> Iterator[tuple[str, str]]:
    """Every setting that is text, and every text in a mapping."""
    for key, value in flatten(cfg):
        entries = {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
        yield from ((name, item) for name, item in entries.items() if isinstance(item, str))


def _expand_home(cfg: Config) -> None:
    """`~` in local paths: no shell expands it behind `key=`."""
    for key in (*PATHS, "teacher.path"):
        _change(cfg, key, os.path.expanduser)
    _change_weights(cfg, os.path.expanduser)


def _complete_sets(cfg: Config) -> None:
    """`gopro/train/blur@` under `data.root`; where none is given, `require` asks for it."""

    def complete(path: str) -> str:
        if not is_set(path) or os.path.exists(path):  # a folder may look like one: `a/b/c@2x`
            return path
        published, _, root = path.partition("@")
        return f"{published}@{_absolute(os.path.expanduser(root or cfg.data.root or ''))}"

    for key in SETS:
        _change(cfg, key, complete)


def _make_absolute(cfg: Config) -> None:
    """Local paths hold from the working directory of the driver, which the workers do not share."""
    for key in (*PATHS, "teacher.path"):
        _change(cfg, key, _absolute)
    _change_weights(cfg, _absolute)


def _change(cfg: Config, key: str, change: Callable[[str], str]) -> None:
    """Put another text in place of a setting's; what was written for it in saved settings stays."""
    *sections, name = key.split(".")
    node: Any = cfg
    for section in sections:
        node = getattr(node, section)
    if before := getattr(node, name):
        setattr(node, name, _changed(key, before, change))


def _change_weights(cfg: Config, change: Callable[[str], str]) -> None:
    weights = cfg.evaluation.weights
    cfg.evaluation.weights = {
        name: _changed(f"evaluation.weights.{name}", path, change) for name, path in weights.items()
    }


def _changed(key: str, before: str, change: Callable[[str], str]) -> str:
    after = change(before)
    if after != before and (written := secrets.kept(key, before)) is not None:
        secrets.keep(key, after, written)
    return after


def _absolute(path: str) -> str:
    """What does not exist here stays as it is: a URL, or a hub id."""
    return os.path.abspath(path) if path and Path(path).exists() else path
