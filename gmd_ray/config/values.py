"""Reads the value of a setting by the type of its field: text as it was typed, everything else as YAML has it."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from dataclasses import dataclass
from typing import Any

import yaml

from gmd_ray.config.sections.setting import types_of
from gmd_ray.errors import ConfigError, nearest

_SHOWN = 80
"""Number of characters of a value that an error message repeats."""
_OPENING = re.compile(r"(\\*)\$\{")
_TRUE, _FALSE = ("true", "yes", "y", "on", "t", "1"), ("false", "no", "n", "off", "f", "0")
_KINDS = {int: "a whole number", float: "a number", int | float: "a number", bool: "true or false", str: "text"}
_STANDARD = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "value", "merge")}
_NULL = "tag:yaml.org,2002:null"


@dataclass(frozen=True)
class Reference:
    """A text with `${...}` in it, whose value is known once all settings are."""

    text: str


class Refused(Exception):  # noqa: N818 -- never leaves this room: the loader makes a ConfigError of it
    """A value that its field cannot take, or a setting that does not exist."""

    def __init__(self, key: str, why: str, value: object = None, *, unknown: bool = False) -> None:
        """Store the parts of an error line.

        Args:
            key: the setting, or the part of its value that is wrong.
            why: the end of the line.
            value: the value, if the key and the source of the setting do not show it.
            unknown: there is no such setting.
        """
        super().__init__(key, why, value)
        self.key, self.why, self.value, self.unknown = key, why, value, unknown


class Loader(yaml.SafeLoader):
    """A YAML loader for which `1e3` is a number, a date is text, and a key that comes twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated(node)
        return super().construct_mapping(node, deep)


Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\.\d[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+)\Z"),
    list("-+0123456789."),
)


def compose(text: str, where: str) -> tuple[Loader, yaml.Node | None]:
    """Parse a YAML document.

    Returns:
        the loader, which turns nodes into values, and the root node; None if the document is empty.

    Raises:
        ConfigError: no YAML. The line begins with `where`.
    """
    try:
        loader = Loader(text)
        return loader, loader.get_single_node()
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply to be read") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML ({_problem(error)})") from error


def from_text(text: str, hint: Any, key: str) -> Any:
    """Read the text of `key=text` as the value of a field of type `hint`.

    A field of text takes it as it is, except for `null` and `${...}`; with a backslash before them they are text too.

    Raises:
        ConfigError: no YAML, where the field is not text.
        Refused: a value that does not fit the field.
    """
    if _without_none(hint) is str:
        value = None if text == "null" else text[1:] if re.fullmatch(r"\\+null", text) else text
        return convert(value, hint, key)
    if re.fullmatch(r"\s*\$\{.*\}\s*", text, re.DOTALL):  # YAML takes some of these for mappings
        return Reference(text.strip())
    try:
        loader, node = compose(text, f"{key}={shown(text)}")
    except ConfigError as error:
        raise ConfigError(f"{str(error).replace('not YAML', 'cannot be read', 1)}; quote what is text in it") from error
    try:
        return from_node(loader, node or yaml.ScalarNode(_NULL, ""), hint, key)
    except RecursionError as error:
        raise ConfigError(f"{key}={shown(text)}: nested too deeply to be read") from error


def parse_any(text: str, where: str) -> Any:
    """Read a piece of YAML as a plain value.

    Raises:
        ConfigError: no YAML.
    """
    loader, node = compose(text, where)
    try:
        return None if node is None else loader.construct_object(node, deep=True)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{where}: cannot be read ({_problem(error)})") from error


def from_node(loader: Loader, node: yaml.Node, hint: Any, key: str) -> Any:
    """Read a YAML node as the value of a field of type `hint`.

    Text and numbers are read from the characters themselves, so that `2024_05_01`, `1.10` and `007` stay as they are in
    a field of text.

    Raises:
        Refused: a value that does not fit the field.
    """
    try:
        plain = _plain(loader, node, hint, key)
    except yaml.YAMLError as error:
        raise Refused(key, f"cannot be read ({_problem(error)})") from error
    return convert(plain, hint, key)


def convert(value: Any, hint: Any, key: str, *, literal: bool = False) -> Any:
    """Convert a plain value to the type of its field, `hint`.

    Args:
        literal: `${` in it is text, since references were looked up already.

    Raises:
        Refused: a value that does not fit the field.
    """
    kind = _without_none(hint)
    if value is None and (kind is not hint or hint is Any):
        return None
    if isinstance(value, str) and not literal and is_reference(value):
        return Reference(value)
    if isinstance(value, Reference):
        return value
    if kind is Any:
        return _any(value, literal)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        if not isinstance(value, list):
            raise Refused(key, f"is a list; give the whole of it, as {key}=[...]")
        return [convert(item, args[0], f"{key}[{i}]", literal=literal) for i, item in enumerate(value)]
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(args):
            raise Refused(key, f"must be {len(args)} numbers, as {key}=[0.1, 0.2]", value)
        pairs = enumerate(zip(value, args, strict=True))
        return tuple(convert(item, arg, f"{key}[{i}]", literal=literal) for i, (item, arg) in pairs)
    if origin is dict:
        if not isinstance(value, dict):
            raise Refused(key, f"maps names to values; give them as {key}.NAME=...")
        return {str(name): convert(item, args[1], f"{key}.{name}", literal=literal) for name, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return _record(value, typing.cast(type, kind), key, literal)
    return _scalar(value, kind, key, literal)


def refusal(where: str, refused: Refused) -> ConfigError:
    """The error line of a refused value: the source, then the key and the value unless the source shows them."""
    if refused.unknown:
        return ConfigError(f"{where}: {refused.why}")
    if where.startswith(f"{refused.key}="):
        return ConfigError(f"{where}: {refused.key} {refused.why}")
    value = "" if refused.value is None else f"={shown(refused.value)}"
    return ConfigError(f"{where}: {refused.key}{value} {refused.why}")


def is_reference(text: str) -> bool:
    """Tell whether a text holds a `${` that counts, which has an even number of backslashes before it."""
    return any(len(found[1]) % 2 == 0 for found in _OPENING.finditer(text))


def escaped(text: str) -> str:
    """Escape `${` in a text, so that a settings file gives the same text."""
    return _OPENING.sub(lambda found: f"{found[1] * 2}\\${{", text)


def shown(value: object, limit: int = _SHOWN) -> str:
    """A value as an error message repeats it, cut if it is long."""
    text = str(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def entries(loader: Loader, node: yaml.MappingNode) -> dict[str, yaml.Node]:
    """The nodes of the values in a mapping, by the characters of their keys.

    The keys of a merge (`<<`) are among them; a key of the mapping itself replaces one of the same name.

    Raises:
        yaml.YAMLError: a key that occurs twice, or that is no text.
    """
    _refuse_repeated(node)
    loader.flatten_mapping(node)
    return {name.value: value for name, value in node.value if isinstance(name, yaml.ScalarNode)}


def _refuse_repeated(node: yaml.MappingNode) -> None:
    if getattr(node, "looked_at", False):  # the keys of `<<` were merged into it, and may repeat its own
        return
    node.looked_at = True
    names = [name.value for name, _ in node.value if name.tag != "tag:yaml.org,2002:merge"]
    for name in names:
        if not isinstance(name, str):
            raise yaml.constructor.ConstructorError(None, None, "a key is a list or mapping", node.start_mark)
        if names.count(name) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"{name} is set twice", node.start_mark)


def _plain(loader: Loader, node: yaml.Node, hint: Any, key: str) -> Any:
    """The value of a node for `convert`: scalars stay characters if the type of the field gives their meaning."""
    kind = _without_none(hint)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return loader.construct_object(node, deep=True)
    if isinstance(node, yaml.ScalarNode):
        if node.tag == _NULL:
            return None
        if node.tag not in _STANDARD:
            raise Refused(key, "holds a tag of YAML (`!`); quote it", node.value)
        return node.value
    if isinstance(node, yaml.SequenceNode) and origin in (list, tuple):
        kinds = args if origin is tuple and len(args) == len(node.value) else (args[0],) * len(node.value)
        return [_plain(loader, item, kinds[i], f"{key}[{i}]") for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode) and (origin is dict or dataclasses.is_dataclass(kind)):
        hints = types_of(typing.cast(type, kind)) if dataclasses.is_dataclass(kind) else {}
        rest = args[1] if args else Any
        found = entries(loader, node)
        return {name: _plain(loader, item, hints.get(name, rest), f"{key}.{name}") for name, item in found.items()}
    return loader.construct_object(node, deep=True)


def _record(value: Any, schema: type, key: str, literal: bool) -> Any:
    if not isinstance(value, dict):
        raise Refused(key, f"must be a mapping of {', '.join(item.name for item in dataclasses.fields(schema))}", value)
    hints = types_of(schema)
    for name in value:
        if name not in hints:
            close = nearest(f"{key}.{name}", [f"{key}.{known}" for known in hints])
            raise Refused(f"{key}.{name}", f"no setting {key}.{name}; {close}", unknown=True)
    fields = {name: convert(item, hints[name], f"{key}.{name}", literal=literal) for name, item in value.items()}
    return schema(**fields)


def _any(value: Any, literal: bool) -> Any:
    if isinstance(value, dict):
        return {name: _any(item, literal) for name, item in value.items()}
    if isinstance(value, list):
        return [_any(item, literal) for item in value]
    if isinstance(value, str) and not literal:
        return Reference(value) if is_reference(value) else _unescaped(value)
    return value


def _scalar(value: Any, kind: Any, key: str, literal: bool) -> Any:
    if value is None:
        raise Refused(key, f"must be {_KINDS[kind]}, not null")
    if kind is str and isinstance(value, list | dict):
        raise Refused(key, "must be text; quote it", value)
    if kind is str:
        return str(value) if literal else _unescaped(str(value))
    if isinstance(value, kind) and not (kind is not bool and isinstance(value, bool)):
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        for one in typing.get_args(kind) or (kind,):
            if (found := _parsed(value.strip(), one)) is not None:
                return found
    raise Refused(key, f"must be {_KINDS[kind]}", value)


def _parsed(text: str, kind: type) -> int | float | bool | None:
    """A number or truth value from its characters; None if they are none. `010` is ten, not eight as in YAML."""
    if kind is bool:
        return True if text.lower() in _TRUE else False if text.lower() in _FALSE else None
    try:
        if kind is int:
            return int(text, 0) if re.match(r"[-+]?0[xob]", text, re.IGNORECASE) else int(text)
        return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text, flags=re.IGNORECASE))
    except ValueError:
        return None


def _unescaped(text: str) -> str:
    return _OPENING.sub(lambda found: f"{found[1][: len(found[1]) // 2]}${{", text)


def _without_none(hint: Any) -> Any:
    """The type `X` of a hint `X | None`, which may be `int | float`; another hint stays as it is."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.Union[tuple(arg for arg in typing.get_args(hint) if arg is not type(None))]  # noqa: UP007
    return hint


def _problem(error: Exception) -> str:
    problem = getattr(error, "problem", None) or str(error).strip().splitlines()[0]
    mark = getattr(error, "problem_mark", None)
    return shown(problem) if mark is None else f"{shown(problem)}, line {mark.line + 1}"
