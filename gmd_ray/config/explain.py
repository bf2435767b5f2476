"""Every setting with its type, range, description and default, as a file that can be used as a preset."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

import yaml

from gmd_ray.config.keys import SETTINGS, Setting
from gmd_ray.config.sections.run import Config
from gmd_ray.config.sections.setting import Rule, rule_of, types_of
from gmd_ray.errors import ConfigError, nearest

_WIDTH = 120
_HEADING = """\
Every setting with its default. `paper` marks a value that the paper gives; every other value is this project's choice.

Text is taken as it stands: `model: 1.10` is that text, here and as `tracking.model=1.10` on a command line, where only
the shell's own quotes are needed. Two things have a meaning: `null` is no value, and `${...}` refers to something else.
`${out}` is another setting. `${oc.env:NAME}` is a variable of the environment; saved settings keep it as it is written,
and it is `***` wherever text is displayed. As plain text they are quoted, 'null', or have a backslash, '\\${out}'; on a
command line key='\\null' and key='\\${out}'. A mapping replaces the one that an earlier source gave; a dotted key on a
command line sets one entry."""
_KINDS = {
    int: ("whole number", "whole numbers"),
    float: ("number", "numbers"),
    bool: ("true or false", "truth values"),
    str: ("text", "texts"),
    Any: ("any value", "any values"),
}
"""Type -> the words for one value, and for several."""
_RECORDS = ("mapping", "mappings")


def explain(name: str = "") -> str:
    """Every setting of a section, or one setting, as YAML with comments; by default every setting there is.

    Args:
        name: the key of a section or setting, such as `teacher`, `teacher.pool` or `teacher.tile`.

    Raises:
        ConfigError: no such section or setting.
    """
    keys = [key for key in SETTINGS if not name or key == name or key.startswith(f"{name}.")]
    if not keys:
        known = {".".join(key.split(".")[:n]) for key in SETTINGS for n in range(1, key.count(".") + 2)}
        raise ConfigError(f"--explain {name}: no such section or setting; {nearest(name, known)}")
    lines = [] if name else [*_comment(_HEADING, ""), ""]
    lines += _section(Config, "", keys)
    return "\n".join(lines).strip("\n") + "\n"


def _section(schema: type, head: str, keys: list[str]) -> Iterator[str]:
    """The lines of those fields of a section that are among `keys`, or have some of them below them."""
    indent = "  " * head.count(".")
    for name, kind in types_of(schema).items():
        key = f"{head}{name}"
        if dataclasses.is_dataclass(kind):
            if any(one.startswith(f"{key}.") for one in keys):
                if not head:
                    yield ""
                yield from _comment(inspect.getdoc(kind) or "", indent)
                yield f"{indent}{name}:"
                yield from _section(typing.cast(type, kind), f"{key}.", keys)
        elif key in keys:
            yield from _setting(SETTINGS[key], name, indent)


def _setting(setting: Setting, name: str, indent: str) -> Iterator[str]:
    """The description of a setting as a comment, and `name: default` with the values that it may have."""
    yield from _comment(setting.rule.help, indent)
    allowed = _allowed(setting.type, setting.rule)
    record = next((arg for arg in typing.get_args(setting.type) if dataclasses.is_dataclass(arg)), None)
    if record is None:
        yield f"{indent}{name}: {_flow(setting.default)}  # {allowed}"
        return
    # A list of records: the fields are described above it, and each record is a line.
    kinds = types_of(typing.cast(type, record))
    for item in dataclasses.fields(record):
        rule = rule_of(item)
        text = f"{item.name}: {rule.help.removesuffix('.')} ({_allowed(kinds[item.name], rule)})."
        yield from _comment(text, indent, "  ")
    yield f"{indent}{name}:  # {allowed}"
    yield from (f"{indent}  - {_flow(dataclasses.asdict(one))}" for one in setting.default)


def _allowed(kind: Any, rule: Rule) -> str:
    """The values that a setting may have, in words: `whole number in [1, inf), or null`."""
    if rule.kind:
        return rule.kind
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (kind,) = (arg for arg in typing.get_args(kind) if arg is not types.NoneType)
        return f"{_allowed(kind, rule)}, or null"
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    limits = f" in {rule.interval}" if rule.interval else ""
    if origin is None:
        return f"one of {', '.join(rule.choices)}" if rule.choices else f"{_KINDS[kind][0]}{limits}"
    several = f"any of {', '.join(rule.choices)}" if rule.choices else _KINDS.get(args[-1], _RECORDS)[1]
    many = {list: "list of ", tuple: f"list of {len(args)} ", dict: "mapping of names to "}[origin]
    return f"{many}{several}{limits}"


def _comment(text: str, indent: str, hanging: str = "") -> list[str]:
    """Lines of comment that hold a text, paragraph by paragraph."""
    lines = []
    for i, paragraph in enumerate(text.split("\n\n")):
        if i:
            lines.append(f"{indent}#")
        plain = " ".join(paragraph.split())
        first, rest = f"{indent}# {hanging}", f"{indent}# {hanging}{hanging}"
        lines += textwrap.wrap(
            plain, _WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
        )
    return lines


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
