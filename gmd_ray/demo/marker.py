"""The file that says that a demo's images are complete, and with which settings they were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gmd_ray.errors import DataError

MARKER = "world.json"


def is_made(root: Path, settings: dict[str, Any]) -> bool:
    """Return True if an earlier call finished the images below `root` with these settings.

    Raises:
        DataError: they were made with other settings.
    """
    marker = root / MARKER
    if not marker.is_file():
        return False
    if json.loads(marker.read_text()) != settings:
        raise DataError(f"{marker}: drawn with other settings; remove {root} or choose another `out`")
    return True


def mark(root: Path, settings: dict[str, Any]) -> None:
    """Say that the images below `root` are complete."""
    (root / MARKER).write_text(json.dumps(settings))
