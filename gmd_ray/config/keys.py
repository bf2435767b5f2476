"""Every setting by its dotted key, read once from the dataclasses."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gmd_ray.config.sections.run import Config
from gmd_ray.config.sections.setting import Rule, rule_of, types_of


@dataclass(frozen=True)
class Setting:
    """One setting of a run."""

    key: str
    """The dotted name, such as `teacher.injection.steps`."""
    type: Any
    default: Any
    rule: Rule


def flatten(node: Any, head: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a Config, or of a section of it, as (dotted key, value)."""
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{head}{item.name}.")
        else:
            yield f"{head}{item.name}", value


def section_at(node: Any, key: str) -> tuple[Any, str]:
    """The dataclass that holds a setting, and the setting's name in it: `teacher.tile` is (cfg.teacher, "tile")."""
    *sections, name = key.split(".")
    for section in sections:
        node = getattr(node, section)
    return node, name


def _settings(schema: type, defaults: Any, head: str) -> Iterator[Setting]:
    types = types_of(schema)
    for item in dataclasses.fields(schema):
        key, default = f"{head}{item.name}", getattr(defaults, item.name)
        if dataclasses.is_dataclass(types[item.name]):
            yield from _settings(typing.cast(type, types[item.name]), default, f"{key}.")
        else:
            yield Setting(key, types[item.name], default, rule_of(item))


SETTINGS: dict[str, Setting] = {found.key: found for found in _settings(Config, Config(), "")}
"""Every setting by its key, in the order of the dataclasses. The defaults are not to be changed in place."""
RENAMED = {"teacher.quantization": "teacher.precision"}
"""Former key -> the key in its place, for the message to those who still give it."""
PUBLISHED = tuple(key for key, found in SETTINGS.items() if found.rule.published)
"""Settings that may name a published data set, `SET/SPLIT/SIDE@ROOT`."""
PATHS = tuple(
    key for key, found in SETTINGS.items() if (found.rule.path or found.rule.published) and found.type != dict[str, str]
)
"""Settings that are local paths, which must exist, or URLs. Not here: `teacher.path`, which may be a hub id, and
`evaluation.weights`, which holds several."""
