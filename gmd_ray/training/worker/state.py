"""Reading the state of a checkpoint in a worker."""

from __future__ import annotations

import pickle
from typing import Any

import torch

from gmd_ray.config.places import above
from gmd_ray.errors import DataError
from gmd_ray.storage import local_copy
from gmd_ray.text import one_line


def load_state(path: str) -> dict[str, Any]:
    """Load the state of a checkpoint, at a path or URL, on the CPU.

    Raises:
        DataError: the file is missing or damaged. `settle_checkpoints` checked it before the workers started, so the
            damage is a few minutes old.
    """
    try:
        with local_copy(path) as copy:
            state = torch.load(copy, map_location="cpu", weights_only=True)
        if isinstance(state, dict):
            return state
        reason = f"it holds a {type(state).__name__} instead of a dictionary"
    except (FileNotFoundError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = one_line(error, 200)
    raise DataError(
        f"{path}: this checkpoint cannot be read ({reason}); give the same command again, or remove "
        f"{above(above(path))} to start over"
    )
