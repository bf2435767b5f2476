"""From sources to settings: each source is a list of assignments, later ones win, `${...}` is looked up at the end."""

from __future__ import annotations

import dataclasses
import functools
import os
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from gmd_ray.config import secrets, values
from gmd_ray.config.rules import flatten
from gmd_ray.config.schema import Config
from gmd_ray.config.values import Reference, Refused
from gmd_ray.errors import ConfigError, nearest

PACKAGE = resources.files("gmd_ray")


@dataclass(frozen=True)
class Assignment:
    """One setting that a source gives."""

    where: str
    """The source, for messages."""
    key: str
    entry: tuple[str, ...]
    """Of a mapping: the one entry that is set, its own mappings apart; empty where all of it is replaced."""
    value: Any
    """As its field holds it, with a `Reference` for what holds `${...}`."""


def from_override(override: str) -> Assignment:
    """What `key=value` on a command line says.

    Raises:
        ConfigError: no such setting, or a value that it cannot have.
    """
    key, _, text = override.partition("=")
    where = values.shown(override)
    try:
        field, entry, hint = _find(key, text)
        return Assignment(where, field, entry, values.from_text(text, hint, key))
    except Refused as refused:
        raise _told(where, refused) from refused
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply to be read") from error


def from_yaml(text: str, where: str, schema: type = Config, head: str = "") -> list[Assignment]:
    """What a YAML document says of a section and those below it.

    Raises:
        ConfigError: no YAML, no such setting, or a value that it cannot have.
    """
    try:
        loader, node = values.compose(text, where)
        return [] if node is None else list(_walk(loader, node, schema, head, where))
    except Refused as refused:
        raise _told(where, refused) from refused
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply to be read") from error


def teacher_preset(name: str, where: str) -> list[Assignment]:
    """The fields that `teacher.preset=name` fills.

    Raises:
        ConfigError: no such preset; `where` is what asked for it.
    """
    text = (PACKAGE / "config" / "teacher_presets.yaml").read_text()
    loader, node = values.compose(text, "teacher presets")
    assert isinstance(node, yaml.MappingNode)
    known = values.entries(loader, node)
    if name not in known:
        key = "teacher.preset"
        head = f"{key}={name}" if where.startswith(f"{key}=") else f"{where}: {key}={name}"
        raise ConfigError(f"{head}: {nearest(name, known)}")
    hint = typing.get_type_hints(Config)["teacher"]
    return list(_walk(loader, known[name], hint, "teacher.", f"teacher.preset={name}"))


def merge(assignments: Sequence[Assignment]) -> dict[str, Any]:
    """Key -> value of every setting, defaults among them; a mapping that is given replaces the one before it."""
    found = dict(flatten(Config()))
    for one in assignments:
        if not one.entry:
            found[one.key] = one.value
            continue
        if isinstance(found[one.key], Reference):
            raise ConfigError(f"{one.where}: {one.key} is {found[one.key].text} as a whole; give all of it")
        found[one.key] = _with_entry(found[one.key], one.entry, one.value)
    return found


class Lookup:
    """Finds out what `${...}` stands for among merged settings: `${out}`, `${package:demo}`, `${oc.env:NAME}`."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._hints = _hints()
        self._read: list[str] = []
        """Variables of the environment that were asked for, since it was emptied last."""
        OmegaConf.register_resolver("package", lambda path: str(PACKAGE / path), replace=True)
        OmegaConf.register_resolver("oc.env", self._env, replace=True)
        tree: dict[str, Any] = {}
        for key, value in settings.items():
            *sections, name = key.split(".")
            node = tree
            for section in sections:
                node = node.setdefault(section, {})
            node[name] = _raw(value)
            for text in _references(value):
                _check_grammar(key, text)
        self._tree = OmegaConf.create(tree)

    def put(self, key: str, value: Any) -> None:
        """From now on `key` has this value."""
        OmegaConf.update(self._tree, key, _raw(value))

    def value(self, key: str, value: Any) -> Any:
        """`value` of `key` with everything looked up, of the type that the field has.

        Text that came of the environment is remembered as secret, and what was written for it kept for saved settings.

        Raises:
            ConfigError: nothing of that name, or a value that the field cannot have.
        """
        if not any(True for _ in _references(value)):
            return value
        self._read.clear()
        *sections, name = key.split(".")
        try:
            node: Any = self._tree
            for section in sections:
                node = node[section]
            plain = node[name]
            plain = OmegaConf.to_container(plain, resolve=True) if OmegaConf.is_config(plain) else plain
            found = values.convert(plain, self._hints[key], key, literal=True)
        except OmegaConfBaseException as error:
            text = next(_references(value))
            line = str(error).strip().splitlines()[0].removeprefix("KeyError raised while resolving interpolation: ")
            line = values.shown(line, 160)
            raise ConfigError(f"{key}={values.shown(text)}: {line}; \\${{ is text") from error
        except Refused as refused:
            raise _told(values.shown(key), refused) from refused
        if self._read or _has_secret(found):
            _keep(key, value, found)
        return found

    def _env(self, name: str, *default: Any) -> Any:
        """OmegaConf's own resolver, which does not say what was read."""
        found = oc.env(name, *default)
        if name in os.environ:
            self._read.append(name)
            secrets.remember(str(found), f"${{oc.env:{name}}}")
        return found


def _check_grammar(key: str, text: str) -> None:
    try:
        OmegaConf.create({key: text})
    except (OmegaConfBaseException, RecursionError) as error:
        line = values.shown(str(error).strip().splitlines()[0])
        raise ConfigError(f"{key}={values.shown(text)}: cannot be read ({line}); \\${{ is text") from error


def _keep(key: str, written: Any, found: Any) -> None:
    """Remember the text of each reference, and of the whole, for saved settings."""
    if isinstance(written, Reference):
        secrets.keep(key, found, written.text)
    elif isinstance(written, Mapping):
        for name, item in written.items():
            _keep(f"{key}.{name}", item, found[name])
    elif isinstance(written, list | tuple):
        for i, item in enumerate(written):
            _keep(f"{key}[{i}]", item, found[i])


def _has_secret(value: Any) -> bool:
    text = str(value)
    return secrets.with_references(text) != text


@functools.cache
def _hints() -> dict[str, Any]:
    """Key -> type of every setting."""
    return dict(_typed(Config, ""))


def _typed(schema: type, head: str) -> Iterator[tuple[str, Any]]:
    for name, hint in typing.get_type_hints(schema).items():
        if dataclasses.is_dataclass(hint):
            yield from _typed(typing.cast(type, hint), f"{head}{name}.")
        else:
            yield f"{head}{name}", hint


def _find(key: str, value: str) -> tuple[str, tuple[str, ...], Any]:
    """(setting, entry of its mapping, type) that a dotted key of a command line names."""
    hints = _hints()
    parts = key.split(".")
    for n in range(len(parts), 0, -1):
        field, rest = ".".join(parts[:n]), parts[n:]
        if field not in hints:
            continue
        hint = hints[field]
        if not rest:
            return field, (), hint
        if typing.get_origin(hint) is dict:
            kind = typing.get_args(hint)[1]
            # A name may hold dots, as labels do; what may hold anything may hold mappings.
            return field, tuple(rest) if kind is Any else (".".join(rest),), kind
        if typing.get_origin(hint) is list:
            raise Refused(field, f"is a list; give the whole of it, as {field}=[...]")
        raise Refused(key, f"no setting {key}; did you mean {field!r}?", unknown=True)
    schema: Any = Config
    for i, part in enumerate(parts):
        fields = typing.get_type_hints(schema)
        head = "".join(f"{name}." for name in parts[:i])
        if part not in fields:
            raise _unknown(part, parts[i + 1 :], head, fields)
        schema = fields[part]
    raise _no_section(key, schema)


def _walk(loader: values.Loader, node: yaml.Node, schema: type, head: str, where: str) -> Iterator[Assignment]:
    if not isinstance(node, yaml.MappingNode):
        if head:
            raise _no_section(head[:-1], schema)
        raise ConfigError(f"{where}: must hold settings as key: value")
    hints = typing.get_type_hints(schema)
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
    """With a hint: settings of that name in other sections, else the nearest setting, else all siblings."""
    siblings = [f"{head}{sibling}" for sibling in siblings]
    leaves = list(_hints())
    namesakes = [repr(leaf) for leaf in leaves if leaf.endswith(f".{name}")]
    if namesakes:
        hint = f"did you mean {' or '.join(namesakes)}?"
    else:
        close = nearest(".".join([f"{head}{name}", *rest]), [*siblings, *leaves])
        hint = close if close.startswith("did") else f"known here: {', '.join(sorted(siblings))}"
    return Refused(f"{head}{name}", f"no setting {head}{name}; {hint}", unknown=True)


def _no_section(key: str, schema: Any) -> Refused:
    example = f"{key}.{dataclasses.fields(schema)[0].name}=..."
    return Refused(key, f"{key} is a section; set single keys of it, as {example}", unknown=True)


def _told(where: str, refused: Refused) -> ConfigError:
    """One line: the source, then the key and the value where the source does not show them."""
    if refused.unknown:
        return ConfigError(f"{where}: {refused.why}")
    if where.startswith(f"{refused.key}="):
        return ConfigError(f"{where}: {refused.key} {refused.why}")
    value = "" if refused.value is None else f"={values.shown(refused.value)}"
    return ConfigError(f"{where}: {refused.key}{value} {refused.why}")


def _with_entry(mapping: Any, names: Sequence[str], value: Any) -> Any:
    """A copy of a mapping with one entry set, which may lie in mappings within it."""
    first, *rest = names
    before = mapping if isinstance(mapping, dict) else {}
    return {**before, first: _with_entry(before.get(first), rest, value) if rest else value}


def _raw(value: Any) -> Any:
    """As OmegaConf takes it: text is escaped where `${` would have a meaning."""
    if isinstance(value, Reference):
        return value.text
    if isinstance(value, str):
        return values.escaped(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _raw(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _raw(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_raw(item) for item in value]
    return value


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Reference):
        yield value.text
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from (text for item in dataclasses.fields(value) for text in _references(getattr(value, item.name)))
    elif isinstance(value, Mapping):
        yield from (text for item in value.values() for text in _references(item))
    elif isinstance(value, list | tuple):
        yield from (text for item in value for text in _references(item))
