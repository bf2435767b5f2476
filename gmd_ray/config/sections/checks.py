"""Checks of single values that neither a range nor a list of choices can describe, for `setting(check=...)`.

Each takes a value of the field's type and returns the end of an error line, or None if the value is right.
"""

from __future__ import annotations

import re
from typing import Any

from gmd_ray.errors import nearest

BLOCKS = ("all", "single", "double", "late_single", "down", "mid", "up")
"""Groups of attention blocks that `teacher.injection.blocks` names."""
LAST = "last:"
"""Opening of `last:SHARE`, the form of `teacher.injection.blocks` that names the last blocks by a share of depth."""

METHODS = ("model", "folder", "online")
"""Kinds of rows that `evaluation.methods` adds."""


def device(value: str) -> str | None:
    return None if re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) else "known: auto, cpu, cuda, cuda:N"


def import_path(value: str) -> str | None:
    """`package.module:name`, where the name may be an attribute of an attribute."""
    return None if re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", value) else "give package.module:function"


def teacher_plugin(value: str) -> str | None:
    """`package.module:factory`, a teacher of the user's own."""
    return None if re.fullmatch(r"\w+(\.\w+)*:\w+", value) else "give package.module:factory"


def template(value: str) -> str | None:
    return None if value.count("{}") == 1 else "must hold {} once, for the stem of the HQ file"


def noise_levels(value: tuple[float, float]) -> str | None:
    low, high = value
    return None if 0 <= low <= high <= 1 else "must be two noise levels in [0, 1], low to high"


def ascending_steps(value: list[int]) -> str | None:
    right = all(step >= 1 for step in value) and sorted(value) == value
    return None if right else "must be steps from 1, in order"


def depth_share(blocks: Any) -> float | None:
    """The share of `last:SHARE`, in (0, 1]; None if the value does not have that form."""
    found = re.fullmatch(rf"{LAST}(\d*\.?\d+|\d+\.)", blocks) if isinstance(blocks, str) else None
    return float(found[1]) if found and 0 < float(found[1]) <= 1 else None


def intervals(value: int | float) -> str | None:
    """A number of intervals, or a share of all of them."""
    right = isinstance(value, int) or 0 < value < 1
    return None if right else "must be a whole number of intervals, or a share of them between 0 and 1"


def blocks(value: Any) -> str | None:
    if depth_share(value) is not None:
        return None
    if isinstance(value, str) and value.startswith(LAST.rstrip(":")):
        return f"a share of depth is {LAST}SHARE, with a share in (0, 1], such as {LAST}0.5"
    if isinstance(value, str):
        return None if value in BLOCKS else nearest(value, BLOCKS)
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return None
    return f"known: {', '.join(BLOCKS)}, {LAST}SHARE, or a list of module names"


def switch_or_auto(value: Any) -> str | None:
    return None if isinstance(value, bool) or value == "auto" else "must be true, false or auto"


def students(value: Any) -> str | None:
    if isinstance(value, bool) or (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        return None
    return "must be true, false, or a list of students' names"


def methods(value: dict[str, str]) -> str | None:
    """Rows of an evaluation by name: `model:CHECKPOINT`, `folder:OUTPUTS` or `online:TEACHER`."""
    for name, text in value.items():
        kind, _, rest = text.partition(":")
        if kind not in METHODS or not rest:
            return f"{name}: give {', '.join(f'{kind}:...' for kind in METHODS)}"
    return None
