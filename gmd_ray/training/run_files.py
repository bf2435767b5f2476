"""The files in the directory of a fine-tune, `<out>/finetune/<name>`, and how they are read and written."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from pyarrow import fs

from gmd_ray.errors import DataError
from gmd_ray.storage import put_json

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

SCORE = "val_psnr"
"""Key of the validation PSNR in dB, by which checkpoints are ranked."""


def checkpoint_name(step: int) -> str:
    """The name of a checkpoint's folder, which lies beside the snapshot."""
    return f"step_{step:08d}"


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that `write_json` wrote.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        return dict(json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; restore it, or remove {path.parent} to train from the start") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a JSON object ({error}); remove {path.parent} to train from the start") from error


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file in one step: a reader sees the old content or the new one, never a part."""
    put_json(fs.LocalFileSystem(), str(path), value)


def read_curve(path: Path) -> list[dict[str, Any]]:
    """Read the logged steps in order, and cut off a last line that a crash left incomplete."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    return [line for line in curve_lines(whole) if "step" in line]


def curve_lines(content: bytes) -> list[dict[str, Any]]:
    """Parse the lines of a curve, leaving out damaged ones: after a power failure a file may hold zeros."""
    lines = []
    for text in content.splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict):
                lines.append(line)
    return lines
