"""What the folder of a frozen set tells of itself: what its files were made from, and with which settings.

`parameters.jsonl` has a record for each image; of several with one id the last counts. `settings.json` has what
determines the bytes, and a folder is never filled with two kinds of them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gmd_ray.errors import ConfigError, DataError, ResumeMismatchError
from gmd_ray.images.layouts import parse_set
from gmd_ray.images.listing import ImageFile
from gmd_ray.storage import open_filesystem, replacing

RECORDS = "parameters.jsonl"


def keep_apart(hq: str, files: Sequence[ImageFile], root: Path) -> None:
    """Refuse results that would take the place of their inputs, or be inputs of the next call.

    Args:
        hq: what `files` were listed from.
        root: the folder of the frozen set.

    Raises:
        ConfigError: naming both folders.
    """
    local = [file.uri for file in files if "://" not in file.uri]
    folders = {os.path.realpath(folder) for folder in {os.path.dirname(uri) for uri in local}}
    whole = os.path.realpath(open_filesystem(hq)[1]) if local and parse_set(hq) is None else None
    for side in ("lq", "hq"):
        made = os.path.realpath(root / side)
        for folder in folders:
            if _within(folder, made) or (whole is not None and _within(made, whole)):
                raise ConfigError(f"{root / side} and the images in {folder} lie in one another: write elsewhere")


def _within(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def file_facts(file: ImageFile) -> dict[str, Any]:
    """What a listing tells of a file, as a record holds it."""
    return {"bytes": file.size, "modified": None if file.modified is None else file.modified.isoformat()}


def is_current(file: ImageFile, record: Mapping[str, Any]) -> bool:
    """Whether a file is, by its size and time, the one that a record tells of; yes where an older record tells none.

    Storage without times never says so: the file has to be read.
    """
    if record.get("digest") is None:
        return True
    now = file_facts(file)
    return now["modified"] is not None and all(now[key] in (None, record.get(key)) for key in now)


def is_there(root: Path, name: str, hq: bool, records: Mapping[str, Any]) -> bool:
    """Whether an image of the set is complete."""
    sides = ("lq", "hq") if hq else ("lq",)
    return name in records and all((root / side / f"{name}.png").is_file() for side in sides)


def forget(root: Path, names: Sequence[str], records: dict[str, dict[str, Any]]) -> None:
    """Take away images of the set, and their records."""
    for name in names:
        records.pop(name, None)
        for side in ("lq", "hq"):
            (root / side / f"{name}.png").unlink(missing_ok=True)


def hold_settings(path: Path, now: Mapping[str, Any]) -> None:
    """Write what determines the bytes, or refuse a folder that was begun with something else.

    Raises:
        DataError: where settings.json is no JSON document.
        ResumeMismatchError: naming the settings that differ.
    """
    now = json.loads(json.dumps(now))
    if not path.exists():
        put(path, (json.dumps(now, indent=2) + "\n").encode())
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise DataError(f"{path}: not a JSON document; remove {path.parent} to begin anew") from error
    differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if differing:
        raise ResumeMismatchError(
            f"{path.parent} was begun with other settings ({', '.join(differing)}): remove it, or write elsewhere"
        )


def read_records(root: Path) -> dict[str, dict[str, Any]]:
    """Id -> record, of those that are whole."""
    path = root / RECORDS
    found: dict[str, dict[str, Any]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").split("\n"):
            with contextlib.suppress(ValueError):  # half a line, of a run that was killed: its image is made again
                record = json.loads(line)
                if isinstance(record, dict) and "id" in record:
                    found[record["id"]] = record
    return found


def put(path: Path, data: bytes) -> None:
    """Write a file so that no reader sees a part of it."""
    with replacing(path) as draft:
        draft.write_bytes(data)
