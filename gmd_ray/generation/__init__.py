"""Generation: photos are restored, projected and scored, and become rows of the pair store (stages 0, 1 and 1b)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gmd_ray.generation.models import Models
    from gmd_ray.generation.run import generate

__all__ = ["Models", "generate"]

_HOMES = {
    "Models": "models",
    "generate": "run",
}


def __getattr__(name: str) -> Any:
    """Load a name when it is asked for: the workers that read and write need neither torch nor the model packages."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
