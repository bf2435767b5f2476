"""A Config as text: for display, for run records, and for a file that `config=` reads back."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from gmd_ray.config import secrets
from gmd_ray.config.sections.run import Config
from gmd_ray.config.values import escaped


def resolved(cfg: Config) -> dict[str, Any]:
    """Every setting as a plain nested dict that may be displayed.

    Values that came from the environment are `${oc.env:NAME}`, and other secrets in URLs are `***`.
    """
    return typing.cast(dict[str, Any], _shown(cfg, "", str))


def save_config(cfg: Config, place: str | Path) -> None:
    """Write a file, at a path or URL, that `config=` reads back to the same Config, except for secrets in URLs.

    Only its owner may read a local one.
    """
    path = str(place)
    if "://" in path:
        from gmd_ray.storage import is_remote, open_filesystem, put  # pyarrow takes a while to load

        filesystem, inner = open_filesystem(path)
        if is_remote(path):
            put(filesystem, inner, config_text(cfg).encode())
            return
        path = inner
    draft = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.tmp")  # no reader sees half a file
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(config_text(cfg))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def config_text(cfg: Config) -> str:
    """The YAML that `save_config` writes."""
    return yaml.safe_dump(_shown(cfg, "", escaped), sort_keys=False)


def _shown(value: Any, key: str, escape: Callable[[str], str]) -> Any:
    """A value without its secrets.

    Args:
        escape: makes plain text of what has a meaning in a settings file.
    """
    if (written := secrets.kept(key, value)) is not None:
        return written
    if isinstance(value, str):
        text = secrets.with_references(value, escape)
        # A text that is one URL is treated as a whole: its password may hold characters that end a URL in a sentence.
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
