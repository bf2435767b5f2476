"""The licence class of the teacher of a run, with the file or page that says so.

No classification replaces reading the licence. A file can name a licence that the model does not have (mirrors of
FLUX.1-dev under apache-2.0 exist), so that whatever forbids counts more than whatever allows, and the layout of a
network can forbid and never allow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gmd_ray.config import TeacherConfig
from gmd_ray.teachers.catalogue.known import (
    COMMERCIAL,
    KNOWN,
    NON_COMMERCIAL,
    UNKNOWN,
    known_teacher,
    layout,
    named_teacher,
)
from gmd_ray.teachers.directory import cached_snapshot, hub_out_of_reach, local_directory, read_config

_ALLOWING = re.compile(
    r"apache-2\.0|mit|bsd.*|isc|unlicense|cc0-1\.0|cc-by(-sa)?-\d\.\d|(creativeml-)?openrail(-m|\+\+)?"
)
_FORBIDDING = re.compile(r"non[-_ ]?commercial|\bnc\b|-nc-|research[-_ ]only|research[-_ ]licen[sc]e", re.IGNORECASE)
_TEXTS = [f"{name}{ending}" for name in ("LICENSE", "LICENCE") for ending in ("", ".md", ".txt")]
_OPENINGS = {"Apache License": "apache-2.0", "MIT License": "mit", "CreativeML Open RAIL": "openrail"}
"""Words at the head of a licence's text -> the licence."""
_HEAD = 2000
"""Number of characters of a licence's text that are looked at."""


@dataclass(frozen=True)
class Licence:
    """A licence class and its source."""

    kind: str
    """`commercial`, `non-commercial` or `unknown`."""
    source: str
    """The file, page or setting that says so; for `unknown` what was looked for."""

    @property
    def commercial(self) -> bool:
        return self.kind == COMMERCIAL

    def __str__(self) -> str:
        return f"{self.kind} ({self.source})"


def teacher_licence(cfg: TeacherConfig) -> Licence:
    """The licence class of the settings' teacher, from `teacher.licence`, the known models, or files of its directory.

    A hub id that is neither known nor in the hub's cache is asked for its model card, if the hub answers.
    """
    if cfg.licence is not None:
        return Licence(cfg.licence, "teacher.licence")
    if ":" in cfg.method:
        return Licence(UNKNOWN, f"teacher.method={cfg.method} is a plugin; say it with teacher.licence")
    if not cfg.path:
        return Licence(UNKNOWN, "teacher.path is not set")
    local = local_directory(cfg.path)
    if local is None and (known := known_teacher(cfg.path)) is not None:
        return Licence(known.kind, f"{known.licence}, {known.source}")
    path = local or (cached_snapshot(cfg.path) if cfg.path.count("/") == 1 else None)
    if path is not None:
        return directory_licence(path)
    return _judge(list(_of_card(_hub_card(cfg.path), f"{cfg.path}/README.md")), f"no model card of {cfg.path} in reach")


def directory_licence(path: Path) -> Licence:
    """The licence class of a directory in the diffusers layout.

    Looked at are the name of a snapshot in the hub's cache, the head of README.md (`license`, `license_name` and
    `base_model`), a licence's text, the `_name_or_path` of the network, and its layout.
    """
    return _judge(list(_statements(path)), "no README.md with a license, and no LICENSE, in it")


def _judge(statements: list[Licence], silence: str) -> Licence:
    """The first statement that forbids, else the first that allows, else the first that cannot be told."""
    for kind in (NON_COMMERCIAL, COMMERCIAL, UNKNOWN):
        for said in statements:
            if said.kind == kind:
                return said
    return Licence(UNKNOWN, silence)


def _statements(path: Path) -> Iterator[Licence]:
    known = named_teacher(path)
    if known is not None and "snapshots" in path.parts:
        yield Licence(known.kind, f"{known.licence}, {known.source}")
    card = path / "README.md"
    if card.is_file():
        yield from _of_card(card.read_text(encoding="utf-8", errors="replace"), "README.md")
    for name in _TEXTS:
        if (path / name).is_file():
            yield _of_text((path / name).read_text(encoding="utf-8", errors="replace")[:_HEAD], name)
    for folder in ("transformer", "unet"):
        config = read_config(path / folder / "config.json")
        if config:
            yield from _of_config(config, f"{folder}/config.json")


def _of_card(text: str, where: str) -> Iterator[Licence]:
    """The statements in the head of a model card, which is YAML between two lines of dashes."""
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    try:
        card = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        card = None
    if not isinstance(card, dict):
        return
    named, bases = str(card.get("license_name") or ""), card.get("base_model") or []
    given = card.get("license")
    for licence in given if isinstance(given, list) else [given] if given else []:
        name = str(licence).lower()
        shown = f"{where}: license: {name}" + (f", license_name: {named}" if named else "")
        # A name of its own says more than a licence beside it: cards with `license: mit` and FLUX.1-dev's exist.
        forbids = _FORBIDDING.search(f"{name} {named}")
        yield Licence(NON_COMMERCIAL if forbids else COMMERCIAL if _ALLOWING.fullmatch(name) else UNKNOWN, shown)
    for base in bases if isinstance(bases, list) else [bases]:
        known = known_teacher(str(base))
        if known is not None and known.kind == NON_COMMERCIAL:
            yield Licence(NON_COMMERCIAL, f"{where}: base_model: {base}, {known.licence}")


def _of_text(text: str, where: str) -> Licence:
    """The class of a licence by the head of its text."""
    title = text.strip().partition("\n")[0].strip("# ")[:80]
    if _FORBIDDING.search(text):
        return Licence(NON_COMMERCIAL, f"{where}: {title}")
    for opening, name in _OPENINGS.items():
        if opening in text:
            return Licence(COMMERCIAL, f"{where}: {name}")
    return Licence(UNKNOWN, f"{where}: {title}")


def _of_config(config: dict[str, Any], where: str) -> Iterator[Licence]:
    """Statements that forbid: the network's origin, or a layout that no model under a free licence has."""
    origin = str(config.get("_name_or_path") or "").lower()
    free = [layout(known.network) for known in KNOWN if known.kind == COMMERCIAL]
    for known in KNOWN:
        if known.kind != NON_COMMERCIAL:
            continue
        names = {known.hub_id, known.hub_id.replace("/", "--"), f"/{known.name}/", known.name.replace("FLUX.1", "flux")}
        if any(name.lower() in origin for name in names):
            yield Licence(NON_COMMERCIAL, f"{where}: _name_or_path: {config['_name_or_path']}, {known.licence}")
        elif config.get("num_layers") and layout(config) == layout(known.network) and layout(config) not in free:
            yield Licence(NON_COMMERCIAL, f"{where}: the layout of {known.name}, {known.licence}")


def _hub_card(hub_id: str) -> str:
    """The model card of a hub id; empty if there is none or the hub does not answer."""
    if hub_id.count("/") != 1 or hub_id.startswith((".", "/")) or hub_out_of_reach() is not None:
        return ""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, "README.md")).read_text(encoding="utf-8", errors="replace")
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
        return ""
