"""Loads a Config: preset, file and overrides of a command line, merged, looked up, and held against every rule.

Nothing heavy is imported here, so that a mistake in the settings is reported within a second.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gmd_ray.config import secrets
from gmd_ray.config.keys import PATHS, PUBLISHED, SETTINGS, flatten, section_at
from gmd_ray.config.layers import Assignment, from_override, from_yaml, merge, teacher_preset
from gmd_ray.config.metric_names import MetricFacts
from gmd_ray.config.places import in_job, resolve_out, resolve_uri
from gmd_ray.config.references import PACKAGE, Lookup
from gmd_ray.config.requirements import check_out, require
from gmd_ray.config.saving import config_text, resolved, save_config
from gmd_ray.config.sections.run import Config
from gmd_ray.config.sections.setting import types_of
from gmd_ray.config.validate import is_published, validate
from gmd_ray.errors import ConfigError, nearest

__all__ = [
    "check_out",
    "config_text",
    "in_job",
    "load_config",
    "preset_heading",
    "preset_names",
    "require",
    "resolve_out",
    "resolved",
    "save_config",
    "setting_like",
    "validate",
]

_PRESETS = PACKAGE / "config" / "presets"
_BASE = "base"
"""The preset that changes nothing, and has no file."""


def preset_names() -> list[str]:
    """The names that `preset=` takes."""
    files = (file.name for file in _PRESETS.iterdir())
    return sorted([_BASE, *(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))])


def preset_heading(name: str) -> str:
    """The first sentence of a preset's file, which says what the preset is for."""
    if name == _BASE:
        return "Every setting with its default; `gmd-ray config --explain` prints them"
    lines = (_PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))
    return comment.partition(". ")[0].rstrip(".")


def load_config(
    args: Sequence[str],
    *,
    check_paths: bool = True,
    known_metrics: Callable[[], Mapping[str, MetricFacts]] | None = None,
) -> Config:
    """Load the settings that `preset=NAME config=FILE key=value ...` describe.

    Args:
        args: in any order; a preset comes first, then the file, then the overrides.
        check_paths: refuse local paths that do not exist, except below `out`, which the run itself fills.
        known_metrics: returns the metrics that `evaluation.metrics` and `scorer.metric` may name; without it their
            names are not checked.

    Raises:
        ConfigError: one line that names the key and the nearest valid one.
    """
    preset, file, overrides = _BASE, None, []
    for arg in args:
        key, sign, value = arg.partition("=")
        if not key or not sign:
            raise ConfigError(f"{arg!r}: settings are given as key=value")
        if key == "preset":
            preset = value
        elif key == "config":
            if file is not None:
                raise ConfigError(
                    f"{arg}: a second settings file; config={file} is given already, and only one is read"
                )
            file = value
        else:
            overrides.append(arg)
    sources: list[Sequence[Assignment]] = [_read_preset(preset)]
    if file is not None:
        sources.append(_read_yaml(file, f"config={file}"))
    sources.append([from_override(override) for override in overrides])
    cfg = _settings(sources)
    _learn(cfg)
    _refuse_hidden(cfg)
    _expand_home(cfg)
    if cfg.tracking.uri:
        _change(cfg, "tracking.uri", resolve_uri)
    _complete_sets(cfg)
    validate(cfg, check_paths=check_paths, known_metrics=known_metrics)
    _make_absolute(cfg)
    return cfg


def setting_like(name: str) -> list[str]:
    """The settings that a word may mean, with dashes for its dots or without its section: `source-hq`, `lr`."""
    plain, keys = _without_marks(name), ["preset", "config", *SETTINGS]
    whole = [key for key in keys if _without_marks(key) == plain]
    return whole or [key for key in keys if _without_marks(key.rpartition(".")[2]) == plain]


def _without_marks(name: str) -> str:
    return "".join(c for c in name.lower() if c not in "-_.")


def _settings(sources: Sequence[Sequence[Assignment]]) -> Config:
    """Lay the sources over the defaults, and look up `${...}`."""
    found = merge(_with_teacher_preset(sources))
    lookup = Lookup(found)
    for key in ("out", *found):  # `out` first, since paths are built on it
        found[key] = lookup.value(key, found[key])
        if key == "out":
            written = secrets.kept("out", found[key])
            found[key] = resolve_out(found[key])
            lookup.put("out", found[key])
            if written is not None:
                secrets.keep("out", found[key], written)
    return typing.cast(Config, _section(Config, found, ""))


def _section(schema: type, found: Mapping[str, Any], head: str) -> Any:
    """The dataclass of a section, from the values of all settings by key; `head` is its key with a dot at the end."""
    fields = {}
    for name, hint in types_of(schema).items():
        key = f"{head}{name}"
        section = dataclasses.is_dataclass(hint)
        fields[name] = _section(typing.cast(type, hint), found, f"{key}.") if section else found[key]
    return schema(**fields)


def _with_teacher_preset(sources: Sequence[Sequence[Assignment]]) -> list[Assignment]:
    """All assignments in order, with the settings of `teacher.preset` below the last source that sets it."""
    last, at = None, 0
    for i, source in enumerate(sources):
        for one in source:
            if one.key == "teacher.preset":
                last, at = one, i
    layers = [one for source in sources[:at] for one in source]
    if last is not None and last.value is not None:
        layers += teacher_preset(str(last.value), last.where)
    return layers + [one for source in sources[at:] for one in source]


def _read_preset(name: str) -> Sequence[Assignment]:
    if name.endswith((".yaml", ".yml")):
        return _read_yaml(name, f"preset={name}")
    if name not in preset_names():
        raise ConfigError(f"preset={name}: {nearest(name, preset_names())}")
    return () if name == _BASE else _shipped(name)


@functools.cache
def _shipped(name: str) -> tuple[Assignment, ...]:
    """The settings of a preset that comes with the package, whose file does not change."""
    return tuple(from_yaml((_PRESETS / f"{name}.yaml").read_text(encoding="utf-8"), f"preset={name}"))


def _read_yaml(place: str, where: str) -> list[Assignment]:
    try:
        return from_yaml(_text_at(place), where)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(f"{where}: no such file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not a text file") from error
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror or error})") from error


def _text_at(place: str) -> str:
    """The text of a file at a path or URL."""
    if "://" not in place:
        return Path(os.path.expanduser(place)).read_text(encoding="utf-8")
    from gmd_ray.storage import read_bytes  # pyarrow takes a while to load

    data = read_bytes(place)
    if data is None:
        raise FileNotFoundError(place)
    return data.decode("utf-8")


def _refuse_hidden(cfg: Config) -> None:
    """Refuse `***`, which a saved `config.yaml` holds where a URL had a secret: such a URL cannot be opened."""
    for key, text in _texts(cfg):
        if secrets.is_redacted(text):
            raise ConfigError(
                f"{key}={text}: *** stands for a secret, which saved settings do not hold; give {key}=... again, with "
                "${oc.env:NAME} for the secret where it is to be kept"
            )


def _learn(cfg: Config) -> None:
    """Remember the secrets of all URLs, so that they are hidden in every message, those of libraries too."""
    for _, text in _texts(cfg):
        secrets.learn(text)


def _texts(cfg: Config) -> Iterator[tuple[str, str]]:
    """Every setting that is text, and every text in a mapping, as (key, text)."""
    for key, value in flatten(cfg):
        entries = {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
        yield from ((name, item) for name, item in entries.items() if isinstance(item, str))


def _expand_home(cfg: Config) -> None:
    """Expand `~` in local paths, which no shell does behind `key=`."""
    for key in (*PATHS, "teacher.path"):
        _change(cfg, key, os.path.expanduser)
    _change_weights(cfg, os.path.expanduser)


def _complete_sets(cfg: Config) -> None:
    """Complete `gopro/train/blur@` with `data.root`; if that is not set, `require` asks for it."""

    def complete(path: str) -> str:
        if not is_published(path) or os.path.exists(path):  # a folder may look like one: `a/b/c@2x`
            return path
        published, _, root = path.partition("@")
        return f"{published}@{_absolute(os.path.expanduser(root or cfg.data.root or ''))}"

    for key in PUBLISHED:
        _change(cfg, key, complete)


def _make_absolute(cfg: Config) -> None:
    """Make local paths absolute, since workers do not share the working directory of the driver."""
    for key in (*PATHS, "teacher.path"):
        _change(cfg, key, _absolute)
    _change_weights(cfg, _absolute)


def _change(cfg: Config, key: str, change: Callable[[str], str]) -> None:
    """Replace the text of a setting. The text that saved settings have for it, with its references, stays."""
    node, name = section_at(cfg, key)
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
    """The absolute path of a file or folder that exists; anything else, such as a URL or a hub id, stays as it is."""
    return os.path.abspath(path) if path and Path(path).exists() else path
