"""Weights and state as a worker takes them up: from a checkpoint, or from the student's own file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from gmd_ray.errors import DataError


def load_state(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU.

    Raises:
        DataError: naming the file, where it is missing or torn. `settle_checkpoints` has seen to that before the
            workers started, so that this is damage of the last minutes.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(state, dict):
            return state
        reason = f"a {type(state).__name__}, no dictionary"
    except (FileNotFoundError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
    raise DataError(
        f"{path}: this checkpoint cannot be read ({reason}); give the same command again, or remove {path.parents[1]} "
        f"to begin anew"
    )
