"""Looks up `${...}` in settings, with OmegaConf's grammar: `${out}`, `${package:demo}`, `${oc.env:NAME}`."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from gmd_ray.config import secrets, values
from gmd_ray.config.keys import SETTINGS
from gmd_ray.config.values import Reference, Refused, refusal
from gmd_ray.errors import ConfigError

PACKAGE = resources.files("gmd_ray")

_SIMPLE = re.compile(r"\$\{([^{}]*)\}")
"""A `${...}` without braces in it."""
_ELSEWHERE = re.compile(r"\$\{(?:package|oc\.env):[^{}]*\}")
"""A `${...}` that names a file or a variable of the environment, and no setting."""


class Lookup:
    """Finds the values that `${...}` stands for among merged settings."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Take the settings by dotted key, with a `Reference` where a value holds `${...}`.

        Raises:
            ConfigError: a `${...}` that cannot be read.
        """
        self._settings = dict(settings)
        self._tree: DictConfig | None = None
        """The settings as OmegaConf holds them; made at the first reference, since many runs have none."""
        self._read: list[str] = []
        """Variables of the environment that were read since this was emptied last."""
        for key, value in settings.items():
            for text in references(value):
                if problem := _grammar_problem(text):
                    raise ConfigError(f"{key}={values.shown(text)}: cannot be read ({problem}); \\${{ is text")

    def put(self, key: str, value: Any) -> None:
        """Give a setting another value, for all later look-ups."""
        self._settings[key] = value
        if self._tree is not None:
            _put(self._tree, key, value)

    def value(self, key: str, value: Any) -> Any:
        """The value of a setting with everything in it looked up, in the type that the field has.

        Text that came from the environment is remembered as a secret, and what was written for it is kept for saved
        settings.

        Raises:
            ConfigError: a name that does not exist, or a value that the field cannot have.
        """
        if next(references(value), None) is None:
            return value
        if self._tree is None:
            self._tree = _tree(self._settings)
        OmegaConf.register_resolver("package", lambda path: str(PACKAGE / path), replace=True)
        OmegaConf.register_resolver("oc.env", self._env, replace=True)
        self._read.clear()
        *sections, name = key.split(".")
        try:
            node: Any = self._tree
            for section in sections:
                node = node[section]
            plain = node[name]
            plain = OmegaConf.to_container(plain, resolve=True) if OmegaConf.is_config(plain) else plain
            found = values.convert(plain, SETTINGS[key].type, key, literal=True)
        except OmegaConfBaseException as error:
            text = next(references(value))
            line = str(error).strip().splitlines()[0].removeprefix("KeyError raised while resolving interpolation: ")
            line = values.shown(line, 160)
            raise ConfigError(f"{key}={values.shown(text)}: {line}; \\${{ is text") from error
        except Refused as refused:
            raise refusal(values.shown(key), refused) from refused
        if self._read or _has_secret(found):
            _keep(key, value, found)
        return found

    def _env(self, name: str, *default: Any) -> Any:
        """OmegaConf's own resolver of `${oc.env:NAME}`, which does not report which variable it read."""
        found = oc.env(name, *default)
        if name in os.environ:
            self._read.append(name)
            secrets.remember(str(found), f"${{oc.env:{name}}}")
        return found


def references(value: Any) -> Iterator[str]:
    """The text of every `Reference` in a value, in the dataclasses, mappings and lists of which it consists too."""
    if isinstance(value, Reference):
        yield value.text
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from (text for item in dataclasses.fields(value) for text in references(getattr(value, item.name)))
    elif isinstance(value, Mapping):
        yield from (text for item in value.values() for text in references(item))
    elif isinstance(value, list | tuple):
        yield from (text for item in value for text in references(item))


def _tree(settings: Mapping[str, Any]) -> DictConfig:
    """The settings that may be looked up, as OmegaConf holds them.

    OmegaConf takes 0.1 ms for each setting, so the tree holds only those with a `${...}` in their value and those whose
    key has a word that occurs in a `${...}`. If a `${...}` holds braces itself, it may mean any setting, and the tree
    holds all of them.
    """
    texts = [text for value in settings.values() for text in references(value)]
    plain = [_ELSEWHERE.sub("", text) for text in texts]
    named = [inside for text in plain for inside in _SIMPLE.findall(text)]
    words = {word for inside in named for word in re.findall(r"\w+", inside)}
    everything = len(named) < sum(text.count("${") for text in plain)
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        parts = key.split(".")
        if everything or not words.isdisjoint(parts) or next(references(value), None) is not None:
            node = tree
            for section in parts[:-1]:
                node = node.setdefault(section, {})
            node[parts[-1]] = _raw(value)
    return OmegaConf.create(tree)


def _put(tree: DictConfig, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    node: Any = tree
    for section in sections:
        node = node[section]
    node[name] = _raw(value)


def _raw(value: Any) -> Any:
    """A value as OmegaConf takes it: text is escaped where `${` would have a meaning."""
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


@functools.lru_cache(maxsize=256)
def _grammar_problem(text: str) -> str | None:
    """The reason why OmegaConf cannot read a text with `${...}`; None if it can."""
    try:
        OmegaConf.create({"key": text})
    except (OmegaConfBaseException, RecursionError) as error:
        return values.shown(str(error).strip().splitlines()[0])
    return None


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
