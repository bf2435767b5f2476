"""The toy world's student, which leaves the ids of each call in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from gmd_ray.config import StudentConfig
from gmd_ray.students import ModuleStudent
from tests.generation.world import load_toy_student


def log_of(cfg: StudentConfig) -> Path:
    """Path of the file: that of the weights with another suffix."""
    return Path(str(cfg.path)).with_suffix(".log")


class _LoggedStudent(ModuleStudent):
    """Leaves the ids of each call beside its weights."""

    def __init__(self, cfg: StudentConfig) -> None:
        super().__init__(cfg, load_toy_student(cfg).module)
        self._log = log_of(cfg)

    def restore(self, lq: torch.Tensor, ids: Sequence[str] | None = None) -> torch.Tensor:
        with open(self._log, "a") as file:
            file.write("".join(f"{key}\n" for key in ids or ()))
        return super().restore(lq, ids)


def load_logged_student(cfg: StudentConfig) -> ModuleStudent:
    """Load the toy world's student (`student.factory`)."""
    return _LoggedStudent(cfg)
