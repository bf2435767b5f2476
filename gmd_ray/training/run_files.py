"""The files in the directory of a fine-tune, `<out>/finetune/<name>`, and how they are read and written.

The directory is a local one, or a URL. An object store has no append and no rename: there a file is one object, which
appears when it is complete and is replaced as a whole.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from pyarrow import fs

from gmd_ray.config.places import above, below
from gmd_ray.errors import DataError
from gmd_ray.storage import is_remote, json_bytes, open_filesystem, read_bytes, write_bytes

CURVE = "curve.jsonl"
"""The figures of each logged step; see `gmd_ray.training.curve`."""

SETTINGS = "settings.json"
"""Everything that determines the weights; see `gmd_ray.training.resume`."""

SNAPSHOT = "train/checkpoint_manager_snapshot.json"
"""Ray Train's list of the checkpoints, which are folders beside it."""

STATE = "state.pt"
"""The file in a checkpoint's folder that training resumes from."""

DONE = "finetuned.json"
"""The result of a finished fine-tune."""

AGAIN = "again"
"""Key of a list of earlier figures in a report, which the curve may lack."""

SCORE = "val_psnr"
"""Key of the validation PSNR in dB, by which checkpoints are ranked."""


def checkpoint_name(step: int) -> str:
    """The name of a checkpoint's folder, which lies beside the snapshot."""
    return f"step_{step:08d}"


def state_of(directory: str, step: int) -> str:
    """The path or URL of the file in a checkpoint that training resumes from."""
    return below(directory, f"{above(SNAPSHOT)}/{checkpoint_name(step)}/{STATE}")


def checkpoint_steps(directory: str) -> set[int]:
    """The steps of the checkpoints' folders that exist, listed or not."""
    filesystem, path = open_filesystem(below(directory, above(SNAPSHOT)))
    infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    found = [re.fullmatch(r"step_(\d+)", info.base_name) for info in infos if info.type == fs.FileType.Directory]
    return {int(name[1]) for name in found if name is not None}


def ray_storage(directory: str) -> dict[str, Any]:
    """The arguments of Ray Train's `RunConfig` by which it keeps checkpoints in the directory of a fine-tune."""
    if not is_remote(directory):
        return {"storage_path": directory}
    filesystem, path = open_filesystem(directory)
    return {"storage_path": path, "storage_filesystem": filesystem}


def read_json(place: str) -> dict[str, Any]:
    """Read a file that `write_json` wrote.

    Raises:
        DataError: the file is missing or damaged.
    """
    data = read_bytes(place)
    if data is None:
        raise DataError(f"{place}: no such file; restore it, or remove {above(place)} to train from the start")
    try:
        return dict(json.loads(data))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{place}: not a JSON object ({error}); remove {above(place)} to train from the start"
        ) from error


def write_json(place: str, value: dict[str, Any]) -> None:
    """Write a JSON file in one step: a reader sees the old content or the new one, never a part."""
    write_bytes(place, json_bytes(value))


def read_curve(place: str | Path) -> list[dict[str, Any]]:
    """Read the logged steps in order, and cut off a last line that a crash left incomplete."""
    content = read_bytes(str(place)) or b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_bytes(str(place), whole)
    return [line for line in curve_lines(whole) if "step" in line]


def append_line(place: str, line: bytes) -> None:
    """Append a line to a curve. On a filesystem without append, the whole file is written anew with it.

    Only one process writes a curve at a time, so that no line of another is lost.
    """
    if not is_remote(place):
        with open(place, "ab") as file:
            file.write(line)
        return
    write_bytes(place, (read_bytes(place) or b"") + line)


def read_end(place: str, offset: int) -> bytes:
    """Read a curve from a position to its end; empty where there is no file, or it is not longer."""
    filesystem, path = open_filesystem(place)
    info = filesystem.get_file_info(path)
    if info.type != fs.FileType.File or info.size <= offset:
        return b""
    with filesystem.open_input_file(path) as file:
        file.seek(offset)
        return bytes(file.read())


def curve_lines(content: bytes) -> list[dict[str, Any]]:
    """Parse the lines of a curve, leaving out damaged ones: after a power failure a file may hold zeros."""
    lines = []
    for text in content.splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict):
                lines.append(line)
    return lines
