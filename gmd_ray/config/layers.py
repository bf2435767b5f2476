"""Settings in layers: each source is a list of assignments, and later ones win."""

from __future__ import annotations

import copy
import dataclasses
import functools
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from gmd_ray.config import values
from gmd_ray.config.keys import RENAMED, SETTINGS, section_at
from gmd_ray.config.references import PACKAGE
from gmd_ray.config.sections.run import Config
from gmd_ray.config.sections.setting import types_of
from gmd_ray.config.sections.teacher import TeacherConfig
from gmd_ray.config.values import Reference, Refused, refusal
from gmd_ray.errors import ConfigError, nearest


@dataclass(frozen=True)
class Assignment:
    """One setting that a source gives."""

    where: str
    """The source, for messages."""
    key: str
    entry: tuple[str, ...]
    """The path to the one entry of a mapping that is set; empty if the whole value is replaced."""
    value: Any
    """The value in the type of its field, with a `Reference` for each text that holds `${...}`."""


def from_override(override: str) -> Assignment:
    """Read `key=value` as it is given on a command line.

    Raises:
        ConfigError: no such setting, or a value that it cannot have.
    """
    key, _, text = override.partition("=")
    where = values.shown(override)
    try:
        field, entry, hint = _find(key)
        return Assignment(where, field, entry, values.from_text(text, hint, key))
    except Refused as refused:
        raise refusal(where, refused) from refused
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply to be read") from error


def from_yaml(text: str, where: str) -> list[Assignment]:
    """Read a YAML document of settings.

    Raises:
        ConfigError: no YAML, no such setting, or a value that it cannot have.
    """
    try:
        loader, node = values.compose(text, where)
        return [] if node is None else list(_walk(loader, node, Config, "", where))
    except Refused as refused:
        raise refusal(where, refused) from refused
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply to be read") from error


def teacher_preset(name: str, where: str) -> Sequence[Assignment]:
    """The settings that `teacher.preset=name` fills.

    Args:
        where: the source that asks for it.

    Raises:
        ConfigError: no such preset.
    """
    known = _teacher_presets()
    if name not in known:
        key = "teacher.preset"
        head = f"{key}={name}" if where.startswith(f"{key}=") else f"{where}: {key}={name}"
        raise ConfigError(f"{head}: {nearest(name, known)}")
    return known[name]


def with_teacher_preset(teacher: TeacherConfig, name: str) -> TeacherConfig:
    """The settings of a teacher with those of a preset laid over them.

    Raises:
        ConfigError: no such preset.
    """
    found = Config(teacher=copy.deepcopy(teacher))
    for one in teacher_preset(name, f"teacher.preset={name}"):
        node, field = section_at(found, one.key)
        setattr(node, field, copy.deepcopy(one.value))
    found.teacher.preset = name
    return found.teacher


def teacher_preset_names() -> list[str]:
    """The names that `teacher.preset` takes."""
    return list(_teacher_presets())


@functools.cache
def _teacher_presets() -> dict[str, tuple[Assignment, ...]]:
    text = (PACKAGE / "config" / "teacher_presets.yaml").read_text(encoding="utf-8")
    loader, node = values.compose(text, "teacher presets")
    assert isinstance(node, yaml.MappingNode)
    return {
        name: tuple(_walk(loader, fields, TeacherConfig, "teacher.", f"teacher.preset={name}"))
        for name, fields in values.entries(loader, node).items()
    }


def merge(assignments: Sequence[Assignment]) -> dict[str, Any]:
    """The value of every setting by its key, with the default if no source sets it.

    A mapping that is given replaces the one before it. No list or mapping is shared with an assignment or a default.

    Raises:
        ConfigError: an entry is set in a mapping that an earlier source gives as `${...}`.
    """
    found = {key: setting.default for key, setting in SETTINGS.items()}
    for one in assignments:
        if not one.entry:
            found[one.key] = one.value
            continue
        if isinstance(found[one.key], Reference):
            raise ConfigError(f"{one.where}: {one.key} is {found[one.key].text} as a whole; give all of it")
        found[one.key] = _with_entry(found[one.key], one.entry, one.value)
    return {key: copy.deepcopy(value) for key, value in found.items()}


def _find(key: str) -> tuple[str, tuple[str, ...], Any]:
    """Resolve a dotted key of a command line to (setting, entry of its mapping, type)."""
    parts = key.split(".")
    for n in range(len(parts), 0, -1):
        field, rest = ".".join(parts[:n]), parts[n:]
        if field not in SETTINGS:
            continue
        hint = SETTINGS[field].type
        if not rest:
            return field, (), hint
        if typing.get_origin(hint) is dict:
            kind = typing.get_args(hint)[1]
            # The name of an entry may hold dots, as labels do. Only entries of any type may be mappings themselves.
            return field, tuple(rest) if kind is Any else (".".join(rest),), kind
        if typing.get_origin(hint) is list:
            raise Refused(field, f"is a list; give the whole of it, as {field}=[...]")
        raise Refused(key, f"no setting {key}; did you mean {field!r}?", unknown=True)
    schema: Any = Config
    for i, part in enumerate(parts):
        fields = types_of(schema)
        head = "".join(f"{name}." for name in parts[:i])
        if part not in fields:
            raise _unknown(part, parts[i + 1 :], head, fields)
        schema = fields[part]
    raise _no_section(key, schema)


def _walk(loader: values.Loader, node: yaml.Node, schema: type, head: str, where: str) -> Iterator[Assignment]:
    """The assignments in the YAML node of a section; `head` is the section's key with a dot at its end."""
    if not isinstance(node, yaml.MappingNode):
        if head:
            raise _no_section(head[:-1], schema)
        raise ConfigError(f"{where}: must hold settings as key: value")
    hints = types_of(schema)
    try:
        found = values.entries(loader, node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML ({getattr(error, 'problem', error)})") from error
    for name, value in found.items():
        key = f"{head}{name}"
        if name not in hints:
            below = list(values.entries(loader, value)) if isinstance(value, yaml.MappingNode) else []
            raise _unknown(name, below if len(below) == 1 else [], head, hints)
        if dataclasses.is_dataclass(hints[name]):
            yield from _walk(loader, value, typing.cast(type, hints[name]), f"{key}.", where)
        else:
            yield Assignment(where, key, (), values.from_node(loader, value, hints[name], key))


def _unknown(name: str, rest: Sequence[str], head: str, siblings: Iterable[str]) -> Refused:
    """The refusal of a setting that does not exist.

    It names the setting that has taken its place, else the settings of that name in other sections, else the nearest
    setting, else all siblings.
    """
    siblings = [f"{head}{sibling}" for sibling in siblings]
    namesakes = [repr(key) for key in SETTINGS if key.endswith(f".{name}")]
    if f"{head}{name}" in RENAMED:
        hint = f"its place is taken by {RENAMED[f'{head}{name}']!r}"
    elif namesakes:
        hint = f"did you mean {' or '.join(namesakes)}?"
    else:
        close = nearest(".".join([f"{head}{name}", *rest]), [*siblings, *SETTINGS])
        hint = close if close.startswith("did") else f"known here: {', '.join(sorted(siblings))}"
    return Refused(f"{head}{name}", f"no setting {head}{name}; {hint}", unknown=True)


def _no_section(key: str, schema: Any) -> Refused:
    example = f"{key}.{dataclasses.fields(schema)[0].name}=..."
    return Refused(key, f"{key} is a section; set single keys of it, as {example}", unknown=True)


def _with_entry(mapping: Any, names: Sequence[str], value: Any) -> Any:
    """A copy of a mapping with one entry set, which may lie in mappings within it."""
    first, *rest = names
    before = mapping if isinstance(mapping, dict) else {}
    return {**before, first: _with_entry(before.get(first), rest, value) if rest else value}
