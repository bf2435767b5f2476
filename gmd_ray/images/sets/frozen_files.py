"""The records in the folder of a frozen set: the sources of its images, and its settings.

`parameters.jsonl` has a record per image; if an id occurs several times, its last record counts. `settings.json` has
the settings that determine the bytes. A folder is never filled with two different settings.
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
    """Refuse an output folder whose files would replace the inputs, or become inputs of the next call.

    Args:
        hq: the folder, URL or published set in which `files` were listed.
        files: the inputs.
        root: the folder of the frozen set.

    Raises:
        ConfigError: the folders overlap; the message names both.
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
    """Return the size and time of a file in the form that records have."""
    return {"bytes": file.size, "modified": None if file.modified is None else file.modified.isoformat()}


def is_current(file: ImageFile, record: Mapping[str, Any]) -> bool:
    """Tell whether the size and time of a file equal those of a record. An older record without them counts as equal.

    On storage without times the answer is always False, and the file has to be read.
    """
    if record.get("digest") is None:
        return True
    now = file_facts(file)
    return now["modified"] is not None and all(now[key] in (None, record.get(key)) for key in now)


def is_there(root: Path, name: str, hq: bool, records: Mapping[str, Any]) -> bool:
    """Tell whether an image of the set has its record and all its files."""
    sides = ("lq", "hq") if hq else ("lq",)
    return name in records and all((root / side / f"{name}.png").is_file() for side in sides)


def forget(root: Path, names: Sequence[str], records: dict[str, dict[str, Any]]) -> None:
    """Delete images of the set, and their entries in `records`."""
    for name in names:
        records.pop(name, None)
        for side in ("lq", "hq"):
            (root / side / f"{name}.png").unlink(missing_ok=True)


def hold_settings(path: Path, now: Mapping[str, Any]) -> None:
    """Write the settings of a new folder, or compare them with those of an existing one.

    Raises:
        DataError: settings.json is not a JSON document.
        ResumeMismatchError: the settings differ; the message names them.
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
    """Read all complete records, as id -> record."""
    path = root / RECORDS
    records: dict[str, dict[str, Any]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").split("\n"):
            with contextlib.suppress(ValueError):  # an incomplete line of a killed run; its image is written again
                record = json.loads(line)
                if isinstance(record, dict) and "id" in record:
                    records[record["id"]] = record
    return records


def put(path: Path, data: bytes) -> None:
    """Write a file atomically: readers see either no new file or the complete one."""
    with replacing(path) as draft:
        draft.write_bytes(data)
